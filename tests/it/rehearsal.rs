//! `check-config` reports everything that would keep the broker from starting, as the broker's
//! user, without any effect.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use rustix::process::geteuid;

use crate::support::{Authority, Cli, CredentialsFile, Options, Ran, completed};

/// A user that every machine has, and that owns nothing.
const NOBODY: &str = "nobody";
const NOBODY_ID: u32 = 65_534;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Sets keys for a command line.
fn with(cli: Cli, keys: &[(&str, &str)]) -> Cli {
    keys.iter().fold(cli, |cli, (key, value)| {
        cli.env(
            &format!("BLOBCAST_{}", key.replace('.', "__").to_uppercase()),
            value,
        )
    })
}

/// What is said of each problem, without what comes before it.
fn problems(ran: &Ran) -> Vec<String> {
    let lines = ran
        .exited(1)
        .lines()
        .filter(|line| line.starts_with("error: "));
    lines
        .map(|line| line.trim_start_matches("error: ").to_owned())
        .collect()
}

#[tokio::test]
async fn everything_that_would_keep_the_broker_from_starting_is_listed_at_once_with_the_next_step()
{
    let authority = Authority::new();
    let (one, other) = (
        authority.issue("one", "localhost"),
        authority.issue("other", "localhost"),
    );
    let shelf = tempfile::tempdir().unwrap();
    let path = |name: &str| shelf.path().join(name).display().to_string();
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n";
    fs::write(path("encrypted.key"), encrypted).unwrap();
    fs::write(path("nothing.pem"), "").unwrap();
    let text = |path: &Path| path.display().to_string();
    let (certificate, wrong_key) = (text(&one.certificate), text(&other.key));
    let keys = [
        ("data_dir", path("data")),
        ("credentials_file", path("credentials.toml")),
        ("ingest.tls_certificate_file", certificate.clone()),
        ("ingest.tls_key_file", path("missing.key")),
        ("grpc.tls_certificate_file", certificate.clone()),
        ("grpc.tls_key_file", wrong_key.clone()),
        ("grpc.tls_client_ca_file", path("nothing.pem")),
        ("grpc.tls_client_crl_file", path("nothing.pem")),
        ("admin.tls_certificate_file", path("nothing.pem")),
        ("admin.tls_key_file", path("encrypted.key")),
    ];
    let keys: Vec<_> = keys
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    let told = problems(&with(Cli::new("check-config"), &keys).run().await);
    for parts in [
        [
            "credentials_file: ",
            "credentials.toml: No such file",
            "; put the file there",
        ],
        [
            "ingest.tls_key_file: ",
            "missing.key: No such file",
            "; put the file there",
        ],
        [
            "grpc.tls_key_file: ",
            &format!("{wrong_key} is not the key of {certificate}"),
            "; put the two",
        ],
        [
            "grpc.tls_client_ca_file: ",
            "nothing.pem: there is no certificate in it",
            "; write the",
        ],
        [
            "grpc.tls_client_crl_file: ",
            "nothing.pem: there is no revocation list in it",
            "; write the",
        ],
        [
            "admin.tls_certificate_file: ",
            "nothing.pem: there is no certificate in it",
            "; write the",
        ],
        [
            "admin.tls_key_file: ",
            "encrypted.key: it is encrypted",
            "; write it without a passphrase",
        ],
    ] {
        assert!(
            told.iter()
                .any(|line| parts.iter().all(|part| line.contains(part))),
            "no {parts:?} in {told:#?}"
        );
    }
    assert_eq!(told.len(), 7, "{told:#?}");

    // That is what `serve` says, too, which is all that it does.
    let serve =
        "serve --ingest-listen 127.0.0.1:0 --grpc-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0";
    let ran = with(Cli::new(serve), &keys).run().await;
    assert!(
        told.iter().all(|problem| ran.exited(1).contains(problem)),
        "{ran:?}"
    );
    assert!(!shelf.path().join("data").exists());
}

