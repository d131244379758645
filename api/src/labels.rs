//! Label selectors: the query form (`env in (a,b),!x`) and the object form (`matchLabels`, `matchExpressions`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

use crate::names;
use crate::value::{items, text};

/// A conjunction of requirements on labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    /// Matches nothing at all: what a missing selector object means.
    nothing: bool,
}

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How its value relates to the values.
    pub operator: Operator,
    /// The values; none for (non-)existence, one for equality and order.
    pub values: BTreeSet<String>,
}

/// How a label relates to the values of a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `in`
    In,
    /// `notin`
    NotIn,
    /// `=`
    Equals,
    /// `==`
    DoubleEquals,
    /// `!=`
    NotEquals,
    /// the key alone
    Exists,
    /// `!` and the key
    DoesNotExist,
    /// `>`
    Greater,
    /// `<`
    Less,
}

impl Operator {
    /// The operator as the object forms spell it, node selectors' included.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "In" => Self::In,
            "NotIn" => Self::NotIn,
            "Exists" => Self::Exists,
            "DoesNotExist" => Self::DoesNotExist,
            "Gt" => Self::Greater,
            "Lt" => Self::Less,
            _ => return None,
        })
    }
}

/// A set of labels that can be looked into.
pub trait Labels {
    /// The value of the label, if it is there.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for Map<String, Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

/// A JSON map of labels; anything else has none.
impl Labels for Value {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

impl<L: Labels> Labels for Option<L> {
    fn label(&self, key: &str) -> Option<&str> {
        self.as_ref().and_then(|l| l.label(key))
    }
}

impl<L: Labels + ?Sized> Labels for &L {
    fn label(&self, key: &str) -> Option<&str> {
        (**self).label(key)
    }
}

impl Selector {
    /// The selector that every object matches.
    pub fn everything() -> Self {
        Self::default()
    }

    /// The selector that no object matches.
    pub fn nothing() -> Self {
        Self { nothing: true, ..Self::default() }
    }

    /// Reads the query form; errors are upstream's.
    pub fn parse(text: &str) -> Result<Self, String> {
        Parser { tokens: scan(text), at: 0 }.parse()
    }

    /// Requires each of the labels of a map, as `spec.selector` of Services and ReplicationControllers does.
    pub fn from_map(labels: &Value) -> Self {
        let mut requirements = Vec::new();
        for (key, value) in labels.as_object().into_iter().flatten() {
            let values = BTreeSet::from([value.as_str().unwrap_or("").to_owned()]);
            requirements.push(Requirement { key: key.clone(), operator: Operator::Equals, values });
        }
        Self { requirements, nothing: false }
    }

