//! The command line: `serve` and other verbs for operators, and a client for developers.
//!
//! Owns the verbs, their flags and their exit codes. Each verb has a file with its flags and one
//! `run`; `output` decides what is printed and where. The client verbs use the broker's API and
//! never its files. `restore` writes a data directory that no broker uses yet, `token` edits the
//! credentials file, and `vendor` needs no broker.

mod addresses;
mod args;
mod backoff;
mod backup;
mod backup_directory;
mod body;
mod brokers;
mod check_config;
mod client;
mod cluster;
mod columns;
mod completions;
mod configuration;
mod console;
mod credentials;
mod ended_subscriptions;
mod erase;
mod expectations;
mod forward;
mod healthcheck;
mod history;
mod http;
mod listen;
mod log_info;
mod man;
mod output;
mod overview;
mod problem;
mod proxy;
mod quarantine;
mod raw;
mod refusals;
mod render;
mod restore;
mod rotate;
#[cfg(test)]
mod scripted;
mod serve;
mod size;
mod subscription_text;
mod subscriptions;
mod test_callback;
mod token;
mod trigger;
mod url;
mod user_info;
mod vendor;
mod vendor_key;
mod wait;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};
use rustix::{fs::Mode, process::umask};

/// An error without a code of its own.
const EXIT_OTHER: u8 = 1;
/// A command line that cannot be understood; clap's own code.
const EXIT_USAGE: u8 = 2;
/// `wait`: the task failed.
const EXIT_TASK_FAILED: u8 = 10;
/// `wait`: the task is not over yet; the code of coreutils' `timeout`.
const EXIT_TIMED_OUT: u8 = 124;
/// Ctrl-C; the code that a shell reports for a process that SIGINT ended.
const EXIT_INTERRUPTED: u8 = 130;

const EXIT_CODES: &str = "\
Exit codes:
  0    done; `wait`: the task completed
  1    something went wrong; standard error says what, and what to do next
  2    the command line was not understood
  10   `wait`: the task failed
  124  `wait`: the task was not over in time
  130  interrupted with Ctrl-C

Environment:
  BLOBCAST_GRPC_URL    the broker's address for the client verbs, or several, separated by commas; --grpc-url overrides it
  BLOBCAST_TOKEN       the token of the client verbs; --token-file or BLOBCAST_TOKEN_FILE names a file with one
  BLOBCAST_INGEST_URL  where `trigger` sends callbacks, one address or several; --ingest-url overrides it
  BLOBCAST_ADMIN_URL   the admin listener that `healthcheck` and `console` ask, or several; --admin-url overrides it
  BLOBCAST_CONFIG      the configuration file of `serve`, `check-config` and `size`; --config overrides it
  NO_COLOR             any value: no colours";

/// One callback URL in, typed event streams out: a broker for RunBlob's webhooks, and its client.
#[derive(Debug, Parser)]
#[command(name = "blobcast", version, after_help = EXIT_CODES, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process has one value of it")]
enum Command {
    /// Run the broker.
    #[command(after_help = serve::AFTER_HELP)]
    Serve(serve::ServeArgs),
    /// Check whether `serve` would start, without starting it.
    #[command(after_help = check_config::AFTER_HELP)]
    CheckConfig(check_config::CheckConfigArgs),
    /// Say how much disk and memory a broker needs, and which limit comes first.
    Size(size::SizeArgs),
    #[command(flatten)]
    Client(ClientCommand),
    /// Make a new data directory from a backup.
    Restore(restore::RestoreArgs),
    /// Make tokens and keys for the credentials file.
    Token(token::TokenArgs),
    /// Print a completion script for a shell.
    Completions(completions::CompletionsArgs),
    /// Write man pages.
    Man(man::ManArgs),
}

