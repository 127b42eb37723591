//! Registered models: pushed, listed, verified and pulled by the command, and fetched by a replica at its start.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use outrigger_store::Digest;
use outrigger_testkit::Launch;
use outrigger_testkit::faults::{Fault, On, Proxy};
use outrigger_testkit::onnx;
use outrigger_testkit::storage::{Azurite, Metadata, Moto, SECRET, SecureAzurite};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::placement::call;
use crate::proof::{say, scale};
use crate::support::{client, infer, outcome, outrigger, score};

/// A registry in Azure's storage, behind a proxy, or in a folder; and a folder for everything else.
pub(crate) struct Stored {
    folder: TempDir,
    registry: String,
    azurite: Option<(Azurite, Proxy)>,
    /// Variables by which other storage is reached.
    reached: Vec<(&'static str, String)>,
}

impl Stored {
    pub(crate) fn folder() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = folder.path().join("registry").to_str().unwrap().to_owned();
        Self { folder, registry, azurite: None, reached: Vec::new() }
    }

    /// In storage that is reached by some variables.
    fn elsewhere(registry: &str, reached: Vec<(&'static str, String)>) -> Self {
        Self { registry: registry.into(), reached, ..Self::folder() }
    }

    pub(crate) fn azure() -> Option<Self> {
        let azurite = Azurite::found()?;
        azurite.create_container("models");
        let proxy = Proxy::start(azurite.address());
        let folder = tempfile::tempdir().unwrap();
        Some(Self {
            folder,
            registry: "az://models/registry".into(),
            azurite: Some((azurite, proxy)),
            reached: Vec::new(),
        })
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        &self.azurite.as_ref().unwrap().1
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Where registry and cache are, and how the storage is reached.
    fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("OUTRIGGER_STORE_REGISTRY", self.registry.clone()),
            ("OUTRIGGER_STORE_CACHE", self.path("cache").to_str().unwrap().to_owned()),
        ];
        if let Some((azurite, proxy)) = &self.azurite {
            variables.extend(azurite.environment_at(proxy.address()));
        }
        variables.extend(self.reached.clone());
        variables
    }

    /// `outrigger models ...`.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.outrigger("models");
        command.args(arguments);
        command
    }

    /// Removes what was fetched.
    fn clear(&self) {
        for folder in ["app", "cache"] {
            let _ = fs::remove_dir_all(self.path(folder));
        }
    }

    /// `outrigger COMMAND`.
    pub(crate) fn outrigger(&self, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command.arg(name).envs(self.variables()).current_dir(self.folder.path());
        command
    }

    fn models(&self, arguments: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    /// The same, of which success is expected.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.models(arguments);
        assert_eq!(code, 0, "{arguments:?}: {out}{err}");
        out
    }

    /// A replica that fetches.
    pub(crate) fn replica(&self) -> Launch {
        self.for_replica(outrigger())
    }

    /// Has one fetch from here.
    pub(crate) fn for_replica(&self, launch: Launch) -> Launch {
        self.variables().into_iter().fold(launch, |launch, (name, value)| launch.env(name, value))
    }
}

