//! The configuration as its users see it: accepted values, precedence of the layers, and the
//! errors.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use proptest::prelude::*;
use serde::Deserialize;
use toml::Value;

use super::{
    keys::Change,
    layers::{CLIENT_VARIABLES, Layers},
    units::{duration_text, parse_duration, parse_listen},
    *,
};
use crate::size::size_text;

/// Values of each key other than its default: each valid alone, and different in each column.
const OTHER_VALUES: &[(&str, [&str; 3])] = &[
    ("data_dir", ["/a", "/b", "/c"]),
    ("public_url", ["http://a", "https://b/x", "https://c:8443"]),
    ("credentials_file", ["/a", "b", "/c"]),
    ("ingest.listen", ["127.0.0.1:1", "[::1]:2", "localhost:3"]),
    (
        "ingest.allowed_networks",
        ["10.0.0.0/8", "10.0.0.1", "::1,10.0.0.0/9"],
    ),
    (
        "ingest.trusted_proxies",
        ["10.0.0.0/8", "10.0.0.1", "::1, 10.0.0.0/9"],
    ),
    ("ingest.refusals_per_minute_max", ["1", "2", "3"]),
    ("ingest.bytes_per_minute_max", ["0", "1", "2KiB"]),
    ("ingest.connections_per_address_max", ["1", "2", "3"]),
    (
        "acme.domains",
        ["a.example", "b.example", "c.example,d.example"],
    ),
    (
        "acme.contact",
        [
            "mailto:a@example.com",
            "mailto:b@example.com",
            "mailto:c@example.com",
        ],
    ),
    (
        "acme.directory_url",
        ["https://a", "https://b", "https://c"],
    ),
    ("acme.directory_ca_file", ["/a", "/b", "/c"]),
    ("audit.file", ["/a", "b", "/c"]),
    ("ingest.connections_max", ["1", "2", "3"]),
    ("ingest.body_bytes_max", ["1KiB", "2KiB", "3000"]),
    ("ingest.header_bytes_max", ["8KiB", "9KiB", "10KiB"]),
    ("ingest.headers_max", ["8", "9", "10"]),
    ("ingest.header_timeout", ["1s", "2s", "300ms"]),
    ("ingest.idle_timeout", ["1s", "2s", "300ms"]),
    ("ingest.body_timeout", ["1s", "2s", "300ms"]),
    ("ingest.answer_timeout", ["1s", "2s", "300ms"]),
    ("ingest.inflight_bytes_max", ["1MiB", "2MiB", "3MiB"]),
    ("grpc.listen", ["127.0.0.1:1", "[::1]:2", "localhost:3"]),
    ("grpc.subscriptions_max", ["1", "2", "3"]),
    ("grpc.subscriptions_per_client_max", ["1", "2", "3"]),
    ("grpc.task_ids_max", ["1", "2", "3"]),
    ("grpc.task_ids_in_all_max", ["1", "2", "3"]),
    ("grpc.products_max", ["1", "2", "3"]),
    ("grpc.connections_max", ["1", "2", "3"]),
    ("grpc.connections_per_address_max", ["1", "2", "3"]),
    ("grpc.keepalive_interval", ["1s", "2s", "3s"]),
    ("grpc.keepalive_timeout", ["1s", "2s", "3s"]),
    ("grpc.request_bytes_max", ["1KiB", "2KiB", "3KiB"]),
    ("grpc.inflight_bytes_max", ["4MiB", "5MiB", "6MiB"]),
    ("grpc.reading_bytes_max", ["8MiB", "9MiB", "10MiB"]),
    ("grpc.answers_bytes_max", ["32MiB", "33MiB", "34MiB"]),
    ("grpc.stall_timeout", ["1s", "2s", "3s"]),
    ("admin.listen", ["127.0.0.1:1", "[::1]:2", "localhost:3"]),
    (
        "admin.hosts",
        ["a.internal", "b", "c.internal:9090,localhost:19090"],
    ),
    ("log.retention_age_max", ["1h", "2d", "3m"]),
    ("log.retention_bytes_max", ["3MiB", "4MiB", "5MiB"]),
    ("log.segment_age_max", ["30m", "1h", "1m"]),
    ("log.disk_free_min_percent", ["0", "1", "2"]),
    ("quarantine.retention_age_max", ["1h", "2d", "3m"]),
    ("quarantine.retention_bytes_max", ["2MiB", "3MiB", "4MiB"]),
    ("quarantine.retention_count_max", ["1", "2", "3"]),
    (
        "reconcile.base_url",
        ["https://a", "http://b:8080/x", "https://[::1]:1"],
    ),
    ("reconcile.checks_per_minute_max", ["1", "2", "3"]),
    ("reconcile.give_up_after", ["1s", "2h", "3d"]),
    ("reconcile.outage_min", ["1s", "2m", "3h"]),
    (
        "reconcile.expect_within",
        ["veo=1m", "veo=2m,flux=1h", " sora = 3s , veo=1m"],
    ),
    (
        "reconcile.path",
        ["flux=flux", "flux=flux/", "flux=a/b-1.0_c,veo=veo"],
    ),
    ("hub.ring_bytes_max", ["1MiB", "2MiB", "3MiB"]),
    ("store.cache_bytes", ["1MiB", "2MiB", "3MiB"]),
    ("shutdown.drain_timeout", ["1s", "2s", "3s"]),
    (
        "traces.otlp_endpoint",
        ["http://a:4317", "https://b", "http://[::1]:4317"],
    ),
    ("traces.sampling_ratio", ["0.5", "0", "0.001"]),
    ("logging.level", ["debug", "warn,blobcast=trace", "error"]),
];

/// Keys with only two values, so that three layers cannot all differ.
const TWO_VALUED: &[(&str, [&str; 3])] = &[
    ("ingest.allow_unverified", ["true", "false", "true"]),
    ("ingest.body_signature", ["observe", "require", "observe"]),
    ("ingest.allowlist", ["report", "off", "report"]),
    ("ingest.proxy_protocol", ["true", "false", "true"]),
    (
        "ingest.forwarded_header",
        ["forwarded", "x-forwarded-for", "forwarded"],
    ),
    ("grpc.allow_anonymous", ["true", "false", "true"]),
    ("admin.allow_anonymous", ["true", "false", "true"]),
    ("log.expect_existing", ["true", "false", "true"]),
    ("reconcile.unknown_tasks", ["publish", "ignore", "publish"]),
    ("logging.format", ["text", "json", "text"]),
];

/// Certificate, key, authority and revocation lists of each listener.
const TLS: [[&str; 4]; 3] = [
    ["ingest.tls_certificate_file", "ingest.tls_key_file", "", ""],
    [
        "grpc.tls_certificate_file",
        "grpc.tls_key_file",
        "grpc.tls_client_ca_file",
        "grpc.tls_client_crl_file",
    ],
    ["admin.tls_certificate_file", "admin.tls_key_file", "", ""],
];

