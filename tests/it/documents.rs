//! The documents: pages that are made from the code, what holds for all of them, and the commands of the quick start.
//!
//! `BLOBCAST_WRITE_DOCS=1 cargo test --test it documents` writes the pages that are made.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use blobcast::{
    config::KEYS,
    metrics::Metrics,
    simulator::server::{Settings, SimulatedVendor},
    wire::{Reason, Retry},
};
use jiff::Timestamp;
use tokio::net::TcpListener;
use tonic::Code;

use crate::{
    layering::PET_WORDS,
    support::{Cli, Endpoint, Options, Server, until},
};

/// What a page has above the part that is made, to its end.
const MARKER_END: &str = "BLOBCAST_WRITE_DOCS=1 cargo test --test it documents -->\n";
/// Columns of prose; tables, code and addresses may be wider.
const PROSE_COLUMNS_MAX: usize = 132;
const README_LINES_MAX: usize = 150;
/// Where a label's values are those of a site.
const EXAMPLE: &str = "EXAMPLE";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares the made part of a page with what it should be, or writes it.
pub fn check_made(page: &str, made: &str) {
    let path = root().join("docs").join(page);
    let text = fs::read_to_string(&path).unwrap();
    let (head, found) = text
        .split_once(MARKER_END)
        .expect("a page that is made has the marker");
    if env::var_os("BLOBCAST_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{head}{MARKER_END}\n{made}")).unwrap();
        return;
    }

    let found = found.trim_start();
    assert!(
        found == made,
        "docs/{page} is not what the code says: BLOBCAST_WRITE_DOCS=1 cargo test --test it documents writes it"
    );
}

/// Words in lines of at most [`PROSE_COLUMNS_MAX`] columns.
fn wrapped(text: &str) -> String {
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        let columns = line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && columns > PROSE_COLUMNS_MAX {
            lines.push_str(&line);
            lines.push('\n');
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines + &line + "\n"
}

// --- configuration.md ---

/// Each section with what it is for, and below it each key with its default and what it means.
fn configuration(toml: &str) -> String {
    // The first paragraph is about the file itself.
    let (_, keys) = toml.split_once("\n\n").unwrap();
    let (mut page, mut comment, mut section) =
        (String::from("## Keys of no section\n"), String::new(), "");
    for line in keys.lines() {
        if let Some(text) = line.strip_prefix('#') {
            comment.push_str(text);
        } else if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
            page.push_str(&format!("\n## [{section}]\n\n{}", wrapped(&comment)));
            comment.clear();
        } else if let Some((key, default)) = line.split_once(" = ") {
            let key = [section, key].join(".");
            let key = key.trim_start_matches('.');
            let known = KEYS.iter().find(|known| known.name == key).unwrap();
            let range = known
                .range()
                .map_or_else(String::new, |range| format!(" Range: {range}."));
            let change = match format!("{:?}", known.change).as_str() {
                "Reload" => "A reload takes a change up.",
                _ => "A change needs a restart.",
            };
            page.push_str(&format!(
                "\n### {key}\n\nDefault: `{default}`.{range} {change}\n\n{}",
                wrapped(&comment)
            ));
            comment.clear();
        } else {
            assert_eq!(line, "", "a line that is neither comment, section nor key");
        }
    }
    page
}

#[test]
fn configuration_md_has_every_key_of_the_default_file() {
    let toml = include_str!("../../src/config/default.toml");
    check_made("configuration.md", &configuration(toml));
}

// --- metrics.md ---

#[derive(Default)]
struct Documented<'a> {
    kind: &'a str,
    help: &'a str,
    /// The values that are the same at every site, by label.
    labels: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

