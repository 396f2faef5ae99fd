//! `serve` and `check-config`: from the command line to a running broker.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::IsTerminal,
    panic::PanicHookInfo,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::Args;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::disable_transparent_huge_pages,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::timeout,
};

use super::{EXIT_INTERRUPTED, output};
use crate::{
    config::{self, Config, Sources},
    server::{self, Addresses, Ended, Homes, Runtimes, Server},
};

/// Open files beside the connections of the two large listeners: the third listener's, the store's, and some to spare.
const OTHER_FILES: u64 = 512;
/// How long the runtime's threads may take to end before the process starts itself anew; reads of the store take less.
const LAST_THREADS: Duration = Duration::from_secs(10);
/// How long the broker waits for a standard output or a standard error that takes nothing.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) const AFTER_HELP: &str = "\
Flags go over environment variables (BLOBCAST_…), these over the file, and the file over the defaults. \
`blobcast check-config --print-default` prints every key.

SIGTERM or Ctrl-C: finish what has begun, tell every stream, exit with 0. Ctrl-C again: exit with 130 at once; what was \
answered 200 is safe.";

pub(super) const CHECK_CONFIG_EXAMPLES: &str = "\
Examples:
  blobcast check-config --config blobcast.toml
  blobcast check-config --print-default > blobcast.toml

Exit codes: 0 the configuration is good; 1 it is not, and standard error names each mistake; 2 usage.";

/// What `serve` runs with.
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    /// Configuration file (TOML) [default: none; the defaults work on loopback].
    #[arg(long, value_name = "PATH", env = "BLOBCAST_CONFIG")]
    pub(super) config: Option<String>,
    /// Directory of the event log, created if it is missing [default: ./blobcast-data].
    #[arg(long, value_name = "PATH")]
    pub(super) data_dir: Option<String>,
    /// Address of the public listener, for callbacks [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDRESS")]
    pub(super) ingest_listen: Option<String>,
    /// Address of the gRPC listener, for internal services [default: 127.0.0.1:50051].
    #[arg(long, value_name = "ADDRESS")]
    pub(super) grpc_listen: Option<String>,
    /// Address of the admin listener: /livez, /readyz, /metrics, /version [default: 127.0.0.1:9090].
    #[arg(long, value_name = "ADDRESS")]
    pub(super) admin_listen: Option<String>,
    /// What the vendor reaches the ingest listener by, for example https://hooks.example.com [default: its address].
    #[arg(long, value_name = "URL")]
    pub(super) public_url: Option<String>,
}

/// The same flags: what is checked is what `serve` would run with.
#[derive(Args, Debug)]
pub(super) struct CheckConfigArgs {
    #[command(flatten)]
    pub(super) serve: ServeArgs,
    /// Print the documented default file instead: every key, what it means, and its default.
    #[arg(long)]
    pub(super) print_default: bool,
}

impl ServeArgs {
    fn sources(self) -> Sources {
        let flags = [
            ("data_dir", self.data_dir),
            ("ingest.listen", self.ingest_listen),
            ("grpc.listen", self.grpc_listen),
            ("admin.listen", self.admin_listen),
            ("public_url", self.public_url),
        ];
        let given = flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        // A variable that is not UTF-8 cannot be one of ours.
        let env =
            std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        Sources { file: self.config.map(Into::into), env: env.collect(), flags: given }
    }
}

/// Runs the broker until it is told to stop. It ends also when standard error is stuck.
pub(super) fn run(args: ServeArgs) -> ExitCode {
    super::keep_files_private();
    let ended = run_to_its_end(args);
    server::flush_log();
    ended.unwrap_or_else(report)
}

/// Like [`output::report`], but not for ever.
fn report(error: anyhow::Error) -> ExitCode {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || done.send(output::report(&error)));
    is_done.recv_timeout(OUTPUT_TIMEOUT).unwrap_or(ExitCode::FAILURE)
}

fn run_to_its_end(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let sources = args.sources();
    let config = config::load(&sources)?;
    server::init_logging(&config.logging)?;
    die_on_panic();
    let exposures = server::exposures(&config, &server::Reader::of_this_process());
    exposures.iter().for_each(|problem| server::warn_of_exposure(problem));
    raise_open_files(&config);
    keep_pages_small();
    let runtimes = Runtimes::start()?;
    let served = runtimes.block_on(serve(&config, &sources, runtimes.ingest()));
    match served? {
        Ended::Stopped => {
            // What is left is connections that the deadline has cut off.
            runtimes.shutdown_background();
            Ok(ExitCode::SUCCESS)
        }
        Ended::ToStartAnew(listeners) => {
            // No thread may be left that closes a file: the sockets are about to take the numbers of some.
            runtimes.shutdown_timeout(LAST_THREADS);
            server::flush_log();
            Err(anyhow::Error::from(listeners.start_anew()).context("cannot start anew"))
        }
    }
}

async fn serve(config: &Config, sources: &Sources, homes: Homes) -> anyhow::Result<Ended> {
    // Before anything can be interrupted.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let server = Server::start(config, homes).await?;
    print(server.banner(config)).await;
    let Addresses { ingest, grpc, admin } = server.addresses();
    tracing::info!(%ingest, %grpc, %admin, data_dir = %config.data_dir.display(), "ready");
    let shutdown = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        // Standard error is a log for machines unless a person is looking.
        if std::io::stderr().is_terminal() {
            server::note("draining; press Ctrl-C again to end at once");
        }
        tokio::spawn(async move {
            interrupt.recv().await;
            server::flush_log();
            std::process::exit(EXIT_INTERRUPTED.into());
        });
    };
    let hangup = async || {
        hangup.recv().await;
    };
    let sources = sources.clone();
    Ok(server.run_until(shutdown, hangup, move || config::load(&sources)).await?)
}

