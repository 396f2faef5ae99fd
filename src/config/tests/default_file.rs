//! The default file: the schema, the documentation and the values of every key.

use super::*;

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
        "cluster",
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
