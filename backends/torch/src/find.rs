//! Where libtorch is, and whether it is the one that is needed.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::LIBTORCH;
use crate::kind::Kind;

/// The libraries, each after those that it needs. Some builds of libtorch have none of CUDA's, and need none.
const LIBRARIES: &[&str] =
    &["libgomp.so.1", "libcudart.so.13", "libcupti.so.13", "libc10.so", "libtorch_cpu.so"];
/// Those without which it is no libtorch.
const NEEDED: &[&str] = &["libc10.so", MAIN];
/// That which most of it is in.
pub(crate) const MAIN: &str = "libtorch_cpu.so";
/// Those for NVIDIA's GPUs, likewise. What they need themselves they find by their own path: it lies where the packages are.
const CUDA: &[&str] = &["libc10_cuda.so", CUDA_MAIN];
/// That which most of those is in.
pub(crate) const CUDA_MAIN: &str = "libtorch_cuda.so";
/// How long Python may take to say where its package is.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer: a path, of which Linux has none longer.
const ANSWER_BYTES: u64 = 4096;

/// Libtorch, as files.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// In the order in which they are to be loaded.
    pub(crate) libraries: Vec<PathBuf>,
}

/// Finds libtorch: where the setting says, and nowhere else if it says so; else in the folder `libtorch` beside the plug-in, which may be a
/// link; else the package `torch` of the `python3` on the search path.
///
/// # Errors
/// What was tried, and what is wrong there.
pub(crate) fn libtorch(kind: Kind, setting: Option<PathBuf>, beside: Option<&Path>) -> Result<Found, String> {
    let name = match kind {
        Kind::Cpu => format!("libtorch {LIBTORCH}"),
        Kind::Cuda => format!("libtorch {LIBTORCH} with CUDA"),
    };
    let look = |folder: &Path| look(kind, folder);
    if let Some(folder) = setting {
        return look(&folder).map_err(|why| format!("no {name}; tried {why}"));
    }
    let mut tried = Vec::new();
    if let Some(beside) = beside {
        match look(&beside.join("libtorch")) {
            Ok(found) => return Ok(found),
            Err(why) => tried.push(why),
        }
    }
    match package("python3".as_ref(), PATIENCE) {
        Ok(folder) => match look(&folder) {
            Ok(found) => return Ok(found),
            Err(why) => tried.push(why),
        },
        Err(why) => tried.push(format!("the package `torch` of `python3`: {why}")),
    }
    Err(format!("no {name}; tried {}", tried.join("; ")))
}

/// Looks at a folder: `lib` in it, and its version.
fn look(kind: Kind, folder: &Path) -> Result<Found, String> {
    let more = if kind == Kind::Cuda { CUDA } else { &[] };
    let told = |why: &str| format!("`{}`: {why}", folder.display());
    let lib = folder.join("lib");
    if let Some(missing) = NEEDED.iter().chain(more).find(|name| !lib.join(name).is_file()) {
        return Err(told(&format!("there is no lib/{missing}")));
    }
    match version(folder) {
        Some(version) if version == LIBTORCH => {}
        Some(version) => return Err(told(&format!("is version {version}"))),
        None => return Err(told("does not say which version it is, in `build-version` or `version.py`")),
    }
    // A Python package has CUDA's in a package beside it.
    let folders = [lib, folder.join("../nvidia/cu13/lib")];
    let find = |name: &&str| folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    Ok(Found { libraries: LIBRARIES.iter().chain(more).filter_map(find).collect() })
}

/// What the folder says of itself, without what follows a `+`: how it was built.
fn version(folder: &Path) -> Option<String> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let quoted = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?.trim().to_owned();
        Some(line.trim_matches(['\'', '"']).to_owned())
    };
    let text = read("build-version").or_else(|| quoted(read("version.py")?))?;
    Some(text.trim().split('+').next().unwrap_or_default().to_owned())
}

/// Asks Python where its package is, without importing that. Whatever it has started ends with it.
fn package(python: &OsStr, patience: Duration) -> Result<PathBuf, String> {
    const QUESTION: &str = "import importlib.util; spec = importlib.util.find_spec('torch')\n\
        print(next(iter(spec.submodule_search_locations)) if spec else '')";
    let mut child = Command::new(python)
        // Not from the working directory, which may be anybody's.
        .args(["-P", "-c", QUESTION])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| error.to_string())?;
    let answer = child.stdout.take().map(|stdout| line(stdout, patience));
    let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
    let _ = child.wait();
    match answer.flatten().ok_or("it does not answer")?.trim() {
        "" => Err("there is none".into()),
        folder => Ok(folder.into()),
    }
}

