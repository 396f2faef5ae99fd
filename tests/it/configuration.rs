//! Configuration of the real binary: precedence of the layers, error messages, and that the printed
//! default file is valid.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use crate::support::{Cli, Options, Ran, Server, fatal};

/// A directory with a configuration file in it.
fn file(text: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blobcast.toml");
    fs::write(&path, text).unwrap();
    (directory, path)
}

fn summary(ran: &Ran) -> &str {
    ran.good().trim_end()
}

#[tokio::test]
async fn flags_go_over_the_environment_over_the_file_over_the_defaults() {
    let (_directory, path) = file(
        "data_dir = \"from-file\"\n[ingest]\nlisten = \"127.0.0.1:1001\"\n[grpc]\nlisten = \"127.0.0.1:1002\"\n",
    );
    let checked = |line: &str| Cli::new(line).arg("--config").arg(&path);
    let ran = Cli::new("check-config").run().await;
    let text = "the configuration is good: callbacks on 127.0.0.1:8080, gRPC on 127.0.0.1:50051, \
                admin on 127.0.0.1:9090, data in ./blobcast-data";
    assert_eq!(summary(&ran), text);
    let ran = checked("check-config").run().await;
    let text = "the configuration is good: callbacks on 127.0.0.1:1001, gRPC on 127.0.0.1:1002, \
                admin on 127.0.0.1:9090, data in from-file";
    assert_eq!(summary(&ran), text);
    let line = "check-config --ingest-listen 127.0.0.1:3001 --data-dir from-flag";
    let ran = checked(line)
        .env("BLOBCAST_INGEST__LISTEN", "127.0.0.1:2001")
        .env("BLOBCAST_GRPC__LISTEN", "127.0.0.1:2002")
        .env("BLOBCAST_DATA_DIR", "from-environment")
        .run()
        .await;
    let text = "the configuration is good: callbacks on 127.0.0.1:3001, gRPC on 127.0.0.1:2002, \
                admin on 127.0.0.1:9090, data in from-flag";
    assert_eq!(summary(&ran), text);
    // The variable names the file, and the flag goes before it.
    let by_variable = Cli::new("check-config")
        .env("BLOBCAST_CONFIG", path.display())
        .run()
        .await;
    assert!(summary(&by_variable).contains("from-file"));
    let (_other, other) = file("data_dir = \"other\"");
    let by_flag = Cli::new("check-config --config")
        .arg(&other)
        .env("BLOBCAST_CONFIG", path.display())
        .run()
        .await;
    assert!(summary(&by_flag).contains("data in other"));
}

#[tokio::test]
async fn serve_runs_with_what_check_config_checks() {
    let (_directory, path) =
        file("[ingest]\nbody_bytes_max = \"1KiB\"\n[grpc]\ntask_ids_max = 2\n");
    // The fixture's flags give the addresses; the file's limits hold, and the environment goes over it.
    let server = Options::default()
        .set("config", path.display())
        .set("grpc.task_ids_max", 3)
        .start()
        .await;
    assert_eq!(
        server
            .http()
            .post_to("/webhook/veo", "x".repeat(1025))
            .await
            .status,
        413
    );
    let limits = server
        .subscribe(crate::support::request())
        .await
        .subscribed
        .limits
        .unwrap();
    assert_eq!(limits.task_ids_max, 3);
    assert_eq!(
        Server::start()
            .await
            .http()
            .post_to("/webhook/veo", "x".repeat(1025))
            .await
            .status,
        202
    );
}

