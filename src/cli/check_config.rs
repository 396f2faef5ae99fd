//! `check-config`: whether `serve` would start with this configuration, as the user that is going to run it.

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

/// How long a broker has to tell its supervisor that it reloads: one that has been told waits for the end of that, although this
/// process has ended.
const NOTICE: Duration = Duration::from_millis(200);

pub(super) const AFTER_HELP: &str = "\
Reads what `serve` would read, as the user that it runs as: certificates, keys, authorities, lists of revoked certificates, \
credentials. Looks at the rights in the data directory, and compares the listeners with systemd's socket units, where there are \
any. It listens nowhere, makes nothing, and may run beside a broker; what is in the log it does not read.

Examples:
  blobcast check-config --config blobcast.toml
  sudo blobcast check-config --config /etc/blobcast/blobcast.toml --as-user blobcast
  blobcast check-config --print-default > blobcast.toml

Exit codes: 0 `serve` would start; 1 it would not, and standard error names each mistake; 2 usage.";

/// `serve`'s flags: what is checked is what it would run with.
#[derive(Args, Debug)]
pub(super) struct CheckConfigArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Check as this user with its groups in /etc/group; only root can. Of a unit, neither Group= and SupplementaryGroups= nor
    /// the sandbox are applied.
    #[arg(long, value_name = "NAME")]
    as_user: Option<String>,
    /// If a start would succeed, send SIGHUP to the broker with this process id; for `ExecReload=`. What the broker then makes of
    /// it is in its log, its STATUS= line, and `blobcast_reload_refused`.
    #[arg(long, value_name = "PID", conflicts_with_all = ["as_user", "print_default"], value_parser = clap::value_parser!(i32).range(1..))]
    reload: Option<i32>,
    /// Print the documented default file instead: every key, what it means, and its default.
    #[arg(long)]
    print_default: bool,
}

/// Prints what would keep the broker from starting, all of it.
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
    // Held before it is looked at: the number may be another process's by the time of the signal.
    let held = pidfd_open(process, PidfdFlags::empty()).with_context(name_the_brokers)?;
    check_is_broker(pid)?;
    pidfd_send_signal(&held, Signal::HUP).with_context(|| {
        format!("--reload: cannot signal process {pid}: it has to be a broker of the same user")
    })?;
    thread::sleep(NOTICE);
    Ok(())
}

/// SIGHUP ends a process that does not expect it: so none but a broker is to get it.
fn check_is_broker(pid: i32) -> anyhow::Result<()> {
    let read = |process: &str, file: &str| fs::read(format!("/proc/{process}/{file}"));
    let (process, text) = (pid.to_string(), |bytes: Vec<u8>| {
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let (status, line) = match (read(&process, "status"), read(&process, "cmdline")) {
        (Ok(status), Ok(line)) => (text(status), line),
        // The unit's sandbox hides the broker from what systemd runs beside it; but it is systemd that names it.
        _ if env::var("MAINPID").is_ok_and(|main| main == process) => return Ok(()),
        (Err(error), _) | (_, Err(error)) => {
            return Err(error).with_context(|| {
                format!("--reload: cannot look at process {pid}: run it as its user, or as root")
            });
        }
    };
    if !expects_hangup(&status)
        || !serves(
            &status,
            &line,
            &read("self", "status").map(text).unwrap_or_default(),
        )
    {
        bail!(
            "--reload: process {pid} is no broker that serves: nothing was sent; name the broker's"
        );
    }
    Ok(())
}

/// Whether a process has something to do on SIGHUP other than to end, by its `/proc/PID/status`.
fn expects_hangup(status: &str) -> bool {
    let caught = field(status, "SigCgt:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    caught.is_some_and(|mask| (mask >> (Signal::HUP.as_raw() - 1)) & 1 == 1)
}

/// Whether a process is one of this program that was told to serve. One that has started itself anew after its file was replaced is
/// called after the link that it was started by.
fn serves(status: &str, line: &[u8], own_status: &str) -> bool {
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

/// Root can read everything; whose the data is can perhaps not.
fn checked_as_root(config: &Config) -> Option<String> {
    let owner = fs::metadata(&config.data_dir).ok()?.uid();
    if !geteuid().is_root() || owner == 0 {
        return None;
    }
    let name = accounts::name_of(owner);
    Some(format!(
        "checked as root, which can read everything, and {} belongs to user {name}: check with --as-user {name}",
        config.data_dir.display()
    ))
}

/// Makes this process one of that user's. The ids are this thread's and of those that it starts, and it has started none.
fn become_user(name: &str) -> anyhow::Result<()> {
    let Some(account) = Account::find(|account| account.name == name).context("--as-user")? else {
        bail!(
            "--as-user: there is no user {name} in /etc/passwd: install the package, or name another"
        );
    };
    if !geteuid().is_root() {
        if getuid().as_raw() == account.uid {
            return Ok(());
        }
        bail!(
            "--as-user: only root can check as {name}: run it with sudo, or as that user without the flag"
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
    fn only_a_broker_that_expects_the_signal_gets_it() {
        let status = |name: &str, mask: &str| {
            format!("Name:\t{name}\nSigIgn:\t0000000000000001\nSigCgt:\t{mask}\n")
        };
        let (broker, own) = (
            status("blobcast", "0000000000004003"),
            status("blobcast", "0"),
        );
        assert!(expects_hangup(&broker));
        for mask in ["0000000000004002", "0", "", "x"] {
            assert!(!expects_hangup(&status("blobcast", mask)), "{mask}");
        }
        assert!(serves(
            &broker,
            b"/usr/bin/blobcast\0serve\0--config\0a.toml\0",
            &own
        ));
        assert!(serves(
            &status("exe", "1"),
            b"/proc/self/exe\0serve\0",
            &own
        ));
        assert!(!serves(&broker, b"blobcast\0listen\0", &own));
        assert!(!serves(&broker, b"serve\0", &own));
        assert!(!serves(&status("caddy", "1"), b"caddy\0serve\0", &own));
        assert!(!serves("", b"blobcast\0serve\0", ""));
    }
}
