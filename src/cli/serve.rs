//! `serve`: runs the broker as a process: configuration, logging, signals, limits of the process,
//! panics, exit code.
//!
//! The broker itself is `server`'s. No output that is stuck delays the start or the end.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal},
    panic::PanicHookInfo,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::disable_transparent_huge_pages,
};
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::timeout,
};

use super::{EXIT_INTERRUPTED, EXIT_USAGE, output};
use crate::{
    config::{self, Config, ConfigSources, Loaded},
    server::{self, Addresses, Ended, Homes, RunError, Runtimes, Server},
    store,
};

/// Open files beside the connections of the ingest and gRPC listeners: the admin listener's, the
/// store's, and some to spare.
const OTHER_FILES: u64 = 512;
/// Time for the runtime's threads to end before the process re-executes itself; reads of the store
/// take less.
const LAST_THREADS: Duration = Duration::from_secs(10);
/// How long the broker waits for a standard output or standard error that is stuck.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) const AFTER_HELP: &str = "\
Flags override environment variables (BLOBCAST_…), which override the file, which overrides the \
defaults. `blobcast check-config --print-default` prints every key.

SIGTERM or Ctrl-C: finish open requests, notify every stream, exit with 0. Ctrl-C again: exit with \
130 at once; callbacks that were answered 200 are safe.";

/// The flags of `serve`.
#[derive(Args, Debug, Default)]
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
    /// The URL by which the vendor reaches the ingest listener, for example
    /// https://hooks.example.com [default: its address].
    #[arg(long, value_name = "URL")]
    pub(super) public_url: Option<String>,
    /// NATS servers, comma-separated: nats://HOST:PORT or tls://HOST:PORT. With them this broker is
    /// a node of a cluster [default: none].
    #[arg(long, value_name = "SERVERS")]
    pub(super) cluster: Option<String>,
    /// Name of the cluster [default: main].
    #[arg(long, value_name = "NAME")]
    pub(super) cluster_name: Option<String>,
    /// Name of this node in the cluster [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,
}

impl ServeArgs {
    pub(super) fn sources(self) -> ConfigSources {
        let flags = [
            ("data_dir", self.data_dir),
            ("ingest.listen", self.ingest_listen),
            ("grpc.listen", self.grpc_listen),
            ("admin.listen", self.admin_listen),
            ("public_url", self.public_url),
            ("cluster.servers", self.cluster),
            ("cluster.name", self.cluster_name),
            ("cluster.node", self.node),
        ];
        let given = flags
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?)))
            .collect();
        // A variable that is not UTF-8 is not for the broker.
        let env = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        ConfigSources {
            file: self.config.map(Into::into),
            env: env.collect(),
            flags: given,
        }
    }
}

/// Runs the broker until a signal stops it. Ends even if standard error is stuck.
pub(super) fn run(args: ServeArgs, signals: Option<io::Result<Signals>>) -> ExitCode {
    super::keep_files_private();
    let sources = args.sources();
    let loaded = config::load_described(&sources);

    // Before anything that can fail, so that failures are lines of the log.
    let logging = loaded.as_ref().map_or_else(
        |_| config::logging(&sources),
        |loaded| loaded.config.logging.clone(),
    );

    if let Err(error) = server::init_logging(&logging) {
        return report(anyhow::Error::from(error).context("cannot begin to log"));
    }

    let signals = signals.unwrap_or_else(Signals::new);
    let ended = loaded
        .map_err(Into::into)
        .and_then(|loaded| run_to_its_end(&loaded, &sources, signals));
    let code = ended.unwrap_or_else(|error| {
        if !io::stderr().is_terminal() {
            let has_served = error.is::<RunError>();
            output::problems(&error)
                .iter()
                .for_each(|problem| server::log_fatal(has_served, problem));
            return ExitCode::from(output::exit_code(&error));
        }
        server::flush_log();
        report(error)
    });

    server::flush_log();
    code
}

