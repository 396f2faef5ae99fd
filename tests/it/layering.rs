//! Imports point down. What the architecture forbids is forbidden here, not only in prose.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What each module may import, directly. A module that is not named here may not exist.
const ALLOWED: [(&str, &[&str]); 41] = [
    ("accounts", &["files"]),
    (
        "audit",
        &["metrics", "printable", "sampler", "trace", "wire"],
    ),
    ("budget", &[]),
    ("event", &["budget", "trace", "transit"]),
    ("causes", &[]),
    ("files", &[]),
    ("metrics", &[]),
    ("network", &[]),
    ("printable", &[]),
    ("sampler", &[]),
    ("minutes", &[]),
    ("recent", &[]),
    ("refused", &["network", "printable", "recent", "trace"]),
    ("repetitions", &["event"]),
    ("size", &[]),
    ("trace", &[]),
    ("transit", &[]),
    ("web", &[]),
    ("config", &["event", "files", "size"]),
    ("sizing", &["config"]),
    ("checker", &[]),
    ("cluster", &["event"]),
    ("nats", &["causes", "cluster", "event", "files"]),
    ("credentials", &["event", "size"]),
    ("vendor", &["event"]),
    ("wire", &["event"]),
    ("store", &["cluster", "event", "files", "metrics", "trace"]),
    ("journal", &["cluster", "event", "metrics", "nats", "store"]),
    ("hub", &["event"]),
    (
        "callback",
        &[
            "credentials",
            "event",
            "printable",
            "vendor",
            "store",
            "wire",
        ],
    ),
    (
        "subscription",
        &[
            "budget",
            "credentials",
            "event",
            "hub",
            "metrics",
            "printable",
            "recent",
            "store",
            "trace",
            "transit",
        ],
    ),
    (
        "reconcile",
        &[
            "callback",
            "causes",
            "credentials",
            "event",
            "journal",
            "metrics",
            "sampler",
            "store",
            "vendor",
            "wire",
        ],
    ),
    (
        "ingest",
        &[
            "config",
            "credentials",
            "event",
            "callback",
            "journal",
            "metrics",
            "network",
            "refused",
            "repetitions",
            "sampler",
            "store",
            "trace",
            "vendor",
            "web",
        ],
    ),
    (
        "rpc",
        &[
            "audit",
            "budget",
            "config",
            "credentials",
            "event",
            "callback",
            "journal",
            "metrics",
            "minutes",
            "reconcile",
            "refused",
            "repetitions",
            "store",
            "subscription",
            "trace",
            "transit",
            "vendor",
            "wire",
        ],
    ),
    ("door", &["printable", "wire"]),
    ("console", &["config", "credentials"]),
    (
        "server",
        &[
            "accounts",
            "audit",
            "budget",
            "causes",
            "cluster",
            "config",
            "console",
            "credentials",
            "door",
            "event",
            "files",
            "hub",
            "ingest",
            "journal",
            "metrics",
            "minutes",
            "nats",
            "network",
            "printable",
            "reconcile",
            "rpc",
            "sampler",
            "size",
            "sizing",
            "store",
            "subscription",
            "trace",
            "web",
            "wire",
        ],
    ),
    ("simulator", &["causes", "event", "vendor"]),
    (
        "cli",
        &[
            "accounts",
            "causes",
            "config",
            "credentials",
            "event",
            "files",
            "printable",
            "server",
            "simulator",
            "sizing",
            "store",
            "vendor",
            "wire",
        ],
    ),
    ("fuzzing", &["rpc", "server", "store", "wire"]),
    ("lib", &[]),
];

/// External crates that only some modules may know.
const CONFINED: [(&str, &[&str]); 8] = [
    ("async_nats", &["nats"]),
    ("opentelemetry_proto", &["server"]),
    ("fjall", &["store"]),
    ("prost", &["wire", "rpc", "store", "door"]),
    ("prost_reflect", &["door"]),
    ("tonic", &["wire", "rpc", "door", "server", "cli"]),
    ("axum", &["ingest", "server"]),
    ("anyhow", &["cli"]),
];

#[test]
fn imports_point_down_the_layers() {
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    for (module, imports) in imports_of_modules() {
        let may = allowed
            .get(module.as_str())
            .unwrap_or_else(|| panic!("module {module} has no layer: add it to ALLOWED"));
        for import in imports {
            assert!(
                import == module || may.contains(&import.as_str()),
                "{module} must not import {import}"
            );
        }
    }
}

#[test]
fn the_layers_have_no_circle() {
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    let mut left: BTreeSet<_> = allowed.keys().copied().collect();
    while !left.is_empty() {
        let free: Vec<_> = left
            .iter()
            .copied()
            .filter(|m| allowed[m].iter().all(|i| !left.contains(i)))
            .collect();
        assert!(!free.is_empty(), "a circle among {left:?}");
        left.retain(|module| !free.contains(module));
    }
}

