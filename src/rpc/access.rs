//! Who is calling, and what they may see.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hyper::header::AUTHORIZATION;
use tonic::{Request, Status};

use super::errors;
use crate::{
    credentials::{Certificate, Client, Credentials, Products, SharedCredentials},
    event::Filter,
    metrics::Metrics,
    store::Clock,
    subscription::Withdrawal,
};

const BEARER: &str = "bearer ";

/// The other end of a connection, as whoever accepted it knows it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// The certificate that it has shown, and that was good then.
    pub certificate: Option<Arc<Certificate>>,
}

/// Put into a call's request by whoever wants to know afterwards whether the gate has let it in.
#[derive(Clone, Debug, Default)]
pub struct LetIn(Arc<AtomicBool>);

impl LetIn {
    /// Whether it has.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Lets calls in, or not, by their headers alone, so that it can be asked before anything of a call is read. One for all services.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Who is known.
    pub credentials: Arc<SharedCredentials>,
    /// Credentials expire by this clock: one wrong reading of the machine's clock must not end every stream.
    pub clock: Arc<Clock>,
    /// Who shows nothing may do everything, whoever else is known.
    pub allow_anonymous: bool,
    /// The listener can be reached from this machine only.
    pub is_loopback: bool,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl Gate {
    fn admits_anonymous(&self, credentials: &Credentials) -> bool {
        self.allow_anonymous || (self.is_loopback && !credentials.verify_clients())
    }

    fn caller<T>(&self, request: &hyper::Request<T>) -> Result<Caller, Status> {
        let credentials = self.credentials.get();
        let now = self.clock.earliest();
        let client = match request.headers().get(AUTHORIZATION) {
            // Somebody who shows something means to be known by it.
            Some(header) => {
                let token = header.to_str().ok().and_then(|header| {
                    let (scheme, token) = header.split_at_checked(BEARER.len())?;
                    scheme.eq_ignore_ascii_case(BEARER).then_some(token.trim())
                });
                let client = token.and_then(|token| credentials.client_of_token(token, now));
                let client = client.ok_or_else(|| errors::token_invalid("the token is not known, or has expired"))?;
                Some(Arc::clone(client))
            }
            None => {
                let certificate = request.extensions().get::<Peer>().and_then(|peer| peer.certificate.as_ref());
                certificate.and_then(|certificate| credentials.client_of_certificate(certificate, now))
            }
        };
        match client {
            Some(client) => {
                self.metrics.credential_used("client", &client.name, now);
                Ok(Caller(Some(client)))
            }
            None if self.admits_anonymous(&credentials) => Ok(Caller(None)),
            None => Err(errors::token_invalid("send `authorization: Bearer TOKEN`")),
        }
    }

    /// Lets a call in, and notes as whom; or says why not.
    pub fn let_in<T>(&self, request: &mut hyper::Request<T>) -> Result<(), Status> {
        let caller = self.caller(request)?;
        if let Some(let_in) = request.extensions().get::<LetIn>() {
            let_in.0.store(true, Ordering::Relaxed);
        }
        request.extensions_mut().insert(caller);
        Ok(())
    }

    /// Whether an open stream may go on; if not, why.
    pub fn review(&self, client: Option<&Client>, filter: &Filter) -> Option<Withdrawal> {
        let credentials = self.credentials.get();
        let Some(client) = client else {
            return (!self.admits_anonymous(&credentials)).then_some(Withdrawal::Identity);
        };
        match credentials.current(client, self.clock.earliest()) {
            None => Some(Withdrawal::Identity),
            Some(current) => match &current.products {
                Products::All => None,
                Products::Only(products) => {
                    let within = !filter.products.is_empty() && filter.products.is_subset(products);
                    (!within).then_some(Withdrawal::Products)
                }
            },
        }
    }

    /// Whether an open backup may go on.
    pub(super) fn review_backup(&self, caller: &Caller) -> Result<(), Status> {
        let credentials = self.credentials.get();
        let current = match &caller.0 {
            None => self.admits_anonymous(&credentials).then_some(None),
            Some(client) => credentials.current(client, self.clock.earliest()).cloned().map(Some),
        };
        let current = current.ok_or_else(|| errors::token_invalid("the permission was withdrawn, or has expired"))?;
        Caller(current).require_backup()
    }
}

/// Whom a call was let in as; anonymous without a client.
#[derive(Clone, Debug)]
pub(super) struct Caller(pub(super) Option<Arc<Client>>);

impl Caller {
    /// As the gate has noted; a call that went past it may do nothing.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get().cloned();
        caller.ok_or_else(|| errors::token_invalid("the call was not authenticated"))
    }

    /// Leaves of a filter what the caller may see. Asking for more by name is refused.
    pub(super) fn restrict(&self, mut filter: Filter) -> Result<Filter, Status> {
        if let Some(Products::Only(products)) = self.0.as_ref().map(|client| &client.products) {
            if let Some(denied) = filter.products.iter().filter(|product| !products.contains(*product)).min() {
                return Err(errors::product_denied(denied.as_str()));
            }
            if filter.products.is_empty() {
                filter.products.clone_from(products);
            }
        }
        Ok(filter)
    }

    /// Refuses whoever may not have everything that a backup holds.
    pub(super) fn require_backup(&self) -> Result<(), Status> {
        self.require_admin()?;
        match self.0.as_ref().map(|client| &client.products) {
            Some(Products::Only(_)) => Err(errors::backup_denied()),
            _ => Ok(()),
        }
    }

    /// Refuses whoever is not an administrator.
    pub(super) fn require_admin(&self) -> Result<(), Status> {
        match &self.0 {
            Some(client) if !client.admin => Err(errors::admin_denied(&client.name)),
            _ => Ok(()),
        }
    }
}
