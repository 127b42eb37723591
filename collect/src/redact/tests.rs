use std::time::SystemTime;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::settings::Pattern;

const SALT: &str = "0123456789abcdef";

fn redaction(allow: &[&str], deny: &[&str], hash: &[&str]) -> Redaction {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    Redaction {
        allow: texts(allow),
        deny: texts(deny),
        hash: texts(hash),
        salt: Some(SALT.into()),
        ..Default::default()
    }
}

fn with_pattern(regex: &str, with: Replacement) -> Redaction {
    Redaction {
        patterns: vec![Pattern { regex: regex.into(), with }],
        salt: Some(SALT.into()),
        ..Default::default()
    }
}

fn redacted(of: &Redaction, document: &str) -> Result<String, Unreadable> {
    let redactor = Redactor::new(of).expect("rules");
    let mut to = Vec::new();
    redactor.json(document.as_bytes(), &mut to).map(|()| String::from_utf8(to).expect("text"))
}

fn check(of: &Redaction, document: &str, expected: &str) {
    assert_eq!(redacted(of, document).as_deref(), Ok(expected), "{document}");
}

#[test]
fn what_is_denied_is_left_out() {
    let deny = redaction(&[], &["/data/*/ssn", "/secret", "/list/1"], &[]);
    check(
        &deny,
        r#" { "secret" : {"a":[1]}, "data":[{"ssn":"1","x":1.50},{"x":2,"ssn":{"y":"}]"}}], "list":[1, 2 ,3] } "#,
        r#"{"data":[{"x":1.50},{"x":2}],"list":[1,null,3]}"#,
    );
    check(&deny, r#"{"secret":1}"#, "{}");
    check(&deny, "7", "7");
    check(&redaction(&[], &[""], &[]), r#"{"a":1}"#, "null");
    check(&redaction(&[], &["/a~1b/~0"], &[]), r#"{"a/b":{"~":1,"c":2}}"#, r#"{"a/b":{"c":2}}"#);
}

#[test]
fn a_member_cannot_hide_behind_how_it_is_written_or_that_it_is_there_twice() {
    let deny = redaction(&[], &["/ssn"], &[]);
    check(&deny, r#"{"\u0073sn":1,"ssn":2,"a":3,"ssn":4}"#, r#"{"a":3}"#);
}

#[test]
fn only_what_is_allowed_is_kept() {
    let allow = redaction(&["/data/*/x", "/id"], &["/data/*/x/y"], &[]);
    check(
        &allow,
        r#"{"id":7,"name":"n","data":[{"x":{"y":1,"z":2},"w":3},5],"more":[[1]]}"#,
        r#"{"id":7,"data":[{"x":{"z":2}},null]}"#,
    );
    check(&allow, "5", "null");
}

#[test]
fn equal_values_have_equal_hashes_under_one_salt() {
    let hash = redaction(&[], &[], &["/*/name"]);
    let text =
        redacted(&hash, r#"[{"name":"Ann"},{"name":"\u0041nn"},{"name":"Bob"},{"name":[1]}]"#).expect("JSON");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    let name = |nth: usize| value[nth]["name"].as_str().expect("a text").to_owned();
    assert_eq!(name(0), name(1));
    assert!(name(0) != name(2) && name(0).starts_with("hash:") && name(0).len() == 37);
    let other = Redaction { salt: Some("another salt, of 16 or more".into()), ..hash };
    assert!(!redacted(&other, r#"[{"name":"Ann"}]"#).expect("JSON").contains(&name(0)));
}

#[test]
fn patterns_are_looked_for_in_texts_names_and_numbers() {
    let digits = with_pattern(r"\d{12,}", Replacement::Text("$0".into()));
    check(
        &digits,
        r#"{"card 411111111111":"a 411111111111 b","n":411111111111,"m":[1.5,true,null,"4\u0031111111111111"]}"#,
        r#"{"card $0":"a $0 b","n":"$0","m":[1.5,true,null,"$0"]}"#,
    );
    let hash = with_pattern("[a-z]+@[a-z.]+", Replacement::Hash);
    let text = redacted(&hash, r#"["to ann@example.com"]"#).expect("JSON");
    assert!(text.starts_with("[\"to hash:") && !text.contains('@'));
}

#[test]
fn long_texts_are_cut_by_characters() {
    let cut = Redaction { text_chars: Some(3), ..Default::default() };
    check(&cut, r#"{"longer":"äöüß","b":"abc"}"#, r#"{"longer":"äöü…","b":"abc"}"#);
}

fn of_record(of: &Redaction, kind: Option<&str>, data: &[u8]) -> Result<Record, Unreadable> {
    let mut record = Record::new("ann@example.com", SystemTime::UNIX_EPOCH, Bytes::copy_from_slice(data));
    record.content_type = kind.map(|kind| kind.to_owned().into());
    record.path = Some("/score?user=ann@example.com".into());
    record.attributes =
        vec![("agent".into(), "ann@example.com".into()), ("ann@example.com".into(), "x".into())];
    Redactor::new(of).expect("rules").record(&mut record).map(|()| record)
}

#[test]
fn what_cannot_be_looked_at_is_not_written() {
    let deny = redaction(&[], &["/a"], &[]);
    let pattern = with_pattern("x", Replacement::Text(String::new()));
    for bad in [&b"{"[..], b"{\"a\":1}}", b"\xff", b"nul", b"{\"b\":\"\\ud800\"}", b"a=1"] {
        assert_eq!(of_record(&deny, None, bad).map(|_| ()), Err(Unreadable), "{bad:?}");
        assert_eq!(
            of_record(&pattern, Some("application/json"), bad).map(|_| ()),
            Err(Unreadable),
            "{bad:?}"
        );
    }
    // Where no rule needs JSON, text will do; what is neither will not.
    assert!(of_record(&pattern, Some("text/plain"), b"a=1").is_ok());
    assert_eq!(of_record(&pattern, Some("image/png"), b"\xff\xd8").map(|_| ()), Err(Unreadable));
    assert_eq!(of_record(&deny, Some("text/plain"), b"a=1").map(|_| ()), Err(Unreadable));
    let small = Redaction { data_bytes: 4, ..deny.clone() };
    assert_eq!(of_record(&small, None, b"[1,2]").map(|_| ()), Err(Unreadable));
    let deep = [b"[".repeat(4000), b"]".repeat(4000)].concat();
    assert_eq!(of_record(&deny, None, &deep).map(|_| ()), Err(Unreadable));
    // Without rules anything goes through as it is.
    assert!(of_record(&Redaction::default(), None, b"\xff").is_ok_and(|record| &record.data[..] == b"\xff"));
}

#[test]
fn what_stands_beside_the_data_is_looked_at_too() {
    let pattern = with_pattern("[a-z]+@[a-z.]+", Replacement::Text("*".into()));
    let record = of_record(&pattern, Some("text/plain; charset=utf-8"), b"by ann@example.com").expect("text");
    assert_eq!((&record.data[..], &*record.request_id), (&b"by *"[..], "*"));
    assert_eq!(record.path.as_deref(), Some("/score?user=*"));
    assert_eq!(record.attributes, [("agent".into(), "*".into())]);
}

#[test]
fn what_is_percent_encoded_is_looked_at_as_what_it_says() {
    let pattern = with_pattern("[a-z]+@[a-z.]+|[0-9]{4} [0-9]{4}", Replacement::Text("*".into()));
    let with_path = |path: &str, kind: Option<&str>, data: &str| {
        let mut record = Record::new("r", SystemTime::UNIX_EPOCH, Bytes::copy_from_slice(data.as_bytes()));
        record.content_type = kind.map(|kind| kind.to_owned().into());
        record.path = Some(path.to_owned().into());
        record.attributes = vec![("agent".into(), path.into())];
        Redactor::new(&pattern).expect("rules").record(&mut record).expect("it can be looked at");
        assert_eq!(record.path.as_deref(), Some(&*record.attributes[0].1));
        (record.path.expect("a path").to_string(), String::from_utf8(record.data.to_vec()).expect("text"))
    };
    let path = |path: &str| with_path(path, None, "").0;
    assert_eq!(path("/score?user=ann%40example.com&x=%20"), "/score?user=*&x= ");
    assert_eq!(path("/score?user=ann%2540example.com"), "/score?user=*");
    assert_eq!(path("/score?card=1234+5678"), "/score?card=*");
    assert_eq!(path("/score?x=%20&y=a+b"), "/score?x=%20&y=a+b", "what has nothing stays as it was");
    assert_eq!(path("/score?x=%252525252540"), "***", "nobody writes that by accident");
    let form = with_path("/", Some("application/x-www-form-urlencoded"), "user=ann%40example.com&n=1");
    assert_eq!(form.1, "user=*&n=1");
}

#[test]
fn what_was_cut_may_have_a_half_at_its_end() {
    let pattern = with_pattern("[0-9]{12,}", Replacement::Text("*".into()));
    let cut = |of: &Redaction, data: &'static [u8]| {
        let mut record = Record::new("r", SystemTime::UNIX_EPOCH, Bytes::from_static(data));
        (record.content_type, record.cut) = (Some("text/plain".into()), true);
        Redactor::new(of).expect("rules").record(&mut record).map(|()| record.data)
    };
    assert_eq!(cut(&pattern, b"card 12345"), Err(Unreadable));
    let short = Redaction { text_chars: Some(3), ..Default::default() };
    assert_eq!(cut(&short, b"card 12345").as_deref(), Ok("car…".as_bytes()));
}

#[test]
fn what_folders_are_called_is_looked_at_too() {
    let pattern = with_pattern("ann", Replacement::Text("*".into()));
    let mut record = Record::new("r", SystemTime::UNIX_EPOCH, Bytes::new());
    record.table = Some(crate::record::Table {
        designation: crate::record::Designation::General,
        columns: Vec::new(),
        correlated: true,
        workspace: Some("s/g/ann".into()),
        service: Some("ann".into()),
        name: Some("of ann".into()),
    });
    Redactor::new(&pattern).expect("rules").texts(&mut record);
    let table = record.table.expect("it is there");
    let texts =
        [table.workspace, table.service, table.name].map(|text| text.expect("it is there").to_string());
    assert_eq!(texts, ["s/g/*", "*", "of *"]);
}

#[test]
fn a_uuid_is_replaced_as_a_whole_or_not_at_all() {
    let uuid = "12345678-1234-4321-8123-123456789012";
    let redactor = |regex| Redactor::new(&with_pattern(regex, Replacement::Text("*".into()))).expect("rules");
    let digits = redactor("[0-9]{4,}");
    assert_eq!(digits.identifier(uuid), uuid);
    assert_eq!(digits.identifier(&format!("card-44445555-{uuid}")), format!("card-*-{uuid}"));
    assert_eq!(digits.identifier(&format!("44445555{uuid}")), "*-*-*-*-*");
    assert_eq!(digits.identifier("44445555"), "*");
    assert_eq!(redactor("[0-9a-f-]{36}").identifier(&format!("ann-{uuid}")), "ann-*");
    assert_eq!(digits.identifier("\u{fc}2345678-1234-4321-8123-123456789012"), "\u{fc}*-*-*-*-*");
}

#[test]
fn columns_are_named_by_pointers() {
    let cell = |of: &Redaction, column: &str, json: &'static str| {
        Redactor::new(of).expect("rules").cell(column, json)
    };
    let kept = |json: &'static str| Ok(Cell::Kept(Cow::Borrowed(json)));
    let deny = redaction(&[], &["/name", "/*/age", "/0/zip", "/more/inner"], &[]);
    for column in ["name", "age", "zip"] {
        assert_eq!(cell(&deny, column, "1"), Ok(Cell::Dropped), "{column}");
    }
    assert_eq!(cell(&deny, "other", "1"), kept("1"));
    assert_eq!(cell(&deny, "more", r#"{"inner":1,"outer":2}"#), kept(r#"{"outer":2}"#));
    let allow = redaction(&["/*/x"], &[], &["/x"]);
    assert_eq!(cell(&allow, "y", "1"), Ok(Cell::Dropped));
    assert!(matches!(cell(&allow, "x", "1"), Ok(Cell::Kept(hash)) if hash.starts_with("\"hash:")));
}

#[test]
fn rules_that_are_wrong_are_refused() {
    let wrong = |of: &Redaction| Redactor::new(of).map(|_| ()).map_err(|(at, _)| at);
    assert_eq!(wrong(&redaction(&["a"], &[], &[])), Err("allow"));
    assert_eq!(wrong(&redaction(&[], &["/~2"], &[])), Err("deny"));
    assert_eq!(wrong(&Redaction { salt: None, ..redaction(&[], &[], &["/a"]) }), Err("salt"));
    assert_eq!(wrong(&with_pattern("(", Replacement::Hash)), Err("patterns"));
    assert_eq!(wrong(&with_pattern("a*", Replacement::Hash)), Err("patterns"));
    assert_eq!(wrong(&with_pattern("\\w{1000}{1000}", Replacement::Hash)), Err("patterns"));
}

fn documents() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-d]|.{0,3}", inner, 0..4).prop_map(|members| json!(members)),
        ]
    })
}

/// The same by another way: on the tree.
fn denied(value: &mut Value, way: &[&str]) {
    let Some((first, rest)) = way.split_first() else { return };
    match value {
        Value::Object(members) if rest.is_empty() => members.retain(|name, _| *first != "*" && name != first),
        Value::Object(members) => {
            members
                .iter_mut()
                .filter(|(name, _)| *first == "*" || name == first)
                .for_each(|(_, inner)| denied(inner, rest));
        }
        Value::Array(elements) => {
            let of = |index: usize| *first == "*" || *first == index.to_string();
            for (_, inner) in elements.iter_mut().enumerate().filter(|(index, _)| of(*index)) {
                if rest.is_empty() { *inner = Value::Null } else { denied(inner, rest) }
            }
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn without_rules_that_match_nothing_is_changed(document in documents()) {
        let text = document.to_string();
        let of = with_pattern("never in a text \u{1}\u{2}", Replacement::Hash);
        prop_assert_eq!(redacted(&of, &text), Ok(text));
    }

    #[test]
    fn denying_is_what_it_is_on_a_tree(
        mut document in documents(),
        way in prop::collection::vec(prop_oneof![Just("*"), Just("a"), Just("b"), Just("0"), Just("1")], 1..4),
    ) {
        let of = redaction(&[], &[&format!("/{}", way.join("/"))], &[]);
        let got: Value = serde_json::from_str(&redacted(&of, &document.to_string()).expect("JSON")).expect("JSON");
        denied(&mut document, &way);
        prop_assert_eq!(got, document);
    }

    #[test]
    fn anything_is_rewritten_as_json_or_refused(document in prop::collection::vec(any::<u8>(), 0..64)) {
        let redactor = Redactor::new(&redaction(&["/*"], &["/a"], &["/b"])).expect("rules");
        let mut to = Vec::new();
        if redactor.json(&document, &mut to).is_ok() {
            prop_assert!(serde_json::from_slice::<Value>(&to).is_ok());
        } else {
            prop_assert!(serde_json::from_slice::<Value>(&document).is_err() || document.contains(&b'\\'));
        }
    }
}
