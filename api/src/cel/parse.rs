//! Tokens to trees, macros unfolded.

use super::Issue;
use super::ast::{Expr, Macro, MacroKind, Node};
use super::lex::{Token, tokens};
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

/// Reads an expression.
pub(super) fn parse(source: &str) -> Result<Expr, Issue> {
    let length = source.chars().count();
    if length > MAX_LENGTH {
        let message = format!("expression code point size exceeds limit: size: {length}, limit {MAX_LENGTH}");
        return Err(Issue { at: 0, message });
    }
    let mut parser = Parser { tokens: tokens(source)?, at: 0, depth: 0, opened: usize::MAX };
    let expr = parser.expr()?;
    if *parser.peek() != Token::End {
        return Err(parser.unexpected("<EOF>"));
    }
    Ok(expr)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
    /// The token after the parenthesis of the call read last: there, the call may end.
    opened: usize,
}

type Parsed = Result<Expr, Issue>;

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    fn place(&self) -> usize {
        self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.peek(), Token::Symbol(s) if *s == symbol)
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = self.is(symbol);
        self.at += usize::from(found);
        found
    }

    fn unexpected(&self, expecting: &str) -> Issue {
        let shown = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Ident(name) => name.clone(),
            Token::Quoted(name) => format!("`{name}`"),
            Token::Int(n) => n.to_string(),
            Token::MinInt => "9223372036854775808".into(),
            Token::Uint(n) => format!("{n}u"),
            Token::Double(n) => n.to_string(),
            Token::Text(text) => format!("{text:?}"),
            Token::Bytes(_) => "b\"...\"".into(),
            Token::Symbol(symbol) => (*symbol).to_owned(),
        };
        let why = match expecting {
            "" => format!("Syntax error: mismatched input '{shown}' expecting {{'[', '{{', '(', {}'.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}}", if self.opened == self.at { "')', " } else { "" }),
            "<EOF>" => format!("Syntax error: extraneous input '{shown}' expecting <EOF>"),
            other => format!("Syntax error: mismatched input '{shown}' expecting {other}"),
        };
        Issue { at: self.place(), message: why }
    }

    fn expect(&mut self, symbol: &'static str) -> Result<(), Issue> {
        if self.take(symbol) { Ok(()) } else { Err(self.unexpected(&format!("'{symbol}'"))) }
    }

    fn make(&self, at: usize, node: Node) -> Parsed {
        let expr = Expr::new(at, node);
        if expr.depth > MAX_DEPTH { Err(self.too_deep()) } else { Ok(expr) }
    }

    fn too_deep(&self) -> Issue {
        Issue { at: 0, message: format!("expression recursion limit exceeded: {MAX_DEPTH}") }
    }

    fn call(&self, at: usize, name: &str, args: Vec<Expr>) -> Parsed {
        self.make(at, Node::Call { name: name.into(), member: false, args })
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
                let field = match self.peek().clone() {
                    Token::Ident(name) | Token::Quoted(name) => name,
                    _ => return Err(self.unexpected("{IDENTIFIER, ESC_IDENTIFIER}")),
                };
                self.at += 1;
                let open = self.place();
                if !optional && self.take("(") {
                    let args = self.arguments(")")?;
                    here = self.method(open, here, field, args)?;
                } else if let (true, Some(name)) = (self.is("{"), path(&here)) {
                    here = self.construct(format!("{name}.{field}"))?;
                } else {
                    here = self.make(at, Node::Select { of: Box::new(here), field, optional })?;
                }
            } else if self.take("[") {
                let optional = self.take("?");
                let index = self.expr()?;
                self.expect("]")?;
                here = self.call(at, if optional { "_[?_]" } else { "_[_]" }, vec![here, index])?;
            } else {
                return Ok(here);
            }
        }
    }

    fn arguments(&mut self, close: &'static str) -> Result<Vec<Expr>, Issue> {
        let mut args = Vec::new();
        self.opened = self.at;
        while !self.take(close) {
            args.push(self.expr()?);
            if !self.take(",") {
                self.expect(close)?;
                break;
            }
        }
        Ok(args)
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
            Token::MinInt => return Err(Issue { at, message: "Syntax error: invalid int literal".into() }),
            _ => {
                self.at -= 1;
                return Err(self.unexpected(""));
            }
        };
        self.make(at, Node::Literal(literal))
    }

    fn name(&mut self, at: usize, name: String) -> Parsed {
        if RESERVED.contains(&name.as_str()) {
            return Err(Issue { at, message: format!("Syntax error: reserved identifier: {name}") });
        }
        let open = self.place();
        if self.take("(") {
            let mut args = self.arguments(")")?;
            if name == "has" && args.len() == 1 {
                let arg = args.remove(0);
                return match arg.node {
                    Node::Select { of, field, optional: false } => self.make(arg.at, Node::Has { of, field }),
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
        while !self.take("]") {
            let optional = self.take("?");
            items.push((self.expr()?, optional));
            if !self.take(",") {
                self.expect("]")?;
                break;
            }
        }
        self.make(at, Node::List(items))
    }

    fn map(&mut self, at: usize) -> Parsed {
        let mut entries = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let key = self.expr()?;
            self.expect(":")?;
            entries.push((key, self.expr()?, optional));
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        self.make(at, Node::Map(entries))
    }

    /// `Name{field: value}`
    fn construct(&mut self, name: String) -> Parsed {
        let at = self.place();
        self.expect("{")?;
        let mut fields = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let field = match self.peek().clone() {
                Token::Ident(name) | Token::Quoted(name) => name,
                _ => return Err(self.unexpected("{'}', ',', IDENTIFIER}")),
            };
            self.at += 1;
            self.expect(":")?;
            fields.push((field, self.expr()?, optional));
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        self.make(at, Node::Struct { name, fields })
    }

    /// A method call, or the macro that it stands for.
    fn method(&mut self, at: usize, target: Expr, name: String, mut args: Vec<Expr>) -> Parsed {
        use MacroKind::{All, Exists, ExistsOne, Filter, Map, OptFlatMap, OptMap, SortBy, TransformMap, TransformMapEntry};
        // The kind, how many variables, and whether there is a filter before the body.
        let shape = match (name.as_str(), args.len()) {
            ("all", 2) => Some((All, 1, false)),
            ("all", 3) => Some((All, 2, false)),
            ("exists", 2) => Some((Exists, 1, false)),
            ("exists", 3) => Some((Exists, 2, false)),
            ("exists_one" | "existsOne", 2) => Some((ExistsOne, 1, false)),
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
            _ => None,
        };
        let Some((kind, count, filtered)) = shape else {
            args.insert(0, target);
            return self.make(at, Node::Call { name, member: true, args });
        };
        let mut vars = Vec::new();
        for var in args.drain(..count) {
            match var.node {
                Node::Ident(name) if !vars.contains(&name) => vars.push(name),
                Node::Ident(_) => return Err(Issue { at: var.at, message: "duplicate variable name".into() }),
                _ => return Err(Issue { at: var.at, message: "argument must be a simple name".into() }),
            }
        }
        let filter = filtered.then(|| args.remove(0));
        let body = args.remove(0);
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
