//! Models where their users look for them, exactly as AzureML lays them out:
//!
//! ```text
//! <root>/azureml-models/<name>/<version>/<file or folder>
//! <root>/model_config_map.json
//! ```
//!
//! Files are hard links to those of the cache, or copies where that is on another file system; all are read-only. A tree is made beside the old one and
//! then takes its place at once, so whoever looks sees one or the other, whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use serde::Serialize;

use crate::cache::{Cache, Placed};
use crate::fetch::FileSet;
use crate::id::ModelId;

/// The folder of all models, below the root.
pub const MODELS: &str = "azureml-models";
/// What says which models there are, below the root.
pub const MAP: &str = "model_config_map.json";

/// Where a tree is made before it takes its place, and where the old one goes.
const STAGE: &str = ".azureml-models.new";
/// Where the old tree is while the new one takes its place, on a file system that cannot exchange them.
const OLD: &str = ".azureml-models.old";
/// Locked by whoever makes a tree. That there is [`MARK`] in it says that a tree has been made, and that what is there is ours to replace.
const LOCK: &str = ".azureml-models.lock";
const MARK: &[u8] = b"outrigger\n";

/// A model that is to be in a tree.
#[derive(Clone, Copy, Debug)]
pub struct TreeModel<'a> {
    /// Which.
    pub id: &'a ModelId,
    /// Its files, all of which are in the cache.
    pub files: &'a FileSet,
}

/// A tree that has been made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// What `AZUREML_MODEL_DIR` is: the folder of the version of the only model, or the folder of all models.
    pub model_dir: PathBuf,
    /// Files that are links to those of the cache.
    pub linked: usize,
    /// Files that are copies.
    pub copied: usize,
}

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// There is a folder or map of models that nobody of us has made.
    #[error(
        "`{}` is there already and is not ours to replace; remove it, or have models elsewhere (store.root, --to)", path.display()
    )]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// Another process is making one there, or serves from it.
    #[error("`{}` is in use by another process; have models elsewhere (store.root, --to), or wait for it", path.display())]
    Taken {
        /// Which.
        path: PathBuf,
    },
    /// A file is no longer in the cache.
    #[error("`{path}` of `{id}` is no longer in the cache")]
    Gone {
        /// Of which model.
        id: ModelId,
        /// Which.
        path: String,
    },
    /// The file system.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A root that is ours for as long as this is held.
#[derive(Debug)]
pub struct TreeRoot {
    root: PathBuf,
    /// Locked for as long as this is open, and where the mark is.
    lock: File,
    /// Had by whoever changes the tree.
    changes: Mutex<()>,
}

/// `model_config_map.json`. Source: the contract of the system that is followed here.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigMap<'a> {
    models: BTreeMap<&'a str, MapModel>,
    models_info: BTreeMap<&'a str, BTreeMap<String, MapVersion>>,
    account_context: AccountContext,
}

#[derive(Serialize)]
struct MapModel {
    id: String,
    version: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MapVersion {
    internal_id: String,
    data_collector_storage_path: &'static str,
}

/// Whose workspace it is: nobody's, where there is none.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountContext {
    subscription_id: &'static str,
    resource_group_name: &'static str,
    account_name: &'static str,
    workspace_id: &'static str,
}