/// Metrics by name, of an exposition in text.
fn documented(exposition: &str) -> BTreeMap<&str, Documented<'_>> {
    let mut metrics = BTreeMap::<_, Documented<'_>>::new();
    let mut last = "";
    for line in exposition.lines() {
        if let Some((name, help)) = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '))
        {
            metrics.entry(name).or_default().help = help;
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            metrics.entry(name).or_default().kind = kind;
            last = name;
        } else if let Some((labels, _)) = line
            .split_once('{')
            .and_then(|(_, rest)| rest.rsplit_once('}'))
        {
            let metric = metrics.entry(last).or_default();
            for (label, value) in labels
                .split("\",")
                .filter_map(|label| label.split_once("=\""))
            {
                let value = value.trim_end_matches('"');
                let values = metric.labels.entry(label).or_default();
                if ![
                    "",
                    EXAMPLE,
                    "unverified", // the one of many kinds that has a series before it is used
                    env!("CARGO_PKG_VERSION"),
                    blobcast::metrics::REVISION,
                ]
                .contains(&value)
                {
                    values.insert(value);
                }
            }
            // Buckets of a histogram.
            metric.labels.remove("le");
        }
    }
    metrics
}

fn table(metrics: &BTreeMap<&str, Documented<'_>>) -> String {
    let mut page = String::from("| name | type | labels | what it says |\n|---|---|---|---|\n");
    for (name, Documented { kind, help, labels }) in metrics {
        let labels = labels.iter().map(|(label, values)| {
            let values: Vec<_> = values.iter().copied().collect();
            match values.as_slice() {
                [] => format!("`{label}`"),
                values => format!("`{label}`: {}", values.join(", ")),
            }
        });
        let labels = labels.collect::<Vec<_>>().join("; ");
        page.push_str(&format!(
            "| `{name}` | {kind} | {labels} | {} |\n",
            help.replace('|', "\\|")
        ));
    }
    page
}

#[test]
fn metrics_md_has_every_metric_with_its_labels() {
    let metrics = Metrics::default();
    // These have no series before something of a site is known.
    metrics.credential_used(EXAMPLE, EXAMPLE, "current", Timestamp::UNIX_EPOCH);
    metrics.credential_used(EXAMPLE, EXAMPLE, "previous", Timestamp::UNIX_EPOCH);
    metrics.set_credential_expiries(vec![(EXAMPLE, EXAMPLE.into(), Timestamp::UNIX_EPOCH)]);
    metrics.vendor_key_usable.with_label_values(&[EXAMPLE]);
    metrics.vendor_budget_left.with_label_values(&[EXAMPLE]);
    metrics.vendor_paused.with_label_values(&[EXAMPLE]);
    metrics.started(EXAMPLE, EXAMPLE, EXAMPLE);
    metrics.name_product(EXAMPLE);
    for listener in ["ingest", "grpc", "admin"] {
        metrics.connections.with_label_values(&[listener]);
        metrics.certificate_expiry.with_label_values(&[listener]);
    }
    let exposition = String::from_utf8(metrics.render()).unwrap();
    let metrics = documented(&exposition);

    let named = Metrics::DESCRIBED.iter().map(|metric| metric.name);
    let missing: Vec<_> = named.filter(|name| !metrics.contains_key(name)).collect();
    assert_eq!(
        missing, [""; 0],
        "metrics without a series: give them one above"
    );

    check_made("metrics.md", &table(&metrics));
}

// --- errors.md ---

/// `OutOfRange` as `OUT_OF_RANGE`.
fn name_of(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[test]
fn errors_md_has_every_reason() {
    let mut page = String::from("| reason | code | try again | what to do |\n|---|---|---|---|\n");
    for &reason in Reason::ALL {
        let metadata = match reason.metadata() {
            [] => String::new(),
            keys => format!(" {{{}}}", keys.join(", ")),
        };
        let retry = match reason.retry() {
            Retry::Never => "no",
            Retry::Always => "yes",
            Retry::Sometimes => "with a `RetryInfo`",
        };
        let (name, code, advice) = (reason.as_str(), name_of(reason.code()), reason.advice());
        page.push_str(&format!(
            "| `{name}`{metadata} | {code} | {retry} | {advice} |\n"
        ));
    }
    check_made("errors.md", &page);
}

// --- all documents ---

/// Every document with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in ["", "docs", "docs/decisions", "benches"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        found.extend(
            paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")),
        );
    }
    found.sort();
    found
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect()
}

