//! What every goal is given: the binary to measure, the peers, how often and how long.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::time::sleep;

use crate::{
    harness::{Meter, Process},
    report::{Sample, Who},
};

/// TCP connections of callbacks: the goal's.
pub const INGEST_CONNECTIONS: usize = 128;
/// What all callbacks are about.
pub const PRODUCT: &str = "veo";

/// See the module's description.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The broker's binary.
    pub server: PathBuf,
    /// Cargo's directory, where data and peers are put.
    pub target: PathBuf,
    /// How often each side is measured.
    pub rounds: usize,
    /// Two minutes in all: less time, less data, larger spread.
    pub short: bool,
    /// Another build, which is measured in place of the peers.
    pub beside: Option<PathBuf>,
}

impl Bench {
    /// Finds the binary, and says how to build it if it is not there.
    pub fn new(
        server: Option<PathBuf>,
        beside: Option<PathBuf>,
        rounds: Option<u32>,
        short: bool,
    ) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the benches are a directory of the project")?;
        let target = env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
        let server = server.unwrap_or_else(|| target.join("release/blobcast"));
        ensure!(
            server.is_file(),
            "{} is missing: build it with `cargo build --release`",
            server.display()
        );
        let rounds = rounds.unwrap_or(if short { 2 } else { 5 }) as usize;
        Ok(Self {
            server: server.canonicalize()?,
            beside: beside.map(|path| path.canonicalize()).transpose()?,
            target,
            rounds,
            short,
        })
    }

    /// One thing or the other.
    pub fn either<T>(&self, full: T, short: T) -> T {
        if self.short { short } else { full }
    }

    /// How long one side is measured at a time.
    pub fn measured(&self) -> Duration {
        self.either(Duration::from_secs(5), Duration::from_secs(1))
    }

    /// How long it runs before that: caches fill, threads start, buffers grow.
    pub fn warm_up(&self) -> Duration {
        self.either(Duration::from_secs(2), Duration::from_millis(500))
    }

    /// What a counter gains in a second, once warm.
    pub async fn rate(
        &self,
        servers: &[&Process],
        workers: &[&Process],
        count: impl Fn() -> Result<u64>,
    ) -> Result<Sample> {
        self.rate_after(self.warm_up(), servers, workers, count)
            .await
    }

    /// The same, after some other time.
    pub async fn rate_after(
        &self,
        warm_up: Duration,
        servers: &[&Process],
        workers: &[&Process],
        count: impl Fn() -> Result<u64>,
    ) -> Result<Sample> {
        sleep(warm_up).await;
        let (meter, before) = (Meter::start(servers, workers)?, count()?);
        sleep(self.measured()).await;
        let (after, cost) = (count()?, meter.read()?);
        Ok(Sample {
            value: (after - before) as f64 / cost.seconds,
            cost,
        })
    }

    /// The rounds of a goal: in each of them all sides have a turn.
    pub fn rounds(&self, goal: &'static str) -> impl Iterator<Item = Round> {
        let last = self.rounds;
        (1..=last).map(move |number| Round { goal, number, last })
    }
}

/// One round of a goal.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    goal: &'static str,
    number: usize,
    last: usize,
}

impl Round {
    /// Begins the turn of a side, when what others have written is on disk.
    pub fn turn(&self, who: Who) -> Who {
        rustix::fs::sync();
        eprintln!(
            "{}: round {} of {}: {}",
            self.goal, self.number, self.last, who.name
        );
        who
    }
}