/// Key, the values at both ends of its range, and those just outside; `None` if it has no upper
/// end.
type Ends = (&'static str, [&'static str; 2], Option<[&'static str; 2]>);
const ENDS: &[Ends] = &[
    (
        "ingest.connections_max",
        ["0", "1"],
        Some(["1000000", "1000001"]),
    ),
    (
        "ingest.connections_per_address_max",
        ["0", "1"],
        Some(["1000000", "1000001"]),
    ),
    (
        "ingest.refusals_per_minute_max",
        ["0", "1"],
        Some(["1000000", "1000001"]),
    ),
    ("ingest.bytes_per_minute_max", ["-1", "0"], None),
    (
        "ingest.body_bytes_max",
        ["1023", "1KiB"],
        Some(["64MiB", "67108865"]),
    ),
    (
        "ingest.header_bytes_max",
        ["8191", "8KiB"],
        Some(["1MiB", "1048577"]),
    ),
    ("ingest.headers_max", ["7", "8"], Some(["1000", "1001"])),
    (
        "ingest.header_timeout",
        ["99ms", "100ms"],
        Some(["5m", "5m 1ns"]),
    ),
    (
        "ingest.idle_timeout",
        ["99ms", "100ms"],
        Some(["1h", "1h 1ns"]),
    ),
    (
        "ingest.body_timeout",
        ["99ms", "100ms"],
        Some(["5m", "5m 1ns"]),
    ),
    (
        "ingest.answer_timeout",
        ["99ms", "100ms"],
        Some(["5m", "5m 1ns"]),
    ),
    ("ingest.inflight_bytes_max", ["1048575", "1MiB"], None),
    (
        "grpc.subscriptions_max",
        ["0", "1"],
        Some(["10000000", "10000001"]),
    ),
    (
        "grpc.subscriptions_per_client_max",
        ["0", "1"],
        Some(["10000000", "10000001"]),
    ),
    (
        "grpc.task_ids_max",
        ["0", "1"],
        Some(["1000000", "1000001"]),
    ),
    (
        "grpc.task_ids_in_all_max",
        ["0", "1"],
        Some(["100000000", "100000001"]),
    ),
    ("grpc.products_max", ["0", "1"], Some(["10000", "10001"])),
    (
        "grpc.connections_max",
        ["0", "1"],
        Some(["1000000", "1000001"]),
    ),
    (
        "grpc.connections_per_address_max",
        ["0", "1"],
        Some(["1000000", "1000001"]),
    ),
    (
        "grpc.keepalive_interval",
        ["999ms", "1s"],
        Some(["1h", "1h 1ns"]),
    ),
    (
        "grpc.keepalive_timeout",
        ["99ms", "100ms"],
        Some(["5m", "5m 1ns"]),
    ),
    (
        "grpc.request_bytes_max",
        ["1023", "1KiB"],
        Some(["64MiB", "67108865"]),
    ),
    ("grpc.inflight_bytes_max", ["1048575", "1MiB"], None),
    ("grpc.reading_bytes_max", ["8388607", "8MiB"], None),
    ("grpc.answers_bytes_max", ["33554431", "32MiB"], None),
    (
        "grpc.stall_timeout",
        ["999ms", "1s"],
        Some(["5m", "5m 1ns"]),
    ),
    (
        "log.retention_age_max",
        ["999ms", "1s"],
        Some(["3650d", "3650d 1ns"]),
    ),
    ("log.retention_bytes_max", ["1048575", "1MiB"], None),
    (
        "log.segment_age_max",
        ["999ms", "1s"],
        Some(["3649d", "3649d 1ns"]),
    ),
    (
        "log.disk_free_min_percent",
        ["-1", "0"],
        Some(["100", "101"]),
    ),
    (
        "quarantine.retention_age_max",
        ["999ms", "1s"],
        Some(["3650d", "3650d 1ns"]),
    ),
    ("quarantine.retention_bytes_max", ["1048575", "1MiB"], None),
    (
        "quarantine.retention_count_max",
        ["0", "1"],
        Some(["1000000000", "1000000001"]),
    ),
    (
        "reconcile.checks_per_minute_max",
        ["0", "1"],
        Some(["6000", "6001"]),
    ),
    (
        "reconcile.give_up_after",
        ["999ms", "1s"],
        Some(["30d", "30d 1ns"]),
    ),
    (
        "reconcile.outage_min",
        ["999ms", "1s"],
        Some(["1d", "1d 1ns"]),
    ),
    (
        "reconcile.expect_within",
        ["veo=1m,sora=999ms", "veo=1m,sora=1s"],
        Some(["veo=1m,sora=7d", "veo=1m,sora=7d 1ns"]),
    ),
    ("hub.ring_bytes_max", ["1048575", "1MiB"], None),
    ("store.cache_bytes", ["1048575", "1MiB"], None),
    (
        "shutdown.drain_timeout",
        ["999ms", "1s"],
        Some(["10m", "10m 1ns"]),
    ),
];

fn flag(key: &str, value: &str) -> ConfigSources {
    flags(&[(key, value)])
}

fn flags(flags: &[(&str, &str)]) -> ConfigSources {
    ConfigSources {
        flags: flags
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect(),
        ..ConfigSources::default()
    }
}

fn variable(name: &str, value: &str) -> ConfigSources {
    ConfigSources {
        env: vec![(name.into(), value.into())],
        ..ConfigSources::default()
    }
}

/// Loads `text` as the user's file, with the other layers of `sources`. Errors show the file
/// without its directory.
fn load_with_file(text: &str, sources: ConfigSources) -> Result<Config, ConfigErrors> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blobcast.toml");
    std::fs::write(&path, text).unwrap();
    load(&ConfigSources {
        file: Some(path),
        ..sources
    })
    .map_err(|mut errors| {
        for problem in &mut errors.problems {
            if let Origin::File(path) | Origin::Line { path, .. } = &mut problem.origin {
                *path = "blobcast.toml".into();
            }
        }
        errors
    })
}

fn load_file(text: &str) -> Result<Config, ConfigErrors> {
    load_with_file(text, ConfigSources::default())
}

