//! The part of Docker's API where the connection becomes a stream: exec, attach, logs.
//!
//! Spoken directly, since what is read depends on whether the process has a terminal: with one, bytes come as they are;
//! without, in frames of an 8-byte header (stream, length) each. Only who asks knows which.

use std::io;
use std::path::Path;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_util::codec::Decoder;

use super::super::{Error, Output, Result};

/// Sends one request on a connection of its own.
async fn request(socket: &Path, method: Method, path: &str, body: String, upgrade: bool) -> Result<Response<Incoming>> {
    let unreachable = |e: &dyn std::fmt::Display| Error::Unreachable(e.to_string());
    let stream = UnixStream::connect(socket).await.map_err(|e| unreachable(&e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(&e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to Docker ended");
        }
    });
    let mut request = Request::builder().method(method).uri(path).header("host", "docker").header("content-type", "application/json");
    if upgrade {
        request = request.header("connection", "Upgrade").header("upgrade", "tcp");
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|e| Error::Failed(e.to_string()))?;
    let response = sender.send_request(request).await.map_err(|e| unreachable(&e))?;
    let status = response.status();
    // Not modified: it had stopped already.
    if status.is_success() || matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::NOT_MODIFIED) {
        return Ok(response);
    }
    let body = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let message: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = message["message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    Err(if status == StatusCode::NOT_FOUND { Error::NotFound(message) } else { Error::Failed(message) })
}

/// The body of the answer to a GET.
pub async fn get(socket: &Path, path: &str) -> Result<Incoming> {
    Ok(request(socket, Method::GET, path, String::new(), false).await?.into_body())
}

/// A POST whose answer says no more than that it was done.
pub async fn post(socket: &Path, path: &str) -> Result<()> {
    request(socket, Method::POST, path, String::new(), false).await.map(|_| ())
}

/// The connection that a POST becomes.
pub async fn hijack(socket: &Path, path: &str, body: String) -> Result<TokioIo<hyper::upgrade::Upgraded>> {
    let response = request(socket, Method::POST, path, body, true).await?;
    let upgraded = hyper::upgrade::on(response).await.map_err(|e| Error::Unreachable(e.to_string()))?;
    Ok(TokioIo::new(upgraded))
}

/// Takes a stream of a process's outputs apart.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// There are no frames: it is a terminal's one stream.
    pub tty: bool,
}

/// The bytes of a frame's header.
const HEADER: usize = 8;
/// A frame longer than this isn't one; Docker's are 16 KiB.
const LONGEST: usize = 64 << 20;

impl Decoder for Frames {
    type Item = Output;
    type Error = io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<Output>> {
        if self.tty {
            return Ok((!bytes.is_empty()).then(|| Output::Stdout(bytes.split().freeze())));
        }
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let [stream, _, _, _, length @ ..] = *header;
        let length = u32::from_be_bytes(length) as usize;
        if length > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no frame of Docker's"));
        }
        if bytes.len() < HEADER + length {
            bytes.reserve(HEADER + length - bytes.len());
            return Ok(None);
        }
        bytes.advance(HEADER);
        let payload = bytes.split_to(length).freeze();
        Ok(Some(if stream == 2 { Output::Stderr(payload) } else { Output::Stdout(payload) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        let mut frames = Frames { tty: false };
        let mut bytes = BytesMut::from(&b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x03"[..]);
        assert_eq!(frames.decode(&mut bytes).expect("frames"), Some(Output::Stdout("hi".into())));
        assert_eq!(frames.decode(&mut bytes).expect("frames"), None);
        bytes.extend_from_slice(b"err");
        assert_eq!(frames.decode(&mut bytes).expect("frames"), Some(Output::Stderr("err".into())));
        assert!(bytes.is_empty());
        bytes.extend_from_slice(b"\x01\0\0\0\xff\xff\xff\xff");
        assert!(frames.decode(&mut bytes).is_err());
        let mut tty = Frames { tty: true };
        let mut bytes = BytesMut::from(&b"\x01\0\0\0 as it is"[..]);
        assert_eq!(tty.decode(&mut bytes).expect("bytes"), Some(Output::Stdout(Bytes::from_static(b"\x01\0\0\0 as it is"))));
    }
}
