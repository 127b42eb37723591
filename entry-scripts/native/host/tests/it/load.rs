//! Libraries that cannot be used: each is an error that names the path and says what to do.

use std::path::Path;

use outrigger_native::{InProcess, LoadError, Settings};

use crate::support::{Parts, compile};

fn refused(path: &Path) -> LoadError {
    InProcess::start(path, Settings::default(), |_, _| {}).expect_err("it is refused")
}

fn refused_parts(parts: Parts<'_>) -> LoadError {
    let compiled = compile(parts);
    let error = refused(&compiled.path);
    assert!(error.to_string().contains(compiled.path.to_str().unwrap()), "{error}");
    error
}

#[test]
fn what_is_not_there_or_no_library() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no.so");
    let missing = refused(&path);
    assert!(matches!(missing, LoadError::Missing { .. }), "{missing}");
    std::fs::write(&path, "text").unwrap();
    let text = refused(&path);
    assert!(matches!(&text, LoadError::Open { .. }), "{text}");
    assert!(text.to_string().contains("build it as a shared library"), "{text}");
}

#[test]
fn what_links_to_nothing_is_refused_at_once_and_not_when_it_is_called() {
    let run = "int32_t nowhere(void); RUN { return nowhere(); }";
    let error = refused_parts(Parts { run, ..Parts::default() });
    assert!(matches!(error, LoadError::Open { .. }) && error.to_string().contains("nowhere"), "{error}");
}

#[test]
fn missing_and_null_functions() {
    let symbol = |parts| match refused_parts(parts) {
        LoadError::Symbol { symbol, .. } => symbol,
        error => panic!("{error}"),
    };
    assert_eq!(symbol(Parts { abi: "", ..Parts::default() }), "outrigger_script_abi");
    assert_eq!(symbol(Parts { init: "", ..Parts::default() }), "outrigger_script_init");
    assert_eq!(symbol(Parts { run: "", ..Parts::default() }), "outrigger_script_run");
    assert_eq!(symbol(Parts { shutdown: "", ..Parts::default() }), "outrigger_script_shutdown");
    let null = r#"__asm__(".globl outrigger_script_run\n.set outrigger_script_run, 0");"#;
    assert_eq!(symbol(Parts { run: null, ..Parts::default() }), "outrigger_script_run");
}

#[test]
fn other_versions() {
    let version = |value: &str| {
        let abi = format!("uint32_t outrigger_script_abi(void) {{ return {value}; }}");
        match refused_parts(Parts { abi: &abi, ..Parts::default() }) {
            LoadError::Version { expected, actual, .. } => (expected, actual),
            error => panic!("{error}"),
        }
    };
    assert_eq!(version("0"), ("1.0".into(), "0.0".into()));
    assert_eq!(version("OUTRIGGER_ABI + 1"), ("1.0".into(), "1.1".into()));
    assert_eq!(version("0xffffffff"), ("1.0".into(), "65535.65535".into()));
}

#[test]
fn an_init_that_fails_or_breaks_the_abi() {
    let with = |body: &str| {
        let init = format!("INIT {{ {body} }}");
        refused_parts(Parts { init: &init, ..Parts::default() })
    };
    let message = |error| match error {
        LoadError::Init { message, .. } => message,
        error => panic!("{error}"),
    };
    let broken = |error| match error {
        LoadError::Broken { what, .. } => what,
        error => panic!("{error}"),
    };
    assert_eq!(message(with("return fail(message, \"no model\", OUTRIGGER_CODE_FAILED);")), "no model");
    assert_eq!(message(with("return -7;")), "code -7, and it does not say why");
    // More than there is room for is not read.
    let long = "memset(message->data, 'x', message->capacity); message->len = SIZE_MAX; return 1;";
    assert_eq!(message(with(long)), "x".repeat(16384));
    assert_eq!(message(with("message->data[0] = 0xff; message->len = 1; return 1;")), "\u{fffd}");
    assert_eq!(broken(with("script->size = 8; return 0;")), "it changed the size of its answer");
    assert_eq!(broken(with("script->flags = 2; return 0;")), "it set flags that the ABI does not have");
    assert_eq!(
        broken(with("script->methods = 16; return 0;")),
        "it names methods that the ABI does not have"
    );
}
