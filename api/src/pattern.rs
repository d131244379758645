//! Regular expressions in Go's dialect, compiled once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use regex::Regex;

/// How many compiled expressions are kept. They come from definitions and policies, so there are seldom more.
const KEPT: usize = 4096;

/// The compiled expression, from the ones kept where it is among them.
///
/// # Errors
///
/// What is wrong with the expression, in the words of the `regex` crate.
pub fn compile(pattern: &str) -> Result<Arc<Regex>, regex::Error> {
    static COMPILED: OnceLock<Mutex<HashMap<String, Arc<Regex>>>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(Mutex::default);
    if let Some(known) = compiled.lock().unwrap_or_else(PoisonError::into_inner).get(pattern) {
        return Ok(Arc::clone(known));
    }
    let regex = Arc::new(Regex::new(&translated(pattern))?);
    let mut compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
    if compiled.len() >= KEPT {
        compiled.clear();
    }
    compiled.insert(pattern.to_owned(), Arc::clone(&regex));
    Ok(regex)
}

/// Go's classes of digits, words and spaces are ASCII; here they would be Unicode's. A bracket within a class is a plain
/// character in Go.
pub(crate) fn translated(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut in_class = false;
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let Some(next) = chars.next() else {
                    out.push('\\');
                    break;
                };
                let class = match next {
                    'd' => "0-9",
                    'w' => "0-9A-Za-z_",
                    's' => r"\t\n\f\r ",
                    'D' => "^0-9",
                    'W' => "^0-9A-Za-z_",
                    'S' => r"^\t\n\f\r ",
                    'b' if !in_class => {
                        out.push_str(r"(?-u:\b)");
                        continue;
                    }
                    other => {
                        out.push('\\');
                        out.push(other);
                        continue;
                    }
                };
                if in_class && !class.starts_with('^') {
                    out.push_str(class);
                } else {
                    out.push('[');
                    out.push_str(class);
                    out.push(']');
                }
            }
            '[' if in_class => {
                // `[[:alpha:]]` stays, a lone bracket is escaped.
                out.push_str(if chars.peek() == Some(&':') { "[" } else { r"\[" });
                if chars.peek() == Some(&':') {
                    for c in chars.by_ref() {
                        out.push(c);
                        if c == ']' {
                            break;
                        }
                    }
                }
            }
            '[' => {
                in_class = true;
                out.push('[');
                if chars.peek() == Some(&'^') {
                    out.extend(chars.next());
                }
                if chars.peek() == Some(&']') {
                    chars.next();
                    out.push_str(r"\]");
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            // These mean set operations here, and nothing in Go.
            '&' | '~' | '-' if in_class && chars.peek() == Some(&c) => {
                out.push('\\');
                out.push(c);
            }
            other => out.push(other),
        }
    }
    out
}

/// What Go says of an expression that can't be read; of the many faults only the common ones.
pub fn go_fault(pattern: &str) -> String {
    let (open, close) = (pattern.matches('(').count(), pattern.matches(')').count());
    let class = pattern.rfind('[').filter(|at| !pattern[*at..].contains(']'));
    let repeat = pattern.chars().next().filter(|c| matches!(c, '*' | '+' | '?'));
    match (class, repeat) {
        (Some(at), _) => format!("error parsing regexp: missing closing ]: `{}`", &pattern[at..]),
        (_, Some(repeat)) => format!("error parsing regexp: missing argument to repetition operator: `{repeat}`"),
        _ if pattern.ends_with('\\') => "error parsing regexp: trailing backslash at end of expression: ``".to_owned(),
        _ if open > close => format!("error parsing regexp: missing closing ): `{pattern}`"),
        _ if open < close => format!("error parsing regexp: unexpected ): `{pattern}`"),
        _ => format!("error parsing regexp: invalid or unsupported Perl syntax: `{pattern}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_dialect() {
        for (pattern, text, matches) in [
            (r"^\d+$", "12", true),
            (r"^\d+$", "١", false),
            (r"^[\d.]+$", "1.2", true),
            (r"^[^\s]+$", "a b", false),
            (r"^[a-z[]+$", "a[", true),
            (r"^[]a]+$", "]a", true),
            (r"^[[:alpha:]]+$", "ab", true),
            (r"^\w\b", "ab", false),
            (r"^[a&&b]+$", "a&b", true),
            (r"a|b", "xbx", true),
        ] {
            assert_eq!(compile(pattern).map(|r| r.is_match(text)).ok(), Some(matches), "{pattern} {text}");
        }
        assert!(compile("(").is_err());
        assert_eq!(go_fault("(a"), "error parsing regexp: missing closing ): `(a`");
    }
}
