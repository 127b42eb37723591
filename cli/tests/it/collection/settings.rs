//! What the configuration says of collections, and what is said of it.

use crate::support::{ECHO, outrigger};

/// What a replica says that does not come up with these tables.
fn refused(config: &str) -> String {
    let launch = outrigger().file("o.toml", config).args(["--config", "o.toml"]);
    // A flag would take the place of what the file says.
    let launch = match config.contains("collect.listen") {
        true => launch,
        false => launch.args(["--collect-listen", "127.0.0.1:0"]),
    };
    let ended = launch.script(ECHO).run();
    assert_eq!(ended.status.code(), Some(2), "{config}: {}", ended.text());
    ended.text()
}

#[test]
fn mistakes_are_named() {
    for (config, said) in [
        ("[collections.request]\n", "collect.to"),
        ("collect.collections = ['request']\n", "collect.to"),
        ("collect.to = 'blob'\n[collections.Request]\n", "`Request` is no collection's name"),
        ("collect.to = 'blob'\n[collections.request]\nsampling = 2\n", "collections.request.sampling"),
        ("collect.to = 'blob'\n[collections.request]\nsampled = 1\n", "collections.request.sampled"),
        ("collect.to = 'blob'\n[collections.request]\nformat = 'csv'\n", "only modeldata"),
        ("collect.to = 'blob'\n[collections.modeldata]\nformat = 'events'\n", "collections.modeldata.format"),
        ("collect.to = 'blob'\ncollect.listen = '0.0.0.0:0'\n[collections.request]\n", "127.0.0.0/8"),
        ("collect.to = 'blob'\ncollect.headers = ['Authorization']\n[collections.request]\n", "never kept"),
        ("collect.to = 'blob'\ncollect.headers = ['X-Api-Key']\n[collections.request]\n", "never kept"),
        ("collect.to = 'blob'\n[collections.request]\nfull = 'block'\nblock = '1h'\n", "too long to wait"),
        ("collect.to = 'blob'\ncollect.endpoint = 'a/b'\n[collections.request]\n", "collect.endpoint"),
        ("collect.to = 'blob'\ncollect.workspace = 'a'\n[collections.request]\n", "collect.workspace"),
        ("collect.to = 'blob'\n[collections.request]\nhash = ['/a']\n", "salt"),
        ("collect.to = 'blob'\n[collections.request]\npatterns = ['(']\n", "patterns"),
        ("collect.to = 'blob'\n[collections.request]\ndisk = '1MiB'\n", "collections.request.disk"),
        ("collect.to = 'https://example.org/x'\n[collections.request]\n", "a web server, to which nothing"),
        ("collect.to = 'ftp://x'\n[collections.request]\n", "collect.to"),
    ] {
        let text = refused(config);
        assert!(text.contains(said), "{config}: {said} not in {text}");
    }
}
