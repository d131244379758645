//! JSONPath in kubectl's dialect, as far as printer columns and selectable fields of custom resources go:
//! `.spec.size`, `.metadata.labels.k8s\.io/x`, `['a']`, `[0]`, `[-1]`, `[1:3]`, `[*]`, `..name`,
//! `[?(@.type=="Ready")].status`.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::HashSet;

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// A range of items with a step: `[from:to:step]`; one item is a range too.
    Slice(Option<i64>, Option<i64>, i64),
    Index(i64),
    All,
    /// Any depth: the field that follows.
    Descend(String),
    Filter(JsonPath, Option<(Comparison, Operand)>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Literal(Value),
    Path(JsonPath),
}

/// How many filters a path may have, so that none overflows the stack.
const MAX_FILTERS: usize = 32;

/// How many values a path may visit: filters within filters would else look at every value once for every other, and again.
const MAX_VISITS: usize = 20_000;

const COMPARISONS: [(&str, Comparison); 6] = [
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<=", Comparison::LessOrEqual),
    (">=", Comparison::GreaterOrEqual),
    ("<", Comparison::Less),
    (">", Comparison::Greater),
];

impl JsonPath {
    /// Reads a path; braces around it and a leading `$` are optional.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        // Filters are read one within the other.
        if text.matches("[?(").count() > MAX_FILTERS {
            return Err("too many filters".to_owned());
        }
        let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let text = text.strip_prefix(['$', '@']).unwrap_or(text);
        let mut rest = text;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, tail) = read_step(rest)?;
            steps.extend(step);
            rest = tail;
        }
        Ok(Self(steps))
    }

    /// All values that the path leads to; none where something is missing, or where that takes too long to find.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let left = Cell::new(MAX_VISITS);
        let found = self.find_within(root, &left);
        if left.get() == 0 { Vec::new() } else { found }
    }

    /// The same with so many visits left; what is found is not all when none are left at the end.
    fn find_within<'a>(&self, root: &'a Value, left: &Cell<usize>) -> Vec<&'a Value> {
        let mut found = vec![root];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| follow(step, value, left)).collect();
            // What lies below two of the values is found once: else each further descent would find more than the last.
            if matches!(step, Step::Descend(_)) {
                let mut seen = HashSet::new();
                found.retain(|value| seen.insert(std::ptr::from_ref::<Value>(value)));
            }
        }
        found
    }

    /// The first value that the path leads to.
    pub fn first<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        self.find(root).into_iter().next()
    }
}

fn read_step(text: &str) -> Result<(Option<Step>, &str), String> {
    if let Some(rest) = text.strip_prefix("..") {
        let (name, rest) = read_name(rest);
        return Ok((Some(Step::Descend(name)), rest));
    }
    if let Some(rest) = text.strip_prefix('.') {
        if let Some(rest) = rest.strip_prefix('*') {
            return Ok((Some(Step::All), rest));
        }
        let (name, rest) = read_name(rest);
        return Ok(((!name.is_empty()).then_some(Step::Field(name)), rest));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let end = closing_bracket(rest).ok_or_else(|| "unterminated array".to_owned())?;
        return Ok((Some(read_brackets(&rest[..end])?), &rest[end + 1..]));
    }
    Err(format!("unrecognized character in action: {:?}", text.chars().next().unwrap_or(' ')))
}

/// A name ends before the next dot or bracket that no backslash escapes.
fn read_name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[i..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn closing_bracket(text: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0, None, false);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn unquoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    Some(inner.replace(&format!("\\{quote}"), &quote.to_string()).replace("\\\\", "\\"))
}

fn read_brackets(text: &str) -> Result<Step, String> {
    let text = text.trim();
    let bad = || format!("invalid array index {text}");
    let number = |t: &str| t.trim().parse::<i64>().map_err(|_| bad());
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = unquoted(text) {
        return Ok(Step::Field(name));
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        return read_filter(filter);
    }
    if !text.contains(':') {
        return Ok(Step::Index(number(text)?));
    }
    let mut parts = text.split(':').map(|part| if part.trim().is_empty() { Ok(None) } else { number(part).map(Some) });
    let mut next = || parts.next().unwrap_or(Ok(None));
    let (from, to, step) = (next()?, next()?, next()?.unwrap_or(1));
    if step <= 0 {
        return Err("step must be > 0".to_owned());
    }
    Ok(Step::Slice(from, to, step))
}

fn read_filter(text: &str) -> Result<Step, String> {
    let operator = text.char_indices().find_map(|(i, _)| COMPARISONS.iter().find(|(op, _)| text[i..].starts_with(op)).map(|op| (i, op)));
    let Some((at, (operator, comparison))) = operator else {
        return Ok(Step::Filter(JsonPath::parse(text)?, None));
    };
    let right = text[at + operator.len()..].trim();
    let operand = match unquoted(right) {
        Some(literal) => Operand::Literal(literal.into()),
        None if right.starts_with(['@', '$', '.']) => Operand::Path(JsonPath::parse(right)?),
        None => Operand::Literal(serde_json::from_str(right).map_err(|_| format!("unrecognized value {right}"))?),
    };
    Ok(Step::Filter(JsonPath::parse(&text[..at])?, Some((*comparison, operand))))
}

