//! Connections that are turned away before any request: each is counted by its cause, and the log has a line a minute for each cause.
//! A load balancer that is configured differently from the broker shows up nowhere else.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use prometheus::IntCounterVec;
use rustls::AlertDescription;

use super::proxy;
use crate::{metrics::Metrics, sampler::Sampler};

/// One line for each cause and listener in this time.
const INTERVAL: Duration = Duration::from_secs(60);
/// Bytes that are enough to tell protocols apart.
const BEGINNING_BYTES: usize = 16;

/// Why a connection was turned away.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum Refused {
    /// Its address has its share.
    #[error(
        "{0} has as many connections as connections_per_address_max of this listener allows: if it is a proxy in front of the \
         public listener, name it in ingest.trusted_proxies; else raise the key, or find out what opens so many"
    )]
    Share(IpAddr),
    /// Its first bytes, or its handshake, took too long.
    #[error(
        "it did not begin to speak in time: an idle scanner, or a proxy that opens connections before it needs them"
    )]
    Timeout,
    /// It was closed before a first byte, as TCP probes do.
    #[error("it was closed before it was used")]
    Unused,
    /// Something else than a PROXY header, from a proxy that has to send one.
    #[error(
        "a trusted proxy sends no PROXY header that can be read, which ingest.proxy_protocol asks for: turn it on there (HAProxy: \
         send-proxy-v2, and check-send-proxy for its checks), or turn ingest.proxy_protocol off"
    )]
    ProxyHeaderMissing,
    /// A PROXY header, from an address that is not trusted.
    #[error(
        "it begins with a PROXY header, which is not expected of this address: turn on ingest.proxy_protocol and name the \
         proxy in ingest.trusted_proxies, or turn it off in the proxy (HAProxy: without send-proxy); gRPC takes none"
    )]
    ProxyHeaderUnexpected,
    /// Plain text, where TLS is spoken.
    #[error(
        "it speaks plain text, and this listener speaks TLS: use https:// (in a proxy: TLS to the broker)"
    )]
    PlainText,
    /// TLS, where plain text is spoken.
    #[error(
        "it speaks TLS, and this listener has no certificate: use http://, or set tls_certificate_file of this listener"
    )]
    TlsUnexpected,
    /// HTTP/1.1, for anything but JSON, where gRPC is spoken.
    #[error(
        "it asks in HTTP/1.1 for what is not below /v1/, and gRPC is HTTP/2: callbacks and probes have listeners of their own"
    )]
    NotHttp2,
    /// The client's certificate is not good.
    #[error("the certificate that it shows is not good: {0}")]
    ClientCertificate(&'static str),
    /// The client does not trust this listener's certificate.
    #[error("it does not trust this listener's certificate: {0}")]
    Distrusted(&'static str),
    /// It was closed within the TLS handshake.
    #[error(
        "it was closed within the TLS handshake: a probe, or a client that does not trust this listener's certificate and does \
         not say so"
    )]
    BrokenOff,
    /// None of these.
    #[error("what it sends is nothing that this listener speaks: most likely a scanner")]
    NotUnderstood,
}

