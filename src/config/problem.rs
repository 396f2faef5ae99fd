//! What can be wrong with a configuration, told so that the next step is clear.

use std::{fmt, path::PathBuf};

/// Where a value or a problem comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The embedded default file.
    Default,
    /// A file as a whole: it cannot be read.
    File(PathBuf),
    /// A line of the file, counting from 1; the column, in characters, only where the syntax is wrong.
    Line {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The column.
        column: Option<usize>,
    },
    /// An environment variable, as it is spelled there.
    Environment(String),
    /// A command-line flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Line {
                path,
                line,
                column: None,
            } => write!(f, "{}:{line}", path.display()),
            Self::Line {
                path,
                line,
                column: Some(column),
            } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// The dotted key, known or not; `None` where the file as a whole or its syntax is wrong.
    pub key: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self
            .key
            .as_ref()
            .map(|key| format!("`{key}`: "))
            .unwrap_or_default();
        let line = format!("{}: {key}{}; {}", self.origin, self.what, self.remedy);
        // Keys and values are the user's, and may hold anything; a problem stays on its line.
        for c in line.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?
            } else {
                write!(f, "{c}")?
            }
        }
        Ok(())
    }
}

/// Everything that is wrong; prints one problem per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// At least one; the file's come first, in the order of its lines, and the rules between keys last.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// How alike a key and a suggestion for it must be, of 1; lower, and `ingest.foo` would name something at random.
const LIKENESS_MIN: f64 = 0.8;

/// The known key that `unknown` most likely means.
pub(super) fn nearest<'a>(
    unknown: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let mut best = None;
    for key in known {
        let likeness = likeness(unknown, key);
        // Strictly: of equals the first wins, as the default file orders them.
        if likeness >= LIKENESS_MIN && best.is_none_or(|(_, most)| likeness > most) {
            best = Some((key, likeness));
        }
    }
    best.map(|(key, _)| key)
}

fn likeness(unknown: &str, key: &str) -> f64 {
    let (section, name) = unknown.rsplit_once('.').unwrap_or(("", unknown));
    let (known_section, known_name) = key.rsplit_once('.').unwrap_or(("", key));
    let by_part = 0.4 * strsim::jaro_winkler(section, known_section)
        + 0.6 * strsim::jaro_winkler(name, known_name);
    // `grpc_listen` for `grpc.listen`: the parts do not line up, the whole does.
    let whole = strsim::normalized_damerau_levenshtein(unknown, key);
    // A name that exists, in the wrong section; of several the one whose section is most alike.
    let misplaced = if name == known_name {
        0.9 + by_part / 10.0
    } else {
        0.0
    };
    by_part.max(whole).max(misplaced)
}
