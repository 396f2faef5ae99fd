//! Why an outgoing request failed, in words for people.
//!
//! Libraries report an enum variant of theirs, or a rule of their protocol. This translates the
//! errors of TLS, HTTP/1.1 and HTTP/2 that users meet, and passes on the rest as it is. Pure.

use std::{borrow::Cow, error::Error, io, iter};

use rustls::{AlertDescription, CertificateError};

/// What sets the authorities that are trusted, where nothing else does.
const AUTHORITIES: &str = "SSL_CERT_FILE";

/// The error with all its causes: hyper's own message says only at which stage it failed.
pub(crate) fn causes(error: &(dyn Error + 'static)) -> String {
    causes_trusting(error, AUTHORITIES)
}

/// The same of a connection whose trusted authorities are set by `authorities`.
pub(crate) fn causes_trusting(error: &(dyn Error + 'static), authorities: &str) -> String {
    let mut stages: Vec<_> = chain(error).map(ToString::to_string).collect();
    stages.pop();
    stages.push(innermost(error));
    // Some errors repeat their source.
    stages.dedup();
    let text = stages.join(": ");
    match next_step(error, authorities) {
        Some(step) => format!("{text}; {step}"),
        None => text,
    }
}

/// The innermost cause, translated if it is known.
pub(crate) fn innermost(error: &(dyn Error + 'static)) -> String {
    if let Some(problem) = chain(error).find_map(tls_error).and_then(of_tls) {
        return problem;
    }
    let cause = chain(error)
        .last()
        .map(ToString::to_string)
        .unwrap_or_default();
    of_text(&cause).map_or(cause, str::to_owned)
}

/// The next step, if the connection failed because of the server's certificate.
pub(crate) fn untrusted(error: &(dyn Error + 'static)) -> Option<String> {
    next_step(error, AUTHORITIES)
}

fn next_step(error: &(dyn Error + 'static), authorities: &str) -> Option<String> {
    let Some(rustls::Error::InvalidCertificate(problem)) = chain(error).find_map(tls_error) else {
        return None;
    };
    let (_, step) = of_certificate(problem);
    Some(step.replace(AUTHORITIES, authorities))
}

/// The problem with a server's certificate, and the next step.
fn of_certificate(problem: &CertificateError) -> (Cow<'static, str>, &'static str) {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, UnknownIssuer,
    };

    match problem {
        UnknownIssuer => (
            "the server's certificate is from an authority that is not trusted here".into(),
            "to trust that server, set SSL_CERT_FILE to a PEM file with its certificate's \
             authority",
        ),
        NotValidForName | NotValidForNameContext { .. } => (
            "the server's certificate is for another name".into(),
            "use a name that its certificate covers",
        ),
        Expired | ExpiredContext { .. } => (
            "the server's certificate has expired".into(),
            "renew its certificate, or correct the clock here",
        ),
        other => (
            format!("the server's certificate is not valid ({other:?})").into(),
            "the server needs another certificate",
        ),
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// The TLS error inside an I/O error, which does not report what it wraps as its source. I/O errors
/// may be nested.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    error
        .downcast_ref()
        .or_else(|| tls_error(error.downcast_ref::<io::Error>()?.get_ref()?))
}

fn of_tls(error: &rustls::Error) -> Option<String> {
    Some(match error {
        rustls::Error::InvalidCertificate(problem) => of_certificate(problem).0.into_owned(),
        rustls::Error::InvalidMessage(_) => {
            "the server does not speak TLS: use http:// if that is intended".to_owned()
        }
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateRequired,
        ) => "the server does not accept the client certificate: its log says why".to_owned(),
        rustls::Error::AlertReceived(alert) => {
            format!("the server ended the TLS handshake ({alert:?})")
        }
        _ => return None,
    })
}

/// Translates errors whose types are private to their libraries, by their text.
fn of_text(cause: &str) -> Option<&'static str> {
    [
        (
            "frame with invalid size",
            "the server does not speak HTTP/2, which gRPC needs: the port is for HTTP/1.1, or has \
             TLS and needs https://",
        ),
        (
            "close_notify",
            "the other side closed the connection in the middle of an exchange",
        ),
        (
            "invalid HTTP version parsed",
            "the server does not speak HTTP/1.1: if it has TLS, use https://",
        ),
    ]
    .into_iter()
    .find_map(|(text, translation)| cause.contains(text).then_some(translation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_errors_of_libraries_are_translated_and_the_rest_is_passed_on() {
        let wrapped = |error: rustls::Error| innermost(&io::Error::other(io::Error::other(error)));
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(wrapped(unknown).contains("an authority that is not trusted"));
        assert!(
            wrapped(rustls::Error::AlertReceived(AlertDescription::UnknownCA))
                .contains("its log says why")
        );
        let of_protocol = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        assert!(wrapped(of_protocol).contains("does not speak TLS"));
        assert!(
            innermost(&io::Error::other("frame with invalid size"))
                .contains("does not speak HTTP/2")
        );
        let link =
            "peer closed connection without sending TLS close_notify: https://docs.rs/rustls/";
        assert!(!innermost(&io::Error::other(link)).contains("docs.rs"));
        assert_eq!(
            innermost(&io::Error::other("connection refused")),
            "connection refused"
        );
    }
}
