//! What Kubernetes' clients do with WebSockets: channels, and tunnels for SPDY.

use std::io;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// The close code without which clients lose the last messages.
const NORMAL: u16 = 1000;
/// How much a tunnel holds on its way.
const TUNNEL: usize = 64 << 10;

/// The sending half, which puts a channel's number before each message.
#[derive(Debug)]
pub struct Sender {
    sink: SplitSink<WebSocket, Message>,
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver {
    stream: SplitStream<WebSocket>,
}

/// Takes a socket apart.
pub fn split(socket: WebSocket) -> (Sender, Receiver) {
    let (sink, stream) = socket.split();
    (Sender { sink }, Receiver { stream })
}

impl Sender {
    /// Sends data on a channel.
    pub async fn send(&mut self, channel: u8, data: &[u8]) -> io::Result<()> {
        let mut message = BytesMut::with_capacity(1 + data.len());
        message.put_u8(channel);
        message.put_slice(data);
        self.sink.send(Message::Binary(message.freeze())).await.map_err(io::Error::other)
    }

    /// Ends the connection, with the code that clients wait for.
    pub async fn close(&mut self) -> io::Result<()> {
        let frame = CloseFrame { code: NORMAL, reason: "".into() };
        self.sink.send(Message::Close(Some(frame))).await.map_err(io::Error::other)?;
        self.sink.flush().await.map_err(io::Error::other)
    }
}

impl Receiver {
    /// The next channel and data; `None` when the client ended.
    pub async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            let mut data = match self.stream.next().await? {
                Ok(Message::Binary(data)) => data,
                Ok(Message::Text(text)) => Bytes::from(text),
                Ok(Message::Ping(_) | Message::Pong(_)) => continue,
                Ok(Message::Close(_)) | Err(_) => return None,
            };
            if !data.is_empty() {
                let channel = data.split_to(1)[0];
                return Some((channel, data));
            }
        }
    }
}

/// A connection whose bytes travel in a socket's messages.
pub fn tunnel(socket: WebSocket) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(TUNNEL);
    let (mut sink, mut stream) = socket.split();
    let (mut read, mut write) = tokio::io::split(theirs);
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let written = match message {
                Message::Binary(data) => write.write_all(&data).await,
                Message::Close(_) => break,
                _ => Ok(()),
            };
            if written.is_err() {
                break;
            }
        }
        // The other end sees the end, or is gone itself.
        let _ = write.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = BytesMut::with_capacity(TUNNEL);
        while read.read_buf(&mut buffer).await.is_ok_and(|n| n > 0) {
            if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                return;
            }
            buffer.reserve(TUNNEL);
        }
        let frame = CloseFrame { code: NORMAL, reason: "".into() };
        // The client may have gone first.
        let _ = sink.send(Message::Close(Some(frame))).await;
    });
    ours
}
