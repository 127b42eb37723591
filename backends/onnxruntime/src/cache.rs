//! Optimised models on disk: what ONNX Runtime makes of a model's graph is the same every time, and takes longer than reading it.
//!
//! A file is named by what it was made from: the model, the versions, the processor or device. Because reading all of a model takes as long as loading
//! many, a model that lies where it lay, unchanged by its size and times, is known by these ([`Cache::known`]). A file ends in
//! a digest of its own, so that one which is damaged is noticed, removed and made again. It is written under another name and then renamed, so that any number of processes
//! may have one folder. Nothing here makes a load fail: where the cache does not work, the model is loaded without it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::folder::private_folder;
use crate::provider::Plan;
use crate::steps::Asked;

/// Changes with the form of the files and with how sessions are made from models.
const FORM: &str = "optimised model, form 2";
const EXTENSION: &str = "optimised";
/// Of files that hold the name of a model's entry, and are named by where the model lies, its size and its times.
const KEY: &str = "key";
/// Ends a file, before its digest: in Protocol Buffers the beginning of a field of 32 bytes, with a number that ONNX does not
/// have (1000), so that the file is a model with it too.
const MARK: [u8; 3] = [0xc2, 0x3e, DIGEST as u8];
const DIGEST: usize = 32;
/// After so long a file that was not renamed belongs to a process that died.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A folder of optimised models.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    most_bytes: u64,
    /// What all keys have in common: versions, and what the provider adds.
    circumstances: String,
}

/// Why a folder is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("setting `cache`: {}: {why} (name a folder that can be written, or leave it out)", path.display())]
    Folder { path: PathBuf, why: io::Error },
    #[error("setting `cache`: {} must be this user's, and closed to others (mode 0700): remove it or name another folder", path.display())]
    Open { path: PathBuf },
}

/// Where a model's optimised form is, or would be.
pub(crate) struct Entry<'a> {
    cache: &'a Cache,
    path: PathBuf,
}

impl Cache {
    /// Opens the cache of a backend in `folder`, and makes it where it is missing. `version` is ONNX Runtime's, and
    /// `circumstances` what optimised models depend on besides.
    pub(crate) fn open(
        folder: &Path,
        backend: &str,
        most_bytes: u64,
        version: &str,
        circumstances: &str,
    ) -> Result<Self, CacheError> {
        let path = Self::place(folder, backend)?;
        let own = env!("CARGO_PKG_VERSION");
        let circumstances =
            format!("outrigger-{backend} {FORM}\n{own}\nONNX Runtime {version}\n{circumstances}");
        Ok(Self { folder: path, most_bytes, circumstances })
    }

    /// What is ours alone within the folder of the setting, which may be open to others or shared with other things. It is made where it is
    /// missing.
    pub(crate) fn place(folder: &Path, backend: &str) -> Result<PathBuf, CacheError> {
        let path = folder.join(format!("outrigger-{backend}"));
        match fs::create_dir_all(folder).and_then(|()| private_folder(&path)) {
            Ok(true) => Ok(path),
            Ok(false) => Err(CacheError::Open { path }),
            Err(why) => Err(CacheError::Folder { path, why }),
        }
    }

    /// The same folder, for models of this plan and with these steps. What its providers and entries leave of a graph is not what others would,
    /// and steps are in it.
    pub(crate) fn under(&self, Plan { providers, entries, .. }: &Plan, steps: Option<&Asked>) -> Self {
        let mut under = self.clone();
        if let Some(steps) = steps {
            under.circumstances.push_str(&format!("\n{steps:?}"));
        }
        if !(providers.is_empty() && entries.is_empty()) {
            under.circumstances.push_str(&format!("\n{providers:?}\n{entries:?}"));
        }
        under
    }