fn errors_of(outcome: Result<Config, ConfigErrors>) -> Vec<String> {
    outcome
        .unwrap_err()
        .to_string()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn default_config() -> Config {
    load(&ConfigSources::default()).unwrap()
}

fn keys() -> Vec<String> {
    Layers::defaults().keys().to_vec()
}

fn variable_of(key: &str) -> String {
    format!("BLOBCAST_{}", key.replace('.', "__").to_uppercase())
}

/// `key = value` as a line of a file: quoted if the default is.
fn line_of(key: &str, value: &str) -> String {
    match Layers::defaults().default_of(key) {
        // A list or a table may also be one comma-separated text.
        Some(Value::String(_) | Value::Array(_) | Value::Table(_)) => format!("{key} = {value:?}"),
        _ => format!("{key} = {value}"),
    }
}

#[test]
fn the_default_file_loads_and_says_what_the_design_says() {
    let config = default_config();
    assert_eq!(config.data_dir, PathBuf::from("./blobcast-data"));
    assert_eq!(config.public_url, None);
    assert_eq!(config.ingest.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.ingest.body_bytes_max, 1 << 20);
    assert_eq!(config.ingest.answer_timeout, Duration::from_secs(4));
    assert_eq!(
        config.log.retention_age_max,
        Duration::from_secs(7 * 86_400)
    );
    assert_eq!(config.logging.format, LogFormat::Auto);
    assert!(
        !config.ingest.allow_unverified
            && !config.grpc.allow_anonymous
            && !config.admin.allow_anonymous
    );
}

#[test]
fn the_default_file_as_a_users_file_changes_nothing() {
    assert_eq!(load_file(DEFAULT).unwrap(), default_config());
}

#[test]
fn every_key_and_section_of_the_default_file_is_documented_right_above() {
    let lines: Vec<_> = DEFAULT.lines().collect();
    let mut documented = 0;
    for pair in lines
        .windows(2)
        .filter(|pair| !pair[1].starts_with('#') && !pair[1].is_empty())
    {
        assert!(pair[0].starts_with("# "), "no comment above {:?}", pair[1]);
        documented += usize::from(pair[1].contains('='));
    }
    assert_eq!(documented, keys().len());
}

#[test]
fn every_key_of_the_configuration_is_in_the_default_file() {
    let whole: toml::Table = toml::from_str(DEFAULT).unwrap();
    assert!(Config::deserialize(whole.clone()).is_ok());
    for key in keys() {
        let mut table = whole.clone();
        match key.split_once('.') {
            Some((section, name)) => table[section].as_table_mut().unwrap().remove(name),
            None => table.remove(&key),
        };
        assert!(
            Config::deserialize(table).is_err(),
            "the code has its own default for {key}"
        );
    }
}

#[test]
fn a_key_that_nothing_reads_cannot_exist() {
    for section in [
        "",
        "ingest",
        "grpc",
        "admin",
        "acme",
        "audit",
        "log",
        "quarantine",
        "reconcile",
        "hub",
        "store",
        "shutdown",
        "logging",
    ] {
        let mut table: toml::Table = toml::from_str(DEFAULT).unwrap();
        let inner = if section.is_empty() {
            &mut table
        } else {
            table[section].as_table_mut().unwrap()
        };
        inner.insert("unread".into(), Value::Boolean(true));
        assert!(
            Config::deserialize(table).is_err(),
            "[{section}] takes unknown keys"
        );
    }
}

#[test]
fn every_key_is_overridden_by_file_then_environment_then_flag() {
    let tables = OTHER_VALUES.iter().chain(TWO_VALUED);
    let mut covered: BTreeSet<_> = tables.clone().map(|(key, _)| (*key).to_owned()).collect();
    // These are valid only together; their own test sets them so.
    covered.extend(TLS.iter().flat_map(|keys| {
        keys.iter()
            .filter(|key| !key.is_empty())
            .map(|key| (*key).to_owned())
    }));
    // Valid only with `audit.file` and `credentials_file`.
    covered.extend(["audit.required", "reconcile.enabled"].map(str::to_owned));
    assert_eq!(
        covered,
        keys().into_iter().collect(),
        "the table covers every key"
    );
    for (key, [in_file, in_environment, in_flag]) in tables {
        // The configuration with this value and defaults otherwise.
        let alone = |value: &str| load(&flag(key, value)).unwrap();
        let line = line_of(key, in_file);
        let mut sources = ConfigSources::default();

        let file = load_with_file(&line, sources.clone()).unwrap();
        assert_eq!(file, alone(in_file), "{key} from the file");
        assert_ne!(file, default_config(), "{key} is read");

        sources
            .env
            .push((variable_of(key), (*in_environment).into()));
        let environment = load_with_file(&line, sources.clone()).unwrap();
        assert_eq!(
            environment,
            alone(in_environment),
            "{key} from the environment"
        );
        assert_ne!(environment, file, "{key}: environment over file");

        sources.flags.push(((*key).into(), (*in_flag).into()));
        let flag = load_with_file(&line, sources).unwrap();
        assert_eq!(flag, alone(in_flag), "{key} from a flag");
        assert_ne!(flag, environment, "{key}: flag over environment");
    }
}

#[test]
fn a_reload_applies_each_key_or_says_that_it_needs_a_restart() {
    let alone = |key: &str, value: &str| load(&flag(key, value)).unwrap();
    let of_tls = TLS.iter().flat_map(|[certificate, key, authority, lists]| {
        let all = [
            (*certificate, "/c"),
            (*key, "/k"),
            (*authority, "/a"),
            (*lists, "/l"),
        ];
        let given: Vec<_> = all.into_iter().filter(|(key, _)| !key.is_empty()).collect();
        let config = load(&flags(&given)).unwrap();
        given
            .into_iter()
            .map(move |(key, _)| (key.to_owned(), config.clone()))
            .collect::<Vec<_>>()
    });
    let others = OTHER_VALUES.iter().chain(TWO_VALUED);
    let others = others.map(|(key, [value, ..])| ((*key).to_owned(), alone(key, value)));
    let is_reloadable = |name: &str| {
        KEYS.iter()
            .any(|key| key.name == name && key.change == Change::Reload)
    };
    for (key, config) in others.chain(of_tls) {
        let needs_restart = needs_restart(&default_config(), &config).contains(&key.as_str());
        assert_ne!(needs_restart, is_reloadable(&key), "{key}");
        // The function that names a key and the one that applies it agree.
        let in_force = default_config().take_up(&config);
        assert_eq!(
            in_force,
            if needs_restart {
                default_config()
            } else {
                config
            },
            "{key}"
        );
    }
    let both = load(&flags(&[("audit.file", "/a"), ("audit.required", "true")])).unwrap();
    assert_eq!(
        needs_restart(&default_config(), &both),
        ["audit.file", "audit.required"]
    );
    let both = load(&flags(&[
        ("credentials_file", "/a"),
        ("reconcile.enabled", "true"),
    ]));
    assert_eq!(
        needs_restart(&default_config(), &both.unwrap()),
        ["credentials_file", "reconcile.enabled"]
    );
    assert_eq!(needs_restart(&default_config(), &default_config()), [""; 0]);
}

#[test]
fn an_environment_variable_is_taken_in_any_case() {
    let config = load(&variable("blobcast_Data_Dir", "/here")).unwrap();
    assert_eq!(config.data_dir, PathBuf::from("/here"));
}

#[test]
fn one_key_in_two_spellings_of_a_variable_is_refused() {
    let mut sources = variable("BLOBCAST_DATA_DIR", "/a");
    sources.env.push(("blobcast_data_dir".into(), "/b".into()));
    let errors = errors_of(load(&sources));
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].contains("set twice, also as BLOBCAST_DATA_DIR"),
        "{errors:?}"
    );
}

