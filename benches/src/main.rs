//! Shows how fast blobcast is, beside what one would use instead: `cargo run --release -p blobcast-benches -- --help`.
//!
//! Every goal starts the real release binary and the real peers, one after the other, several times in turn, and compares within
//! each round, because machines are noisy. [`harness`] runs processes, [`load`] and [`subscribers`] are the two ends of the
//! traffic, [`reconciling`] what is expected beside it, [`peers`] are who is measured, [`goals`] what is measured, [`report`] and
//! [`chart`] what is shown of it.

mod bench;
mod chart;
mod counters;
mod goals;
mod harness;
mod load;
mod machine;
mod peers;
mod reconciling;
mod report;
mod statistics;
mod subscribers;
mod worker;

/// The product's messages.
#[expect(
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    clippy::too_many_lines,
    reason = "generated"
)]
mod wire {
    tonic::include_proto!("blobcast.v1");
}

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use serde::Deserialize;
use serde_json::json;

use bench::Bench;
use chart::Picture;
use machine::Machine;
use report::Table;

/// Shows how fast blobcast is, beside what one would use instead.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure: everything, if nothing is named.
    #[arg(value_enum)]
    goals: Vec<Goal>,
    /// Two minutes in all, to see that everything runs: the figures are only indications.
    #[arg(long)]
    short: bool,
    /// How often each side is measured [default: 5, or 2 if --short].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Another broker's binary, to compare two builds [default: target/release/blobcast].
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// Measure another broker's binary in the same rounds, in place of the peers: fan-out, ingest, latency, catch-up and
    /// rare-filter.
    #[arg(long, value_name = "PATH")]
    beside: Option<PathBuf>,
    /// Also write everything that was measured to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw a picture of each goal into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    charts: Option<PathBuf>,
    /// Measure nothing: draw what an earlier run has written with --json.
    #[arg(long, value_name = "FILE", requires = "charts", conflicts_with_all = ["goals", "json"])]
    redraw: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Goal {
    FanOut,
    Ingest,
    Latency,
    Waiting,
    Selectivity,
    Expectations,
    CatchUp,
    RareFilter,
    SlowNeighbour,
    WorstCaseMemory,
    Restart,
    /// A cluster with three NATS servers; not among all.
    Cluster,
    /// Counted by valgrind, and held to what is committed; not among all.
    Instructions,
    /// A million waiting task subscriptions; not among all.
    ScaleWaiting,
    /// Ten thousand subscriptions to one product; not among all.
    ScaleProducts,
    /// A log of ten million events; not among all.
    ScaleLog,
}

/// What this program starts of itself, each in a process of its own.
#[derive(Debug, Parser)]
enum Part {
    /// The limit: the HTTP stack and nothing else.
    Empty,
    /// The limit with durability: bodies are appended to a file, and nothing else is done.
    Append { path: PathBuf },
    /// What people write by hand.
    Broadcast,
    /// The machine's limit for fan-out: bytes over loopback connections.
    Loopback,
    /// What people write in front of JetStream.
    Handler { url: String },
    /// Subscriptions that wait.
    Hold {
        grpc: SocketAddr,
        first: u64,
        count: usize,
        per_connection: usize,
    },
}

/// The first word of the command line that asks for a [`Part`].
pub const PART: &str = "part";

