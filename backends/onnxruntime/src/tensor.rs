//! What a constant of a model's file claims to be, held against what is there.

use std::path::{Component, Path};

/// The claims of one tensor.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    pub(crate) name: String,
    /// `TensorProto.DataType`.
    pub(crate) element: u64,
    pub(crate) extents: Vec<i64>,
    /// Bytes in the field of raw data, if it is there.
    pub(crate) raw: Option<u64>,
    /// Bytes in the fields of numbers and strings.
    pub(crate) listed: u64,
    /// Whether it says that its data is in another file.
    pub(crate) is_external: bool,
    locations: Vec<String>,
    offset: u64,
    length: Option<u64>,
}

/// Why a constant is refused. ONNX Runtime would say less, later, or after it has taken the memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error("constant `{name}` has the extent {extent}")]
    Extent { name: String, extent: i64 },
    #[error("constant `{name}` claims more elements than can be counted")]
    Overflow { name: String },
    #[error("constant `{name}` claims {claimed} bytes, the file has {actual} for it")]
    Size { name: String, claimed: u64, actual: u64 },
    #[error("external data of `{name}` has the {key} `{value}`, which is no number")]
    Number { name: String, key: String, value: String },
    #[error("external data `{location}` of `{name}` is outside the model's folder")]
    Outside { name: String, location: String },
    #[error("external data `{location}` of `{name}`: {why}")]
    Unreadable { name: String, location: String, why: std::io::Error },
    #[error("external data `{location}` of `{name}` is no file")]
    NoFile { name: String, location: String },
    #[error(
        "external data `{location}` of `{name}` claims {claimed} bytes from byte {offset}, the file has {actual}"
    )]
    Length { name: String, location: String, claimed: u64, offset: u64, actual: u64 },
}

impl Claim {
    /// Takes a key and a value of the external data's description.
    pub(crate) fn entry(&mut self, key: &str, value: String) -> Result<(), ClaimError> {
        let number = || {
            let error =
                || ClaimError::Number { name: self.name.clone(), key: key.to_owned(), value: value.clone() };
            value.parse::<u64>().map_err(|_| error())
        };
        match key {
            "offset" => self.offset = number()?,
            "length" => self.length = Some(number()?),
            "location" => self.locations.push(value),
            _ => {}
        }
        Ok(())
    }

    /// Places that it says its data is in.
    pub(crate) fn locations(&self) -> usize {
        self.locations.len()
    }

    /// Holds the claims against the file; the bytes that lie in another file, if they do.
    pub(crate) fn check(&self, folder: &Path) -> Result<Option<u64>, ClaimError> {
        let claimed = self.bytes()?;
        if !self.is_external && self.locations.is_empty() {
            return self.check_inline(claimed).map(|()| None);
        }
        // All of them, whichever ONNX Runtime would take.
        for location in &self.locations {
            self.check_external(folder, location, claimed.unwrap_or(0))?;
        }
        Ok(Some(self.length.or(claimed).unwrap_or(0)))
    }

    /// The bytes that type and shape ask for; `None` for strings and what came after this was written.
    fn bytes(&self) -> Result<Option<u64>, ClaimError> {
        let overflow = || ClaimError::Overflow { name: self.name.clone() };
        let mut elements = 1u64;
        for &extent in &self.extents {
            let count =
                u64::try_from(extent).map_err(|_| ClaimError::Extent { name: self.name.clone(), extent })?;
            elements = elements.checked_mul(count).ok_or_else(overflow)?;
        }
        let Some(bits) = bits(self.element) else { return Ok(None) };
        Ok(Some(elements.checked_mul(bits).ok_or_else(overflow)?.div_ceil(8)))
    }

    fn check_inline(&self, claimed: Option<u64>) -> Result<(), ClaimError> {
        let Some(claimed) = claimed else { return Ok(()) };
        let fits = match self.raw {
            Some(raw) => raw == claimed,
            // A number takes a byte at least in these fields, and 8 as an element at most.
            None => claimed <= self.listed.saturating_mul(8),
        };
        let actual = self.raw.unwrap_or(self.listed);
        if fits { Ok(()) } else { Err(ClaimError::Size { name: self.name.clone(), claimed, actual }) }
    }

    fn check_external(&self, folder: &Path, location: &str, claimed: u64) -> Result<(), ClaimError> {
        let (name, location) = (self.name.clone(), location.to_owned());
        let is_inner = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || !Path::new(&location).components().all(is_inner) {
            return Err(ClaimError::Outside { name, location });
        }
        // Links are followed on both sides, so that one cannot lead out.
        let real = folder.canonicalize().and_then(|real| Ok((folder.join(&location).canonicalize()?, real)));
        let (path, real) = match real {
            Ok(real) => real,
            Err(why) => return Err(ClaimError::Unreadable { name, location, why }),
        };
        if !path.starts_with(&real) {
            return Err(ClaimError::Outside { name, location });
        }
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(why) => return Err(ClaimError::Unreadable { name, location, why }),
        };
        if !metadata.is_file() {
            return Err(ClaimError::NoFile { name, location });
        }
        let claimed = self.length.unwrap_or(0).max(claimed);
        let (offset, actual) = (self.offset, metadata.len());
        if offset.checked_add(claimed).is_none_or(|end| end > actual) {
            return Err(ClaimError::Length { name, location, claimed, offset, actual });
        }
        Ok(())
    }
}

