//! Every secret can be rotated while callbacks arrive and streams are open, without a single
//! refusal.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
};

use blobcast::wire::v1::{GetLogInfoRequest, event_service_client::EventServiceClient};
use http_body_util::Full;
use hyper::Request;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tonic::Request as Call;

use crate::support::{Cli, CredentialsFile, Options, Server, Sub, completed, request, until};

async fn post(server: &Server, target: &str, signature: &str, body: &str) -> u16 {
    let request = Request::post(format!("http://{}{target}", server.ingest))
        .header("x-runblob-signature", signature);
    let body = Full::new(bytes::Bytes::copy_from_slice(body.as_bytes()));
    server
        .http()
        .send(request.body(body).unwrap())
        .await
        .unwrap()
        .status
}

async fn calls(server: &Server, token: &str) -> bool {
    let mut call = Call::new(GetLogInfoRequest::default());
    call.metadata_mut()
        .insert("authorization", format!("Bearer {token}").parse().unwrap());
    EventServiceClient::new(server.channel().await)
        .get_log_info(call)
        .await
        .is_ok()
}

fn signature(secret: &str, body: &str) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    ring::hmac::sign(&key, body.as_bytes())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What a rotation has printed.
fn new_secret(printed: &crate::support::Ran) -> String {
    printed.json_lines()[0]["secret"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn used(kind: &str, name: &str, secret: &str) -> String {
    format!(
        "blobcast_credential_last_used_timestamp_seconds{{kind=\"{kind}\",name=\"{name}\",secret=\"{secret}\"}}"
    )
}

#[tokio::test]
async fn a_callback_token_is_rotated_and_each_is_refused_only_when_it_is_retired() {
    let mut file = CredentialsFile::new();
    let old = file.add("callback runblob").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let sends = async |token: &str| {
        let body = completed("t1").to_string();
        post(&server, &format!("/webhook/veo?token={token}"), "", &body).await == 200
    };
    let new = new_secret(&file.change("rotate callback runblob --output json").await);
    until("the new token", async || {
        assert!(sends(&old).await, "at no time is it refused");
        sends(&new).await
    })
    .await;
    assert!(sends(&old).await);
    for secret in ["current", "previous"] {
        assert!(
            server
                .metric(&used("callback_token", "runblob", secret))
                .await
                > 1.7e9,
            "{secret}"
        );
    }
    file.change("retire callback runblob").await;
    until("the end of the old one", async || {
        assert!(sends(&new).await, "at no time is it refused");
        !sends(&old).await
    })
    .await;
}

#[tokio::test]
async fn a_clients_token_is_rotated_under_its_open_stream() {
    let mut file = CredentialsFile::new();
    let old = file.add("client billing --all-products").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let bearer = format!("Bearer {old}");
    let with_token = move |mut call: Call<()>| {
        call.metadata_mut()
            .insert("authorization", bearer.parse().unwrap());
        Ok(call)
    };
    let events = EventServiceClient::with_interceptor(server.channel().await, with_token);
    let mut stream = Sub::open(events, request()).await.unwrap();
    let new = new_secret(&file.change("rotate client billing --output json").await);
    until("the new token", async || {
        assert!(calls(&server, &old).await, "at no time is it refused");
        calls(&server, &new).await
    })
    .await;
    server.http().post(&completed("t1")).await.event_id();
    assert_eq!(
        stream.next_event().await.task_id,
        "t1",
        "the stream goes on"
    );
    // It is all that uses the old one by now.
    let (previous, last_call) = (
        used("client", "billing", "previous"),
        std::time::SystemTime::now(),
    );
    let last_call = last_call
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    until("the stream to count as a use", async || {
        server.metric(&previous).await > last_call
    })
    .await;
    file.change("retire client billing").await;
    until("the end of the old one", async || {
        !calls(&server, &old).await
    })
    .await;
    let (_, status) = stream.end().await.unwrap_err();
    assert_eq!(crate::support::reason(&status), "TOKEN_INVALID");
    assert!(calls(&server, &new).await);
}

#[tokio::test]
async fn a_signing_key_is_rotated_and_urls_that_are_out_stay_good() {
    let mut file = CredentialsFile::new();
    file.add("signing-key k1").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let mint = async || {
        let url = server
            .cli("url --product veo")
            .run()
            .await
            .good()
            .trim_end()
            .to_owned();
        url[url.find("/webhook").unwrap()..].to_owned()
    };
    let body = completed("t1").to_string();
    let old = mint().await;
    file.change("rotate signing-key k1").await;
    until("the new secret to sign", async || {
        assert_eq!(post(&server, &old, "", &body).await, 200);
        post(&server, &mint().await, "", &body).await;
        server.metric(&used("signing_key", "k1", "previous")).await > 0.0
    })
    .await;
    let new = mint().await;
    file.change("retire signing-key k1").await;
    until("the end of the old one", async || {
        post(&server, &old, "", &body).await == 401
    })
    .await;
    assert_eq!(post(&server, &new, "", &body).await, 200);
}

#[tokio::test]
async fn the_vendors_secret_is_rotated_while_bodies_are_signed_by_either() {
    let mut file = CredentialsFile::new();
    file.add_line("body_signature", "secret = \"hunter2\"");
    let options = Options::default().set("credentials_file", file.path().display());
    let server = options
        .set("ingest.body_signature", "require")
        .start()
        .await;
    let body = completed("t1").to_string();
    let sends = async |secret: &str| {
        post(&server, "/webhook/veo", &signature(secret, &body), &body).await == 200
    };
    assert!(sends("hunter2").await && !sends("hunter3").await);
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "hunter3\n").unwrap();
    file.change(&format!(
        "rotate body-signature --secret-file {}",
        secret.display()
    ))
    .await;
    until("the new secret", async || {
        assert!(sends("hunter2").await, "at no time is it refused");
        sends("hunter3").await
    })
    .await;
    assert!(sends("hunter2").await);
    assert!(server.metric(&used("body_signature", "", "previous")).await > 1.7e9);
    file.change("retire body-signature").await;
    until("the end of the old one", async || !sends("hunter2").await).await;
    assert!(sends("hunter3").await);
}

#[tokio::test]
async fn what_expires_is_reported_beforehand_and_no_more_once_it_is_gone() {
    let mut file = CredentialsFile::new();
    file.add("callback runblob --expires-in 30d").await;
    file.add("callback spare").await;
    file.add("client billing --all-products --expires-in 5d")
        .await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let expiries = async || {
        let (_, text) = server.admin_get("/metrics").await;
        let name = "blobcast_credential_expiry_timestamp_seconds{";
        text.lines()
            .filter(|line| line.starts_with(name))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let told = expiries().await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].contains("{kind=\"callback_token\",name=\"runblob\"} ")
            && told[1].contains("name=\"billing\"")
    );
    file.remove("billing");
    until("its end", async || expiries().await.len() == 1).await;
}