fn follow<'a>(step: &Step, value: &'a Value, left: &Cell<usize>) -> Vec<&'a Value> {
    left.set(left.get().saturating_sub(1));
    if left.get() == 0 {
        return Vec::new();
    }
    match step {
        Step::Field(name) => value.get(name.as_str()).into_iter().collect(),
        Step::All => children(value).collect(),
        Step::Descend(name) => {
            let mut found: Vec<_> = if name.is_empty() { vec![value] } else { value.get(name.as_str()).into_iter().collect() };
            found.extend(children(value).flat_map(|child| follow(step, child, left)));
            found
        }
        Step::Index(i) => {
            let items = value.as_array().map_or(&[][..], Vec::as_slice);
            let index = if *i < 0 { items.len().checked_sub(i.unsigned_abs() as usize) } else { usize::try_from(*i).ok() };
            index.and_then(|i| items.get(i)).into_iter().collect()
        }
        Step::Slice(from, to, step) => {
            let items = value.as_array().map_or(&[][..], Vec::as_slice);
            let len = items.len() as i64;
            let bound = |b: Option<i64>, default: i64| b.map_or(default, |b| if b < 0 { b + len } else { b }).clamp(0, len) as usize;
            let (from, to) = (bound(*from, 0), bound(*to, len));
            items.get(from..to).unwrap_or(&[]).iter().step_by(*step as usize).collect()
        }
        Step::Filter(path, operand) => children(value).filter(|item| passes(item, path, operand.as_ref(), left)).collect(),
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

fn passes(item: &Value, path: &JsonPath, operand: Option<&(Comparison, Operand)>, visits: &Cell<usize>) -> bool {
    let first = |path: &JsonPath| path.find_within(item, visits).into_iter().next();
    let Some(left) = first(path) else { return false };
    let Some((comparison, right)) = operand else { return true };
    let right = match right {
        Operand::Literal(value) => value,
        Operand::Path(path) => match first(path) {
            Some(value) => value,
            None => return false,
        },
    };
    let order = match (left, right) {
        (Value::String(l), Value::String(r)) => Some(l.cmp(r)),
        (Value::Number(l), Value::Number(r)) => l.as_f64().partial_cmp(&r.as_f64()),
        (l, r) if l == r => Some(Ordering::Equal),
        _ => None,
    };
    match comparison {
        Comparison::Equal => order == Some(Ordering::Equal),
        Comparison::NotEqual => order != Some(Ordering::Equal),
        Comparison::Less => order == Some(Ordering::Less),
        Comparison::LessOrEqual => order.is_some_and(Ordering::is_le),
        Comparison::Greater => order == Some(Ordering::Greater),
        Comparison::GreaterOrEqual => order.is_some_and(Ordering::is_ge),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths() {
        let object = json!({
            "metadata": {"labels": {"k8s.io/x": "y"}},
            "spec": {"size": 3, "list": [1, 2, 3, 4]},
            "status": {"conditions": [{"type": "A", "status": "False", "n": 1}, {"type": "Ready", "status": "True", "n": 2}]},
        });
        for (path, expected) in [
            (".spec.size", json!([3])),
            ("{.spec.size}", json!([3])),
            ("$.spec['size']", json!([3])),
            (".metadata.labels.k8s\\.io/x", json!(["y"])),
            (".metadata.labels['k8s.io/x']", json!(["y"])),
            (".spec.list[0]", json!([1])),
            (".spec.list[-1]", json!([4])),
            (".spec.list[1:3]", json!([2, 3])),
            (".spec.list[::2]", json!([1, 3])),
            (".spec.list[*]", json!([1, 2, 3, 4])),
            (".spec.list[9]", json!([])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type=='Ready')].status", json!(["True"])),
            (".status.conditions[?(@.n>1)].type", json!(["Ready"])),
            (".status.conditions[?(@.n)].type", json!(["A", "Ready"])),
            ("..type", json!(["A", "Ready"])),
            (".none.x", json!([])),
        ] {
            let found: Vec<Value> = JsonPath::parse(path).expect(path).find(&object).into_iter().cloned().collect();
            assert_eq!(Value::Array(found), expected, "{path}");
        }
        for bad in [".a[", ".a[x]", "a.b", ".a[::0]", ".a[?(@.b==c)]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_takes_too_long_leads_nowhere() {
        // Each filter looks at all that is below what the one around it looks at: some 10^11 visits.
        let deep = (0..40).fold(json!({}), |inner, _| json!({"x": [inner]}));
        let nested = (0..20).fold("@..y".to_owned(), |inner, _| format!("@..x[?({inner})]"));
        assert!(JsonPath::parse(&format!("..x[?({nested})]")).expect("a path").find(&deep).is_empty());
        // One visit of each of many is well within the bound.
        let wide = json!({"a": (0..9_000).map(|i| json!({"b": i})).collect::<Vec<_>>()});
        assert_eq!(JsonPath::parse(".a[?(@.b==8999)].b").expect("a path").find(&wide), [&json!(8999)]);
    }
}
