//! What targets begin with, kept small: `fuzz/corpus`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};

use super::{Built, FOUND};
use crate::process;

/// The most that is kept of one target beside its seeds, bytes. With thirty of them all is below 200 KB.
const BYTES: usize = 4 << 10;
/// The most inputs, each of which is a file for whoever has a clone.
const COUNT: usize = 24;
/// The largest of them, bytes.
const LARGEST: usize = 512;
/// Begins the names of those that `fuzz/examples/seeds.rs` makes, which stay.
const SEED: &str = "seed-";

impl Built {
    /// Replaces what a target begins with beside its seeds: by some of the inputs, of those that it had and those that were found, which together reach what
    /// all of them reach. Gives how many there are then, seeds among them, and their bytes.
    pub(crate) fn keep(&self, target: &str) -> Result<(usize, usize)> {
        let (found, corpus) = (self.work.join(FOUND).join(target), self.corpus.join(target));
        let merged = self.work.join("merged").join(target);
        if merged.exists() {
            fs::remove_dir_all(&merged).with_context(|| format!("could not remove {}", merged.display()))?;
        }
        fs::create_dir_all(&merged).with_context(|| format!("could not make {}", merged.display()))?;
        let mut command = self.command(target);
        command.arg("-merge=1").args([&merged, &corpus, &found]).stdin(Stdio::null()).stderr(Stdio::null());
        process::run(command)?;
        let mut seeds = BTreeSet::new();
        for (name, bytes) in inputs(&corpus)? {
            if name.starts_with(SEED) {
                seeds.insert(bytes);
                continue;
            }
            let path = corpus.join(name);
            fs::remove_file(&path).with_context(|| format!("could not remove {}", path.display()))?;
        }
        let kept = some(inputs(&merged)?, &seeds);
        for (name, bytes) in &kept {
            let path = corpus.join(name);
            fs::write(&path, bytes).with_context(|| format!("could not write {}", path.display()))?;
        }
        let all = seeds.iter().chain(kept.iter().map(|(_, bytes)| bytes));
        Ok(all.fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes.len())))
    }
}

/// Inputs of all sizes, as far as there is room, and none that is a seed already.
fn some(mut inputs: Vec<(String, Vec<u8>)>, seeds: &BTreeSet<Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    inputs.retain(|(_, bytes)| bytes.len() <= LARGEST && !seeds.contains(bytes));
    // Names are of what is in them: of one size always the same ones.
    inputs.sort_by(|(one, left), (other, right)| (left.len(), one).cmp(&(right.len(), other)));
    let mut room = BYTES;
    let mut fits = |bytes: &[u8]| {
        let left = room.checked_sub(bytes.len());
        room = left.unwrap_or(0);
        left.is_some()
    };
    let apart = inputs.len().div_ceil(COUNT).max(1);
    inputs.into_iter().step_by(apart).take_while(|(_, bytes)| fits(bytes)).collect()
}

/// Names and bytes.
fn inputs(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let read = || -> std::io::Result<_> {
        fs::read_dir(folder)?
            .map(|entry| {
                let entry = entry?;
                Ok((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?))
            })
            .collect()
    };
    read().with_context(|| format!("could not read {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_some_are_kept_of_each_size_that_there_is_room_for() {
        let input = |name: String, len: usize| (name, vec![b'x'; len]);
        let kept = |inputs: Vec<_>| -> Vec<usize> {
            let seeds = BTreeSet::from([vec![b'x'; 3]]);
            some(inputs, &seeds).iter().map(|(_, bytes)| bytes.len()).collect()
        };
        let few = [5, 2, LARGEST + 1, 3, 2].map(|len| input(format!("{len}"), len));
        assert_eq!(kept(few.to_vec()), [2, 2, 5]);
        let many = kept((0..100).map(|len| input(format!("{len}"), len)).collect());
        assert_eq!((many.len(), many[..3].to_vec()), (20, vec![0, 6, 11]));
        let large = kept((0..COUNT).map(|number| input(format!("{number}"), LARGEST)).collect());
        assert_eq!(large.len(), BYTES / LARGEST);
        assert!(kept(Vec::new()).is_empty());
    }
}
