//! What the figures were measured on: they mean nothing without it.

use std::{fmt, fs, process::Command, thread};

use anyhow::Result;
use serde::Serialize;

use crate::{
    bench::Bench,
    peers::{etcd, nats},
};

/// See the file's description.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Name of the processor.
    processor: String,
    /// Cores that servers and load share.
    cores: usize,
    memory_gigabytes: u64,
    kernel: String,
    /// Versions of who is measured.
    versions: Vec<String>,
}

impl Machine {
    /// Looks at this one. The peers are looked at only when they take part, since they may have to be fetched.
    pub fn look(bench: &Bench, with_peers: bool) -> Result<Self> {
        let processor = value_of("/proc/cpuinfo", "model name");
        let kilobytes = value_of("/proc/meminfo", "MemTotal")
            .split(' ')
            .next()
            .map_or(0, |kb| kb.parse().unwrap_or(0));
        let mut versions = vec![version(Command::new(&bench.server))];
        if with_peers {
            versions.push(version(Command::new(nats::binary(bench)?)));
            versions.extend(etcd::binary(bench).map(|binary| version(Command::new(binary))));
        }
        Ok(Self {
            processor,
            cores: thread::available_parallelism()?.get(),
            memory_gigabytes: kilobytes / 1_000_000,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            versions,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            processor,
            cores,
            memory_gigabytes,
            kernel,
            versions,
        } = self;
        writeln!(
            f,
            "{cores} cores of {processor}, shared by servers and load; {memory_gigabytes} GB, Linux {kernel}"
        )?;
        write!(f, "{}", versions.join("; "))
    }
}

/// The first value of a key in one of the system's files of `key : value`.
fn value_of(file: &str, key: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'));
    line.unwrap_or("unknown").trim().to_owned()
}

fn version(mut command: Command) -> String {
    let output = command
        .arg("--version")
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    String::from_utf8_lossy(&output)
        .lines()
        .next()
        .unwrap_or("unknown")
        .to_owned()
}
