//! `[upstream]`: somebody else's server that the replica stands in front of.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Uri};

use super::getter::Getter;
use super::key::{self, KEYS, Key};
use super::{Mistake, Origin, Settings, Value};

pub use crate::upstream::PathPattern;

/// `[upstream]`.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// Where it is.
    pub address: UpstreamAddress,
    /// Where its scoring route is; without a query.
    pub score_path: PathAndQuery,
    /// Further paths that are passed on.
    pub paths: Vec<PathPattern>,
    /// Whether it is told what requests say of where they come from.
    pub trust_forwarded: bool,
    /// Calls that it works on at once.
    pub slots: usize,
    /// Longest time until its answer begins, once it has the request.
    pub timeout: Duration,
    /// Longest time of connecting.
    pub connect_timeout: Duration,
    /// Longest time between two pieces of its answer.
    pub gap_timeout: Duration,
    /// Longest time that a client may take nothing of an answer while the upstream waits for that.
    pub stall_timeout: Duration,
    /// Longest pause of a body that is passed on as it comes.
    pub pause_timeout: Duration,
    /// Bytes of a body that are here before its call takes a slot.
    pub stream_threshold: usize,
    /// Bytes of an answer that it may be ahead of the client.
    pub window: usize,
    /// Connections that are kept.
    pub connections: usize,
    /// How long.
    pub idle_timeout: Duration,
    /// Whether it is ready and alive.
    pub probes: ProbeConfig,
}

/// Where an upstream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// A host, by name or number, without brackets, and its port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// How an upstream is asked whether it is ready and alive.
#[derive(Clone, Debug)]
pub struct ProbeConfig {
    /// Its readiness route; that it can be connected to where there is none.
    pub ready_path: Option<PathAndQuery>,
    /// Where that is asked.
    pub ready_at: UpstreamAddress,
    /// Its liveness route; it is not asked where there is none.
    pub live_path: Option<PathAndQuery>,
    /// Where that is asked.
    pub live_at: UpstreamAddress,
    /// Time before they are asked first.
    pub initial_delay: Duration,
    /// Time between two questions.
    pub period: Duration,
    /// Time limit of one.
    pub timeout: Duration,
    /// Good answers in a row before it counts as ready, or live.
    pub successes: usize,
    /// Others in a row before it does not.
    pub failures: usize,
}

impl UpstreamAddress {
    /// Reads `http://HOST:PORT` or `unix:PATH`.
    fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err("it names no socket") } else { Ok(Self::Unix(path.into())) };
        }
        if text.contains('#') {
            return Err("it has a fragment, which is not sent");
        }
        let uri: Uri = text.parse().map_err(|_| "it is no URL")?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err("TLS is not spoken to it: it is meant to be on this machine"),
            _ => return Err("it begins neither with http:// nor with unix:"),
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err("it has a path, which belongs into `upstream.score_path`");
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("it has a user in it, which is not sent");
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("it names no host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_bare = uri.authority().map(Authority::as_str) == uri.host();
        match uri.port_u16() {
            Some(port) if port > 0 => Ok(Self::Tcp(host, port)),
            None if is_bare => Ok(Self::Tcp(host, 80)),
            _ => Err("its port is none from 1 to 65535"),
        }
    }

    /// Whether it can only be on this machine.
    fn is_here(&self) -> bool {
        match self {
            Self::Tcp(host, _) if host.eq_ignore_ascii_case("localhost") => true,
            Self::Tcp(host, _) => host.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
            Self::Unix(_) => true,
        }
    }

    /// The same host at another port; this machine's where it is a socket.
    fn at_port(&self, port: Option<u16>) -> Self {
        match (self, port) {
            (address, None) => address.clone(),
            (Self::Tcp(host, _), Some(port)) => Self::Tcp(host.clone(), port),
            (Self::Unix(_), Some(port)) => Self::Tcp("127.0.0.1".into(), port),
        }
    }

    /// What stands in `Host`.
    pub fn authority(&self) -> String {
        match self {
            Self::Tcp(host, port) if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp(host, port) => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".into(),
        }
    }
}

