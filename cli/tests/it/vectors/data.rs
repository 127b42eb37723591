//! The vectors: TOML files in `cli/tests/contract`, described in the README there.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value;

/// Whose behaviour an expectation speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// azureml-inference-server-http.
    Real,
    /// A replica with `compat = true`.
    Compat,
    /// A replica as it is by default.
    Strict,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Real => "the real server",
            Self::Compat => "compat",
            Self::Strict => "strict",
        }
    }
}

/// A file of vectors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    service: Vec<Service>,
}

/// A script with its settings, and what is asked of it. Its vectors run in their order, on one server.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    /// What messages call it; unique in its file.
    pub(super) name: String,
    /// Text of `score.py`.
    pub(super) script: String,
    /// Variables of the server's environment.
    #[serde(default)]
    pub(super) environment: BTreeMap<String, String>,
    /// Further files beside `score.py`, by their relative paths.
    #[serde(default)]
    pub(super) files: BTreeMap<String, String>,
    /// Where the service does not come up.
    pub(super) fails: Option<Failure>,
    #[serde(default)]
    pub(super) vector: Vec<Vector>,
    /// The file it stands in, without its ending.
    #[serde(skip)]
    pub(super) file: String,
}

/// How a service does not come up.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Failure {
    /// The row of the contract.
    pub(super) row: String,
    /// The exit code.
    pub(super) exit: i32,
    /// Texts that the log holds.
    pub(super) log: Vec<String>,
}

/// A request and what comes back.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Vector {
    pub(super) name: String,
    /// The row of the contract, a key of `rows.toml`.
    pub(super) row: String,
    /// Method and target, as in a request line.
    pub(super) send: String,
    /// `Name: value`; sent in this order, and nothing beside them but Host and the length of the body.
    #[serde(default)]
    pub(super) headers: Vec<String>,
    pub(super) body: Option<String>,
    pub(super) body_base64: Option<String>,
    /// Body of a `POST /score` that is sent before, and is under way until the script, which says with the file `outputs/begun`
    /// that it has it, finds the file `release`.
    #[serde(default)]
    pub(super) during: Option<String>,
    /// What the real server answers, and we, where nothing below says otherwise.
    pub(super) expect: Expectation,
    /// What both of our modes do differently.
    pub(super) ours: Option<Expectation>,
    /// What compat does differently.
    pub(super) compat: Option<Expectation>,
    /// What strict does differently.
    pub(super) strict: Option<Expectation>,
}

/// What is asked of an answer. What is not named is not looked at, but for `code`: without one, none may come.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Expectation {
    /// Of a difference: the reason for it.
    #[serde(default)]
    pub(super) why: String,
    pub(super) status: Option<u16>,
    /// Our `outrigger-code`, where the answer is an error of the server's own.
    pub(super) code: Option<String>,
    /// The connection closes without an answer.
    pub(super) closed: Option<bool>,
    /// Whether the answer comes while the request of `during` is still under way.
    pub(super) overtakes: Option<bool>,
    /// `Name: value`. All values of a name in their order; `<uuid>`, `<ms>`, `<any>`,
    /// `<like PATTERN>` (`*` is anything), `<set A, B>` and `<as NAME>` stand for what varies.
    #[serde(default)]
    pub(super) headers: Vec<String>,
    /// Names of headers that do not come.
    #[serde(default)]
    pub(super) absent: Vec<String>,
    /// The body, byte for byte.
    pub(super) body: Option<String>,
    pub(super) body_base64: Option<String>,
    /// The body as JSON, whatever its spaces and order.
    pub(super) json: Option<String>,
    /// The body is an object with this `message` and nothing else.
    pub(super) message: Option<String>,
    /// The body as text, where `*` stands for anything.
    pub(super) matches: Option<String>,
    /// Parts of a JSON body by their JSON pointers; `<any>` and `<absent>` stand for what is there, and what is not.
    #[serde(default)]
    pub(super) pointers: BTreeMap<String, Value>,
}

impl Service {
    /// What messages call it.
    pub(super) fn title(&self) -> String {
        format!("{} / {}", self.file, self.name)
    }
}

impl Vector {
    /// Method and target.
    pub(super) fn request_line(&self) -> (&str, &str) {
        split(&self.send, " ")
    }

