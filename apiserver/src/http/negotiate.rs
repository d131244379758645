//! Which form an answer takes: the `Accept` header, read against what this server can write.

use std::cmp::Reverse;

use http::HeaderMap;
use http::header::{ACCEPT, USER_AGENT};
use skiff_api::{Status, cbor};

/// How bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
    /// `application/cbor`
    Cbor,
}

/// What a path can answer with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Lists, and so watches too: a refusal of the route mentions them.
    pub streams: bool,
    /// A watch: events in JSON or protobuf.
    pub watch: bool,
    /// Objects without a message of their own, custom resources: protobuf is for their metadata alone.
    pub custom: bool,
    /// What is only made and answered, as reviews are: it has no table.
    pub answers: bool,
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
            Format::Protobuf => skiff_api::protobuf::MEDIA_TYPE,
            Format::Cbor => cbor::MEDIA_TYPE,
        }
    }

    /// The `Content-Type` of a watch.
    pub fn stream_type(self) -> &'static str {
        match self.format {
            Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            Format::Cbor => cbor::SEQUENCE,
            Format::Json | Format::Yaml => "application/json",
        }
    }

    /// The form of what isn't transformed, as refusals are.
    pub fn whole(self) -> Self {
        Self { transform: Transform::None, ..self }
    }

    /// Reads the header: the best-liked media type that can be written; 406 when there is none.
    pub fn negotiate(headers: &HeaderMap, offer: Offer) -> Result<Self, Status> {
        let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        let accept = accept.join(",");
        let mut clauses: Vec<&str> = accept.split(',').map(str::trim).filter(|c| !c.is_empty()).collect();
        if clauses.is_empty() {
            return Ok(Self::JSON);
        }
        // Of equals, what names a type goes before what names any.
        clauses.sort_by_key(|clause| {
            let media = media(clause);
            (Reverse((quality(clause) * 1000.0) as i32), media.starts_with('*'), media.ends_with('*'))
        });
        clauses.iter().find_map(|clause| shape(clause, offer)).ok_or_else(|| {
            // Upstream refuses in two places: media types that it has never heard of by the route, others later.
            if clauses.iter().any(|clause| known(clause)) {
                let types = if offer.watch { STREAMS } else { REPRESENTATIONS };
                return Status::new(406, "NotAcceptable", format!("only the following media types are accepted: {types}"));
            }
            let watch = if offer.streams { format!(", {STREAMS}") } else { String::new() };
            let message = format!("406: Not Acceptable\n\nAvailable representations: {REPRESENTATIONS}{watch}");
            Status { details: Some(Box::default()), ..Status::new(406, "NotAcceptable", message) }
        })
    }
}

/// What can be written, as refusals tell it: upstream has CBOR behind a feature gate, and doesn't mention it.
const REPRESENTATIONS: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
/// What watches can be written as.
const STREAMS: &str = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

fn media(clause: &str) -> &str {
    clause.split(';').next().unwrap_or("").trim()
}

/// Whether the clause's media type is one of upstream's.
fn known(clause: &str) -> bool {
    let media = media(clause);
    matches!(media, "*/*" | "application/*") || REPRESENTATIONS.split(", ").any(|r| r == media)
}

/// Whether JSON is indented: where the query or the media type asks for it, and for people's clients.
pub fn pretty(headers: &HeaderMap, asked: Option<&str>) -> bool {
    match asked {
        Some(value) => matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        None => {
            let text = |name| headers.get(name).and_then(|v: &http::HeaderValue| v.to_str().ok()).unwrap_or("");
            let agent = text(USER_AGENT);
            ["curl", "Wget", "Mozilla/5.0"].iter().any(|a| agent.starts_with(a))
                || text(ACCEPT).split(';').any(|p| p.trim() == "pretty=1")
        }
    }
}

fn quality(clause: &str) -> f32 {
    let parameter = clause.split(';').map(str::trim).find_map(|p| p.strip_prefix("q="));
    parameter.and_then(|q| q.parse().ok()).unwrap_or(1.0)
}

