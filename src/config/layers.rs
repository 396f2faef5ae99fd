//! Merges the layers key by key and remembers where each value came from.
//!
//! The default file is the schema: a key exists if it is there, and a value has the type of its
//! default. Each value is checked alone, within the defaults, so that one bad value hides no other.
//! Checks no limits: `check` does.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    nearest::nearest,
    problem::{Origin, Problem},
    settings::Config,
};
use crate::files;

pub(crate) const DEFAULT: &str = include_str!("default.toml");

/// Variables that begin with `BLOBCAST_` but are no keys: the command line reads them itself.
pub(crate) const CLIENT_VARIABLES: [&str; 8] = [
    "BLOBCAST_CONFIG",
    "BLOBCAST_GRPC_URL",
    "BLOBCAST_INGEST_URL",
    "BLOBCAST_ADMIN_URL",
    "BLOBCAST_TOKEN",
    "BLOBCAST_TOKEN_FILE",
    "BLOBCAST_TLS_CERTIFICATE_FILE",
    "BLOBCAST_TLS_KEY_FILE",
];

const VARIABLE_PREFIX: &str = "BLOBCAST_";
/// Largest file that is read, many times the default file: a larger one is not a configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;
const DEFAULT_IS_VALID: &str = "the embedded default file is valid: a test loads it";
const SEE_DEFAULT: &str = "`blobcast check-config --print-default` lists every key";

/// The layers above the defaults.
#[derive(Clone, Debug, Default)]
pub struct ConfigSources {
    /// The user's TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables. Those that do not begin with `BLOBCAST_`, in any case, are ignored.
    pub env: Vec<(String, String)>,
    /// Dotted key and value of each command-line flag: `("ingest.listen", "127.0.0.1:0")`.
    pub flags: Vec<(String, String)>,
}

