//! The configuration file. Any bytes are a configuration or a list of problems, each on one line and with its next step; a
//! value means the same in a file, in the environment and on the command line.

use std::{
    fs::File,
    io::{Seek, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use blobcast::config::{Config, ConfigErrors, ConfigSources, Origin, load};
use tempfile::{tempfile, tempfile_in};
use toml::{Table, Value};

/// Without a name, so that nothing is left of it; in memory, if the system has such a place: it is written at each run.
static FILE: LazyLock<File> = LazyLock::new(|| {
    tempfile_in("/dev/shm")
        .or_else(|_| tempfile())
        .expect("there is room for a file")
});

pub(crate) fn run(bytes: &[u8]) {
    let mut file = &*FILE;
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(bytes))
        .expect("the file can be written");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let sources = ConfigSources {
        file: Some(path.clone()),
        ..ConfigSources::default()
    };
    let loaded = load(&sources);
    assert_eq!(load(&sources), loaded, "loaded twice");
    match &loaded {
        Ok(config) => check_other_layers(bytes, config),
        Err(errors) => check_problems(errors, &path),
    }
}

fn check_problems(errors: &ConfigErrors, path: &Path) {
    assert_eq!(
        errors.to_string().lines().count(),
        errors.problems.len(),
        "one line each"
    );
    let path = path.to_string_lossy();
    // A value that is too large may make a default too small for it. The problems then name both.
    assert!(
        errors
            .problems
            .iter()
            .any(|problem| problem.to_string().starts_with(&*path)),
        "{errors}"
    );
    for problem in &errors.problems {
        let line = problem.to_string();
        assert!(
            !problem.what.is_empty() && !problem.remedy.is_empty(),
            "{line}"
        );
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(
            line.starts_with(&*path) || problem.origin == Origin::Default,
            "{line}"
        );
    }
}

/// The file's values as flags and as variables.
fn check_other_layers(bytes: &[u8], config: &Config) {
    let text = str::from_utf8(bytes).expect("it was accepted");
    let table: Table = text.parse().expect("it was accepted");
    let mut flags = Vec::new();
    for (key, value) in &table {
        match value {
            Value::Table(section) => {
                flags.extend(
                    section
                        .iter()
                        .map(|(name, value)| (format!("{key}.{name}"), as_text(value))),
                );
            }
            other => flags.push((key.clone(), as_text(other))),
        }
    }
    let Some(flags) = flags
        .into_iter()
        .map(|(key, text)| Some((key, text?)))
        .collect::<Option<Vec<_>>>()
    else {
        return;
    };
    // One half each, since loading takes its time.
    let (flags, variables): (Vec<_>, Vec<_>) =
        flags.into_iter().partition(|(key, _)| key.len() % 2 == 0);
    let variable = |(key, text): (String, String)| {
        (
            format!("BLOBCAST_{}", key.replace('.', "__").to_uppercase()),
            text,
        )
    };
    let env = variables.into_iter().map(variable).collect();
    assert_eq!(
        load(&ConfigSources {
            file: None,
            env,
            flags
        })
        .as_ref(),
        Ok(config)
    );
}

/// As a shell has it; `None` for a list that cannot be written with commas.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(values) => {
            let texts: Option<Vec<_>> = values.iter().map(Value::as_str).collect();
            let plain =
                |text: &&str| !text.is_empty() && text.trim() == *text && !text.contains(',');
            texts
                .filter(|texts| texts.iter().all(plain))
                .map(|texts| texts.join(","))
        }
        other => Some(other.to_string()),
    }
}
