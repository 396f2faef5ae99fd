//! Files that the broker and the command line write are private to their user, never follow another
//! user's links, and exposed files are warned about.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    process::{Gid, Uid, geteuid},
};
use tempfile::TempDir;

use crate::support::{Authority, Cli, CredentialsFile, Options, Server, completed, until};

/// The rights of everything below a directory, and of itself, that are not their user's alone.
fn exposed(directory: &Path) -> Vec<String> {
    let (mut exposed, mut open, mut files) = (Vec::new(), vec![directory.to_path_buf()], 0);
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let (mode, expected) = (
            metadata.mode() & 0o7777,
            if metadata.is_dir() { 0o700 } else { 0o600 },
        );
        if mode != expected {
            exposed.push(format!("{} {mode:o}", path.display()));
        }
        if metadata.is_dir() {
            open.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            files += 1;
        }
    }
    assert!(files > 5, "{files} files are not a store");
    exposed
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn what_serve_and_restore_make_is_their_users_alone_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        let mut server = Options::default().umask(umask).start().await;
        server.http().post(&completed("t1")).await.event_id();
        assert_eq!(
            server
                .http()
                .post_to("/webhook/veo", "not json")
                .await
                .status,
            202
        );
        assert_eq!(exposed(&server.data_dir()), [""; 0], "umask {umask}");
        // Closing writes the database's tables, and a start makes the next segment.
        assert!(server.terminate().await.success());
        server.restart().await;
        server.http().post(&completed("t2")).await.event_id();
        assert_eq!(
            exposed(&server.data_dir()),
            [""; 0],
            "umask {umask}, started again"
        );

        let shelf = tempfile::tempdir().unwrap();
        let (file, data_dir) = (shelf.path().join("file"), shelf.path().join("a/b/data"));
        server
            .cli("backup")
            .arg(&file)
            .umask(umask)
            .run()
            .await
            .good();
        assert_eq!(
            fs::metadata(&file).unwrap().mode() & 0o777,
            0o600,
            "umask {umask}"
        );
        let restore = Cli::new("restore")
            .arg(&file)
            .arg("--data-dir")
            .arg(&data_dir)
            .umask(umask);
        let restored = restore.run().await;
        restored.good();
        assert!(!restored.stderr.contains("warning"), "{restored:?}");
        assert_eq!(
            exposed(&shelf.path().join("a")),
            [""; 0],
            "umask {umask}, restored"
        );
    }
}

/// A broker with an event, and where its backup is to go.
async fn before_a_backup() -> (Server, TempDir, [PathBuf; 3]) {
    let server = Server::start().await;
    server.http().post(&completed("t1")).await.event_id();
    let shelf = tempfile::tempdir().unwrap();
    let paths = ["file", "file.partial", "victim"].map(|name| shelf.path().join(name));
    fs::write(&paths[2], "precious").unwrap();
    (server, shelf, paths)
}

#[tokio::test]
async fn a_backup_writes_into_nothing_that_somebody_else_has_put_in_its_place() {
    let (server, _shelf, [file, partial, victim]) = before_a_backup().await;
    for what in [
        "a link",
        "a link to nothing",
        "a FIFO",
        "another user's file",
    ] {
        match what {
            "a link" => symlink(&victim, &partial).unwrap(),
            "a link to nothing" => symlink(victim.with_extension("new"), &partial).unwrap(),
            "a FIFO" => mknodat(CWD, &partial, FileType::Fifo, Mode::RWXU, 0).unwrap(),
            // Only root can give a file away.
            _ if !geteuid().is_root() => continue,
            _ => {
                fs::write(&partial, "theirs").unwrap();
                rustix::fs::chown(&partial, Some(Uid::from_raw(65_534)), None::<Gid>).unwrap();
                set_mode(&partial, 0o666);
            }
        }
        let planted = fs::symlink_metadata(&partial).unwrap().ino();
        let refused = server.cli("backup").arg(&file).run().await;
        let said = refused.exited(1);
        assert!(
            said.contains("was not made by a backup of yours: remove it, or name another file"),
            "{what}: {said}"
        );
        assert_eq!(
            fs::symlink_metadata(&partial).unwrap().ino(),
            planted,
            "{what} is left as it was"
        );
        assert!(
            !file.exists() && !victim.with_extension("new").exists(),
            "{what}"
        );
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "{what}");
        fs::remove_file(&partial).unwrap();
    }
}

