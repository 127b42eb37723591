//! Texts that name storage, and that may hold secrets: what is shown has none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::Input;
use outrigger_store::{LocationText, fuzzing};

const SECRET: &str = "hush-hush";

fuzz_target!(|data: &[u8]| {
    let Some(text) = Input(data).text() else { return };
    let shown = fuzzing::scrubbed(text);
    assert_eq!(fuzzing::scrubbed(&shown), shown, "it is clean already");
    // The fields of a connection string and of a file are parts of it.
    for (name, value) in fuzzing::connection_string(text) {
        assert!(text.contains(&format!("{name}={value}")));
    }
    let (name, file) = text.split_once('\n').unwrap_or(("default", text));
    for (_, value) in fuzzing::profile(file, name) {
        assert!(file.contains(&value) && value.trim() == value);
    }
    // Where one text is part of a URL, its secrets are none of it.
    let plain = |c: char| {
        c.is_alphanumeric() || matches!(c, '-' | '.' | '_' | '~' | '%' | '+' | '=' | ':' | '@' | '/')
    };
    if text.chars().all(plain) && !text.contains("://") && !text.contains(SECRET) {
        let host = text.split('/').next().unwrap_or_default();
        for url in [
            format!("https://me:{SECRET}@{host}/models"),
            format!("http://{SECRET}@{host}/models"),
            format!("https://{host}/models?sig={SECRET}"),
            format!("az://{host}/{text}?sv=1&sig={SECRET}"),
            format!("s3://key:{SECRET}@{host}/models"),
        ] {
            let shown = LocationText::new(&url).to_string();
            assert!(!shown.contains(SECRET), "{url} is shown as {shown}");
        }
    }
});
