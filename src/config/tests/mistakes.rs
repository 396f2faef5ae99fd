//! Mistakes: unknown keys, wrong types and files that cannot be read, each with its place and the next step.

use super::*;

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