impl std::fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(..) => write!(f, "http://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// From settings, each valid by itself; nothing where no upstream is named, or where there is a mistake.
pub(super) fn upstream(settings: &Settings) -> (Option<UpstreamConfig>, Vec<Mistake>) {
    let get = Getter { settings };
    let mut reader = Reader { settings, mistakes: Vec::new() };
    let url = get.text(key::UPSTREAM_URL);
    if url.is_empty() {
        reader.strays();
        return (None, reader.mistakes);
    }
    reader.beside_a_script();
    let address = reader.address(&url);
    let score_path = reader.path(key::UPSTREAM_SCORE_PATH);
    if score_path.as_ref().is_some_and(|path| path.query().is_some()) {
        reader.mistake(key::UPSTREAM_SCORE_PATH, "it has a query; the caller's is passed on".into());
    }
    let paths = reader.patterns();
    let (ready_path, live_path) =
        (reader.path(key::UPSTREAM_READY_PATH), reader.path(key::UPSTREAM_LIVE_PATH));
    if live_path.is_none() && get.optional_count(key::UPSTREAM_LIVE_PORT).is_some() {
        reader
            .mistake(key::UPSTREAM_LIVE_PORT, "`upstream.live_path` does not say what is asked there".into());
    }
    let (Some(address), Some(score_path), true) = (address, score_path, reader.mistakes.is_empty()) else {
        return (None, reader.mistakes);
    };
    let port = |key| get.optional_count(key).and_then(|port| u16::try_from(port).ok());
    let slots = get.count(key::UPSTREAM_SLOTS);
    let config = UpstreamConfig {
        score_path,
        paths,
        trust_forwarded: get.flag(key::UPSTREAM_TRUST_FORWARDED),
        slots,
        timeout: get.duration(key::UPSTREAM_TIMEOUT),
        connect_timeout: get.duration(key::UPSTREAM_CONNECT_TIMEOUT),
        gap_timeout: get.duration(key::UPSTREAM_GAP_TIMEOUT),
        stall_timeout: get.duration(key::UPSTREAM_STALL_TIMEOUT),
        pause_timeout: get.duration(key::UPSTREAM_PAUSE_TIMEOUT),
        stream_threshold: get.size(key::UPSTREAM_STREAM_THRESHOLD),
        window: get.size(key::UPSTREAM_WINDOW),
        connections: get.optional_count(key::UPSTREAM_CONNECTIONS).unwrap_or(slots),
        idle_timeout: get.duration(key::UPSTREAM_IDLE_TIMEOUT),
        probes: ProbeConfig {
            ready_path,
            ready_at: address.at_port(port(key::UPSTREAM_READY_PORT)),
            live_path,
            live_at: address.at_port(port(key::UPSTREAM_LIVE_PORT)),
            initial_delay: get.duration(key::UPSTREAM_INITIAL_DELAY),
            period: get.duration(key::UPSTREAM_PROBE_PERIOD),
            timeout: get.duration(key::UPSTREAM_PROBE_TIMEOUT),
            successes: get.count(key::UPSTREAM_SUCCESS_THRESHOLD),
            failures: get.count(key::UPSTREAM_FAILURE_THRESHOLD),
        },
        address,
    };
    (Some(config), Vec::new())
}

fn is_default(key: &Key, value: &Value) -> bool {
    let is_empty = matches!(value, Value::Text(text) if text.is_empty());
    is_empty || key.kind.parse(key.default).as_ref() == Some(value)
}

struct Reader<'a> {
    settings: &'a Settings,
    mistakes: Vec<Mistake>,
}