#[tokio::test]
async fn a_backup_replaces_what_one_has_left_and_writes_through_no_second_name() {
    let (server, _shelf, [file, partial, victim]) = before_a_backup().await;
    fs::write(&partial, "cut off").unwrap();
    server.cli("backup").arg(&file).run().await.good();
    let whole = fs::read(&file).unwrap();
    assert!(!partial.exists());

    // Under another name it is a file of one's own that must stay as it is.
    fs::hard_link(&victim, &partial).unwrap();
    server.cli("backup").arg(&file).run().await.good();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(fs::read(&file).unwrap().len(), whole.len());
}

#[tokio::test]
async fn a_backup_replaces_no_link_device_fifo_or_directory() {
    let (server, _shelf, [file, partial, victim]) = before_a_backup().await;
    for what in [
        "a link",
        "a link to nothing",
        "a FIFO",
        "a device",
        "a directory",
    ] {
        match what {
            "a link" => symlink(&victim, &file).unwrap(),
            "a link to nothing" => symlink(victim.with_extension("new"), &file).unwrap(),
            "a FIFO" => mknodat(CWD, &file, FileType::Fifo, Mode::RWXU, 0).unwrap(),
            // Only root can make one: like /dev/null.
            "a device" if !geteuid().is_root() => continue,
            "a device" => mknodat(
                CWD,
                &file,
                FileType::CharacterDevice,
                Mode::RWXU,
                makedev(1, 3),
            )
            .unwrap(),
            _ => fs::create_dir(&file).unwrap(),
        }
        let planted = fs::symlink_metadata(&file).unwrap().ino();
        let refused = server.cli("backup").arg(&file).run().await;
        let said = refused.exited(1);
        assert!(
            said.contains("is not a regular file: name another file, or write -"),
            "{what}: {said}"
        );
        assert_eq!(
            fs::symlink_metadata(&file).unwrap().ino(),
            planted,
            "{what} is left as it was"
        );
        assert!(
            !partial.exists() && !victim.with_extension("new").exists(),
            "{what}"
        );
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "{what}");
        if what == "a directory" {
            fs::remove_dir(&file).unwrap();
        } else {
            fs::remove_file(&file).unwrap();
        }
    }
}

#[tokio::test]
async fn a_backup_whose_file_was_replaced_meanwhile_touches_what_has_replaced_it_no_more() {
    let server = Server::start().await;
    server.http().post_bulky(0..60, 900_000).await;
    let shelf = tempfile::tempdir().unwrap();
    let (file, partial) = (shelf.path().join("file"), shelf.path().join("file.partial"));
    let begun = server.cli("backup").arg(&file).start();
    until("the first bytes", async || {
        fs::metadata(&partial).is_ok_and(|metadata| metadata.len() > 0)
    })
    .await;
    server.pause().await;
    fs::rename(&partial, shelf.path().join("moved")).unwrap();
    fs::write(&partial, "theirs").unwrap();
    server.signal(rustix::process::Signal::CONT);
    let ended = begun.ended().await;
    assert!(
        ended.exited(1).contains("was replaced meanwhile"),
        "{ended:?}"
    );
    assert_eq!(fs::read_to_string(&partial).unwrap(), "theirs");
    assert!(!file.exists());
}

