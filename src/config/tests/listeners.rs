//! Listeners: who may reach them, their certificates, and the rules between their keys.

use super::*;

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
fn origins_of_pages_are_written_as_browsers_send_them() {
    for right in [
        "https://app.example.com",
        "http://127.0.0.1:3000",
        "http://[::1]:1",
        "",
    ] {
        assert!(load(&flag("grpc.cors_origins", right)).is_ok(), "{right}");
    }
    for wrong in [
        "*",
        "null",
        "app.example.com",
        "https://a/",
        "https://A.example",
        "ftp://a",
    ] {
        let errors = errors_of(load(&flag("grpc.cors_origins", wrong)));
        assert!(errors[0].contains("is no origin"), "{errors:?}");
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