    /// The entry of the model at `path`.
    pub(crate) fn entry(&self, path: &Path) -> io::Result<Entry<'_>> {
        let known = self.known(path)?;
        let name = fs::read_to_string(&known).ok();
        // What somebody else could have written there is a path.
        let is_name = |name: &String| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let name = match name.filter(is_name) {
            Some(name) => name,
            None => {
                let name = self.name(path)?;
                // A file that changed meanwhile is not known.
                if known == self.known(path)? {
                    let draft = self.draft_path(&known);
                    let written = private_file(&draft)
                        .and_then(|_| fs::write(&draft, &name))
                        .and_then(|()| fs::rename(&draft, &known));
                    // A folder that is full or cannot be written still has what is in it.
                    if written.is_err() {
                        let _ = fs::remove_file(&draft);
                    }
                }
                name
            }
        };
        Ok(Entry { cache: self, path: self.folder.join(name).with_extension(EXTENSION) })
    }

    /// Where the name of the entry of the model at `path` is written down, if it is.
    fn known(&self, path: &Path) -> io::Result<PathBuf> {
        let path = path.canonicalize()?;
        let metadata = fs::metadata(&path)?;
        let mut place = Sha256::new();
        place.update(self.circumstances.as_bytes());
        place.update(path.as_os_str().as_encoded_bytes());
        place.update(format!("\n{} {:?} {:?}", metadata.len(), metadata.modified()?, changed(&metadata)));
        Ok(self.folder.join(hex(&place.finalize())).with_extension(KEY))
    }

    /// The name of the entry of the model at `path`, of which all bytes are read for it.
    fn name(&self, path: &Path) -> io::Result<String> {
        let mut model = Sha256::new();
        io::copy(&mut File::open(path)?, &mut HashWriter(&mut model))?;
        let mut key = Sha256::new();
        key.update(self.circumstances.as_bytes());
        key.update(model.finalize());
        Ok(hex(&key.finalize()))
    }

    fn draft_path(&self, path: &Path) -> PathBuf {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        path.with_extension(format!("{}-{number}.draft", std::process::id()))
    }

    /// Whether a file of a name leads to an entry that is there.
    fn leads(&self, key: &Path) -> bool {
        let name = fs::read_to_string(key).unwrap_or_default();
        name.len() == 64 && self.folder.join(name).with_extension(EXTENSION).exists()
    }

    /// Makes room, the least recently used first, and clears away what was abandoned.
    fn evict(&self) -> io::Result<()> {
        let mut kept = Vec::new();
        for file in fs::read_dir(&self.folder)? {
            let (path, metadata) = match file.and_then(|file| Ok((file.path(), file.metadata()?))) {
                Ok(file) => file,
                // Another process was faster.
                Err(_) => continue,
            };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let is_key = path.extension().is_some_and(|extension| extension == KEY);
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                kept.push((used, metadata.len(), path));
            } else if used.elapsed().is_ok_and(|age| age > ABANDONED) && !(is_key && self.leads(&path)) {
                let _ = fs::remove_file(path);
            }
        }
        kept.sort();
        let mut bytes = kept.iter().map(|(_, bytes, _)| *bytes).fold(0, u64::saturating_add);
        for (_, len, path) in kept {
            if bytes <= self.most_bytes {
                break;
            }
            let _ = fs::remove_file(path);
            bytes -= len;
        }
        Ok(())
    }
}

impl Entry<'_> {
    /// The file of the optimised model, if there is one; one that is damaged is removed.
    pub(crate) fn file(&self) -> Option<&Path> {
        let file = File::open(&self.path).ok()?;
        match is_whole(file) {
            Ok(true) => {
                // So that it is not among the first to go. Its age is all that this is about.
                if let Ok(file) = File::options().write(true).open(&self.path) {
                    let _ = file.set_modified(SystemTime::now());
                }
                Some(&self.path)
            }
            _ => {
                self.remove();
                None
            }
        }
    }

    /// Removes a file that turned out to be of no use.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    /// A file for ONNX Runtime to write the optimised model to.
    pub(crate) fn draft(&self) -> io::Result<Draft<'_>> {
        let path = self.cache.draft_path(&self.path);
        // Here and not by ONNX Runtime, which would take the usual mode.
        private_file(&path)?;
        Ok(Draft { entry: self, path })
    }
}

/// A file that is being written; removed unless it is kept.
pub(crate) struct Draft<'a> {
    entry: &'a Entry<'a>,
    path: PathBuf,
}

