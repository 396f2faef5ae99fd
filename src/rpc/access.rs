//! Authentication of calls: who the caller is, and which calls it may make. `narrow_filter` has which events it may see, and
//! `permission_review` what happens when a permission is lost.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderValue},
};
use tonic::{Request, Status};

use super::errors;
use crate::{
    audit::Actor,
    credentials::{Certificate, Client, Credentials, Denial, SharedCredentials},
    metrics::Metrics,
    store::Clock,
    subscription::Heard,
};

const BEARER: &str = "bearer ";

/// The other end of a connection, as the listener that accepted it knows it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The certificate of the TLS handshake, verified at that time.
    pub certificate: Option<Arc<Certificate>>,
    /// When it last sent anything.
    pub heard: Heard,
    /// The client that is logged in to the console.
    pub session: Option<Arc<Client>>,
}

/// An extension of a request whose owner needs to know afterwards whether the gate has admitted the call.
#[derive(Clone, Debug, Default)]
pub(crate) struct LetIn(Arc<AtomicBool>);

impl LetIn {
    /// Whether the call was admitted.
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// An extension of a request whose owner needs to know the client's own name, which is in the request's message.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientName(Arc<OnceLock<String>>);

impl ClientName {
    /// The name, once it is known.
    pub(crate) fn get(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    /// Notes the name for the extension's owner.
    pub(super) fn note<T>(request: &Request<T>, name: &str) {
        if let Some(asked) = request.extensions().get::<Self>() {
            let _ = asked.0.set(name.to_owned()).is_ok();
        }
    }
}

/// The client that a call was admitted as.
pub(crate) fn client_of<T>(request: &hyper::Request<T>) -> Option<Arc<str>> {
    request
        .extensions()
        .get::<Caller>()?
        .0
        .as_ref()
        .map(|client| Arc::clone(&client.name))
}

/// Admits calls by their headers alone, before the rest of a call is read. The message of a call may arrive seconds later, so services
/// ask once more (`Gate::caller_of`). All services share one gate.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    /// The clients, and what authenticates them.
    pub credentials: Arc<SharedCredentials>,
    /// Credentials expire by the log's clock: one wrong reading of the machine's clock must not end every stream.
    pub clock: Arc<Clock>,
    /// A caller without credentials may do everything, even if the credentials file has clients.
    pub allow_anonymous: bool,
    /// The listener can be reached from this machine only.
    pub is_loopback: bool,
    /// Counts refusals and uses of credentials.
    pub metrics: Arc<Metrics>,
}

impl Gate {
    /// Whether a caller without credentials may do everything now.
    pub(crate) fn is_open(&self) -> bool {
        self.admits_anonymous(&self.credentials.get())
    }

    /// Whether anybody could log in.
    pub(crate) fn has_clients(&self) -> bool {
        self.credentials.get().verify_clients()
    }

    /// The client with a token.
    pub(crate) fn client_of(&self, token: &str) -> Option<Arc<Client>> {
        let (credentials, now) = (self.credentials.get(), self.clock.earliest());
        let client = credentials.client_of_token(token, now).cloned();
        match &client {
            Some(client) => self.metrics.credential_used(
                "client",
                &client.name,
                client.generation().as_str(),
                now,
            ),
            None => self.metrics.calls_unauthenticated.inc(),
        }
        client
    }

    /// A client that was let in before, with the rights that it has now.
    pub(crate) fn still(&self, client: &Client) -> Option<Arc<Client>> {
        let (credentials, now) = (self.credentials.get(), self.clock.earliest());
        credentials.current(client, now).cloned()
    }

    pub(super) fn admits_anonymous(&self, credentials: &Credentials) -> bool {
        self.allow_anonymous || (self.is_loopback && !credentials.verify_clients())
    }

    /// The caller, by the credentials of its call.
    fn caller(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
        credentials: &Credentials,
    ) -> Result<Caller, Status> {
        let now = self.clock.earliest();
        let client = match headers.get(AUTHORIZATION) {
            // A token that is sent has to be valid, also where none is needed.
            Some(header) => {
                let client =
                    bearer(header).and_then(|token| credentials.client_of_token(token, now));
                let client = client.ok_or_else(|| {
                    errors::token_invalid("the token is not known, or has expired")
                })?;
                Some(Arc::clone(client))
            }
            None => match peer.and_then(|peer| peer.session.as_ref()) {
                Some(session) => {
                    let client = credentials.current(session, now).ok_or_else(|| {
                        errors::token_invalid("the session's token is not known any more")
                    })?;
                    Some(Arc::clone(client))
                }
                None => {
                    let certificate = peer.and_then(|peer| peer.certificate.as_ref());
                    certificate
                        .and_then(|certificate| credentials.client_of_certificate(certificate, now))
                }
            },
        };

        match client {
            Some(client) => {
                self.metrics.credential_used(
                    "client",
                    &client.name,
                    client.generation().as_str(),
                    now,
                );
                Ok(Caller(Some(client)))
            }
            None if self.admits_anonymous(credentials) => Ok(Caller(None)),
            None => Err(errors::token_invalid("send `authorization: Bearer TOKEN`")),
        }
    }