impl Refused {
    /// The value of the metric's `cause`.
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::Share(_) => "address_share",
            Self::Timeout => "timeout",
            Self::Unused => "unused",
            Self::ProxyHeaderMissing => "proxy_header_missing",
            Self::ProxyHeaderUnexpected => "proxy_header_unexpected",
            Self::PlainText => "plain_text",
            Self::TlsUnexpected => "tls_unexpected",
            Self::NotHttp2 => "not_http2",
            Self::ClientCertificate(_) => "client_certificate",
            Self::Distrusted(_) => "distrusted",
            Self::BrokenOff => "broken_off",
            Self::NotUnderstood => "not_understood",
        }
    }

    /// Why a TLS handshake has failed on a connection that began with `begun`.
    pub(super) fn by_tls(error: &io::Error, begun: Beginning) -> Self {
        let reason = error
            .get_ref()
            .and_then(|error| error.downcast_ref::<rustls::Error>());
        match (reason, begun) {
            // TLS probes do that, and clients that do not trust the certificate and do not say so.
            (None, Beginning::Tls) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::BrokenOff
            }
            (_, Beginning::Text) => Self::PlainText,
            (Some(rustls::Error::InvalidCertificate(problem)), _) => {
                Self::ClientCertificate(of_certificate(problem))
            }
            (Some(rustls::Error::AlertReceived(alert)), _) => {
                of_alert(*alert).map_or(Self::NotUnderstood, Self::Distrusted)
            }
            _ => Self::NotUnderstood,
        }
    }

    /// Why a connection that began with `bytes` is no plain HTTP; `None` if it may be.
    pub(in crate::server) fn by_beginning(bytes: &[u8]) -> Option<Self> {
        match Beginning::of(bytes) {
            Beginning::ProxyHeader => Some(Self::ProxyHeaderUnexpected),
            Beginning::Tls => Some(Self::TlsUnexpected),
            Beginning::Text | Beginning::Other => None,
        }
    }
}

/// What is wrong with a client's certificate, and the next step, for operators: the library only names a variant.
fn of_certificate(problem: &rustls::CertificateError) -> &'static str {
    use rustls::CertificateError::{
        ApplicationVerificationFailure, BadEncoding, BadSignature, Expired, ExpiredContext,
        InvalidPurpose, InvalidPurposeContext, NotValidForName, NotValidForNameContext,
        NotValidYet, NotValidYetContext, Revoked, UnknownIssuer, UnknownRevocationStatus,
    };
    match problem {
        UnknownIssuer => {
            "its authority is not in grpc.tls_client_ca_file: add that one, or give the client a certificate of one in it"
        }
        Expired | ExpiredContext { .. } => "it has expired: renew it",
        NotValidYet | NotValidYetContext { .. } => {
            "it is not good yet: compare the clocks of both machines"
        }
        Revoked => "grpc.tls_client_crl_file says that it is revoked: give the client a new one",
        UnknownRevocationStatus => {
            "no list in grpc.tls_client_crl_file is of its authority: add that authority's list"
        }
        InvalidPurpose | InvalidPurposeContext { .. } => {
            "it is not for clients: issue it with the extended key usage clientAuth"
        }
        BadSignature => "its signature is not its authority's: another authority has the same name",
        NotValidForName | NotValidForNameContext { .. } => "it is for another name",
        BadEncoding | ApplicationVerificationFailure => "it cannot be read as a certificate",
        _ => {
            "it breaks a rule that certificates have to keep: look at it with `openssl x509 -text`"
        }
    }
}

/// What a client's alert says of this listener's certificate; `None` if it is about something else.
fn of_alert(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::UnknownCA => {
            "it does not know its authority: add that to what the client trusts (SSL_CERT_FILE, or --cacert)"
        }
        AlertDescription::CertificateExpired => "it has expired, by the client's clock",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "its name is not the one that the client asked for, or its authority is unknown there"
        }
        AlertDescription::CertificateRevoked => "its authority has revoked it",
        AlertDescription::UnsupportedCertificate => "it is of a kind that the client does not take",
        _ => return None,
    })
}

/// The protocol of a connection's first bytes, as far as that shows a wrong configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Beginning {
    ProxyHeader,
    Tls,
    /// Upper-case letters: a method of HTTP.
    Text,
    Other,
}

impl Beginning {
    pub(super) fn of(bytes: &[u8]) -> Self {
        match bytes {
            _ if proxy::is_header(bytes) => Self::ProxyHeader,
            [0x16, 3, ..] => Self::Tls,
            [first, second, third, ..]
                if [first, second, third]
                    .iter()
                    .all(|byte| byte.is_ascii_uppercase()) =>
            {
                Self::Text
            }
            _ => Self::Other,
        }
    }