impl TreeRoot {
    /// Takes a root, which is made if it is not there.
    ///
    /// # Errors
    /// If another process has it, or there is a folder of models that is not ours.
    pub fn open(root: &Path) -> Result<Self, TreeError> {
        let io = |source| TreeError::Io { path: root.to_owned(), source };
        fs::create_dir_all(root).map_err(io)?;
        let root = root.canonicalize().map_err(io)?;
        let path = root.join(LOCK);
        // Nothing of ours is put beside what others have made.
        let marked = fs::metadata(&path).is_ok_and(|found| found.len() > 0);
        if !marked {
            refuse_foreign(&root)?;
        }
        let io = |source| TreeError::Io { path: path.clone(), source };
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(io)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(TreeError::Taken { path: root.join(MODELS) }),
            Err(error) => return Err(io(error.into())),
        }
        // Whoever had it may have made a tree meanwhile.
        if lock.metadata().map_err(io)?.len() == 0 {
            refuse_foreign(&root)?;
        }
        Ok(Self { root, lock, changes: Mutex::default() })
    }

    /// The folder of all models.
    pub fn models(&self) -> PathBuf {
        self.root.join(MODELS)
    }

    /// Has the tree on the disk. What the disk has not taken of a file may have been said already to who has synced the cache.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync(&self) -> io::Result<()> {
        sync_all(&self.models())?;
        File::open(self.root.join(MAP))?.sync_all()?;
        File::open(&self.root)?.sync_all()
    }

    /// Makes a tree of these models in place of the one that is there.
    ///
    /// # Errors
    /// Says what is missing, or what the file system says; the old tree stays.
    pub fn build(&self, cache: &Cache, models: &[TreeModel<'_>]) -> Result<Tree, TreeError> {
        let _alone = self.alone();
        let (stage, old) = (self.root.join(STAGE), self.root.join(OLD));
        remove_all(&stage)?;
        self.put_back(&old)?;
        let mut counts = Counts::default();
        create(&stage)?;
        for model in models {
            let version = stage.join(model.id.name.as_str()).join(model.id.version.to_string());
            place(cache, model, &version, &mut counts)?;
        }
        self.mark()?;
        swap(&stage, &self.models(), &old)?;
        self.write_map(models)?;
        let model_dir = match models {
            [only] => self.version(only.id),
            _ => self.models(),
        };
        Ok(Tree { model_dir, linked: counts.linked, copied: counts.copied })
    }

    /// The folder of a version.
    pub fn version(&self, id: &ModelId) -> PathBuf {
        self.models().join(id.name.as_str()).join(id.version.to_string())
    }

    /// Puts a version into the tree that has been made, in place of what is there of it: whoever looks sees all of the one or of the
    /// other. The map stays as it is.
    ///
    /// # Errors
    /// Says what is missing, or what the file system says; what was there of it stays.
    pub fn add(&self, cache: &Cache, model: &TreeModel<'_>) -> Result<PathBuf, TreeError> {
        let _alone = self.alone();
        let stage = self.root.join(STAGE).join(format!("{}@{}", model.id.name.as_str(), model.id.version));
        let old = stage.with_added_extension("old");
        remove_all(&stage)?;
        create(&stage)?;
        place(cache, model, &stage, &mut Counts::default())?;
        let version = self.version(model.id);
        version.parent().map_or(Ok(()), create)?;
        swap(&stage, &version, &old)?;
        Ok(version)
    }

    /// Whether there is anything of a version.
    pub fn has(&self, id: &ModelId) -> bool {
        self.version(id).exists()
    }

    /// Takes a version out of the tree, if it is there.
    ///
    /// # Errors
    /// If the file system does not.
    pub fn remove(&self, id: &ModelId) -> Result<(), TreeError> {
        let _alone = self.alone();
        remove_all(&self.version(id))
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that what is here is ours, just before it is: a process that ends in between leaves nothing that it does not take for its own.
    fn mark(&self) -> Result<(), TreeError> {
        let marked = self.lock.write_all_at(MARK, 0);
        marked.map_err(|source| TreeError::Io { path: self.root.join(LOCK), source })
    }

    /// Where a process ended while an old tree was aside, that has its place again; or it goes, if a new one has.
    fn put_back(&self, old: &Path) -> Result<(), TreeError> {
        let models = self.models();
        if fs::symlink_metadata(&models).is_ok() {
            return remove_all(old);
        }
        match fs::rename(old, &models) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(TreeError::Io { path: models, source })
            }
            _ => Ok(()),
        }
    }

    /// Writes what says which models there are.
    fn write_map(&self, models: &[TreeModel<'_>]) -> Result<(), TreeError> {
        let mut map = ConfigMap {
            models: BTreeMap::new(),
            models_info: BTreeMap::new(),
            account_context: AccountContext::default(),
        };
        for TreeModel { id, .. } in models {
            let entry = map.models.entry(id.name.as_str());
            let latest = entry.or_insert_with(|| MapModel { id: id.to_string(), version: id.version });
            if latest.version < id.version {
                *latest = MapModel { id: id.to_string(), version: id.version };
            }
            let version = MapVersion { internal_id: id.to_string(), data_collector_storage_path: "" };
            map.models_info.entry(id.name.as_str()).or_default().insert(id.version.to_string(), version);
        }
        let path = self.root.join(MAP);
        let unfinished = self.root.join(format!(".{MAP}.new"));
        let written = serde_json::to_vec(&map).map_err(io::Error::other).and_then(|bytes| {
            let mut file = File::create(&unfinished)?;
            file.write_all(&bytes)?;
            fs::rename(&unfinished, &path)
        });
        written.map_err(|source| TreeError::Io { path, source })
    }
}