/// Every file below a folder, with its content's digest.
fn files(folder: &Path) -> BTreeMap<String, Digest> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Digest>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, Digest::of(&fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

#[test]
fn the_command_pushes_lists_verifies_pulls_and_clears_up() {
    let stored = Stored::folder();
    stored.write("digits/model.onnx", onnx::add(3));
    stored.write("digits/labels.txt", "one\ntwo\n");
    stored.write("weights.bin", [7; 100_000]);
    assert_eq!(
        stored.done(&["push", "digits", "--description", "reads digits", "--tag", "team=vision"]),
        "digits:1\n"
    );
    assert_eq!(stored.done(&["push", "digits"]), "digits:2\n");
    assert_eq!(stored.done(&["push", "weights.bin", "--name", "w", "--version", "7"]), "w:7\n");
    let manifest = fs::read(stored.path("registry/digits/1/outrigger-manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(
        (&manifest["description"], &manifest["tags"]),
        (&json!("reads digits"), &json!({"team": "vision"}))
    );

    let listed: Value = serde_json::from_str(&stored.done(&["list", "--json"])).unwrap();
    let pushed = listed["models"][0]["pushed"].as_str().unwrap();
    assert!(
        pushed.starts_with("20") && pushed.len() == "2024-01-31T12:00:00Z".len() && pushed.ends_with('Z'),
        "{pushed}"
    );
    let listed = listed["models"].as_array().unwrap().iter();
    let listed: Vec<_> =
        listed.map(|model| (model["name"].as_str().unwrap(), model["version"].as_u64().unwrap())).collect();
    assert_eq!(listed, [("digits", 1), ("digits", 2), ("w", 7)]);
    let table = stored.done(&["list", "digits"]);
    assert!(
        table.lines().count() == 3 && table.starts_with("NAME    VERSION  LABELS  FILES  SIZE"),
        "{table}"
    );
    assert!(stored.done(&["verify"]).contains("w:7: 1 file(s), 97.7 KiB, all as its manifest says"));

    let pulled = stored.done(&["pull", "digits", "w:7", "--to", "app"]);
    assert_eq!(Path::new(pulled.trim()), stored.path("app/azureml-models").canonicalize().unwrap());
    let laid_out = files(&stored.path("app/azureml-models"));
    let names: Vec<_> = laid_out.keys().map(String::as_str).collect();
    assert_eq!(names, ["digits/2/digits/labels.txt", "digits/2/digits/model.onnx", "w/7/weights.bin"]);
    assert_eq!(laid_out["w/7/weights.bin"], Digest::of(&[7; 100_000]));
    let pulled = stored.done(&["pull", "digits:1", "--to", "app"]);
    assert!(pulled.trim().ends_with("azureml-models/digits/1"), "{pulled}");
    assert!(!stored.path("app/azureml-models/w").exists());

    let cleared = stored.done(&["gc", "--unused"]);
    assert!(cleared.contains("removed 1 file(s), 97.7 KiB; 2 file(s),"), "{cleared}");
    assert!(stored.done(&["verify", "--cached"]).contains("2 file(s)"));
    stored.write("registry/w/7/weights.bin", [8; 100_000]);
    let (code, out, err) = stored.models(&["verify"]);
    assert!(code == 1 && out.contains("w:7: `") && out.contains("has the SHA-256"), "{out}");
    assert!(err.contains("1 of 3 version(s) are not what they should be"), "{err}");
    let (code, _, err) = stored.models(&["pull", "w", "--to", "app"]);
    assert!(code == 1 && err.contains("has the SHA-256"), "{err}");
    assert!(stored.path("app/azureml-models/digits/1").exists(), "what was there stays");
}

fn labels_are_moved(stored: &Stored) {
    stored.write("weights.bin", "one");
    stored.done(&["push", "weights.bin", "--name", "w"]);
    stored.write("weights.bin", "two");
    stored.done(&["push", "weights.bin", "--name", "w"]);
    assert_eq!(stored.done(&["label", "w:1", "stable"]), "w@stable is w:1\n");
    assert_eq!(stored.done(&["label", "w", "canary"]), "w@canary is w:2\n");
    let labels = || -> Vec<Value> {
        let listed: Value = serde_json::from_str(&stored.done(&["list", "--json"])).unwrap();
        listed["models"].as_array().unwrap().iter().map(|model| model["labels"].clone()).collect()
    };
    assert_eq!(labels(), [json!(["stable"]), json!(["canary"])]);
    let pulled = |to: &str| {
        stored.done(&["pull", "w@stable", "--to", to]);
        fs::read_to_string(stored.path(to).join("azureml-models/w").join(match to {
            "before" => "1/weights.bin",
            _ => "2/weights.bin",
        }))
    };
    assert_eq!(pulled("before").unwrap(), "one");
    // What is canary becomes stable, too.
    assert_eq!(stored.done(&["label", "w@canary", "stable"]), "w@stable is w:2\n");
    assert_eq!(pulled("after").unwrap(), "two");
    assert_eq!(labels(), [json!([]), json!(["canary", "stable"])]);
    assert!(stored.done(&["list", "w@stable"]).contains("canary stable"));
    assert_eq!(stored.done(&["label", "--remove", "w@canary"]), "w@canary is taken away\n");
    assert_eq!(labels(), [json!([]), json!(["stable"])]);
    assert_eq!(stored.done(&["push", "weights.bin", "--name", "w"]), "w:3\n", "a label is no version");
    assert!(!stored.done(&["gc", "--unfinished", "0s"]).contains("labels"));

    let said = |arguments: &[&str], what: &str| {
        let (code, out, err) = stored.models(arguments);
        assert!(code == 1 && err.contains(what), "{arguments:?}: {code} {out}{err}");
    };
    said(&["label", "w:9", "stable"], "w:9 is not labelled");
    said(&["label", "w:1", "7"], "`7` is no label of a version");
    said(&["label", "--remove", "w@canary"], "`w@canary` is not taken away");
    said(&["label", "--remove", "w:1"], "names no label to take away, such as w@stable");
    said(&["pull", "w@canary", "--to", "app"], "w/labels/canary` is not there");
}

#[test]
fn labels_stand_for_versions_and_move_in_a_folder() {
    labels_are_moved(&Stored::folder());
}

#[test]
fn labels_stand_for_versions_and_move_in_blob_storage() {
    let Some(stored) = Stored::azure() else { return };
    labels_are_moved(&stored);
}

#[test]
fn the_command_says_what_is_wrong_and_what_to_do() {
    let stored = Stored::folder();
    stored.write("weights.bin", "x");
    let said = |arguments: &[&str], code: i32, what: &str| {
        let (found, out, err) = stored.models(arguments);
        assert!(found == code && err.contains(what), "{arguments:?}: {found} {out}{err}");
    };
    said(&["list"], 1, "registry` cannot be opened");
    stored.done(&["push", "weights.bin"]);
    said(
        &["push", "weights.bin", "--version", "1"],
        1,
        "`weights:1` is there already, and versions do not change",
    );
    said(&["push", "nothing.bin"], 1, "nothing.bin` cannot be read");
    said(&["push", "weights.bin", "--sign", "weights.bin"], 1, "openssl genpkey -algorithm ed25519");
    said(&["pull", "other", "--to", "app"], 1, "registry/other` is not there");
    said(&["pull", "../x", "--to", "app"], 1, "`../x` is no model name");
    said(&["list", "--registry", "ftp://x/y"], 1, "is no storage that is known");
    said(&["pull", "weights", "--to", "app", "--cache-size", "nothing"], 2, "expected");
    said(&["list", "--trusted-keys", "weights.bin"], 2, "unexpected argument");
    said(
        &["pull", "weights", "--to", "app", "--trusted-keys", "weights.bin"],
        2,
        "it is no Ed25519 public key in PEM",
    );
    let mut bare = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    bare.args(["models", "list"]).env_remove("OUTRIGGER_STORE_REGISTRY").env_remove("OUTRIGGER_CONFIG");
    let bare = bare.output().unwrap();
    assert!(String::from_utf8_lossy(&bare.stderr).contains("no registry is named: give --registry URL"));
}

/// What a script sees of its models, of the cache, and of the storage's credentials.
const LOOKS: &str = r#"
import os, pathlib

def init():
    pass

def run(data):
    root = pathlib.Path(os.environ["AZUREML_MODEL_DIR"])
    try:
        cache = sorted(os.listdir(data))
    except OSError as error:
        cache = type(error).__name__
    try:
        next(path for path in root.rglob("*") if path.is_file()).write_text("mine")
        written = True
    except OSError as error:
        written = type(error).__name__
    return {
        "root": str(root),
        "files": {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()},
        "cache": cache,
        "written": written,
        "variables": sorted(name for name in os.environ if name.startswith("AZURE_STORAGE_")),
    }
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_finds_registered_models_where_azureml_has_them_and_nothing_else() {
    let Some(stored) = Stored::azure() else { return };
    stored.write("digits.txt", "weights of digits");
    stored.write("faces/face.txt", "weights of faces");
    stored.done(&["push", "digits.txt"]);
    stored.done(&["push", "digits.txt"]);
    stored.done(&["push", "faces"]);
    let looked = async |models: &[&str]| {
        let launch = models
            .iter()
            .fold(stored.replica().script(LOOKS), |launch, model| launch.args(["--store-models", model]));
        let replica = launch.start();
        let cache = json!(stored.path("cache").to_str().unwrap());
        let (status, _, body) = outcome(score(&replica, cache.to_string()).send().await.unwrap()).await;
        assert_eq!(status, 200, "{body}\n{}", replica.log_text());
        let state = replica.directory().join("state").canonicalize().unwrap();
        let root = Path::new(body["root"].as_str().unwrap()).strip_prefix(&state).unwrap().to_owned();
        let map = fs::read(state.join("model_config_map.json")).unwrap();
        (root, body, serde_json::from_slice::<Value>(&map).unwrap())
    };
    let (root, one, map) = looked(&["digits"]).await;
    assert_eq!(root, Path::new("azureml-models/digits/2"));
    assert_eq!(one["files"], json!({"digits.txt": "weights of digits"}));
    assert_eq!(map["models"], json!({"digits": {"id": "digits:2", "version": 2}}));
    assert_eq!(one["variables"], json!([]), "credentials of the storage are not the script's");
    assert_eq!(one["written"], "PermissionError");
    if sandboxed() {
        assert_eq!(one["cache"], "PermissionError", "the cache is not the script's");
    }
    let (root, many, map) = looked(&["digits:1", "faces"]).await;
    assert_eq!(root, Path::new("azureml-models"));
    let expected =
        json!({"digits/1/digits.txt": "weights of digits", "faces/1/faces/face.txt": "weights of faces"});
    assert_eq!(many["files"], expected);
    assert_eq!(map["modelsInfo"]["faces"]["1"]["internalId"], "faces:1");
}

/// Whether this kernel can keep a script from reading files: the log of a replica says so otherwise.
fn sandboxed() -> bool {
    fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|modules| modules.contains("landlock"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_script_registered_models_are_served_and_fetched_once() {
    let Some(stored) = Stored::azure() else { return };
    for (name, version) in [("sum", 1), ("sum", 2), ("other", 1)] {
        stored.write(&format!("{name}/model.onnx"), onnx::add(3));
        assert_eq!(stored.done(&["push", name]), format!("{name}:{version}\n"));
    }
    stored.proxy().forget();
    let replica = stored.replica().args(["--store-models", "*"]).start();
    let answer = outcome(infer(&replica, "sum", call()).send().await.unwrap()).await;
    assert_eq!((answer.0, &answer.2["outputs"][0]["data"]), (200, &json!([11.0, 22.0, 33.0])));
    assert_eq!(answer.2["model_version"], "2");
    let other = outcome(infer(&replica, "other", call()).send().await.unwrap()).await;
    assert_eq!(other.0, 200);
    let got = stored.proxy().counts(&On::get().path("model.onnx"));
    assert_eq!(got.requests, 1, "equal files come once");
    drop(replica);
    let replica = stored.replica().args(["--store-models", "*", "--store-models", "sum:1"]).start();
    let answer = outcome(infer(&replica, "sum", call()).send().await.unwrap()).await;
    assert_eq!(
        (answer.0, answer.2["model_version"].as_str()),
        (200, Some("1")),
        "what is named goes before `*`"
    );
    drop(replica);
    stored.proxy().forget();
    // A table of a model's own, by another name; all of it is here already.
    let config = "[models.adder]\nsource = 'sum:1'\nmax_batch = 4\n";
    let replica =
        stored.replica().file("outrigger.toml", config).args(["--config", "outrigger.toml"]).start();
    let answer = outcome(infer(&replica, "adder", call()).send().await.unwrap()).await;
    assert_eq!((answer.0, answer.2["model_version"].as_str()), (200, Some("1")), "{}", replica.log_text());
    assert_eq!(stored.proxy().counts(&On::get().path("model.onnx")).requests, 0);
    let ready = client().get(format!("{}/ready", replica.observe)).send().await.unwrap();
    assert_eq!(ready.status(), 200);
}

#[test]
fn what_cannot_be_fetched_ends_the_start_with_the_reason() {
    let Some(stored) = Stored::azure() else { return };
    stored.write("sum.onnx", onnx::add(3));
    for name in ["one", "two", "three"] {
        stored.done(&["push", "sum.onnx", "--name", name]);
    }
    let ends = |arguments: &[&str], code: i32, what: &str| {
        let ended = stored.replica().args(arguments.iter().copied()).run();
        let text = ended.text();
        assert!(
            ended.status.code() == Some(code) && text.contains(what),
            "{arguments:?}: {:?} {text}",
            ended.status
        );
    };
    stored.proxy().forget();
    ends(
        &["--store-models", "*", "--limits-models", "2"],
        3,
        "3 models are named, with those that `*` stands for; a replica takes 2 (limits.models)",
    );
    let files = stored.proxy().counts(&On::get().path("sum.onnx"));
    assert_eq!(files.requests, 0, "nothing has been fetched");
    ends(&["--store-models", "four"], 3, "`az://models/registry/four` is not there");
    ends(&["--store-models", "one:2"], 3, "one/2/outrigger-manifest.json` is not there");
    ends(
        &["--store-models", "one", "--model", "one=sum.onnx"],
        3,
        "two models would be served as `one`: one:1 and [models.one]",
    );
    stored.done(&["push", "sum.onnx", "--name", "one"]);
    ends(&["--store-models", "one:1", "--store-models", "one:2"], 3, "served as `one`: one:1 and one:2");
    ends(&["--store-models", "../one"], 2, "`../one` is no model name");
    ends(&["--store-models", "one", "--model-dir", "."], 2, "both `store.models` and `model_dir` are set");
    stored.proxy().inject(On::get().path("sum.onnx").always(), Fault::Corrupt { at: 0 });
    ends(&["--store-models", "one"], 3, "has the SHA-256");
}

#[test]
fn a_thousand_and_one_models_are_refused_at_once() {
    let stored = Stored::folder();
    let names: Vec<_> = (0..1001).map(|number| format!("'m{number}'")).collect();
    let config = format!("[store]\nmodels = [{}]\n", names.join(", "));
    let ended = stored.replica().file("outrigger.toml", config).args(["--config", "outrigger.toml"]).run();
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.text().contains("1001 models are named, `limits.models` is 1000"), "{}", ended.text());
}

/// A small archive, and files of one piece and of many.
fn assorted(stored: &Stored) {
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..20_u8 {
        let mut header = tar::Header::new_gnu();
        header.set_size(20_000);
        archive.append_data(&mut header, format!("part{number}"), [number; 20_000].as_slice()).unwrap();
    }
    stored.write("mixed/all.tar", archive.into_inner().unwrap());
    for number in 0..8_u8 {
        stored.write(&format!("mixed/small{number}"), [number; 3000]);
    }
    let large: Vec<u8> = (0..2_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    stored.write("mixed/large", &large);
    stored.done(&["push", "mixed", "--unpack"]);
}

#[test]
fn a_machine_is_let_in_by_what_its_cloud_says_that_it_is() {
    let Some(moto) = Moto::found() else { return };
    moto.create_bucket("models");
    let at = format!("http://{}", moto.address());
    let metadata = Metadata::start();
    let amazon =
        [("AWS_ENDPOINT", at.clone()), ("AWS_ALLOW_HTTP", "true".into()), ("AWS_REGION", "us-east-1".into())];
    let amazon = [amazon.to_vec(), metadata.amazon()].concat();
    let path = "/latest/meta-data/iam/security-credentials/replica";
    is_let_in(&Stored::elsewhere("s3://models/amazon", amazon), &metadata, path);
    // Google's storage is spoken to by the same requests for objects; who may make one only where none is, is not looked at.
    let google = [("GOOGLE_BASE_URL", at), ("GOOGLE_ALLOW_HTTP", "true".into())];
    let google = [google.to_vec(), metadata.google()].concat();
    let path = "/computeMetadata/v1/instance/service-accounts/default/token";
    is_let_in(&Stored::elsewhere("gs://models/google", google), &metadata, path);
}

#[test]
fn a_machine_is_let_in_by_its_managed_identity() {
    let Some(azurite) = SecureAzurite::found() else { return };
    azurite.create_container("models");
    let metadata = Metadata::start();
    let reached = [azurite.environment(), metadata.microsoft()].concat();
    is_let_in(&Stored::elsewhere("az://models/registry", reached), &metadata, "/msi/token");
}

/// All commands, with nothing but what the machine's metadata gives at a path, of which nothing is said.
fn is_let_in(stored: &Stored, metadata: &Metadata, path: &str) {
    // In more than one part, and in more than one piece.
    let large: Vec<u8> = (0..9_000_000_u32).map(|at| (at ^ at >> 11) as u8).collect();
    stored.write("large.bin", &large);
    stored.write("sum.onnx", onnx::add(3));
    let mut said = String::new();
    for arguments in [
        &["push", "large.bin"][..],
        &["push", "sum.onnx"],
        &["label", "sum:1", "stable"],
        &["index"],
        &["verify"],
        &["pull", "large", "sum@stable", "--to", "app"],
    ] {
        let command = stored.command(arguments).env("RUST_LOG", "trace").output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&command.stdout), String::from_utf8_lossy(&command.stderr));
        assert!(command.status.success(), "{arguments:?}: {out}{err}");
        said += &out;
        said += &err;
    }
    assert_eq!(files(&stored.path("app/azureml-models"))["large/1/large.bin"], Digest::of(&large));
    assert!(!said.contains(SECRET), "{said}");
    let asked = metadata.asked();
    assert!(asked.contains(&format!("GET {path}")), "{asked:?}");
}

#[test]
fn killed_at_any_moment_the_next_start_is_clean_and_complete() {
    let Some(stored) = Stored::azure() else { return };
    assorted(&stored);
    let pull = ["pull", "mixed", "--to", "app", "--piece", "64KiB", "--connections", "4"];
    // The first one is slower than those that follow.
    let times = (0..3).map(|_| {
        stored.clear();
        let started = Instant::now();
        stored.done(&pull);
        started.elapsed()
    });
    let usual = times.min().unwrap();
    let expected = files(&stored.path("app/azureml-models"));
    assert_eq!(expected.len(), 29, "{expected:?}");
    let rounds = scale(50, 1000);
    let mut killed = 0;
    for round in 0..rounds {
        stored.clear();
        // Anywhere between the beginning and a little after the end, evenly.
        let after = usual.mul_f64(1.1 * (round as f64 + 0.5) / rounds as f64);
        let mut child = stored.command(&pull).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait(after);
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        stored.done(&pull);
        assert_eq!(files(&stored.path("app/azureml-models")), expected, "round {round}");
        stored.done(&["verify", "--cached"]);
        let left = fs::read_dir(stored.path("cache/partial")).unwrap().count();
        assert_eq!(left, 0, "round {round}");
        let beside = fs::read_dir(stored.path("app")).unwrap().count();
        assert_eq!(beside, 3, "models, map and lock: round {round}");
    }
    say(format!("{rounds} rounds, {killed} of them killed before the end ({} ms)", usual.as_millis()));
    assert!(killed * 3 > rounds, "{killed} of {rounds}");
}

/// Nothing is waited for but the time: when the process is killed is what differs between rounds.
fn wait(time: Duration) {
    std::thread::park_timeout(time);
}
