//! What a request may take: time, and a seat for as long as its answer is on the way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use skiff_api::Status;

use super::body::{Body, Reply};
use super::info::RequestInfo;
use super::query::Query;
use crate::flow::Ticket;
use crate::metrics::Sizes;

/// How long a request may take, and the most that a client may ask for. Upstream's `--request-timeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether a request stays open for as long as its client wants: upstream's list.
pub(crate) fn long_running(info: &RequestInfo) -> bool {
    info.verb == "watch" || (info.is_resource && matches!(info.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward"))
}

/// How long the request may take; `None` for those that stay open.
pub(crate) fn deadline(info: &RequestInfo, query: &Query) -> Result<Option<Duration>, Status> {
    if long_running(info) {
        return Ok(None);
    }
    let Some(asked) = query.get("timeout") else { return Ok(Some(REQUEST_TIMEOUT)) };
    match go_duration(asked) {
        Ok(0.0) => Ok(Some(REQUEST_TIMEOUT)),
        Ok(seconds) => Ok(Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(REQUEST_TIMEOUT).min(REQUEST_TIMEOUT))),
        Err(why) => Err(Status::bad_request(format!("invalid timeout specified in the request URL - {why}"))),
    }
}

/// 504: the time is over. What a write came to is not known.
pub(crate) fn timed_out() -> Status {
    Status { details: Some(Box::default()), ..Status::new(504, "Timeout", "Timeout: request did not complete within the allotted timeout") }
}

/// Reads a duration as Go does (`1m30s`, `1.5h`, `-3ms`), in seconds.
fn go_duration(text: &str) -> Result<f64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "" => return Err(format!("time: missing unit in duration {text:?}")),
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3_600.0,
                unknown => return Err(format!("time: unknown unit {unknown:?} in duration {text:?}")),
            };
        rest = &rest[unit..];
    }
    Ok(sign * seconds)
}

/// Holds the request's seat as long as its answer is being written, counts the bytes, and lets others have the processor
/// between the parts of a long answer.
pub(crate) fn held(reply: Reply, info_is_watch: bool, ticket: Option<Ticket>, sizes: Option<Arc<Sizes>>, long: bool) -> Reply {
    // What is whole already costs nothing more.
    if let Some(length) = reply.body().size_hint().exact()
        && !long
    {
        if let Some(sizes) = sizes {
            sizes.wrote(length);
        }
        return reply;
    }
    if long && let Some(sizes) = &sizes {
        sizes.opened(1);
    }
    reply.map(|inner| Held { inner, ticket, sizes, long, written: 0, watch: info_is_watch, yields: false }.boxed_unsync())
}

struct Held {
    inner: Body,
    /// Given back at the end; by a watch as soon as what there was at its begin is on the way.
    ticket: Option<Ticket>,
    sizes: Option<Arc<Sizes>>,
    long: bool,
    written: u64,
    watch: bool,
    /// Whether it is somebody else's turn.
    yields: bool,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if std::mem::take(&mut self.yields) && self.ticket.is_some() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.written += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.yields = true;
            }
            Poll::Pending if self.watch => self.ticket = None,
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(sizes) = &self.sizes {
            if self.long {
                sizes.opened(-1);
            } else {
                sizes.wrote(self.written);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_a_request_may_take() {
        let check = |uri: &str, expected: Result<Option<f64>, &str>| {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let query = Query::parse(query);
            let got = deadline(&RequestInfo::new(&http::Method::GET, path, &query), &query);
            let got = got.map(|deadline| deadline.map(|d| d.as_secs_f64())).map_err(|status| status.message);
            assert_eq!(got, expected.map_err(|why| format!("invalid timeout specified in the request URL - {why}")), "{uri}");
        };
        check("/api/v1/pods", Ok(Some(60.0)));
        check("/api/v1/pods?timeout=0", Ok(Some(60.0)));
        check("/api/v1/pods?timeout=1m30s", Ok(Some(60.0)));
        check("/api/v1/pods?timeout=1.5s", Ok(Some(1.5)));
        check("/api/v1/pods?timeout=200ms", Ok(Some(0.2)));
        check("/api/v1/pods?timeout=-3s", Ok(Some(0.0)));
        check("/api/v1/pods?timeout=9e99h", Err("time: unknown unit \"e\" in duration \"9e99h\""));
        check("/api/v1/pods?timeout=5", Err("time: missing unit in duration \"5\""));
        check("/api/v1/pods?timeout=x", Err("time: invalid duration \"x\""));
        check("/api/v1/pods?timeout=.", Err("time: invalid duration \".\""));
        check("/api/v1/pods?watch=1&timeout=5", Ok(None));
        check("/api/v1/namespaces/a/pods/b/log", Ok(None));
        check("/healthz", Ok(Some(60.0)));
    }
}
