//! CUDA's, cuDNN's and TensorRT's libraries, opened before ONNX Runtime's providers, which name them without a folder.
//!
//! ONNX Runtime's Python package does the same (`onnxruntime.preload_dlls`). Where the system's loader finds them by itself, there is nothing
//! to do; which are missing altogether, it says when a provider is opened.

use std::path::{Path, PathBuf};

/// In the order in which they need each other. What cuDNN and TensorRT open later they find beside themselves.
const NAMES: &[&str] = &[
    "libcudart.so.13",
    "libnvJitLink.so.13",
    "libnvrtc.so.13",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcurand.so.10",
    "libcufft.so.12",
    "libcudnn.so.9",
    "libnvinfer.so.10",
    "libnvonnxparser.so.10",
];

/// Folders in which Python packages have them, within the folder that all packages are in.
const PACKAGES: &[&str] = &["nvidia/cu13/lib", "nvidia/cudnn/lib", "tensorrt_libs", "torch/lib"];

/// The folders to look in: those of the setting, else those of the packages beside the one that `onnxruntime` lies in.
pub(crate) fn folders(set: Option<&str>, onnxruntime: Option<&Path>) -> Vec<PathBuf> {
    if let Some(set) = set {
        return std::env::split_paths(set).filter(|folder| !folder.as_os_str().is_empty()).collect();
    }
    // SITE/onnxruntime/capi/libonnxruntime.so.1.31.1
    let site = onnxruntime.and_then(|library| library.ancestors().nth(3));
    let folders = site.into_iter().flat_map(|site| PACKAGES.iter().map(|package| site.join(package)));
    folders.filter(|folder| folder.is_dir()).collect()
}

/// Opens what is there, for the whole process and for good. Gives back what is there and does not open, and why.
pub(crate) fn open(folders: &[PathBuf]) -> Vec<String> {
    let find = |name: &&str| folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    NAMES.iter().filter_map(find).filter_map(|path| open_one(&path).err()).collect()
}

#[cfg(unix)]
fn open_one(path: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
    // SAFETY: libraries of NVIDIA's, or what the setting says are.
    let opened = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_GLOBAL) };
    let library =
        opened.map_err(|error| format!("`{}`: {}", path.display(), outrigger_backend::chain(&error)))?;
    // They have threads of their own.
    std::mem::forget(library);
    Ok(())
}

#[cfg(not(unix))]
fn open_one(path: &Path) -> Result<(), String> {
    Err(format!("`{}`: not opened on this operating system", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_those_that_are_set_or_those_of_packages() {
        let site = tempfile::tempdir().unwrap();
        let library = site.path().join("onnxruntime/capi/libonnxruntime.so.1.31.1");
        let cudnn = site.path().join("nvidia/cudnn/lib");
        std::fs::create_dir_all(&cudnn).unwrap();
        assert_eq!(folders(None, Some(&library)), [cudnn]);
        assert!(folders(None, None).is_empty());
        assert!(folders(None, Some(Path::new("libonnxruntime.so"))).is_empty());
        assert_eq!(folders(Some("/a::/b"), Some(&library)), ["/a", "/b"].map(PathBuf::from));
    }

    #[test]
    fn what_is_there_and_does_not_open_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().to_owned()];
        assert_eq!(open(&folders), [""; 0]);
        std::fs::write(folder.path().join("libcublas.so.13"), "no library").unwrap();
        let [told] = &open(&folders)[..] else { panic!("one is there") };
        assert!(told.contains("libcublas.so.13`: ") && told.contains("file too short"), "{told}");
    }
}
