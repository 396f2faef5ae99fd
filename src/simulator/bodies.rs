//! Bodies of HTTP messages, whole or cut in the middle.

use std::{convert::Infallible, io};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use tokio_stream::StreamExt;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(super) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// A body that ends with an error, at which the HTTP library closes the connection.
pub(super) fn cut(part: Bytes) -> Body {
    let pieces = [
        Ok(Frame::data(part)),
        Err(io::Error::other("cut by the plan")),
    ];
    let pieces = tokio_stream::iter(pieces).then(|piece| async {
        if piece.is_err() {
            // The first part is written before the error is seen.
            tokio::task::yield_now().await;
        }
        piece
    });
    StreamBody::new(pieces).boxed_unsync()
}