/// Its lines with their numbers, without those of blocks of code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        (!in_code && !is_fence).then_some((index + 1, line))
    })
}

#[test]
fn the_readme_is_short_and_prose_fits_a_screen() {
    for (path, text) in documents() {
        let name = path.strip_prefix(root()).unwrap().display();
        if path.ends_with("README.md") && path.parent() == Some(root()) {
            let lines = text.lines().count();
            assert!(
                lines <= README_LINES_MAX,
                "README.md has {lines} lines: move some to docs/"
            );
        }
        for (number, line) in prose(&text) {
            let columns = line.chars().count();
            // Tables have no line breaks, and a link cannot be broken.
            let may_be_wide =
                line.starts_with(['|', '!']) || line.starts_with("  |") || !line.contains(' ');
            assert!(
                may_be_wide || columns <= PROSE_COLUMNS_MAX,
                "{name}:{number} has {columns} columns"
            );
        }
    }
}

/// As GitHub names the heading's anchor.
fn anchor(heading: &str) -> String {
    let kept = |c: char| (c.is_alphanumeric() || "-_".contains(c)).then_some(c);
    heading
        .to_lowercase()
        .replace(' ', "-")
        .chars()
        .filter_map(kept)
        .collect()
}

/// The targets of a document's links to other documents.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().unwrap();
            if !target.contains("://") {
                found.push((number, target.to_owned()));
            }
        }
    }
    found
}

#[test]
fn every_link_leads_to_a_file_and_its_heading() {
    let mut wrong = Vec::new();
    for (path, text) in documents() {
        for (number, link) in links(&text) {
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                path.clone()
            } else {
                path.parent().unwrap().join(file)
            };
            let is_there = target.exists()
                && (heading.is_empty() || {
                    let text = fs::read_to_string(&target).unwrap();
                    prose(&text).any(|(_, line)| {
                        line.starts_with('#')
                            && anchor(line.trim_start_matches('#').trim()) == heading
                    })
                });
            if !is_there {
                wrong.push(format!(
                    "{}:{number}: {link}",
                    path.strip_prefix(root()).unwrap().display()
                ));
            }
        }
    }
    assert_eq!(wrong, [""; 0], "links that lead nowhere");
}

#[test]
fn prose_has_no_pet_words() {
    let mut found = Vec::new();
    for (path, text) in documents() {
        // In words, so that a line break does not hide one.
        let words: Vec<_> = prose(&text)
            .flat_map(|(_, line)| line.split(|c: char| !c.is_alphanumeric() && c != '\''))
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        let text = format!(" {} ", words.join(" "));
        let used = PET_WORDS
            .into_iter()
            .filter(|word| text.contains(&format!(" {word} ")));
        found.extend(used.map(|word| format!("{}: {word}", path.display())));
    }
    assert_eq!(found, [""; 0]);
}

/// The files and folders that a page names by their place below `src/` or the root.
#[test]
fn every_file_that_the_architecture_names_is_there() {
    let text = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let (_, walks) = text.split_once("\n## A callback in\n").unwrap();
    let walks = walks.split("\n## The data directory\n").next().unwrap();
    let mut missing = Vec::new();
    for (number, line) in prose(walks) {
        for span in line.split('`').skip(1).step_by(2) {
            let is_path = span.contains('/') && !span.contains(' ') && !span.starts_with('/');
            let places = [root().join("src").join(span), root().join(span)];
            if is_path && !places.iter().any(|place| place.exists()) {
                missing.push(format!("line {number}: {span}"));
            }
        }
    }
    assert_eq!(
        missing, [""; 0],
        "docs/ARCHITECTURE.md names files that are not there"
    );
}

// --- commands ---

