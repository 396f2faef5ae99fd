//! `man`: writes man pages from the text of `--help`, one for each command.
//!
//! The help is plain text, so the sections of a page are found by its layout: see [`Help`].

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Command};
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use super::output;

/// The section for user commands.
const SECTION: &str = "1";

/// A section that only the man page has: it would make the help too long.
const FILES: &str = "\
Files:
  ./blobcast-data  the data of `serve` where nothing else is configured
  /etc/blobcast/blobcast.toml  the configuration of the Debian package's service
  /var/lib/blobcast  the data of that service
  /var/log/blobcast  a directory in which that service may write its `audit.file`
  /usr/share/doc/blobcast/blobcast.default.toml  every key of the configuration, what it means, and its default
  /usr/share/doc/blobcast/README.md  the documents: how to subscribe, to deploy and to operate";

/// Writes the man pages: blobcast(1), and one for each command, such as blobcast-serve(1).
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  blobcast man ~/.local/share/man/man1 && man -M ~/.local/share/man blobcast-serve")]
pub(super) struct ManArgs {
    /// Directory to write them into, made if it is missing. Pages with the same names are replaced.
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

pub(super) fn run(args: &ManArgs, command: Command) -> anyhow::Result<ExitCode> {
    let directory = &args.directory;
    let pages = pages(command)?;

    write(directory, &pages).with_context(|| {
        format!(
            "cannot write into {}: name a directory of yours",
            directory.display()
        )
    })?;

    output::note(&format!(
        "{} man pages are in {}",
        pages.len(),
        directory.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn write(directory: &Path, pages: &[Page]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    pages
        .iter()
        .try_for_each(|page| fs::write(directory.join(&page.file), &page.text))
}

struct Page {
    file: String,
    text: Vec<u8>,
}

fn pages(command: Command) -> io::Result<Vec<Page>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();

    let mut pages = Vec::new();
    add_pages(&command, &[], &mut pages)?;
    Ok(pages)
}

fn add_pages(command: &Command, parents: &[String], pages: &mut Vec<Page>) -> io::Result<()> {
    let name = name(command);
    pages.push(Page {
        file: format!("{name}.{SECTION}"),
        text: page(command, parents)?,
    });

    let parents: Vec<_> = parents.iter().cloned().chain([name]).collect();
    command
        .get_subcommands()
        .try_for_each(|subcommand| add_pages(subcommand, &parents, pages))
}

/// With a dash between the words: `blobcast-token-new`.
fn name(command: &Command) -> String {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
        .to_owned()
}

fn page(command: &Command, parents: &[String]) -> io::Result<Vec<u8>> {
    let source = concat!("blobcast ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone())
        .section(SECTION)
        .source(source)
        .manual("blobcast");

    let help = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    let help = Help::parse(&help.map(ToString::to_string).unwrap_or_default());

    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    prose(&help.prose).to_writer(&mut text)?;
    man.render_options_section(&mut text)?;

    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }

    let (examples, mut sections): (Vec<_>, Vec<_>) = help
        .sections
        .into_iter()
        .partition(|section| section.title == EXAMPLES);

    if parents.is_empty() {
        sections.extend(Help::parse(FILES).sections);
    }

    for section in sections.iter().chain(&examples) {
        section.to_roff().to_writer(&mut text)?;
    }

    see_also(command, parents).to_writer(&mut text)?;
    Ok(text)
}

fn prose(paragraphs: &[String]) -> Roff {
    let mut roff = Roff::new();
    for paragraph in paragraphs {
        roff.control("PP", []).text([roman(paragraph)]);
    }
    roff
}

/// The pages above this one, and those below it.
fn see_also(command: &Command, parents: &[String]) -> Roff {
    let below = command.get_subcommands().map(name);
    let names: Vec<_> = parents.iter().cloned().chain(below).collect();

    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    for (index, name) in names.iter().enumerate() {
        let comma = if index + 1 < names.len() { "," } else { "" };
        roff.text([bold(name), roman(format!("({SECTION}){comma}"))]);
    }
    roff
}

const EXAMPLES: &str = "EXAMPLES";
const EXIT_STATUS: &str = "EXIT STATUS";
/// How the help begins what man pages call the exit status.
const EXIT_CODES: &str = "Exit codes:";

/// The text after the flags of a help. A paragraph with a known heading and indented lines is a
/// section, and so are the exit codes. The rest is prose.
#[derive(Debug, Default, PartialEq)]
struct Help {
    prose: Vec<String>,
    sections: Vec<Section>,
}

#[derive(Debug, PartialEq)]
struct Section {
    title: &'static str,
    lines: Vec<String>,
}

impl Help {
    fn parse(text: &str) -> Self {
        let mut help = Self::default();
        for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
            help.add(paragraph);
        }
        help
    }

    fn add(&mut self, paragraph: &str) {
        if let Some(section) = Section::parse(paragraph) {
            self.sections.push(section);
            return;
        }

        let (prose, exit_codes) = match paragraph.find(EXIT_CODES) {
            Some(at) => (&paragraph[..at], Some(&paragraph[at + EXIT_CODES.len()..])),
            None => (paragraph, None),
        };
        if !prose.is_empty() {
            self.prose.push(prose.trim_end().to_owned());
        }
        let section = exit_codes.map(|text| Section {
            title: EXIT_STATUS,
            lines: vec![text.trim().to_owned()],
        });
        self.sections.extend(section);
    }
}

impl Section {
    fn parse(paragraph: &str) -> Option<Self> {
        let (head, rest) = paragraph.split_once('\n')?;
        let title = match head {
            "Example:" | "Examples:" => EXAMPLES,
            EXIT_CODES => EXIT_STATUS,
            "Environment:" => "ENVIRONMENT",
            "Files:" => "FILES",
            _ => return None,
        };
        let lines = rest
            .lines()
            .map(|line| line.strip_prefix("  ").map(str::to_owned));
        Some(Self {
            title,
            lines: lines.collect::<Option<_>>()?,
        })
    }

    fn to_roff(&self) -> Roff {
        let mut roff = Roff::new();
        roff.control("SH", [self.title]);
        if self.title == EXAMPLES {
            roff.control("EX", []);
            for line in &self.lines {
                roff.text([roman(line)]);
            }
            roff.control("EE", []);
            return roff;
        }

        for line in &self.lines {
            match line.split_once("  ") {
                Some((term, meaning)) => roff
                    .control("TP", [])
                    .text([bold(term)])
                    .text([roman(meaning.trim_start())]),
                None => roff.text([roman(line)]),
            };
        }

        roff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn a_help_is_cut_into_prose_and_sections() {
        let help = Help::parse(
            "It waits.\n\nExamples:\n  blobcast wait 7  one\n  blobcast wait 8\n\nLast word.\nExit codes: 0 done; 1 not.\n\n\
             Environment:\n  A  what a is\n\nNo section:\nnot indented",
        );
        assert_eq!(
            help.prose,
            ["It waits.", "Last word.", "No section:\nnot indented"]
        );
        let sections: Vec<_> = help
            .sections
            .iter()
            .map(|section| (section.title, section.lines.as_slice()))
            .collect();
        assert_eq!(
            sections,
            [
                (
                    EXAMPLES,
                    [
                        "blobcast wait 7  one".to_owned(),
                        "blobcast wait 8".to_owned()
                    ]
                    .as_slice()
                ),
                (EXIT_STATUS, ["0 done; 1 not.".to_owned()].as_slice()),
                ("ENVIRONMENT", ["A  what a is".to_owned()].as_slice()),
            ]
        );
    }

    #[test]
    fn no_word_of_a_help_is_lost_and_no_section_is_there_twice() {
        fn check(command: &Command) {
            let help = command
                .get_after_long_help()
                .or_else(|| command.get_after_help());
            let text = help.map(ToString::to_string).unwrap_or_default();
            let parsed = Help::parse(&text);

            let titles: Vec<_> = parsed
                .sections
                .iter()
                .map(|section| section.title)
                .collect();
            let is_once = titles
                .iter()
                .all(|title| titles.iter().filter(|other| other == &title).count() == 1);
            assert!(is_once, "`{}` has {titles:?}", command.get_name());

            let words = |text: &str| {
                text.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            let lines = parsed.sections.iter().flat_map(|section| &section.lines);
            let kept = parsed
                .prose
                .iter()
                .chain(lines)
                .flat_map(|line| words(line))
                .count();
            let heads =
                ["Example:", "Examples:", "Environment:"].map(|head| text.matches(head).count());
            let head_words = heads.iter().sum::<usize>() + 2 * text.matches(EXIT_CODES).count();
            assert_eq!(
                kept + head_words,
                words(&text).len(),
                "`{}`: {parsed:?}",
                command.get_name()
            );

            command.get_subcommands().for_each(check);
        }
        check(&crate::cli::Cli::command());
    }
}
