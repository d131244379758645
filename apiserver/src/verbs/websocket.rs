//! A watch on a WebSocket: each event is a message, text for JSON and binary for protobuf. Upstream's `HandleWS`.

use bytes::{Buf, Bytes};
use futures::{SinkExt, Stream, StreamExt, pin_mut};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper_util::rt::TokioIo;
use skiff_api::{Status, cbor};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::Call;
use crate::http::body::{Reply, full};
use crate::http::negotiate::Format;

/// The protocol in which browsers carry a bearer token. It is no protocol to speak.
const TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// Whether the client wants a WebSocket.
pub(super) fn is_asked_for(headers: &HeaderMap) -> bool {
    let has = |name, word: &str| {
        let text = headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or("");
        text.split(',').any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    has(UPGRADE, "websocket") && has(CONNECTION, "upgrade")
}

/// Agrees to the WebSocket, and sends the frames on it.
pub(super) fn answer(call: &Call, frames: impl Stream<Item = Bytes> + Send + 'static) -> Result<Reply, Status> {
    let key = call.headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| Status::bad_request("the request has no Sec-WebSocket-Key"))?;
    let upgrade = call.upgrade.clone().ok_or_else(|| Status::bad_request("this connection can't be upgraded"))?;
    let mut reply = Response::new(full(Bytes::new()));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(Status::internal)?;
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol(&call.headers).and_then(|p| HeaderValue::from_str(p).ok()) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let format = call.shape.format;
    let server = std::sync::Arc::clone(&call.server);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
                tokio::select! { () = send(socket, frames, format) => {}, () = server.stopping() => {} }
            }
            Err(error) => tracing::debug!(%error, "upgrade of a watch came to nothing"),
        }
    });
    Ok(reply)
}

/// The first protocol that the client offers.
fn protocol(headers: &HeaderMap) -> Option<&str> {
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok()).flat_map(|text| text.split(','));
    offered.map(str::trim).find(|p| !p.is_empty() && !p.starts_with(TOKEN))
}

/// Sends until the frames or the client end. What the client sends is not read, but for its goodbye.
async fn send<S>(mut socket: WebSocketStream<S>, frames: impl Stream<Item = Bytes>, format: Format)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    pin_mut!(frames);
    loop {
        tokio::select! {
            chunk = frames.next() => {
                let Some(chunk) = chunk else { break };
                for message in messages(chunk, format) {
                    if socket.send(message).await.is_err() {
                        return;
                    }
                }
            }
            said = socket.next() => match said {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
    // The client may be gone already.
    let _ = socket.close(None).await;
}

/// The events of a chunk of frames, each a message.
fn messages(mut chunk: Bytes, format: Format) -> Vec<Message> {
    let mut found = Vec::new();
    if format == Format::Protobuf {
        while chunk.len() > 4 {
            let length = usize::try_from(chunk.get_u32()).unwrap_or(usize::MAX).min(chunk.len());
            found.push(Message::Binary(chunk.split_to(length)));
        }
        return found;
    }
    if format == Format::Cbor {
        while let Some(length) = Some(&chunk).filter(|c| !c.is_empty()).and_then(|c| cbor::length(c).ok()) {
            found.push(Message::Binary(chunk.split_to(length)));
        }
        return found;
    }
    for line in chunk.split_inclusive(|byte| *byte == b'\n') {
        found.push(Message::text(String::from_utf8_lossy(line).into_owned()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_message() {
        let texts = messages(Bytes::from_static(b"{\"a\":1}\n{}\n"), Format::Json);
        assert_eq!(texts, [Message::text("{\"a\":1}\n"), Message::text("{}\n")]);
        let binary = messages(Bytes::from_static(b"\0\0\0\x02ab\0\0\0\x01c"), Format::Protobuf);
        assert_eq!(binary, [Message::Binary("ab".into()), Message::Binary("c".into())]);
        let binary = messages(Bytes::from_static(b"\xd9\xd9\xf7\x41a\xf6"), Format::Cbor);
        assert_eq!(binary, [Message::Binary(Bytes::from_static(b"\xd9\xd9\xf7\x41a")), Message::Binary(Bytes::from_static(b"\xf6"))]);
    }

    #[test]
    fn protocols() {
        let check = |offered: &'static str, expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(offered));
            assert_eq!(protocol(&headers), expected, "{offered}");
        };
        check("", None);
        check("base64url.bearer.authorization.k8s.io.abc, x", Some("x"));
        check("base64url.bearer.authorization.k8s.io.abc", None);
    }
}