/// Logs a usage error, since a supervisor's journal is searched by priority.
pub(super) fn log_usage(error: &clap::Error) -> ExitCode {
    let environment = ServeArgs::default().sources();
    if server::init_logging(&config::logging(&environment)).is_err() {
        error.exit();
    }
    let text = error.to_string();
    let what = text
        .split("\n\n")
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ");
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    server::log_fatal(
        false,
        &format!("{what}: `blobcast serve --help` lists the flags"),
    );
    server::flush_log();
    ExitCode::from(EXIT_USAGE)
}

/// Like [`output::report`], but does not wait for ever if standard error is stuck.
fn report(error: anyhow::Error) -> ExitCode {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || done.send(output::report(&error)));
    is_done
        .recv_timeout(OUTPUT_TIMEOUT)
        .unwrap_or(ExitCode::FAILURE)
}

fn run_to_its_end(
    loaded: &Loaded,
    sources: &ConfigSources,
    signals: io::Result<Signals>,
) -> anyhow::Result<ExitCode> {
    let signals = signals.context("cannot listen to signals")?;
    die_on_panic();
    let config = &loaded.config;
    let exposures = server::exposures(config, &server::Reader::of_this_process());
    exposures
        .iter()
        .for_each(|problem| server::warn_of_exposure(problem));
    raise_open_files(config);
    keep_pages_small();
    let runtimes = Runtimes::start()?;
    let served = runtimes.block_on(serve(loaded, sources, runtimes.ingest(), signals));

    match served? {
        Ended::Stopped => {
            // Only connections are left that the drain's deadline has cut off.
            runtimes.shutdown_background();
            Ok(ExitCode::SUCCESS)
        }
        Ended::ToStartAnew(listeners) => {
            // No thread may be left that closes a file: the sockets are about to reuse file
            // descriptor numbers.
            runtimes.shutdown_timeout(LAST_THREADS);
            server::flush_log();
            Err(RunError::StartAnew(listeners.start_anew()).into())
        }
    }
}

/// The signals that the broker handles. A signal that arrives before its handler is awaited is not
/// lost.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// The handlers belong to the process, so another runtime can await them.
    pub(super) fn new() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
        let _entered = runtime.enter();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

async fn serve(
    loaded: &Loaded,
    sources: &ConfigSources,
    homes: Homes,
    signals: Signals,
) -> anyhow::Result<Ended> {
    let Signals {
        mut interrupt,
        mut terminate,
        mut hangup,
    } = signals;

    let config = &loaded.config;
    let server = Server::start(loaded, homes).await?;
    server.settle().await;
    if output::stdout_is_terminal() {
        print(server.banner(config)).await;
    }

    let Addresses {
        ingest,
        grpc,
        admin,
    } = server.addresses();

    tracing::info!(%ingest, %grpc, %admin, data_dir = %config.data_dir.display(), "ready");
    let shutdown = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }

        // Standard error is a log for machines unless it is a terminal.
        if io::stderr().is_terminal() {
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
    Ok(server
        .run_until(shutdown, hangup, move || config::load_described(&sources))
        .await?)
}

/// Prints to standard output, which may be closed or stuck: waits for a short time only, and
/// ignores errors.
async fn print(text: String) {
    let (done, is_done) = oneshot::channel();
    thread::spawn(move || {
        let _ = output::emit(text.as_bytes()).is_ok();
        let _ = done.send(()).is_ok();
    });
    let _ = timeout(OUTPUT_TIMEOUT, is_done).await.is_ok();
}

/// A broker must not keep running with a part missing: a panic in any thread or task ends the
/// process, and its supervisor starts a new one. Works also if standard error is stuck, where the
/// standard library's hook would wait for ever.
fn die_on_panic() {
    std::panic::set_hook(Box::new(move |panic| {
        log_panic(panic);
        if store::catches_panic() {
            return;
        }
        server::flush_log();
        std::process::abort();
    }));
}

