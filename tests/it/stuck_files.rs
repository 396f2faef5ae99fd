//! Watched files are replaced by FIFOs, devices and other unreadable things: the broker keeps its
//! last good content, and applies a repaired file at once. The fixture's watchdog checks that no
//! serving thread waits for a file.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::Signal,
};
use tonic::{Request, metadata::MetadataValue};

use crate::{
    support::{
        ANY_PORT, Authority, Cli, CredentialsFile, Options, Server, completed, until, within,
    },
    tls::shown,
};
use blobcast::wire::v1::GetLogInfoRequest;

/// Largest credentials file.
const CREDENTIALS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most that may be added to the broker's memory by whatever is in a file's place.
const GROWTH_KIB_MAX: u64 = 64 * 1024;

/// What may be in a file's place.
#[derive(Clone, Copy, Debug)]
enum Bad {
    Fifo,
    Endless,
    Directory,
    Missing,
    Large(usize),
    NoText,
}

const EACH: [Bad; 6] = [
    Bad::Fifo,
    Bad::Endless,
    Bad::Directory,
    Bad::Missing,
    Bad::Large(CREDENTIALS_BYTES_MAX + 1),
    Bad::NoText,
];

impl Bad {
    /// Puts it there.
    fn replace(self, path: &Path) {
        clear(path);
        match self {
            Self::Fifo => mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
            Self::Endless => symlink("/dev/zero", path).unwrap(),
            Self::Directory => fs::create_dir(path).unwrap(),
            Self::Missing => {}
            Self::Large(bytes) => fs::write(path, "#".repeat(bytes)).unwrap(),
            Self::NoText => fs::write(path, [0xff]).unwrap(),
        }
    }
}

/// Makes room for another file.
fn clear(path: &Path) {
    if fs::remove_file(path).is_err() {
        let _ = fs::remove_dir(path);
    }
}

async fn refused(server: &Server, what: &str) -> f64 {
    server
        .metric(&format!(
            "blobcast_reloads_total{{result=\"refused\",what=\"{what}\"}}"
        ))
        .await
}

async fn until_refused(server: &Server, what: &str, before: f64, why: Bad) {
    until(&format!("{why:?} to be refused"), async || {
        refused(server, what).await > before
    })
    .await;
}

fn memory_kib(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn calls(server: &Server, token: &str) -> bool {
    let mut request = Request::new(GetLogInfoRequest::default());
    let bearer: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    within("a call", server.events().await.get_log_info(request))
        .await
        .is_ok()
}

#[tokio::test]
async fn whatever_is_in_the_place_of_the_credentials_those_in_force_stay_until_others_can_be_read()
{
    let mut file = CredentialsFile::new();
    let (callback, client) = (
        file.add("callback hook").await,
        file.add("client billing --all-products").await,
    );
    let (path, all) = (file.path(), fs::read_to_string(file.path()).unwrap());
    let server = Options::default()
        .set("credentials_file", path.display())
        .start()
        .await;
    let post = async |task: &str| {
        let path = format!("/webhook/veo?token={callback}");
        within(
            "an answer",
            server.http().post_to(&path, completed(task).to_string()),
        )
        .await
        .status
    };
    let memory = memory_kib(&server);

    for bad in EACH {
        let before = refused(&server, "credentials").await;
        bad.replace(&path);
        until_refused(&server, "credentials", before, bad).await;
        assert_eq!(post(&format!("{bad:?}")[..3]).await, 200, "{bad:?}");
        assert!(calls(&server, &client).await, "{bad:?}");
        assert_eq!(server.admin_get("/livez").await.0, 200, "{bad:?}");

        // What is revoked behind it is refused.
        clear(&path);
        fs::write(
            &path,
            all.lines()
                .filter(|line| !line.contains("billing"))
                .collect::<Vec<_>>()
                .join("\n"),
        )
        .unwrap();
        until("the revocation", async || !calls(&server, &client).await).await;
        file.write(&all);
        until("the client to be known again", async || {
            calls(&server, &client).await
        })
        .await;
    }
    let grown = memory_kib(&server) - memory;
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB more");
}

/// Threads that read files.
fn reading(server: &Server) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim() == "aside").count()
}

#[tokio::test]
async fn credentials_that_are_being_written_in_place_stay_in_force() {
    let mut file = CredentialsFile::new();
    let client = file.add("client billing --all-products").await;
    let text = fs::read_to_string(file.path()).unwrap();
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let done = async || {
        server
            .metric("blobcast_reloads_total{result=\"done\",what=\"credentials\"}")
            .await
    };

    // An editor empties the file first and takes a while to write it.
    fs::write(file.path(), "").unwrap();
    until("the empty file to be seen", async || {
        reading(&server) > 0 || done().await > 0.0
    })
    .await;
    assert!(calls(&server, &client).await);
    fs::write(file.path(), &text).unwrap();
    until("the file to be read", async || done().await > 0.0).await;
    assert!(calls(&server, &client).await);
    assert!(!server.log().contains(" 0 clients"), "{}", server.log());

    // One that stays empty counts.
    fs::write(file.path(), "").unwrap();
    until("the client to be gone", async || {
        !calls(&server, &client).await
    })
    .await;
}