    /// Reads the object form (a LabelSelector). A missing one (null) matches nothing, an empty one everything.
    pub fn from_label_selector(selector: &Value) -> Result<Self, String> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut all = Self::from_map(&selector["matchLabels"]);
        for expression in items(selector, &["matchExpressions"]) {
            let operator = match (text(expression, &["operator"]), Operator::from_name(text(expression, &["operator"]))) {
                (other, None | Some(Operator::Greater | Operator::Less)) => return Err(format!("{other:?} is not a valid label selector operator")),
                (_, Some(operator)) => operator,
            };
            let values = items(expression, &["values"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
            all.requirements.push(Requirement::new(text(expression, &["key"]), operator, values)?);
        }
        all.requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }

    /// Whether nothing is required, so that everything matches.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// The requirements, all of which must hold.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Adds a requirement.
    pub fn require(&mut self, requirement: Requirement) {
        self.requirements.push(requirement);
    }

    /// Whether the labels meet all requirements.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Whether the labels of the object (`metadata.labels`) meet all requirements.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(&object["metadata"]["labels"])
    }
}

impl Requirement {
    /// A requirement whose key and values are well formed.
    pub fn new(key: &str, operator: Operator, values: BTreeSet<String>) -> Result<Self, String> {
        let mut faults = Vec::new();
        let bad_key = names::qualified_name(key);
        if !bad_key.is_empty() {
            faults.push(format!("key: Invalid value: {key:?}: {}", bad_key.join("; ")));
        }
        let list = || Value::from(values.iter().cloned().collect::<Vec<_>>());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                faults.push(format!("values: Invalid value: {}: for 'in', 'notin' operators, values set can't be empty", list()));
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                faults.push(format!("values: Invalid value: {}: values set must be empty for exists and does not exist", list()));
            }
            Operator::Greater | Operator::Less => {
                for value in values.iter().filter(|v| v.parse::<i64>().is_err()) {
                    let words = "for 'Gt', 'Lt' operators, the value must be an integer";
                    faults.push(format!("values[0]: Invalid value: {value:?}: {words}"));
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let bad = names::label_value(value);
            if !bad.is_empty() {
                faults.push(format!("values[{i}][{key}]: Invalid value: {value:?}: {}", bad.join("; ")));
            }
        }
        match faults.as_slice() {
            [] => Ok(Self { key: key.to_owned(), operator, values }),
            [one] => Err(one.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }

    /// Whether the labels meet it.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let Some(value) = labels.label(&self.key) else {
            return matches!(self.operator, Operator::NotIn | Operator::NotEquals | Operator::DoesNotExist);
        };
        let ordered = |wanted| {
            let bound = self.values.first().and_then(|v| v.parse::<i64>().ok());
            bound.zip(value.parse::<i64>().ok()).is_some_and(|(bound, value)| value.cmp(&bound) == wanted)
        };
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => self.values.contains(value),
            Operator::NotIn | Operator::NotEquals => !self.values.contains(value),
            Operator::Exists => true,
            Operator::DoesNotExist => false,
            Operator::Greater => ordered(std::cmp::Ordering::Greater),
            Operator::Less => ordered(std::cmp::Ordering::Less),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let values = self.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::Greater => write!(f, "{key}>{values}"),
            Operator::Less => write!(f, "{key}<{values}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// An operator, a bracket, a comma; the empty text is the end.
    Symbol(&'static str),
    /// A word, `in` and `notin` among them.
    Word(String),
    /// Something that is neither.
    Unknown(String),
}

const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
const END: Token = Token::Symbol("");

fn scan(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let special = |c: char| "=!(),><".contains(c);
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if rest.is_empty() {
            tokens.push(END);
            return tokens;
        }
        if let Some(symbol) = SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
            tokens.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
            continue;
        }
        let end = rest.find(|c: char| special(c) || " \t\r\n".contains(c)).unwrap_or(rest.len());
        tokens.push(if end == 0 { Token::Unknown(rest.to_owned()) } else { Token::Word(rest[..end].to_owned()) });
        rest = &rest[end..];
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&END)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn parse(mut self) -> Result<Selector, String> {
        let mut requirements = Vec::new();
        while *self.peek() != END {
            if !matches!(self.peek(), Token::Word(_) | Token::Symbol("!")) {
                return Err(format!("found '{}', expected: !, identifier, or 'end of string'", shown(self.peek())));
            }
            let requirement = self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
            requirements.push(requirement);
            match self.next() {
                END => break,
                Token::Symbol(",") => {
                    if !matches!(self.peek(), Token::Word(_) | Token::Symbol("!")) {
                        return Err(format!("found '{}', expected: identifier after ','", shown(self.peek())));
                    }
                }
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", shown(&other))),
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector { requirements, nothing: false })
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = *self.peek() == Token::Symbol("!");
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return Err(format!("found '{}', expected: identifier", shown(&other))),
        };
        let faults = names::qualified_name(&key);
        if !faults.is_empty() {
            return Err(format!("<nil>: Invalid value: {key:?}: {}", faults.join("; ")));
        }
        if absent {
            return Requirement::new(&key, Operator::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.peek(), &END | Token::Symbol(",")) {
            return Requirement::new(&key, Operator::Exists, BTreeSet::new());
        }
        let operator = match self.next() {
            Token::Word(w) if w == "in" => Operator::In,
            Token::Word(w) if w == "notin" => Operator::NotIn,
            Token::Symbol("=") => Operator::Equals,
            Token::Symbol("==") => Operator::DoubleEquals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::Greater,
            Token::Symbol("<") => Operator::Less,
            other => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", shown(&other))),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => BTreeSet::from([self.exact_value()?]),
        };
        Requirement::new(&key, operator, values)
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), &END | Token::Symbol(",")) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(value) => Ok(value),
            other => Err(format!("found '{}', expected: identifier", shown(&other))),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{}' expected: '('", shown(&other))),
        }
        let mut values = BTreeSet::new();
        if !matches!(self.peek(), Token::Word(_) | Token::Symbol("," | ")")) {
            return Err(format!("found '{}', expected: ',', ')' or identifier", shown(self.peek())));
        }
        // Between two separators stands one word or nothing, and nothing is the empty value.
        loop {
            match self.peek().clone() {
                Token::Word(value) => {
                    self.next();
                    values.insert(value);
                    if !matches!(self.peek(), Token::Symbol("," | ")")) {
                        return Err(format!("found '{}', expected: ',' or ')'", shown(self.peek())));
                    }
                }
                Token::Symbol("," | ")") => {
                    values.insert(String::new());
                }
                other => return Err(format!("found '{}', expected: ',', or identifier", shown(&other))),
            }
            if self.next() == Token::Symbol(")") {
                return Ok(values);
            }
        }
    }
}

fn shown(token: &Token) -> &str {
    match token {
        Token::Symbol(symbol) => symbol,
        Token::Word(word) | Token::Unknown(word) => word,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(query: &str, expected: &str) {
        assert_eq!(Selector::parse(query).map_or_else(|e| e, |s| s.to_string()), expected, "{query}");
    }

    #[test]
    fn parsing() {
        check("", "");
        check("a=b", "a=b");
        check(" b == c , a!=d ", "a!=d,b==c");
        check("x in (foo,,baz),y,z notin ()", "x in (,baz,foo),y,z notin ()");
        check("!a,b>1,c<2", "!a,b>1,c<2");
        check("a=,b", "a=,b");
        check("in in (in,notin)", "in in (in,notin)");
        check("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt");
        check("a=b,", "found '', expected: identifier after ','");
        check("=a", "found '=', expected: !, identifier, or 'end of string'");
        check("a in b", "unable to parse requirement: found 'b' expected: '('");
        check("a in (b", "unable to parse requirement: found '', expected: ',' or ')'");
        check("a=b c", "found 'c', expected: ',' or 'end of string'");
        check("a>x", "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer");
    }

    #[test]
    fn matching() {
        let labels = json!({"env": "a", "n": "5"});
        for (query, expected) in [
            ("", true), ("env", true), ("!env", false), ("env in (a,b)", true), ("env notin (a)", false), ("x notin (a)", true),
            ("x!=a", true), ("x=a", false), ("n>4", true), ("n<5", false), ("env=a,n=5", true),
        ] {
            assert_eq!(Selector::parse(query).expect(query).matches(&labels), expected, "{query}");
        }
    }

    #[test]
    fn object_form() {
        let parse = |v| Selector::from_label_selector(&v).map(|s| s.to_string());
        let selector = json!({"matchLabels": {"b": "c"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}]});
        assert_eq!(parse(selector).as_deref(), Ok("a in (x,y),b=c"));
        assert!(Selector::from_label_selector(&json!({})).expect("empty").matches(&json!({"a": "b"})));
        assert!(!Selector::from_label_selector(&Value::Null).expect("none").matches(&json!({"a": "b"})));
        assert_eq!(parse(json!({"matchExpressions": [{"key": "a", "operator": "Bad"}]})), Err("\"Bad\" is not a valid label selector operator".into()));
    }
}
