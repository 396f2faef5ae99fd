//! Talking to a broker: where it is, how to reach it, and what its errors mean for a person.

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
use tonic_types::StatusExt;

use super::args;
use crate::wire::v1::{admin_service_client::AdminServiceClient, event_service_client::EventServiceClient};

/// A local or data-centre address answers in milliseconds; what takes longer is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A quiet connection is asked this often whether it still works, so that a vanished broker is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// And has this long to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest response: a task with many revisions, each with a body of 1 MiB. tonic's default of 4 MiB is not enough for it.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A token, for those who have no file for it.
const TOKEN_VARIABLE: &str = "BLOBCAST_TOKEN";

/// Where the broker is.
#[derive(Args, Clone, Debug)]
pub(super) struct GrpcArgs {
    /// Address of the broker's gRPC listener.
    #[arg(long, value_name = "URL", env = "BLOBCAST_GRPC_URL", default_value = "http://127.0.0.1:50051", value_parser = args::http_url)]
    grpc_url: Uri,
    /// File with the token to show. `blobcast token new client` makes one; BLOBCAST_TOKEN may hold the token itself.
    #[arg(long, value_name = "PATH", env = "BLOBCAST_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// File with a certificate to show to an https:// broker, PEM. Whom to trust is the system's to say, or SSL_CERT_FILE's.
    #[arg(long, value_name = "PATH", env = "BLOBCAST_TLS_CERTIFICATE_FILE", requires = "tls_key_file")]
    tls_certificate_file: Option<PathBuf>,
    /// File with its key, PEM.
    #[arg(long, value_name = "PATH", env = "BLOBCAST_TLS_KEY_FILE", requires = "tls_certificate_file")]
    tls_key_file: Option<PathBuf>,
}

/// A channel that shows a token with each call, if there is one.
pub(super) type Connection = InterceptedService<Channel, Bearer>;