#[test]
fn variables_of_others_and_of_the_client_verbs_are_left_alone() {
    let mut sources = variable("PATH", "/bin");
    sources
        .env
        .extend(CLIENT_VARIABLES.map(|name| (name.into(), "x".into())));
    assert_eq!(load(&sources).unwrap(), default_config());
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_key() {
    for (text, line, unknown, near) in [
        (
            "\n[ingest]\nlisten_on = 1\n",
            3,
            "ingest.listen_on",
            "ingest.listen",
        ),
        (
            "[ingest]\nbody_max = 1\n",
            2,
            "ingest.body_max",
            "ingest.body_bytes_max",
        ),
        (
            "[grpc]\nbody_bytes_max = 1\n",
            2,
            "grpc.body_bytes_max",
            "ingest.body_bytes_max",
        ),
        ("listen = 1\n", 1, "listen", "ingest.listen"),
        ("datadir = 1\n", 1, "datadir", "data_dir"),
        (
            "log.retention_age = 1\n",
            1,
            "log.retention_age",
            "log.retention_age_max",
        ),
    ] {
        let expected =
            format!("blobcast.toml:{line}: `{unknown}`: unknown key; did you mean `{near}`?");
        assert_eq!(errors_of(load_file(text)), [expected]);
    }
}

#[test]
fn an_unknown_key_near_nothing_leads_to_the_documentation() {
    for text in ["[ingest]\nfoo = 1", "zzz = 1", "[hub]\nworkers = 4"] {
        let errors = errors_of(load_file(text));
        assert!(
            errors[0].contains("unknown key; `blobcast check-config --print-default`"),
            "{errors:?}"
        );
    }
}

#[test]
fn an_unknown_section_names_its_line_and_the_nearest_section() {
    let expected = "blobcast.toml:2: `injest`: unknown section; did you mean `[ingest]`?";
    assert_eq!(
        errors_of(load_file("\n[injest]\nlisten = \"x\"\nother = 1")),
        [expected]
    );
    let errors = errors_of(load_file("[kafka]\nx = 1"));
    assert!(
        errors[0].ends_with("`blobcast check-config --print-default` lists every key"),
        "{errors:?}"
    );
}

#[test]
fn an_unknown_variable_or_flag_is_answered_in_its_own_spelling() {
    for (sources, end) in [
        (
            variable("BLOBCAST_GRPC_LISTEN", "x"),
            "did you mean `BLOBCAST_GRPC__LISTEN`?",
        ),
        (
            variable("BLOBCAST_INGEST_URI", "x"),
            "did you mean `BLOBCAST_INGEST_URL`?",
        ),
        (flag("grpc.listn", "x"), "did you mean `--grpc-listen`?"),
    ] {
        let errors = errors_of(load(&sources));
        assert!(errors[0].ends_with(end), "{errors:?}");
    }
}

#[test]
fn a_section_is_no_key_and_a_key_is_no_section() {
    let section = errors_of(load(&variable("BLOBCAST_LOG", "debug")));
    assert!(
        section[0]
            .contains("is a section, not a key; set a key in it, like `log.retention_age_max`"),
        "{section:?}"
    );
    let key = errors_of(load_file("[data_dir]\nx = 1"));
    assert!(
        key[0].starts_with("blobcast.toml:1: `data_dir`: invalid type: map, expected a path"),
        "{key:?}"
    );
}

#[test]
fn a_wrong_type_names_its_line_and_shows_the_default() {
    for (text, expected) in [
        (
            "\ndata_dir = 5",
            "blobcast.toml:2: `data_dir`: invalid type: integer `5`, expected a path; \
             write it like the default, \"./blobcast-data\"",
        ),
        (
            "[ingest]\nallow_unverified = \"yes\"",
            "blobcast.toml:2: `ingest.allow_unverified`: invalid type: string \"yes\", expected a boolean; \
             write it like the default, false",
        ),
        (
            "[grpc]\n\nproducts_max = -1",
            "blobcast.toml:3: `grpc.products_max`: invalid value: integer `-1`, expected a whole number, 0 or more; \
             write it like the default, 64",
        ),
        (
            "hub.ring_bytes_max = \"64MB\"",
            "blobcast.toml:1: `hub.ring_bytes_max`: \"64MB\" is not a size: its unit is one of B, KiB, MiB, GiB, TiB; \
             write it like the default, \"64MiB\"",
        ),
    ] {
        assert_eq!(errors_of(load_file(text)), [expected]);
    }
}

#[test]
fn a_wrong_text_in_environment_or_flag_names_it() {
    let variable = errors_of(load(&variable("BLOBCAST_GRPC__PRODUCTS_MAX", "many")));
    let start = "environment variable BLOBCAST_GRPC__PRODUCTS_MAX: `grpc.products_max`: \"many\" is not a whole number;";
    assert!(variable[0].starts_with(start), "{variable:?}");
    let flag = errors_of(load(&flag("ingest.listen", "here")));
    assert!(
        flag[0].starts_with("--ingest-listen: `ingest.listen`: \"here\" is not an address"),
        "{flag:?}"
    );
    assert_eq!(
        errors_of(load(&self::flag("logging.format", "xml"))).len(),
        1
    );
    assert_eq!(
        errors_of(load(&self::flag("logging.level", "blobcast=loud"))).len(),
        1
    );
    assert_eq!(errors_of(load(&self::flag("data_dir", ""))).len(), 1);
    assert_eq!(
        errors_of(load(&self::flag("ingest.allow_unverified", "1"))).len(),
        1
    );
}

#[test]
fn a_syntax_error_names_line_and_column_and_hides_no_other_layer() {
    let sources = flag("grpc.products_max", "0");
    let errors = errors_of(load_with_file(
        "data_dir = \"x\"\n[ingest\nlisten = 1\n",
        sources,
    ));
    assert!(
        errors[0].starts_with("blobcast.toml:2:8: is not TOML: "),
        "{errors:?}"
    );
    assert!(
        errors.last().unwrap().starts_with("--grpc-products-max"),
        "{errors:?}"
    );
    let twice = errors_of(load_file("data_dir = \"x\"\ndata_dir = \"y\"\n"));
    assert!(
        twice[0].starts_with("blobcast.toml:2:1: is not TOML: duplicate key"),
        "{twice:?}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let sources = |path: &str| ConfigSources {
        file: Some(path.into()),
        ..ConfigSources::default()
    };
    let missing = errors_of(load(&sources("/nowhere/blobcast.toml")));
    assert!(
        missing[0].starts_with("/nowhere/blobcast.toml: cannot be read: No such file"),
        "{missing:?}"
    );
    assert!(errors_of(load(&sources("/dev/zero")))[0].contains("it is not a regular file"));
    let file = |bytes| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " ".repeat(bytes)).unwrap();
        file
    };
    let (most, more) = (file(1 << 20), file((1 << 20) + 1));
    assert!(load(&sources(most.path().to_str().unwrap())).is_ok());
    assert!(
        errors_of(load(&sources(more.path().to_str().unwrap())))[0]
            .contains("it has more than 1048576 bytes")
    );
    assert_eq!(errors_of(load_file(&"#".repeat((1 << 20) + 1))).len(), 1);
    assert!(load_file(&"#".repeat(1 << 20)).is_ok());
}

