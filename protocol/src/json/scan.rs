//! A scanner over JSON text that goes forward only and knows its position.

use std::borrow::Cow;

use outrigger_backend::MAX_RANK;

/// Why scanning stopped. The scanner's position says where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    // The body is not JSON.
    End,
    Value,
    Member,
    Colon,
    CommaOrBracket,
    CommaOrBrace,
    Number,
    NotFinite,
    String,
    TooDeep,
    Trailing,
    // The body is JSON and says something else than what belongs there.
    Null,
    Kind(&'static str),
    Range,
    TooFew,
    TooMany,
    Memory,
}

impl Fault {
    /// Whether the body is not JSON at all.
    pub(crate) fn is_syntax(self) -> bool {
        match self {
            Self::End | Self::Value | Self::Member | Self::Colon | Self::CommaOrBracket => true,
            Self::CommaOrBrace | Self::Number | Self::NotFinite | Self::String => true,
            Self::TooDeep | Self::Trailing => true,
            Self::Null | Self::Kind(_) | Self::Range => false,
            Self::TooFew | Self::TooMany | Self::Memory => false,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::End => "it ends too early",
            Self::Value => "expected a value",
            Self::Member => "expected a member name in quotes",
            Self::Colon => "expected `:`",
            Self::CommaOrBracket => "expected `,` or `]`",
            Self::CommaOrBrace => "expected `,` or `}`",
            Self::Number => "a number has a wrong form",
            Self::NotFinite => "NaN and infinities are no JSON numbers",
            Self::String => "a string has a wrong form",
            Self::TooDeep => "it is nested too deeply",
            Self::Trailing => "something follows its end",
            Self::Null => "null has no place here",
            Self::Kind(expected) => return write!(f, "expected {expected}"),
            Self::Range => "a number is out of the range of the datatype",
            Self::TooFew => "fewer values than the shape asks for",
            Self::TooMany => "more values than the shape asks for",
            Self::Memory => "the strings are more than the call may hold",
        })
    }
}

/// Reads JSON text from front to back.
#[derive(Clone, Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    max_depth: usize,
}

impl<'a> Scanner<'a> {
    /// Starts at the front of `text`; a skipped value may be nested up to `max_depth`.
    pub(crate) fn new(text: &'a str, max_depth: usize) -> Self {
        Self { text, at: 0, max_depth }
    }

    /// The length of the whole text, in bytes.
    pub(crate) fn length(&self) -> usize {
        self.text.len()
    }

    /// The position, in bytes from the front.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Goes to a position that [`Self::position`] has given.
    pub(crate) fn seek(&mut self, position: usize) {
        self.at = position;
    }

    /// Bytes that are left.
    pub(crate) fn remaining(&self) -> usize {
        self.text.len().saturating_sub(self.at)
    }

    /// The text from `start`, a position, to here.
    pub(crate) fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// The byte here, without skipping anything.
    #[inline]
    pub(crate) fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The bytes from here on.
    #[inline]
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    /// Goes to where this is left of the text.
    #[inline]
    pub(crate) fn leave(&mut self, left: &[u8]) {
        self.at = self.text.len().saturating_sub(left.len());
    }

    /// Goes one byte on.
    #[inline]
    pub(crate) fn advance(&mut self) {
        self.at += 1;
    }