#[tokio::test]
async fn the_authority_of_an_acme_directory_is_read_before_the_first_order() {
    let shelf = tempfile::tempdir().unwrap();
    let ca = shelf.path().join("ca.pem");
    let path = ca.display().to_string();
    let keys = [
        ("acme.domains", "hooks.example.com"),
        ("acme.directory_ca_file", path.as_str()),
    ];
    let check = || with(Cli::new("check-config"), &keys).current_dir(shelf.path());
    let told = problems(&check().run().await);
    assert!(
        told[0].contains(&format!("acme.directory_ca_file: {path}: No such file")),
        "{told:?}"
    );
    fs::copy(Authority::new().ca_file(), &ca).unwrap();
    check().run().await.good();
}

#[tokio::test]
async fn credentials_that_ask_for_nothing_are_no_protection_beyond_loopback() {
    let mut file = CredentialsFile::new();
    file.write("");
    let path = file.path().display().to_string();
    let keys = [
        ("credentials_file", path.as_str()),
        ("ingest.listen", "0.0.0.0:0"),
        ("grpc.listen", "[::]:0"),
    ];
    let told = problems(&with(Cli::new("check-config"), &keys).run().await);
    assert!(
        told[0].contains(
            "ingest.listen: 0.0.0.0:0 is not loopback, and nothing is asked of callbacks"
        ),
        "{told:?}"
    );
    assert!(
        told[1].contains("grpc.listen: [::]:0 is not loopback, and nobody is known"),
        "{told:?}"
    );
    assert_eq!(told.len(), 2);
    file.add("callback vendor").await;
    file.add("client billing --all-products").await;
    with(Cli::new("check-config"), &keys).run().await.good();
    file.write("[clients]\nbilling = 7\n");
    let told = problems(&with(Cli::new("check-config"), &keys).run().await);
    assert!(
        told[0].contains(&format!("credentials_file: {path}: ")) && told[0].contains("line 2"),
        "{told:?}"
    );
}

