//! The gRPC client: the brokers' addresses and credentials, and which errors a retry can help.
//!
//! Every client verb connects through here. Which of several brokers is asked is decided in
//! `addresses`, and what an error is called in `problem`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use hyper::Uri;
use tonic::{
    Code, Request, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt;

use super::{
    addresses::{Brokers, NoBroker, Turn, Urls, shown},
    output::unreadable,
    problem::{Problem, Refusal, problems, reason},
    proxy::ForeignAnswer,
};
use crate::wire::{
    Reason,
    v1::{admin_service_client::AdminServiceClient, event_service_client::EventServiceClient},
};

/// A server in the same network connects in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A quiet connection is pinged this often, so that a vanished broker is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// Time for the answer to a ping.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest response. Events and answers stay below tonic's default of 4 MiB; pages of the
/// quarantine may be larger.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// This many consecutive refusals that are not from a broker end a client. A single one may come
/// from a proxy during a restart.
const REFUSALS_MAX: u32 = 3;

/// Environment variable with the token itself.
const TOKEN_VARIABLE: &str = "BLOBCAST_TOKEN";

/// The flags that every client verb has: the brokers' addresses, and credentials for them.
#[derive(Args, Clone, Debug)]
pub(super) struct GrpcArgs {
    /// Address of the broker's gRPC listener. For a cluster, those of several nodes, separated by
    /// commas or each with a flag of its own: when one is away, the next one is asked.
    #[arg(
        long = "grpc-url",
        value_name = "URL",
        env = "BLOBCAST_GRPC_URL",
        default_value = "http://127.0.0.1:50051",
        value_parser = Urls::parse,
        hide_env_values = true
    )]
    grpc_urls: Vec<Urls>,
    #[arg(skip)]
    turn: Turn,
    /// File with the client token. `blobcast token new client` makes one; BLOBCAST_TOKEN can hold
    /// the token itself.
    #[arg(long, value_name = "PATH", env = "BLOBCAST_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with a client certificate, for an https:// broker. The broker's own certificate is
    /// checked against the system's roots, or those in SSL_CERT_FILE.
    #[arg(
        long,
        value_name = "PATH",
        env = "BLOBCAST_TLS_CERTIFICATE_FILE",
        requires = "tls_key_file"
    )]
    tls_certificate_file: Option<PathBuf>,
    /// PEM file with the private key of that certificate.
    #[arg(
        long,
        value_name = "PATH",
        env = "BLOBCAST_TLS_KEY_FILE",
        requires = "tls_certificate_file"
    )]
    tls_key_file: Option<PathBuf>,
}

/// A channel that sends the token, if any, with each call, refuses answers that are not gRPC, and
/// goes on at the next broker when one is away.
pub(super) type Connection = InterceptedService<Brokers, Bearer>;

