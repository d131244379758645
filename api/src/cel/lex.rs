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

const SYMBOLS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "(", ")", "[", "]", "{", "}", ".", ",", ":", "?", "+", "-", "*", "/", "%", "!",
];

/// A token, and where it begins and ends, in characters.
pub(super) type Placed = (usize, usize, Token);

/// The tokens, the last of which is [`Token::End`], and what is wrong with them. What can't be read is left out.
pub(super) fn tokens(source: &str) -> (Vec<Placed>, Vec<Issue>) {
    let chars: Vec<char> = source.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, issues: Vec::new() };
    let mut all = Vec::new();
    loop {
        lexer.skip_blank();
        let at = lexer.at;
        let Some(token) = lexer.next() else { continue };
        let end = token == Token::End;
        all.push((at, lexer.at, token));
        if end {
            return (all, lexer.issues);
        }
    }
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    issues: Vec<Issue>,
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

    fn wrong(&mut self, at: usize, why: &str) {
        self.issues.push(Issue { at, message: why.to_owned() });
    }

    /// No token begins at `start` that goes on beyond the character at `end`.
    fn unknown(&mut self, start: usize, end: usize) -> Option<Token> {
        self.at = (end + 1).min(self.chars.len());
        let text: String = self.chars[start..self.at].iter().collect();
        self.wrong(start, &format!("Syntax error: token recognition error at: '{text}'"));
        None
    }

    /// The next token, unless there is none that can be read.
    fn next(&mut self) -> Option<Token> {
        let (start, c) = (self.at, self.peek(0));
        if self.at >= self.chars.len() {
            return Some(Token::End);
        }
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_ascii_digit()) {
            return Some(self.number());
        }
        if c == '"' || c == '\'' {
            return match self.text(start, false, false) {
                Ok(text) => Some(text),
                // Two quotes of three are an empty text, at least.
                Err(_) if self.chars.get(start + 1) == Some(&c) => {
                    self.at = start + 2;
                    Some(Token::Text(String::new()))
                }
                Err(end) => self.unknown(start, end),
            };
        }
        if c == '`' {
            let Some(end) = self.chars[start + 1..].iter().position(|c| *c == '`') else { return self.unknown(start, start) };
            self.at = start + end + 2;
            return Some(Token::Quoted(self.chars[start + 1..start + 1 + end].iter().collect()));
        }
        if c.is_ascii_alphabetic() || c == '_' {
            while self.peek(0).is_ascii_alphanumeric() || self.peek(0) == '_' {
                self.at += 1;
            }
            let (word, end) = (String::from_iter(&self.chars[start..self.at]), self.at);
            let lower = word.to_ascii_lowercase();
            if matches!(self.peek(0), '"' | '\'') && matches!(lower.as_str(), "r" | "b" | "br") {
                if let Ok(text) = self.text(start, lower.contains('r'), lower.contains('b')) {
                    return Some(text);
                }
                self.at = end;
            }
            return Some(Token::Ident(word));
        }
        for symbol in SYMBOLS {
            if symbol.chars().enumerate().all(|(i, s)| self.peek(i) == s) {
                self.at += symbol.len();
                return Some(Token::Symbol(symbol));
            }
        }
        // One of two characters that only go together.
        let end = if matches!(c, '&' | '|' | '=') { start + 1 } else { start };
        self.unknown(start, end)
    }

    fn number(&mut self) -> Token {
        let start = self.at;
        let hex = self.peek(0) == '0' && matches!(self.peek(1), 'x' | 'X') && self.peek(2).is_ascii_hexdigit();
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
            let number = text.parse().unwrap_or(f64::INFINITY);
            if number.is_infinite() {
                self.wrong(start, "invalid double literal");
            }
            return Token::Double(number);
        }
        let parsed = if hex { u64::from_str_radix(&text[2..], 16) } else { text.parse::<u64>() };
        if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            return Token::Uint(parsed.unwrap_or_else(|_| {
                self.wrong(start, "invalid uint literal");
                0
            }));
        }
        match parsed.ok().map(|n| (n, i64::try_from(n))) {
            Some((n, Err(_))) if n == 1 << 63 => Token::MinInt,
            Some((_, Ok(n))) => Token::Int(n),
            _ => {
                self.wrong(start, "invalid int literal");
                Token::Int(0)
            }
        }
    }

    /// A text or bytes literal that begins at `start`; raw ones have no escapes. The error is the place of the character that can't be there.
    fn text(&mut self, start: usize, raw: bool, bytes: bool) -> Result<Token, usize> {
        let quote = self.peek(0);
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        self.at += if triple { 3 } else { 1 };
        let (mut out, mut sound) = (Vec::new(), true);
        loop {
            let c = self.peek(0);
            if self.at >= self.chars.len() || !triple && matches!(c, '\n' | '\r') {
                return Err(self.at);
            }
            if c == quote && (!triple || (self.peek(1) == quote && self.peek(2) == quote)) {
                self.at += if triple { 3 } else { 1 };
                break;
            }
            self.at += 1;
            if c == '\\' && !raw {
                sound &= self.escape(bytes, &mut out)?;
            } else {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if !sound {
            self.wrong(start, "unable to unescape string");
        }
        Ok(if bytes { Token::Bytes(out) } else { Token::Text(String::from_utf8_lossy(&out).into_owned()) })
    }

    /// What comes after a backslash; `false` when it stands for nothing.
    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<bool, usize> {
        let c = self.peek(0);
        self.at += 1;
        let plain = match c {
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'n' => Some(b'\n'),
            'r' => Some(b'\r'),
            't' => Some(b'\t'),
            'v' => Some(11),
            '\\' | '\'' | '"' | '`' | '?' => Some(c as u8),
            _ => None,
        };
        if let Some(byte) = plain {
            out.push(byte);
            return Ok(true);
        }
        let digits = match c {
            'x' | 'X' => 2,
            'u' => 4,
            'U' => 8,
            '0'..='3' => {
                self.at -= 1;
                3
            }
            _ => return Err(self.at - 1),
        };
        let radix = if digits == 3 { 8 } else { 16 };
        let mut code: u32 = 0;
        for _ in 0..digits {
            let digit = self.peek(0).to_digit(radix).ok_or(self.at)?;
            code = code.wrapping_mul(radix).wrapping_add(digit);
            self.at += 1;
        }
        match (bytes, u8::try_from(code), char::from_u32(code)) {
            (true, Ok(byte), _) if digits < 4 => out.push(byte),
            (false, _, Some(c)) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => return Ok(false),
        }
        Ok(true)
    }
}
