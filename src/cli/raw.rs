//! Bodies of callbacks as received, of any size: what an event has left out as too large for one message is fetched in pieces.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Status;

use super::client::Connection;
use crate::wire::v1::{self, event_service_client::EventServiceClient};

/// Time for one piece of 1 MiB. Behind a proxy nothing else may tell that the broker is gone.
const PIECE_TIMEOUT: Duration = Duration::from_secs(45);

/// One body on its way.
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

/// Fetches the body that was asked for with an event, if it was too large to come along.
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
    async fn a_broker_that_is_silent_is_not_waited_for_for_ever() {
        // The kernel connects; nobody answers.
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

        // Nothing of it is taken for a piece.
        assert_eq!((pieces.offset, pieces.is_whole), (0, false));
    }
}
