//! How deep code is nested, as libtorch's parser and compiler see it: they call themselves for each bracket in a bracket, and for each operator that takes
//! what another one gives, so that a line of a hundred thousand minus signs overflows the stack as well.

/// The operators that have words for names.
const WORDS: &[&[u8]] = &[b"not", b"and", b"or", b"if", b"else", b"in", b"is"];

/// What is within a bracket, or outside of all.
#[derive(Clone, Copy, Default)]
struct Level {
    /// Operators since the last comma.
    operators: usize,
    /// The most that is nested in a bracket since then.
    inner: usize,
    /// The most between two commas before.
    before: usize,
}

impl Level {
    /// Operators may take each other's results, and what is in any of the brackets.
    fn nesting(self) -> usize {
        self.before.max(self.operators + self.inner)
    }
}

/// Names with full stops between them.
#[derive(Default)]
struct Names {
    /// What comes before.
    before: u8,
    /// Whether the first of them is of what is in brackets.
    is_outside: bool,
    count: usize,
}

/// The most of brackets, operators and blocks that are in each other; no more is found out than that it is more than `limit`.
pub(crate) fn nesting(source: &str, limit: usize) -> usize {
    let (mut level, mut around) = (Level::default(), Vec::new());
    let (mut names, mut most, mut branches) = (Names::default(), 0, 0);
    let mut rest = source.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let mut next = after;
        match byte {
            b'#' => next = skip(after, |byte| byte != b'\n'),
            b'"' | b'\'' => next = string(rest),
            b'(' | b'[' | b'{' => {
                around.push(std::mem::take(&mut level));
                if around.len() > limit {
                    return around.len();
                }
            }
            b')' | b']' | b'}' => level = closed(level, &mut around),
            b',' => level = Level { before: level.nesting(), ..Level::default() },
            b'\n' if around.is_empty() => most = most.max(std::mem::take(&mut level).nesting()),
            b'-' | b'+' | b'*' | b'/' | b'%' | b'@' | b'~' | b'|' | b'&' | b'^' | b'<' | b'>' | b'=' => {
                level.operators += 1;
            }
            // An attribute of what is in brackets is around that; the names of `torch.nn.functional` are in nothing.
            b'.' => {
                names.is_outside |= matches!(names.before, b')' | b']' | b'}');
                level.operators += usize::from(names.is_outside);
                names.count += 1;
                most = most.max(names.count);
            }
            byte if is_word(*byte) => {
                next = skip(after, is_word);
                let word = rest.get(..rest.len() - next.len()).unwrap_or_default();
                level.operators += usize::from(WORDS.contains(&word));
                branches += usize::from(word == b"elif");
            }
            _ => {}
        }
        if !(is_word(*byte) || matches!(byte, b'.' | b' ')) {
            names = Names::default();
        }
        if *byte != b' ' {
            names.before = *byte;
        }
        rest = next;
    }
    while !around.is_empty() {
        level = closed(level, &mut around);
    }
    let blocks = source.lines().map(|line| (line.len() - line.trim_start().len()) / 2);
    most.max(level.nesting()).max(branches).max(blocks.max().unwrap_or_default())
}

/// What is around a bracket, with that in it; itself where nothing is, which libtorch refuses.
fn closed(level: Level, around: &mut Vec<Level>) -> Level {
    match around.pop() {
        Some(outer) => Level { inner: outer.inner.max(level.nesting() + 1), ..outer },
        None => level,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn skip(bytes: &[u8], is_skipped: impl Fn(u8) -> bool) -> &[u8] {
    let end = bytes.iter().position(|byte| !is_skipped(*byte));
    bytes.get(end.unwrap_or(bytes.len())..).unwrap_or_default()
}

/// What follows the text that begins here, with one quotation mark or three.
fn string(bytes: &[u8]) -> &[u8] {
    let mark = bytes.first().map_or(0, |first| *first);
    let marks = if bytes.starts_with(&[mark; 3]) { 3 } else { 1 };
    let mut rest = bytes.get(marks..).unwrap_or_default();
    while let Some((byte, after)) = rest.split_first() {
        if rest.starts_with(&[mark; 3][..marks]) {
            return rest.get(marks..).unwrap_or_default();
        }
        rest = match byte {
            b'\\' => after.get(1..).unwrap_or_default(),
            // None goes on there, and libtorch refuses it.
            b'\n' if marks == 1 => return rest,
            _ => after,
        };
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_operators_and_blocks_count() {
        let check = |source: &str, expected| assert_eq!(nesting(source, 9), expected, "{source}");
        check("x", 0);
        check("f(x)\ng(x)", 1);
        check("f(g(h[x]), g(h(x)))", 3);
        check("--x", 2);
        check("x + x + x", 2);
        check("(x + (y + z)) + x", 5);
        check("[-1, -2, -3, 0.5, 1e-05]", 2);
        check("f(-x,\n  -y +\n  z)", 3);
        check("not not x", 2);
        check("x if a else y if b else z", 4);
        check("nothing, android, notes", 0);
        check("if x:\n  if y:\n    if z:\n      pass", 3);
        check("elif a:\nelif b:\nelif c:", 3);
        check("a.b.c(x)", 2);
        check("a.b(a.b(a.b(x)))", 3);
        check("((x).a.b).c", 5);
        check("x.t().t() .t()", 3);
        check("f((x).a, (y).b)", 3);
        check("a - b\nc - d\n", 1);
        // What is in a text or a comment is neither.
        check("\"((((\"", 0);
        check("(\"))\" + (x))", 3);
        check("('\\')' + (x))", 3);
        check("(\"\"\"))\n\"\"\" + (x))", 3);
        check("( # ))\n(x))", 2);
        check("\")\n(((", 3);
        check("))))((", 2);
        check("((((((((((((((", 10);
    }
}
