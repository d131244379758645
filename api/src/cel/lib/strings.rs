//! Text.

use super::super::Fault;
use super::super::eval::Evaluated;
use super::super::value::Val;
use super::formats::format;
use super::{Regexes, bool, fault, no_overload};

fn out_of_range<T>(index: i64) -> Result<T, Fault> {
    fault(format!("index out of range: {index}"))
}

/// The index as a place among `length` things.
fn place(index: i64, length: usize) -> Result<usize, Fault> {
    usize::try_from(index).ok().filter(|i| *i <= length).map_or_else(|| out_of_range(index), Ok)
}

fn chars(text: &str) -> Vec<char> {
    text.chars().collect()
}

fn text<'a>(chars: &[char]) -> Val<'a> {
    Val::text(chars.iter().collect::<String>())
}

fn list<'a>(texts: impl Iterator<Item = impl AsRef<str>>) -> Val<'a> {
    Val::list(texts.map(Val::text).collect())
}

pub(super) fn call<'a>(regexes: &Regexes, name: &str, args: &[Val<'a>]) -> Option<Evaluated<'a>> {
    use Val::{Int, Str};
    let ascii = |s: &str, f: fn(&char) -> char| Some(Ok(Val::text(s.chars().map(|c| f(&c)).collect::<String>())));
    match (name, args) {
        ("contains", [Str(a), Str(b)]) => bool(a.contains(&**b)),
        ("startsWith", [Str(a), Str(b)]) => bool(a.starts_with(&**b)),
        ("endsWith", [Str(a), Str(b)]) => bool(a.ends_with(&**b)),
        ("matches", [Str(a), Str(b)]) => Some(regexes.get(b).map(|r| Val::Bool(r.is_match(a)))),
        ("find", [Str(a), Str(b)]) => Some(regexes.get(b).map(|r| Val::text(r.find(a).map_or("", |m| m.as_str())))),
        ("findAll", [Str(a), Str(b)]) => Some(regexes.get(b).map(|r| list(r.find_iter(a).map(|m| m.as_str())))),
        ("findAll", [Str(a), Str(b), Int(n)]) => {
            let limit = usize::try_from(*n).unwrap_or(usize::MAX);
            Some(regexes.get(b).map(|r| list(r.find_iter(a).take(limit).map(|m| m.as_str()))))
        }
        ("charAt", [Str(s), Int(i)]) => {
            let chars = chars(s);
            Some(place(*i, chars.len()).map(|i| chars.get(i).map_or_else(|| Val::text(""), |c| text(&[*c]))))
        }
        ("indexOf", [Str(s), Str(part)]) => Some(index_of(s, part, 0)),
        ("indexOf", [Str(s), Str(part), Int(from)]) => Some(index_of(s, part, *from)),
        ("lastIndexOf", [Str(s), Str(part)]) => Some(last_index_of(s, part, None)),
        ("lastIndexOf", [Str(s), Str(part), Int(from)]) => Some(last_index_of(s, part, Some(*from))),
        ("lowerAscii", [Str(s)]) => ascii(s, char::to_ascii_lowercase),
        ("upperAscii", [Str(s)]) => ascii(s, char::to_ascii_uppercase),
        ("replace", [Str(s), Str(from), Str(to)]) => Some(Ok(Val::text(s.replace(&**from, to)))),
        ("replace", [Str(s), Str(from), Str(to), Int(n)]) => {
            Some(Ok(Val::text(usize::try_from(*n).map_or_else(|_| s.replace(&**from, to), |n| s.replacen(&**from, to, n)))))
        }
        ("split", [Str(s), Str(by)]) => Some(Ok(split(s, by, -1))),
        ("split", [Str(s), Str(by), Int(n)]) => Some(Ok(split(s, by, *n))),
        ("substring", [Str(s), Int(start)]) => {
            let chars = chars(s);
            Some(place(*start, chars.len()).map(|i| text(&chars[i..])))
        }
        ("substring", [Str(s), Int(start), Int(end)]) => Some(substring(s, *start, *end)),
        ("trim", [Str(s)]) => Some(Ok(Val::text(s.trim()))),
        ("join", [of]) => join(of, ""),
        ("join", [of, Str(by)]) => join(of, by),
        ("strings.quote", [Str(s)]) => Some(Ok(Val::text(format!("{:?}", &**s)))),
        ("format", [Str(s), of]) => of.items().map(|items| format(s, &items)),
        ("jsonpatch.escapeKey", [Str(s)]) => Some(Ok(Val::text(s.replace('~', "~0").replace('/', "~1")))),
        _ => None,
    }
}

fn index_of<'a>(s: &str, part: &str, from: i64) -> Evaluated<'a> {
    let (s, part) = (chars(s), chars(part));
    if part.is_empty() {
        return Ok(Val::Int(from));
    }
    // An offset at the very end is out of range, unlike in a substring.
    let from = usize::try_from(from).ok().filter(|i| *i < s.len() || *i == 0).map_or_else(|| out_of_range(from), Ok)?;
    let found = (from..s.len()).find(|i| s[*i..].starts_with(&part));
    Ok(Val::Int(found.map_or(-1, |i| i as i64)))
}

fn last_index_of<'a>(s: &str, part: &str, from: Option<i64>) -> Evaluated<'a> {
    let (s, part) = (chars(s), chars(part));
    if part.is_empty() {
        return Ok(Val::Int(from.unwrap_or(s.len() as i64)));
    }
    let last = match from {
        None => s.len(),
        Some(from) => usize::try_from(from).ok().filter(|i| *i < s.len()).map_or_else(|| out_of_range(from), Ok)?,
    };
    let found = (0..=last.min(s.len())).rev().find(|i| s[*i..].starts_with(&part));
    Ok(Val::Int(found.map_or(-1, |i| i as i64)))
}

fn substring<'a>(s: &str, start: i64, end: i64) -> Evaluated<'a> {
    let chars = chars(s);
    if start > end {
        return fault(format!("invalid substring range. start: {start}, end: {end}"));
    }
    let (start, end) = (place(start, chars.len())?, place(end, chars.len())?);
    Ok(text(&chars[start..end]))
}

/// As Go splits: an empty separator cuts between characters, 0 pieces is none.
fn split<'a>(s: &str, by: &str, n: i64) -> Val<'a> {
    match (usize::try_from(n), by.is_empty()) {
        (Ok(0), _) => Val::list(Vec::new()),
        (Err(_), true) => list(s.chars().map(|c| c.to_string())),
        (Err(_), false) => list(s.split(by)),
        (Ok(n), false) => list(s.splitn(n, by)),
        (Ok(n), true) => {
            let chars = chars(s);
            let cut = chars.len().min(n - 1);
            let mut pieces: Vec<String> = chars[..cut].iter().map(char::to_string).collect();
            if cut < chars.len() {
                pieces.push(chars[cut..].iter().collect());
            }
            list(pieces.into_iter())
        }
    }
}

fn join<'a>(of: &Val<'a>, by: &str) -> Option<Evaluated<'a>> {
    let mut texts = Vec::new();
    for item in of.items()? {
        match item {
            Val::Str(text) => texts.push(text),
            _ => return Some(no_overload()),
        }
    }
    Some(Ok(Val::text(texts.iter().map(|t| &**t).collect::<Vec<_>>().join(by))))
}
