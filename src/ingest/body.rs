//! Reads bodies: bounded in bytes, in time, and in the memory of all bodies together.

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

use super::{Limits, answer::Reply};

/// A whole body. Its memory counts as in flight until it is dropped.
pub(super) struct InFlight<'a> {
    pub bytes: Bytes,
    _permit: SemaphorePermit<'a>,
}

impl<'a> InFlight<'a> {
    pub(super) fn new(bytes: Bytes, permit: SemaphorePermit<'a>) -> Self {
        Self {
            bytes,
            _permit: permit,
        }
    }
}

pub(super) async fn read<'a, B>(
    request: Request<B>,
    limits: &Limits,
    inflight: &'a Semaphore,
) -> Result<InFlight<'a>, Reply>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let deadline = Instant::now() + limits.body_timeout;
    let content_length = request.headers().get(header::CONTENT_LENGTH);
    let declared = content_length
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or(0);
    if declared > limits.body_bytes_max {
        return Err(Reply::BodyTooLarge); // the listener discards the rest
    }

    let whole = timeout_at(
        deadline,
        collect(
            request.into_body(),
            declared,
            limits.body_bytes_max,
            inflight,
        ),
    )
    .await;

    whole.unwrap_or(Err(Reply::BodyTimeout))
}

/// Bytes are counted as they arrive, so that a mere Content-Length takes no memory from others.
async fn collect<'a, B>(
    mut body: B,
    declared: usize,
    bytes_max: usize,
    inflight: &'a Semaphore,
) -> Result<InFlight<'a>, Reply>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let mut permit = inflight
        .try_acquire_many(0)
        .map_err(|_| Reply::Overloaded)?;
    let mut bytes = BytesMut::with_capacity(declared.min(16 * 1024));

    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Reply::BodyAborted)?.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > bytes_max {
            return Err(Reply::BodyTooLarge);
        }
        permit.merge(acquire(inflight, data.len())?);
        bytes.extend_from_slice(&data);
    }

    Ok(InFlight::new(bytes.freeze(), permit))
}

/// Reserves memory for so many bytes.
pub(super) fn acquire(inflight: &Semaphore, bytes: usize) -> Result<SemaphorePermit<'_>, Reply> {
    let count = u32::try_from(bytes).map_err(|_| Reply::BodyTooLarge)?;
    inflight
        .try_acquire_many(count)
        .map_err(|_| Reply::Overloaded)
}