    /// Waits for the first bytes, and leaves them unread.
    pub(super) async fn of_stream(stream: &tokio::net::TcpStream) -> Result<Self, Refused> {
        let mut bytes = [0; BEGINNING_BYTES];
        match stream.peek(&mut bytes).await {
            Ok(0) | Err(_) => Err(Refused::Unused),
            Ok(count) => Ok(Self::of(&bytes[..count])),
        }
    }
}

/// The connections of one listener that were turned away.
#[derive(Clone, Debug)]
pub(in crate::server) struct TurnedAway {
    listener: &'static str,
    counted: IntCounterVec,
    log: Arc<Sampler>,
}

impl TurnedAway {
    pub(in crate::server) fn of(listener: &'static str, metrics: &Metrics) -> Self {
        Self {
            listener,
            counted: metrics.connections_refused.clone(),
            log: Arc::new(Sampler::every(INTERVAL)),
        }
    }

    /// Logs a request of `peer` that could not be read. It is counted elsewhere.
    pub(in crate::server) fn note_unread(
        &self,
        cause: &'static str,
        explanation: &str,
        peer: SocketAddr,
    ) {
        if let Some(unlogged) = self.log.due(cause) {
            let listener = self.listener;
            tracing::warn!(listener, cause, %peer, unlogged, "a request was refused before it was read: {explanation}");
        }
    }

    /// Counts and logs that a connection from `peer` was turned away.
    pub(in crate::server) fn note(&self, refused: &Refused, peer: SocketAddr) {
        let (listener, cause) = (self.listener, refused.cause());
        self.counted.with_label_values(&[listener, cause]).inc();
        if matches!(refused, Refused::Unused) {
            return; // health checks by TCP
        }
        if let Some(unlogged) = self.log.due(cause) {
            tracing::warn!(listener, cause, %peer, unlogged, "a connection was turned away: {refused}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_of_a_connection_show_a_wrong_configuration() {
        for (bytes, begun) in [
            (&b"PROXY TCP4 198.51.100.7 "[..], Beginning::ProxyHeader),
            (
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
                Beginning::ProxyHeader,
            ),
            (b"\x16\x03\x01\x02\0\x01", Beginning::Tls),
            (b"POST /webhook/ve", Beginning::Text),
            (b"PRI * HTTP/2.0\r\n", Beginning::Text),
            (b"PROX", Beginning::Text),
            (b"\x17\x03\x03", Beginning::Other),
            (b"po", Beginning::Other),
            (b"", Beginning::Other),
        ] {
            assert_eq!(Beginning::of(bytes), begun, "{bytes:?}");
        }
    }

    #[test]
    fn a_connection_closed_within_the_handshake_is_not_taken_for_a_scanner() {
        let cause = |kind: io::ErrorKind, begun| Refused::by_tls(&kind.into(), begun).cause();
        assert_eq!(
            cause(io::ErrorKind::UnexpectedEof, Beginning::Tls),
            "broken_off"
        );
        assert_eq!(
            cause(io::ErrorKind::UnexpectedEof, Beginning::Text),
            "plain_text"
        );
        assert_eq!(
            cause(io::ErrorKind::UnexpectedEof, Beginning::Other),
            "not_understood"
        );
        assert_eq!(
            cause(io::ErrorKind::InvalidData, Beginning::Tls),
            "not_understood"
        );
    }

    #[test]
    fn each_connection_is_counted_and_one_a_minute_is_logged() {
        let metrics = Metrics::default();
        let (turned_away, peer) = (
            TurnedAway::of("ingest", &metrics),
            SocketAddr::from(([192, 0, 2, 1], 1)),
        );
        (0..3).for_each(|_| turned_away.note(&Refused::TlsUnexpected, peer));
        assert_eq!(
            metrics
                .connections_refused
                .with_label_values(&["ingest", "tls_unexpected"])
                .get(),
            3
        );
        let now = std::time::Instant::now();
        assert_eq!(turned_away.log.due_at("tls_unexpected", now), None);
        assert_eq!(
            turned_away.log.due_at("tls_unexpected", now + INTERVAL),
            Some(3),
            "two, and the one before"
        );
    }
}