impl Draft<'_> {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its digest and its name, and makes room for it.
    pub(crate) fn keep(self) -> io::Result<()> {
        let mut digest = blake3::Hasher::new();
        let len = io::copy(&mut File::open(&self.path)?, &mut digest)?;
        let end = (MARK.len() + DIGEST) as u64;
        if len == 0 || len.saturating_add(end) > self.entry.cache.most_bytes {
            return Ok(());
        }
        let mut file = File::options().append(true).open(&self.path)?;
        file.write_all(&MARK)?;
        file.write_all(digest.finalize().as_bytes())?;
        // A name that outlives the machine's fall must not stand for less than the whole file; the digest would tell, but late.
        file.sync_data()?;
        fs::rename(&self.path, &self.entry.path)?;
        self.entry.cache.evict()
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        // Gone already if it was kept.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a file is what its end says. BLAKE3, which is several times faster than SHA-256 and as good against accidents.
fn is_whole(mut file: File) -> io::Result<bool> {
    let end = (MARK.len() + DIGEST) as u64;
    let Some(len) = file.metadata()?.len().checked_sub(end) else { return Ok(false) };
    let mut digest = blake3::Hasher::new();
    let mut room = vec![0; 1 << 16];
    let mut model = (&file).take(len);
    loop {
        match model.read(&mut room)? {
            0 => break,
            read => _ = digest.update(&room[..read]),
        }
    }
    let mut found = Vec::new();
    file.read_to_end(&mut found)?;
    Ok(found.split_at_checked(MARK.len()) == Some((&MARK[..], &digest.finalize().as_bytes()[..])))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// When the file's place, owner or content was changed last, which nobody can set back.
#[cfg(unix)]
fn changed(metadata: &fs::Metadata) -> impl std::fmt::Debug {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
}

#[cfg(not(unix))]
fn changed(metadata: &fs::Metadata) -> impl std::fmt::Debug {
    metadata.created().ok()
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn private_file(path: &Path) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, most_bytes: u64, version: &str) -> Result<Cache, CacheError> {
        Cache::open(folder, "cpu", most_bytes, version, "a processor")
    }

    fn keep(cache: &Cache, model: &Path, optimised: &[u8]) {
        let entry = cache.entry(model).unwrap();
        let draft = entry.draft().unwrap();
        fs::write(draft.path(), optimised).unwrap();
        draft.keep().unwrap();
    }

    fn files(cache: &Cache) -> Vec<PathBuf> {
        let all = fs::read_dir(&cache.folder).unwrap().map(|file| file.unwrap().path());
        all.filter(|path| path.extension().is_none_or(|extension| extension != KEY)).collect()
    }

    /// What is kept of a model, without the end that it has been given.
    fn read(cache: &Cache, model: &Path) -> Option<Vec<u8>> {
        let entry = cache.entry(model).unwrap();
        let mut bytes = fs::read(entry.file()?).unwrap();
        bytes.truncate(bytes.len() - MARK.len() - DIGEST);
        Some(bytes)
    }

    #[test]
    fn what_is_kept_is_found_by_content_and_circumstances() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        fs::write(&one, "a model").unwrap();
        fs::write(&other, "a model").unwrap();
        let cache = open(folder.path(), 1000, "1.32").unwrap();
        assert_eq!(read(&cache, &one), None);
        keep(&cache, &one, b"optimised");
        assert_eq!(read(&cache, &other).as_deref(), Some(&b"optimised"[..]), "content, not name");
        let newer = open(folder.path(), 1000, "1.33").unwrap();
        assert_eq!(read(&newer, &one), None);
        fs::write(&one, "another model").unwrap();
        assert_eq!(read(&cache, &one), None);
        assert_eq!(files(&cache).len(), 1, "no draft is left");
    }

    #[test]
    fn damaged_files_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::write(&model, "a model").unwrap();
        let cache = open(folder.path(), 1000, "1").unwrap();
        let damage: [fn(&mut Vec<u8>); 4] =
            [|bytes| bytes[0] ^= 1, |bytes| bytes.truncate(20), Vec::clear, |bytes| bytes.push(0)];
        for damage in damage {
            keep(&cache, &model, b"optimised");
            let path = files(&cache).pop().unwrap();
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();
            assert_eq!(read(&cache, &model), None);
            assert!(!path.exists());
        }
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let model = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            path
        };
        let [a, b, c, large] = ["a", "b", "c", "large"].map(model);
        // Room for two of 60 bytes with their ends of 35.
        let cache = open(folder.path(), 200, "1").unwrap();
        let age = |model: &Path, seconds: u64| {
            let entry = cache.entry(model).unwrap();
            let file = File::options().write(true).open(&entry.path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        keep(&cache, &a, &[0; 60]);
        keep(&cache, &b, &[1; 60]);
        age(&a, 20);
        age(&b, 10);
        assert!(read(&cache, &a).is_some(), "which makes it the last one used");
        keep(&cache, &c, &[2; 60]);
        let has = |model: &Path| cache.entry(model).unwrap().path.exists();
        assert_eq!([has(&a), has(&b), has(&c)], [true, false, true]);
        keep(&cache, &large, &[3; 166]);
        assert_eq!([has(&a), has(&c), has(&large)], [true, true, false], "what cannot fit makes nothing go");
        let abandoned = cache.folder.join("x.draft");
        fs::write(&abandoned, "").unwrap();
        let file = File::options().write(true).open(&abandoned).unwrap();
        file.set_modified(SystemTime::now() - 2 * ABANDONED).unwrap();
        keep(&cache, &b, &[1; 60]);
        assert!(!abandoned.exists());
    }

    #[test]
    #[cfg(unix)]
    fn files_are_for_this_user_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::write(&model, "a model").unwrap();
        let cache = open(&folder.path().join("new/cache"), 1000, "1").unwrap();
        keep(&cache, &model, b"optimised");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&cache.folder), mode(&files(&cache)[0])), (0o700, 0o600));
        fs::set_permissions(&cache.folder, fs::Permissions::from_mode(0o770)).unwrap();
        let again = open(&folder.path().join("new/cache"), 1000, "1");
        let text = again.unwrap_err().to_string();
        assert!(text.starts_with("setting `cache`: ") && text.contains("mode 0700"), "{text}");
        let text = open(&model, 1000, "1").unwrap_err().to_string();
        assert!(text.starts_with("setting `cache`: ") && text.contains("leave it out"), "{text}");
    }
}
