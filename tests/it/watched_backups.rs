//! Metrics and log lines about backups, also after a restart or a crash of the broker.

use std::fs;

use blobcast::wire::v1::{self, BackupResponse};
use tonic::Streaming;

use crate::{
    store_door::damage_event,
    support::{Options, Server, completed, until},
};

const SUCCESS: &str = "blobcast_backup_last_success_timestamp_seconds";
const FAILURE: &str = "blobcast_backup_last_failure_timestamp_seconds";
/// Somewhere in 2023: what is later is a time.
const A_TIME: f64 = 1.7e9;

async fn finished(server: &Server, result: &str) -> f64 {
    server
        .metric(&format!(
            "blobcast_backups_finished_total{{result=\"{result}\"}}"
        ))
        .await
}

async fn until_finished(server: &Server, result: &str, count: f64) {
    until(result, async || finished(server, result).await >= count).await;
    assert_eq!(finished(server, result).await, count);
}

/// With more than a client's HTTP/2 takes on its behalf.
async fn bulky_broker(options: Options) -> Server {
    let server = options.start().await;
    server.http().post_bulky(0..20, 900_000).await;
    server
}

/// A backup of which something was sent, and not all.
async fn begun(server: &Server) -> Streaming<BackupResponse> {
    let mut client = server.admin_service().await;
    let mut stream = client
        .backup(v1::BackupRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(stream.message().await.unwrap().is_some());
    stream
}

#[tokio::test]
async fn a_whole_backup_is_known_to_metrics_and_to_the_next_starts() {
    let mut server = Server::start().await;
    server.http().post(&completed("t1")).await.event_id();
    for name in [SUCCESS, FAILURE, "blobcast_backup_last_bytes"] {
        assert_eq!(server.metric(name).await, 0.0, "{name} before the first");
    }
    let shelf = tempfile::tempdir().unwrap();
    let file = shelf.path().join("file");
    server.cli("backup").arg(&file).run().await.good();
    until_finished(&server, "ok", 1.0).await;
    let bytes = fs::metadata(&file).unwrap().len() as f64;
    let at = server.metric(SUCCESS).await;
    assert!(at > A_TIME, "{at}");
    server.logged("a backup is whole", 1).await;

    for start in 0..3 {
        assert_eq!(
            server.metric("blobcast_backup_last_bytes").await,
            bytes,
            "{start}"
        );
        assert_eq!(
            (server.metric(SUCCESS).await, server.metric(FAILURE).await),
            (at, 0.0),
            "{start}"
        );
        match start {
            0 => server.crash().await,
            _ => {
                assert!(server.terminate().await.success());
                server.restart().await;
            }
        }
    }
}

#[tokio::test]
async fn a_backup_that_its_client_cuts_off_has_failed() {
    let mut server = bulky_broker(Options::default()).await;
    drop(begun(&server).await);
    until_finished(&server, "abandoned", 1.0).await;
    assert!(server.logged("a backup has failed", 1).await[0].contains("\"result\":\"abandoned\""));
    let at = server.metric(FAILURE).await;
    assert!(at > A_TIME && server.metric(SUCCESS).await == 0.0);
    assert!(server.terminate().await.success());
    server.restart().await;
    assert_eq!(
        (server.metric(SUCCESS).await, server.metric(FAILURE).await),
        (0.0, at)
    );
}

#[tokio::test]
async fn a_backup_that_stands_still_has_failed() {
    let server = bulky_broker(Options::default().set("grpc.stall_timeout", "1s")).await;
    let unread = begun(&server).await;
    until("it to be ended", async || {
        server.metric("blobcast_answers_stalled_total").await >= 1.0
    })
    .await;
    drop(unread);
    until_finished(&server, "stalled", 1.0).await;
    assert!(server.metric(FAILURE).await > A_TIME);
}

#[tokio::test]
async fn a_backup_that_meets_damage_has_failed() {
    let mut server = Server::start().await;
    for number in 0..3 {
        server
            .http()
            .post(&completed(&format!("t{number}")))
            .await
            .event_id();
    }
    assert!(server.terminate().await.success());
    server.restart().await;
    damage_event(&server.data_dir(), "t1");
    let told = server.cli("backup -").run().await;
    assert!(told.exited(1).contains("LOG_CORRUPT"), "{told:?}");
    until_finished(&server, "damaged", 1.0).await;
}

#[tokio::test]
async fn a_backup_that_is_open_when_the_broker_is_killed_has_failed_for_the_next_start() {
    let mut server = bulky_broker(Options::default()).await;
    let _open = begun(&server).await;
    server.crash().await;
    assert_eq!(finished(&server, "interrupted").await, 1.0);
    server.logged("a backup was cut off", 1).await;
    let at = server.metric(FAILURE).await;
    assert!(at > A_TIME && server.metric(SUCCESS).await == 0.0);
    server.crash().await;
    assert_eq!(
        (
            finished(&server, "interrupted").await,
            server.metric(FAILURE).await
        ),
        (0.0, at),
        "it is told once"
    );
}

#[tokio::test]
async fn a_backup_that_is_open_when_the_broker_is_stopped_has_failed() {
    let mut server = bulky_broker(Options::default().set("shutdown.drain_timeout", "1s")).await;
    let _open = begun(&server).await;
    server.terminate().await;
    server.restart().await;
    assert!(server.metric(FAILURE).await > A_TIME);
    assert_eq!(server.metric(SUCCESS).await, 0.0);
}

#[tokio::test]
async fn a_damaged_file_of_results_is_reported_and_refuses_no_start() {
    let mut server = Server::start().await;
    let shelf = tempfile::tempdir().unwrap();
    server
        .cli("backup")
        .arg(shelf.path().join("file"))
        .run()
        .await
        .good();
    until_finished(&server, "ok", 1.0).await;
    server.kill();
    let file = server.data_dir().join("backups.json");
    fs::write(&file, "{").unwrap();
    server.restart().await;
    assert!(
        server
            .logged("cannot read what became of earlier backups", 1)
            .await[0]
            .contains("backups.json")
    );
    assert_eq!(finished(&server, "unknown").await, 1.0);
    assert!(
        server.metric(FAILURE).await > A_TIME,
        "somebody has to look"
    );

    server.kill();
    fs::remove_file(&file).unwrap();
    server.restart().await;
    assert_eq!(
        (server.metric(SUCCESS).await, server.metric(FAILURE).await),
        (0.0, 0.0)
    );
}

#[tokio::test]
async fn a_restored_log_counts_from_its_restore() {
    let (server, shelf) = (Server::start().await, tempfile::tempdir().unwrap());
    server.http().post(&completed("t1")).await.event_id();
    let file = shelf.path().join("file");
    server.cli("backup").arg(&file).run().await.good();
    let directory = tempfile::tempdir().unwrap();
    let restore = crate::support::Cli::new("restore")
        .arg(&file)
        .arg("--data-dir")
        .arg(directory.path().join("data"));
    restore.run().await.good();
    let copy = Options::default().start_in(directory).await;
    assert!(copy.metric(SUCCESS).await > A_TIME);
    assert_eq!(copy.metric(FAILURE).await, 0.0);
}
