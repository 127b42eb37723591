//! Rewrites JSON.
//!
//! The document is known to be JSON before the first byte of it is looked at here, so that a value ends where it has to.

use std::borrow::Cow;

use serde::de::IgnoredAny;

use super::rules::{Action, Matching, Rules};
use super::{Redactor, Unreadable};

/// Deepest document.
const DEPTH: usize = 128;

/// Appends a document without what must not be in it. `matching` are the rules that lead to its root, which is `depth` of their parts deep.
pub(super) fn rewrite(
    redactor: &Redactor,
    rules: &Rules,
    matching: Matching,
    depth: usize,
    document: &[u8],
    to: &mut Vec<u8>,
) -> Result<(), Unreadable> {
    let text = str::from_utf8(document).map_err(|_| Unreadable)?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|_| Unreadable)?;
    let mut walk = Walk { redactor, rules, text, at: 0, to };
    let all = !rules.has(Action::Allow);
    if !walk.value(&matching, depth, all, DEPTH)? {
        walk.to.extend_from_slice(b"null");
    }
    Ok(())
}

struct Walk<'a> {
    redactor: &'a Redactor,
    rules: &'a Rules,
    text: &'a str,
    at: usize,
    to: &'a mut Vec<u8>,
}

impl<'a> Walk<'a> {
    /// The next byte that is none of space.
    fn peek(&mut self) -> Result<u8, Unreadable> {
        loop {
            match self.text.as_bytes().get(self.at) {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                Some(byte) => return Ok(*byte),
                None => return Err(Unreadable),
            }
        }
    }

    /// Goes past a byte that has been peeked at.
    fn pass(&mut self) {
        self.at += 1;
    }

    /// The text of a string, number or word, as it is written.
    fn scalar(&mut self) -> Result<&'a str, Unreadable> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        if bytes.get(start) == Some(&b'"') {
            let mut escaped = false;
            let inside = bytes.get(start + 1..).ok_or(Unreadable)?;
            let ends = |byte: &u8| {
                let ends = *byte == b'"' && !escaped;
                escaped = *byte == b'\\' && !escaped;
                ends
            };
            let length = inside.iter().position(ends).ok_or(Unreadable)?;
            self.at = start + length + 2;
        } else {
            let rest = bytes.get(start..).ok_or(Unreadable)?;
            let ends = |byte: &u8| matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r' | b':');
            self.at = start + rest.iter().position(ends).unwrap_or(rest.len());
        }
        self.text.get(start..self.at).filter(|text| !text.is_empty()).ok_or(Unreadable)
    }

    /// Goes past a value; its text.
    fn skip(&mut self) -> Result<&'a str, Unreadable> {
        self.peek()?;
        let (start, mut open) = (self.at, 0_usize);
        loop {
            match self.peek()? {
                b'[' | b'{' => {
                    open += 1;
                    self.pass();
                }
                b']' | b'}' => {
                    open = open.checked_sub(1).ok_or(Unreadable)?;
                    self.pass();
                }
                b',' | b':' => self.pass(),
                _ => {
                    self.scalar()?;
                }
            }
            if open == 0 {
                return self.text.get(start..self.at).ok_or(Unreadable);
            }
        }
    }

    /// Appends a value, or nothing, which it says. `allowed`: all of it may be seen.
    fn value(
        &mut self,
        matching: &Matching,
        depth: usize,
        allowed: bool,
        left: usize,
    ) -> Result<bool, Unreadable> {
        let left = left.checked_sub(1).ok_or(Unreadable)?;
        let first = self.peek()?;
        let rules = self.rules;
        let allowed = allowed || rules.ends(matching, depth, Action::Allow);
        let is_container = matches!(first, b'[' | b'{');
        let seen = allowed || is_container && rules.leads(matching, Action::Allow);
        if !seen || rules.ends(matching, depth, Action::Deny) {
            self.skip()?;
            return Ok(false);
        }
        if rules.ends(matching, depth, Action::Hash) {
            let raw = self.skip()?;
            let text = if first == b'"' { decoded(raw)? } else { Cow::Borrowed(raw) };
            let hash = self.redactor.hash(&text);
            self.string(&hash);
            return Ok(true);
        }
        match first {
            b'{' => self.object(matching, depth, allowed, left)?,
            b'[' => self.array(matching, depth, allowed, left)?,
            b'"' => {
                let raw = self.scalar()?;
                let text = decoded(raw)?;
                match self.redactor.value(&text) {
                    Cow::Borrowed(_) => self.to.extend_from_slice(raw.as_bytes()),
                    Cow::Owned(text) => self.string(&text),
                }
            }
            _ => {
                let raw = self.scalar()?;
                match self.redactor.text(raw) {
                    Cow::Borrowed(_) => self.to.extend_from_slice(raw.as_bytes()),
                    Cow::Owned(text) => self.string(&text),
                }
            }
        }
        Ok(true)
    }

    fn object(
        &mut self,
        matching: &Matching,
        depth: usize,
        allowed: bool,
        left: usize,
    ) -> Result<(), Unreadable> {
        self.pass();
        self.to.push(b'{');
        let mut is_first = true;
        while self.peek()? != b'}' {
            if self.peek()? == b',' {
                self.pass();
                self.peek()?;
            }
            let raw = self.scalar()?;
            let name = decoded(raw)?;
            if self.peek()? != b':' {
                return Err(Unreadable);
            }
            self.pass();
            let before = self.to.len();
            if !is_first {
                self.to.push(b',');
            }
            match self.redactor.text(&name) {
                Cow::Borrowed(_) => self.to.extend_from_slice(raw.as_bytes()),
                Cow::Owned(name) => self.string(&name),
            }
            self.to.push(b':');
            let inner = self.rules.step(matching, depth, &name);
            if self.value(&inner, depth + 1, allowed, left)? {
                is_first = false;
            } else {
                self.to.truncate(before);
            }
        }
        self.pass();
        self.to.push(b'}');
        Ok(())
    }

    /// Elements that are left out are `null`, so that the others keep their places.
    fn array(
        &mut self,
        matching: &Matching,
        depth: usize,
        allowed: bool,
        left: usize,
    ) -> Result<(), Unreadable> {
        self.pass();
        self.to.push(b'[');
        let mut index = 0_usize;
        while self.peek()? != b']' {
            if self.peek()? == b',' {
                self.pass();
            }
            if index > 0 {
                self.to.push(b',');
            }
            let inner = if matching.is_empty() {
                Matching::new()
            } else {
                self.rules.step(matching, depth, &index.to_string())
            };
            if !self.value(&inner, depth + 1, allowed, left)? {
                self.to.extend_from_slice(b"null");
            }
            index += 1;
        }
        self.pass();
        self.to.push(b']');
        Ok(())
    }

    fn string(&mut self, text: &str) {
        crate::layout::events::push_string(self.to, text);
    }
}

/// What a string says.
fn decoded(raw: &str) -> Result<Cow<'_, str>, Unreadable> {
    let inner = raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')).ok_or(Unreadable)?;
    if !inner.contains('\\') {
        return Ok(Cow::Borrowed(inner));
    }
    serde_json::from_str(raw).map(Cow::Owned).map_err(|_| Unreadable)
}