impl Reader<'_> {
    fn mistake(&mut self, key: &Key, problem: String) {
        let origin = self.settings.keys.get(key.name);
        let origin = origin.map_or(Origin::Default, |setting| setting.origin.clone()).to_string();
        self.mistakes.push(Mistake { origin, problem: format!("`{}`: {problem}", key.name) });
    }

    /// Keys that somebody has set for an upstream that there is none of. Defaults that are written out, as `--check` shows them, mean nothing.
    fn strays(&mut self) {
        let strays = |key: &&Key| {
            let setting = self.settings.keys.get(key.name);
            let value = setting.map(|setting| &setting.value);
            key.name.starts_with("upstream.") && value.is_some_and(|value| !is_default(key, value))
        };
        for key in KEYS.iter().copied().filter(strays).collect::<Vec<_>>() {
            self.mistake(key, "`upstream.url` does not say which server is meant".into());
        }
    }

    fn beside_a_script(&mut self) {
        let mut script = [key::SCRIPT_NATIVE, key::SCRIPT_ENTRY].into_iter();
        if let Some(script) = script.find(|key| self.settings.keys.contains_key(key.name)) {
            let problem = format!(
                "`{}` is set too: /score goes to a script or to an upstream, not to both",
                script.name
            );
            self.mistake(key::UPSTREAM_URL, problem);
        }
    }

    fn address(&mut self, url: &str) -> Option<UpstreamAddress> {
        match UpstreamAddress::parse(url) {
            Ok(address) => {
                let allowed = (Getter { settings: self.settings }).flag(key::UPSTREAM_ALLOW_REMOTE);
                if !address.is_here() && !allowed {
                    let problem = format!(
                        "{address} is beyond this machine; set `upstream.allow_remote = true` if that is meant"
                    );
                    self.mistake(key::UPSTREAM_URL, problem);
                }
                Some(address)
            }
            Err(problem) => {
                let problem = format!("{problem}; it takes http://127.0.0.1:PORT or unix:PATH");
                self.mistake(key::UPSTREAM_URL, problem);
                None
            }
        }
    }

    /// A path of the upstream's; nothing where none is said, or it is none.
    fn path(&mut self, key: &Key) -> Option<PathAndQuery> {
        let text = (Getter { settings: self.settings }).text(key);
        if text.is_empty() && key.default.is_empty() {
            return None;
        }
        // Of a fragment a server learns nothing.
        let is_path = text.starts_with('/') && !text.contains('#');
        let path = text.parse::<PathAndQuery>().ok().filter(|_| is_path);
        if path.is_none() {
            self.mistake(key, format!("`{text}` is no path, such as /score"));
        }
        path
    }

    fn patterns(&mut self) -> Vec<PathPattern> {
        let mut patterns = Vec::new();
        for text in (Getter { settings: self.settings }).list(key::UPSTREAM_PATHS) {
            match PathPattern::parse(text) {
                Some(pattern) => patterns.push(pattern),
                None => {
                    let problem = format!(
                        "`{text}` is no path, such as /predict, and none with all below, such as /v1/*"
                    );
                    self.mistake(key::UPSTREAM_PATHS, problem);
                }
            }
        }
        patterns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let check = |text: &str, expected: Result<(&str, bool), &str>| {
            let read = UpstreamAddress::parse(text);
            let read = read.as_ref().map(|address| (address.to_string(), address.is_here()));
            let expected = expected.map(|(shown, here)| (shown.to_owned(), here));
            match (read, expected) {
                (Ok(read), Ok(expected)) => assert_eq!(read, expected, "{text}"),
                (Err(read), Err(expected)) => assert!(read.contains(expected), "{text}: {read}"),
                (read, expected) => panic!("{text}: {read:?}, {expected:?}"),
            }
        };
        check("http://127.0.0.1:9000", Ok(("http://127.0.0.1:9000", true)));
        check("http://127.9.8.7:9000/", Ok(("http://127.9.8.7:9000", true)));
        check("http://localhost", Ok(("http://localhost:80", true)));
        check("HTTP://[::1]:8080", Ok(("http://[::1]:8080", true)));
        check("unix:/run/app.sock", Ok(("unix:/run/app.sock", true)));
        check("http://10.0.0.1:9000", Ok(("http://10.0.0.1:9000", false)));
        check("http://app:9000", Ok(("http://app:9000", false)));
        check("http://localhost.example:9000", Ok(("http://localhost.example:9000", false)));
        check("http://[::ffff:10.0.0.1]:9000", Ok(("http://[::ffff:10.0.0.1]:9000", false)));
        check("https://127.0.0.1:9000", Err("TLS"));
        check("http://127.0.0.1:9000/predict", Err("score_path"));
        check("http://127.0.0.1:9000?x", Err("score_path"));
        check("http://127.0.0.1:9000/#x", Err("fragment"));
        check("http://user:hush@127.0.0.1:9000", Err("user"));
        check("http://127.0.0.1:0", Err("port"));
        check("http://127.0.0.1:99999", Err("port"));
        check("http://127.0.0.1:", Err("port"));
        check("127.0.0.1:9000", Err("neither"));
        check("ftp://127.0.0.1", Err("neither"));
        check("unix:", Err("no socket"));
        check("http:// 127.0.0.1", Err("no URL"));
    }
}