    /// Skips white space and looks at what follows.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.byte() {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.advance(),
                other => return other,
            }
        }
    }

    /// Skips white space and takes `wanted`, if it follows.
    #[inline]
    pub(crate) fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.advance();
        }
        found
    }

    /// Whether `word` follows here, without white space before it; takes it if so.
    pub(crate) fn take_word(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word.as_bytes());
        if found {
            self.at += word.len();
        }
        found
    }

    /// `fault`, or that the text has ended here.
    pub(crate) fn or_end(&self, fault: Fault) -> Fault {
        if self.remaining() == 0 { Fault::End } else { fault }
    }

    /// What is wrong with the value here, where `expected` belongs.
    #[cold]
    pub(crate) fn wrong_kind(&mut self, expected: &'static str) -> Fault {
        let start = self.at;
        let fault = match self.peek() {
            Some(b'n') if self.take_word("null") => Fault::Null,
            Some(b't') if self.take_word("true") => Fault::Kind(expected),
            Some(b'f') if self.take_word("false") => Fault::Kind(expected),
            Some(b'"' | b'{' | b'[' | b'-' | b'0'..=b'9') => Fault::Kind(expected),
            Some(b'N' | b'I') => Fault::NotFinite,
            Some(_) => Fault::Value,
            None => Fault::End,
        };
        self.at = start;
        fault
    }

    /// What is wrong with an array that must be too short for the number of its values.
    #[cold]
    pub(crate) fn why_short(mut self) -> Fault {
        if self.peek() != Some(b'[') {
            return self.wrong_kind("an array");
        }
        match self.skip_data() {
            Ok(()) => Fault::TooFew,
            Err(fault) => fault,
        }
    }

    /// What is wrong with an array that goes on behind its last value.
    #[cold]
    pub(crate) fn too_many(&mut self) -> Fault {
        if self.peek() == Some(b']') { Fault::Value } else { Fault::TooMany }
    }

    /// Takes `{`.
    pub(crate) fn open_object(&mut self) -> Result<(), Fault> {
        if self.take(b'{') { Ok(()) } else { Err(self.wrong_kind("an object")) }
    }

    /// Takes `[`.
    pub(crate) fn open_array(&mut self) -> Result<(), Fault> {
        if self.take(b'[') { Ok(()) } else { Err(self.wrong_kind("an array")) }
    }

    /// Takes the next member's name and its colon, or the object's end. `first` is true right after the
    /// opening brace.
    pub(crate) fn member(&mut self, first: bool) -> Result<Option<Cow<'a, str>>, Fault> {
        if self.take(b'}') {
            return Ok(None);
        }
        if !first && !self.take(b',') {
            return Err(self.or_end(Fault::CommaOrBrace));
        }
        if self.peek() != Some(b'"') {
            return Err(self.or_end(Fault::Member));
        }
        let name = self.string()?;
        if !self.take(b':') {
            return Err(self.or_end(Fault::Colon));
        }
        Ok(Some(name))
    }

    /// Goes to the next item of an array, or past the array's end. `first` is true right after the opening
    /// bracket.
    #[inline]
    pub(crate) fn item(&mut self, first: bool) -> Result<bool, Fault> {
        match self.peek() {
            Some(b']') => {
                self.advance();
                Ok(false)
            }
            Some(_) if first => Ok(true),
            // It promises an item; who takes that sees whether there is one.
            Some(b',') => {
                self.advance();
                Ok(true)
            }
            _ => Err(self.or_end(Fault::CommaOrBracket)),
        }
    }

    /// Takes `true` or `false`.
    pub(crate) fn boolean(&mut self) -> Result<bool, Fault> {
        let _ = self.peek();
        if self.take_word("true") {
            Ok(true)
        } else if self.take_word("false") {
            Ok(false)
        } else {
            Err(self.wrong_kind("true or false"))
        }
    }

    /// Takes a string; borrowed from the text unless it has an escape.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, Fault> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong_kind("a string"));
        }
        let start = self.at;
        self.advance();
        let mut escaped = false;
        loop {
            match self.byte() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.at += 2;
                }
                Some(0..=0x1f) => return Err(Fault::String),
                Some(_) => self.advance(),
                None => return Err(Fault::End),
            }
        }
        self.advance();
        if escaped {
            return serde_json::from_str(self.since(start)).map(Cow::Owned).map_err(|_| Fault::String);
        }
        Ok(Cow::Borrowed(self.text.get(start + 1..self.at - 1).unwrap_or_default()))
    }

    /// Checks a value of any kind and goes past it. `depth` counts the arrays and objects around it.
    pub(crate) fn skip_value(&mut self, depth: usize) -> Result<(), Fault> {
        self.skip_nested(depth, self.max_depth)
    }

    /// The same for data of a tensor, or a row of several, which may be as deep as any tensor's whatever the limit is.
    pub(crate) fn skip_data(&mut self) -> Result<(), Fault> {
        self.skip_nested(0, self.max_depth.max(MAX_RANK))
    }

    fn skip_nested(&mut self, depth: usize, max_depth: usize) -> Result<(), Fault> {
        match self.peek() {
            Some(b'{' | b'[') if depth >= max_depth => Err(Fault::TooDeep),
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number().map(drop),
            Some(b'{') => {
                self.advance();
                let mut first = true;
                while self.member(first)?.is_some() {
                    self.skip_nested(depth + 1, max_depth)?;
                    first = false;
                }
                Ok(())
            }
            Some(b'[') => {
                self.advance();
                let mut first = true;
                while self.item(first)? {
                    self.skip_nested(depth + 1, max_depth)?;
                    first = false;
                }
                Ok(())
            }
            Some(b't') if self.take_word("true") => Ok(()),
            Some(b'f') if self.take_word("false") => Ok(()),
            Some(b'n') if self.take_word("null") => Ok(()),
            Some(b'N' | b'I') => Err(Fault::NotFinite),
            Some(_) => Err(Fault::Value),
            None => Err(Fault::End),
        }
    }
}