#[test]
fn every_range_holds_on_both_sides_of_its_ends() {
    for (key, [below, lowest], upper) in ENDS {
        let load = |value| load(&roomy(key, value));
        assert_eq!(
            load(below).unwrap_err().problems.len(),
            1,
            "{key} = {below}"
        );
        assert!(load(lowest).is_ok(), "{key} = {lowest}");
        let Some([highest, above]) = upper else {
            assert!(load("8388607TiB").is_ok(), "{key} has no upper end");
            continue;
        };
        assert!(load(highest).is_ok(), "{key} = {highest}");
        let problems = load(above).unwrap_err().problems;
        assert_eq!(problems.len(), 1, "{key} = {above}");
        assert_eq!(problems[0].key.as_deref(), Some(*key));
        assert!(
            problems[0].what.contains("is out of range, which is "),
            "{problems:?}"
        );
    }
}

/// The flag, in a configuration where one body always fits, and a segment is always younger than
/// the retention.
fn roomy(key: &str, value: &str) -> ConfigSources {
    let small = [
        ("ingest.body_bytes_max", "1KiB"),
        ("grpc.request_bytes_max", "1KiB"),
        ("log.retention_age_max", "3650d"),
    ];
    let large = [
        "ingest.inflight_bytes_max",
        "grpc.inflight_bytes_max",
        "grpc.answers_bytes_max",
    ]
    .map(|key| (key, "2GiB"));
    flags(&[&small[..], &large[..], &[(key, value)]].concat())
}

#[test]
fn a_segment_ends_before_its_events_expire() {
    let load = |segment: &str, kept: &str| {
        load(&flags(&[
            ("log.segment_age_max", segment),
            ("log.retention_age_max", kept),
        ]))
    };
    assert!(load("59m 59s", "1h").is_ok());
    let errors = errors_of(load("1h", "1h"));
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(
        errors[0].contains("`log.segment_age_max`")
            && errors[0].contains("not less than `log.retention_age_max`, 1h")
    );
    // The default adapts by itself.
    let config = super::load(&flag("log.retention_age_max", "2h")).unwrap();
    assert_eq!(config.log.segment_age(), Duration::from_secs(7_200));
    assert_eq!(
        default_config().log.segment_age(),
        Duration::from_secs(86_400)
    );
}

#[test]
fn retention_and_answers_have_room_for_the_largest_callback() {
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    for (key, body, enough, advised) in [
        ("log.retention_bytes_max", MIB, 2 * MIB + 64 * KIB, "3MiB"),
        (
            "log.retention_bytes_max",
            64 * MIB,
            128 * MIB + 64 * KIB,
            "129MiB",
        ),
        (
            "quarantine.retention_bytes_max",
            MIB,
            MIB + 80 * KIB,
            "2MiB",
        ),
        (
            "grpc.answers_bytes_max",
            8 * MIB,
            4 * 2 * (17 * MIB + 64 * KIB),
            "137MiB",
        ),
        (
            "grpc.answers_bytes_max",
            64 * MIB,
            4 * 2 * (129 * MIB + 64 * KIB),
            "1033MiB",
        ),
    ] {
        let load = |body: u64, all: u64| {
            let flags = flags(&[
                ("ingest.inflight_bytes_max", "1GiB"),
                ("grpc.answers_bytes_max", "2GiB"),
                ("ingest.body_bytes_max", &body.to_string()),
                (key, &all.to_string()),
            ]);
            load(&flags)
        };
        assert!(load(body, enough).is_ok(), "{key} = {enough}");
        let errors = errors_of(load(body, enough - 1));
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(
            errors[0].contains(&format!("`{key}`")) && errors[0].contains("too little"),
            "{errors:?}"
        );

        // Both remedies that it names work.
        let (raised, lowered) = errors[0]
            .split_once("raise it to ")
            .unwrap()
            .1
            .split_once(", or lower")
            .unwrap();
        assert_eq!(raised, advised);
        assert!(
            load(body, parse_size(raised).unwrap()).is_ok(),
            "{errors:?}"
        );
        let lowered = parse_size(lowered.rsplit_once(' ').unwrap().1).unwrap();
        assert!(load(lowered, enough - 1).is_ok(), "{errors:?}");
    }
}

#[test]
fn every_number_size_and_duration_has_a_range() {
    let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(names, keys(), "in the order of the default file");

    let ranged: BTreeSet<_> = KEYS
        .iter()
        .filter(|key| key.range().is_some())
        .map(|key| key.name)
        .collect();
    assert_eq!(ranged, ENDS.iter().map(|(key, ..)| *key).collect());

    let defaults = Layers::defaults();
    for key in keys() {
        let is_quantity = match defaults.default_of(&key).unwrap() {
            Value::Integer(_) => true,
            Value::String(text) => parse_size(text).is_ok() || parse_duration(text).is_ok(),
            Value::Table(_) => key == "reconcile.expect_within",
            _ => false,
        };
        assert_eq!(is_quantity, ranged.contains(key.as_str()), "{key}");
    }
}

#[test]
fn a_value_out_of_range_names_value_range_and_place() {
    let expected = "blobcast.toml:2: `shutdown.drain_timeout`: 11m is out of range, which is 1s to 10m; \
                    choose a value within it";
    assert_eq!(
        errors_of(load_file("[shutdown]\ndrain_timeout = \"11min\"")),
        [expected]
    );
    let open = errors_of(load(&flag("store.cache_bytes", "1KiB")));
    assert!(
        open[0].contains("1KiB is out of range, which is 1MiB or more"),
        "{open:?}"
    );
}

#[test]
fn beyond_loopback_a_listener_needs_consent() {
    for (listen, consent) in [
        ("ingest.listen", "ingest.allow_unverified"),
        ("grpc.listen", "grpc.allow_anonymous"),
        ("admin.listen", "admin.allow_anonymous"),
    ] {
        for exposed in [
            "0.0.0.0:7000",
            "[::]:7000",
            "10.0.0.1:7000",
            "[::ffff:10.0.0.1]:7000",
        ] {
            let errors = errors_of(load(&flag(listen, exposed)));
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(
                errors[0].contains("is not loopback: anybody who can reach it could "),
                "{errors:?}"
            );
            assert!(
                errors[0].contains(&format!("set `{consent} = true`")),
                "{errors:?}"
            );
            assert!(load(&flags(&[(listen, exposed), (consent, "true")])).is_ok());
            assert!(load(&flags(&[(listen, exposed), (consent, "false")])).is_err());
        }
        for loopback in [
            "127.0.0.1:7000",
            "127.9.9.9:7000",
            "[::1]:7000",
            "[::ffff:127.0.0.1]:7000",
            "localhost:7000",
        ] {
            assert!(
                load(&flag(listen, loopback)).is_ok(),
                "{listen} = {loopback}"
            );
        }
    }
}

