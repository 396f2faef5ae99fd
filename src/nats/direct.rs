//! Gets messages of the stream without a consumer: any server with a copy answers, also while nobody leads. It may lag.

use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use super::{
    api,
    asker::{Asker, NoAnswer},
    delivery::number,
};

/// Any server answers at once.
const TIME: Duration = Duration::from_millis(500);
/// Messages and bytes of one batch: as much as a consumer may have on the way.
const BATCH_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 8 << 20;
/// The end of a batch.
const END_OF_BATCH: u16 = 204;

/// A message of the stream.
pub(super) struct Got {
    pub(super) sequence: u64,
    pub(super) bytes: Bytes,
}

/// The message at `sequence`; `None` if that server does not have it, or not yet.
pub(super) async fn one(
    asker: &mut Asker,
    stream: &str,
    sequence: u64,
) -> Result<Option<Got>, NoAnswer> {
    let request = api::json(&json!({ "seq": sequence }));
    let subject = subject(stream);
    let answer = asker.ask(&subject, HeaderMap::new(), request, TIME).await?;
    Ok(got(&answer).filter(|it| it.sequence == sequence))
}

/// Asks for the messages from `sequence` on; [`next`] gives them.
pub(super) async fn ask(asker: &mut Asker, stream: &str, sequence: u64) -> Result<(), NoAnswer> {
    let request = json!({ "seq": sequence, "batch": BATCH_MAX, "max_bytes": BATCH_BYTES_MAX });
    let (headers, deadline) = (HeaderMap::new(), Instant::now() + TIME);
    asker
        .send(&subject(stream), headers, api::json(&request), deadline)
        .await
}

/// The next message of the batch; `None` at its end.
pub(super) async fn next(asker: &mut Asker) -> Result<Option<Got>, NoAnswer> {
    Ok(got(&asker.answer(Instant::now() + TIME).await?))
}

fn subject(stream: &str) -> String {
    format!("$JS.API.DIRECT.GET.{stream}")
}

/// The message in an answer. Without one it has a status: not found, or the end of the batch.
fn got(answer: &Message) -> Option<Got> {
    let status = answer.status.map(|status| status.as_u16());
    if status.is_some() {
        let is_end = matches!(status, Some(END_OF_BATCH | 404));
        if !is_end {
            tracing::debug!(?status, "a message of the stream cannot be got");
        }
        return None;
    }
    Some(Got {
        sequence: number(answer.headers.as_ref()?, "Nats-Sequence")?,
        bytes: answer.payload.clone(),
    })
}
