//! Keys for the vendor's API in the credentials file: their lines, their files, and that no key is ever shown.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use blobcast::{
    credentials::Credentials,
    wire::v1::{ExpectTasksRequest, Expectation, ListExpectationsRequest, WaitTaskRequest},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{
    ANY_PORT, Cli, Collector, CredentialsFile, Options, Server, completed, expectation, is_on_disk,
    until, wait_task,
};

/// Files that hold a secret and nothing else.
fn write_key(path: &Path, key: &str) {
    let new = path.with_extension("new");
    fs::write(&new, format!("{key}\n")).unwrap();
    fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

/// A vendor that repeats the whole request, with its key, wherever an answer has room for it. It takes the key until the flag is set.
async fn echoing_vendor() -> (String, Arc<AtomicBool>) {
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let refuses = Arc::new(AtomicBool::new(false));
    let is_refused = Arc::clone(&refuses);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]);
            let answer = echo(&request, is_refused.load(Ordering::Relaxed));
            // It may be gone.
            let _ = stream.write_all(answer.as_bytes()).await.is_ok();
        }
    });
    (url, refuses)
}

/// The answer depends on the task that is asked for.
fn echo(request: &str, is_refused: bool) -> String {
    let words: Vec<_> = request.split_whitespace().collect();
    let key = words
        .iter()
        .position(|word| *word == "Bearer")
        .map_or("", |at| words[at + 1]);
    let about = |text: &str| words.get(1).is_some_and(|target| target.contains(text));
    let head = match () {
        () if is_refused => format!("401 {key}"),
        () if about("00000000-") => "404 Not Found".to_owned(),
        () if about("moved") => format!("302 Found\r\nlocation: http://127.0.0.1:1/{key}"),
        () if about("busy") => format!("503 {key}\r\nretry-after: {key}"),
        () if about("denied") => format!("403 {key}"),
        () if about("odd") => format!("418 {key}\r\nx-{key}: {key}"),
        () if about("broken") => return format!("{key} {request}\r\n\r\n"),
        () if about("cut") => {
            return format!("HTTP/1.1 200 {key}\r\ncontent-length: 99999\r\n\r\n{request}");
        }
        () => format!("200 {key}"),
    };
    let length = request.len();
    format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{request}")
}