/// The lines of the blocks for a shell, and the commands of ours in prose.
fn commands(text: &str) -> Vec<String> {
    let blocks = text.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap().lines());
    let spans = prose(text).flat_map(|(_, line)| line.split('`').skip(1).step_by(2));
    lines
        .chain(spans)
        .map(|line| line.split(" #").next().unwrap().trim())
        .map(|line| line.trim_start_matches("sudo ").to_owned())
        .collect()
}

/// Its words up to what is another program's or the shell's.
fn words(command: &str) -> Option<Vec<&str>> {
    let words = command.strip_prefix("blobcast ")?.split_whitespace();
    let words: Vec<_> = words
        .take_while(|word| !["|", ">", "&&", "<"].contains(word))
        .collect();
    let is_whole = words.iter().all(|word| !word.contains(['…', '"', '\'']));
    (is_whole
        && words
            .first()?
            .chars()
            .all(|c| c.is_ascii_lowercase() || c == '-'))
    .then_some(words)
}

#[tokio::test]
async fn every_command_of_the_documents_is_understood() {
    let mut count = 0;
    for (path, text) in documents() {
        for command in commands(&text) {
            let Some(words) = words(&command) else {
                continue;
            };
            // A flag that is not known comes before the help is shown; so does a flag without its value.
            let ran = Cli::new(&words.join(" ")).arg("--help").run().await;
            let misses_value = ["invalid value", "a value is required"]
                .iter()
                .any(|complaint| ran.stderr.contains(complaint));
            let is_understood = ran.code == Some(0) || misses_value;
            assert!(
                is_understood,
                "{}: {command}: {}",
                path.display(),
                ran.stderr
            );
            count += 1;
        }
    }
    assert!(count > 80, "only {count} commands were found");
}

/// The commands of the block that begins so, in order, without what is behind them.
fn block(page: &str, begin: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let found = text
        .split("```sh\n")
        .find(|block| block.starts_with(begin))
        .unwrap_or_else(|| panic!("{page} has no block that begins with {begin:?}"));
    let found = found.split("```").next().unwrap();
    commands(&format!("```sh\n{found}```"))
        .into_iter()
        .filter_map(|line| line.strip_prefix("blobcast ").map(str::to_owned))
        .collect()
}

#[tokio::test]
async fn the_commands_about_credentials_do_what_they_say() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("credentials.toml");
    let mut lines = BTreeMap::<String, String>::new();
    let made = [
        block("docs/access.md", "blobcast token new client"),
        block("docs/callbacks.md", "blobcast token new callback"),
    ];
    for command in made.concat() {
        let ran = Cli::new(&command).arg("--output=json").run().await;
        let made = ran.json_lines().remove(0);
        let (section, line) = (made["section"].as_str(), made["line"].as_str());
        let lines = lines.entry(section.unwrap().to_owned()).or_default();
        lines.push_str(&format!("{}\n", line.unwrap()));
    }
    let text = lines
        .iter()
        .map(|(section, lines)| format!("[{section}]\n{lines}"));
    fs::write(&file, text.collect::<String>()).unwrap();
    let checked = Cli::new("check-config").current_dir(directory.path());
    checked
        .env("BLOBCAST_CREDENTIALS_FILE", file.display())
        .run()
        .await
        .good();

    let rotating = block("docs/access.md", "export BLOBCAST_CREDENTIALS_FILE");
    assert_eq!(rotating.len(), 3, "{rotating:?}");
    for command in rotating {
        let cli = Cli::new(&command).env("BLOBCAST_CREDENTIALS_FILE", file.display());
        cli.run().await.good();
    }
    assert!(fs::read_to_string(&file).unwrap().contains("previous"));
}

#[tokio::test]
async fn the_commands_about_the_configuration_do_what_they_say() {
    let directory = tempfile::tempdir().unwrap();
    let commands = block("docs/configuration.md", "blobcast check-config");
    let [print, check] = &commands[..] else {
        panic!("{commands:?}")
    };
    let (print, file) = print.split_once(" > ").unwrap();
    let printed = Cli::new(print).run().await;
    fs::write(directory.path().join(file), printed.good()).unwrap();
    let checked = Cli::new(check).current_dir(directory.path());
    checked.run().await.good();
}

