//! Compares an answer with what a vector expects.

use std::collections::BTreeSet;

use serde_json::Value;

use super::client::Answer;
use super::data::{Expectation, header};

/// What is wrong with an answer, a line for each; `None` stands for a connection that closed without one.
pub(super) fn compare(expected: &Expectation, answer: Option<&Answer>) -> Vec<String> {
    let closed = expected.closed == Some(true);
    let Some(answer) = answer else {
        return if closed { Vec::new() } else { vec!["the connection closed without an answer".into()] };
    };
    let mut wrong = Vec::new();
    if closed {
        wrong.push("expected no answer".to_owned());
    }
    if let Some(status) = expected.status.filter(|status| *status != answer.status) {
        wrong.push(format!("status {}, expected {status}", answer.status));
    }
    headers(expected, answer, &mut wrong);
    body(expected, answer, &mut wrong);
    if !wrong.is_empty() {
        wrong.push(format!("the answer: {} {:?} {}", answer.status, answer.headers, cut(&text(answer))));
    }
    wrong
}

fn headers(expected: &Expectation, answer: &Answer, wrong: &mut Vec<String>) {
    let mut names: Vec<String> =
        expected.headers.iter().map(|line| header(line).0.to_ascii_lowercase()).collect();
    names.dedup();
    for name in names {
        let wanted = expected.headers.iter().map(|line| header(line));
        let wanted: Vec<&str> =
            wanted.filter(|(other, _)| other.eq_ignore_ascii_case(&name)).map(|(_, value)| value).collect();
        let got = answer.values(&name);
        let same = wanted.len() == got.len()
            && wanted.iter().zip(&got).all(|(wanted, got)| value_matches(wanted, got, answer));
        if !same {
            wrong.push(format!("{name}: {got:?}, expected {wanted:?}"));
        }
    }
    for name in expected.absent.iter().filter(|name| !answer.values(name).is_empty()) {
        wrong.push(format!("{name}: {:?}, expected none", answer.values(name)));
    }
}

fn body(expected: &Expectation, answer: &Answer, wrong: &mut Vec<String>) {
    if let Some(wanted) = expected.bytes().filter(|wanted| **wanted != *answer.body) {
        let wanted = String::from_utf8_lossy(&wanted).into_owned();
        wrong.push(format!("body {}, expected {}", cut(&text(answer)), cut(&wanted)));
    }
    if let Some(pattern) = expected.matches.as_ref().filter(|pattern| !glob(pattern, &text(answer))) {
        wrong.push(format!("body {}, expected {pattern}", cut(&text(answer))));
    }
    let message = expected.message.as_ref().map(|text| serde_json::json!({ "message": text }));
    if expected.json.is_none() && message.is_none() && expected.pointers.is_empty() {
        return;
    }
    let Ok(got) = serde_json::from_slice::<Value>(&answer.body) else {
        wrong.push("the body is not JSON".into());
        return;
    };
    let json = expected.json.as_ref();
    let json = json.map(|text| serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}")));
    if let Some(wanted) = json.or(message).filter(|wanted| *wanted != got) {
        wrong.push(format!("JSON {}, expected {wanted}", cut(&got.to_string())));
    }
    for (pointer, wanted) in &expected.pointers {
        let got = got.pointer(pointer);
        let same = match wanted.as_str() {
            Some("<absent>") => got.is_none(),
            Some("<any>") => got.is_some(),
            _ => got == Some(wanted),
        };
        if !same {
            let got = got.map_or("nothing".into(), Value::to_string);
            wrong.push(format!("{pointer}: {}, expected {wanted}", cut(&got)));
        }
    }
}

/// Whether a header's value is the expected one, or of the expected kind.
fn value_matches(wanted: &str, got: &str, answer: &Answer) -> bool {
    match wanted {
        "<any>" => true,
        "<uuid>" => is_uuid(got),
        "<ms>" => is_milliseconds(got),
        _ => {
            let after = |word: &str| wanted.strip_prefix(word)?.strip_suffix('>');
            if let Some(other) = after("<as ") {
                answer.values(other) == [got]
            } else if let Some(pattern) = after("<like ") {
                glob(pattern, got)
            } else if let Some(members) = after("<set ") {
                let set =
                    |text: &str| text.split(',').map(|item| item.trim().to_owned()).collect::<BTreeSet<_>>();
                set(members) == set(got)
            } else {
                wanted == got
            }
        }
    }
}

/// A random UUID (version 4) in its usual form.
fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && text.chars().all(|c| c == '-' || matches!(c, '0'..='9' | 'a'..='f'))
        && groups[2].starts_with('4')
}

/// A number with three decimals.
fn is_milliseconds(text: &str) -> bool {
    text.split_once('.').is_some_and(|(whole, decimals)| {
        !whole.is_empty()
            && decimals.len() == 3
            && whole.chars().chain(decimals.chars()).all(|c| c.is_ascii_digit())
    })
}

/// Whether all of `text` matches; `*` stands for any text, the empty one too.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let end = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(end)
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// So much of a text as a line of a report bears.
fn cut(text: &str) -> String {
    const LONGEST: usize = 400;
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{:?}...", &text[..at]),
        None => format!("{text:?}"),
    }
}

#[test]
fn kinds_of_values() {
    assert!(is_uuid("3f2b8f4e-6c1d-4a7b-9e0f-112233445566"));
    assert!(!is_uuid("3f2b8f4e-6c1d-1a7b-9e0f-112233445566"), "version 1");
    assert!(!is_uuid("x"));
    assert!(is_milliseconds("0.012") && !is_milliseconds("0.01") && !is_milliseconds("1e-2"));
    assert!(glob("a*c", "abc") && !glob("a*c", "abd") && glob("*", ""));
}
