//! Runs work that may hang, such as reading a file on a dead mount, aside: on a thread of its own, which serves nothing else. Not on
//! the runtime's blocking threads: there are few of them, and reads of the store need them.

use std::{io, thread, time::Duration};

use tokio::{sync::oneshot, time::timeout};

/// How long the files that a start needs may take: a mount may be coming up.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs `work` on a thread of its own. The work goes on if the receiver is dropped.
pub(super) fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    let work = || {
        let _ = sender.send(work()).is_ok(); // the caller may have given up
    };
    thread::Builder::new().name("aside".into()).spawn(work)?;
    Ok(receiver)
}

/// Runs `work` aside, and gives up waiting for it after `patience`.
pub(super) async fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let done = spawn(work).map_err(|error| format!("no thread for it: {error}"))?;
    match timeout(patience, done).await {
        Ok(Ok(done)) => Ok(done),
        // A panic has ended the process.
        Ok(Err(_)) => Err("it was not done".to_owned()),
        Err(_) => Err(too_slow(patience)),
    }
}

/// The problem with a file that hangs.
pub(super) fn too_slow(patience: Duration) -> String {
    format!(
        "it was not read within {} s: does its file system hang?",
        patience.as_secs()
    )
}
