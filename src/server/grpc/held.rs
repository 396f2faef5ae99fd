//! What a call holds until its answer has ended, and the answer's body that holds it.
//!
//! The answer to `Subscribe` is swapped here: the service hands a body over in an extension of the response
//! ([`rpc::HandedOver`]), which writes encoded events straight into gRPC frames, and tonic's own body is dropped.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{body::Body, http::HeaderMap, response::Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use prometheus::{IntCounter, IntGauge};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tonic::Status;

use super::{
    arriving::HealthCall,
    streams::OpenStream,
    unfinished::{Unfinished, UnfinishedCall},
};
use crate::{
    budget::Payer,
    rpc,
    server::net::places::{Answering, Standing},
};

/// An open `Watch` stream.
#[derive(Debug)]
pub(super) struct Watch {
    counted: IntGauge,
    _held: (OwnedSemaphorePermit, OpenStream),
}

impl Watch {
    pub(super) fn new(counted: &IntGauge, permit: OwnedSemaphorePermit, open: OpenStream) -> Self {
        counted.inc();
        Self {
            counted: counted.clone(),
            _held: (permit, open),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.counted.dec();
    }
}

/// Completes when a `Watch` stream has to end for another one.
#[derive(Debug)]
pub(super) struct WatchOver {
    pub is_over: oneshot::Receiver<()>,
    pub limit: usize,
    pub refused: IntCounter,
}

impl WatchOver {
    /// The status that the stream ends with then.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        Pin::new(&mut self.is_over).poll(cx).map(|_| {
            self.refused.inc();
            rpc::health_limit(self.limit)
        })
    }
}

/// What a call holds until its answer has ended.
#[derive(Debug)]
pub(super) struct Held {
    pub answers: Arc<rpc::Answers>,
    pub payer: Payer,
    /// Where the answer to a client is counted while it is unread.
    pub unread: Option<(Arc<Unfinished>, Arc<Standing>)>,
    pub watch_over: Option<WatchOver>,
    pub until_end: UntilEnd,
}

/// The part of it that is only there to be dropped.
#[derive(Debug, Default)]
#[allow(dead_code, reason = "each field is there to be dropped")]
pub(super) struct UntilEnd {
    pub answering: Option<Answering>,
    pub watch: Option<Watch>,
    pub health_call: Option<HealthCall>,
    pub reflection: Option<Arc<OpenStream>>,
    pub unread: Option<(rpc::Unread, UnfinishedCall)>,
}

impl Held {
    pub(super) fn account(&self) -> Account {
        Account {
            answers: Arc::clone(&self.answers),
            payer: self.payer.clone(),
            unread: self.unread.clone(),
        }
    }

    /// The answer with a body that holds all this: for `Subscribe` the one that was handed over, for every other call one that is
    /// held to its share of memory and to its time.
    pub(super) fn until_its_end(self, answer: Response) -> Response {
        let Self {
            answers,
            payer,
            unread,
            watch_over,
            mut until_end,
        } = self;
        let (mut head, body) = answer.into_parts();
        let handed_over = head
            .extensions
            .remove::<rpc::HandedOver>()
            .and_then(|handed_over| handed_over.take());

        let body = match handed_over {
            Some(body) => Body::new(Holding {
                body,
                watch_over,
                _held: until_end,
            }),
            // A refusal is all in its headers.
            None if hyper::body::Body::is_end_stream(&body) => body,
            None => {
                // A backup has a place of its own.
                let unread = unread.filter(|_| !rpc::is_prepaid(&head.extensions));
                if let Some((pool, standing)) = unread {
                    match answers.begin(&payer) {
                        Ok(unread) => until_end.unread = Some((unread, pool.begin(&standing).0)),
                        Err(refused) => return refused.into_http(),
                    }
                }

                let body = rpc::AnswerBody::new(&answers, payer, &mut head.extensions, body);
                Body::new(Holding {
                    body,
                    watch_over,
                    _held: until_end,
                })
            }
        };
        Response::from_parts(head, body)
    }
}

/// By what an answer is counted that is made of a call's answer.
#[derive(Clone, Debug)]
pub(super) struct Account {
    answers: Arc<rpc::Answers>,
    payer: Payer,
    unread: Option<(Arc<Unfinished>, Arc<Standing>)>,
}

impl Account {
    pub(super) fn payer(&self) -> &Payer {
        &self.payer
    }

    /// A body of `bytes` that is held to its share of memory and to its time, like that of any answer. If the client does not take
    /// it in time, the body ends with a status in trailers.
    pub(super) fn body(&self, bytes: Bytes) -> Result<Body, Status> {
        let mut until_end = UntilEnd::default();
        if let Some((pool, standing)) = &self.unread {
            let unread = self.answers.begin(&self.payer)?;
            until_end.unread = Some((unread, pool.begin(standing).0));
        }
        let body = rpc::AnswerBody::<Body>::whole(&self.answers, self.payer.clone(), bytes)?;
        Ok(Body::new(Holding {
            body,
            watch_over: None,
            _held: until_end,
        }))
    }
}

/// A body that holds something until it is dropped. A `Watch` may have to end early.
struct Holding<B> {
    body: B,
    watch_over: Option<WatchOver>,
    _held: UntilEnd,
}

impl<B: hyper::body::Body + Unpin> hyper::body::Body for Holding<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let (Poll::Pending, Some(watch_over)) = (&frame, &mut self.watch_over) else {
            return frame;
        };

        let status = ready!(watch_over.poll(cx));
        self.watch_over = None;
        let mut trailers = HeaderMap::new();
        // A status of ours has nothing that could not be a header.
        let _ = status.add_header(&mut trailers).is_ok();
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