/// Has the new tree take the place of the old one, and removes that.
fn swap(stage: &Path, models: &Path, old: &Path) -> Result<(), TreeError> {
    use rustix::io::Errno;
    match renameat_with(CWD, stage, CWD, models, RenameFlags::EXCHANGE) {
        Ok(()) => remove_all(stage),
        Err(Errno::NOENT) => {
            fs::rename(stage, models).map_err(|source| TreeError::Io { path: models.to_owned(), source })
        }
        // A file system, or a kernel, that cannot exchange.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => replace(stage, models, old),
        Err(error) => Err(TreeError::Io { path: models.to_owned(), source: error.into() }),
    }
}

/// Has folders on the disk, and files.
fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

/// How files came where they are.
#[derive(Default)]
struct Counts {
    linked: usize,
    copied: usize,
}

/// Puts a version's files below a folder.
fn place(cache: &Cache, model: &TreeModel<'_>, version: &Path, counts: &mut Counts) -> Result<(), TreeError> {
    let mut folders = BTreeSet::new();
    for member in model.files.files() {
        let target = version.join(member.path.as_path());
        if let Some(folder) = target.parent().filter(|folder| !folders.contains(*folder)) {
            create(folder)?;
            folders.insert(folder.to_owned());
        }
        match cache.place(&member.sha256, &target) {
            Ok(Placed::Linked) => counts.linked += 1,
            Ok(Placed::Copied) => counts.copied += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TreeError::Gone { id: model.id.clone(), path: member.path.to_string() });
            }
            Err(source) => return Err(TreeError::Io { path: target, source }),
        }
    }
    Ok(())
}

/// Puts the old one aside, the new one in its place, and removes the old one: for a moment there is none.
fn replace(stage: &Path, models: &Path, old: &Path) -> Result<(), TreeError> {
    let io = |source| TreeError::Io { path: models.to_owned(), source };
    let aside = match fs::rename(models, old) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(io(error)),
    };
    let renamed = fs::rename(stage, models);
    if renamed.is_err() && aside {
        fs::rename(old, models).map_err(io)?;
    }
    renamed.map_err(io)?;
    remove_all(old)
}

/// Nothing that is there by a name of ours is replaced unless we have made it.
fn refuse_foreign(root: &Path) -> Result<(), TreeError> {
    let mut names = [MODELS, MAP].into_iter().map(|name| root.join(name));
    let foreign = names.find(|path| fs::symlink_metadata(path).is_ok());
    foreign.map_or(Ok(()), |path| Err(TreeError::Foreign { path }))
}

fn create(folder: &Path) -> Result<(), TreeError> {
    fs::create_dir_all(folder).map_err(|source| TreeError::Io { path: folder.to_owned(), source })
}