#[test]
fn callbacks_that_are_authenticated_may_come_from_beyond_loopback() {
    let exposed = ("ingest.listen", "0.0.0.0:7000");
    assert!(load(&flags(&[exposed, ("credentials_file", "c.toml")])).is_ok());
    let enforced = [
        exposed,
        ("ingest.allowlist", "enforce"),
        ("ingest.allowed_networks", "198.51.100.0/24"),
    ];
    assert!(load(&flags(&enforced)).is_ok());
    assert!(load(&flags(&[exposed, ("ingest.allowlist", "report")])).is_err());
}

#[test]
fn a_rule_that_could_let_nobody_in_is_refused() {
    let errors = errors_of(load(&flag("ingest.allowlist", "enforce")));
    assert!(
        errors[0].contains("would refuse every callback"),
        "{errors:?}"
    );
}

#[test]
fn a_network_is_an_address_with_or_without_its_bits() {
    let load = |text: &str| load_file(&format!("[ingest]\ntrusted_proxies = {text}"));
    let networks = |text| {
        load(text)
            .unwrap()
            .ingest
            .trusted_proxies
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        networks("[\"10.0.0.0/8\", \"192.0.2.7\", \"2001:db8::/32\"]"),
        ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]
    );
    assert_eq!(networks("\"10.0.0.0/8, ::1\""), ["10.0.0.0/8", "::1/128"]);
    assert_eq!(networks("[]"), [""; 0]);
    for wrong in ["[\"10.0.0.0/33\"]", "[\"example.com\"]", "[1]", "7"] {
        let errors = errors_of(load(wrong));
        assert!(
            errors[0].contains("write it like [\"198.51.100.0/24\""),
            "{errors:?}"
        );
    }
}

#[test]
fn a_certificate_comes_with_its_key_and_an_authority_with_both() {
    for [certificate, key, authority, lists] in TLS {
        let config = load(&flags(&[(certificate, "/c.pem"), (key, "/k.pem")])).unwrap();
        assert_ne!(config, default_config(), "{certificate} is read");
        for lonely in [certificate, key] {
            let errors = errors_of(load(&flag(lonely, "/x.pem")));
            assert!(errors[0].contains("is of no use without"), "{errors:?}");
        }
        if !authority.is_empty() {
            let all = [
                (certificate, "/c.pem"),
                (key, "/k.pem"),
                (authority, "/a.pem"),
                (lists, "/l.pem"),
            ];
            assert!(load(&flags(&all)).is_ok() && load(&flags(&all[..3])).is_ok());
            let errors = errors_of(load(&flag(authority, "/a.pem")));
            assert!(errors[0].contains("within TLS only"), "{errors:?}");
            let errors = errors_of(load(&flags(&[all[0], all[1], all[3]])));
            assert!(errors[0].contains("nobody asks for those"), "{errors:?}");
        }
    }
}

#[test]
fn records_that_are_required_need_a_file() {
    let [problem] = &errors_of(load(&flag("audit.required", "true")))[..] else {
        panic!("one problem")
    };
    assert!(
        problem.contains("audit.required") && problem.contains("`audit.file`"),
        "{problem}"
    );
    let config = load(&flags(&[("audit.file", "/a"), ("audit.required", "true")])).unwrap();
    assert!(config.audit.required);
}

#[test]
fn reconciling_needs_a_file_with_keys() {
    let [problem] = &errors_of(load(&flag("reconcile.enabled", "true")))[..] else {
        panic!("one problem")
    };
    assert!(
        problem.contains("reconcile.enabled") && problem.contains("`credentials_file`"),
        "{problem}"
    );
    let enabled = ("reconcile.enabled", "true");
    let config = load(&flags(&[("credentials_file", "/a"), enabled])).unwrap();
    assert!(config.reconcile.enabled);
    // A file that cannot be read is one problem, not two.
    let unreadable = "credentials_file = 1\n[reconcile]\nenabled = true";
    assert_eq!(errors_of(load_file(unreadable)).len(), 1);
}

#[test]
fn a_table_by_product_is_the_same_in_each_layer_and_in_each_form_of_toml() {
    let expected = load(&flag("reconcile.expect_within", "veo=12m,flux=90s")).unwrap();
    let of = |product: &str| expected.reconcile.expect_within.get(product).copied();
    assert_eq!(
        [of("veo"), of("flux"), of("sora")],
        [
            Some(Duration::from_secs(720)),
            Some(Duration::from_secs(90)),
            None
        ]
    );
    for text in [
        "[reconcile]\nexpect_within = { veo = \"12m\", flux = \"90s\" }",
        "[reconcile.expect_within]\nveo = \"12m\"\nflux = \"90s\"",
        "reconcile.expect_within.veo = \"12m\"\nreconcile.expect_within.flux = \"90s\"",
    ] {
        assert_eq!(load_file(text).unwrap(), expected, "{text}");
    }
    let name = "BLOBCAST_RECONCILE__EXPECT_WITHIN";
    let env = load(&variable(name, "veo=12m, flux=90s,")).unwrap();
    assert_eq!(env, expected);
    // A higher layer replaces the whole table.
    let both = load_with_file(
        "[reconcile.expect_within]\nsora = \"1m\"",
        variable(name, "veo=12m,flux=90s"),
    );
    assert_eq!(both.unwrap(), expected);
}