    /// The body, if there is one.
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        bytes(&self.body, &self.body_base64)
    }

    /// What one side is to do.
    pub(super) fn expected(&self, side: Side) -> Expectation {
        self.differences(side)
            .fold(self.expect.clone(), |expectation, difference| expectation.but(difference))
    }

    /// What one side does differently, the general before the particular.
    pub(super) fn differences(&self, side: Side) -> impl Iterator<Item = &Expectation> {
        let chosen = match side {
            Side::Real => [None, None],
            Side::Compat => [self.ours.as_ref(), self.compat.as_ref()],
            Side::Strict => [self.ours.as_ref(), self.strict.as_ref()],
        };
        chosen.into_iter().flatten()
    }
}

impl Expectation {
    /// The same, but for what `other` says. A body takes the place of a body in whatever form, a header that of its name.
    fn but(mut self, other: &Self) -> Self {
        if other.closed.is_some() || other.status.is_some() {
            (self.status, self.closed, self.code) = (other.status, other.closed, other.code.clone());
        }
        self.overtakes = other.overtakes.or(self.overtakes);
        let spoken_of = |name: &str| {
            other.headers.iter().any(|line| header(line).0.eq_ignore_ascii_case(name))
                || other.absent.iter().any(|absent| absent.eq_ignore_ascii_case(name))
        };
        self.headers.retain(|line| !spoken_of(header(line).0));
        self.absent.retain(|name| !spoken_of(name));
        self.headers.extend(other.headers.iter().cloned());
        self.absent.extend(other.absent.iter().cloned());
        if other.speaks_of_body() {
            let Self { body, body_base64, json, message, matches, pointers, .. } = other.clone();
            self = Self { body, body_base64, json, message, matches, pointers, ..self };
        }
        self
    }

    fn speaks_of_body(&self) -> bool {
        let texts = [&self.body, &self.body_base64, &self.json, &self.message, &self.matches];
        texts.iter().any(|text| text.is_some()) || !self.pointers.is_empty()
    }

    /// The body byte for byte, if that is asked for.
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        bytes(&self.body, &self.body_base64)
    }

    /// In a few words, for the table of differences.
    pub(super) fn summary(&self) -> String {
        let mut parts = Vec::new();
        if self.closed == Some(true) {
            parts.push("no answer, the connection closes".to_owned());
        }
        parts.extend(self.status.map(|status| status.to_string()));
        parts.extend(self.overtakes.map(|first| if first { "answered at once" } else { "waits" }.to_owned()));
        parts.extend(self.headers.iter().cloned());
        parts.extend(self.absent.iter().map(|name| format!("no {name}")));
        let body = [&self.body, &self.json, &self.message, &self.matches].into_iter().flatten().next();
        parts.extend(body.map(|body| if body.is_empty() { "empty".to_owned() } else { body.clone() }));
        parts.extend(self.pointers.iter().map(|(pointer, value)| format!("{pointer} = {value}")));
        parts.join(", ")
    }
}

fn bytes(text: &Option<String>, base64: &Option<String>) -> Option<Vec<u8>> {
    match (text, base64) {
        (Some(text), _) => Some(text.clone().into_bytes()),
        (None, Some(base64)) => {
            Some(base64::engine::general_purpose::STANDARD.decode(base64).expect("a body in base64"))
        }
        (None, None) => None,
    }
}

/// Name and value of `Name: value`.
pub(super) fn header(line: &str) -> (&str, &str) {
    let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("`{line}` is no header"));
    (name, value.trim_start())
}

fn split<'a>(text: &'a str, separator: &str) -> (&'a str, &'a str) {
    text.split_once(separator).unwrap_or_else(|| panic!("`{text}` has no `{separator}`"))
}

/// The folder with the vectors.
pub(super) fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract")
}

/// All services of all files.
pub(super) fn services() -> Vec<Service> {
    let mut files: Vec<_> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| {
        path.extension().is_some_and(|ending| ending == "toml") && !path.ends_with("rows.toml")
    });
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let file: File = toml::from_str(&std::fs::read_to_string(path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file.service.into_iter().map(move |service| Service { file: name.clone(), ..service })
    };
    files.iter().flat_map(read).collect()
}

/// The rows of the contract: key and text.
pub(super) fn rows() -> BTreeMap<String, String> {
    toml::from_str(&std::fs::read_to_string(folder().join("rows.toml")).unwrap()).unwrap()
}