/// Prints to standard output. Standard output may be closed or stuck, so nothing waits for the write or depends on it.
async fn print(text: String) {
    let (done, is_done) = oneshot::channel();
    thread::spawn(move || {
        let _ = output::emit(text.as_bytes()).is_ok();
        let _ = done.send(()).is_ok();
    });
    let _ = timeout(OUTPUT_TIMEOUT, is_done).await.is_ok();
}

/// Prints what is wrong with the configuration.
pub(super) fn check_config(args: CheckConfigArgs) -> anyhow::Result<ExitCode> {
    if args.print_default {
        output::emit(config::DEFAULT.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = config::load(&args.serve.sources())?;
    let exposures = server::exposures(&config, &server::Reader::of_a_broker());
    exposures.iter().for_each(|problem| output::note(&format!("warning: {problem}")));
    output::emit_line(&format!(
        "the configuration is good: callbacks on {}, gRPC on {}, admin on {}, data in {}",
        config.ingest.listen,
        config.grpc.listen,
        config.admin.listen,
        config.data_dir.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// A broker that has lost a part must not go on as if it had not: a panic anywhere ends the process, and what supervises it
/// starts a whole one. Also when standard error is stuck, on which the standard library's hook would wait for ever.
fn die_on_panic() {
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(%panic, "a bug: the process ends so that it is not left half alive");
        server::last_words(&report_of(panic));
        std::process::abort();
    }));
}

/// What the standard library's hook says.
fn report_of(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => format!("thread '{name}' {panic}\n{backtrace}\n"),
        _ => format!("thread '{name}' {panic}\n"),
    }
}

/// Each connection is an open file, and the usual soft limit of 1,024 is less than one listener may have.
fn raise_open_files(config: &Config) {
    let limits = getrlimit(Resource::Nofile);
    let needed = config.ingest.connections_max + config.grpc.connections_max + OTHER_FILES;
    if let Some(open_files) = limits.maximum.filter(|&maximum| maximum < needed) {
        tracing::warn!(
            open_files,
            needed,
            "fewer files may be open than the listeners may have connections: raise the limit (ulimit -Hn, LimitNOFILE=), or \
             lower grpc.connections_max and ingest.connections_max"
        );
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum }) {
        tracing::warn!(%error, open_files = ?limits.current, "cannot raise the limit of open files");
    }
}

/// A page of 2 MiB is filled with zeros when it is touched first, which holds whoever does so up for milliseconds: it was what
/// the slowest of a thousand deliveries had waited for. Nothing was slower without.
fn keep_pages_small() {
    // A kernel that has no large pages refuses, and need not be told.
    let _ = disable_transparent_huge_pages(true).is_ok();
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt,
        process::{Command, Stdio},
    };

    use super::*;

    /// Set in the child process of the test below; says where to panic.
    const WHERE: &str = "TEST_OF_DIE_ON_PANIC";

    #[test]
    fn a_panic_in_a_task_or_a_thread_ends_the_process_with_a_word() {
        if let Ok(place) = std::env::var(WHERE) {
            panic_in(&place);
            return;
        }
        for place in ["task", "thread", "blocking"] {
            let name = "cli::serve::tests::a_panic_in_a_task_or_a_thread_ends_the_process_with_a_word";
            let mut child = Command::new(std::env::current_exe().unwrap());
            let done = child.args(["--exact", name, "--nocapture"]).env(WHERE, place).output().unwrap();
            let said = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.signal(), Some(6), "SIGABRT after a panic in a {place}: {said}");
            assert!(said.contains(&format!("a bug in a {place}")), "{said}");
            assert!(said.contains("the process ends so that it is not left half alive"), "{said}");
        }
    }

    #[test]
    fn a_panic_ends_the_process_although_nobody_reads_standard_error() {
        if std::env::var(WHERE).is_ok() {
            panic_in("stuck");
            return;
        }
        let name = "cli::serve::tests::a_panic_ends_the_process_although_nobody_reads_standard_error";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture"]).env(WHERE, "stuck").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stuck = child.stderr.take();
        let ended = std::iter::repeat_with(|| std::thread::sleep(Duration::from_millis(10)))
            .take(6_000)
            .find_map(|()| child.try_wait().unwrap());
        let _ = child.kill();
        assert_eq!(ended.expect("its end within a minute").signal(), Some(6), "SIGABRT");
        drop(stuck);
    }

    /// Like the broker: its hook, its logging, its kind of runtime. Whoever catches the panic, the process must not survive it.
    fn panic_in(place: &str) {
        server::init_logging(&config::load(&Sources::default()).unwrap().logging).unwrap();
        die_on_panic();
        let message = format!("a bug in a {place}");
        if place == "stuck" {
            // More than a pipe and the queue take together.
            for _ in 0..2_000 {
                tracing::info!("{}", "x".repeat(1_000));
            }
        }
        if place != "task" && place != "blocking" {
            let _ = std::thread::spawn(move || panic!("{message}")).join();
            return;
        }
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _ = runtime.block_on(async {
            if place == "task" {
                tokio::spawn(async move { panic!("{message}") }).await
            } else {
                tokio::task::spawn_blocking(move || panic!("{message}")).await
            }
        });
    }
}
