//! Ranges: each limit on both of its sides, and limits that depend on each other.

use super::*;

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
    ("cluster.replicas", ["0", "1"], Some(["5", "6"])),
    (
        "cluster.frame_bytes_max",
        ["65535", "64KiB"],
        Some(["8MiB", "8388609"]),
    ),
    (
        "cluster.publish_timeout",
        ["99ms", "100ms"],
        Some(["5m", "5m 1ns"]),
    ),
    (
        "cluster.forward_timeout",
        ["99ms", "100ms"],
        Some(["5m", "5m 1ns"]),
    ),
    ("cluster.read_wait", ["-1s", "0s"], Some(["5m", "5m 1ns"])),
    ("cluster.stream_bytes_max", ["1048575", "1MiB"], None),
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
            // Empty: derived from others.
            Value::String(_) if key == "cluster.stream_bytes_max" => true,
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
fn the_keys_that_all_nodes_have_to_share_are_keys_and_their_hashes_follow_their_values() {
    let mut config = default_config();
    let before = config.of_all_nodes();
    for name in super::super::keys::OF_ALL_NODES {
        assert!(before.contains_key(name), "{name}");
    }
    assert!(before.contains_key("reconcile.enabled") && !before.contains_key("cluster.node"));
    assert!(before.keys().any(|name| name.starts_with("quarantine.")));
    config.log.retention_bytes_max += 1;
    config.cluster.node = "b".into();
    let after = config.of_all_nodes();
    let changed: Vec<_> = before
        .keys()
        .filter(|key| before[*key] != after[*key])
        .collect();
    assert_eq!(changed, ["log.retention_bytes_max"]);
}
