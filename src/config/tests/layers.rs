//! The layers: file, then environment, then flags; and what a reload changes.

use super::*;

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
    ("grpc.hosts", ["a.internal", "b", "c.internal:50051"]),
    (
        "grpc.cors_origins",
        ["https://a.example", "http://b:8080", "https://c,https://d"],
    ),
    ("console.media", ["auto", "off", "click"]),
    (
        "console.media_hosts",
        ["a.example", "b", "c.example,d.example"],
    ),
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
        "cluster.servers",
        ["nats://a", "tls://b:4222", "nats://[::1]:4222,nats://c"],
    ),
    ("cluster.name", ["a", "B-1", "c_2"]),
    ("cluster.node", ["a", "B-1", "c_2"]),
    ("cluster.replicas", ["1", "2", "5"]),
    ("cluster.tls_ca_file", ["/a", "b", "/c"]),
    (
        "cluster.monitoring_urls",
        ["http://a:8222", "https://b", "http://[::1]:8222,http://c"],
    ),
    ("cluster.sync", ["warn", "off", "warn"]),
    ("cluster.frame_bytes_max", ["64KiB", "1MiB", "8MiB"]),
    ("cluster.publish_timeout", ["1s", "100ms", "3s"]),
    ("cluster.forward_timeout", ["2s", "100ms", "3s"]),
    ("cluster.read_wait", ["1s", "0s", "3s"]),
    ("cluster.stream_bytes_max", ["1MiB", "2MiB", "3MiB"]),
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
    ("cluster.create", ["false", "true", "false"]),
    ("reconcile.unknown_tasks", ["publish", "ignore", "publish"]),
    ("logging.format", ["text", "json", "text"]),
];

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
    // Valid only with `audit.file` and `credentials_file`, and with each other.
    let together = [
        "audit.required",
        "reconcile.enabled",
        "cluster.user",
        "cluster.password_file",
    ];
    covered.extend(together.map(str::to_owned));
    assert_eq!(
        covered,
        keys().into_iter().collect(),
        "the table covers every key"
    );
    for (key, [in_file, in_environment, in_flag]) in tables {
        // The configuration with this value and defaults otherwise.
        let alone = |value: &str| load(&flag(key, value)).unwrap();
        let line = line_of(key, in_file);
        let needs_servers = key.starts_with("cluster.") && *key != SERVERS.0;
        let beside = if needs_servers {
            vec![SERVERS]
        } else {
            Vec::new()
        };
        let mut sources = flags(&beside);
        let before = load(&sources).unwrap();

        let file = load_with_file(&line, sources.clone()).unwrap();
        assert_eq!(file, alone(in_file), "{key} from the file");
        assert_ne!(file, before, "{key} is read");

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
    let both = load(&flags(&[
        ("cluster.user", "u"),
        ("cluster.password_file", "/p"),
    ]));
    assert_eq!(
        needs_restart(&default_config(), &both.unwrap()),
        ["cluster.servers", "cluster.user", "cluster.password_file"]
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