fn remove_all(folder: &Path) -> Result<(), TreeError> {
    match fs::remove_dir_all(folder) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(TreeError::Io { path: folder.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::cache::Member;
    use crate::path::FilePath;

    struct Fixture {
        folder: tempfile::TempDir,
        cache: Cache,
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(folder.path().join("cache"), None).expect("a cache");
        Fixture { folder, cache }
    }

    impl Fixture {
        fn files(&self, files: &[(&str, &str)]) -> FileSet {
            let member = |(path, text): &(&str, &str)| {
                let (sha256, size) = self.cache.take_in(&mut text.as_bytes(), u64::MAX).expect("taken");
                Member { path: FilePath::new(*path).expect("a path"), size, sha256 }
            };
            FileSet::new(files.iter().map(member).collect()).expect("files")
        }

        fn root(&self) -> PathBuf {
            self.folder.path().join("app")
        }
    }

    fn id(text: &str) -> ModelId {
        text.parse().expect("an id")
    }

    #[test]
    fn one_model_is_seen_by_its_version_and_many_by_their_folder() {
        let fixture = fixture();
        let root = TreeRoot::open(&fixture.root()).expect("a root");
        let (digits, faces) = (id("digits:3"), id("faces:12"));
        let files = fixture.files(&[("model/a/b.bin", "weights"), ("model/c.txt", "text")]);
        let one = root.build(&fixture.cache, &[TreeModel { id: &digits, files: &files }]).expect("a tree");
        let models = fixture.root().canonicalize().expect("there").join("azureml-models");
        root.sync().expect("on the disk");
        assert_eq!(one, Tree { model_dir: models.join("digits/3"), linked: 2, copied: 0 });
        assert_eq!(fs::read_to_string(one.model_dir.join("model/a/b.bin")).expect("there"), "weights");
        let other = fixture.files(&[("face.onnx", "weights")]);
        let both = [TreeModel { id: &digits, files: &files }, TreeModel { id: &faces, files: &other }];
        let many = root.build(&fixture.cache, &both).expect("a tree");
        assert_eq!((many.model_dir.as_path(), many.linked), (models.as_path(), 3));
        let placed = fs::metadata(models.join("faces/12/face.onnx")).expect("there");
        assert_eq!((placed.mode() & 0o777, placed.nlink()), (0o444, 3), "equal files are one");
        let map: serde_json::Value =
            serde_json::from_slice(&fs::read(fixture.root().join(MAP)).expect("there")).expect("JSON");
        let expected = serde_json::json!({
            "models": {"digits": {"id": "digits:3", "version": 3}, "faces": {"id": "faces:12", "version": 12}},
            "modelsInfo": {
                "digits": {"3": {"internalId": "digits:3", "dataCollectorStoragePath": ""}},
                "faces": {"12": {"internalId": "faces:12", "dataCollectorStoragePath": ""}}},
            "accountContext": {"subscriptionId": "", "resourceGroupName": "", "accountName": "", "workspaceId": ""}});
        assert_eq!(map, expected);
        let again = root.build(&fixture.cache, &both[1..]).expect("a tree");
        assert!(again.model_dir.ends_with("faces/12") && !models.join("digits").exists());
        let names =
            fs::read_dir(fixture.root()).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        assert_eq!(names.collect::<BTreeSet<_>>().len(), 3, "models, map, lock");
    }

    #[test]
    fn versions_come_and_go_whole() {
        let fixture = fixture();
        let root = TreeRoot::open(&fixture.root()).expect("a root");
        let (three, four) = (id("digits:3"), id("digits:4"));
        let nothing = FileSet::default();
        root.build(&fixture.cache, &[TreeModel { id: &three, files: &nothing }]).expect("a tree");
        let map = fs::read(fixture.root().join(MAP)).expect("there");
        for (id, text) in [(&three, "old"), (&four, "new"), (&three, "other")] {
            let files = fixture.files(&[("digits/a.bin", text)]);
            let at = root.add(&fixture.cache, &TreeModel { id, files: &files }).expect("added");
            assert_eq!(at, root.version(id));
            assert_eq!(fs::read_to_string(at.join("digits/a.bin")).expect("there"), text);
        }
        assert_eq!(fs::read(fixture.root().join(MAP)).expect("there"), map);
        let member =
            Member { path: FilePath::new("b").expect("a path"), size: 1, sha256: crate::Digest::of(b"gone") };
        let missing = FileSet::new(vec![member]).expect("files");
        root.add(&fixture.cache, &TreeModel { id: &three, files: &missing }).expect_err("gone");
        assert!(root.version(&three).join("digits/a.bin").exists(), "what was there stays");
        root.remove(&three).expect("removed");
        root.remove(&three).expect("nothing is left to remove");
        assert!(!root.version(&three).exists() && root.version(&four).exists());
        root.build(&fixture.cache, &[TreeModel { id: &three, files: &nothing }]).expect("a tree");
        assert!(!fixture.root().join(STAGE).exists(), "what was left of one that was not added is gone");
    }

    #[test]
    fn what_others_have_made_or_have_open_stays() {
        let fixture = fixture();
        let root = TreeRoot::open(&fixture.root()).expect("a root");
        let taken = TreeRoot::open(&fixture.root()).expect_err("taken").to_string();
        assert!(taken.contains("azureml-models` is in use by another process; "), "{taken}");
        drop(root);
        TreeRoot::open(&fixture.root()).expect("free again");
        let foreign = fixture.folder.path().join("theirs");
        fs::create_dir_all(foreign.join("azureml-models/digits/1")).expect("a folder");
        let error = TreeRoot::open(&foreign).expect_err("theirs").to_string();
        assert!(error.contains("azureml-models` is there already and is not ours to replace; "), "{error}");
        assert!(!foreign.join(LOCK).exists());
        let other = fixture.folder.path().join("also theirs");
        fs::create_dir(&other).expect("a folder");
        fs::write(other.join(MAP), "{}").expect("a file");
        let error = TreeRoot::open(&other).expect_err("theirs").to_string();
        assert!(error.contains("model_config_map.json` is there already"), "{error}");
    }

    #[test]
    fn who_has_made_nothing_has_nothing_to_replace() {
        let fixture = fixture();
        drop(TreeRoot::open(&fixture.root()).expect("a root"));
        fs::create_dir(fixture.root().join(MODELS)).expect("a folder");
        TreeRoot::open(&fixture.root()).expect_err("somebody else has put it there");
        fs::remove_dir(fixture.root().join(MODELS)).expect("ours");
        let root = TreeRoot::open(&fixture.root()).expect("a root");
        let files = fixture.files(&[("a", "kept")]);
        root.build(&fixture.cache, &[TreeModel { id: &id("digits:3"), files: &files }]).expect("a tree");
        drop(root);
        TreeRoot::open(&fixture.root()).expect("what was made is ours");
    }

    #[test]
    fn where_trees_cannot_be_exchanged_the_old_one_is_there_until_the_new_one_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let (stage, models, old) = (at(STAGE), at(MODELS), at(OLD));
        fs::create_dir_all(stage.join("first")).expect("a folder");
        replace(&stage, &models, &old).expect("replaced");
        assert!(models.join("first").exists());
        replace(&stage, &models, &old).expect_err("there is no new one");
        assert!(models.join("first").exists(), "it is put back");
        fs::create_dir_all(stage.join("second")).expect("a folder");
        replace(&stage, &models, &old).expect("replaced");
        assert!(models.join("second").exists() && !models.join("first").exists() && !old.exists());
    }

    #[test]
    fn an_old_tree_that_was_aside_as_a_process_ended_has_its_place_again() {
        let fixture = fixture();
        let root = TreeRoot::open(&fixture.root()).expect("a root");
        let (digits, files) = (id("digits:3"), fixture.files(&[("a", "kept")]));
        root.build(&fixture.cache, &[TreeModel { id: &digits, files: &files }]).expect("a tree");
        fs::rename(root.models(), fixture.root().join(OLD)).expect("ours");
        let member =
            Member { path: FilePath::new("b").expect("a path"), size: 1, sha256: crate::Digest::of(b"gone") };
        let missing = FileSet::new(vec![member]).expect("files");
        root.build(&fixture.cache, &[TreeModel { id: &digits, files: &missing }]).expect_err("gone");
        assert!(root.models().join("digits/3/a").exists() && !fixture.root().join(OLD).exists());
    }

    #[test]
    fn a_file_that_made_way_is_named_and_the_old_tree_stays() {
        let fixture = fixture();
        let root = TreeRoot::open(&fixture.root()).expect("a root");
        let digits = id("digits:3");
        let files = fixture.files(&[("a", "kept")]);
        root.build(&fixture.cache, &[TreeModel { id: &digits, files: &files }]).expect("a tree");
        let member =
            Member { path: FilePath::new("b").expect("a path"), size: 1, sha256: crate::Digest::of(b"gone") };
        let missing = FileSet::new(vec![member]).expect("files");
        let error =
            root.build(&fixture.cache, &[TreeModel { id: &digits, files: &missing }]).expect_err("gone");
        assert_eq!(error.to_string(), "`b` of `digits:3` is no longer in the cache");
        assert!(fixture.root().join("azureml-models/digits/3/a").exists());
    }
}
