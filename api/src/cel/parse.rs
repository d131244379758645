//! Tokens to trees, macros unfolded.

use super::Issue;
use super::ast::{Expr, Macro, MacroKind, Node};
use super::lex::{Placed, Token, tokens};
use super::value::Val;

/// How deep a tree may be: upstream's figure.
const MAX_DEPTH: usize = 250;
/// How deep parentheses and the like may nest: what the parser's own stack bears.
const MAX_NESTING: usize = 100;
/// How long an expression may be, in characters: upstream's figure.
const MAX_LENGTH: usize = 100_000;

/// Words that can't be names.
const RESERVED: [&str; 18] = [
    "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package", "namespace", "return", "var",
    "void", "while",
];

/// Reads an expression; `binds` is whether it may name values by `cel.bind`.
pub(super) fn parse(source: &str, binds: bool) -> Result<Expr, Vec<Issue>> {
    let length = source.chars().count();
    if length > MAX_LENGTH {
        let message = format!("expression code point size exceeds limit: size: {length}, limit {MAX_LENGTH}");
        return Err(vec![Issue { at: 0, message }]);
    }
    let (tokens, mut issues) = tokens(source);
    let mut parser = Parser { source, tokens, at: 0, depth: 0, opened: usize::MAX, binds };
    let parsed = parser.expr().and_then(|expr| if *parser.peek() == Token::End { Ok(expr) } else { Err(parser.unexpected(END)) });
    match parsed {
        Ok(expr) if issues.is_empty() => Ok(expr),
        other => {
            issues.extend(other.err());
            issues.sort_by_key(|issue| issue.at);
            Err(issues)
        }
    }
}

/// What an expression can begin with, in the words of cel-go's parser.
const STARTS: &str = "'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER";
/// What is expected where nothing may follow.
const END: &str = "<EOF>";

struct Parser<'s> {
    source: &'s str,
    tokens: Vec<Placed>,
    at: usize,
    depth: usize,
    /// The token after the parenthesis of the call read last: there, the call may end.
    opened: usize,
    binds: bool,
}

type Parsed = Result<Expr, Issue>;

