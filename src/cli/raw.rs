//! Fetches raw bodies of any size in chunks: an event leaves out a body that would make its message
//! too large.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Status;

use super::client::Connection;
use crate::wire::v1::{self, event_service_client::EventServiceClient};

/// Time for one chunk of 1 MiB. Behind a proxy this may be the only sign that the broker is gone.
const PIECE_TIMEOUT: Duration = Duration::from_secs(45);

/// A body that is being fetched.
pub(super) struct Pieces<'a> {
    client: &'a mut EventServiceClient<Connection>,
    cursor: String,
    offset: u64,
    is_whole: bool,
    piece_timeout: Duration,
}

impl<'a> Pieces<'a> {
    /// The body of the event at `cursor`, from its beginning.
    pub(super) fn new(client: &'a mut EventServiceClient<Connection>, cursor: &str) -> Self {
        Self {
            client,
            cursor: cursor.to_owned(),
            offset: 0,
            is_whole: false,
            piece_timeout: PIECE_TIMEOUT,
        }
    }

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, Status> {
        if self.is_whole {
            return Ok(None);
        }
        let request = v1::GetRawBodyRequest {
            cursor: self.cursor.clone(),
            offset: self.offset,
        };
        let time = self.piece_timeout;
        let late = |_| Status::unavailable(format!("no answer to GetRawBody within {time:?}"));
        let piece = timeout(time, self.client.get_raw_body(request))
            .await
            .map_err(late)??
            .into_inner();
        self.offset += piece.chunk.len() as u64;
        self.is_whole = self.offset >= piece.total_bytes || piece.chunk.is_empty();
        Ok(Some(piece.chunk.into()))
    }
}

/// Adds the raw body to an event, if it was left out as too large.
pub(super) async fn complete(
    client: &mut EventServiceClient<Connection>,
    event: &mut v1::Event,
) -> Result<(), Status> {
    if !event.truncated || !event.raw_body.is_empty() {
        return Ok(());
    }
    let mut pieces = Pieces::new(client, &event.cursor);
    let mut body = Vec::new();
    while let Some(piece) = pieces.next().await? {
        body.extend(piece);
    }
    event.raw_body = body.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tonic::Code;

    use super::*;
    use crate::cli::client::GrpcArgs;

    #[tokio::test]
    async fn a_silent_broker_ends_the_wait_for_a_piece() {
        // The kernel accepts the connection; no process answers.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let mut client = GrpcArgs::at(&url).events().unwrap();
        let mut pieces = Pieces::new(&mut client, "c1");
        assert_eq!(pieces.piece_timeout, PIECE_TIMEOUT);
        pieces.piece_timeout = Duration::from_millis(50);
        let late = pieces.next().await.unwrap_err();
        assert_eq!(
            (late.code(), late.message()),
            (Code::Unavailable, "no answer to GetRawBody within 50ms")
        );

        // The timeout does not count as a piece.
        assert_eq!((pieces.offset, pieces.is_whole), (0, false));
    }
}
