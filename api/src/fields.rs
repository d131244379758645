//! Field selectors: `metadata.name=a,status.phase!=Running`.

use std::fmt;

/// A conjunction of requirements on fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// All of them must hold.
    pub requirements: Vec<Requirement>,
}

/// One requirement: the field is, or isn't, the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The field's path: `metadata.name`.
    pub field: String,
    /// The text it is compared with.
    pub value: String,
    /// Whether they must be equal, or must not.
    pub equal: bool,
}

impl Selector {
    /// Reads a selector; errors are upstream's.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for term in split_terms(text).into_iter().filter(|t| !t.is_empty()) {
            let (field, equal, value) =
                split_term(term).ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{term}'"))?;
            requirements.push(Requirement { field: field.to_owned(), value: unescape(value)?, equal });
        }
        Ok(Self { requirements })
    }

    /// Whether nothing is required.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that the field must have, when one is required.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equal && r.field == field).map(|r| r.value.as_str())
    }

    /// Whether all requirements hold of the fields that `lookup` gives; a field that isn't there is empty.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> std::borrow::Cow<'a, str>) -> bool {
        self.requirements.iter().all(|r| (lookup(&r.field) == r.value.as_str()) == r.equal)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if r.equal { "=" } else { "!=" };
            write!(f, "{comma}{}{operator}{}", r.field, escape(&r.value))?;
        }
        Ok(())
    }
}

/// Splits at the commas that no backslash stands before.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == ',' {
            terms.push(&text[start..i]);
            start = i + 1;
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Splits at the first operator: `!=`, `==` or `=`.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.char_indices().find_map(|(i, _)| {
        [("!=", false), ("==", true), ("=", true)].into_iter().find(|(op, _)| term[i..].starts_with(op)).map(|(op, equal)| (i, op, equal))
    });
    at.map(|(i, op, equal)| (&term[..i], equal, &term[i + op.len()..]))
}

fn unescape(value: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => plain.push(c),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(format!("invalid field selector: invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {value}: '{c}'")),
            c => plain.push(c),
        }
    }
    Ok(plain)
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(Selector::parse(text).map_or_else(|e| e, |s| s.to_string()), expected, "{text}");
    }

    #[test]
    fn parsing() {
        check("", "");
        check("a=b", "a=b");
        check("a==b,c!=d", "a=b,c!=d");
        check("metadata.name=a\\,b", "metadata.name=a\\,b");
        check("a=", "a=");
        check("a", "invalid selector: 'a'; can't understand 'a'");
    }

    #[test]
    fn matching() {
        let selector = Selector::parse("status.phase!=Running,spec.nodeName=").expect("a selector");
        assert!(selector.matches(|_| "".into()));
        assert!(!selector.matches(|f| if f == "status.phase" { "Running".into() } else { "".into() }));
        assert_eq!(selector.required("spec.nodeName"), Some(""));
        assert_eq!(selector.required("status.phase"), None);
    }
}