#[derive(Debug, Subcommand)]
enum ClientCommand {
    /// Print events as they come; reconnects for ever without losing its place.
    Listen(listen::ListenArgs),
    /// Wait until a task is over and print its result URLs.
    Wait(wait::WaitArgs),
    /// Send callbacks like the vendor's, to try things without the vendor.
    Trigger(trigger::TriggerArgs),
    /// Run a simulated vendor: tasks, callbacks and the status API, without an account.
    Vendor(vendor::VendorArgs),
    /// Print every retained event of one task, oldest first.
    Get(history::GetArgs),
    /// Print retained events.
    Events(history::EventsArgs),
    /// Expect a task that was submitted to the vendor, so that it ends in an answer also if its callback is lost.
    Expect(expectations::ExpectArgs),
    /// List the tasks that are expected, oldest first.
    Expectations(expectations::ExpectationsArgs),
    /// Describe the log, and say how far behind a cursor is.
    LogInfo(log_info::LogInfoArgs),
    /// Show the state of a broker on one page.
    Overview(overview::OverviewArgs),
    /// List the last callbacks that were refused, and why.
    Refusals(refusals::RefusalsArgs),
    /// Look at and deal with callbacks that could not be understood.
    Quarantine(quarantine::QuarantineArgs),
    /// Erase the content of every retained event of one task.
    Erase(erase::EraseArgs),
    /// Copy everything the broker keeps into one file, while it runs.
    Backup(backup::BackupArgs),
    /// List the open subscriptions, or those that have ended.
    Subscriptions(subscriptions::SubscriptionsArgs),
    /// Look after several brokers with one log.
    Cluster(cluster::ClusterArgs),
    /// Print the configuration that a broker runs with, and where each value comes from.
    Configuration(configuration::ConfigurationArgs),
    /// List the names in a broker's credentials file, with rights, expiry and last use.
    Credentials(credentials::CredentialsArgs),
    /// Mint a signed callback URL.
    Url(url::UrlArgs),
    /// Print a link to the broker's console.
    Console(console::ConsoleArgs),
    /// Try a callback URL: the broker sends itself a made-up callback.
    TestCallback(test_callback::TestCallbackArgs),
    /// Ask a broker whether it is ready; for container health checks.
    Healthcheck(healthcheck::HealthcheckArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Before anything slow: until the handlers are installed, any signal ends the process, even
    // SIGHUP. The other verbs have no handlers, since a signal should end them.
    let signals = std::env::args_os()
        .nth(1)
        .filter(|verb| verb == "serve")
        .map(|_| serve::Signals::new());

    let parsed = Cli::try_parse()
        .map_err(user_info::without_secrets)
        .map_err(|error| match signals {
            Some(_) if error.use_stderr() && !io::stderr().is_terminal() => {
                serve::log_usage(&error)
            }
            _ => error.exit(),
        });

    let command = match parsed {
        Ok(cli) => cli.command,
        Err(code) => return code,
    };

    let done = match command {
        Command::Serve(args) => return serve::run(args, signals),
        Command::CheckConfig(args) => check_config::run(args),
        Command::Size(args) => size::run(args),
        Command::Client(command) => run_client(command),
        Command::Restore(args) => restore::run(&args),
        Command::Token(args) => token::run(args),
        Command::Completions(args) => completions::run(&args, &mut Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    };

    done.unwrap_or_else(|error| output::report(&error))
}

/// Makes all files that this process creates private to its user, whatever umask it was started
/// with; the database's library offers no other way. The umask belongs to the process, so this has
/// to come before its threads.
fn keep_files_private() {
    umask(Mode::RWXG | Mode::RWXO);
}

fn run_client(command: ClientCommand) -> anyhow::Result<ExitCode> {
    // One thread: a client does one thing at a time, and starts faster.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(async {
        match command {
            ClientCommand::Listen(args) => listen::run(args).await,
            ClientCommand::Wait(args) => wait::run(args).await,
            ClientCommand::Trigger(args) => trigger::run(args).await,
            ClientCommand::Vendor(args) => vendor::run(args).await,
            ClientCommand::Get(args) => history::get(args).await,
            ClientCommand::Events(args) => history::events(args).await,
            ClientCommand::Expect(args) => expectations::expect(args).await,
            ClientCommand::Expectations(args) => expectations::run(args).await,
            ClientCommand::LogInfo(args) => log_info::run(args).await,
            ClientCommand::Overview(args) => overview::run(args).await,
            ClientCommand::Refusals(args) => refusals::run(args).await,
            ClientCommand::Quarantine(args) => quarantine::run(args).await,
            ClientCommand::Erase(args) => erase::run(args).await,
            ClientCommand::Backup(args) => backup::run(args).await,
            ClientCommand::Subscriptions(args) => subscriptions::run(args).await,
            ClientCommand::Cluster(args) => cluster::run(args).await,
            ClientCommand::Configuration(args) => configuration::run(args).await,
            ClientCommand::Credentials(args) => credentials::run(args).await,
            ClientCommand::Url(args) => url::run(args).await,
            ClientCommand::Console(args) => console::run(args).await,
            ClientCommand::TestCallback(args) => test_callback::run(args).await,
            ClientCommand::Healthcheck(args) => healthcheck::run(args).await,
        }
    });

