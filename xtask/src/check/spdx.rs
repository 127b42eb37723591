//! SPDX licence expressions: whether one can be satisfied with the licences that are allowed.
//!
//! Grammar: SPDX specification 2.3, annex D, and the `/` that older crates write for `OR`.

use anyhow::{Result, bail};

/// Whether `expression` holds when exactly the licences for which `allowed` says so may be chosen.
///
/// `allowed` is asked for a licence with its exception (`Apache-2.0 WITH LLVM-exception`) and then for the licence
/// alone: an exception only ever permits more.
pub(crate) fn satisfied(expression: &str, allowed: &mut dyn FnMut(&str) -> bool) -> Result<bool> {
    let mut parser = Parser { tokens: tokens(expression), next: 0, allowed };
    let result = parser.any()?;
    match parser.peek() {
        None => Ok(result),
        Some(rest) => bail!("`{expression}` goes on with `{rest}` where it should end"),
    }
}

fn tokens(expression: &str) -> Vec<String> {
    let spaced = ['(', ')', '/']
        .iter()
        .fold(expression.to_owned(), |text, &sign| text.replace(sign, &format!(" {sign} ")));
    spaced.split_whitespace().map(|token| if token == "/" { "OR".into() } else { token.to_owned() }).collect()
}

struct Parser<'a> {
    tokens: Vec<String>,
    next: usize,
    allowed: &'a mut dyn FnMut(&str) -> bool,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&str> {
        self.tokens.get(self.next).map(String::as_str)
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.peek() == Some(token);
        self.next += usize::from(found);
        found
    }

    /// `a OR b`. Both sides are always read, so that every licence of a tree that is used is asked for.
    fn any(&mut self) -> Result<bool> {
        let mut result = self.all()?;
        while self.take("OR") {
            result |= self.all()?;
        }
        Ok(result)
    }

    /// `a AND b`, which binds closer.
    fn all(&mut self) -> Result<bool> {
        let mut result = self.one()?;
        while self.take("AND") {
            result &= self.one()?;
        }
        Ok(result)
    }

    /// A licence, with or without an exception, or an expression in parentheses.
    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let result = self.any()?;
            if !self.take(")") {
                bail!("`{}` lacks a closing parenthesis", self.tokens.join(" "));
            }
            return Ok(result);
        }
        let licence = self.name()?;
        if self.take("WITH") {
            let exception = self.name()?;
            return Ok((self.allowed)(&format!("{licence} WITH {exception}")) || (self.allowed)(&licence));
        }
        Ok((self.allowed)(&licence))
    }

    fn name(&mut self) -> Result<String> {
        match self.peek().filter(|token| !matches!(*token, "AND" | "OR" | "WITH" | "(" | ")")) {
            Some(name) => {
                let name = name.to_owned();
                self.next += 1;
                Ok(name)
            }
            None => bail!("`{}` lacks the name of a licence", self.tokens.join(" ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, expected: bool) {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0", "GPL-2.0 WITH Classpath-exception-2.0"];
        let result = satisfied(expression, &mut |licence| allowed.contains(&licence));
        assert_eq!(result.unwrap(), expected, "{expression}");
    }

    #[test]
    fn one_licence() {
        check("MIT", true);
        check("GPL-3.0-only", false);
        check("mit", false);
        check("(MIT)", true);
    }

    #[test]
    fn any_and_all() {
        check("GPL-3.0-only OR MIT", true);
        check("MIT/GPL-3.0-only", true);
        check("GPL-3.0-only / LGPL-2.1", false);
        check("MIT AND GPL-3.0-only", false);
        check("(MIT OR Apache-2.0) AND Unicode-3.0", true);
        check("(MIT OR Apache-2.0) AND BSD-4-Clause", false);
        // AND binds closer than OR.
        check("MIT OR GPL-3.0-only AND GPL-2.0-only", true);
        check("(MIT OR GPL-3.0-only) AND GPL-2.0-only", false);
        check("GPL-2.0-only AND GPL-3.0-only OR MIT", true);
    }

    #[test]
    fn exceptions() {
        check("Apache-2.0 WITH LLVM-exception", true);
        check("GPL-2.0 WITH Classpath-exception-2.0", true);
        check("GPL-2.0", false);
        check("GPL-3.0 WITH Classpath-exception-2.0", false);
        check("GPL-3.0 WITH GCC-exception-3.1 OR MIT", true);
    }

    #[test]
    fn what_is_no_expression() {
        for expression in
            ["", "OR", "MIT OR", "MIT AND AND MIT", "(MIT", "MIT)", "MIT Apache-2.0", "MIT WITH", "()"]
        {
            assert!(satisfied(expression, &mut |_| true).is_err(), "{expression}");
        }
    }
}
