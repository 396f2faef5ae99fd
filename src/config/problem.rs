//! Errors of a configuration: where, what and the remedy, one line each.
//!
//! Also finds the known key that a misspelt one most likely means. Knows no key and no limit
//! itself.

use std::{fmt, path::PathBuf};

/// Where a value or a problem comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The embedded default file.
    Default,
    /// A file as a whole, which cannot be read.
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

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the value comes from.
    pub origin: Origin,
    /// The dotted key, known or not; `None` if the file as a whole or its syntax is wrong.
    pub key: Option<String>,
    /// What is wrong.
    pub what: String,
    /// The next step.
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
        // Keys and values come from the user and may contain anything; a problem stays on one line.
        for c in line.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// All errors of a configuration; prints one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// At least one. Those of the file come first, in the order of its lines; broken rules between
    /// keys come last.
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

/// Similarity, of 1, that a suggestion needs. With a lower one `ingest.foo` would suggest a key at
/// random.
const SIMILARITY_MIN: f64 = 0.8;

/// The known key that `unknown` most likely means.
pub(super) fn nearest<'a>(
    unknown: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let mut best = None;
    for key in known {
        let similarity = similarity(unknown, key);
        // Strictly greater: the first of equals wins, in the order of the default file.
        if similarity >= SIMILARITY_MIN && best.is_none_or(|(_, most)| similarity > most) {
            best = Some((key, similarity));
        }
    }
    best.map(|(key, _)| key)
}

fn similarity(unknown: &str, key: &str) -> f64 {
    let (section, name) = unknown.rsplit_once('.').unwrap_or(("", unknown));
    let (known_section, known_name) = key.rsplit_once('.').unwrap_or(("", key));
    let by_part = 0.4 * strsim::jaro_winkler(section, known_section)
        + 0.6 * strsim::jaro_winkler(name, known_name);
    // `grpc_listen` for `grpc.listen`: the parts differ, the whole is similar.
    let whole = strsim::normalized_damerau_levenshtein(unknown, key);
    // A name that exists in another section; of several, the one in the most similar section.
    let misplaced = if name == known_name {
        0.9 + by_part / 10.0
    } else {
        0.0
    };
    by_part.max(whole).max(misplaced)
}