#[test]
fn a_table_by_product_names_the_product_of_a_wrong_value() {
    for (key, wrong, why) in [
        (
            "reconcile.expect_within",
            "veo=12",
            "veo: \"12\" is not a duration",
        ),
        (
            "reconcile.expect_within",
            "veo",
            "\"veo\" is not PRODUCT=VALUE",
        ),
        (
            "reconcile.expect_within",
            "veo=1m,veo=2m",
            "veo is named twice",
        ),
        ("reconcile.expect_within", "Veo=1m", "\"Veo\" is no product"),
        (
            "reconcile.expect_within",
            "veo=999ms",
            "veo: 999ms is out of range, which is 1s to 7d",
        ),
        ("reconcile.path", "flux=/flux", "it has an empty segment"),
        ("reconcile.path", "flux=a//b", "it has an empty segment"),
        ("reconcile.path", "flux=", "it has no segment"),
        ("reconcile.path", "flux=/", "it has no segment"),
        ("reconcile.path", "flux=../admin", "it leads elsewhere"),
        ("reconcile.path", "flux=a/./b", "it leads elsewhere"),
        ("reconcile.path", "flux=a?b", "it has other characters"),
        ("reconcile.path", "flux=a%2Fb", "it has other characters"),
    ] {
        let errors = errors_of(load(&flag(key, wrong)));
        assert!(errors.len() == 1 && errors[0].contains(why), "{errors:?}");
        let line = match wrong.split_once('=').filter(|_| !wrong.contains(',')) {
            Some((product, value)) => format!("[{key}]\n{product} = {value:?}"),
            None => continue,
        };
        let errors = errors_of(load_file(&line));
        assert!(
            errors.len() == 1 && errors[0].contains(why) && errors[0].contains("blobcast.toml:1"),
            "{errors:?}"
        );
    }
    let errors = errors_of(load_file("[reconcile]\nexpect_within = 5"));
    assert!(
        errors.len() == 1 && errors[0].contains("write it like { veo = "),
        "{errors:?}"
    );
}

#[test]
fn one_product_of_a_table_is_no_key_of_its_own() {
    let errors = errors_of(load(&variable("BLOBCAST_RECONCILE__PATH__FLUX", "flux")));
    let expected =
        "`reconcile.path.flux`: is no key of its own; set `BLOBCAST_RECONCILE__PATH` as a whole";
    assert!(
        errors.len() == 1 && errors[0].ends_with(expected),
        "{errors:?}"
    );
}

#[test]
fn the_vendors_base_url_is_http_and_may_have_a_path() {
    let url = |raw| load(&flag("reconcile.base_url", raw)).map(|config| config.reconcile.base_url);
    assert_eq!(
        default_config().reconcile.base_url,
        "https://platform.runblob.io"
    );
    assert_eq!(url("https://a:8443/x/").unwrap(), "https://a:8443/x");
    for (wrong, why) in [
        ("", "it is empty"),
        ("platform.runblob.io", "must begin with http:// or https://"),
        ("https://a:65536", "has an invalid port"),
        ("https://a/?key=hunter2", "must have no query"),
        (
            "https://u:hunter2@a",
            "must not carry a user name or password",
        ),
    ] {
        let errors = errors_of(load(&flag("reconcile.base_url", wrong)));
        assert!(
            errors.len() == 1 && errors[0].contains(why) && !errors[0].contains("hunter2"),
            "{errors:?}"
        );
    }
}

#[test]
fn a_reload_says_what_it_has_changed() {
    let new = load(&flags(&[
        ("log.retention_age_max", "9d"),
        ("grpc.task_ids_max", "7"),
    ]))
    .unwrap();
    assert_eq!(
        default_config().changes_to(&new),
        ["log.retention_age_max: 604800s -> 777600s"]
    );
    assert_eq!(new.changes_to(&new), [""; 0]);
}

#[test]
fn the_admin_listeners_hosts_are_names_with_or_without_a_port() {
    for right in ["blobcast.internal", "localhost:19090", "a_b-c.d", ""] {
        assert!(load(&flag("admin.hosts", right)).is_ok(), "{right}");
    }
    for wrong in ["http://a", "a/b", "a:b", "a:65536", ":9090", "*.a"] {
        let errors = errors_of(load(&flag("admin.hosts", wrong)));
        assert!(errors[0].contains("is no name of a host"), "{errors:?}");
    }
}

#[test]
fn acme_is_for_domains_and_instead_of_files() {
    assert!(load(&flag("acme.domains", "hooks.example.com,b.example.com")).is_ok());
    for wrong in [
        "localhost",
        "*.example.com",
        "https://example.com",
        "192.0.2.1",
        "a..b",
        &format!("{}.a", "x".repeat(64)),
    ] {
        let errors = errors_of(load(&flag("acme.domains", wrong)));
        assert!(
            errors[0].contains("is no domain that can be proved"),
            "{errors:?}"
        );
    }
    let both = [
        ("acme.domains", "a.example"),
        ("ingest.tls_certificate_file", "c"),
        ("ingest.tls_key_file", "k"),
    ];
    assert!(errors_of(load(&flags(&both)))[0].contains("choose one of the two"));
}

#[test]
fn one_consent_does_not_stand_for_another() {
    let sources = flags(&[
        ("grpc.listen", "0.0.0.0:1"),
        ("ingest.allow_unverified", "true"),
        ("admin.allow_anonymous", "true"),
    ]);
    assert_eq!(errors_of(load(&sources)).len(), 1);
}

#[test]
fn two_listeners_on_one_port_are_refused_at_the_one_that_was_set() {
    let errors = errors_of(load(&flag("ingest.listen", "127.0.0.1:9090")));
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].starts_with("--ingest-listen: `ingest.listen`: 127.0.0.1:9090 is also"),
        "{errors:?}"
    );
    let any_port = flags(&[
        ("ingest.listen", "127.0.0.1:0"),
        ("grpc.listen", "127.0.0.1:0"),
    ]);
    assert!(load(&any_port).is_ok());
}

#[test]
fn a_single_body_fits_into_the_memory_for_all() {
    let load = |all| {
        let answers = ("grpc.answers_bytes_max", "2GiB");
        load(&flags(&[
            ("ingest.body_bytes_max", "64MiB"),
            ("ingest.inflight_bytes_max", all),
            answers,
        ]))
    };
    assert!(load("64MiB").is_ok());
    let errors = errors_of(load("63MiB"));
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].contains("63MiB is less than `ingest.body_bytes_max`, 64MiB"),
        "{errors:?}"
    );
}

#[test]
fn all_problems_are_reported_at_once_each_on_one_line() {
    let text = "data_dir = 1\n\"un\\nknown\" = 1\n[ingest]\nbody_timeout = \"1 fortnight\"\nheaders_max = 0\n[what]\n";
    let mut sources = variable("BLOBCAST_NONSENSE", "x");
    sources
        .flags
        .push(("admin.listen".into(), "0.0.0.0:1".into()));
    let errors = errors_of(load_with_file(text, sources));
    let places: Vec<_> = errors
        .iter()
        .map(|error| error.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        places,
        [
            "blobcast.toml:1",
            "blobcast.toml:2",
            "blobcast.toml:4",
            "blobcast.toml:6",
            "environment variable BLOBCAST_NONSENSE",
            "blobcast.toml:5",
            "--admin-listen",
        ]
    );
}

#[test]
fn a_consent_that_cannot_be_read_is_one_problem_not_two() {
    let sources = flags(&[
        ("grpc.listen", "0.0.0.0:1"),
        ("grpc.allow_anonymous", "yes"),
    ]);
    assert_eq!(errors_of(load(&sources)).len(), 1);
}

