//! Source text to tokens.

use super::Issue;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Ident(String),
    /// A field name in backquotes.
    Quoted(String),
    Int(i64),
    /// 9223372036854775808, which only a minus before it makes an int.
    MinInt,
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Symbol(&'static str),
    End,
}

const SYMBOLS: [&str; 25] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "(", ")", "[", "]", "{", "}", ".", ",", ":", "?", "+", "-", "*", "/", "%", "!", "=",
];

/// The tokens, each with its place in characters; the last one is [`Token::End`].
pub(super) fn tokens(source: &str) -> Result<Vec<(usize, Token)>, Issue> {
    let chars: Vec<char> = source.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0 };
    let mut all = Vec::new();
    loop {
        lexer.skip_blank();
        let at = lexer.at;
        let token = lexer.next()?;
        let end = token == Token::End;
        all.push((at, token));
        if end {
            return Ok(all);
        }
    }
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn skip_blank(&mut self) {
        while self.at < self.chars.len() {
            if self.peek(0) == '/' && self.peek(1) == '/' {
                while self.at < self.chars.len() && self.peek(0) != '\n' {
                    self.at += 1;
                }
            } else if matches!(self.peek(0), ' ' | '\t' | '\n' | '\r' | '\u{c}') {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    fn error(&self, at: usize, why: impl Into<String>) -> Issue {
        Issue { at, message: format!("Syntax error: {}", why.into()) }
    }

    fn next(&mut self) -> Result<Token, Issue> {
        let (start, c) = (self.at, self.peek(0));
        if self.at >= self.chars.len() {
            return Ok(Token::End);
        }
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_ascii_digit()) {
            return self.number();
        }
        if c == '"' || c == '\'' {
            return self.text(false, false);
        }
        if c == '`' {
            let end = self.chars[start + 1..].iter().position(|c| *c == '`').ok_or_else(|| self.error(start, "token recognition error at: '`'"))?;
            self.at = start + end + 2;
            return Ok(Token::Quoted(self.chars[start + 1..start + 1 + end].iter().collect()));
        }
        if c.is_ascii_alphabetic() || c == '_' {
            while self.peek(0).is_ascii_alphanumeric() || self.peek(0) == '_' {
                self.at += 1;
            }
            let word: String = self.chars[start..self.at].iter().collect();
            if matches!(self.peek(0), '"' | '\'') && matches!(word.to_ascii_lowercase().as_str(), "r" | "b" | "rb" | "br") {
                let lower = word.to_ascii_lowercase();
                return self.text(lower.contains('r'), lower.contains('b'));
            }
            return Ok(Token::Ident(word));
        }
        for symbol in SYMBOLS {
            if symbol.chars().enumerate().all(|(i, s)| self.peek(i) == s) {
                self.at += symbol.len();
                return Ok(Token::Symbol(symbol));
            }
        }
        Err(self.error(start, format!("token recognition error at: '{c}'")))
    }

    fn number(&mut self) -> Result<Token, Issue> {
        let start = self.at;
        let hex = self.peek(0) == '0' && matches!(self.peek(1), 'x' | 'X');
        let mut double = false;
        if hex {
            self.at += 2;
            while self.peek(0).is_ascii_hexdigit() {
                self.at += 1;
            }
        } else {
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
            if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
                double = true;
                self.at += 1;
                while self.peek(0).is_ascii_digit() {
                    self.at += 1;
                }
            }
            let sign = usize::from(matches!(self.peek(1), '+' | '-'));
            if matches!(self.peek(0), 'e' | 'E') && self.peek(1 + sign).is_ascii_digit() {
                double = true;
                self.at += 1 + sign;
                while self.peek(0).is_ascii_digit() {
                    self.at += 1;
                }
            }
        }
        let text: String = self.chars[start..self.at].iter().collect();
        if double {
            return text.parse().map(Token::Double).map_err(|_| self.error(start, "invalid double literal"));
        }
        let parsed = if hex { u64::from_str_radix(&text[2..], 16) } else { text.parse::<u64>() };
        if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            return parsed.map(Token::Uint).map_err(|_| self.error(start, "invalid uint literal"));
        }
        match parsed {
            Ok(n) if n == 1 << 63 => Ok(Token::MinInt),
            Ok(n) => i64::try_from(n).map(Token::Int).map_err(|_| self.error(start, "invalid int literal")),
            Err(_) => Err(self.error(start, "invalid int literal")),
        }
    }

    /// A text or bytes literal; raw ones have no escapes.
    fn text(&mut self, raw: bool, bytes: bool) -> Result<Token, Issue> {
        let (start, quote) = (self.at, self.peek(0));
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        self.at += if triple { 3 } else { 1 };
        let mut out = Vec::new();
        let unclosed = |lexer: &Self| lexer.error(start, format!("token recognition error at: '{}'", lexer.chars[start..].iter().collect::<String>()));
        loop {
            if self.at >= self.chars.len() {
                return Err(unclosed(self));
            }
            let c = self.peek(0);
            if c == quote && (!triple || (self.peek(1) == quote && self.peek(2) == quote)) {
                self.at += if triple { 3 } else { 1 };
                break;
            }
            if !triple && matches!(c, '\n' | '\r') {
                return Err(unclosed(self));
            }
            self.at += 1;
            if c == '\\' && !raw {
                self.escape(bytes, &mut out)?;
            } else {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if bytes {
            return Ok(Token::Bytes(out));
        }
        String::from_utf8(out).map(Token::Text).map_err(|_| self.error(start, "invalid string literal"))
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), Issue> {
        let at = self.at - 1;
        let invalid = |lexer: &Self| lexer.error(at, "invalid escape sequence");
        let c = self.peek(0);
        self.at += 1;
        let digits = match c {
            'a' => return Ok(out.push(7)),
            'b' => return Ok(out.push(8)),
            'f' => return Ok(out.push(12)),
            'n' => return Ok(out.push(b'\n')),
            'r' => return Ok(out.push(b'\r')),
            't' => return Ok(out.push(b'\t')),
            'v' => return Ok(out.push(11)),
            '\\' | '\'' | '"' | '`' | '?' => return Ok(out.push(c as u8)),
            'x' | 'X' => 2,
            'u' if !bytes => 4,
            'U' if !bytes => 8,
            '0'..='3' => {
                self.at -= 1;
                3
            }
            _ => return Err(invalid(self)),
        };
        let radix = if digits == 3 { 8 } else { 16 };
        let mut code = 0;
        for _ in 0..digits {
            let digit = self.peek(0).to_digit(radix).ok_or_else(|| invalid(self))?;
            code = code * radix + digit;
            self.at += 1;
        }
        match (bytes, u8::try_from(code), char::from_u32(code)) {
            (true, Ok(byte), _) => out.push(byte),
            (false, _, Some(c)) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => return Err(invalid(self)),
        }
        Ok(())
    }
}
