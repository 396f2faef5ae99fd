//! Keys for the vendor's API in the credentials file: their lines, their files, and that no key is ever shown.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{Cli, CredentialsFile, Options, Server, until};

/// Files that hold a secret and nothing else.
fn write_key(path: &Path, key: &str) {
    let new = path.with_extension("new");
    fs::write(&new, format!("{key}\n")).unwrap();
    fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

/// A vendor that takes no key, and repeats the one that it got in its answer.
async fn refusing_vendor() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let (length, close) = (request.len(), "connection: close");
            let answer = format!(
                "HTTP/1.1 401 {close}\r\n{close}\r\ncontent-length: {length}\r\n\r\n{request}"
            );
            // It may be gone.
            let _ = stream.write_all(answer.as_bytes()).await.is_ok();
        }
    });
    url
}

async fn says(server: &Server, text: &str) {
    until(text, async || server.log().contains(text)).await;
}

#[tokio::test]
async fn the_lines_of_a_vendors_key_are_printed_as_the_broker_reads_them() {
    let shelf = tempfile::tempdir().unwrap();
    let new = |words: &str| Cli::new(&format!("token new vendor-key {words}"));

    // A file is named by its whole path, and not read.
    let ran = new("main --product veo --product sora --key-file runblob-key --output json")
        .current_dir(shelf.path())
        .run()
        .await;
    let path = shelf.path().canonicalize().unwrap().join("runblob-key");
    let made = ran.json_lines().remove(0);
    assert_eq!(
        made["line"],
        format!(
            "[[vendor_keys]]\nname = \"main\"\nkey_file = \"{}\"\nproducts = [\"veo\", \"sora\"]\n",
            path.display()
        )
    );
    assert_eq!([&made["section"], &made["name"]], ["vendor_keys", "main"]);

    let ran = new("main --key-file -").stdin("hunter2\n").run().await;
    let text = ran.good();
    let lines = "\n[[vendor_keys]]\nname = \"main\"\nkey = \"hunter2\"\n\n";
    assert!(text.contains(lines), "{text}");

    for (words, key, why) in [
        ("main", "", "--key-file"),
        ("a/b --key-file k", "", "a name has 1 to 32 characters"),
        (
            "main --key-file k --expires-in 9d",
            "",
            "--expires-in is not for a vendor-key",
        ),
    ] {
        let ran = new(words).stdin(key).run().await;
        let said = ran.exited(2);
        assert!(said.contains(why), "{said}");
    }
    for (key, code, why) in [
        ("", 1, "--key-file - is empty"),
        ("hunter2 x", 2, "the key is not 1 to 1024 printable"),
    ] {
        let ran = new("main --key-file -").stdin(key).run().await;
        let said = ran.exited(code);
        assert!(said.contains(why) && !said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn a_key_is_in_no_log_no_metric_no_record_and_no_error() {
    let shelf = tempfile::tempdir().unwrap();
    let vendor = refusing_vendor().await;
    let (key_file, audit) = (shelf.path().join("key"), shelf.path().join("audit.jsonl"));
    write_key(&key_file, "hunter2-in-file");
    let file = CredentialsFile::new();
    let lines = |first: &str, second: &str| {
        let second_file = key_file.display();
        file.write(&format!(
            "[[vendor_keys]]\nname = \"main\"\nkey = \"{first}\"\n\n\
             [[vendor_keys]]\nname = \"other\"\nkey_file = \"{second_file}\"\n{second}"
        ));
    };
    lines("hunter2-in-line", "");
    let options = || {
        Options::default()
            .set("credentials_file", file.path().display())
            .set("audit.file", audit.display())
            .set("logging.level", "trace")
            .set("reconcile.enabled", true)
            .set("reconcile.base_url", &vendor)
    };
    let mut server = options().start().await;

    // A changed line, a changed file, and each of them with a mistake.
    lines("hunter2-changed", "products = [\"veo\"]\n");
    let changed = server.logged("reloaded the credentials", 1).await.remove(0);
    assert!(changed.contains("2 vendor keys"), "{changed}");
    write_key(&key_file, "hunter2-in-file-changed");
    server.logged("reloaded the credentials", 2).await;
    write_key(&key_file, "hunter2 with spaces");
    says(&server, "[vendor_keys] other: key_file").await;
    says(&server, "the key is not 1 to 1024").await;
    write_key(&key_file, "hunter2-good-again");
    server.logged("reloaded the credentials", 3).await;
    fs::remove_file(&key_file).unwrap();
    says(&server, "put the file there").await;
    let check = Cli::new("check-config")
        .env("BLOBCAST_CREDENTIALS_FILE", file.path().display())
        .run()
        .await;
    let said = check.exited(1).to_owned();
    assert!(said.contains("[vendor_keys] key_file"), "{said}");
    write_key(&key_file, "hunter2-good-again");
    lines("hunter2-x", "kye = \"hunter2-y\"\n");
    says(&server, "unknown field").await;

    let (_, metrics) = server.admin_get("/metrics").await;
    server.terminate().await;
    let records = fs::read_to_string(&audit).unwrap();
    assert!(
        records.contains("vendor_key main") && records.contains("vendor_key other changed: key"),
        "{records}"
    );
    for text in [server.log(), server.printed(), metrics, records, said] {
        let shown = text.lines().find(|line| line.contains("hunter2"));
        assert_eq!(shown, None);
    }

    // A start that is refused shows it no more than one that is not.
    lines("hunter2 x", "");
    let refused = Cli::new("check-config")
        .env("BLOBCAST_CREDENTIALS_FILE", file.path().display())
        .run()
        .await;
    let said = refused.exited(1);
    assert!(
        said.contains("[vendor_keys] main: the key is not") && !said.contains("hunter2"),
        "{said}"
    );
}

#[tokio::test]
async fn a_key_file_that_others_can_use_is_warned_about() {
    let shelf = tempfile::tempdir().unwrap();
    let key_file = shelf.path().join("key");
    write_key(&key_file, "hunter2");
    fs::set_permissions(&key_file, Permissions::from_mode(0o644)).unwrap();
    let file = CredentialsFile::new();
    file.write(&format!(
        "[[vendor_keys]]\nname = \"main\"\nkey_file = \"{}\"\n",
        key_file.display()
    ));
    let warning = format!("{} can be read by every user", key_file.display());

    let checked = Cli::new("check-config")
        .env("BLOBCAST_CREDENTIALS_FILE", file.path().display())
        .run()
        .await;
    let warnings = checked.warnings().join("\n");
    assert!(warnings.contains(&warning), "{warnings}");

    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    server.logged(&warning, 1).await;
}