#[test]
fn a_public_url_is_http_without_query_and_loses_its_last_slash() {
    let url = |raw| load(&flag("public_url", raw)).map(|config| config.public_url);
    assert_eq!(url("").unwrap(), None);
    assert_eq!(
        url("https://hooks.example.com/").unwrap().as_deref(),
        Some("https://hooks.example.com")
    );
    assert_eq!(
        url("http://10.0.0.1:8080/in//").unwrap().as_deref(),
        Some("http://10.0.0.1:8080/in")
    );
    for wrong in [
        "example.com",
        "ftp://example.com",
        "https://",
        "https:///x",
        "https://:80",
        "https://a/?x=1",
        "https://a/#x",
        "https://a b",
        "https://user:secret@a",
        "https://a\n",
    ] {
        let errors = url(wrong).unwrap_err();
        assert_eq!(errors.problems.len(), 1, "{wrong}");
        assert_eq!(errors.to_string().lines().count(), 1, "{wrong}");
    }
}

#[test]
fn an_otlp_endpoint_is_http_without_a_path() {
    let endpoint =
        |raw| load(&flag("traces.otlp_endpoint", raw)).map(|config| config.traces.otlp_endpoint);
    assert_eq!(endpoint("").unwrap(), None);
    assert_eq!(
        endpoint("http://127.0.0.1:4317/").unwrap().as_deref(),
        Some("http://127.0.0.1:4317")
    );
    for good in ["https://collector", "http://[::1]:65535", "http://[::1]"] {
        assert_eq!(endpoint(good).unwrap().as_deref(), Some(good));
    }
    for (wrong, why) in [
        ("localhost:4317", "must begin with http:// or https://"),
        (
            "http://localhost:4318/v1/traces",
            "must have no path: traces are sent by gRPC",
        ),
        ("http://localhost:65536", "has an invalid port"),
        ("http://localhost:", "has an invalid port"),
        ("http://local[host", "has an invalid host"),
        (
            "http://user:secret@localhost",
            "must not carry a user name or password",
        ),
    ] {
        let errors = errors_of(load(&flag("traces.otlp_endpoint", wrong)));
        assert!(
            errors.len() == 1 && errors[0].contains("--traces-otlp-endpoint"),
            "{errors:?}"
        );
        assert!(
            errors[0].contains("is not an OTLP endpoint: it ") && errors[0].contains(why),
            "{errors:?}"
        );
    }
}

#[test]
fn a_secret_in_a_url_is_not_repeated() {
    for key in ["public_url", "traces.otlp_endpoint"] {
        for (raw, told) in [
            ("https://user:hunter2@a/b", "\"https://…@a/b\""),
            ("https://user:hunter2/@hunter2@a", "\"https://…@a\""),
            ("user:hunter2@a", "\"…@a\""),
            ("ftp://hunter2@a?hunter2", "\"ftp://…@a?…\""),
            ("https://a/?token=hunter2", "\"https://a/?…\""),
            ("https://a/#hunter2", "\"https://a/#…\""),
        ] {
            let line = line_of(key, raw);
            for errors in [
                errors_of(load(&flag(key, raw))),
                errors_of(load_file(&line)),
            ] {
                assert!(errors.len() == 1 && errors[0].contains(told), "{errors:?}");
                assert!(!errors[0].contains("hunter2"), "{errors:?}");
            }
        }
    }
}

#[test]
fn a_ratio_is_from_0_to_1() {
    for (raw, number) in [
        ("0", 0.0),
        ("1", 1.0),
        ("1.0", 1.0),
        ("0.25", 0.25),
        ("1e-3", 0.001),
    ] {
        let of_flag = load(&flag("traces.sampling_ratio", raw)).unwrap();
        let of_file = load_file(&line_of("traces.sampling_ratio", raw)).unwrap();
        assert_eq!(
            [of_flag, of_file].map(|config| config.traces.sampling_ratio.get()),
            [number; 2]
        );
    }
    for wrong in ["-0.1", "-1", "1.0000001", "2", "NaN", "inf", "", "half"] {
        let errors = errors_of(load(&flag("traces.sampling_ratio", wrong)));
        assert!(
            errors.len() == 1 && errors[0].contains("it is a number from 0 to 1"),
            "{errors:?}"
        );
    }
}

#[test]
fn a_log_filter_beyond_ascii_is_refused_rather_than_a_panic() {
    let errors = errors_of(load(&flag("logging.level", "ab\u{b84ba}=k.p")));
    assert!(
        errors[0].contains("it has characters other than ASCII"),
        "{errors:?}"
    );
}

#[test]
fn sizes_are_whole_numbers_with_binary_units() {
    for (text, bytes) in [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1KiB", 1024),
        (" 2 MiB ", 2 << 20),
        ("3GiB", 3 << 30),
    ] {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    assert_eq!(parse_size("18446744073709551615"), Ok(u64::MAX));
    for wrong in [
        "",
        "MiB",
        "-1",
        "1.5MiB",
        "1MB",
        "1mib",
        "1M",
        "1 KiB B",
        "18446744073709551616",
        "16777216TiB",
    ] {
        assert!(parse_size(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_duration_needs_its_unit() {
    assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
    assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
    for wrong in ["", "5", "5 fortnights", "-1s", "s"] {
        assert!(parse_duration(wrong).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn a_size_reads_back_as_it_is_printed(bytes: u64, unit in 0..5_u32) {
        let bytes = (bytes >> (10 * unit)) << (10 * unit);
        prop_assert_eq!(parse_size(&size_text(bytes)), Ok(bytes));
    }

    #[test]
    fn a_size_is_its_number_times_its_unit(number in 0..1_u64 << 24, unit in 0..5_u32, space in " ?") {
        let name = ["B", "KiB", "MiB", "GiB", "TiB"][unit as usize];
        let bytes = u128::from(number) << (10 * unit);
        prop_assert_eq!(parse_size(&format!("{number}{space}{name}")).ok(), u64::try_from(bytes).ok());
    }

    #[test]
    fn a_duration_reads_back_as_it_is_printed(seconds in 0..400_000_000_u64, nanoseconds in 0..1_000_000_000_u32) {
        for duration in [Duration::from_secs(seconds), Duration::new(seconds, nanoseconds)] {
            prop_assert_eq!(parse_duration(&duration_text(duration.as_nanos())), Ok(duration));
        }
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in ".{0,40}") {
        drop((parse_size(&text), parse_duration(&text), parse_listen(&text)));
        for key in ["public_url", "hub.ring_bytes_max", "logging.level", "grpc.products_max", &text] {
            drop(load(&flag(key, &text)));
        }
    }

    #[test]
    fn no_file_makes_the_loader_panic_and_every_error_is_one_line(text in "([a-z.\"\\[\\]={}# \n]|[ -~é]){0,120}") {
        if let Err(errors) = load_file(&text) {
            prop_assert_eq!(errors.to_string().lines().count(), errors.problems.len());
        }
    }
}