/// Fails if a text has a part of a key.
fn shows_no_key(what: &str, text: &str) {
    let shown = text.lines().find(|line| line.contains("hunter2"));
    assert_eq!(shown, None, "{what}");
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
    let (vendor, refuses) = echoing_vendor().await;
    refuses.store(true, Ordering::Relaxed);
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
        shows_no_key("a text", &text);
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

/// A message of a call that the collector's owner traces.
fn traced<T>(message: T) -> tonic::Request<T> {
    let mut call = tonic::Request::new(message);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    call.metadata_mut()
        .insert("traceparent", trace.parse().unwrap());
    call
}

#[tokio::test]
async fn a_key_that_is_used_is_in_no_trace_no_event_no_answer_and_no_file_of_the_broker() {
    let shelf = tempfile::tempdir().unwrap();
    let (vendor, refuses) = echoing_vendor().await;
    let (key_file, audit) = (shelf.path().join("key"), shelf.path().join("audit.jsonl"));
    write_key(&key_file, "hunter2-in-file");
    let file = CredentialsFile::new();
    file.write(&format!(
        "[[vendor_keys]]\nname = \"main\"\nkey = \"hunter2-in-line\"\n\n\
         [[vendor_keys]]\nname = \"other\"\nkey_file = \"{}\"\nproducts = [\"kling\"]\n",
        key_file.display()
    ));
    let collector = Collector::start().await;
    let mut server = collector
        .options()
        .set("traces.sampling_ratio", 1)
        .set("credentials_file", file.path().display())
        .set("audit.file", audit.display())
        .set("logging.level", "trace")
        .set("reconcile.enabled", true)
        .set("reconcile.base_url", &vendor)
        .set("reconcile.checks_per_minute_max", 6_000)
        .set("reconcile.expect_within", "veo=1s,kling=1s,sora=1s")
        .set("reconcile.give_up_after", "2s")
        .start()
        .await;
    let mut texts = Vec::new();

    // Each kind of answer, by both keys, and the pages of a list. The one that has everybody left alone comes last.
    let mut events = server.events().await;
    let kinds = ["moved", "denied", "odd", "broken", "cut", "page"];
    let mut expectations: Vec<_> = kinds.iter().map(|kind| expectation("veo", kind)).collect();
    expectations.extend((0..6).map(|n| expectation("sora", &format!("listed{n}"))));
    expectations.push(Expectation {
        vendor_key: "other".to_owned(),
        ..expectation("kling", "page-of-other")
    });
    let expected = events.expect_tasks(traced(ExpectTasksRequest { expectations }));
    texts.push(("the answer", format!("{:?}", expected.await.unwrap())));
    for (product, kind) in kinds
        .map(|kind| ("veo", kind))
        .into_iter()
        .chain([("kling", "page-of-other")])
    {
        let task = WaitTaskRequest {
            task_id: kind.to_owned(),
            product: product.to_owned(),
            ..WaitTaskRequest::default()
        };
        let waited = events.wait_task(traced(task)).await.unwrap();
        assert!(!waited.get_ref().done, "{waited:?}");
        texts.push(("the answer", format!("{waited:?}")));
    }
    let busy = vec![expectation("veo", "busy")];
    events
        .expect_tasks(traced(ExpectTasksRequest { expectations: busy }))
        .await
        .unwrap();
    assert!(!wait_task(&server, "veo", "busy", 50).await.done);
    server
        .http()
        .post(&completed("called-back"))
        .await
        .event_id();

    let mut admin = server.admin_service().await;
    let listed = admin
        .list_expectations(traced(ListExpectationsRequest::default()))
        .await;
    texts.push(("the listing", format!("{listed:?}")));
    for line in [
        "expectations",
        "events --output json",
        "expect veo another --vendor-key other",
        "expect flux another",
        "get busy",
        "wait busy --product veo --timeout 1s",
        "quarantine list",
        "subscriptions",
    ] {
        let ran = server.cli(line).env("RUST_LOG", "trace").run().await;
        texts.push(("a verb", format!("{ran:?}")));
    }

    // The answer to a client when the vendor refuses the key.
    refuses.store(true, Ordering::Relaxed);
    write_key(&key_file, "hunter2-in-file-changed");
    server.logged("the vendor refuses the key", 1).await;
    let of_other = Expectation {
        vendor_key: "other".to_owned(),
        ..expectation("kling", "too-late")
    };
    let refused = events.expect_tasks(traced(ExpectTasksRequest {
        expectations: vec![of_other],
    }));
    if let Err(refused) = refused.await {
        texts.push(("the refusal", format!("{refused:?}")));
    }

    let (_, metrics) = server.admin_get("/metrics").await;
    texts.push(("/metrics", metrics));
    let data = server.data_dir();
    let check = Cli::new("check-config")
        .env("BLOBCAST_CREDENTIALS_FILE", file.path().display())
        .env("BLOBCAST_RECONCILE__ENABLED", true)
        .env("BLOBCAST_LOGGING__LEVEL", "trace")
        .env("BLOBCAST_DATA_DIR", data.display())
        .run()
        .await;
    texts.push(("check-config", format!("{check:?}")));
    let credentials = Credentials::parse(&fs::read_to_string(file.path()).unwrap()).unwrap();
    texts.push(("the credentials", format!("{credentials:?}")));
    assert!(server.terminate().await.success());

    let spans = format!("{:?}", collector.spans());
    assert!(spans.contains("ExpectTasks") && spans.contains("ListExpectations"));
    assert!(spans.contains("called-back"));
    texts.push(("the traces", spans));
    texts.push(("the audit record", fs::read_to_string(&audit).unwrap()));
    texts.push(("the log", server.log()));
    texts.push(("standard output", server.printed()));
    for (what, text) in &texts {
        shows_no_key(what, text);
    }
    assert!(is_on_disk(&data, "called-back"));
    assert!(!is_on_disk(&data, "hunter2"));
}

#[tokio::test]
async fn a_key_file_that_others_can_use_is_warned_about_once_for_each_change() {
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
    file.write(&format!(
        "# changed\n[[vendor_keys]]\nname = \"main\"\nkey_file = \"{}\"\n",
        key_file.display()
    ));
    server.logged("reloaded the credentials", 1).await;
    server.logged(&warning, 2).await;
}
