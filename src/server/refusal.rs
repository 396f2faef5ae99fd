//! The inputs that the broker reads from files, at its start and again while it runs; and refusals: why an input cannot be used, with
//! the file, the cause and the next step.

use std::{collections::BTreeMap, fmt, io, path::Path, sync::Arc};

use parking_lot::Mutex;
use rustix::process::geteuid;

use super::systemd;
use crate::{accounts, metrics::Metrics};

/// Length of the status for systemd, in characters: `systemctl status` shows one line of it.
const STATUS_CHARS_MAX: usize = 1_000;
/// The status without refusals.
const IN_FORCE: &str = "everything that was read is in force";

/// An input that is read, and read again when it changes or on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Input {
    /// The audit file, which is opened again.
    AuditFile,
    Configuration,
    Credentials,
    /// A listener's certificate and its key.
    Certificates,
    /// The authorities that sign clients' certificates.
    ClientCa,
    /// The lists of those certificates that are revoked.
    ClientCrl,
    /// The authorities that sign the ACME server's own certificate.
    AcmeCa,
    /// The certificates that the traces' collector is checked with.
    Traces,
    /// The certificates that the vendor's API is checked with.
    VendorApi,
}

impl Input {
    pub(super) const ALL: [Self; 9] = [
        Self::AuditFile,
        Self::Configuration,
        Self::Credentials,
        Self::Certificates,
        Self::ClientCa,
        Self::ClientCrl,
        Self::AcmeCa,
        Self::Traces,
        Self::VendorApi,
    ];

    /// The name in metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::AuditFile => "audit_file",
            Self::Configuration => "configuration",
            Self::Credentials => "credentials",
            Self::Certificates => "certificates",
            Self::ClientCa => "client_ca",
            Self::ClientCrl => "client_crl",
            Self::AcmeCa => "acme_ca",
            Self::Traces => "traces",
            Self::VendorApi => "vendor_api",
        }
    }

    /// The name for people, to be used with "the".
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AuditFile => "audit file",
            Self::Configuration => "configuration",
            Self::Credentials => "credentials",
            Self::Certificates => "certificates",
            Self::ClientCa => "authorities of clients",
            Self::ClientCrl => "lists of revoked certificates",
            Self::AcmeCa => "authorities of the ACME server",
            Self::Traces => "authorities of the traces' collector",
            Self::VendorApi => "authorities of the vendor's API",
        }
    }
}

/// Why an input cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(super) input: Input,
    /// The key, the file, the cause and the next step.
    pub(super) why: String,
    /// Each file is good, but they do not belong together: the other one may be about to be replaced, too.
    pub(super) may_settle: bool,
}

impl Refusal {
    pub(super) fn new(input: Input, why: impl Into<String>) -> Self {
        Self {
            input,
            why: why.into(),
            may_settle: false,
        }
    }

    /// The refusal of a file that cannot be read.
    pub(super) fn unreadable(input: Input, key: &str, path: &Path, error: &io::Error) -> Self {
        Self::new(
            input,
            format!("{key}: {}: {error}; {}", path.display(), remedy(error)),
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use the {}: {}", self.input.name(), self.why)
    }
}

/// The next step for a file that cannot be read.
fn remedy(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "put the file there, or correct the path".to_owned(),
        io::ErrorKind::PermissionDenied => format!(
            "user {} has to read it: give it to the broker's group with mode 640, and let that group enter its directories",
            accounts::name_of(geteuid().as_raw())
        ),
        io::ErrorKind::IsADirectory => "name the file in it".to_owned(),
        io::ErrorKind::FileTooLarge => "is it the right file?".to_owned(),
        _ => "name a regular file that this user can read".to_owned(),
    }
}

/// All refusals in one text.
pub(super) fn joined(refusals: &[Refusal]) -> String {
    refusals
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; and ")
}

/// Where a refusal comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Audit,
    Configuration,
    /// A set of files that are read together, by its place among the sets.
    Files(usize),
}