/// Bits of an element, by `TensorProto.DataType`.
fn bits(element: u64) -> Option<u64> {
    Some(match element {
        2 | 3 | 9 | 17..=20 | 24 => 8, // 8-bit integers, bool, 8-bit floats
        4 | 5 | 10 | 16 => 16,         // 16-bit integers, half, bfloat16
        1 | 6 | 12 => 32,
        7 | 11 | 13 | 14 => 64,
        15 => 128,
        21..=23 => 4, // 4-bit integers and floats
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(element: u64, extents: &[i64], raw: Option<u64>, listed: u64) -> Claim {
        Claim { name: "w".into(), element, extents: extents.into(), raw, listed, ..Claim::default() }
    }

    #[test]
    fn data_in_the_file_is_as_long_as_it_claims() {
        let check = |claim: Claim| claim.check(Path::new("/")).map_err(|error| error.to_string());
        assert_eq!(check(claim(1, &[2, 3], Some(24), 0)), Ok(None));
        assert_eq!(check(claim(1, &[2, 3], None, 24)), Ok(None));
        assert_eq!(check(claim(7, &[2, 3], None, 6)), Ok(None)); // small numbers in varints
        assert_eq!(check(claim(21, &[3], Some(2), 0)), Ok(None)); // two to a byte
        assert_eq!(check(claim(8, &[1 << 40], None, 3)), Ok(None)); // strings: ONNX Runtime counts them
        assert_eq!(check(claim(1, &[4, 0], None, 0)), Ok(None));
        assert_eq!(check(claim(1, &[], Some(4), 0)), Ok(None));
        let fails = |claim: Claim, expected: &str| assert_eq!(check(claim).unwrap_err(), expected);
        fails(claim(1, &[1 << 30], None, 0), "constant `w` claims 4294967296 bytes, the file has 0 for it");
        fails(
            claim(1, &[1 << 30], Some(8), 0),
            "constant `w` claims 4294967296 bytes, the file has 8 for it",
        );
        fails(claim(1, &[-1], None, 0), "constant `w` has the extent -1");
        fails(
            claim(1, &[1 << 40, 1 << 40], None, 0),
            "constant `w` claims more elements than can be counted",
        );
        fails(claim(1, &[i64::MAX], None, 0), "constant `w` claims more elements than can be counted");
    }

    #[test]
    fn data_in_other_files_stays_in_the_folder() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("model");
        std::fs::create_dir_all(folder.join("inner")).unwrap();
        std::fs::write(folder.join("inner/w"), [0; 16]).unwrap();
        std::fs::write(outer.path().join("secret"), [0; 16]).unwrap();
        let check = |location: &str, more: &[(&str, &str)]| {
            let mut claim = claim(1, &[4], None, 0);
            claim.is_external = true;
            claim.entry("location", location.into()).unwrap();
            let entries = more.iter().try_for_each(|(key, value)| claim.entry(key, (*value).into()));
            entries.and_then(|()| claim.check(&folder)).map_err(|error| error.to_string())
        };
        assert_eq!(check("inner/w", &[]), Ok(Some(16)));
        assert_eq!(check("./inner/w", &[("offset", "0"), ("length", "16"), ("checksum", "x")]), Ok(Some(16)));
        let outside = |location: &str| {
            let expected = format!("external data `{location}` of `w` is outside the model's folder");
            assert_eq!(check(location, &[]).unwrap_err(), expected);
        };
        outside("../secret");
        outside("inner/../../secret");
        outside("");
        outside(&outer.path().join("secret").to_string_lossy());
        #[cfg(unix)]
        for (link, target) in [("file", outer.path().join("secret")), ("folder", outer.path().into())] {
            std::os::unix::fs::symlink(target, folder.join(link)).unwrap();
            outside(if link == "file" { "file" } else { "folder/secret" });
        }
        let fails = |location: &str, more: &[(&str, &str)], expected: &str| {
            assert_eq!(check(location, more).unwrap_err(), expected);
        };
        fails("inner", &[], "external data `inner` of `w` is no file");
        let missing = check("missing", &[]).unwrap_err();
        assert!(missing.starts_with("external data `missing` of `w`: "), "{missing}");
        let rest = "external data `inner/w` of `w` claims";
        fails(
            "inner/w",
            &[("length", "4294967296")],
            &format!("{rest} 4294967296 bytes from byte 0, the file has 16"),
        );
        fails("inner/w", &[("offset", "1")], &format!("{rest} 16 bytes from byte 1, the file has 16"));
        let end = u64::MAX.to_string();
        fails("inner/w", &[("offset", &end)], &format!("{rest} 16 bytes from byte {end}, the file has 16"));
        fails("inner/w", &[("length", "-4")], "external data of `w` has the length `-4`, which is no number");
    }
}
