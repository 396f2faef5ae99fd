//! Logs calls that are refused: whose they are, and why. One line for each reason and client in ten seconds.

use std::{net::SocketAddr, sync::Arc};

use axum::{extract::Request, http::Uri};
use tonic::{Code, Status};
use tracing::field::{DisplayValue, display};

use crate::{credentials::Denial, printable::printable_beginning, rpc, sampler::Sampler};

/// Refusals by reason and client.
#[derive(Debug, Default)]
pub(super) struct RefusedCalls(Sampler<(String, Option<Arc<str>>)>);

/// What the log says of a call when it is refused. Formatted only then: most calls are not.
pub(super) struct Call {
    uri: Uri,
    peer: Option<SocketAddr>,
    client: Option<Arc<str>>,
    client_name: rpc::ClientName,
}

impl Call {
    /// Works before a call is let in and after.
    pub(super) fn of(request: &mut Request) -> Self {
        let peer = request
            .extensions()
            .get::<rpc::Peer>()
            .map(|peer| peer.address);
        let client_name = rpc::ClientName::default();
        request.extensions_mut().insert(client_name.clone());
        Self {
            uri: request.uri().clone(),
            peer,
            client: rpc::client_of(request),
            client_name,
        }
    }

    fn method(&self) -> String {
        printable_beginning(self.uri.path().trim_start_matches('/'))
    }

    fn peer(&self) -> Option<DisplayValue<SocketAddr>> {
        self.peer.map(display)
    }
}

impl RefusedCalls {
    /// Logs a call that was not let in.
    pub(super) fn note_denied(&self, call: &Call, denial: &Denial) {
        let (cause, client) = (denial.cause(), denial.name().cloned());
        let Some(unlogged) = self.0.due((cause.to_owned(), client.clone())) else {
            return;
        };
        let (method, peer) = (call.method(), call.peer());
        let client = client.as_deref();
        tracing::warn!(
            client,
            peer,
            method,
            cause,
            unlogged,
            "call refused: {}",
            explanation(denial)
        );
    }

    /// Logs a client's call that a service has answered with `status`, if that is a refusal.
    pub(super) fn note(&self, call: &Call, status: &Status) {
        let is_refusal = matches!(
            status.code(),
            Code::InvalidArgument
                | Code::PermissionDenied
                | Code::ResourceExhausted
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::Unauthenticated
        );
        if !is_refusal {
            return;
        }

        let reason = rpc::word(status);
        let Some(unlogged) = self.0.due((reason.clone(), call.client.clone())) else {
            return;
        };

        let (method, peer, client) = (call.method(), call.peer(), call.client.as_deref());
        let client_name = call.client_name.get().map(printable_beginning);
        let message = printable_beginning(status.message());
        tracing::warn!(
            client,
            client_name,
            peer,
            method,
            reason,
            unlogged,
            "call refused: {message}"
        );
    }
}

fn explanation(denial: &Denial) -> &'static str {
    match denial {
        Denial::Missing => {
            "it shows neither a token (`authorization: Bearer TOKEN`) nor a certificate"
        }
        Denial::UnknownToken => {
            "its token is not in the credentials file: it was mistyped, or removed before this start"
        }
        Denial::Expired(_) => {
            "what this client shows has expired: renew `expires` in its line of the credentials file or its certificate, or \
             give it a new token"
        }
        Denial::Removed(_) => {
            "this client's token was removed from the credentials file, or replaced: if it is the service, give it the new one; \
             if the token leaked, this may be its finder"
        }
        Denial::Withdrawn(_) => {
            "this client's certificate was revoked, or no authority in grpc.tls_client_ca_file vouches for it any more: give \
             the client a new one, unless it was taken from it on purpose"
        }
        _ => "no client in the credentials file has a name that is in its certificate",
    }
}
