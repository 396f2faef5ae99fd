//! From a request to a callback: who sends it, whether it may be sent, and its body.

use std::net::IpAddr;

use axum::{
    body::HttpBody,
    http::{Method, Request},
};
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::{
    Ingest, LAST_REQUEST, RequestContext,
    answer::{self, Reply},
    body,
    budget::Sender,
    encoding,
    verify::{self, Rules, Verified},
};
use crate::{
    callback::{Callback, WebhookPath},
    event::Verification,
    web,
};

/// From here on reading a body costs more than asking whether there is a budget for it.
const LARGE_BODY_BYTES: u64 = 16 * 1024;

impl Ingest {
    /// Takes one request to a webhook; `client` is the address it comes from.
    pub(super) async fn receive<B>(
        &self,
        request: Request<B>,
        rules: &Rules,
        client: IpAddr,
        context: &mut RequestContext,
    ) -> Result<Reply, Reply>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let path = WebhookPath::parse(request.uri().path()).ok_or(Reply::NotFound(None))?;
        self.admit(&request, &path, rules)?;
        if !context.is_test {
            rules.check_address(client, &self.metrics)?;
        }

        // A near miss of the path is kept only if it is authentic; to others it is a path like any other.
        let is_near_miss = path.near_miss.is_some();
        let hidden = |refused| match refused {
            Reply::Unauthorized(denied) if is_near_miss => Reply::NotFound(Some(denied)),
            refused => refused,
        };

        let query = request.uri().query().unwrap_or_default().to_owned();
        let now = self.clock.earliest();
        let verified = rules
            .check_url(request.uri().path(), &path, &query, now, &self.metrics)
            .map_err(hidden)?;
        let verified = context.verified.insert(verified);
        context.span.note("URL verified");

        // A large body for which there is no budget is not even read. One that is too large has an answer of its own.
        let encodings = encoding::of(request.headers())?;
        let url_product = path.product.as_deref().unwrap_or_default();
        let claimed = request.body().size_hint().lower();
        if claimed <= self.limits.body_bytes_max as u64 {
            self.check_budget(&verified.sender, url_product, claimed)?;
        }

        let signature = request.headers().get(verify::SIGNATURE).cloned();
        let body = tokio::select! {
            biased; // a body that has arrived needs no look at the rest
            body = body::read(request, &self.limits, &self.inflight) => body?,
            () = self.last_request_over() => return Err(Reply::Draining),
        };
        context.span.note("body read");
        let started = Instant::now();
        let decoded = encodings
            .decode(&body.bytes, self.limits.body_bytes_max, &self.inflight)
            .await?;
        let as_sent_and_decoded = [Some(&body.bytes), decoded.as_ref().map(|it| &it.bytes)];
        let is_signed = rules
            .check_body(signature.as_ref(), as_sent_and_decoded, now, &self.metrics)
            .map_err(hidden)?;

        // Asked again: nobody may have said how large the body is.
        let body = decoded.unwrap_or(body);
        self.check_budget(&verified.sender, url_product, body.bytes.len() as u64)?;

        let callback = self.callback(path, query, body.bytes.clone(), verified, is_signed);
        let deadline = started + self.limits.answer_timeout;
        let reply = self
            .keep(&callback, verified, deadline, &mut context.span, context.id)
            .await;
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.callback_seconds.observe(seconds);
        Ok(reply)
    }

    /// Refuses what no credential could make a callback.
    fn admit<B>(
        &self,
        request: &Request<B>,
        path: &WebhookPath,
        rules: &Rules,
    ) -> Result<(), Reply> {
        if request.method() != Method::POST {
            return Err(match path.near_miss {
                Some(_) => Reply::NotFound(None),
                None => Reply::MethodNotAllowed {
                    wants_html: answer::wants_html(request.headers()),
                },
            });
        }

        if self.draining.is_cancelled() {
            return Err(Reply::Draining);
        }
        if web::is_foreign(request, rules.public_url.as_deref(), &[]) {
            return Err(Reply::ForeignOrigin);
        }
        Ok(())
    }

    fn callback(
        &self,
        path: WebhookPath,
        query: String,
        body: Bytes,
        verified: &Verified,
        is_signed: bool,
    ) -> Callback {
        Callback {
            product: path.product,
            near_miss: path.near_miss,
            query,
            body,
            received_at: self.clock.now(),
            verification: if is_signed {
                Verification::BodySignature
            } else {
                verified.verification
            },
            credential: verified.sender.credential.on_event(is_signed),
            bound: verified.bound.clone(),
        }
    }

    fn check_budget(&self, sender: &Sender, product: &str, body_bytes: u64) -> Result<(), Reply> {
        // A small body is asked about when its bytes are taken out of the budget.
        if body_bytes < LARGE_BODY_BYTES {
            return Ok(());
        }
        self.budgets
            .has(sender, product, body_bytes, Instant::now())
            .map_err(Reply::BudgetExceeded)
    }

    async fn last_request_over(&self) {
        self.draining.cancelled().await;
        sleep(LAST_REQUEST).await;
    }
}