#[tokio::main]
async fn main() -> Result<()> {
    let mut words = env::args().skip(1).peekable();
    if words.peek().is_some_and(|word| word == PART) {
        return Part::parse_from(words).run().await;
    }
    let arguments = Arguments::parse();
    if let (Some(file), Some(directory)) = (&arguments.redraw, &arguments.charts) {
        let Report { goals } = serde_json::from_str(&fs::read_to_string(file)?)?;
        return goals
            .into_iter()
            .try_for_each(|(name, tables)| draw(&name, tables, directory));
    }
    let goals = match (arguments.goals.as_slice(), &arguments.beside) {
        ([], None) => Goal::ALL.as_slice(),
        ([], Some(_)) => Goal::OF_BUILDS.as_slice(),
        (goals, _) => goals,
    };
    if let Some(goal) = goals.iter().find(|goal| !Goal::OF_BUILDS.contains(goal)) {
        let name = goal.name();
        ensure!(
            arguments.beside.is_none(),
            "{name} has no --beside: run it again with --server"
        );
    }
    let bench = Bench::new(
        arguments.server,
        arguments.beside,
        arguments.rounds,
        arguments.short,
    )?;
    let with_peers = bench.beside.is_none() && goals != [Goal::Instructions];
    let machine = Machine::look(&bench, with_peers)?;
    println!("{machine}");
    let mut measured = serde_json::Map::new();
    for goal in goals {
        let tables = goal
            .measure(&bench)
            .await
            .with_context(|| format!("{} could not be measured", goal.name()))?;
        tables.iter().for_each(|table| print!("{}", table.text()));
        if let Some(directory) = &arguments.charts {
            draw(&goal.name(), json!(tables), directory)?;
        }
        measured.insert(goal.name(), json!(tables));
        // After each goal, so that nothing is lost should the next one fail.
        if let Some(file) = &arguments.json {
            let report = json!({"machine": machine, "rounds": bench.rounds, "short": bench.short, "goals": measured});
            fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?;
        }
    }
    Ok(())
}

/// What a run has written with `--json`, as far as it is drawn.
#[derive(Debug, Deserialize)]
struct Report {
    goals: serde_json::Map<String, serde_json::Value>,
}

/// Draws the tables of a goal into a file of its name.
fn draw(name: &str, tables: serde_json::Value, directory: &Path) -> Result<()> {
    let pictures: Vec<Picture> = serde_json::from_value(tables)?;
    fs::create_dir_all(directory)?;
    Ok(fs::write(
        directory.join(name).with_extension("svg"),
        chart::svg(&pictures),
    )?)
}

impl Goal {
    /// What users feel; in the order of the reports.
    const ALL: [Self; 11] = [
        Self::FanOut,
        Self::Ingest,
        Self::Latency,
        Self::Waiting,
        Self::Selectivity,
        Self::Expectations,
        Self::CatchUp,
        Self::RareFilter,
        Self::SlowNeighbour,
        Self::WorstCaseMemory,
        Self::Restart,
    ];

    /// Those that compare two builds.
    const OF_BUILDS: [Self; 5] = [
        Self::FanOut,
        Self::Ingest,
        Self::Latency,
        Self::CatchUp,
        Self::RareFilter,
    ];

    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    async fn measure(self, bench: &Bench) -> Result<Vec<Table>> {
        match self {
            Self::FanOut => goals::fan_out::run(bench).await,
            Self::Ingest => goals::ingest::run(bench).await,
            Self::Latency => goals::latency::run(bench).await,
            Self::Waiting => goals::waiting::run(bench).await,
            Self::Selectivity => goals::selectivity::run(bench).await,
            Self::Expectations => goals::expectations::run(bench).await,
            Self::CatchUp => goals::catch_up::run(bench).await,
            Self::RareFilter => goals::rare_filter::run(bench).await,
            Self::SlowNeighbour => goals::slow_neighbour::run(bench).await,
            Self::WorstCaseMemory => goals::worst_case_memory::run(bench).await,
            Self::Restart => goals::restart::run(bench).await,
            Self::Cluster => goals::cluster::run(bench).await,
            Self::Instructions => goals::instructions::run(bench).await,
            Self::ScaleWaiting => goals::scale_waiting::run(bench).await,
            Self::ScaleProducts => goals::scale_products::run(bench).await,
            Self::ScaleLog => goals::scale_log::run(bench).await,
        }
    }
}

impl Part {
    async fn run(self) -> Result<()> {
        match self {
            Self::Empty => peers::front::serve_empty().await,
            Self::Append { path } => peers::append::serve(&path).await,
            Self::Broadcast => peers::broadcast::serve().await,
            Self::Loopback => peers::loopback::serve().await,
            Self::Handler { url } => peers::nats::serve_handler(&url).await,
            Self::Hold {
                grpc,
                first,
                count,
                per_connection,
            } => worker::hold(grpc, first, count, per_connection).await,
        }
    }
}
