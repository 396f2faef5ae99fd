//! A body that is cut off when the session that asked for it is over.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::sleep;

use crate::console::{IDLE_MAX, Place, Session};

/// The body of a call, which keeps its place.
pub(super) struct Held {
    body: Body,
    over: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _place: Place,
}

impl Held {
    /// Without a session it is never cut off. With one it lasts no longer than a session without requests: a page that goes on asks
    /// again.
    pub(super) fn new(body: Body, session: Option<&Session>, place: Place) -> Self {
        let over = session.map(|session| {
            let over = session.over.clone();
            Box::pin(async move {
                tokio::select! {
                    () = over.cancelled() => {}
                    () = sleep(IDLE_MAX) => {}
                }
            }) as Pin<Box<dyn Future<Output = ()> + Send>>
        });
        Self {
            body,
            over,
            _place: place,
        }
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    /// Cut off is an error, which breaks the connection: a part of an export is not taken for all, and an `EventSource` comes back.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let over = self.over.as_mut();
        if over.is_some_and(|over| over.as_mut().poll(context).is_ready()) {
            self.over = None;
            let why = std::io::Error::other("the session is over");
            return Poll::Ready(Some(Err(axum::Error::new(why))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;
    use tokio::time::{Duration, Instant, advance};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{console::Places, credentials::client_for_tests};

    /// A body that never ends.
    struct Silent;

    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            Poll::Pending
        }
    }

    fn held(session: Option<&Session>) -> Held {
        let place = Arc::new(Places::default()).try_take(None).unwrap();
        Held::new(Body::new(Silent), session, place)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_cut_off_by_the_end_of_its_session_or_after_the_time_that_one_may_be_idle() {
        let session = Session {
            client: client_for_tests("ops", true),
            ends: Instant::now(),
            over: CancellationToken::new(),
        };
        let (mut idle, mut open) = (held(Some(&session)), held(None));
        let is_cut = async |body: &mut Held| {
            let next = tokio::time::timeout(Duration::ZERO, body.frame()).await;
            next.is_ok_and(|frame| frame.is_some_and(|frame| frame.is_err()))
        };
        assert!(!is_cut(&mut idle).await && !is_cut(&mut open).await);

        advance(IDLE_MAX + Duration::from_secs(1)).await;
        assert!(is_cut(&mut idle).await && !is_cut(&mut open).await);

        let mut left = held(Some(&session));
        session.over.cancel();
        assert!(is_cut(&mut left).await);
    }
}