#[tokio::test]
async fn the_file_keeps_its_mode_its_link_and_all_else_that_stands_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let (real, link) = (
        directory.path().join("real.toml"),
        directory.path().join("link.toml"),
    );
    let line = Cli::new("token new callback runblob --output json")
        .run()
        .await
        .json_lines()
        .remove(0);
    let text = format!(
        "# the vendor's\n[callback_tokens]\n{} # since spring\n",
        line["line"].as_str().unwrap()
    );
    fs::write(&real, &text).unwrap();
    fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
    symlink(&real, &link).unwrap();
    let run = async |words: &str| {
        let words = format!("token {words} --credentials-file {}", link.display());
        Cli::new(&words).run().await
    };
    let printed = run("rotate callback runblob --keep-old-for 7d").await;
    assert!(
        printed.good().contains("  bcast_") && printed.good().contains("at the latest"),
        "{printed:?}"
    );
    let rotated = fs::read_to_string(&real).unwrap();
    assert!(
        rotated.starts_with("# the vendor's\n[callback_tokens]\n")
            && rotated.ends_with(" # since spring\n")
    );
    assert!(
        rotated.contains("previous = { token = \"sha256:") && !rotated.contains("bcast_"),
        "{rotated}"
    );
    assert_eq!(
        fs::metadata(&real).unwrap().permissions().mode() & 0o777,
        0o640
    );
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        2,
        "nothing is left beside it"
    );

    let shelf = tempfile::tempdir().unwrap();
    let secret = shelf.path().join("secret");
    fs::write(&secret, "hunter3").unwrap();
    for (words, problem) in [
        (
            "rotate callback runblob",
            "the previous secret is still accepted",
        ),
        ("rotate callback other", "has no such name"),
        ("retire client runblob", "has no such name"),
        (
            "rotate body-signature --secret-file SECRET",
            "it has no [body_signature]: write that line",
        ),
        (
            "retire body-signature",
            "it has no [body_signature]: write that line",
        ),
    ] {
        let refused = run(&words.replace("SECRET", &secret.display().to_string())).await;
        assert!(refused.exited(1).contains(problem), "{refused:?}");
        assert_eq!(fs::read_to_string(&real).unwrap(), rotated, "{words}");
    }
    run("retire callback runblob").await.good();
    assert!(!fs::read_to_string(&real).unwrap().contains("previous"));
    let unnamed = Cli::new("token retire callback runblob").run().await;
    assert!(
        unnamed.exited(2).contains("--credentials-file"),
        "{unnamed:?}"
    );
}