/// The merged values so far, the origin of each, and the problems found.
pub(super) struct Layers {
    defaults: Table,
    /// Dotted, in the order of the default file.
    keys: Vec<String>,
    sections: Vec<String>,
    values: Table,
    origins: BTreeMap<String, Origin>,
    /// Keys for which some layer has a value that cannot be read.
    unreadable: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Layers {
    pub(super) fn of(sources: &ConfigSources) -> Self {
        let mut layers = Self::defaults();
        if let Some(path) = &sources.file {
            layers.add_file(path);
        }
        layers.add_environment(&sources.env);
        layers.add_flags(&sources.flags);
        layers
    }

    pub(super) fn defaults() -> Self {
        let document = DeTable::parse(DEFAULT).expect(DEFAULT_IS_VALID);
        let (mut keys, mut sections) = (Vec::new(), Vec::new());
        for (name, value) in in_order(document.get_ref()) {
            let Some(section) = value.get_ref().as_table() else {
                keys.push(name.get_ref().to_string());
                continue;
            };
            sections.push(name.get_ref().to_string());
            keys.extend(
                in_order(section)
                    .iter()
                    .map(|(key, _)| format!("{}.{}", name.get_ref(), key.get_ref())),
            );
        }

        let defaults: Table = toml::from_str(DEFAULT).expect(DEFAULT_IS_VALID);
        Self {
            values: defaults.clone(),
            defaults,
            keys,
            sections,
            origins: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    /// Every key, in the order of the default file.
    #[cfg(test)]
    pub(super) fn keys(&self) -> &[String] {
        &self.keys
    }

    pub(super) fn default_of(&self, key: &str) -> Option<&Value> {
        value_of(&self.defaults, key)
    }

    pub(super) fn value_of(&self, key: &str) -> Option<&Value> {
        value_of(&self.values, key)
    }

    pub(super) fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// False if some layer has a value for `key` that cannot be read, so that its intended value is
    /// unknown.
    pub(super) fn is_readable(&self, key: &str) -> bool {
        !self.unreadable.contains(key)
    }

    /// The keys of a section that are flags, or say something else than the default, in the order of the default file.
    pub(super) fn set_in(&self, section: &str) -> Vec<String> {
        let is_set = |key: &&String| {
            let is_flag = matches!(self.origin(key), Origin::Flag(_));
            is_flag || !says_default(value_of(&self.values, key), value_of(&self.defaults, key))
        };
        let inside = |key: &&String| key.split_once('.').is_some_and(|(head, _)| head == section);
        let keys = self.keys.iter().filter(inside).filter(is_set);
        keys.cloned().collect()
    }

    /// The merged configuration. A key that cannot be read has the value of the next lower layer.
    pub(super) fn config(&self) -> Config {
        self.values
            .clone()
            .try_into()
            .expect("each value was read on its own before")
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    pub(super) fn report(
        &mut self,
        origin: Origin,
        key: &str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.push(Problem {
            origin,
            key: Some(key.to_owned()),
            what: what.into(),
            remedy: remedy.into(),
        });
    }

    pub(super) fn add_file(&mut self, path: &Path) {
        let text = match files::read_text(path, FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(error) => {
                let remedy = "name a readable TOML file, or start without one";
                return self.report_file(
                    Origin::File(path.into()),
                    format!("cannot be read: {error}"),
                    remedy,
                );
            }
        };

        let file = Document {
            path: path.into(),
            text: &text,
        };

        let (table, errors) = DeTable::parse_recoverable(&text);
        // The values that the parser recovers from a broken file may not be the intended ones.
        if errors.is_empty() {
            return self.add_table(&file, table.get_ref(), None);
        }

        let mut lines = BTreeSet::new();
        for error in errors {
            let (line, column) = position(&text, error.span().map_or(0, |span| span.start));
            // One mistake may cause several errors on its line.
            if lines.insert(line) {
                let origin = Origin::Line {
                    path: path.into(),
                    line,
                    column: Some(column),
                };
                self.report_file(
                    origin,
                    format!("is not TOML: {}", error.message()),
                    "correct the line",
                );
            }
        }
    }

    fn report_file(&mut self, origin: Origin, what: String, remedy: &str) {
        self.problems.push(Problem {
            origin,
            key: None,
            what,
            remedy: remedy.to_owned(),
        });
    }

    fn add_table(&mut self, file: &Document<'_>, table: &DeTable<'_>, section: Option<&str>) {
        for (name, value) in in_order(table) {
            let key = match section {
                Some(section) => format!("{section}.{}", name.get_ref()),
                None => name.get_ref().to_string(),
            };
            let origin = file.line_of(name.span().start);
            match value.get_ref() {
                DeValue::Table(table) if self.sections.contains(&key) => {
                    self.add_table(file, table, Some(&key));
                }
                DeValue::Table(_) if self.default_of(&key).is_none() => {
                    self.report_unknown_section(origin, &key);
                }
                _ => match Value::deserialize(ValueDeserializer::from(value.clone())) {
                    Ok(value) => self.add(origin, &key, |_| Ok(value)),
                    Err(error) => self.add(origin, &key, |_| Err(error.message().to_owned())),
                },
            }
        }
    }

    pub(super) fn add_environment(&mut self, variables: &[(String, String)]) {
        let mut seen = BTreeMap::new();
        let mut variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (name.to_uppercase(), name, value))
            .collect();

        // The process has them in no fixed order; problems are always reported in the same one.
        variables.sort();
        for (upper, name, raw) in variables {
            let Some(rest) = upper.strip_prefix(VARIABLE_PREFIX) else {
                continue;
            };

            if CLIENT_VARIABLES.contains(&upper.as_str()) {
                continue;
            }

            let key = rest.to_lowercase().replace("__", ".");
            let origin = Origin::Environment(name.clone());
            if let Some(other) = seen.insert(key.clone(), name) {
                let what = format!("is set twice, also as {other}: names differ only in case");
                self.report(origin, &key, what, "unset one of them");
                continue;
            }

            self.add(origin, &key, |default| from_text(raw, default));
        }
    }

    pub(super) fn add_flags(&mut self, flags: &[(String, String)]) {
        for (key, raw) in flags {
            self.add(Origin::Flag(flag_name(key)), key, |default| {
                from_text(raw, default)
            });
        }
    }

    /// Sets one value; `read` makes it, with the type of the default.
    fn add(
        &mut self,
        origin: Origin,
        key: &str,
        read: impl FnOnce(&Value) -> Result<Value, String>,
    ) {
        let is_section = self.sections.iter().any(|section| section == key);
        let Some(default) = self.default_of(key).filter(|_| !is_section) else {
            return self.report_unknown_key(origin, key);
        };

        match read(default).and_then(|value| self.try_alone(key, value)) {
            Ok(value) => {
                put(&mut self.values, key, value);
                self.origins.insert(key.to_owned(), origin);
            }
            Err(what) => {
                let remedy = match default {
                    Value::String(text) if text.is_empty() => {
                        "correct it, or leave it empty".to_owned()
                    }
                    Value::Array(_) => {
                        "write it like [\"198.51.100.0/24\", \"2001:db8::7\"]".to_owned()
                    }
                    Value::Table(_) => {
                        "write it like { veo = \"…\", kling = \"…\" }, or veo=…,kling=… in the \
                         environment"
                            .to_owned()
                    }
                    _ => format!("write it like the default, {default}"),
                };
                self.unreadable.insert(key.to_owned());
                self.report(origin, key, what, remedy);
            }
        }
    }

    /// Checks that the configuration can be read with `value` for `key` and defaults for the rest.
    fn try_alone(&self, key: &str, value: Value) -> Result<Value, String> {
        let mut table = self.defaults.clone();
        put(&mut table, key, value.clone());
        match Config::deserialize(table) {
            Ok(_) => Ok(value),
            Err(error) => Err(error.message().to_owned()),
        }
    }

    fn report_unknown_key(&mut self, origin: Origin, key: &str) {
        if self.sections.iter().any(|section| section == key) {
            let remedy = format!("set a key in it, like `{}`", self.first_key_of(key));
            return self.report(origin, key, "is a section, not a key", remedy);
        }

        // `reconcile.path.flux`, as a variable might have it.
        let is_inside = |whole: &&String| {
            key.strip_prefix(whole.as_str())
                .is_some_and(|rest| rest.starts_with('.'))
        };
        if let Some(whole) = self.keys.iter().find(is_inside) {
            let name = match &origin {
                Origin::Environment(_) => variable_name(whole),
                _ => whole.clone(),
            };
            let remedy = format!("set `{name}` as a whole");
            return self.report(origin, key, "is no key of its own", remedy);
        }

        let keys = self.keys.iter().map(String::as_str);
        let suggestion = match &origin {
            Origin::Environment(name) => {
                let variables: Vec<_> = self.keys.iter().map(|key| variable_name(key)).collect();
                nearest(key, keys).map(variable_name).or_else(|| {
                    let known = variables.iter().map(String::as_str).chain(CLIENT_VARIABLES);
                    nearest(&name.to_uppercase(), known).map(str::to_owned)
                })
            }
            Origin::Flag(_) => nearest(key, keys).map(flag_name),
            _ => nearest(key, keys).map(str::to_owned),
        };

        let remedy = suggestion.map_or_else(
            || SEE_DEFAULT.to_owned(),
            |name| format!("did you mean `{name}`?"),
        );

        self.report(origin, key, "unknown key", remedy);
    }

    fn report_unknown_section(&mut self, origin: Origin, key: &str) {
        let section = nearest(key, self.sections.iter().map(String::as_str));
        let remedy = section.map_or_else(
            || SEE_DEFAULT.to_owned(),
            |section| format!("did you mean `[{section}]`?"),
        );
        self.report(origin, key, "unknown section", remedy);
    }

    fn first_key_of<'a>(&'a self, section: &'a str) -> &'a str {
        let inside = |key: &&String| key.split_once('.').is_some_and(|(head, _)| head == section);
        self.keys
            .iter()
            .find(inside)
            .map_or(section, String::as_str)
    }
}

/// A file that is being read.
struct Document<'a> {
    path: PathBuf,
    text: &'a str,
}

impl Document<'_> {
    fn line_of(&self, offset: usize) -> Origin {
        Origin::Line {
            path: self.path.clone(),
            line: position(self.text, offset).0,
            column: None,
        }
    }
}

/// Line and column of a byte, both counted from 1, the column in characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// The entries in the order of the file; the table itself sorts them by name.
fn in_order<'a, 'i>(
    table: &'a DeTable<'i>,
) -> Vec<(
    &'a Spanned<toml::de::DeString<'i>>,
    &'a Spanned<DeValue<'i>>,
)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

/// Reads a value from the environment or the command line, which have only texts: the default tells
/// the type.
fn from_text(raw: &str, default: &Value) -> Result<Value, String> {
    match default {
        Value::Boolean(_) => raw
            .parse()
            .map(Value::Boolean)
            .map_err(|_| format!("{raw:?} is neither true nor false")),
        Value::Integer(_) => raw
            .parse()
            .map(Value::Integer)
            .map_err(|_| format!("{raw:?} is not a whole number")),
        _ => Ok(Value::String(raw.to_owned())),
    }
}

/// A list is one text with commas in the environment.
fn says_default(value: Option<&Value>, default: Option<&Value>) -> bool {
    match (value, default) {
        (Some(Value::String(text)), Some(Value::Array(list))) => {
            let list: Vec<_> = list.iter().filter_map(Value::as_str).collect();
            *text == list.join(",")
        }
        (value, default) => value == default,
    }
}

fn value_of<'t>(table: &'t Table, key: &str) -> Option<&'t Value> {
    match key.split_once('.') {
        Some((section, name)) => table.get(section)?.as_table()?.get(name),
        None => table.get(key),
    }
}

fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        Some((section, name)) => {
            if let Some(section) = table.get_mut(section).and_then(Value::as_table_mut) {
                section.insert(name.to_owned(), value);
            }
        }
        None => {
            table.insert(key.to_owned(), value);
        }
    }
}

/// `ingest.listen` as a flag: `--ingest-listen`. Two have names of their own.
fn flag_name(key: &str) -> String {
    match key {
        "cluster.servers" => "--cluster".to_owned(),
        "cluster.node" => "--node".to_owned(),
        _ => format!("--{}", key.replace(['.', '_'], "-")),
    }
}

/// `ingest.listen` as a variable: `BLOBCAST_INGEST__LISTEN`.
fn variable_name(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.replace('.', "__").to_uppercase())
}