impl Parser<'_> {
    fn placed(&self, ahead: usize) -> &Placed {
        &self.tokens[(self.at + ahead).min(self.tokens.len() - 1)]
    }

    fn peek(&self) -> &Token {
        &self.placed(0).2
    }

    fn place(&self) -> usize {
        self.placed(0).0
    }

    /// The source from a place to the end of the token that comes.
    fn shown(&self, from: usize) -> String {
        match self.placed(0) {
            (_, _, Token::End) if from >= self.place() => "<EOF>".to_owned(),
            (_, end, _) => self.source.chars().skip(from).take(end - from).collect(),
        }
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.peek(), Token::Symbol(s) if *s == symbol)
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = self.is(symbol);
        self.at += usize::from(found);
        found
    }

    /// What is wrong with the token that comes. Where leaving it out would help, it is too much.
    fn unexpected(&self, expecting: &str) -> Issue {
        let shown = self.shown(self.place());
        let next = &self.placed(1).2;
        let wanted = match expecting {
            "" => format!("{{'[', '{{', '(', {}'.', '-', '!', {STARTS}}}", if self.opened == self.at { "')', " } else { "" }),
            "?" => format!("{{'[', '{{', '(', '.', '-', '!', '?', {STARTS}}}"),
            other => other.to_owned(),
        };
        let extra = match expecting {
            END => *next == Token::End,
            "" => match next {
                Token::Symbol(")") => self.opened == self.at,
                Token::Symbol(symbol) => matches!(*symbol, "[" | "{" | "(" | "." | "-" | "!"),
                Token::Ident(word) => word != "in",
                Token::End | Token::Quoted(_) => false,
                _ => true,
            },
            other => matches!(next, Token::Symbol(symbol) if other.trim_matches('\'') == *symbol),
        };
        let why = match (self.peek(), expecting) {
            (Token::End, "')'") => "missing ')' at '<EOF>'".to_owned(),
            (Token::End, _) => format!("mismatched input '<EOF>' expecting {wanted}"),
            _ if extra => format!("extraneous input '{shown}' expecting {wanted}"),
            _ => format!("mismatched input '{shown}' expecting {wanted}"),
        };
        Issue { at: self.place(), message: format!("Syntax error: {why}") }
    }

    fn expect(&mut self, symbol: &'static str) -> Result<(), Issue> {
        if self.take(symbol) { Ok(()) } else { Err(self.unexpected(&format!("'{symbol}'"))) }
    }

    /// Goes on to the next item of a list, or over its end. Answers whether there may be another item.
    fn another(&mut self, close: &'static str) -> Result<bool, Issue> {
        if self.take(",") {
            return if self.is(",") { Err(self.unexpected(&format!("'{close}'"))) } else { Ok(!self.take(close)) };
        }
        if self.take(close) { Ok(false) } else { Err(self.unexpected(&format!("{{'{close}', ','}}"))) }
    }

    /// Whether a list has items. Without any, there may still be a comma.
    fn any(&mut self, close: &str) -> bool {
        if self.is(",") && matches!(&self.placed(1).2, Token::Symbol(symbol) if *symbol == close) {
            self.at += 1;
        }
        !self.take(close)
    }

    /// The name of a field, after a dot at `dot`.
    fn field(&mut self, dot: usize, optional: bool) -> Result<String, Issue> {
        let issue = match self.peek() {
            Token::Ident(word) if word == "in" => None,
            Token::Ident(word) if matches!(word.as_str(), "true" | "false" | "null") => return Err(self.unexpected("IDENTIFIER")),
            Token::Ident(name) => {
                let name = name.clone();
                self.at += 1;
                return Ok(name);
            }
            Token::Quoted(_) => Some("unsupported syntax: '`'".to_owned()),
            _ if optional => return Err(self.unexpected("{IDENTIFIER, ESC_IDENTIFIER}")),
            _ => None,
        };
        let message = issue.unwrap_or_else(|| format!("Syntax error: no viable alternative at input '{}'", self.shown(dot)));
        Err(Issue { at: self.place(), message })
    }

    fn make(&self, at: usize, node: Node) -> Parsed {
        let expr = Expr::new(at, node);
        if expr.depth > MAX_DEPTH { Err(self.too_deep()) } else { Ok(expr) }
    }

    fn too_deep(&self) -> Issue {
        Issue { at: 0, message: format!("expression recursion limit exceeded: {MAX_DEPTH}") }
    }

    fn call(&self, at: usize, name: &str, args: Vec<Expr>) -> Parsed {
        self.make(at, Node::Call { name: name.into(), member: false, sure: false, args })
    }

    fn expr(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return Err(self.too_deep());
        }
        let condition = self.binary(0)?;
        let at = self.place();
        let expr = if self.take("?") {
            let yes = self.binary(0)?;
            self.expect(":")?;
            let no = self.expr()?;
            self.make(at, Node::Ternary(Box::new([condition, yes, no])))?
        } else {
            condition
        };
        self.depth -= 1;
        Ok(expr)
    }

    /// The operator that comes, with how tightly it binds.
    fn operator(&self) -> Option<(&'static str, u8)> {
        Some(match self.peek() {
            Token::Symbol("||") => ("||", 1),
            Token::Symbol("&&") => ("&&", 2),
            Token::Symbol("==") => ("_==_", 3),
            Token::Symbol("!=") => ("_!=_", 3),
            Token::Symbol("<") => ("_<_", 3),
            Token::Symbol("<=") => ("_<=_", 3),
            Token::Symbol(">") => ("_>_", 3),
            Token::Symbol(">=") => ("_>=_", 3),
            Token::Ident(word) if word == "in" => ("@in", 3),
            Token::Symbol("+") => ("_+_", 4),
            Token::Symbol("-") => ("_-_", 4),
            Token::Symbol("*") => ("_*_", 5),
            Token::Symbol("/") => ("_/_", 5),
            Token::Symbol("%") => ("_%_", 5),
            _ => return None,
        })
    }

    /// Operators that bind more tightly than `outer`. Long chains of `&&` and `||` are one flat node.
    fn binary(&mut self, outer: u8) -> Parsed {
        let mut left = self.unary()?;
        while let Some((name, tightness)) = self.operator()
            && tightness > outer
        {
            let at = self.place();
            self.at += 1;
            let right = self.binary(tightness)?;
            left = match (name, left) {
                ("||", Expr { node: Node::Or(mut terms), at, .. }) => {
                    terms.push(right);
                    self.make(at, Node::Or(terms))?
                }
                ("&&", Expr { node: Node::And(mut terms), at, .. }) => {
                    terms.push(right);
                    self.make(at, Node::And(terms))?
                }
                ("||", left) => self.make(at, Node::Or(vec![left, right]))?,
                ("&&", left) => self.make(at, Node::And(vec![left, right]))?,
                (name, left) => self.call(at, name, vec![left, right])?,
            };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Parsed {
        let at = self.place();
        if self.is("!") || self.is("-") {
            let symbol = if self.is("!") { "!" } else { "-" };
            let mut count = 0;
            while self.take(symbol) {
                count += 1;
            }
            if symbol == "-" && count == 1 {
                let literal = match *self.peek() {
                    Token::Int(n) => Some(Val::Int(-n)),
                    Token::MinInt => Some(Val::Int(i64::MIN)),
                    Token::Double(n) => Some(Val::Double(-n)),
                    _ => None,
                };
                if let Some(literal) = literal {
                    self.at += 1;
                    let literal = self.make(at, Node::Literal(literal))?;
                    return self.members(literal);
                }
            }
            let operand = self.member()?;
            return if count % 2 == 0 { Ok(operand) } else { self.call(at, &format!("{symbol}_"), vec![operand]) };
        }
        self.member()
    }

    fn member(&mut self) -> Parsed {
        let primary = self.primary()?;
        self.members(primary)
    }

    fn members(&mut self, mut here: Expr) -> Parsed {
        loop {
            let at = self.place();
            if self.take(".") {
                let optional = self.take("?");
                let field = self.field(at, optional)?;
                let open = self.place();
                if !optional && self.take("(") {
                    let args = self.arguments()?;
                    here = self.method(open, here, field, args)?;
                } else if let (true, Some(name)) = (self.is("{"), path(&here)) {
                    here = self.construct(format!("{name}.{field}"))?;
                } else {
                    here = self.make(at, Node::Select { of: Box::new(here), field, optional })?;
                }
            } else if self.take("[") {
                let optional = self.take("?");
                if !optional && matches!(self.peek(), Token::End | Token::Symbol("]")) {
                    return Err(self.unexpected("?"));
                }
                let index = self.expr()?;
                self.expect("]")?;
                here = self.call(at, if optional { "_[?_]" } else { "_[_]" }, vec![here, index])?;
            } else {
                return Ok(here);
            }
        }
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, Issue> {
        let mut args = Vec::new();
        self.opened = self.at;
        if self.take(")") {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if !self.take(",") {
                self.expect(")")?;
                return Ok(args);
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        let at = self.place();
        let token = self.peek().clone();
        self.at += 1;
        let literal = match token {
            Token::Int(n) => Val::Int(n),
            Token::Uint(n) => Val::Uint(n),
            Token::Double(n) => Val::Double(n),
            Token::Text(text) => Val::text(text),
            Token::Bytes(bytes) => Val::Bytes(bytes.into()),
            Token::Ident(name) => match name.as_str() {
                "true" => Val::Bool(true),
                "false" => Val::Bool(false),
                "null" => Val::Null,
                "in" => {
                    self.at -= 1;
                    return Err(self.unexpected(""));
                }
                _ => return self.name(at, name),
            },
            Token::Symbol(".") => match self.peek().clone() {
                Token::Ident(name) => {
                    self.at += 1;
                    return self.name(at, name);
                }
                _ => return Err(self.unexpected("IDENTIFIER")),
            },
            Token::Symbol("(") => {
                let inner = self.expr()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Symbol("[") => return self.list(at),
            Token::Symbol("{") => return self.map(at),
            Token::MinInt => return Err(Issue { at, message: "invalid int literal".into() }),

            _ => {
                self.at -= 1;
                return Err(self.unexpected(""));
            }
        };
        self.make(at, Node::Literal(literal))
    }

    fn name(&mut self, at: usize, name: String) -> Parsed {
        if RESERVED.contains(&name.as_str()) {
            return Err(Issue { at, message: format!("reserved identifier: {name}") });
        }
        let open = self.place();
        if self.take("(") {
            let mut args = self.arguments()?;
            if name == "has" && args.len() == 1 {
                let arg = args.remove(0);
                return match arg.node {
                    Node::Select { of, field, optional: false } => self.make(open, Node::Has { of, field }),
                    _ => Err(Issue { at: arg.at, message: "invalid argument to has() macro".into() }),
                };
            }
            return self.call(open, &name, args);
        }
        if self.is("{") {
            return self.construct(name);
        }
        self.make(at, Node::Ident(name))
    }

    fn list(&mut self, at: usize) -> Parsed {
        let mut items = Vec::new();
        let mut more = self.any("]");
        while more {
            let optional = self.take("?");
            items.push((self.expr()?, optional));
            more = self.another("]")?;
        }
        self.make(at, Node::List(items))
    }

    fn map(&mut self, at: usize) -> Parsed {
        let mut entries = Vec::new();
        let mut more = self.any("}");
        while more {
            let optional = self.take("?");
            let key = self.expr()?;
            self.expect(":")?;
            entries.push((key, self.expr()?, optional));
            more = self.another("}")?;
        }
        self.make(at, Node::Map(entries))
    }

    /// `Name{field: value}`
    fn construct(&mut self, name: String) -> Parsed {
        let at = self.place();
        self.expect("{")?;
        let mut fields = Vec::new();
        let mut more = self.any("}");
        while more {
            let optional = self.take("?");
            let field = match self.peek().clone() {
                Token::Ident(name) => name,
                _ => return Err(self.unexpected("{'}', ',', IDENTIFIER}")),
            };
            self.at += 1;
            self.expect(":")?;
            fields.push((field, self.expr()?, optional));
            more = self.another("}")?;
        }
        self.make(at, Node::Struct { name, fields })
    }

    /// A method call, or the macro that it stands for.
    fn method(&mut self, at: usize, target: Expr, name: String, mut args: Vec<Expr>) -> Parsed {
        use MacroKind::{All, Bind, Exists, ExistsOne, Filter, Map, OptFlatMap, OptMap, SortBy, TransformMap, TransformMapEntry};
        // The kind, how many variables, and whether there is a filter before the body.
        let shape = match (name.as_str(), args.len()) {
            ("all", 2) => Some((All, 1, false)),
            ("all", 3) => Some((All, 2, false)),
            ("exists", 2) => Some((Exists, 1, false)),
            ("exists", 3) => Some((Exists, 2, false)),
            ("exists_one", 2) => Some((ExistsOne, 1, false)),
            ("exists_one" | "existsOne", 3) => Some((ExistsOne, 2, false)),
            ("map", 2) => Some((Map, 1, false)),
            ("map", 3) => Some((Map, 1, true)),
            ("filter", 2) => Some((Filter, 1, false)),
            ("transformList", 3) => Some((Map, 2, false)),
            ("transformList", 4) => Some((Map, 2, true)),
            ("transformMap", 3) => Some((TransformMap, 2, false)),
            ("transformMap", 4) => Some((TransformMap, 2, true)),
            ("transformMapEntry", 3) => Some((TransformMapEntry, 2, false)),
            ("transformMapEntry", 4) => Some((TransformMapEntry, 2, true)),
            ("optMap", 2) => Some((OptMap, 1, false)),
            ("optFlatMap", 2) => Some((OptFlatMap, 1, false)),
            ("sortBy", 2) => Some((SortBy, 1, false)),
            // The value takes the place of `cel`.
            ("bind", 3) if self.binds && matches!(&target.node, Node::Ident(name) if name == "cel") => Some((Bind, 1, true)),
            _ => None,
        };
        let Some((kind, count, filtered)) = shape else {
            args.insert(0, target);
            return self.make(at, Node::Call { name, member: true, sure: false, args });
        };
        let mut vars = Vec::new();
        for var in args.drain(..count) {
            match var.node {
                Node::Ident(name) if !vars.contains(&name) => vars.push(name),
                Node::Ident(name) => return Err(Issue { at: var.at, message: format!("duplicate variable name: {name}") }),
                _ => {
                    let message = match kind {
                        Map | Filter | SortBy if count == 1 => "argument is not an identifier".to_owned(),
                        Bind => "cel.bind() variable names must be simple identifiers".to_owned(),
                        OptMap | OptFlatMap => format!("{name}() variable name must be a simple identifier"),
                        _ => "argument must be a simple name".to_owned(),
                    };
                    return Err(Issue { at: var.at, message });
                }
            }
        }
        let mut filter = filtered.then(|| args.remove(0));
        let body = args.remove(0);
        let target = if kind == Bind { filter.take().unwrap_or(target) } else { target };
        self.make(at, Node::Macro(Box::new(Macro { kind, range: target, vars, filter, body })))
    }
}

/// The dotted name that an expression is, if it is one.
pub(super) fn path(expr: &Expr) -> Option<String> {
    match &expr.node {
        Node::Ident(name) => Some(name.clone()),
        Node::Select { of, field, optional: false } => Some(format!("{}.{field}", path(of)?)),
        _ => None,
    }
}