#[test]
fn libraries_stay_in_their_layers() {
    for (library, modules) in CONFINED {
        for (module, text) in sources() {
            let used = text.contains(&format!("{library}::"));
            assert!(
                !used || modules.contains(&module.as_str()),
                "{module} must not know {library}"
            );
        }
    }
}

#[test]
fn only_the_server_and_the_command_line_spawn_tasks() {
    /// A read in the queue for memory: it has to go on while nobody polls its stream, and is gone with it. The tasks of a connection
    /// to NATS: they are gone with its last handle.
    const OWNED: ([&str; 2], &str) = (
        ["subscription", "nats"],
        "AbortOnDropHandle::new(tokio::spawn(",
    );
    for (module, text) in sources() {
        let text = if OWNED.0.contains(&module.as_str()) {
            text.replacen(OWNED.1, "", 1)
        } else {
            text
        };
        let spawns = ["tokio::spawn(", "thread::spawn(", ".spawn("]
            .into_iter()
            .any(|call| text.contains(call));
        let may = ["server", "cli", "simulator"].contains(&module.as_str());
        assert!(!spawns || may, "{module} spawns something that nobody owns");
    }
}

/// Who reads the machine's clock, and what for.
const READS_CLOCK: [(&str, &str); 6] = [
    ("store/clock.rs", "the log's clock is made of it"),
    ("metrics/process.rs", "when the process has started"),
    ("trace.rs", "traces of several machines are put together"),
    ("server/net/tls.rs", "certificates are good by it"),
    ("cli/", "clients"),
    (
        "simulator/server/shared.rs",
        "the vendor has a clock of its own",
    ),
];

/// Times of events, cursors and credentials have to agree with each other while the machine's clock is wrong.
#[test]
fn times_come_from_the_logs_clock() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    for path in files.iter().filter(|path| !is_test(path)) {
        let name = path
            .strip_prefix(&root)
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let may = READS_CLOCK.iter().any(|(file, _)| name.starts_with(file));
        let reads = ["Timestamp::now", "SystemTime::now", "Zoned::now"]
            .iter()
            .any(|call| code(path).contains(call));
        assert!(!reads || may, "{name} reads the machine's clock");
    }
}

/// Calls that may block without a limit: on a file, on the reader of an output, or on another thread.
const BLOCKING: [&str; 16] = [
    "std::fs",
    "fs::",
    "File::",
    "eprint!",
    "eprintln!",
    "print!",
    "println!",
    "stdout()",
    "stderr()",
    "from_pem_file",
    "thread::sleep",
    "Condvar",
    "sync_channel",
    "recv_timeout",
    "blocking_send",
    "blocking_recv",
];

/// Who may use what of it, and why that does not hold up a thread that serves.
const MAY_BLOCK: [(&str, &[&str], &str); 12] = [
    (
        "files.rs",
        &["fs::", "File::", "std::fs"],
        "what reads a file calls it aside, or before anything is served",
    ),
    (
        "server/audit.rs",
        &["std::fs", "fs::", "File::", "sync_channel"],
        "a thread of its own, and the start",
    ),
    (
        "server/credentials.rs",
        &["thread::sleep"],
        "aside, where the file is read again",
    ),
    (
        "server/exposure.rs",
        &["fs::"],
        "called where files are read",
    ),
    (
        "server/log_writer.rs",
        &["Condvar", "thread::sleep"],
        "the log's own thread, and the end of the process",
    ),
    (
        "server/logging.rs",
        &["fs::", "stderr()"],
        "looks what standard error is, and hands it to that thread",
    ),
    (
        "server/rehearsal.rs",
        &["fs::"],
        "nothing is served while a start is rehearsed",
    ),
    (
        "server/resources.rs",
        &["fs::"],
        "a start before anything is served, and aside",
    ),
    (
        "server/runtimes.rs",
        &["thread::sleep"],
        "a start, before anything is served",
    ),
    (
        "server/socket_units.rs",
        &["fs::"],
        "read by a rehearsal only",
    ),
    (
        "server/systemd.rs",
        &["sync_channel"],
        "a thread of its own sends",
    ),
    (
        "cli/serve.rs",
        &["stderr()", "recv_timeout"],
        "is it a terminal? And the end of the process, which has a limit",
    ),
];