fn shape(clause: &str, offer: Offer) -> Option<Shape> {
    let mut parts = clause.split(';').map(str::trim);
    let format = match parts.next()? {
        "application/json" | "*/*" | "application/*" => Format::Json,
        "application/yaml" if !offer.watch => Format::Yaml,
        skiff_api::protobuf::MEDIA_TYPE => Format::Protobuf,
        cbor::MEDIA_TYPE => Format::Cbor,
        _ => return None,
    };
    let (mut kind, mut group, mut version) = ("", "", "");
    for (key, value) in parts.filter_map(|p| p.split_once('=')) {
        match key {
            "as" => kind = value,
            "g" => group = value,
            "v" => version = value,
            "stream" if value != "watch" || format == Format::Yaml => return None,
            _ => {}
        }
    }
    let transform = match kind {
        "" if format == Format::Protobuf && offer.custom => return None,
        "" => return Some(Shape { format, transform: Transform::None, beta: false }),
        // Upstream's tables have no message, and are for people.
        "Table" if !matches!(format, Format::Protobuf | Format::Cbor) && !offer.answers => Transform::Table,
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Transform::Metadata,
        _ => return None,
    };
    (group == "meta.k8s.io" && matches!(version, "v1" | "v1beta1")).then_some(Shape { format, transform, beta: version == "v1beta1" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, offer: Offer, expected: Result<(Format, Transform), u16>) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().expect("a header"));
        let shape = Shape::negotiate(&headers, offer).map(|s| (s.format, s.transform)).map_err(|e| e.code);
        assert_eq!(shape, expected, "{accept}");
    }

    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

    #[test]
    fn accept_headers() {
        let check = |accept: &str, expected| check(accept, Offer::default(), expected);
        check("", Ok((Format::Json, Transform::None)));
        check("*/*", Ok((Format::Json, Transform::None)));
        check("*/*, application/*, application/yaml", Ok((Format::Yaml, Transform::None)));
        check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Ok((Format::Json, Transform::Table)));
        check("application/json;as=Table;v=v9;g=meta.k8s.io", Err(406));
        check("application/json;as=Table;v=v9;g=meta.k8s.io, application/json", Ok((Format::Json, Transform::None)));
        check("application/vnd.kubernetes.protobuf,application/json", Ok((Format::Protobuf, Transform::None)));
        check("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json", Ok((Format::Json, Transform::None)));
        check("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", Ok((Format::Protobuf, Transform::Metadata)));
        check("application/json;q=0.5, application/yaml", Ok((Format::Yaml, Transform::None)));
        check("application/yaml;stream=watch", Err(406));
        check("application/cbor, application/json", Ok((Format::Cbor, Transform::None)));
        check("application/cbor-seq", Err(406));
        check("application/cbor;as=Table;v=v1;g=meta.k8s.io", Err(406));
        check("application/cbor;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", Ok((Format::Cbor, Transform::Metadata)));
        check("text/html", Err(406));
    }

    #[test]
    fn what_cannot_be_written_falls_to_the_next() {
        let custom = Offer { custom: true, ..Offer::default() };
        check(PROTOBUF, custom, Err(406));
        check(&format!("{PROTOBUF},application/json"), custom, Ok((Format::Json, Transform::None)));
        check(&format!("{PROTOBUF};as=PartialObjectMetadata;v=v1;g=meta.k8s.io"), custom, Ok((Format::Protobuf, Transform::Metadata)));
        let watch = Offer { watch: true, streams: true, ..Offer::default() };
        check("application/yaml", watch, Err(406));
        check("application/cbor", watch, Ok((Format::Cbor, Transform::None)));
        check("application/yaml, application/json;stream=watch", watch, Ok((Format::Json, Transform::None)));
        check(&format!("{PROTOBUF};stream=watch"), watch, Ok((Format::Protobuf, Transform::None)));
    }

    #[test]
    fn people_read_indented_json() {
        let check = |agent: &str, asked: Option<&str>, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(USER_AGENT, agent.parse().expect("a header"));
            assert_eq!(pretty(&headers, asked), expected, "{agent} {asked:?}");
        };
        check("kubectl/v1.36", None, false);
        check("curl/8", None, true);
        check("curl/8", Some("false"), false);
        check("kubectl/v1.36", Some("true"), true);
    }
}
