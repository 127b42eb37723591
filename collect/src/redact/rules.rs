//! JSON pointers, and which of them lead to where a reader stands.

/// What a rule does with what it points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Allow,
    Deny,
    Hash,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Any,
    Name(String),
}

#[derive(Clone, Debug)]
struct Rule {
    tokens: Vec<Token>,
    action: Action,
}

/// Numbers of rules: those whose beginnings are the way to where a reader stands.
pub(super) type Matching = Vec<u16>;

/// All rules of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules(Vec<Rule>);

/// Longest pointer, bytes.
const MAX_POINTER: usize = 1024;

impl Rules {
    /// Reads a pointer: RFC 6901, and `*` for each element or member.
    pub(super) fn add(&mut self, pointer: &str, action: Action) -> Result<(), String> {
        if pointer.len() > MAX_POINTER {
            return Err(format!("a pointer has {} bytes, {MAX_POINTER} are the most", pointer.len()));
        }
        let mut tokens = Vec::new();
        let mut parts = pointer.split('/');
        if parts.next() != Some("") {
            return Err(format!("`{pointer}` is no JSON pointer: it begins with `/`, as in `/data/*/name`"));
        }
        for part in parts {
            let valid = part.replace("~0", "").replace("~1", "");
            if valid.contains('~') {
                return Err(format!("`{pointer}` is no JSON pointer: `~` is `~0` in one, and `/` is `~1`"));
            }
            let name = part.replace("~1", "/").replace("~0", "~");
            tokens.push(if part == "*" { Token::Any } else { Token::Name(name) });
        }
        self.0.push(Rule { tokens, action });
        Ok(())
    }

    /// The same for cells: what points at each row, or at a row by its number, points at the column.
    pub(super) fn for_cells(&self) -> Self {
        let of_cell = |rule: &Rule| {
            let is_row = |token: &Token| match token {
                Token::Any => true,
                Token::Name(name) => !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()),
            };
            let mut rule = rule.clone();
            if rule.tokens.len() > 1 && rule.tokens.first().is_some_and(is_row) {
                rule.tokens.remove(0);
            }
            rule
        };
        Self(self.0.iter().map(of_cell).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn all(&self) -> Matching {
        (0..self.0.len() as u16).collect()
    }

    pub(super) fn has(&self, action: Action) -> bool {
        self.0.iter().any(|rule| rule.action == action)
    }

    fn of<'a>(&'a self, matching: &'a [u16]) -> impl Iterator<Item = &'a Rule> {
        matching.iter().filter_map(|number| self.0.get(usize::from(*number)))
    }

    /// Those that lead on to a member, or an element, of a value `depth` deep.
    pub(super) fn step(&self, matching: &[u16], depth: usize, name: &str) -> Matching {
        let leads = |number: &u16| {
            let token = self.0.get(usize::from(*number)).and_then(|rule| rule.tokens.get(depth));
            match token {
                Some(Token::Any) => true,
                Some(Token::Name(wanted)) => wanted == name,
                None => false,
            }
        };
        matching.iter().copied().filter(leads).collect()
    }

    /// Whether one points at just the value that is `depth` deep.
    pub(super) fn ends(&self, matching: &[u16], depth: usize, action: Action) -> bool {
        self.of(matching).any(|rule| rule.action == action && rule.tokens.len() == depth)
    }

    /// Whether there is one that points at it or into it.
    pub(super) fn leads(&self, matching: &[u16], action: Action) -> bool {
        self.of(matching).any(|rule| rule.action == action)
    }
}