#[tokio::test]
async fn a_secret_of_the_vendors_is_taken_whole_or_not_at_all() {
    const BYTES_MAX: usize = 4 * 1024;
    let directory = tempfile::tempdir().unwrap();
    let (file, secret) = (
        directory.path().join("credentials.toml"),
        directory.path().join("secret"),
    );
    let text = "[body_signature]\nsecret = \"hunter2\"\n";
    let rotate = |from: &str| {
        fs::write(&file, text).unwrap();
        let line = format!(
            "token rotate body-signature --secret-file {from} --credentials-file {}",
            file.display()
        );
        Cli::new(&line)
    };
    let by_file = secret.display().to_string();

    for (bytes, refusal) in [
        (BYTES_MAX, None),
        (BYTES_MAX + 1, Some("it has more than 4096 bytes")),
    ] {
        let long = "s".repeat(bytes);
        fs::write(&secret, &long).unwrap();
        for is_by_file in [true, false] {
            let command = if is_by_file {
                rotate(&by_file)
            } else {
                rotate("-").stdin(long.clone())
            };
            let ran = command.run().await;
            match refusal {
                None => {
                    ran.good();
                    assert!(
                        fs::read_to_string(&file)
                            .unwrap()
                            .contains(&format!("secret = \"{long}\""))
                    );
                }
                Some(refusal) => {
                    assert!(ran.exited(1).contains(refusal), "{ran:?}");
                    assert_eq!(fs::read_to_string(&file).unwrap(), text);
                }
            }
        }
    }

    // Nobody writes to this one: to wait for it would be to wait for ever.
    fs::remove_file(&secret).unwrap();
    mknodat(CWD, &secret, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let refused = rotate(&by_file).run().await;
    assert!(
        refused
            .exited(1)
            .contains("it is not a regular file; name a regular file"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_credentials_file_that_cannot_be_read_is_named_with_the_next_step() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none.toml");
    for verb in ["rotate", "retire"] {
        let refused = Cli::new(&format!(
            "token {verb} client billing --credentials-file {}",
            missing.display()
        ))
        .run()
        .await;
        let told = format!(
            "cannot read the credentials file {}: No such file",
            missing.display()
        );
        let error = refused.exited(1);
        assert!(
            error.contains(&told) && error.contains("; correct the path"),
            "{refused:?}"
        );
    }
}
