//! What is printed, and where: results on standard output, everything else on standard error.
//!
//! Owns colours, tables, how an error looks and what it exits with. Nothing from outside reaches a terminal unfiltered.

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

/// Pretty for people, JSON for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Flags that are each good but make no sense together; exits as clap's own complaints do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// The reader of standard output has had enough, as `head` does. Not an error.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
struct OutputClosed;

/// Prints an error, unless it is none, and says what to exit with.
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

/// What is wrong, a line for each thing.
pub(super) fn problems(error: &anyhow::Error) -> Vec<String> {
    match error.downcast_ref::<ConfigErrors>() {
        Some(errors) => errors.problems.iter().map(ToString::to_string).collect(),
        None => vec![chain(error)],
    }
}

/// The error and its causes, without those that it has told already.
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

/// The error of a file that a command line names, with the next step; `what` says what is in it.
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

/// Writes bytes to standard output and flushes them: a reader at the other end of a pipe waits for each line.
pub(super) fn emit(bytes: &[u8]) -> anyhow::Result<()> {
    write(&mut io::stdout(), bytes)
}

/// The same to any writer that stands for standard output.
pub(super) fn write(out: &mut impl Write, bytes: &[u8]) -> anyhow::Result<()> {
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => anyhow::Error::from(error).context("cannot write to standard output"),
    })
}

/// Writes one line of text to standard output, made printable.
pub(super) fn emit_line(line: &str) -> anyhow::Result<()> {
    emit(format!("{}\n", printable(line)).as_bytes())
}

/// Writes text to standard output, each line of it made printable.
pub(super) fn emit_lines(text: &str) -> anyhow::Result<()> {
    text.lines().try_for_each(emit_line)
}

/// Writes one JSON object on one line to standard output.
pub(super) fn emit_json(value: &impl Serialize) -> anyhow::Result<()> {
    emit(format!("{}\n", json(value)?).as_bytes())
}

/// One JSON object on one line. What a terminal would obey or not show is escaped, also in a pipe: it is the same JSON.
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

/// A dim line on standard error: what happens to the stream, not what is in it.
pub(super) fn note(text: &str) {
    let dim = Style::new().dimmed();
    say(format_args!("{dim}{}{dim:#}", printable(text)));
}

fn say(line: std::fmt::Arguments<'_>) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(anstream::stderr(), "{line}");
}

/// Whether a person sees standard output.
pub(super) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether colours are wanted on standard output: a terminal, and no `NO_COLOR`.
pub(super) fn stdout_colors() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_the_error_names_is_not_told_again() {
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
