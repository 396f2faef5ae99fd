//! Errors as RFC 9457 has them: `application/problem+json`, with the reason that is the contract in gRPC, too.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Map, Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::wire::Reason;

/// An error, as the body of an answer tells it.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub status: StatusCode,
    pub detail: String,
    /// The gRPC code; `None` if no call was made.
    pub code: Option<Code>,
    pub reason: Option<Box<str>>,
    metadata: Map<String, Value>,
    /// The fields that are wrong, and why.
    violations: Box<[Value]>,
    pub retry_after: Option<Duration>,
    /// The methods that the path takes.
    pub allow: Option<&'static str>,
}

impl Problem {
    /// A refusal before any call.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            code: None,
            reason: None,
            metadata: Map::new(),
            violations: Box::default(),
            retry_after: None,
            allow: None,
        }
    }

    /// The same, with a reason.
    pub(crate) fn of_reason(status: StatusCode, reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason: Some(reason.as_str().into()),
            ..Self::new(status, detail)
        }
    }

    /// What a call was answered with.
    pub(crate) fn of_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let metadata = info.map(|info| {
            let pairs = info.metadata.iter();
            pairs
                .map(|(key, value)| (key.clone(), Value::from(value.clone())))
                .collect()
        });
        let violations = details.bad_request().map(|bad| {
            let fields = bad.field_violations.iter();
            fields
                .map(|wrong| json!({"field": wrong.field, "description": wrong.description}))
                .collect()
        });
        let retry_after = details.retry_info().and_then(|info| info.retry_delay);
        let reason = Reason::of(status);
        Self {
            status: http_status(status.code(), reason, retry_after.is_some()),
            detail: status.message().to_owned(),
            code: Some(status.code()),
            reason: info.map(|info| info.reason.as_str().into()),
            metadata: metadata.unwrap_or_default(),
            violations: violations.unwrap_or_default(),
            retry_after,
            allow: None,
        }
    }

    /// The body: one line of JSON.
    pub(crate) fn json(&self, request_id: &str) -> Vec<u8> {
        let title = self.status.canonical_reason();
        let mut body = json!({
            "title": title.unwrap_or("Client Closed Request"),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "request_id": request_id,
        });
        let mut add = |key: &str, value: Value| body[key] = value;
        if let Some(code) = self.code {
            add("code", name_of(code).into());
        }
        if let Some(reason) = &self.reason {
            add("reason", (&**reason).into());
            add("metadata", self.metadata.clone().into());
        }
        if !self.violations.is_empty() {
            add("violations", self.violations.to_vec().into());
        }
        body.to_string().into_bytes()
    }
}

/// The HTTP status of a code, as `google/rpc/code.proto` maps them, with three exceptions that HTTP has a better word for.
fn http_status(code: Code, reason: Option<Reason>, passes: bool) -> StatusCode {
    let number = match code {
        _ if reason == Some(Reason::RequestTooLarge) => 413,
        Code::OutOfRange => 410, // a cursor: what was behind it is gone, and asking again does not help
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition => 400,
        Code::DeadlineExceeded => 504,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::PermissionDenied => 403,
        Code::Unauthenticated => 401,
        // Clients repeat a 429 by themselves.
        Code::ResourceExhausted if !passes => 400,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    };
    StatusCode::from_u16(number).expect("each is a status")
}

/// The name of a code, as in `google/rpc/code.proto`.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Malformed;

    #[test]
    fn a_problem_has_what_the_status_has() {
        let status = Reason::CursorExpired.status_with("gone", [("head", "c9".to_owned())]);
        let problem = Problem::of_status(&status);
        let body: Value = serde_json::from_slice(&problem.json("0123")).unwrap();
        assert_eq!(
            body,
            json!({
                "title": "Gone", "status": 410, "detail": "gone", "code": "OUT_OF_RANGE",
                "reason": "CURSOR_EXPIRED", "metadata": {"head": "c9"}, "request_id": "0123",
            })
        );

        let retry = Duration::from_millis(1_500);
        let status = Reason::Draining.passing_status("away", [], retry);
        let problem = Problem::of_status(&status);
        assert_eq!(
            (problem.status.as_u16(), problem.retry_after),
            (503, Some(retry))
        );

        let status = Status::from(Malformed::new("task_id", "is empty"));
        let body: Value =
            serde_json::from_slice(&Problem::of_status(&status).json("0123")).unwrap();
        assert_eq!(
            body["violations"],
            json!([{"field": "task_id", "description": "is empty"}])
        );
    }

    #[test]
    fn every_reason_has_a_status_of_the_client_or_of_the_server() {
        for &reason in Reason::ALL {
            let status = http_status(reason.code(), Some(reason), true);
            assert!(
                status.is_client_error() || status.is_server_error(),
                "{reason:?}"
            );
        }
        assert_eq!(
            http_status(
                Code::ResourceExhausted,
                Some(Reason::RequestTooLarge),
                false
            ),
            StatusCode::PAYLOAD_TOO_LARGE
        );
    }
}