/// The refusals that stand: shown as a metric and as the status that systemd has of the broker.
#[derive(Debug)]
pub(super) struct Refusals {
    metrics: Arc<Metrics>,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    refusals: BTreeMap<Source, Vec<Refusal>>,
    needs_restart: Vec<&'static str>,
    /// The last status that was sent to systemd; empty before the first.
    sent: String,
}

impl Refusals {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            current: Mutex::default(),
        }
    }

    pub(super) fn count(&self, input: Input, result: &str) {
        self.metrics
            .reloads
            .with_label_values(&[input.label(), result])
            .inc();
    }

    /// Reports to systemd that the broker is ready, with the status. The status is always sent: systemd may have one of the process
    /// before, which has started itself anew.
    pub(super) fn report_ready(&self) {
        let mut current = self.current.lock();
        let status = current.status();
        if systemd::ready_and_status(status.clone()) {
            current.sent = status;
        }
    }

    /// Replaces the refusals of `source`.
    pub(super) fn set(&self, source: Source, refusals: Vec<Refusal>) {
        let mut current = self.current.lock();
        current.refusals.insert(source, refusals);
        for input in Input::ALL {
            let stands = current
                .refusals
                .values()
                .flatten()
                .any(|refusal| refusal.input == input);
            self.metrics
                .reload_refused
                .with_label_values(&[input.label()])
                .set(stands.into());
        }
        current.send_status();
    }

    /// Replaces the keys of the configuration that have changed and need a restart.
    pub(super) fn set_needs_restart(&self, keys: Vec<&'static str>) {
        let mut current = self.current.lock();
        current.needs_restart = keys;
        current.send_status();
    }
}

impl Current {
    fn send_status(&mut self) {
        let status = self.status();
        let is_news = if self.sent.is_empty() {
            status != IN_FORCE
        } else {
            status != self.sent
        };
        // A status that could not be sent is sent again with the next change.
        if is_news && systemd::status(status.clone()) {
            self.sent = status;
        }
    }

    /// The status, in one line.
    fn status(&self) -> String {
        let mut parts: Vec<_> = self
            .refusals
            .values()
            .flatten()
            .map(ToString::to_string)
            .collect();
        if !self.needs_restart.is_empty() {
            parts.push(format!(
                "a restart is needed for {}",
                self.needs_restart.join(", ")
            ));
        }
        if parts.is_empty() {
            return IN_FORCE.to_owned();
        }
        let status = format!("not in force: {}", parts.join("; and "));
        status
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(STATUS_CHARS_MAX)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_read_again_is_counted_from_the_first_scrape_on() {
        assert_eq!(Input::ALL.map(Input::label), crate::metrics::READ_AGAIN);
    }

    #[test]
    fn the_status_names_what_is_not_in_force_until_it_is() {
        let status = |refusals: &Refusals| refusals.current.lock().sent.clone();
        let refusals = Refusals::new(Arc::default());
        refusals.set(Source::Configuration, Vec::new());
        assert_eq!(status(&refusals), "", "there was nothing to say");
        let refusal = Refusal::new(
            Input::Credentials,
            "credentials_file: /a: no\nsuch file; put it there",
        );
        refusals.set(Source::Files(0), vec![refusal]);
        refusals.set_needs_restart(vec!["grpc.listen"]);
        assert_eq!(
            status(&refusals),
            "not in force: cannot use the credentials: credentials_file: /a: no such file; put it there; and a restart is needed \
             for grpc.listen"
        );
        refusals.set(Source::Files(0), Vec::new());
        assert_eq!(
            status(&refusals),
            "not in force: a restart is needed for grpc.listen"
        );
        refusals.set_needs_restart(Vec::new());
        assert_eq!(status(&refusals), IN_FORCE);
    }

    #[test]
    fn the_first_status_is_sent_whatever_a_process_before_has_sent() {
        let refusals = Refusals::new(Arc::default());
        refusals.report_ready();
        assert_eq!(refusals.current.lock().sent, IN_FORCE);
    }
}