/// See [`Connection`].
#[derive(Clone)]
pub(super) struct Bearer(Option<AsciiMetadataValue>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

impl GrpcArgs {
    /// A broker in a test.
    #[cfg(test)]
    pub(super) fn at(url: &str) -> Self {
        Self {
            grpc_url: args::http_url(url).unwrap(),
            token_file: None,
            tls_certificate_file: None,
            tls_key_file: None,
        }
    }

    /// A client of the event service. Connects with the first call, and again after a failure.
    pub(super) fn events(&self) -> anyhow::Result<EventServiceClient<Connection>> {
        Ok(EventServiceClient::new(self.connection()?).max_decoding_message_size(RESPONSE_BYTES_MAX))
    }

    /// A client of the admin service, likewise.
    pub(super) fn admin(&self) -> anyhow::Result<AdminServiceClient<Connection>> {
        Ok(AdminServiceClient::new(self.connection()?).max_decoding_message_size(RESPONSE_BYTES_MAX))
    }

    /// The one-line error of a call that this broker refused or could not be reached for.
    pub(super) fn error(&self, status: &Status) -> anyhow::Error {
        status_error(status, self.grpc_url.to_string().trim_end_matches('/'))
    }

    fn connection(&self) -> anyhow::Result<Connection> {
        Ok(InterceptedService::new(self.channel()?, Bearer(self.bearer()?)))
    }

    fn bearer(&self) -> anyhow::Result<Option<AsciiMetadataValue>> {
        let token = match &self.token_file {
            Some(path) => {
                let read = std::fs::read_to_string(path);
                Some(read.with_context(|| format!("cannot read the token in {}", path.display()))?)
            }
            // Not a flag: a command line can be seen by every user of the machine.
            None => std::env::var(TOKEN_VARIABLE).ok(),
        };
        let Some(token) = token.filter(|token| !token.trim().is_empty()) else { return Ok(None) };
        let header = AsciiMetadataValue::try_from(format!("Bearer {}", token.trim()));
        let mut header = header.context("the token has characters that no token has")?;
        header.set_sensitive(true);
        Ok(Some(header))
    }

    fn tls(&self) -> anyhow::Result<ClientTlsConfig> {
        let tls = ClientTlsConfig::new().with_native_roots();
        let (Some(certificate), Some(key)) = (&self.tls_certificate_file, &self.tls_key_file) else { return Ok(tls) };
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(tls.identity(Identity::from_pem(read(certificate)?, read(key)?)))
    }

    fn channel(&self) -> anyhow::Result<Channel> {
        let endpoint = Endpoint::from(self.grpc_url.clone())
            .user_agent(concat!("blobcast/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let endpoint = match self.grpc_url.scheme_str() {
            Some("https") => endpoint.tls_config(self.tls()?).context("TLS cannot be used")?,
            _ => endpoint,
        };
        Ok(endpoint.connect_lazy())
    }
}

/// True if trying again cannot help: the request itself, or what it asks for, has to change.
pub(super) fn is_final(status: &Status) -> bool {
    // A limit on the request names the field; a limit on the server does not, and may have room again.
    let too_large = status.code() == Code::ResourceExhausted
        && status
            .get_details_error_info()
            .is_some_and(|info| info.metadata.contains_key("field") || info.reason == "REQUEST_TOO_LARGE");
    too_large
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

/// How long the broker asks to be left alone.
pub(super) fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// `CODE REASON: message (details); what to do next`, on one line.
pub(super) fn status_error(status: &Status, url: &str) -> anyhow::Error {
    let reason = status.get_details_error_info();
    if reason.is_none()
        && let Some(error) = connection_error(status, url)
    {
        return error;
    }
    let mut text = code_name(status.code());
    let (reason, metadata) = reason.map(|info| (info.reason, info.metadata)).unwrap_or_default();
    if !reason.is_empty() {
        text = format!("{text} {reason}");
    }
    let mut message = status.message().to_owned();
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    let named = violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect::<Vec<_>>().join(", ");
    if !named.is_empty() && !message.contains(&named) {
        message = if message.is_empty() { named } else { format!("{message} ({named})") };
    }
    let mut metadata: Vec<_> = metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
    metadata.sort();
    if !metadata.is_empty() {
        message = format!("{message} [{}]", metadata.join(" "));
    }
    if !message.is_empty() {
        text = format!("{text}: {message}");
    }
    match next_step(status.code(), &reason) {
        Some(step) => anyhow::anyhow!("{text}; {step}"),
        None => anyhow::anyhow!(text),
    }
}

fn next_step(code: Code, reason: &str) -> Option<&'static str> {
    Some(match reason {
        "CURSOR_EXPIRED" => {
            "start with what is left with `--from earliest`, or pass `--on-expired earliest` to be told of the gap and go on"
        }
        "CURSOR_AHEAD" => "the log ends before it; was it restored? start again with `--from earliest`",
        "EPOCH_MISMATCH" => {
            "the cursor is of another log, recreated or restored since; start again with `--from earliest`"
        }
        "SUBSCRIPTION_LIMIT" => "close other subscriptions, ask for less, or have the server's limit raised",
        "TOKEN_INVALID" => {
            "show a token with --token-file or BLOBCAST_TOKEN; whoever operates the broker hands them out"
        }
        "ADMIN_DENIED" => "use the token of a client with `admin = true`",
        "SIGNING_KEY_MISSING" => "`blobcast token new signing-key NAME` makes a line for the credentials file",
        "PRODUCT_DENIED" => "ask whoever operates the broker for this product",
        "DRAINING" => "try again in a moment",
        "STORE_READ_ONLY" => "try again later; whoever operates the broker has to look at its disk",
        "LOG_CORRUPT" => "whoever operates the broker has to look at its log messages",
        "TASK_NOT_FOUND" => "`blobcast wait` waits for a task that is to come",
        "QUARANTINE_NOT_FOUND" => "`blobcast quarantine list` shows what there is",
        _ if code == Code::Unimplemented => {
            "is this a blobcast gRPC address, and as new as this client? see --grpc-url"
        }
        _ => return None,
    })
}

/// What is wrong with the connection, if that is what the status tells of: a code from the broker has no source.
fn connection_error(status: &Status, url: &str) -> Option<anyhow::Error> {
    let cause = cause(status);
    if status.code() == Code::Unavailable {
        return Some(anyhow::anyhow!("cannot reach {url}: {cause}; is `blobcast serve` running? use --grpc-url"));
    }
    std::error::Error::source(status)?;
    Some(match status.message() {
        // Connected, and then not understood.
        "transport error" => {
            anyhow::anyhow!("cannot talk to {url}: {cause}; is it a blobcast gRPC address? use --grpc-url")
        }
        _ => anyhow::anyhow!("the connection to {url} broke: {cause}"),
    })
}

// The status of a failed connection says little ("transport error"); its innermost source says why.
fn cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if std::error::Error::source(status).is_some() { cause.to_string() } else { status.message().to_owned() }
}

/// The code as the gRPC documents spell it: `OUT_OF_RANGE`.
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
        let metadata =
            HashMap::from([("head".to_owned(), "ff".to_owned()), ("first_available".to_owned(), "0a".to_owned())]);
        let details = ErrorDetails::with_error_info("CURSOR_EXPIRED", "blobcast", metadata);
        let text = rendered(&Status::with_error_details(Code::OutOfRange, "too old", details));
        assert!(text.starts_with("OUT_OF_RANGE CURSOR_EXPIRED: too old [first_available=0a head=ff]; "), "{text}");
        assert!(text.contains("--from earliest"), "{text}");
    }

    #[test]
    fn a_bad_request_names_its_fields() {
        let details = ErrorDetails::with_bad_request_violation("filter.task_ids[0]", "too long");
        let text = rendered(&Status::with_error_details(Code::InvalidArgument, "malformed", details));
        assert_eq!(text, "INVALID_ARGUMENT: malformed (filter.task_ids[0]: too long)");
    }

    #[test]
    fn a_broker_that_cannot_be_reached_is_not_called_by_its_code() {
        let text = rendered(&Status::unavailable("tcp connect error"));
        assert_eq!(
            text,
            "cannot reach http://localhost:1: tcp connect error; is `blobcast serve` running? use --grpc-url"
        );
    }

    #[test]
    fn codes_are_spelt_as_in_the_documents() {
        let names = [Code::Ok, Code::OutOfRange, Code::DataLoss, Code::Unauthenticated].map(code_name);
        assert_eq!(names, ["OK", "OUT_OF_RANGE", "DATA_LOSS", "UNAUTHENTICATED"]);
    }

    #[test]
    fn only_errors_that_a_retry_cannot_help_are_final() {
        let of_reason = |reason: &str, key: &str| {
            let metadata = HashMap::from([(key.to_owned(), "1".to_owned())]);
            let details = ErrorDetails::with_error_info(reason, "blobcast", metadata);
            is_final(&Status::with_error_details(Code::ResourceExhausted, "", details))
        };
        assert!(of_reason("REQUEST_TOO_LARGE", "limit") && of_reason("SUBSCRIPTION_LIMIT", "field"));
        assert!(!of_reason("SUBSCRIPTION_LIMIT", "limit"), "the server may have room again");
        let finals = (0..17).map(Code::from).filter(|&code| is_final(&Status::new(code, "")));
        let expected =
            ["INVALID_ARGUMENT", "PERMISSION_DENIED", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"];
        let expected: Vec<_> = expected.into_iter().chain(["DATA_LOSS", "UNAUTHENTICATED"]).collect();
        assert_eq!(finals.map(code_name).collect::<Vec<_>>(), expected);
    }
}
