//! Links of a proxied page, made to lead through the proxy. Rules: apimachinery's `util/proxy`, which also says which attributes of
//! HTML hold links.

/// The attributes of elements that hold links.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// The elements whose content is text whatever it looks like.
const TEXT: [&str; 8] = ["iframe", "noembed", "noframes", "script", "style", "textarea", "title", "xmp"];

/// Where a page comes from.
pub(super) struct Site<'a> {
    /// What the path of the proxy begins with: `/api/v1/namespaces/default/pods/web/proxy`.
    pub prefix: &'a str,
    /// The host that is proxied to.
    pub host: &'a str,
    /// The host that was asked for.
    pub asked: &'a str,
}

impl Site<'_> {
    /// The link through the proxy, if it leads to the site and not there already.
    pub fn through(&self, link: &str) -> Option<String> {
        let (head, host, rest) = split(link);
        if !rest.starts_with('/') || !(host.is_empty() || host == self.host || host == self.asked) {
            return None;
        }
        let (path, tail) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        let head = if host == self.asked { head } else { "" };
        if path.starts_with(self.prefix) {
            return (head.len() + rest.len() != link.len()).then(|| rest.to_owned());
        }
        Some(format!("{head}{}{tail}", self.joined(path)))
    }

    /// The prefix and the path below it, without `.` and `..`.
    fn joined(&self, path: &str) -> String {
        let mut parts = Vec::new();
        for part in self.prefix.split('/').chain(path.split('/')) {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let end = if path.ends_with('/') { "/" } else { "" };
        format!("/{}{end}", parts.join("/"))
    }

    /// The page with its links led through the proxy, and else as it was.
    pub fn page(&self, page: &str) -> String {
        let (mut made, mut rest) = (String::with_capacity(page.len()), page);
        while let Some(at) = rest.find('<') {
            made.push_str(&rest[..at]);
            rest = &rest[at..];
            if rest.starts_with("<!--") {
                let end = rest[4..].find("-->").map_or(rest.len(), |at| at + 7);
                made.push_str(&rest[..end]);
                rest = &rest[end..];
            } else if rest[1..].starts_with(|c: char| c.is_ascii_alphabetic()) {
                rest = self.element(&mut made, rest);
            } else {
                made.push('<');
                rest = &rest[1..];
            }
        }
        made.push_str(rest);
        made
    }

    /// Writes the start of an element, and what follows if that is text; answers the rest of the page.
    fn element<'p>(&self, made: &mut String, page: &'p str) -> &'p str {
        let mut scan = Scan { page, at: 1 };
        let name = scan.until(|c| c.is_ascii_whitespace() || c == '/' || c == '>').to_ascii_lowercase();
        let links = LINKS.iter().find(|(element, _)| *element == name).map_or(&[][..], |(_, links)| links);
        let mut written = 0;
        loop {
            scan.until(|c| !c.is_ascii_whitespace() && c != '/');
            if scan.is_at('>') || scan.rest().is_empty() {
                break;
            }
            let attribute = scan.attribute().to_ascii_lowercase();
            let Some((at, value)) = scan.value() else { continue };
            if links.contains(&attribute.as_str())
                && let Some(link) = self.through(value)
            {
                made.push_str(&page[written..at]);
                made.push_str(&link);
                written = at + value.len();
            }
        }
        let end = scan.at + usize::from(scan.is_at('>'));
        let text = if TEXT.contains(&name.as_str()) { text(&page[end..], &name) } else { 0 };
        made.push_str(&page[written..end + text]);
        &page[end + text..]
    }
}

/// How long the text is that an element of this name holds.
fn text(page: &str, name: &str) -> usize {
    let ends = page.match_indices("</").map(|(at, _)| at);
    let is_of = |at: &usize| page[at + 2..].get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name));
    ends.into_iter().find(is_of).unwrap_or(page.len())
}

/// What of a link is scheme and host (`https://a:1`), the host in it, and what follows.
fn split(link: &str) -> (&str, &str, &str) {
    let path = link.find(['/', '?', '#']).unwrap_or(link.len());
    let before = &link[..path];
    let is_scheme = before.is_empty() || (before.ends_with(':') && before.starts_with(|c: char| c.is_ascii_alphabetic()));
    if !is_scheme || !link[path..].starts_with("//") {
        return ("", "", link);
    }
    let host = path + 2;
    let end = link[host..].find(['/', '?', '#']).map_or(link.len(), |at| host + at);
    (&link[..end], &link[host..end], &link[end..])
}