#[test]
fn what_serves_does_not_wait_for_files_or_outputs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let mut blocking = Vec::new();
    for path in files.iter().filter(|path| !is_test(path)) {
        let name = path
            .strip_prefix(&root)
            .unwrap()
            .to_string_lossy()
            .into_owned();
        // The store has threads of its own, clients serve nobody, and neither do what only tests use.
        let elsewhere = ["store/", "cli/", "simulator", "checker", "fuzzing"]
            .iter()
            .any(|part| name.starts_with(part));
        if elsewhere && name != "cli/serve.rs" {
            continue;
        }
        let may = MAY_BLOCK
            .iter()
            .find(|(file, ..)| *file == name)
            .map_or(&[][..], |(_, may, _)| may);
        let text = code(path);
        let found = BLOCKING
            .iter()
            .filter(|what| text.contains(*what) && !may.contains(what));
        blocking.extend(found.map(|what| format!("{name}: {what}")));
    }
    assert!(
        blocking.is_empty(),
        "see server/aside.rs for how to wait: {blocking:#?}"
    );
}

/// One script measures this repository and others, so the limits are written down once.
#[test]
fn files_and_functions_are_short_and_import_each_other_in_no_circle() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/operations/shape");
    let done = Command::new("python3")
        .arg(script)
        .arg("--check")
        .output()
        .expect("python3 runs");

    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
}

/// Words that a comment can always do without: a client is "it", and a thing has the field's name instead of a clause.
pub const PET_WORDS: [&str; 20] = [
    "he",
    "him",
    "his",
    "himself",
    "whoever",
    "whomever",
    "whosoever",
    "those who",
    "is told",
    "are told",
    "was told",
    "be told",
    "been told",
    "be had",
    "is to be",
    "are to be",
    "is not to",
    "are not to",
    "for want of",
    "in vain",
];

#[test]
fn comments_and_names_of_functions_have_no_pet_words() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for directory in ["src", "tests", "benches", "examples"] {
        collect(&root.join(directory), &mut files);
    }
    let mut found = Vec::new();
    for path in files {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        for words in comments(&text).into_iter().chain(function_names(&text)) {
            let used = PET_WORDS
                .into_iter()
                .filter(|word| words.contains(&format!(" {word} ")));
            found.extend(used.map(|word| format!("{name}: \"{word}\" in: {}", words.trim())));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The words of each block of comment lines, in lower case and with a space around each.
fn comments(text: &str) -> Vec<String> {
    let mut blocks = vec![String::from(" ")];
    for line in text.lines().map(str::trim_start) {
        if !line.starts_with("//") {
            blocks.push(String::from(" "));
            continue;
        }
        let words = line
            .split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '_')
            .filter(|word| !word.is_empty());
        for word in words {
            let block = blocks.last_mut().unwrap();
            block.push_str(&word.to_lowercase());
            block.push(' ');
        }
    }
    blocks.retain(|block| block.len() > 1);
    blocks
}

/// The words of each function's name, with a space around each. A test's name is a sentence.
fn function_names(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| {
        let (_, name) = line.split_once("fn ")?;
        name.split_once(['(', '<']).map(|(name, _)| name)
    });
    names
        .map(|name| format!(" {} ", name.replace('_', " ")))
        .collect()
}

/// Top-level module and code of every source file, without tests and comments.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files
        .into_iter()
        .filter(|path| !is_test(path))
        .map(|path| (module(&root, &path), code(&path)))
        .collect()
}

fn imports_of_modules() -> Vec<(String, BTreeSet<String>)> {
    sources()
        .into_iter()
        .map(|(module, text)| (module, imports(&text)))
        .collect()
}

fn imports(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for part in text.split("crate::").skip(1) {
        // `crate::{a, b::c}` names several, `crate::a::…` one.
        let list = part.strip_prefix('{').map(|list| &list[..closing(list)]);
        for item in list.map_or_else(|| vec![part.to_owned()], top_level) {
            names.insert(
                item.trim()
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    names
}

fn closing(list: &str) -> usize {
    let mut depth = 1;
    list.find(|c| {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        depth == 0
    })
    .unwrap()
}

fn top_level(list: &str) -> Vec<String> {
    let (mut items, mut depth) = (vec![String::new()], 0);
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            _ if depth == 0 => items.last_mut().unwrap().push(c),
            _ => {}
        }
    }
    items
        .into_iter()
        .filter(|item| !item.trim().is_empty())
        .collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        match entry.path() {
            path if path.is_dir() => collect(&path, files),
            path if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            _ => {}
        }
    }
}

fn is_test(path: &Path) -> bool {
    let named = |name: &str| path.components().any(|part| part.as_os_str() == name);
    named("tests")
        || named("tests.rs")
        || named("scripted.rs")
        || named("main.rs") && !named("src/main.rs")
}

fn module(root: &Path, path: &Path) -> String {
    let first = path
        .strip_prefix(root)
        .unwrap()
        .components()
        .next()
        .unwrap();
    first
        .as_os_str()
        .to_string_lossy()
        .trim_end_matches(".rs")
        .to_owned()
}

fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = ["", "pub(super) "]
        .into_iter()
        .filter_map(|visible| text.find(&format!("#[cfg(test)]\n{visible}mod tests {{")))
        .min()
        .map_or(&*text, |tests| &text[..tests]);
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}
