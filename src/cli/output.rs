//! What is printed, and where: results on standard output, everything else on standard error.
//!
//! Owns colours, tables, how an error looks and what it exits with. Nothing from outside reaches a terminal unfiltered.

use std::{
    borrow::Cow,
    io::{self, Write},
    process::ExitCode,
};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;

use super::{EXIT_OTHER, EXIT_USAGE};
use crate::config::ConfigErrors;

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

/// Whoever read standard output has had enough, as `head` does. Not an error.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
struct OutputClosed;

/// Prints an error, unless it is none, and says what to exit with.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    let bold = AnsiColor::Red.on_default().bold();
    let lines = match error.downcast_ref::<ConfigErrors>() {
        Some(errors) => errors.problems.iter().map(ToString::to_string).collect(),
        None => vec![chain(error)],
    };
    for line in lines {
        say(format_args!("{bold}error:{bold:#} {}", printable(&line)));
    }
    ExitCode::from(exit_code(error))
}

/// The error and its causes, without those that it has told already.
fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() { EXIT_USAGE } else { EXIT_OTHER }
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

/// Writes a line to standard output.
pub(super) fn emit_line(line: &str) -> anyhow::Result<()> {
    emit(format!("{line}\n").as_bytes())
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

/// Whether colours are wanted on standard output: a terminal, and no `NO_COLOR`.
pub(super) fn stdout_colors() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// The text without control characters: a callback is not to steer the terminal of whoever reads it.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect::<String>().into()
    } else {
        text.into()
    }
}

/// A table with aligned columns; the last column is not padded.
pub(super) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let header = header.map(str::to_owned);
    let lines = || std::iter::once(&header).chain(rows);
    let cell = |line: &[String; N], column: usize| printable(&line[column]).into_owned();
    let widths: [usize; N] =
        std::array::from_fn(|column| lines().map(|line| cell(line, column).chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for line in lines() {
        let cells: Vec<_> = (0..N).map(|column| format!("{:<1$}", cell(line, column), widths[column])).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".into(), "1".into(), "x".into()], ["äöü".into(), "22".into(), String::new()]];
        assert_eq!(table(["id", "n", "last"], &rows), "id   n   last\na    1   x\näöü  22\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("red \u{1b}[31mand\u{9b}31m\nmore"), "red \u{fffd}[31mand\u{fffd}31m\u{fffd}more");
        assert!(matches!(printable("plain ü"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_cause_that_the_error_names_is_not_told_again() {
        let cause = || io::Error::other("busy");
        let named = anyhow::Error::from(cause()).context("cannot listen: busy; choose another port");
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
        assert_eq!(format!("{:?}", report(&OutputClosed.into())), format!("{:?}", ExitCode::SUCCESS));
    }
}