/// A place within an element's start.
struct Scan<'a> {
    page: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn rest(&self) -> &'a str {
        &self.page[self.at..]
    }

    fn is_at(&self, c: char) -> bool {
        self.rest().starts_with(c)
    }

    /// Passes what comes before such a character.
    fn until(&mut self, is_end: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let passed = &rest[..rest.find(is_end).unwrap_or(rest.len())];
        self.at += passed.len();
        passed
    }

    /// An attribute's name, which is never empty: it may begin with any character.
    fn attribute(&mut self) -> &'a str {
        let (from, first) = (self.at, self.rest().chars().next().map_or(0, char::len_utf8));
        self.at += first;
        self.until(|c| c.is_ascii_whitespace() || matches!(c, '/' | '>' | '='));
        &self.page[from..self.at]
    }

    /// The value after an attribute's name and where it begins, if it has one.
    fn value(&mut self) -> Option<(usize, &'a str)> {
        self.until(|c| !c.is_ascii_whitespace());
        if !self.is_at('=') {
            return None;
        }
        self.at += 1;
        self.until(|c| !c.is_ascii_whitespace());
        let quote = self.rest().chars().next().filter(|c| matches!(c, '"' | '\''));
        self.at += usize::from(quote.is_some());
        let from = self.at;
        let value = match quote {
            Some(quote) => self.until(|c| c == quote),
            None => self.until(|c| c.is_ascii_whitespace() || c == '>'),
        };
        self.at += usize::from(quote.is_some() && !self.rest().is_empty());
        Some((from, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: Site<'_> = Site { prefix: "/api/pods/p/proxy", host: "10.0.0.1:80", asked: "localhost:8001" };

    #[test]
    fn links_lead_through_the_proxy() {
        let check = |link: &str, expected: &str| assert_eq!(SITE.through(link).as_deref().unwrap_or(link), expected, "{link}");
        check("/a", "/api/pods/p/proxy/a");
        check("/a/../b/?q=/c#d", "/api/pods/p/proxy/b/?q=/c#d");
        check("/", "/api/pods/p/proxy/");
        check("http://10.0.0.1:80/a", "/api/pods/p/proxy/a");
        check("//10.0.0.1:80/a", "/api/pods/p/proxy/a");
        check("https://localhost:8001/a", "https://localhost:8001/api/pods/p/proxy/a");
        check("/api/pods/p/proxy/a", "/api/pods/p/proxy/a");
        check("http://10.0.0.1:80/api/pods/p/proxy/a", "/api/pods/p/proxy/a");
        for kept in ["a/b", "", "#top", "?q", "http://example.com/a", "//example.com/a", "mailto:a@b/c", "http://10.0.0.1:80", "1://10.0.0.1:80/a"] {
            check(kept, kept);
        }
    }

    #[test]
    fn pages_keep_all_but_their_links() {
        let check = |page: &str, expected: &str| assert_eq!(SITE.page(page), expected, "{page}");
        check("<a href=\"/x\">test</a>", "<a href=\"/api/pods/p/proxy/x\">test</a>");
        check("<A id=1 HREF = '/x' />é</A>", "<A id=1 HREF = '/api/pods/p/proxy/x' />é</A>");
        check("<img src=/x><img alt src=/y/>", "<img src=/api/pods/p/proxy/x><img alt src=/api/pods/p/proxy/y/>");
        check("<p href=/x><a name=/x title=\"a>b\">", "<p href=/x><a name=/x title=\"a>b\">");
        check("<!-- <a href=/x> --><a href=/y>", "<!-- <a href=/x> --><a href=/api/pods/p/proxy/y>");
        check("<script src=/s>'<a href=/x>'</script>", "<script src=/api/pods/p/proxy/s>'<a href=/x>'</script>");
        check("<title>\u{130}<a href=/x></TITLE ><q cite=/y>", "<title>\u{130}<a href=/x></TITLE ><q cite=/api/pods/p/proxy/y>");
        for odd in ["<", "<a", "<a href", "<a href=", "<a href=\"", "<a =x", "< a>", "<!--", "<!doctype html>", "<a href='x", "</a>", "<script>", "<é href=/x>", "<a é=é"] {
            check(odd, odd);
        }
    }
}
