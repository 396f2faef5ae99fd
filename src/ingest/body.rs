//! Reading a body: bounded in bytes, in time, and in what all bodies together hold in memory.

use axum::{
    body::HttpBody,
    http::{Request, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use super::{Limits, Outcome};

/// A whole body. Its memory counts as in flight until it is dropped.
pub(super) struct InFlight<'a> {
    pub bytes: Bytes,
    _permit: SemaphorePermit<'a>,
}

pub(super) async fn read<'a, B>(
    request: Request<B>,
    limits: &Limits,
    inflight: &'a Semaphore,
) -> Result<InFlight<'a>, Outcome>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let deadline = Instant::now() + limits.body_timeout;
    let content_length = request.headers().get(header::CONTENT_LENGTH);
    let declared = content_length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok()).unwrap_or(0);
    // A client that waits for 100 Continue is told at once; one that is already sending hears better when it is done.
    let waits = request.headers().contains_key(header::EXPECT);
    let mut body = request.into_body();
    if declared > limits.body_bytes_max {
        if !waits {
            discard(&mut body, limits.body_bytes_max.saturating_mul(2), deadline).await;
        }
        return Err(Outcome::BodyTooLarge);
    }
    let whole = timeout_at(deadline, collect(&mut body, declared, limits.body_bytes_max, inflight)).await;
    if matches!(whole, Ok(Err(Outcome::BodyTooLarge))) {
        discard(&mut body, limits.body_bytes_max, deadline).await;
    }
    whole.unwrap_or(Err(Outcome::BodyTimeout))
}

/// Bytes are counted as they come, so that a promise of a large body takes nothing from others.
async fn collect<'a, B>(
    body: &mut B,
    declared: usize,
    bytes_max: usize,
    inflight: &'a Semaphore,
) -> Result<InFlight<'a>, Outcome>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let mut permit = inflight.try_acquire_many(0).map_err(|_| Outcome::Overloaded)?;
    let mut bytes = BytesMut::with_capacity(declared.min(16 * 1024));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Outcome::BodyAborted)?.into_data() else { continue };
        if bytes.len() + data.len() > bytes_max {
            return Err(Outcome::BodyTooLarge);
        }
        let count = u32::try_from(data.len()).map_err(|_| Outcome::BodyTooLarge)?;
        permit.merge(inflight.try_acquire_many(count).map_err(|_| Outcome::Overloaded)?);
        bytes.extend_from_slice(&data);
    }
    Ok(InFlight { bytes: bytes.freeze(), _permit: permit })
}

/// Reads on until it was twice what is allowed, so that a sender who does not look before it has sent all gets its answer.
async fn discard<B>(body: &mut B, mut left: usize, deadline: Instant)
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