/// The first line of what is written there; `None` if it does not come in time. Another process may have the other end as well, and keep it open.
fn line(from: impl Read + Send + 'static, patience: Duration) -> Option<String> {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = Vec::new();
        let read = BufReader::new(from.take(ANSWER_BYTES)).read_until(b'\n', &mut line);
        let _ = send.send(read.map(|_| String::from_utf8_lossy(&line).into_owned()));
    });
    receive.recv_timeout(patience).ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn names(found: &Found) -> Vec<&str> {
        found.libraries.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
    }

    const LIBRARIES: [(&str, &str); 2] = [("torch/lib/libc10.so", ""), ("torch/lib/libtorch_cpu.so", "")];

    #[test]
    fn a_folder_is_taken_if_it_is_the_right_version() {
        let check = |more: &[(&str, &str)], expected: Result<&[&str], &str>| {
            let folder = folder(&[&LIBRARIES[..], more].concat());
            let path = folder.path().join("torch");
            let got = libtorch(Kind::Cpu, Some(path.clone()), None);
            let got = got.as_ref().map(names).map_err(|why| why.replace(&path.display().to_string(), "DIR"));
            let expected = expected.map(<[&str]>::to_vec);
            assert_eq!(got, expected.map_err(|why| format!("no libtorch 2.11.0; tried `DIR`: {why}")));
        };
        check(&[("torch/build-version", "2.11.0+cpu\n")], Ok(&["libc10.so", "libtorch_cpu.so"]));
        check(
            &[
                ("torch/version.py", "__all__ = []\n__version__ = '2.11.0+cu130'\ndebug = False\n"),
                ("nvidia/cu13/lib/libcudart.so.13", ""),
                ("torch/lib/libgomp.so.1", ""),
            ],
            Ok(&["libgomp.so.1", "libcudart.so.13", "libc10.so", "libtorch_cpu.so"]),
        );
        check(&[("torch/build-version", "2.12.1\n")], Err("is version 2.12.1"));
        check(&[], Err("does not say which version it is, in `build-version` or `version.py`"));
        let why = libtorch(Kind::Cpu, Some("/nowhere".into()), None).unwrap_err();
        assert_eq!(why, "no libtorch 2.11.0; tried `/nowhere`: there is no lib/libc10.so");
    }

    #[test]
    fn gpus_need_the_libraries_for_them() {
        let look = |more: &[(&str, &str)]| {
            let files = [&LIBRARIES[..], &[("torch/build-version", "2.11.0+cu130")], more].concat();
            let folder = folder(&files);
            let path = folder.path().join("torch");
            let got = libtorch(Kind::Cuda, Some(path.clone()), None);
            got.map(|found| names(&found).join(" "))
                .map_err(|why| why.replace(&path.display().to_string(), "DIR"))
        };
        let of_cuda = [("torch/lib/libc10_cuda.so", ""), ("torch/lib/libtorch_cuda.so", "")];
        assert_eq!(look(&of_cuda).unwrap(), "libc10.so libtorch_cpu.so libc10_cuda.so libtorch_cuda.so");
        let why = "no libtorch 2.11.0 with CUDA; tried `DIR`: there is no lib/libtorch_cuda.so";
        assert_eq!(look(&of_cuda[..1]).unwrap_err(), why);
    }

    #[test]
    fn python_is_asked_where_its_package_is() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = tempfile::tempdir().unwrap();
        let ask = |script: &str, patience| {
            let python = folder.path().join("python3");
            std::fs::write(&python, script).unwrap();
            std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
            package(python.as_os_str(), patience)
        };
        assert_eq!(ask("#!/bin/sh\necho /venv/torch\n", PATIENCE), Ok("/venv/torch".into()));
        assert_eq!(ask("#!/bin/sh\necho\n", PATIENCE), Err("there is none".into()));
        assert_eq!(ask("#!/bin/sh\nexit 1\n", PATIENCE), Err("there is none".into()));
        let endless = ask("#!/bin/sh\nexec sleep 1000\n", Duration::from_millis(50));
        assert_eq!(endless, Err("it does not answer".into()));
        // What it has started, and left behind, has the other end of the pipe; it ends as well.
        let file = folder.path().join("left");
        let left = format!("sleep 1000 &\necho $! > {}\n", file.display());
        assert_eq!(ask(&format!("#!/bin/sh\n{left}echo /venv/torch\n"), PATIENCE), Ok("/venv/torch".into()));
        gone(&file);
        let silent = ask(&format!("#!/bin/sh\n{left}"), Duration::from_millis(200));
        assert_eq!(silent, Err("it does not answer".into()));
        gone(&file);
        assert!(package("/nowhere/python3".as_ref(), PATIENCE).unwrap_err().contains("No such file"));
    }

    /// Waits until the process whose number is in the file has ended.
    fn gone(file: &Path) {
        let stat = format!("/proc/{}/stat", std::fs::read_to_string(file).unwrap().trim());
        let end = std::time::Instant::now() + PATIENCE;
        // Nobody may be there to hear of it, which makes it a zombie.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(std::time::Instant::now() < end, "it goes on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_lies_beside_the_plug_in_is_found() {
        let folder = folder(&[&LIBRARIES[..], &[("torch/build-version", "2.11.0")]].concat());
        std::os::unix::fs::symlink("torch", folder.path().join("libtorch")).unwrap();
        assert_eq!(
            names(&libtorch(Kind::Cpu, None, Some(folder.path())).unwrap()),
            ["libc10.so", "libtorch_cpu.so"]
        );
    }
}
