//! What is read from files while the broker starts or runs, and why something that was read cannot be used: told with the file, the
//! cause and the next step.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::Path,
    sync::{Arc, Mutex},
};

use rustix::process::geteuid;

use super::{lock::lock, systemd};
use crate::{accounts, metrics::Metrics};

/// What the supervisor is told of refusals, in characters: `systemctl status` shows one line of it.
const STATUS_CHARS_MAX: usize = 1_000;
/// What it is told where there are none.
const IN_FORCE: &str = "everything that was read is in force";

/// What is read, and read again when it changes or somebody asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// The file of audit records, which is opened again.
    AuditFile,
    Configuration,
    Credentials,
    /// A listener's certificate and its key.
    Certificates,
    /// Who signs clients' certificates.
    ClientCa,
    /// Which of those are revoked.
    ClientCrl,
    /// Who signs the ACME authority's own certificate.
    AcmeCa,
    /// The certificates that the traces' collector is checked with.
    Traces,
}

impl What {
    pub(super) const ALL: [Self; 8] = [
        Self::AuditFile,
        Self::Configuration,
        Self::Credentials,
        Self::Certificates,
        Self::ClientCa,
        Self::ClientCrl,
        Self::AcmeCa,
        Self::Traces,
    ];

    /// In metrics.
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
        }
    }

    /// To people, with an article before it.
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
        }
    }
}

/// Why something cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub(super) what: What,
    /// The key, the file, the cause and the next step.
    pub(super) why: String,
    /// Each file is good, and they do not belong together: the other one may be about to be replaced, too.
    pub(super) may_settle: bool,
}

impl Refusal {
    pub(super) fn new(what: What, why: impl Into<String>) -> Self {
        Self {
            what,
            why: why.into(),
            may_settle: false,
        }
    }

    /// Of a file that cannot be read.
    pub(super) fn unreadable(what: What, key: &str, path: &Path, error: &io::Error) -> Self {
        Self::new(
            what,
            format!("{key}: {}: {error}; {}", path.display(), remedy(error)),
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use the {}: {}", self.what.name(), self.why)
    }
}

/// What to do about a file that cannot be read.
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

/// All of them, in one text.
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
    /// Files that are read together, by their place among the others.
    Files(usize),
}

/// What was refused and has not been mended since: as a metric, and as what the supervisor says of the broker.
#[derive(Debug)]
pub(super) struct Refusals {
    metrics: Arc<Metrics>,
    standing: Mutex<Standing>,
}

#[derive(Debug, Default)]
struct Standing {
    refusals: BTreeMap<Source, Vec<Refusal>>,
    needs_restart: Vec<&'static str>,
    /// The status that is on its way to the supervisor; empty before the first.
    told: String,
}

impl Refusals {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            standing: Mutex::default(),
        }
    }

    pub(super) fn count(&self, what: What, result: &str) {
        self.metrics
            .reloads
            .with_label_values(&[what.label(), result])
            .inc();
    }

    /// Tells the supervisor that callbacks are taken, and what stands. Always: of a process that has started itself anew it has what
    /// stood before.
    pub(super) fn tell_ready(&self) {
        let mut standing = lock(&self.standing);
        let status = standing.status();
        if systemd::ready_and_status(status.clone()) {
            standing.told = status;
        }
    }

    /// From now on it is these that stand of `source`.
    pub(super) fn set(&self, source: Source, refusals: Vec<Refusal>) {
        let mut standing = lock(&self.standing);
        standing.refusals.insert(source, refusals);
        for what in What::ALL {
            let stands = standing
                .refusals
                .values()
                .flatten()
                .any(|refusal| refusal.what == what);
            self.metrics
                .reload_refused
                .with_label_values(&[what.label()])
                .set(stands.into());
        }
        standing.tell();
    }

    /// Keys of the configuration that have changed and are not in force.
    pub(super) fn set_needs_restart(&self, keys: Vec<&'static str>) {
        let mut standing = lock(&self.standing);
        standing.needs_restart = keys;
        standing.tell();
    }
}

impl Standing {
    fn tell(&mut self) {
        let status = self.status();
        let is_news = if self.told.is_empty() {
            status != IN_FORCE
        } else {
            status != self.told
        };
        // What the supervisor did not take is told again with the next change.
        if is_news && systemd::status(status.clone()) {
            self.told = status;
        }
    }

    /// One line.
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
        assert_eq!(What::ALL.map(What::label), crate::metrics::READ_AGAIN);
    }

    #[test]
    fn the_status_names_what_is_not_in_force_until_it_is() {
        let status = |refusals: &Refusals| refusals.standing.lock().unwrap().told.clone();
        let refusals = Refusals::new(Arc::default());
        refusals.set(Source::Configuration, Vec::new());
        assert_eq!(status(&refusals), "", "there was nothing to say");
        let refusal = Refusal::new(
            What::Credentials,
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
    fn the_first_status_is_told_whatever_a_process_before_has_told() {
        let refusals = Refusals::new(Arc::default());
        refusals.tell_ready();
        assert_eq!(refusals.standing.lock().unwrap().told, IN_FORCE);
    }
}
