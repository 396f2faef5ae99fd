//! The fuzz targets as ordinary tests: on every seed, and on what random changes make of the seeds. `tests/fuzz/run` finds more,
//! since it sees which code an input reaches; it takes longer to build than all of the broker.

#![cfg(debug_assertions)] // a release has no module `fuzzing`
#![allow(
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    reason = "a target is given its input, and a panic is how it says that a promise does not hold"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use fastrand::Rng;

#[path = "targets/all.rs"]
mod all;

/// Changed inputs of each target.
const CHANGED: usize = 5_000;

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*

        #[test]
        fn every_target_is_among_these_tests() {
            let known = [$(stringify!($name)),*];
            assert_eq!(all::TARGETS.map(|(name, _)| name), known);
        }
    };
}

targets! { address backup config credentials cursor frame payload proxy query record request signed_url }

/// Panics with the input if a promise of the target does not hold.
fn holds(name: &str) {
    let (_, target) = all::TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap();
    let seeds = seeds(name);
    let read = |bytes: &[u8]| {
        let input = Shown(bytes);
        let is_input = target(bytes);
        drop(input);
        is_input
    };
    let inputs = seeds.iter().filter(|seed| read(seed)).count();
    assert!(inputs > 0, "{name} takes none of its {} seeds", seeds.len());

    let seed =
        env::var("BLOBCAST_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("BLOBCAST_SEED={seed} repeats the changes");
    let mut rng = Rng::with_seed(seed);
    for _ in 0..CHANGED {
        read(&changed(&seeds, &mut rng));
    }
}

/// An input, which is printed if it makes a target panic.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the input is {:?}", self.0.escape_ascii().to_string());
        }
    }
}

/// The seeds that have a name, and those that libFuzzer has found.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let unpacked = tempfile::tempdir().unwrap();
    let archive = corpus.join(name).with_extension("tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(archive).arg("-C").arg(unpacked.path());
    assert!(tar.status().unwrap().success());

    let mut paths = files(unpacked.path());
    let named = corpus.join(name);
    if named.is_dir() {
        paths.extend(files(&named));
    }
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// In the order of their names, so that the same changes are made of the same seeds.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort_unstable();
    paths
}

/// One of the seeds, with some bytes changed, taken out, repeated, or replaced by those of another one.
fn changed(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = rng.choice(seeds).unwrap().clone();
    for _ in 0..rng.usize(1..=4) {
        let at = rng.usize(..=bytes.len());
        let end = at + rng.usize(..=(bytes.len() - at).min(16));
        match rng.u8(..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let repeated = bytes[at..end].to_vec();
                bytes.splice(at..at, repeated);
            }
            _ => {
                let other = rng.choice(seeds).unwrap();
                let from = rng.usize(..=other.len());
                let to = from + rng.usize(..=(other.len() - from).min(64));
                bytes.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    bytes
}
