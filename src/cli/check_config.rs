//! `check-config`: checks whether `serve` would start with this configuration, as the user that
//! will run it.
//!
//! Listens nowhere and creates nothing. With `--reload` it then sends SIGHUP to a running broker.

use std::{env, fs, os::unix::fs::MetadataExt, process::ExitCode, thread, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use rustix::{
    process::{Gid, Pid, PidfdFlags, Signal, Uid, geteuid, getuid, pidfd_open, pidfd_send_signal},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{EXIT_OTHER, output, serve::ServeArgs};
use crate::{
    accounts::{self, Account},
    config::{self, Config},
    server::{self, Rehearsal},
};

/// Time for the broker to notify systemd that it reloads. Once notified, systemd waits for the end
/// of the reload, although this process has ended.
const NOTICE: Duration = Duration::from_millis(200);

pub(super) const AFTER_HELP: &str = "\
Reads what `serve` would read, as the same user: certificates, keys, authorities, revocation \
lists, credentials. Checks the permissions of the data directory, and compares the listeners with \
systemd's socket units, if there are any. It listens nowhere, creates nothing, does not read the \
log, and may run beside a broker.

Examples:
  blobcast check-config --config blobcast.toml
  sudo blobcast check-config --config /etc/blobcast/blobcast.toml --as-user blobcast
  blobcast check-config --print-default > blobcast.toml

Exit codes: 0 `serve` would start; 1 it would not, and standard error names each mistake; 2 usage.";

/// Takes the flags of `serve`, so that it checks the same configuration.
#[derive(Args, Debug)]
pub(super) struct CheckConfigArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Check as this user with its groups in /etc/group; only root can. A unit's Group=,
    /// SupplementaryGroups= and sandbox are not applied.
    #[arg(long, value_name = "NAME")]
    as_user: Option<String>,
    /// If a start would succeed, send SIGHUP to the broker with this process id; for `ExecReload=`.
    /// The result of the reload is in the broker's log, its STATUS= line, and
    /// `blobcast_reload_refused`.
    #[arg(long, value_name = "PID", conflicts_with_all = ["as_user", "print_default"], value_parser = clap::value_parser!(i32).range(1..))]
    reload: Option<i32>,
    /// Print the documented default file instead: every key, what it means, and its default.
    #[arg(long)]
    print_default: bool,
}

/// Prints every problem that would keep the broker from starting.
pub(super) fn run(args: CheckConfigArgs) -> anyhow::Result<ExitCode> {
    if args.print_default {
        output::emit(config::DEFAULT.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }

    if let Some(name) = &args.as_user {
        become_user(name)?;
    }

    let config = config::load(&args.serve.sources())?;
    let exposures = server::exposures(&config, &server::Reader::of_a_broker());
    let Rehearsal { problems, warnings } = server::rehearse(&config);
    let as_root = args
        .as_user
        .is_none()
        .then(|| checked_as_root(&config))
        .flatten();

    for warning in exposures.into_iter().chain(warnings).chain(as_root) {
        output::note(&format!("warning: {warning}"));
    }

    if !problems.is_empty() {
        for problem in problems {
            output::report(&anyhow::Error::msg(problem));
        }
        return Ok(ExitCode::from(EXIT_OTHER));
    }

    output::emit_line(&format!(
        "the configuration is good: callbacks on {}, gRPC on {}, admin on {}, data in {}",
        config.ingest.listen,
        config.grpc.listen,
        config.admin.listen,
        config.data_dir.display()
    ))?;

    args.reload.map(reload).transpose()?;
    Ok(ExitCode::SUCCESS)
}

fn reload(pid: i32) -> anyhow::Result<()> {
    let name_the_brokers =
        || format!("--reload: cannot signal process {pid}: name the broker's process id");
    let process = Pid::from_raw(pid).with_context(name_the_brokers)?;
    // Opened before the check: by the time of the signal the number may belong to another process.
    let held = pidfd_open(process, PidfdFlags::empty()).with_context(name_the_brokers)?;
    check_is_broker(pid)?;
    pidfd_send_signal(&held, Signal::HUP).with_context(|| {
        format!("--reload: cannot signal process {pid}: it has to be a broker of the same user")
    })?;
    thread::sleep(NOTICE);
    Ok(())
}

/// Refuses a process that is not a broker: SIGHUP ends processes that do not handle it.
fn check_is_broker(pid: i32) -> anyhow::Result<()> {
    let read = |process: &str, file: &str| fs::read(format!("/proc/{process}/{file}"));
    let (process, text) = (pid.to_string(), |bytes: Vec<u8>| {
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let (status, line) = match (read(&process, "status"), read(&process, "cmdline")) {
        (Ok(status), Ok(line)) => (text(status), line),
        // The unit's sandbox hides the broker from its ExecReload= process, but then systemd itself
        // names it in MAINPID.
        _ if env::var("MAINPID").is_ok_and(|main| main == process) => return Ok(()),
        (Err(error), _) | (_, Err(error)) => {
            return Err(error).with_context(|| {
                format!("--reload: cannot look at process {pid}: run it as its user, or as root")
            });
        }
    };

    if !handles_hangup(&status)
        || !is_serve(
            &status,
            &line,
            &read("self", "status").map(text).unwrap_or_default(),
        )
    {
        bail!(
            "--reload: process {pid} is not a running broker: no signal was sent; name the \
             broker's process id"
        );
    }

    Ok(())
}

/// Whether a process handles SIGHUP, by its `/proc/PID/status`.
fn handles_hangup(status: &str) -> bool {
    let caught = field(status, "SigCgt:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    caught.is_some_and(|mask| (mask >> (Signal::HUP.as_raw() - 1)) & 1 == 1)
}

/// Whether a process is `blobcast serve`. A broker that has re-executed itself after its file was
/// replaced has the name of the link `/proc/self/exe`.
fn is_serve(status: &str, line: &[u8], own_status: &str) -> bool {
    const LINK: &str = "exe";
    let name = field(status, "Name:");
    let is_blobcast =
        name.is_some_and(|name| name == LINK || Some(name) == field(own_status, "Name:"));
    is_blobcast
        && line
            .split(|&byte| byte == 0)
            .skip(1)
            .any(|word| word == b"serve")
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

/// A warning, if root checks for a broker that runs as another user: root can read files that the
/// user cannot.
fn checked_as_root(config: &Config) -> Option<String> {
    let owner = fs::metadata(&config.data_dir).ok()?.uid();
    if !geteuid().is_root() || owner == 0 {
        return None;
    }
    let name = accounts::name_of(owner);
    Some(format!(
        "checked as root, which can read everything, and {} belongs to user {name}: check with \
         --as-user {name}",
        config.data_dir.display()
    ))
}

/// Switches this process to that user. The ids apply to this thread and to threads it starts later;
/// the process has no others yet.
fn become_user(name: &str) -> anyhow::Result<()> {
    let Some(account) = Account::find(|account| account.name == name).context("--as-user")? else {
        bail!(
            "--as-user: there is no user {name} in /etc/passwd: install the package, or name \
             another"
        );
    };

    if !geteuid().is_root() {
        if getuid().as_raw() == account.uid {
            return Ok(());
        }
        bail!(
            "--as-user: only root can check as {name}: run it with sudo, or as that user without \
             the flag"
        );
    }

    let groups: Vec<_> = account
        .groups()
        .context("--as-user")?
        .into_iter()
        .map(Gid::from_raw)
        .collect();

    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    set_thread_groups(&groups)
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .with_context(|| format!("--as-user: cannot become {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_broker_that_handles_the_signal_gets_it() {
        let status = |name: &str, mask: &str| {
            format!("Name:\t{name}\nSigIgn:\t0000000000000001\nSigCgt:\t{mask}\n")
        };
        let (broker, own) = (
            status("blobcast", "0000000000004003"),
            status("blobcast", "0"),
        );
        assert!(handles_hangup(&broker));
        for mask in ["0000000000004002", "0", "", "x"] {
            assert!(!handles_hangup(&status("blobcast", mask)), "{mask}");
        }
        assert!(is_serve(
            &broker,
            b"/usr/bin/blobcast\0serve\0--config\0a.toml\0",
            &own
        ));
        assert!(is_serve(
            &status("exe", "1"),
            b"/proc/self/exe\0serve\0",
            &own
        ));
        assert!(!is_serve(&broker, b"blobcast\0listen\0", &own));
        assert!(!is_serve(&broker, b"serve\0", &own));
        assert!(!is_serve(&status("caddy", "1"), b"caddy\0serve\0", &own));
        assert!(!is_serve("", b"blobcast\0serve\0", ""));
    }
}