    /// The caller of a call whose message has arrived. The credentials may have changed or expired since the headers were checked, so
    /// they are checked again. A call that did not pass the gate may do nothing.
    pub(super) fn caller_of<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let extensions = request.extensions();
        let (Some(caller), Some(LetInBy(before))) =
            (extensions.get::<Caller>(), extensions.get::<LetInBy>())
        else {
            return Err(errors::token_invalid("the call was not authenticated"));
        };

        let (credentials, now) = (self.credentials.get(), self.clock.earliest());
        let is_good = caller.0.as_ref().is_none_or(|client| client.is_good(now));
        if is_good && Arc::ptr_eq(&credentials, before) {
            return Ok(caller.clone());
        }

        let judged = self.caller(request.metadata().as_ref(), extensions.get(), &credentials);
        judged.inspect_err(|_| self.metrics.calls_unauthenticated.inc())
    }

    /// Why a call was refused. For the log: the caller does not learn it.
    pub(crate) fn denial<T>(&self, request: &hyper::Request<T>) -> Denial {
        let credentials = self.credentials.get();
        let certificate = request
            .extensions()
            .get::<Peer>()
            .and_then(|peer| peer.certificate.as_ref());
        match (request.headers().get(AUTHORIZATION), certificate) {
            (Some(header), _) => credentials.denial_of_client(bearer(header)),
            (None, Some(certificate)) => credentials.denial_of_certificate(certificate),
            (None, None) => Denial::Missing,
        }
    }

    /// Admits a call and notes its caller, or refuses it.
    pub(crate) fn let_in<T>(&self, request: &mut hyper::Request<T>) -> Result<(), Status> {
        let credentials = self.credentials.get();
        let caller = self.caller(request.headers(), request.extensions().get(), &credentials)?;

        if let Some(let_in) = request.extensions().get::<LetIn>() {
            let_in.0.store(true, Ordering::Relaxed);
        }
        request.extensions_mut().insert(caller);
        request.extensions_mut().insert(LetInBy(credentials));
        Ok(())
    }

    /// Notes that the credential of a client with an open stream is in use.
    pub(crate) fn note_in_use(&self, client: &Client) {
        let (credentials, now) = (self.credentials.get(), self.clock.earliest());
        if let Some(current) = credentials.current(client, now) {
            self.metrics.credential_used(
                "client",
                &current.name,
                current.generation().as_str(),
                now,
            );
        }
    }
}

fn bearer(header: &HeaderValue) -> Option<&str> {
    let (scheme, token) = header.to_str().ok()?.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then_some(token.trim())
}

/// The credentials that were in force when the gate admitted a call.
#[derive(Clone, Debug)]
struct LetInBy(Arc<Credentials>);

/// The client that makes a call; anonymous without one.
#[derive(Clone, Debug)]
pub(super) struct Caller(pub(super) Option<Arc<Client>>);

impl Caller {
    /// The caller of `request`, for an audit record.
    pub(super) fn who<T>(&self, request: &Request<T>) -> Actor {
        let client = self.0.as_ref();
        Actor {
            client: client.map(|client| Arc::clone(&client.name)),
            certificate: client
                .and_then(|client| client.certificate_name())
                .map(str::to_owned),
            peer: request.extensions().get::<Peer>().map(|peer| peer.address),
            request_id: request.extensions().get().copied(),
        }
    }

    /// Refuses a client that may not see everything in a backup: it needs `backup = true`, or has to be an administrator of all
    /// products.
    pub(super) fn require_backup(&self) -> Result<(), Status> {
        match self.0.as_deref() {
            None | Some(Client { backup: true, .. }) => Ok(()),
            Some(client) if !client.admin => Err(errors::backup_denied(&client.name)),
            Some(client) if client.sees_all() => Ok(()),
            Some(_) => Err(errors::backup_of_all_denied()),
        }
    }

    /// Refuses a client that is not an administrator.
    pub(super) fn require_admin(&self) -> Result<(), Status> {
        match &self.0 {
            Some(client) if !client.admin => Err(errors::admin_denied(&client.name)),
            _ => Ok(()),
        }
    }
}