#[tokio::test]
async fn a_credentials_file_that_others_can_use_is_warned_about_at_start_and_once_for_each_change()
{
    let mut credentials = CredentialsFile::new();
    credentials.add("client ops --all-products --admin").await;
    let path = credentials.path();
    set_mode(&path, 0o644);
    let server = Options::default()
        .set("credentials_file", path.display())
        .start()
        .await;
    let (readable, changeable) = ("can be read by every user", "can be changed by every user");
    let warning = server.logged(readable, 1).await.remove(0);
    assert!(
        warning.contains(&format!("{} can be read", path.display())),
        "{warning}"
    );
    server.logged(changeable, 0).await;

    let reloads = async |done: f64| {
        let metric = "blobcast_reloads_total{result=\"done\",what=\"credentials\"}";
        until("the reload", async || server.metric(metric).await >= done).await;
    };
    set_mode(&path, 0o600);
    reloads(1.0).await;
    set_mode(&path, 0o646);
    reloads(2.0).await;
    server.logged(changeable, 1).await;
    server.logged(readable, 2).await;
    // A file that is all right again says so by saying nothing.
    credentials.add("callback vendor").await;
    reloads(3.0).await;
    server.logged("reloaded the credentials", 3).await;
    server.logged(changeable, 1).await;
    server.logged(readable, 2).await;
}

#[tokio::test]
async fn check_config_warns_about_what_others_can_use() {
    let credentials = CredentialsFile::new();
    let (shelf, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let issued = authority.issue("server", "localhost");
    let (certificate, key, data_dir) = (
        shelf.path().join("certificate.pem"),
        shelf.path().join("key.pem"),
        shelf.path().join("data"),
    );
    fs::copy(issued.certificate, &certificate).unwrap();
    fs::copy(issued.key, &key).unwrap();
    set_mode(&key, 0o600);
    fs::create_dir(&data_dir).unwrap();
    set_mode(&data_dir, 0o700);
    let check = async || {
        let cli =
            Cli::new("check-config").env("BLOBCAST_CREDENTIALS_FILE", credentials.path().display());
        let cli = cli
            .env("BLOBCAST_GRPC__TLS_KEY_FILE", key.display())
            .env("BLOBCAST_DATA_DIR", data_dir.display());
        let ran = cli
            .env("BLOBCAST_GRPC__TLS_CERTIFICATE_FILE", certificate.display())
            .run()
            .await;
        assert!(ran.good().contains("the configuration is good"), "{ran:?}");
        ran.warnings().join("\n")
    };
    assert_eq!(check().await, "");
    let in_writable = shelf.path().join("shared");
    for (path, mode, warning) in [
        (
            credentials.path().as_path(),
            0o640,
            "can be read by its group",
        ),
        (
            credentials.path().as_path(),
            0o602,
            "can be changed by every user",
        ),
        (
            credentials.path().parent().unwrap(),
            0o777,
            "can be replaced by every user",
        ),
        (key.as_path(), 0o604, "can be read by every user"),
        (
            data_dir.as_path(),
            0o750,
            "can be entered by others (mode 750)",
        ),
    ] {
        let before = fs::metadata(path).unwrap().mode() & 0o7777;
        // Root's own group is trusted; another one is not.
        if mode == 0o640 && geteuid().is_root() {
            rustix::fs::chown(
                path,
                Some(Uid::from_raw(65_534)),
                Some(Gid::from_raw(65_534)),
            )
            .unwrap();
        }
        set_mode(path, mode);
        let said = check().await;
        assert!(
            said.contains(warning),
            "{} {mode:o}: {said}",
            path.display()
        );
        set_mode(path, before);
    }
    // Behind a link it is the file that counts, and where it is.
    fs::create_dir(&in_writable).unwrap();
    let (behind, linked) = (
        in_writable.join("credentials"),
        shelf.path().join("link.toml"),
    );
    File::create(&behind).unwrap();
    set_mode(&behind, 0o600);
    set_mode(&in_writable, 0o777);
    symlink(&behind, &linked).unwrap();
    let ran = Cli::new("check-config")
        .env("BLOBCAST_CREDENTIALS_FILE", linked.display())
        .run()
        .await;
    assert!(
        ran.good().contains("good") && ran.stderr.contains("can be replaced by every user"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn a_data_directory_that_others_can_enter_is_warned_about_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    fs::create_dir(&data_dir).unwrap();
    set_mode(&data_dir, 0o755);
    let server = Options::default().start_in(directory).await;
    server
        .logged("can be entered by others (mode 755)", 1)
        .await;
    assert_eq!(fs::metadata(&data_dir).unwrap().mode() & 0o777, 0o755);
    Server::start().await.logged("can be entered", 0).await;
}
