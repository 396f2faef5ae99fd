//! An export: all pages of `ListEvents` as one answer of lines. Each page is a call, which is made when the lines of the one before
//! were taken, and is let in, counted and ended like any other.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{body::Body, http::HeaderValue, response::Response};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};

use super::{
    calls::{Calls, Template},
    decode::transcoded,
    reply,
};
use crate::{
    door::{Problem, lines_of},
    server::http::Lasting,
};

const LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// The answer whose first page is `answer`.
pub(super) async fn answer(
    calls: &Calls,
    template: Template,
    message: Vec<u8>,
    answer: Response,
) -> Response {
    let id = reply::id_of(&answer);
    match page_of(message, answer).await {
        Ok(page) => {
            let lines = Lines {
                calls: calls.clone(),
                template: Some(template.aside()),
                step: Step::Sending(page),
            };
            let mut answer = reply::of_type(LINES, Body::new(lines), id);
            answer.extensions_mut().insert(Lasting);
            answer
        }
        Err(refused) => reply::problem(&refused, id),
    }
}

/// The lines of one page, and the request for the next.
struct Page {
    lines: Body,
    next: Option<Vec<u8>>,
}

async fn page_of(request: Vec<u8>, answer: Response) -> Result<Page, Problem> {
    let (message, account) = reply::message_of(answer).await?;
    let page = transcoded(message, move |message| {
        lines_of(&request, message).map_err(|error| reply::broken(&error))
    });
    let page = page.await.map_err(|status| Problem::of_status(&status))?;
    let lines = reply::counted(page.lines, &account);
    let (lines, _) = lines.map_err(|status| Problem::of_status(&status))?;
    Ok(Page {
        lines,
        next: page.next,
    })
}

/// See the module's description. A page that is refused breaks the answer off, so that nobody takes it for all.
struct Lines {
    calls: Calls,
    /// `None` while a call is made with it.
    template: Option<Template>,
    step: Step,
}

/// A call under way, which gives back what it is made with.
type Asking = Pin<Box<dyn Future<Output = (Template, Result<Page, Problem>)> + Send>>;

enum Step {
    Sending(Page),
    Asking(Asking),
    Over,
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        loop {
            match &mut this.step {
                Step::Over => return Poll::Ready(None),
                Step::Sending(page) => {
                    if let Some(frame) = ready!(Pin::new(&mut page.lines).poll_frame(cx)) {
                        return Poll::Ready(Some(frame));
                    }
                    this.step = match (page.next.take(), this.template.take()) {
                        (Some(request), Some(template)) => {
                            Step::Asking(ask(this.calls.clone(), template, request))
                        }
                        _ => Step::Over,
                    };
                }
                Step::Asking(asking) => {
                    let (template, page) = ready!(asking.as_mut().poll(cx));
                    this.template = Some(template);
                    match page {
                        Ok(page) => this.step = Step::Sending(page),
                        Err(refused) => {
                            this.step = Step::Over;
                            let error = std::io::Error::other(refused.detail);
                            return Poll::Ready(Some(Err(axum::Error::new(error))));
                        }
                    }
                }
            }
        }
    }
}

fn ask(calls: Calls, template: Template, request: Vec<u8>) -> Asking {
    Box::pin(async move {
        let answer = calls.with_message(&template, &request).await;
        let page = page_of(request, answer).await;
        (template, page)
    })
}
