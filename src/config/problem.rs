//! Errors of a configuration: where, what and the remedy, one line each.

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
