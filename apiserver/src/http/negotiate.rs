//! Which form an answer takes: the `Accept` header, read against what this server can write.

use std::cmp::Reverse;

use http::HeaderMap;
use http::header::ACCEPT;
use skiff_api::Status;

/// How bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
}

/// What is made of an object before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// The object itself.
    None,
    /// `as=Table`
    Table,
    /// `as=PartialObjectMetadata`, or `...List` for a list.
    Metadata,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How bytes are written.
    pub format: Format,
    /// What is made of an object.
    pub transform: Transform,
    /// Whether `as` was `v1beta1` of meta.k8s.io, and the answer says so.
    pub beta: bool,
}

impl Shape {
    /// JSON as it is.
    pub const JSON: Self = Self { format: Format::Json, transform: Transform::None, beta: false };

    /// The `Content-Type` of the answer.
    pub fn content_type(self) -> &'static str {
        match self.format {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
        }
    }

    /// Reads the header: the best-liked media type that can be written; 406 when there is none. `streams` says whether
    /// the path can also answer with a watch, which the refusal mentions.
    pub fn negotiate(headers: &HeaderMap, streams: bool) -> Result<Self, Status> {
        let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        let accept = accept.join(",");
        let mut clauses: Vec<(f32, &str)> =
            accept.split(',').map(str::trim).filter(|c| !c.is_empty()).map(|clause| (quality(clause), clause)).collect();
        if clauses.is_empty() {
            return Ok(Self::JSON);
        }
        clauses.sort_by_key(|(quality, _)| Reverse((quality * 1000.0) as i32));
        clauses.iter().find_map(|(_, clause)| shape(clause)).ok_or_else(|| {
            // Upstream refuses in two places: media types that it has never heard of by the route, others later.
            if clauses.iter().any(|(_, clause)| known(clause)) {
                let message = format!("only the following media types are accepted: {REPRESENTATIONS}");
                return Status::new(406, "NotAcceptable", message);
            }
            let watch = if streams { ", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch" } else { "" };
            let message = format!("406: Not Acceptable\n\nAvailable representations: {REPRESENTATIONS}{watch}");
            Status { details: Some(Box::default()), ..Status::new(406, "NotAcceptable", message) }
        })
    }
}

/// What upstream says it can write. Protobuf is among them for clients' sake: what asks for it always takes JSON too.
const REPRESENTATIONS: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// Whether the clause's media type is one of upstream's.
fn known(clause: &str) -> bool {
    let media = clause.split(';').next().unwrap_or("").trim();
    matches!(media, "*/*" | "application/*") || REPRESENTATIONS.split(", ").any(|r| r == media)
}

fn quality(clause: &str) -> f32 {
    let parameter = clause.split(';').map(str::trim).find_map(|p| p.strip_prefix("q="));
    parameter.and_then(|q| q.parse().ok()).unwrap_or(1.0)
}

fn shape(clause: &str) -> Option<Shape> {
    let mut parts = clause.split(';').map(str::trim);
    let format = match parts.next()? {
        "application/json" | "*/*" | "application/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        _ => return None,
    };
    let (mut kind, mut group, mut version) = ("", "", "");
    for (key, value) in parts.filter_map(|p| p.split_once('=')) {
        match key {
            "as" => kind = value,
            "g" => group = value,
            "v" => version = value,
            // Watch frames of other kinds than newline-delimited JSON aren't written.
            "stream" if value != "watch" => return None,
            _ => {}
        }
    }
    let transform = match kind {
        "" => return Some(Shape { format, transform: Transform::None, beta: false }),
        "Table" => Transform::Table,
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Transform::Metadata,
        _ => return None,
    };
    (group == "meta.k8s.io" && matches!(version, "v1" | "v1beta1")).then_some(Shape { format, transform, beta: version == "v1beta1" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, expected: Result<(Format, Transform), u16>) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().expect("a header"));
        let shape = Shape::negotiate(&headers, false).map(|s| (s.format, s.transform)).map_err(|e| e.code);
        assert_eq!(shape, expected, "{accept}");
    }

    #[test]
    fn accept_headers() {
        check("", Ok((Format::Json, Transform::None)));
        check("*/*", Ok((Format::Json, Transform::None)));
        check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Ok((Format::Json, Transform::Table)));
        check("application/json;as=Table;v=v9;g=meta.k8s.io", Err(406));
        check("application/json;as=Table;v=v9;g=meta.k8s.io, application/json", Ok((Format::Json, Transform::None)));
        check("application/vnd.kubernetes.protobuf,application/json", Ok((Format::Json, Transform::None)));
        check("application/json;q=0.5, application/yaml", Ok((Format::Yaml, Transform::None)));
        check("text/html", Err(406));
    }
}