/// The interceptor that adds the token.
#[derive(Clone)]
pub(super) struct Bearer(Option<AsciiMetadataValue>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// The `authorization` header with the client token, if there is one.
pub(super) fn bearer(token_file: Option<&Path>) -> anyhow::Result<Option<AsciiMetadataValue>> {
    let token = match token_file {
        Some(path) => {
            let read = std::fs::read_to_string(path);
            Some(read.map_err(|error| unreadable("the token in", path, &error))?)
        }
        // There is no flag for the token: every user of the machine can see command lines.
        None => std::env::var(TOKEN_VARIABLE).ok(),
    };
    let Some(token) = token.filter(|token| !token.trim().is_empty()) else {
        return Ok(None);
    };
    let header = AsciiMetadataValue::try_from(format!("Bearer {}", token.trim()));
    let mut header = header.context("the token has invalid characters: is it a token?")?;
    header.set_sensitive(true);
    Ok(Some(header))
}

impl GrpcArgs {
    #[cfg(test)]
    pub(super) fn at(url: &str) -> Self {
        Self {
            grpc_urls: vec![Urls::parse(url).unwrap()],
            turn: Turn::default(),
            token_file: None,
            tls_certificate_file: None,
            tls_key_file: None,
        }
    }

    /// A client of the event service. Connects at the first call, and again after a failure.
    pub(super) fn events(&self) -> anyhow::Result<EventServiceClient<Connection>> {
        Ok(EventServiceClient::new(self.connection()?)
            .max_decoding_message_size(RESPONSE_BYTES_MAX))
    }

    /// A client of the admin service, likewise.
    pub(super) fn admin(&self) -> anyhow::Result<AdminServiceClient<Connection>> {
        Ok(AdminServiceClient::new(self.connection()?)
            .max_decoding_message_size(RESPONSE_BYTES_MAX))
    }

    /// The one-line error for a failed call.
    pub(super) fn error(&self, status: &Status) -> anyhow::Error {
        match NoBroker::behind(status) {
            Some(none) => error_of_all("no broker took the call", none.refusals()),
            None if self.has_others() => Problem::of_one(status, &self.broker()).into_error(),
            None => Problem::of(status, &self.broker()).into_error(),
        }
    }

    /// The same for each broker alone.
    pub(super) fn each(&self) -> Vec<Self> {
        let alone = |url: &Uri| Self {
            grpc_urls: vec![Urls::one(url.clone())],
            turn: Turn::default(),
            ..self.clone()
        };
        self.urls().map(alone).collect()
    }

    /// Whether there are several brokers, so that the next call may go to another one.
    pub(super) fn has_others(&self) -> bool {
        self.urls().count() > 1
    }

    /// Turns to the next broker, if there is one, after a stream or an answer of this one has failed.
    pub(super) fn leave(&self) {
        if self.has_others() {
            self.turn.pass();
        }
    }

    /// The URL of the broker whose turn it is.
    pub(super) fn broker(&self) -> String {
        let index = self.turn.index(self.urls().count());
        self.urls().nth(index).map(shown).unwrap_or_default()
    }

    /// The delay before a retry that the broker asks for. It asks for it for itself: another broker
    /// need not be spared.
    pub(super) fn retry_delay(&self, status: &Status) -> Option<Duration> {
        let is_for_one = self.has_others() && NoBroker::behind(status).is_none();
        status
            .get_details_retry_info()?
            .retry_delay
            .filter(|_| !is_for_one)
    }

    fn urls(&self) -> impl Iterator<Item = &Uri> {
        self.grpc_urls.iter().flat_map(Urls::iter)
    }

    fn connection(&self) -> anyhow::Result<Connection> {
        let endpoints = self.urls().map(|url| self.endpoint(url));
        let endpoints = endpoints.collect::<anyhow::Result<_>>()?;
        Ok(InterceptedService::new(
            Brokers::new(endpoints, self.turn.clone()),
            Bearer(bearer(self.token_file.as_deref())?),
        ))
    }

    fn tls(&self) -> anyhow::Result<ClientTlsConfig> {
        let tls = ClientTlsConfig::new().with_native_roots();
        let (Some(certificate), Some(key)) = (&self.tls_certificate_file, &self.tls_key_file)
        else {
            return Ok(tls);
        };
        let read = |flag, path: &PathBuf| {
            std::fs::read(path).map_err(|error| unreadable(flag, path, &error))
        };
        let certificate = read("--tls-certificate-file", certificate)?;
        Ok(tls.identity(Identity::from_pem(
            certificate,
            read("--tls-key-file", key)?,
        )))
    }

    fn endpoint(&self, url: &Uri) -> anyhow::Result<Endpoint> {
        let endpoint = Endpoint::from(url.clone())
            .user_agent(concat!("blobcast/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        match url.scheme_str() {
            Some("https") => endpoint
                .tls_config(self.tls()?)
                .context("TLS cannot be used"),
            _ => Ok(endpoint),
        }
    }
}

/// The one-line error where several brokers have failed.
pub(super) fn error_of_all(what: &str, refusals: &[Refusal]) -> anyhow::Error {
    let (why, steps) = problems(refusals);
    anyhow::anyhow!("{what}: {why}{steps}")
}

/// Decides which errors end a client that otherwise retries for ever. An error with a broker's
/// reason is decided by that reason. Any other error comes from something in between and is
/// retried, unless it is a refusal that repeats.
#[derive(Debug, Default)]
pub(super) struct RetryPolicy {
    /// Consecutive refusals that are not from a broker.
    refusals: u32,
}

impl RetryPolicy {
    /// True if a retry cannot help.
    pub(super) fn is_final(&mut self, status: &Status) -> bool {
        if let Some(foreign) = ForeignAnswer::behind(status)
            && foreign.is_the_brokers()
        {
            return true;
        }
        if reason(status).is_some() {
            self.refusals = 0;
            return is_final_for_the_broker(status);
        }

        let is_refusal = matches!(
            status.code(),
            Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented
        );
        self.refusals = if is_refusal { self.refusals + 1 } else { 0 };
        self.refusals == REFUSALS_MAX
    }

    /// After an answer of a broker.
    pub(super) fn reset(&mut self) {
        self.refusals = 0;
    }
}

/// Whether the same request would fail again.
fn is_final_for_the_broker(status: &Status) -> bool {
    // A limit of the request names the field. A limit of the server does not: it may have room
    // again later.
    let too_large = status.code() == Code::ResourceExhausted
        && reason(status).is_some_and(|info| {
            info.metadata.contains_key("field")
                || Reason::of(status) == Some(Reason::RequestTooLarge)
        });
    too_large
        || is_ended(status)
        || matches!(
            status.code(),
            Code::InvalidArgument
                | Code::OutOfRange
                | Code::FailedPrecondition
                | Code::Unauthenticated
                | Code::PermissionDenied
                | Code::DataLoss
                | Code::Unimplemented
        )
}

/// Whether an administrator has ended the stream, so that it should not reconnect by itself.
pub(super) fn is_ended(status: &Status) -> bool {
    Reason::of(status) == Some(Reason::SubscriptionEnded)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;
    use crate::{cli::problem::code_name, wire::DOMAIN};

    fn of_broker(code: Code, reason: &str, key: &str) -> Status {
        let metadata = HashMap::from([(key.to_owned(), "1".to_owned())]);
        Status::with_error_details(
            code,
            "",
            ErrorDetails::with_error_info(reason, DOMAIN, metadata),
        )
    }

    #[test]
    fn errors_of_a_broker_are_final_only_if_a_retry_cannot_help() {
        let is_final = |reason, key| {
            RetryPolicy::default().is_final(&of_broker(Code::ResourceExhausted, reason, key))
        };
        assert!(is_final("REQUEST_TOO_LARGE", "limit") && is_final("SUBSCRIPTION_LIMIT", "field"));
        assert!(
            !is_final("SUBSCRIPTION_LIMIT", "limit"),
            "the server may have room again"
        );
        let by_admin =
            |reason| RetryPolicy::default().is_final(&of_broker(Code::Aborted, reason, "k"));
        assert!(by_admin("SUBSCRIPTION_ENDED") && !by_admin("REPLACED"));
        let finals = (0..17)
            .map(Code::from)
            .filter(|&code| RetryPolicy::default().is_final(&of_broker(code, "R", "k")));
        let expected = [
            "INVALID_ARGUMENT",
            "PERMISSION_DENIED",
            "FAILED_PRECONDITION",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
        ];
        let expected: Vec<_> = expected
            .into_iter()
            .chain(["DATA_LOSS", "UNAUTHENTICATED"])
            .collect();
        assert_eq!(finals.map(code_name).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_error_that_is_not_from_a_broker_is_final_only_as_the_third_refusal_in_a_row() {
        for code in (1..17).map(Code::from) {
            let mut retry_policy = RetryPolicy::default();
            let finals = (0..4)
                .map(|_| retry_policy.is_final(&Status::new(code, "")))
                .collect::<Vec<_>>();
            let is_refusal = ["UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"]
                .contains(&&*code_name(code));
            assert_eq!(finals, [false, false, is_refusal, false], "{code:?}");
        }
        let mut retry_policy = RetryPolicy::default();
        let mut says = |code| retry_policy.is_final(&Status::new(code, ""));
        use Code::{Unavailable, Unimplemented};
        let codes = [
            Unimplemented,
            Unimplemented,
            Unavailable,
            Unimplemented,
            Unimplemented,
            Unimplemented,
        ];
        assert_eq!(
            codes.map(&mut says),
            [false, false, false, false, false, true]
        );
        let of_another = ErrorDetails::with_error_info("R", "envoy", HashMap::new());
        assert!(
            !RetryPolicy::default().is_final(&Status::with_error_details(
                Code::OutOfRange,
                "",
                of_another
            ))
        );
    }
}
