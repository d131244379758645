//! The streaming protocols of exec, attach and port-forward, as Kubernetes' clients speak them.
//!
//! Two carry the streams: WebSocket, with a channel byte before each message, and SPDY/3.1, with real streams, which may itself
//! be tunnelled through a WebSocket. On both, [`remote_command`] and [`port_forward`] say what the streams mean.

pub mod port_forward;
pub mod remote_command;
pub mod spdy;
pub mod websocket;

use tokio::sync::mpsc;

/// How many pieces of data wait for a slow reader before the sender does.
const BUFFER: usize = 32;

/// A bounded queue of pieces.
fn queue<T>() -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    mpsc::channel(BUFFER)
}