#[tokio::test]
async fn an_unknown_key_is_named_with_its_line_and_the_nearest_key() {
    let text = "# mine\n[ingest]\nlisten = \"127.0.0.1:1\"\nbody_byte_max = \"1MiB\"\n\n[gprc]\nlisten = \"127.0.0.1:2\"\n";
    let (_directory, path) = file(text);
    for verb in ["check-config", "serve"] {
        let ran = Cli::new(&format!("{verb} --config")).arg(&path).run().await;
        let said = if verb == "serve" {
            fatal(ran.exited(1).as_bytes())
        } else {
            ran.exited(1).to_owned()
        };
        let lines: Vec<_> = said.trim_end().lines().collect();
        assert_eq!(lines.len(), 2, "one line for each problem: {said}");
        let path = path.display();
        assert!(
            lines[0].contains(&format!("{path}:4: `ingest.body_byte_max`: ")),
            "{said}"
        );
        assert!(
            lines[0].contains("did you mean `ingest.body_bytes_max`"),
            "{said}"
        );
        assert!(
            lines[1].contains(&format!("{path}:6: `gprc`: "))
                && lines[1].contains("did you mean `[grpc]`"),
            "{said}"
        );
        assert_eq!(ran.stdout, "");
    }
    let ran = Cli::new("check-config")
        .env("BLOBCAST_INGEST__LISTN", "127.0.0.1:1")
        .run()
        .await;
    let said = ran.exited(1);
    assert!(
        said.contains("environment variable BLOBCAST_INGEST__LISTN: "),
        "{said}"
    );
    assert!(
        said.contains("BLOBCAST_INGEST__LISTEN") || said.contains("`ingest.listen`"),
        "{said}"
    );
}

#[tokio::test]
async fn all_mistakes_are_listed_at_once_each_with_its_place_and_what_to_do() {
    let (_directory, path) =
        file("[log]\nretention_age_max = \"a week\"\n[grpc]\nsubscriptions_max = 0\n");
    let line = "check-config --ingest-listen nowhere --config";
    let ran = Cli::new(line)
        .arg(&path)
        .env("BLOBCAST_INGEST__BODY_BYTES_MAX", "1 parsec")
        .run()
        .await;
    let said = ran.exited(1);
    for part in [
        ":2: `log.retention_age_max`: ",
        ":4: `grpc.subscriptions_max`: 0 is out of range, which is 1 to 10000000",
        "--ingest-listen: ",
        "environment variable BLOBCAST_INGEST__BODY_BYTES_MAX: ",
    ] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    assert_eq!(said.trim_end().lines().count(), 4, "{said}");
    assert!(
        said.trim_end().lines().all(|line| line.contains("; ")),
        "a remedy for each: {said}"
    );
}

#[tokio::test]
async fn a_file_that_is_missing_or_not_toml_is_named() {
    let ran = Cli::new("serve --config /no/such/file.toml").run().await;
    let said = fatal(ran.exited(1).as_bytes());
    assert!(
        said.starts_with("/no/such/file.toml: ") && said.contains("No such file"),
        "{said}"
    );
    let (_directory, path) = file("[ingest\nlisten = 1\n");
    let ran = Cli::new("check-config --config").arg(&path).run().await;
    let said = ran.exited(1);
    assert!(said.contains(&format!("{}:1:", path.display())), "{said}");
}

#[tokio::test]
async fn the_printed_default_file_is_a_valid_file_that_changes_nothing() {
    let printed = Cli::new("check-config --print-default").run().await;
    assert_eq!(
        printed.good(),
        include_str!("../../src/config/default.toml")
    );
    let (directory, path) = file(printed.good());
    let with_file = Cli::new("check-config --config")
        .arg(&path)
        .current_dir(directory.path())
        .run()
        .await;
    let without = Cli::new("check-config")
        .current_dir(directory.path())
        .run()
        .await;
    assert_eq!(with_file.good(), without.good());
    // And as values, not only as far as they are printed.
    let load = |file| {
        blobcast::config::load(&blobcast::config::ConfigSources {
            file,
            ..Default::default()
        })
        .unwrap()
    };
    assert_eq!(load(Some(path)), load(None));
    // Each key of it can be set by the environment to its own default.
    let mut all = Cli::new("check-config").current_dir(directory.path());
    let table: toml::Table = toml::from_str(printed.good()).unwrap();
    for (section, value) in table {
        let keys = match value {
            toml::Value::Table(keys) => keys
                .into_iter()
                .map(|(key, value)| (format!("{section}__{key}"), value))
                .collect(),
            value => vec![(section, value)],
        };
        for (key, value) in keys {
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Array(list) => list
                    .iter()
                    .filter_map(|value| value.as_str())
                    .collect::<Vec<_>>()
                    .join(","),
                toml::Value::Table(table) => table
                    .iter()
                    .filter_map(|(name, value)| Some(format!("{name}={}", value.as_str()?)))
                    .collect::<Vec<_>>()
                    .join(","),
                value => value.to_string(),
            };
            all = all.env(&format!("BLOBCAST_{}", key.to_uppercase()), text);
        }
    }
    assert_eq!(all.run().await.good(), without.good());
}
