//! Bodies: what comes in (bounded), and what goes out.

use std::io;
use std::task::Poll;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use skiff_api::Status;

/// The body of every answer. Where it fails, the client must not take what it has for the whole: its connection, or its stream of
/// HTTP/2, is cut off.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;
/// An answer.
pub type Reply = Response<Body>;

/// Upstream's limit of a request's body: 3 MiB.
const MAX_BODY: usize = 3 * 1024 * 1024;

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// How many bits of a body are written before others have their turn. A client that reads quickly would else keep a thread for
/// as long as the body is: a large list takes a tenth of a second to compress and encrypt.
const BITS_A_TURN: usize = 2;

/// A body that comes bit by bit; bits are up to some 64 KiB.
pub fn stream(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    let (mut chunks, mut left) = (Box::pin(chunks), BITS_A_TURN);
    let paced = futures::stream::poll_fn(move |context| {
        if left == 0 {
            left = BITS_A_TURN;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = chunks.poll_next_unpin(context);
        left = if polled.is_ready() { left - 1 } else { BITS_A_TURN };
        polled
    });
    StreamBody::new(paced.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

/// An answer with a content type.
pub fn reply(code: u16, content_type: &'static str, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    reply
}

/// An answer of plain text.
pub fn text(code: u16, text: impl Into<Bytes>) -> Reply {
    let mut reply = reply(code, "text/plain; charset=utf-8", full(text));
    reply.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// Takes in a request's body.
pub async fn collect<B>(body: B) -> Result<Bytes, Status>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("Request entity too large: limit is {MAX_BODY}");
            Err(Status::new(413, "RequestEntityTooLarge", message))
        }
        Err(error) => Err(Status::bad_request(format!("read the request's body: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Waker};

    use http_body::Body as _;

    use super::*;

    #[test]
    fn a_long_body_lets_others_have_their_turn() {
        let chunks = (0..=2 * BITS_A_TURN).map(|i| Ok(Bytes::from(i.to_string())));
        let mut body = stream(futures::stream::iter(chunks));
        let mut turns = vec![0];
        loop {
            match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(_)) => turns.last_mut().map_or((), |bits| *bits += 1),
                Poll::Ready(None) => break,
                Poll::Pending => turns.push(0),
            }
        }
        assert_eq!(turns, [BITS_A_TURN, BITS_A_TURN, 1]);
    }
}
