//! Watches and logs on a WebSocket. Each event is a message, text for JSON and binary for protobuf (upstream's `HandleWS`); a log
//! is as many messages as it comes in (upstream's `wsstream.Reader`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use futures::{SinkExt, Stream, StreamExt, pin_mut, stream};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyStream;
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

/// The protocols of logs: bytes as they are, and as text.
const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";

/// Whether the client wants a WebSocket.
pub(crate) fn is_asked_for(headers: &HeaderMap) -> bool {
    let has = |name, word: &str| {
        let text = headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or("");
        text.split(',').any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    has(UPGRADE, "websocket") && has(CONNECTION, "upgrade")
}

/// Sends the frames of a watch on the WebSocket, by whatever protocol the client offers first.
pub(super) fn watch(call: &Call, frames: impl Stream<Item = Bytes> + Send + 'static) -> Result<Reply, Status> {
    let format = call.shape.format;
    answer(call, offered(&call.headers).next(), frames.flat_map(move |chunk| stream::iter(messages(chunk, format))))
}

/// Sends a log on the WebSocket.
pub(crate) fn log(call: &Call, log: Reply) -> Result<Reply, Status> {
    let is_offered = offered(&call.headers).next().is_some();
    let protocol = offered(&call.headers).find(|protocol| [BINARY, BASE64].contains(protocol));
    if is_offered && protocol.is_none() {
        return Err(Status::bad_request(format!("none of the WebSocket's protocols is {BINARY} or {BASE64}")));
    }
    let is_text = protocol == Some(BASE64);
    let parts = BodyStream::new(log.into_body()).filter_map(|frame| async move { frame.ok()?.into_data().ok() });
    let parts = parts.map(move |part| if is_text { Message::text(STANDARD.encode(part)) } else { Message::Binary(part) });
    // The first message says that there is a log, however long it is silent.
    let first = if is_text { Message::text("") } else { Message::Binary(Bytes::new()) };
    answer(call, protocol, stream::iter([first]).chain(parts))
}

/// Agrees to the WebSocket, and sends the messages on it.
fn answer(call: &Call, protocol: Option<&str>, messages: impl Stream<Item = Message> + Send + 'static) -> Result<Reply, Status> {
    let key = call.headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| Status::bad_request("the request has no Sec-WebSocket-Key"))?;
    let upgrade = call.upgrade.clone().ok_or_else(|| Status::bad_request("this connection can't be upgraded"))?;
    let mut reply = Response::new(full(Bytes::new()));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(Status::internal)?;
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol.and_then(|p| HeaderValue::from_str(p).ok()) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let server = std::sync::Arc::clone(&call.server);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
                tokio::select! { () = send(socket, messages) => {}, () = server.stopping() => {} }
            }
            Err(error) => tracing::debug!(%error, "upgrade to a WebSocket came to nothing"),
        }
    });
    Ok(reply)
}

/// The protocols that the client offers.
fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok()).flat_map(|text| text.split(','));
    offered.map(str::trim).filter(|p| !p.is_empty() && !p.starts_with(TOKEN))
}

/// Sends until the messages or the client end. What the client sends is not read, but for its goodbye.
async fn send<S>(mut socket: WebSocketStream<S>, messages: impl Stream<Item = Message>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    pin_mut!(messages);
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { break };
                if socket.send(message).await.is_err() {
                    return;
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
        let check = |said: &'static str, expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(said));
            assert_eq!(offered(&headers).next(), expected, "{said}");
        };
        check("", None);
        check("base64url.bearer.authorization.k8s.io.abc, x", Some("x"));
        check("base64url.bearer.authorization.k8s.io.abc", None);
    }
}
