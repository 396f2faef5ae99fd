//! Statuses with a reason are made here, and nowhere else. Pure.

use std::{collections::HashMap, time::Duration};

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use super::{
    reason::{DOMAIN, Reason, Retry},
    request::Malformed,
};

impl Reason {
    /// A status with this reason and a message for people.
    pub fn status(self, message: impl Into<String>) -> Status {
        self.status_with(message, [])
    }

    /// The same, with the reason's metadata.
    pub fn status_with<const N: usize>(
        self,
        message: impl Into<String>,
        metadata: [(&str, String); N],
    ) -> Status {
        debug_assert_ne!(self.retry(), Retry::Always, "{self:?} needs a RetryInfo");
        self.to_status(message.into(), metadata, None)
    }

    /// A status that asks the client to try again after a delay.
    pub fn passing_status<const N: usize>(
        self,
        message: impl Into<String>,
        metadata: [(&str, String); N],
        retry_after: Duration,
    ) -> Status {
        debug_assert_ne!(self.retry(), Retry::Never, "{self:?} has no RetryInfo");
        self.to_status(message.into(), metadata, Some(retry_after))
    }

    /// The reason of a status; `None` if no broker has made it, or a newer one.
    pub fn of(status: &Status) -> Option<Self> {
        let info = status.get_details_error_info()?;
        if info.domain != DOMAIN {
            return None;
        }
        Self::parse(&info.reason)
    }

    fn to_status<const N: usize>(
        self,
        message: String,
        metadata: [(&str, String); N],
        retry_after: Option<Duration>,
    ) -> Status {
        let mut details = self.details(metadata);
        if retry_after.is_some() {
            details.set_retry_info(retry_after);
        }
        Status::with_error_details(self.code(), message, details)
    }

    fn details<const N: usize>(self, metadata: [(&str, String); N]) -> ErrorDetails {
        let is_documented = |key: &str| self.metadata().contains(&key);
        debug_assert!(metadata.iter().all(|(key, _)| is_documented(key)));

        let metadata: HashMap<_, _> = metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        ErrorDetails::with_error_info(self.as_str(), DOMAIN, metadata)
    }
}

impl From<Malformed> for Status {
    /// `INVALID_REQUEST`, with a `BadRequest` that names the field.
    fn from(malformed: Malformed) -> Self {
        let (reason, message) = (Reason::InvalidRequest, malformed.to_string());
        let mut details = reason.details([]);
        details.add_bad_request_violation(malformed.field, malformed.problem);
        Self::with_error_details(reason.code(), message, details)
    }
}
