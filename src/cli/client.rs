//! The gRPC client: the broker's address and credentials, error messages for people, and which
//! errors a retry can help.
//!
//! Every client verb connects through here. It distinguishes errors of the connection, of a proxy and
//! of the broker, and each message names the next step.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Args;
use hyper::Uri;
use tonic::{
    Code, Request, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::{ErrorInfo, StatusExt};

use super::{
    args,
    output::unreadable,
    proxy::{ForeignAnswer, GrpcOnly},
    user_info::Shown,
};
use crate::{
    causes::{innermost, untrusted},
    wire::{
        DOMAIN, Reason,
        v1::{admin_service_client::AdminServiceClient, event_service_client::EventServiceClient},
    },
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

/// The flags that every client verb has: the broker's address, and credentials for it.
#[derive(Args, Clone, Debug)]
pub(super) struct GrpcArgs {
    /// Address of the broker's gRPC listener.
    #[arg(long, value_name = "URL", env = "BLOBCAST_GRPC_URL", default_value = "http://127.0.0.1:50051", value_parser = args::http_url, hide_env_values = true)]
    grpc_url: Uri,
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

/// A channel that sends the token, if any, with each call, and refuses answers that are not gRPC.
pub(super) type Connection = InterceptedService<GrpcOnly<Channel>, Bearer>;

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

impl GrpcArgs {
    #[cfg(test)]
    pub(super) fn at(url: &str) -> Self {
        Self {
            grpc_url: args::http_url(url).unwrap(),
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

    /// The one-line error for a failed call to this broker.
    pub(super) fn error(&self, status: &Status) -> anyhow::Error {
        status_error(
            status,
            Shown(&self.grpc_url).to_string().trim_end_matches('/'),
        )
    }

    fn connection(&self) -> anyhow::Result<Connection> {
        Ok(InterceptedService::new(
            GrpcOnly(self.channel()?),
            Bearer(self.bearer()?),
        ))
    }

    fn bearer(&self) -> anyhow::Result<Option<AsciiMetadataValue>> {
        let token = match &self.token_file {
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

    fn channel(&self) -> anyhow::Result<Channel> {
        let endpoint = Endpoint::from(self.grpc_url.clone())
            .user_agent(concat!("blobcast/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let endpoint = match self.grpc_url.scheme_str() {
            Some("https") => endpoint
                .tls_config(self.tls()?)
                .context("TLS cannot be used")?,
            _ => endpoint,
        };
        Ok(endpoint.connect_lazy())
    }
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

/// The broker's reason; `None` if the status is not from a broker.
fn reason(status: &Status) -> Option<ErrorInfo> {
    status
        .get_details_error_info()
        .filter(|info| info.domain == DOMAIN)
}

/// The delay before a retry that the broker asks for.
pub(super) fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// `CODE REASON: message (details); next step`, on one line.
pub(super) fn status_error(status: &Status, url: &str) -> anyhow::Error {
    if let Some(foreign) = ForeignAnswer::behind(status) {
        return foreign_answer(foreign, url);
    }

    let reason = reason(status);
    if reason.is_none()
        && let Some(error) = connection_error(status, url)
    {
        return error;
    }

    let mut text = code_name(status.code());
    let (reason, metadata) = reason
        .map(|info| (info.reason, info.metadata))
        .unwrap_or_default();
    if !reason.is_empty() {
        text = format!("{text} {reason}");
    }

    let mut message = status.message().to_owned();
    let violations = status
        .get_details_bad_request()
        .map(|bad| bad.field_violations)
        .unwrap_or_default();

    let named = violations
        .iter()
        .map(|v| format!("{}: {}", v.field, v.description))
        .collect::<Vec<_>>()
        .join(", ");

    if !named.is_empty() && !message.contains(&named) {
        message = if message.is_empty() {
            named
        } else {
            format!("{message} ({named})")
        };
    }

    let mut metadata: Vec<_> = metadata
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();

    metadata.sort();
    if !metadata.is_empty() {
        message = format!("{message} [{}]", metadata.join(" "));
    }

    if !message.is_empty() {
        text = format!("{text}: {message}");
    }

    match next_step(status.code(), Reason::of(status)) {
        Some(step) => anyhow::anyhow!("{text}; {step}"),
        None => anyhow::anyhow!(text),
    }
}

fn next_step(code: Code, reason: Option<Reason>) -> Option<&'static str> {
    Some(match reason {
        Some(Reason::CursorExpired) => {
            "start with the oldest retained event with `--from earliest`, or pass `--on-expired \
             earliest` to continue and print the gap"
        }
        Some(Reason::CursorAhead) => {
            "the log ends before it; was it restored? start again with `--from earliest`"
        }
        Some(Reason::EpochMismatch) => {
            "the cursor belongs to another log: this one was recreated or restored; start again \
             with `--from earliest`"
        }
        Some(Reason::SubscriptionLimit) => {
            "close other subscriptions, ask for less, or have the server's limit raised"
        }
        Some(Reason::TokenInvalid) => {
            "show a token with --token-file or BLOBCAST_TOKEN; the broker's operator hands them out"
        }
        Some(Reason::AdminDenied) => "use the token of a client that has this right",
        Some(Reason::SigningKeyMissing) => {
            "`blobcast token new signing-key NAME` makes a line for the credentials file"
        }
        Some(Reason::ProductDenied) => "ask the broker's operator for this product",
        Some(Reason::LabelDenied) => "start it again, after the last cursor",
        Some(Reason::Draining | Reason::StoreBehind) => "try again in a moment",
        Some(Reason::StoreReadOnly) => {
            "try again later; the broker's operator has to look at its disk"
        }
        Some(Reason::LogCorrupt) => "the broker's operator has to look at its log",
        Some(Reason::TaskNotFound) => "`blobcast wait` waits for a task without events yet",
        Some(Reason::SubscriptionNotFound) => "`blobcast subscriptions` shows what is open",
        Some(Reason::QuarantineNotFound) => "`blobcast quarantine list` shows what there is",
        _ if code == Code::Unimplemented => {
            "is this a blobcast gRPC address, and as new as this client? see --grpc-url"
        }
        _ => return None,
    })
}

fn foreign_answer(foreign: &ForeignAnswer, url: &str) -> anyhow::Error {
    if foreign.is_the_brokers() {
        return anyhow::anyhow!("{url}: {foreign}");
    }
    if foreign.is_a_gateways() {
        return anyhow::anyhow!(
            "{url}: {foreign}; the broker behind it is not reachable, or it is not set up for gRPC"
        );
    }
    anyhow::anyhow!("{url}: {foreign}; is it a blobcast gRPC address? use --grpc-url")
}

/// The error of the connection, if the status stands for one: a status from the broker has no
/// source.
fn connection_error(status: &Status, url: &str) -> Option<anyhow::Error> {
    let cause = cause(status);
    if let Some(step) = untrusted(status) {
        return Some(anyhow::anyhow!("cannot reach {url}: {cause}; {step}"));
    }
    if status.code() == Code::Unavailable {
        return Some(anyhow::anyhow!(
            "cannot reach {url}: {cause}; is `blobcast serve` running? use --grpc-url"
        ));
    }
    std::error::Error::source(status)?;
    Some(match status.message() {
        // Connected, but the other side does not speak HTTP/2.
        "transport error" => {
            anyhow::anyhow!(
                "cannot talk to {url}: {cause}; is it a blobcast gRPC address? use --grpc-url"
            )
        }
        _ => anyhow::anyhow!("the connection to {url} broke: {cause}"),
    })
}

// The status of a failed connection only says "transport error"; its innermost source says why.
fn cause(status: &Status) -> String {
    if std::error::Error::source(status).is_some() {
        innermost(status)
    } else {
        status.message().to_owned()
    }
}

/// The code as the gRPC documentation spells it: `OUT_OF_RANGE`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn rendered(status: &Status) -> String {
        status_error(status, "http://localhost:1").to_string()
    }

    #[test]
    fn an_error_names_code_reason_message_details_and_the_next_step() {
        let metadata = HashMap::from([
            ("head".to_owned(), "ff".to_owned()),
            ("first_available".to_owned(), "0a".to_owned()),
        ]);
        let details = ErrorDetails::with_error_info("CURSOR_EXPIRED", "blobcast", metadata);
        let text = rendered(&Status::with_error_details(
            Code::OutOfRange,
            "too old",
            details,
        ));
        assert!(
            text.starts_with("OUT_OF_RANGE CURSOR_EXPIRED: too old [first_available=0a head=ff]; "),
            "{text}"
        );
        assert!(text.contains("--from earliest"), "{text}");
    }

    #[test]
    fn a_bad_request_names_its_fields() {
        let details = ErrorDetails::with_bad_request_violation("filter.task_ids[0]", "too long");
        let text = rendered(&Status::with_error_details(
            Code::InvalidArgument,
            "malformed",
            details,
        ));
        assert_eq!(
            text,
            "INVALID_ARGUMENT: malformed (filter.task_ids[0]: too long)"
        );
    }

    #[test]
    fn a_failed_connection_is_reported_without_a_grpc_code() {
        let text = rendered(&Status::unavailable("tcp connect error"));
        assert_eq!(
            text,
            "cannot reach http://localhost:1: tcp connect error; is `blobcast serve` running? use \
             --grpc-url"
        );
    }

    #[test]
    fn codes_are_spelt_as_in_the_documents() {
        let names = [
            Code::Ok,
            Code::OutOfRange,
            Code::DataLoss,
            Code::Unauthenticated,
        ]
        .map(code_name);
        assert_eq!(
            names,
            ["OK", "OUT_OF_RANGE", "DATA_LOSS", "UNAUTHENTICATED"]
        );
    }

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
