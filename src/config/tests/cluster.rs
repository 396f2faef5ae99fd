//! The section of the cluster.

use super::*;

fn only_error(sources: &ConfigSources) -> String {
    let mut errors = errors_of(load(sources));
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

#[test]
fn a_broker_is_alone_unless_servers_are_named() {
    assert!(!default_config().cluster.is_on());
    let config = load(&flag("cluster.servers", "nats://a:4222/, tls://b")).unwrap();
    assert!(config.cluster.is_on());
    assert_eq!(config.cluster.servers, ["nats://a:4222", "tls://b"]);
}

#[test]
fn a_server_is_an_address_without_secrets() {
    for (wrong, why) in [
        ("a:4222", "must begin with nats:// or tls://"),
        ("http://a:4222", "must begin with nats:// or tls://"),
        ("nats://", "names no host"),
        ("nats://:4222", "names no host"),
        (
            "nats://user:secret@a",
            "must not carry a user name or password",
        ),
        ("nats://a:x", "must have a host"),
        ("nats://a/b", "must have a host"),
        ("nats://a?x=1", "must have a host"),
    ] {
        let error = only_error(&flag("cluster.servers", &format!("nats://good,{wrong}")));
        assert!(
            error.starts_with("--cluster: `cluster.servers`: ") && error.contains(why),
            "{error}"
        );
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn the_flags_are_named_as_they_are_written() {
    for (key, flag_name, wrong) in [
        ("cluster.name", "--cluster-name", "a.b"),
        ("cluster.name", "--cluster-name", ""),
        ("cluster.node", "--node", "a b"),
    ] {
        let error = only_error(&flag(key, wrong));
        assert!(
            error.starts_with(&format!("{flag_name}: `{key}`: ")),
            "{error}"
        );
    }
    let long = "x".repeat(33);
    assert!(only_error(&flag("cluster.name", &long)).contains("1 to 32"));
    assert!(load(&flag("cluster.node", &long)).is_ok());
}

#[test]
fn a_key_of_a_cluster_without_servers_is_refused_and_not_ignored() {
    let variable = variable("BLOBCAST_CLUSTER__NODE", "a");
    for (sources, begin) in [
        // Also if it is the default: who writes it means a cluster.
        (
            only_flags(&[("cluster.name", "main")]),
            "--cluster-name: `cluster.name`: ",
        ),
        (
            only_flags(&[("cluster.node", "a")]),
            "--node: `cluster.node`: ",
        ),
        (
            variable,
            "environment variable BLOBCAST_CLUSTER__NODE: `cluster.node`: ",
        ),
    ] {
        let error = only_error(&sources);
        assert!(error.starts_with(begin), "{error}");
        for part in ["would be alone", "`cluster.servers`", "--cluster)"] {
            assert!(error.contains(part), "{error}");
        }
    }
    let in_file = errors_of(load_file("[cluster]\nsync = \"warn\"\nname = \"main\""));
    assert_eq!(in_file.len(), 1, "{in_file:?}");
    assert!(in_file[0].starts_with("blobcast.toml:2: `cluster.sync`: "));

    // Servers that cannot be read are enough to say.
    let error = only_error(&flags(&[("cluster.servers", "x"), ("cluster.node", "a")]));
    assert!(error.contains("must begin with nats://"), "{error}");
}

#[test]
fn a_user_and_its_password_go_together() {
    let (user, password) = (("cluster.user", "u"), ("cluster.password_file", "/p"));
    for (lonely, missing) in [(user, password), (password, user)] {
        let error = only_error(&flags(&[lonely]));
        assert!(
            error.contains(lonely.0) && error.contains(&format!("`{}`", missing.0)),
            "{error}"
        );
    }
    assert!(load(&flags(&[user, password])).is_ok());
}

#[test]
fn the_stream_has_room_for_one_and_a_half_logs_and_the_quarantine() {
    const GIB: u64 = 1 << 30;
    assert_eq!(default_config().stream_bytes_max(), 16 * GIB);
    let config = load(&flag("cluster.stream_bytes_max", "2GiB")).unwrap();
    assert_eq!(config.stream_bytes_max(), 2 * GIB);
}
