//! Prints results on standard output, and notes and errors on standard error.
//!
//! Owns colours, the format of errors, and their exit codes. Untrusted text never reaches a
//! terminal unescaped.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde::Serialize;

use super::{EXIT_OTHER, EXIT_USAGE, columns};
use crate::{
    config::ConfigErrors,
    printable::{printable, printable_json},
};

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// A usage error that clap does not find, such as flags that exclude each other; exits with the
/// same code as clap's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// The reader of standard output has closed it, as `head` does. Not reported as an error.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
struct OutputClosed;

/// Prints an error and returns its exit code. A closed standard output is not printed and counts as
/// success.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    let bold = AnsiColor::Red.on_default().bold();
    for line in problems(error) {
        say(format_args!("{bold}error:{bold:#} {}", printable(&line)));
    }
    ExitCode::from(exit_code(error))
}

/// The lines of an error: one per problem.
pub(super) fn problems(error: &anyhow::Error) -> Vec<String> {
    match error.downcast_ref::<ConfigErrors>() {
        Some(errors) => errors.problems.iter().map(ToString::to_string).collect(),
        None => vec![chain(error)],
    }
}

/// The error and its causes, without causes that its text already contains.
fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error
        .chain()
        .skip(1)
        .map(ToString::to_string)
        .filter(|cause| !cause.is_empty())
    {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

pub(super) fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() {
        EXIT_USAGE
    } else {
        EXIT_OTHER
    }
}

/// The error for a file that the command line names, with the next step; `what` names its content.
pub(super) fn unreadable(what: &str, path: &Path, error: &io::Error) -> anyhow::Error {
    let step = match error.kind() {
        io::ErrorKind::NotFound => "correct the path",
        io::ErrorKind::PermissionDenied => "run this as a user that may read it",
        io::ErrorKind::IsADirectory => "name the file in it",
        io::ErrorKind::FileTooLarge => "is it the right file?",
        _ => "name a regular file that this user can read",
    };
    anyhow::anyhow!("cannot read {what} {}: {error}; {step}", path.display())
}

/// Writes bytes to standard output and flushes them, since a reader of a pipe waits for each line.
pub(super) fn emit(bytes: &[u8]) -> anyhow::Result<()> {
    write(&mut io::stdout(), bytes)
}

/// Like [`emit`], to another writer in place of standard output.
pub(super) fn write(out: &mut impl Write, bytes: &[u8]) -> anyhow::Result<()> {
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => anyhow::Error::from(error).context("cannot write to standard output"),
    })
}

/// Writes one line to standard output, escaped to be printable.
pub(super) fn emit_line(line: &str) -> anyhow::Result<()> {
    emit(format!("{}\n", printable(line)).as_bytes())
}

/// Writes text to standard output, each line escaped to be printable.
pub(super) fn emit_lines(text: &str) -> anyhow::Result<()> {
    text.lines().try_for_each(emit_line)
}

/// Writes one JSON object on one line to standard output.
pub(super) fn emit_json(value: &impl Serialize) -> anyhow::Result<()> {
    emit(format!("{}\n", json(value)?).as_bytes())
}

/// One JSON object on one line. Control and invisible characters are escaped, also in a pipe: the
/// value stays the same.
pub(super) fn json(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(printable_json(&serde_json::to_string(value)?).into_owned())
}

/// Writes a table to standard output; see [`columns`].
pub(super) fn emit_table<const N: usize>(
    header: [&str; N],
    rows: &[[String; N]],
) -> anyhow::Result<()> {
    emit(columns::table(header, rows, columns::screen_width()).as_bytes())
}

/// A dim line on standard error: about the command's progress, not its result.
pub(super) fn note(text: &str) {
    let dim = Style::new().dimmed();
    say(format_args!("{dim}{}{dim:#}", printable(text)));
}

fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(anstream::stderr(), "{line}"); // a closed standard error cannot be reported
}

pub(super) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether to print colours on standard output: on a terminal, unless `NO_COLOR` is set.
pub(super) fn stdout_colors() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_the_error_contains_is_not_repeated() {
        let cause = || io::Error::other("busy");
        let named =
            anyhow::Error::from(cause()).context("cannot listen: busy; choose another port");
        assert_eq!(chain(&named), "cannot listen: busy; choose another port");
        let unnamed = anyhow::Error::from(cause()).context("cannot listen");
        assert_eq!(chain(&unnamed), "cannot listen: busy");
    }

    #[test]
    fn a_usage_error_exits_as_clap_does_and_any_other_with_one() {
        assert_eq!(exit_code(&Usage("no".into()).into()), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("no")), 1);
    }

    #[test]
    fn a_closed_standard_output_is_no_error() {
        assert_eq!(
            format!("{:?}", report(&OutputClosed.into())),
            format!("{:?}", ExitCode::SUCCESS)
        );
    }
}