/// Logs a panic in one line; on a terminal also prints the message of the standard library's hook.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    if io::stderr().is_terminal() {
        server::log_panic("the message of the panic follows", name, None);
        server::last_words(&format!(
            "thread '{name}' {panic}\n{}\n",
            backtrace.unwrap_or_default()
        ));
    } else {
        server::log_panic(
            &panic.to_string().replace('\n', " "),
            name,
            backtrace.as_deref(),
        );
    }
}

/// Raises the soft limit of open files: each connection is one, and the usual limit of 1,024 is
/// less than one listener may have.
fn raise_open_files(config: &Config) {
    let limits = getrlimit(Resource::Nofile);
    let needed = config.ingest.connections_max + config.grpc.connections_max + OTHER_FILES;
    if let Some(open_files) = limits.maximum.filter(|&maximum| maximum < needed) {
        tracing::warn!(
            open_files,
            needed,
            "the limit of open files is below the connections that the listeners may have: raise \
             it (ulimit -Hn, LimitNOFILE=), or lower grpc.connections_max and \
             ingest.connections_max"
        );
    }
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limits.maximum,
            maximum: limits.maximum,
        },
    ) {
        tracing::warn!(%error, open_files = ?limits.current, "cannot raise the limit of open files");
    }
}

/// Disables transparent huge pages: the kernel zeroes 2 MiB when such a page is touched first,
/// which blocks the thread for milliseconds. That was the cause of the slowest of a thousand
/// deliveries. Nothing was slower without huge pages.
fn keep_pages_small() {
    // Fails on kernels without huge pages, where there is nothing to disable.
    let _ = disable_transparent_huge_pages(true).is_ok();
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt,
        process::{Command, Stdio},
    };

    use super::*;

    /// Set in the child process of the tests below: the place of the panic.
    const WHERE: &str = "TEST_OF_DIE_ON_PANIC";

    #[test]
    fn a_panic_in_a_task_or_a_thread_ends_the_process_with_a_word() {
        if let Ok(place) = std::env::var(WHERE) {
            panic_in(&place);
            return;
        }
        for place in ["task", "thread", "blocking"] {
            let name =
                "cli::serve::tests::a_panic_in_a_task_or_a_thread_ends_the_process_with_a_word";
            let mut child = Command::new(std::env::current_exe().unwrap());
            let done = child
                .args(["--exact", name, "--nocapture"])
                .env(WHERE, place)
                .output()
                .unwrap();
            let said = String::from_utf8(done.stderr).unwrap();
            assert_eq!(
                done.status.signal(),
                Some(6),
                "SIGABRT after a panic in a {place}: {said}"
            );
            assert!(said.contains(&format!("a bug in a {place}")), "{said}");
            assert!(
                said.contains("the process ends so that it is not left half alive"),
                "{said}"
            );
        }
    }

    #[test]
    fn a_panic_ends_the_process_although_standard_error_is_stuck() {
        if std::env::var(WHERE).is_ok() {
            panic_in("stuck");
            return;
        }
        let name = "cli::serve::tests::a_panic_ends_the_process_although_standard_error_is_stuck";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", name, "--nocapture"])
            .env(WHERE, "stuck")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stuck = child.stderr.take();
        let ended = std::iter::repeat_with(|| std::thread::sleep(Duration::from_millis(10)))
            .take(6_000)
            .find_map(|()| child.try_wait().unwrap());
        let _ = child.kill();
        assert_eq!(
            ended.expect("its end within a minute").signal(),
            Some(6),
            "SIGABRT"
        );
        drop(stuck);
    }

    /// Panics with the broker's hook, logging and kind of runtime. The process must not survive,
    /// even if something catches the panic.
    fn panic_in(place: &str) {
        server::init_logging(&config::load(&ConfigSources::default()).unwrap().logging).unwrap();
        die_on_panic();
        let message = format!("a bug in a {place}");
        if place == "stuck" {
            // More than a pipe and the log's queue hold together.
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