#[tokio::test]
async fn a_credentials_file_may_be_as_large_as_its_limit() {
    let mut file = CredentialsFile::new();
    let client = file.add("client billing --all-products").await;
    let text = fs::read_to_string(file.path()).unwrap();
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    file.write("");
    until("the client to be gone", async || {
        !calls(&server, &client).await
    })
    .await;
    file.write(&format!(
        "{text}{}",
        "#".repeat(CREDENTIALS_BYTES_MAX - text.len())
    ));
    until("the client to be known again", async || {
        calls(&server, &client).await
    })
    .await;
}

#[tokio::test]
async fn whatever_is_in_the_place_of_a_certificate_the_one_in_force_is_shown_until_another_can_be_read()
 {
    let authority = Authority::new();
    let issued = authority.issue("server", "localhost");
    // The tests' clients read the authority's own.
    let client_ca = issued.certificate.with_file_name("client-ca.pem");
    fs::copy(authority.ca_file(), &client_ca).unwrap();
    let options = Options::default()
        .set("grpc.tls_certificate_file", issued.certificate.display())
        .set("grpc.tls_key_file", issued.key.display())
        .set("grpc.tls_client_ca_file", client_ca.display());
    let server = options.start().await;
    let shown = async || shown(server.grpc, &authority).await;

    let files: [PathBuf; 3] = [issued.certificate.clone(), issued.key.clone(), client_ca];
    for (path, bad) in files
        .iter()
        .flat_map(|path| [(path, Bad::Fifo), (path, Bad::Endless)])
    {
        let what = if path.ends_with("client-ca.pem") {
            "client_ca"
        } else {
            "certificates"
        };
        let (old, text, before) = (
            shown().await,
            fs::read_to_string(path).unwrap(),
            refused(&server, what).await,
        );
        bad.replace(path);
        until_refused(&server, what, before, bad).await;
        assert_eq!(shown().await, old, "{bad:?} at {}", path.display());
        assert_eq!(server.http().post(&completed("t1")).await.status, 200);

        clear(path);
        fs::write(path, text).unwrap();
        authority.issue("server", "localhost");
        until("another certificate", async || shown().await != old).await;
    }
}

#[tokio::test]
async fn whatever_is_in_the_place_of_the_configuration_the_one_in_force_stays_until_another_can_be_read()
 {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blobcast.toml");
    fs::write(&path, "").unwrap();
    let mut server = Options::default()
        .set("config", path.display())
        .start()
        .await;
    for bad in EACH {
        let before = refused(&server, "configuration").await;
        bad.replace(&path);
        server.signal(Signal::HUP);
        until_refused(&server, "configuration", before, bad).await;
        assert_eq!(
            server.http().post(&completed("t1")).await.status,
            200,
            "{bad:?}"
        );
    }
    clear(&path);
    fs::write(&path, "[logging]\nlevel = \"warn\"\n").unwrap();
    server.signal(Signal::HUP);
    let done = "blobcast_reloads_total{result=\"done\",what=\"configuration\"}";
    until("the configuration", async || {
        server.metric(done).await == 1.0
    })
    .await;
    assert!(server.terminate().await.success());
}

#[tokio::test]
async fn nothing_starts_with_such_files_and_the_reason_is_given_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    for bad in [Bad::Fifo, Bad::Endless, Bad::Directory] {
        bad.replace(&path);
        let check = Cli::new("check-config")
            .env("BLOBCAST_CONFIG", path.display())
            .run()
            .await;
        assert!(check.exited(1).contains("cannot be read"), "{check:?}");
        for key in ["credentials_file", "ingest.tls_certificate_file"] {
            let options = Options::default()
                .set(key, path.display())
                .set("ingest.tls_key_file", path.display());
            let options = if key == "credentials_file" {
                Options::default().set(key, path.display())
            } else {
                options
            };
            let mut command = options.command(&directory.path().join("data"), [ANY_PORT; 3]);
            let ended = tokio::task::spawn_blocking(move || command.output().unwrap());
            let ended = within("its end", ended).await.unwrap();
            let said = String::from_utf8(ended.stderr).unwrap();
            assert_eq!(ended.status.code(), Some(1), "{said}");
            assert!(
                said.contains("it is not a regular file")
                    || said.to_lowercase().contains("is a directory"),
                "{said}"
            );
        }
    }
}
