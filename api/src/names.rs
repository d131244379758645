//! The forms of names: DNS labels and subdomains, qualified names, port names, keys. Each check gives the list of
//! faults, in upstream's words (`apimachinery/pkg/util/validation`), empty for a good name.

/// The most characters of a DNS label.
pub const LABEL_MAX: usize = 63;
/// The most characters of a DNS subdomain.
pub const SUBDOMAIN_MAX: usize = 253;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_WORDS: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// What upstream says of a text that doesn't match its expression.
pub fn regex_error(message: &str, expression: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{expression}')");
    }
    let examples: Vec<_> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{expression}')", examples.join(" or "))
}

/// `must be no more than N characters`
pub fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// `must be between A and B, inclusive`
pub fn range_error(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// The faults of a text that may be so long, and should be `good`; `form` tells of what form that is.
fn faults(text: &str, max: usize, good: bool, form: impl FnOnce() -> String) -> Vec<String> {
    let long = (text.len() > max).then(|| too_long(max));
    long.into_iter().chain((!good).then(form)).collect()
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let b = text.as_bytes();
    matches!((b.first(), b.last()), (Some(&f), Some(&l)) if lower(f) && lower(l)) && b.iter().all(|&b| lower(b) || b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_qualified_part(text: &str) -> bool {
    let b = text.as_bytes();
    matches!((b.first(), b.last()), (Some(f), Some(l)) if f.is_ascii_alphanumeric() && l.is_ascii_alphanumeric())
        && b.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// A lower-case RFC 1123 label, as namespaces and containers are named.
pub fn dns_label(text: &str) -> Vec<String> {
    faults(text, LABEL_MAX, is_label(text), || {
        if is_subdomain(text) {
            return "must not contain dots".to_owned();
        }
        let words = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
        regex_error(words, LABEL, &["my-name", "123-abc"])
    })
}

/// A lower-case RFC 1123 subdomain, as most objects are named.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    faults(text, SUBDOMAIN_MAX, is_subdomain(text), || {
        let words = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        regex_error(words, SUBDOMAIN, &["example.com"])
    })
}

/// A subdomain whose labels may have underscores, as DNS search paths may be.
pub fn dns_subdomain_with_underscore(text: &str) -> Vec<String> {
    let label = |l: &str| is_label(&l.strip_prefix('_').unwrap_or(l).replace('_', "-")) && !l.ends_with('_');
    faults(text, SUBDOMAIN_MAX, text.split('.').all(label), || {
        let words = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character";
        let part = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
        regex_error(words, &format!("{part}(\\.{part})*"), &["example.com"])
    })
}

/// A subdomain whose first label is `*`.
pub fn wildcard_subdomain(text: &str) -> Vec<String> {
    faults(text, SUBDOMAIN_MAX, text.strip_prefix("*.").is_some_and(is_subdomain), || {
        let words = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        regex_error(words, &format!("\\*\\.{SUBDOMAIN}"), &["*.example.com"])
    })
}

/// An RFC 1035 label: it begins with a letter.
pub fn dns1035_label(text: &str) -> Vec<String> {
    faults(text, LABEL_MAX, is_label(text) && !text.starts_with(|c: char| c.is_ascii_digit()), || {
        let words = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
        regex_error(words, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"])
    })
}

/// A word for why a condition is as it is: `MinimumReplicasAvailable`.
pub fn condition_reason(text: &str) -> Vec<String> {
    const FORM: &str = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?";
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    if bytes.first().is_some_and(u8::is_ascii_alphabetic) && bytes.last().is_some_and(|b| good(*b)) && bytes.iter().all(|b| good(*b) || matches!(b, b',' | b':')) {
        return Vec::new();
    }
    let words = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', \
        and must end with an alphanumeric character or '_'";
    vec![regex_error(words, FORM, &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"])]
}

/// A name with an optional DNS prefix, `example.com/name`: label keys, taint keys, finalizers.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let examples = ["MyName", "my.name", "123-abc"];
    let name = match text.split_once('/') {
        Some((_, rest)) if rest.contains('/') => {
            let words = regex_error(&format!("a valid label key {QUALIFIED_WORDS}"), QUALIFIED, &examples);
            return vec![format!("{words} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
        Some(("", name)) => {
            faults.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            let long = |f: String| f.replace(" characters", " bytes");
            let of_prefix = |f: String| if f == too_long(SUBDOMAIN_MAX) { long(f) } else { f };
            faults.extend(dns_subdomain(prefix).into_iter().map(|f| format!("prefix part {}", of_prefix(f))));
            name
        }
        None => text,
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        faults.push(format!("name part must be no more than {LABEL_MAX} bytes"));
    }
    if !is_qualified_part(name) {
        faults.push(format!("name part {}", regex_error(QUALIFIED_WORDS, QUALIFIED, &examples)));
    }
    faults
}

/// The value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LABEL_MAX {
        faults.push(format!("must be no more than {LABEL_MAX} bytes"));
    }
    if !text.is_empty() && !is_qualified_part(text) {
        let words = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        faults.push(regex_error(words, &format!("({QUALIFIED})?"), &["MyValue", "my_value", "12345"]));
    }
    faults
}

/// The name of a port.
pub fn port_name(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 15 {
        faults.push(too_long(15));
    }
    if text.is_empty() || !text.bytes().all(|b| lower(b) || b == b'-') {
        faults.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        faults.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        faults.push("must not begin or end with a hyphen".to_owned());
    }
    faults
}

/// The number of a port.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec![range_error(1, 65535)] }
}

/// `25%`
pub fn percent(text: &str) -> Vec<String> {
    match text.strip_suffix('%') {
        Some(n) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => Vec::new(),
        _ => {
            let words = "a valid percent string must be a numeric string followed by an ending '%'";
            vec![regex_error(words, "[0-9]+%", &["1%", "93%"])]
        }
    }
}

/// The name of an HTTP header.
pub fn http_header(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    let words = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(words, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// The name of an environment variable.
pub fn env_var(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    if text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let mut faults = faults(text, SUBDOMAIN_MAX, good, || {
        let words = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        regex_error(words, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"])
    });
    match text {
        "." => faults.push("must not be '.'".to_owned()),
        ".." => faults.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => faults.push("must not start with '..'".to_owned()),
        _ => {}
    }
    faults
}

/// A C identifier.
pub fn c_identifier(text: &str) -> Vec<String> {
    let b = text.as_bytes();
    if !b.is_empty() && !b[0].is_ascii_digit() && b.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_') {
        return Vec::new();
    }
    let words = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'";
    vec![regex_error(words, "[A-Za-z_][A-Za-z0-9_]*", &["my_name", "MY_NAME", "MyName"])]
}

/// A name that can be one segment of a path: all that RBAC asks of a name.
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"].iter().filter(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: fn(&str) -> Vec<String>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(rule(text), Vec::<String>::new(), "{text:?} is good");
        }
        for text in bad {
            assert_ne!(rule(text), Vec::<String>::new(), "{text:?} is bad");
        }
    }

    #[test]
    fn forms() {
        let long = "a".repeat(64);
        check(dns_label, &["a", "a-b", "0", "1a"], &["", "-a", "a-", "A", "a.b", "a_b", &long]);
        check(dns_subdomain, &["a.b", "a-b.c", &long], &["", "a..b", ".a", "A.b", "a.-b"]);
        check(dns1035_label, &["a1"], &["1a", "", "a.b"]);
        check(qualified_name, &["a", "a.b/C_d", "A"], &["", "/a", "a/", "a/b/c", "A/b", "-a", &long]);
        check(label_value, &["", "a", "A_b.c"], &["-", "a ", &long]);
        check(port_name, &["http", "a-1"], &["", "1", "a--b", "-a", "a-", "A", "abcdefghijklmnop"]);
        check(percent, &["0%", "100%"], &["%", "1", "-1%"]);
        check(config_key, &["a.b", ".a"], &["", ".", "..", "..a", "a/b"]);
        check(path_segment, &["a:b", "A"], &[".", "..", "a/b", "a%"]);
        check(wildcard_subdomain, &["*.a"], &["*", "a", "*.*.a"]);
    }
}
