//! Why a request of ours could not be made, in words for people. Libraries name a variant of theirs, or a rule of their protocol. Pure.

use std::{borrow::Cow, error::Error, io, iter};

use rustls::{AlertDescription, CertificateError};

/// The error with everything that caused it: hyper's own words alone say only at which stage it failed.
pub(crate) fn causes(error: &(dyn Error + 'static)) -> String {
    let mut stages: Vec<_> = chain(error).map(ToString::to_string).collect();
    stages.pop();
    stages.push(innermost(error));
    // Some say what their source says.
    stages.dedup();
    let text = stages.join(": ");
    untrusted(error).map_or_else(|| text.clone(), |step| format!("{text}; {step}"))
}

/// The innermost cause.
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

/// What to do about a server's certificate, if it is why no connection was made.
pub(crate) fn untrusted(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let Some(rustls::Error::InvalidCertificate(problem)) = chain(error).find_map(tls_error) else {
        return None;
    };
    Some(of_certificate(problem).1)
}

/// What is wrong with a server's certificate, and what to do about it.
fn of_certificate(problem: &CertificateError) -> (Cow<'static, str>, &'static str) {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, UnknownIssuer,
    };
    match problem {
        UnknownIssuer => (
            "the server's certificate is of an authority that is not trusted here".into(),
            "if that server is to be trusted, set SSL_CERT_FILE to a PEM file with its certificate's authority",
        ),
        NotValidForName | NotValidForNameContext { .. } => (
            "the server's certificate is for another name".into(),
            "use a name that its certificate is for",
        ),
        Expired | ExpiredContext { .. } => (
            "the server's certificate has expired".into(),
            "its certificate has to be renewed, or the clock here is wrong",
        ),
        other => (
            format!("the server's certificate is not good ({other:?})").into(),
            "its certificate has to be another one",
        ),
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// An I/O error has what it wraps, also another one, not as its source.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    error
        .downcast_ref()
        .or_else(|| tls_error(error.downcast_ref::<io::Error>()?.get_ref()?))
}

fn of_tls(error: &rustls::Error) -> Option<String> {
    Some(match error {
        rustls::Error::InvalidCertificate(problem) => of_certificate(problem).0.into_owned(),
        rustls::Error::InvalidMessage(_) => {
            "what answers does not speak TLS: use http:// if that is meant".to_owned()
        }
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateRequired,
        ) => "the server does not accept the certificate that it was shown: its log says why"
            .to_owned(),
        rustls::Error::AlertReceived(alert) => {
            format!("the server ended the TLS handshake ({alert:?})")
        }
        _ => return None,
    })
}

/// Those that this crate cannot name.
fn of_text(cause: &str) -> Option<&'static str> {
    [
        (
            "frame with invalid size",
            "what answers does not speak HTTP/2, as gRPC does: it is a port for HTTP/1.1, or has TLS and needs https://",
        ),
        ("close_notify", "the other side closed the connection in the middle of an exchange"),
        ("invalid HTTP version parsed", "what answers does not speak HTTP/1.1: if it has TLS, use https://"),
    ]
    .into_iter()
    .find_map(|(theirs, ours)| cause.contains(theirs).then_some(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libraries_say_is_told_in_words_for_people_and_the_rest_as_it_is() {
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