#[tokio::test]
async fn what_the_brokers_user_cannot_read_is_found_by_root() {
    let check = |keys: &[(&str, &str)]| with(Cli::new("check-config --as-user").arg(NOBODY), keys);
    if !geteuid().is_root() {
        let ran = check(&[]).run().await;
        assert!(
            ran.exited(1).contains("only root can check as nobody"),
            "{ran:?}"
        );
        return;
    }
    let shelf = tempfile::tempdir().unwrap();
    set_mode(shelf.path(), 0o755);
    let (secret, data) = (
        shelf.path().join("credentials.toml"),
        shelf.path().join("data"),
    );
    fs::write(&secret, "").unwrap();
    set_mode(&secret, 0o640);
    fs::create_dir(&data).unwrap();
    set_mode(&data, 0o700);
    let segment = data.join("log/000000000001.log");
    fs::create_dir(data.join("log")).unwrap();
    fs::write(&segment, "").unwrap();
    let (of_secret, of_data) = (secret.display().to_string(), data.display().to_string());
    let keys = [
        ("credentials_file", of_secret.as_str()),
        ("data_dir", of_data.as_str()),
    ];
    with(Cli::new("check-config"), &keys).run().await.good();
    let told = problems(&check(&keys).run().await);
    assert!(
        told[0].contains(&format!("credentials_file: {of_secret}: Permission denied")),
        "{told:?}"
    );
    assert!(
        told[0].contains(" has to read it: give it to the broker's group"),
        "{told:?}"
    );
    assert!(
        told[1].contains(&format!("data_dir: {of_data}: Permission denied"))
            && told[1].contains("chown -R"),
        "{told:?}"
    );

    // Its group reads the secret; one file in the directory was left behind by root.
    chown(&secret, None, Some(NOBODY_ID)).unwrap();
    for path in [&data, &data.join("log")] {
        chown(path, Some(NOBODY_ID), None).unwrap();
    }
    set_mode(&segment, 0o600);
    // A mount has these, and a start does not look at them.
    for others in ["lost+found", ".snapshot"] {
        fs::create_dir(data.join(others)).unwrap();
        set_mode(&data.join(others), 0o700);
    }
    let told = problems(&check(&keys).run().await);
    assert!(
        told[0].contains(&format!("{}: Permission denied", segment.display())),
        "{told:?}"
    );
    assert_eq!(told.len(), 1);
    chown(&segment, Some(NOBODY_ID), None).unwrap();
    check(&keys).run().await.good();

    // The configuration is read as that user. Run by root, the command warns that root is not that user.
    let ran = with(Cli::new("check-config"), &keys).run().await;
    assert!(
        ran.good().contains("good") && ran.stderr.contains("check with --as-user nobody"),
        "{ran:?}"
    );
    let config = shelf.path().join("blobcast.toml");
    fs::write(&config, "").unwrap();
    set_mode(&config, 0o600);
    let ran = check(&keys).arg("--config").arg(&config).run().await;
    assert!(
        ran.exited(1).contains("cannot be read: Permission denied"),
        "{ran:?}"
    );
    let (made, below) = (
        shelf.path().join("new"),
        ("data_dir", shelf.path().join("new").display().to_string()),
    );
    let told = problems(&check(&[keys[0], (below.0, &below.1)]).run().await);
    assert!(
        told[0].contains(" cannot make it in ") && !made.exists(),
        "{told:?}"
    );
    let ran = Cli::new("check-config --as-user no-such-user").run().await;
    assert!(
        ran.exited(1).contains("there is no user no-such-user"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn systemds_sockets_are_compared_with_the_listeners() {
    let shelf = tempfile::tempdir().unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    let path = format!("{}:{}", shelf.path().display(), units.display());
    let check = async |keys: &[(&str, &str)]| {
        with(Cli::new("check-config").current_dir(shelf.path()), keys)
            .env("SYSTEMD_UNIT_PATH", &path)
            .run()
            .await
    };
    let ran = check(&[]).await;
    assert!(
        ran.good().contains("good") && ran.warnings().is_empty(),
        "{ran:?}"
    );

    let moved = [("ingest.listen", "127.0.0.1:8443")];
    let ran = check(&moved).await;
    let told =
        "blobcast-ingest.socket listens on 127.0.0.1:8080, and ingest.listen is 127.0.0.1:8443";
    assert!(
        ran.good().contains("good") && ran.stderr.contains(told),
        "{ran:?}"
    );

    let added = shelf.path().join("blobcast-ingest.socket.d");
    fs::create_dir(&added).unwrap();
    fs::write(
        added.join("override.conf"),
        "[Socket]\nListenStream=127.0.0.1:8443\n",
    )
    .unwrap();
    let ran = check(&moved).await;
    assert!(
        ran.stderr
            .contains("of which 127.0.0.1:8443 is answered: it needs one"),
        "{ran:?}"
    );
    fs::write(
        added.join("override.conf"),
        "[Socket]\nListenStream=\nListenStream=127.0.0.1:8443\n",
    )
    .unwrap();
    let ran = check(&moved).await;
    assert!(
        ran.good().contains("good") && ran.warnings().is_empty(),
        "{ran:?}"
    );

    // It is where the socket is that has to be protected.
    fs::write(
        added.join("override.conf"),
        "[Socket]\nListenStream=\nListenStream=443\n",
    )
    .unwrap();
    let told = problems(&check(&[]).await);
    assert!(
        told[0]
            .contains("ingest.listen: [::]:443 is not loopback, and nothing is asked of callbacks"),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_rehearsal_beside_a_running_broker_leaves_it_alone() {
    let server = Options::default().start().await;
    server.http().post(&completed("t1")).await.event_id();
    let (data, [ingest, grpc, admin]) = (
        server.data_dir(),
        [server.ingest, server.grpc, server.admin],
    );
    let before = files_of(&data);
    let check = Cli::new("check-config").arg("--data-dir").arg(&data);
    let check = check
        .arg("--ingest-listen")
        .arg(ingest.to_string())
        .arg("--grpc-listen")
        .arg(grpc.to_string());
    let ran = check
        .arg("--admin-listen")
        .arg(admin.to_string())
        .run()
        .await;
    assert!(
        ran.good().contains("good") && ran.warnings().is_empty(),
        "{ran:?}"
    );
    assert_eq!(files_of(&data), before);
    server.http().post(&completed("t2")).await.event_id();
}

/// Names of what is directly in a directory.
fn files_of(path: &Path) -> Vec<String> {
    let names = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}
