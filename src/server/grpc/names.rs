//! The names by which web pages may ask without a token and without TLS. A page of a foreign name could have its name resolve to this
//! broker (DNS rebinding), and has no token.

use axum::{extract::Request, http::header::AUTHORIZATION};

use crate::{config, web};

/// See the module's description.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(Option<Known>);

#[derive(Clone, Debug)]
struct Known {
    port: u16,
    hosts: Vec<String>,
}

impl Names {
    pub(super) fn of(config: &config::Grpc, port: u16) -> Self {
        // With TLS a browser has made sure of the name.
        Self(config.tls_certificate_file.is_none().then(|| Known {
            port,
            hosts: config.hosts.clone(),
        }))
    }

    /// Whether a request may have the name that it is sent to.
    pub(super) fn allow(&self, request: &Request) -> bool {
        let Some(Known { port, hosts }) = &self.0 else {
            return true;
        };
        let is_ours =
            |name: Option<&str>| name.is_some_and(|name| web::is_ours(name, *port, hosts));
        request.headers().contains_key(AUTHORIZATION) || web::authorities(request).all(is_ours)
    }
}
