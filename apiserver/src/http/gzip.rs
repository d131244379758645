//! Large answers, compressed for clients that take that.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::{StreamExt, stream};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyStream;

use super::body::{Reply, stream as streamed};

/// Upstream compresses what is larger than this, 128 KiB, and as quickly as it goes.
const THRESHOLD: usize = 128 * 1024;

/// How much is compressed at a time.
const PIECE: usize = 64 * 1024;

/// Marks an answer that may be compressed, with about how many bytes it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compressible(pub usize);

/// Whether the client takes gzip.
pub fn is_accepted(headers: &HeaderMap) -> bool {
    let all = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).flat_map(|text| text.split(','));
    all.map(|clause| clause.split(';').next().unwrap_or("").trim()).any(|name| name == "gzip")
}

/// Compresses an answer that is large enough.
pub fn compress(reply: Reply) -> Reply {
    if reply.extensions().get::<Compressible>().is_none_or(|Compressible(size)| *size <= THRESHOLD) {
        return reply;
    }
    let (mut parts, body) = reply.into_parts();
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    parts.headers.remove(CONTENT_LENGTH);
    let begun = Some((BodyStream::new(body), Bytes::new(), GzEncoder::new(Vec::new(), Compression::fast())));
    let chunks = stream::unfold(begun, |state| async move {
        let (mut body, mut data, mut encoder) = state?;
        loop {
            if data.is_empty() {
                let Some(frame) = body.next().await else { return Some((encoder.finish().map(Bytes::from), None)) };
                match frame {
                    // What is no data is trailers, of which there are none.
                    Ok(frame) => data = frame.into_data().unwrap_or_default(),
                    Err(error) => return Some((Err(error), None)),
                }
            }
            if let Err(error) = encoder.write_all(&data.split_to(data.len().min(PIECE))) {
                return Some((Err(error), None));
            }
            if !encoder.get_ref().is_empty() {
                let ready = Bytes::from(std::mem::take(encoder.get_mut()));
                return Some((Ok(ready), Some((body, data, encoder))));
            }
        }
    });
    Reply::from_parts(parts, streamed(chunks))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use http_body_util::BodyExt;

    use super::super::body::{full, reply};
    use super::*;

    #[tokio::test]
    async fn only_large_answers_are_compressed() {
        for (size, compressed) in [(THRESHOLD, false), (THRESHOLD + 1, true)] {
            let text = "x".repeat(size);
            let mut answer = reply(200, "text/plain", full(text.clone()));
            answer.extensions_mut().insert(Compressible(size));
            let answer = compress(answer);
            assert_eq!(answer.headers().get(CONTENT_ENCODING).is_some(), compressed);
            let body = answer.into_body().collect().await.expect("a body").to_bytes();
            let mut read = String::new();
            match compressed {
                true => drop(flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut read).expect("gzip")),
                false => read.push_str(std::str::from_utf8(&body).expect("text")),
            }
            assert!(read == text && (!compressed || body.len() < size / 10));
        }
    }

    #[test]
    fn who_takes_gzip() {
        let check = |text: &'static str, expected: bool| {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(text))]);
            assert_eq!(is_accepted(&headers), expected, "{text}");
        };
        check("gzip", true);
        check("deflate, gzip;q=1.0", true);
        check("br", false);
    }
}
