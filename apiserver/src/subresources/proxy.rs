//! The proxies: a request is carried on to a pod, to an endpoint of a service or to the node itself, and what comes back is made to
//! fit the path that was asked for. Rules: apimachinery's `util/proxy`.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use flate2::read::{DeflateDecoder, GzDecoder};
use http::header::{self, HOST, HeaderName, LOCATION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use rustls::pki_types::ServerName;
use skiff_api::{Status, value};
use tokio_rustls::TlsConnector;

use super::connect::{dial_node, forward};
use super::links::Site;
use crate::dial::{self, Connection};
use crate::http::body::{Reply, full};
use crate::verbs::Call;
use crate::{services, tls};

/// The largest page whose links are led through the proxy, compressed or not.
const MAX_PAGE: u64 = 32 * 1024 * 1024;
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
/// What this server says of itself, and nobody behind it may.
const CORS: [HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];

/// Pods show certificates that nobody vouches for: upstream believes them too.
static TLS: LazyLock<Result<TlsConnector, String>> = LazyLock::new(|| tls::client(&[], None, false).map(|config| TlsConnector::from(Arc::new(config))));

/// Carries a request on.
pub(super) async fn proxy(call: &Call, method: Method, uri: &Uri, body: Bytes) -> Result<Reply, Status> {
    let (plural, target) = (call.resource.plural.as_ref(), &call.info.name);
    let invalid = || Status::bad_request(format!("invalid {} request {target:?}", plural.trim_end_matches('s')));
    let (scheme, name, port) = split_target(target).ok_or_else(invalid)?;
    let query = uri.query().map_or(String::new(), |q| format!("?{q}"));
    let rest = &call.info.rest;
    let address = match plural {
        "nodes" => None,
        "pods" => Some(pod_address(call, scheme, name, port)?),
        _ => Some(services::endpoint(&call.server.cache, &call.info.namespace, name, port, services::To::Pods)?),
    };
    let upgrading = call.headers.contains_key(UPGRADE);
    if rest.is_empty() && !upgrading && matches!(method, Method::GET | Method::HEAD) {
        return moved(&format!("{}/{query}", uri.path()));
    }
    let connection: Box<dyn Connection> = match address {
        None => dial_node(call, name).await?,
        Some(address) => reach(scheme, address).await?,
    };
    let mut headers = call.headers.clone();
    headers.extend(HeaderValue::from_str(uri.path()).ok().map(|path| (FORWARDED_URI, path)));
    let path = if rest.is_empty() { format!("/{query}") } else { format!("{rest}{query}") };
    let mut reply = forward(headers, connection, method, &path, body, call.upgrade.clone()).await?;
    if upgrading {
        return Ok(reply);
    }
    CORS.iter().for_each(|name| drop(reply.headers_mut().remove(name)));
    let host = address.map_or_else(String::new, |address| address.to_string());
    let asked = call.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let site = Site { prefix: uri.path().strip_suffix(rest.as_str()).unwrap_or(uri.path()), host: &host, asked };
    led_through(&site, reply).await
}

fn moved(to: &str) -> Result<Reply, Status> {
    let mut reply = http::Response::new(full(Bytes::new()));
    *reply.status_mut() = http::StatusCode::MOVED_PERMANENTLY;
    reply.headers_mut().insert(LOCATION, HeaderValue::from_str(to).map_err(Status::internal)?);
    Ok(reply)
}

async fn reach(scheme: &str, address: SocketAddr) -> Result<Box<dyn Connection>, Status> {
    let failed = |error| Status::new(503, "ServiceUnavailable", format!("error trying to reach service: dial tcp {address}: {error}"));
    let connection = dial::tcp(address).await.map_err(failed)?;
    if scheme != "https" {
        return Ok(Box::new(connection));
    }
    let connector = TLS.as_ref().map_err(Status::internal)?;
    Ok(Box::new(connector.connect(ServerName::from(address.ip()), connection).await.map_err(failed)?))
}

/// The answer with its links, of its page or where it sends the client on, led through the proxy.
async fn led_through(site: &Site<'_>, reply: Reply) -> Result<Reply, Status> {
    let (mut parts, body) = reply.into_parts();
    if let Some(location) = parts.headers.get(LOCATION) {
        if let Some(link) = location.to_str().ok().and_then(|link| site.through(link)) {
            parts.headers.insert(LOCATION, HeaderValue::from_str(&link).map_err(Status::internal)?);
        }
        return Ok(Reply::from_parts(parts, body));
    }
    let text = |headers: &HeaderMap, name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let is_page = text(&parts.headers, header::CONTENT_TYPE).split(';').next().is_some_and(|kind| kind.trim() == "text/html");
    let encoding = text(&parts.headers, header::CONTENT_ENCODING);
    if !is_page || !matches!(encoding.as_str(), "" | "gzip" | "deflate") {
        return Ok(Reply::from_parts(parts, body));
    }
    let unavailable = |why: String| Status::new(503, "ServiceUnavailable", format!("error trying to reach service: {why}"));
    let too_large = || unavailable(format!("the page is larger than {MAX_PAGE} bytes"));
    let page = Limited::new(body, usize::try_from(MAX_PAGE).unwrap_or(usize::MAX)).collect().await;
    let page = page.map_err(|error| if error.is::<LengthLimitError>() { too_large() } else { unavailable(error.to_string()) })?.to_bytes();
    // Of a page that was only asked about (HEAD), or that hasn't changed, there is nothing to unpack.
    if page.is_empty() {
        return Ok(Reply::from_parts(parts, full(page)));
    }
    let mut plain = Vec::new();
    let length = match encoding.as_str() {
        "gzip" => GzDecoder::new(page.as_ref()).take(MAX_PAGE + 1).read_to_end(&mut plain),
        "deflate" => DeflateDecoder::new(page.as_ref()).take(MAX_PAGE + 1).read_to_end(&mut plain),
        _ => page.as_ref().read_to_end(&mut plain),
    };
    if length.map_err(|error| unavailable(error.to_string()))? as u64 > MAX_PAGE {
        return Err(too_large());
    }
    parts.headers.remove(header::CONTENT_ENCODING);
    // What isn't UTF-8 has no links that could be read.
    let page = String::from_utf8(plain).map_or_else(|error| Bytes::from(error.into_bytes()), |page| site.page(&page).into());
    Ok(Reply::from_parts(parts, full(page)))
}

/// `scheme:name:port`, `name:port` or `name`.
fn split_target(target: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = target.split(':').collect();
    let (scheme, name, port) = match *parts.as_slice() {
        [scheme, name, port] => (scheme, name, port),
        [name, port] => ("", name, port),
        [name] => ("", name, ""),
        _ => return None,
    };
    (!name.is_empty() && matches!(scheme, "" | "http" | "https")).then_some((scheme, name, port))
}

fn pod_address(call: &Call, scheme: &str, name: &str, port: &str) -> Result<SocketAddr, Status> {
    let key = format!("/registry/pods/{}/{name}", call.info.namespace);
    let pod = call.server.cache.resource("/registry/pods/").and_then(|c| c.get(&key));
    let pod = pod.ok_or_else(|| Status::not_found(call.resource.group_resource(), name))?.value().map_err(Status::internal)?;
    let ip = value::text(&pod, &["status", "podIP"]).parse().ok().filter(is_proxyable);
    let ip = ip.ok_or_else(|| Status::bad_request("address not allowed"))?;
    let first = value::items(&pod, &["spec", "containers"]).iter().flat_map(|c| value::items(c, &["ports"])).find_map(|p| p["containerPort"].as_u64());
    let usual = if scheme == "https" { 443 } else { 80 };
    let port = if port.is_empty() { first.unwrap_or(usual).to_string() } else { port.to_owned() };
    let port = port.parse().map_err(|_| Status::bad_request(format!("invalid port {port:?}")))?;
    Ok(SocketAddr::new(ip, port))
}

/// Whether the server may be led to the address. Who may write a pod's status could name its own machine there, or one that only
/// this machine reaches: upstream proxies to global unicast addresses alone.
fn is_proxyable(ip: &IpAddr) -> bool {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(link_local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let check = |target: &str, expected| assert_eq!(split_target(target), expected, "{target}");
        check("a", Some(("", "a", "")));
        check("a:80", Some(("", "a", "80")));
        check("http:a:web", Some(("http", "a", "web")));
        check("https:a:", Some(("https", "a", "")));
        for odd in ["", ":80", "ftp:a:80", "http:a:80:b", "http::80"] {
            check(odd, None);
        }
    }

    #[test]
    fn where_the_server_may_be_led() {
        let check = |ip: &str, expected| assert_eq!(is_proxyable(&ip.parse().expect(ip)), expected, "{ip}");
        for ip in ["10.0.0.1", "172.17.0.2", "8.8.8.8", "fd00::1"] {
            check(ip, true);
        }
        for ip in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "255.255.255.255", "224.0.0.1", "::1", "::ffff:127.0.0.1", "fe80::1"] {
            check(ip, false);
        }
    }

    #[tokio::test]
    async fn answers_are_led_through() {
        let site = Site { prefix: "/p", host: "10.0.0.1:80", asked: "" };
        let answer = async |headers: &[(HeaderName, &'static str)], body: Vec<u8>| {
            let mut reply = Reply::new(full(body));
            reply.headers_mut().extend(headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))));
            let reply = led_through(&site, reply).await.expect("an answer");
            let location = reply.headers().get(LOCATION).cloned();
            (location, reply.into_body().collect().await.expect("a body").to_bytes())
        };
        let page = || b"<a href='/x'>".to_vec();
        let mut zipped = Vec::new();
        flate2::read::GzEncoder::new(page().as_slice(), flate2::Compression::fast()).read_to_end(&mut zipped).expect("zipped");
        assert_eq!(answer(&[(header::CONTENT_TYPE, "text/plain")], page()).await.1, page());
        assert_eq!(answer(&[(header::CONTENT_TYPE, "text/html; charset=utf-8")], page()).await.1, "<a href='/p/x'>");
        assert_eq!(answer(&[(header::CONTENT_TYPE, "text/html"), (header::CONTENT_ENCODING, "gzip")], zipped).await.1, "<a href='/p/x'>");
        assert_eq!(answer(&[(header::CONTENT_TYPE, "text/html"), (header::CONTENT_ENCODING, "br")], page()).await.1, page());
        assert_eq!(answer(&[(header::CONTENT_TYPE, "text/html"), (header::CONTENT_ENCODING, "gzip")], Vec::new()).await.1, "");
        assert_eq!(answer(&[(LOCATION, "/y")], page()).await, (Some(HeaderValue::from_static("/p/y")), page().into()));
    }
}