#[tokio::test]
async fn the_commands_of_the_quick_start_do_what_they_say() {
    let block = readme_block("blobcast listen");
    let (server, directory) = (Server::start().await, tempfile::tempdir().unwrap());
    let (endpoint, address) = Endpoint::default().opened().await;

    let (mut running, mut run) = (Vec::new(), 0);
    for line in block.lines() {
        let command = line
            .split('#')
            .next()
            .unwrap()
            .trim()
            .strip_prefix("blobcast ")
            .unwrap();
        let command = command.replace("127.0.0.1:3000", &address.to_string());
        let cli = server.cli(&command).current_dir(directory.path());
        if command.starts_with("listen") {
            running.push(cli.start());
            continue;
        }

        let ran = cli.run().await;
        assert_eq!(ran.code, Some(0), "{command}: {ran:#?}");
        run += 1;
    }
    assert!(
        run >= 5 && running.len() == 2,
        "{run} commands, and {} that go on",
        running.len()
    );
    running[0].prints_lines(4).await; // three of one product, and one with an id
    assert!(directory.path().join("demo.backup").exists());

    // The second one begins at the head.
    running[1].says("caught up").await;
    server.cli("trigger --product veo").run().await.good();
    until("the forwarded callback", async || {
        !endpoint.bodies().is_empty()
    })
    .await;
}

/// The block of the README that begins so.
fn readme_block(begin: &str) -> &'static str {
    let readme = include_str!("../../README.md");
    let mut blocks = readme.split("```sh\n").skip(1);
    let block = blocks.find(|block| block.starts_with(begin)).unwrap();
    block.split("```").next().unwrap()
}

#[tokio::test]
async fn the_commands_of_the_readme_find_a_task_whose_callback_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = Settings {
        lose_percent: 100,
        after: Duration::from_millis(100), // at most what the broker waits below
        ..Settings::default()
    };
    let vendor = SimulatedVendor::start(listener, settings).unwrap();
    let simulated = vendor.base_url().to_owned();

    let serve = readme_block("printf");
    let [write_keys, exports @ .., "blobcast serve"] = &serve.lines().collect::<Vec<_>>()[..]
    else {
        panic!("{serve}")
    };
    shell(write_keys, directory.path(), &[]).await;
    let mut options = Options::default();
    for line in exports {
        for variable in line.strip_prefix("export ").unwrap().split(' ') {
            let (name, value) = variable.split_once('=').unwrap();
            let value = match name {
                "BLOBCAST_CREDENTIALS_FILE" => directory.path().join(value).display().to_string(),
                "BLOBCAST_RECONCILE__BASE_URL" => simulated.clone(),
                "BLOBCAST_RECONCILE__EXPECT_WITHIN" => value.replace("10s", "1s"),
                _ => value.to_owned(),
            };
            options = options.variable(name, value);
        }
    }
    let server = options.start().await;

    let wait = readme_block("task=").replace("http://127.0.0.1:8090", &simulated);
    let grpc = format!("http://{}", server.grpc);
    let printed = shell(&wait, directory.path(), &[("BLOBCAST_GRPC_URL", &grpc)]).await;
    assert!(printed.starts_with("https://"), "{printed}");
}

/// What a shell prints that runs these lines, where `blobcast` is the binary.
async fn shell(lines: &str, directory: &Path, variables: &[(&str, &str)]) -> String {
    let binary = env!("CARGO_BIN_EXE_blobcast");
    let mut command = Command::new("bash");
    command
        .args([
            "-euc",
            &format!("blobcast() {{ {binary} \"$@\"; }}\n{lines}"),
        ])
        .current_dir(directory)
        .envs(variables.iter().copied());
    let ran = tokio::task::spawn_blocking(move || command.output());
    let ran = ran.await.unwrap().unwrap();
    assert!(ran.status.success(), "{lines}: {ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}
