//! Port-forward: connections into a pod.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::ws::WebSocket;
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::spdy::Stream;
use super::{queue, websocket};
use crate::runtime::Duplex;

/// The protocols of WebSockets, the best first.
pub const WEBSOCKET_PROTOCOLS: [&str; 3] = ["SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io", "portforward.k8s.io"];
/// The one in which SPDY is tunnelled.
pub const TUNNELLED: &str = WEBSOCKET_PROTOCOLS[0];
/// The protocol of SPDY.
pub const SPDY_PROTOCOLS: [&str; 1] = ["portforward.k8s.io"];

/// How much is read at once.
const PIECE: usize = 32 << 10;
/// How many connections may be half opened by a client.
const MOST_HALVES: usize = 128;

/// Opens a connection to a port of the pod; the error is for the client to see.
pub type Connect = Arc<dyn Fn(u16) -> BoxFuture<'static, Result<Box<dyn Duplex>, String>> + Send + Sync>;

/// Serves a client that speaks SPDY: a pair of streams, `data` and `error`, for each connection.
pub async fn serve_spdy(mut streams: mpsc::Receiver<Stream>, connect: Connect) {
    // Streams whose other half is still to come, by the number of the request.
    let mut halves: HashMap<String, Stream> = HashMap::new();
    while let Some(stream) = streams.recv().await {
        let request = match stream.header("requestid") {
            // The oldest clients name none: then a port has one connection.
            "" => stream.header("port").to_owned(),
            id => id.to_owned(),
        };
        let Some(other) = halves.remove(&request) else {
            if halves.len() >= MOST_HALVES {
                return;
            }
            halves.insert(request, stream);
            continue;
        };
        let (data, error) = if stream.header("streamtype") == "data" { (stream, other) } else { (other, stream) };
        if data.header("streamtype") != "data" || error.header("streamtype") != "error" {
            return;
        }
        tokio::spawn(forward(data, error, connect.clone()));
    }
}

async fn forward(mut data: Stream, error: Stream, connect: Connect) {
    let port = data.header("port").to_owned();
    let connected = match port.parse::<u16>() {
        Ok(number) if number > 0 => connect(number).await,
        _ => Err(format!("invalid port {port:?}")),
    };
    match connected {
        Err(why) => {
            let words = format!("error forwarding port {port} to pod: {why}");
            // The client may have given up; then nobody is to be told.
            let _ = error.write.write(Bytes::from(words)).await;
        }
        Ok(connection) => {
            let (mut read, mut write) = tokio::io::split(connection);
            let writer = data.write.clone();
            let outward = async {
                let mut buffer = BytesMut::with_capacity(PIECE);
                while read.read_buf(&mut buffer).await.is_ok_and(|n| n > 0) {
                    if writer.write(buffer.split().freeze()).await.is_err() {
                        return;
                    }
                    buffer.reserve(PIECE);
                }
                // Told at once: the client may wait for it to end its own half.
                let _ = writer.finish().await;
            };
            let inward = async {
                while let Some(piece) = data.read.recv().await {
                    if write.write_all(&piece).await.is_err() {
                        return;
                    }
                }
                let _ = write.shutdown().await;
            };
            // What comes out of the pod is passed on to its end; what goes in then has nowhere to go.
            tokio::pin!(inward);
            tokio::pin!(outward);
            tokio::select! {
                () = &mut outward => {}
                () = &mut inward => outward.await,
            }
        }
    }
    let _ = data.write.finish().await;
    let _ = error.write.finish().await;
}

/// Serves a client that speaks in channels: for each port asked for, one of data and one of errors.
pub async fn serve_websocket(socket: WebSocket, ports: Vec<u16>, connect: Connect) {
    let (mut sender, mut receiver) = websocket::split(socket);
    let (outgoing, mut words) = queue::<(u8, Bytes)>();
    let mut inputs = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let Ok(channel) = u8::try_from(index * 2) else { break };
        // Each channel begins with the port that it is for.
        for channel in [channel, channel + 1] {
            if sender.send(channel, &port.to_le_bytes()).await.is_err() {
                return;
            }
        }
        let (input, pieces) = queue();
        inputs.push(input);
        tokio::spawn(forward_channel(channel, port, pieces, outgoing.clone(), connect.clone()));
    }
    drop(outgoing);
    let reading = tokio::spawn(async move {
        while let Some((channel, data)) = receiver.next().await {
            // Odd channels are for errors, which clients don't send.
            if channel % 2 == 0
                && let Some(input) = inputs.get(usize::from(channel / 2))
            {
                // A connection that ended takes no more.
                let _ = input.send(data).await;
            }
        }
    });
    while let Some((channel, data)) = words.recv().await {
        if sender.send(channel, &data).await.is_err() {
            break;
        }
    }
    reading.abort();
    let _ = sender.close().await;
}

async fn forward_channel(channel: u8, port: u16, mut pieces: mpsc::Receiver<Bytes>, outgoing: mpsc::Sender<(u8, Bytes)>, connect: Connect) {
    let connection = match connect(port).await {
        Ok(connection) => connection,
        Err(why) => {
            let words = format!("error forwarding port {port} to pod: {why}");
            let _ = outgoing.send((channel + 1, Bytes::from(words))).await;
            return;
        }
    };
    let (mut read, mut write) = tokio::io::split(connection);
    let inward = tokio::spawn(async move {
        while let Some(piece) = pieces.recv().await {
            if write.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    });
    let mut buffer = BytesMut::with_capacity(PIECE);
    while read.read_buf(&mut buffer).await.is_ok_and(|n| n > 0) {
        if outgoing.send((channel, buffer.split().freeze())).await.is_err() {
            break;
        }
        buffer.reserve(PIECE);
    }
    inward.abort();
}