    // Without waiting: a name lookup that hangs must not delay the exit.
    runtime.shutdown_background();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_says_what_it_is_for() {
        fn check(command: &clap::Command) {
            assert!(
                command.get_about().is_some(),
                "`{}` has no description",
                command.get_name()
            );
            for arg in command.get_arguments() {
                assert!(
                    arg.get_help().is_some(),
                    "{} of `{}` has no help",
                    arg.get_id(),
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn the_verbs_of_the_contract_are_understood() {
        for line in [
            "serve --config a.toml --data-dir d --ingest-listen a --grpc-listen b --admin-listen \
             c --public-url u",
            "check-config --config a.toml",
            "check-config --config a.toml --as-user blobcast",
            "size --rate 50 --body 3k --days 7",
            "size --rate 0.5 --body 3KiB --days 12h --streams 2000 --config a.toml --output json",
            "listen --task a --task b --product veo --status failed --label k=v --from 2h --count \
             3 --output json",
            "listen --task a --until-terminal --from latest --forward-to \
             http://localhost:3000/hook --include-raw",
            "listen --forward-to https://user:password@localhost/hook --forward-secret-file secret",
            "wait 7f3a --timeout 10m --output json",
            "trigger --product sora --status timeout --task-id t --set a.b=1 --label k=v --count \
             2 --rate 10",
            "trigger --shape legacy --retry --retry-interval 1s --duplicate 2",
            "vendor --listen 127.0.0.1:0 --after 5s --after veo=20s --fail-rate 10 --seed 1",
            "vendor --lose-callbacks --delay 1m --key k --retry-speed 30 --output json",
            "vendor --lose-callbacks=30",
            "get 7f3a",
            "get 7f3a --product veo --raw",
            "events --since 2h --until 2026-01-01T00:00:00Z --order newest --limit 10",
            "url --product veo --label k=v --ttl 2h --key-id k1",
            "test-callback /webhook/veo --task-id t --status failed --output json",
            "token new client billing --product veo --expires-in 90d",
            "token new signing-key k1 --output json",
            "expect veo 7f3a --label k=v --within 10m --output json",
            "expectations --overdue --product veo --output json",
            "log-info",
            "overview --output json",
            "refusals --limit 20 --output json",
            "quarantine list",
            "quarantine show id",
            "quarantine release id --product veo --task-id t --drop-labels",
            "quarantine release id --task-id t --dry-run --output json",
            "quarantine discard a b",
            "erase veo 7f3a --grpc-url http://localhost:50051",
            "subscriptions --output json",
            "subscriptions --order lag --limit 10 --client billing",
            "subscriptions --task-id 7f3a --client billing",
            "subscriptions --ended --client billing --limit 10 --output json",
            "configuration --changed --output json",
            "credentials --kind client --output json",
            "cluster status --output json --grpc-url http://localhost:50051",
            "cluster import --from data --cluster nats://localhost:4222",
            "cluster heal --from data --keep-epoch --anew --cluster-name main",
            "backup events.backup --grpc-url http://localhost:50051",
            "backup -",
            "restore events.backup --data-dir new-data",
            "console --admin-url http://localhost:9090 --token-file t",
            "healthcheck --admin-url http://localhost:9090",
            "completions zsh",
            "man share/man/man1",
        ] {
            let parsed = Cli::try_parse_from(std::iter::once("blobcast").chain(line.split(' ')));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }
}
