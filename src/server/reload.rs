//! Reloads the configuration while the broker runs: what can change without a restart is put into force, and what cannot is named.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    addresses::Addresses,
    credentials, logging,
    refusal::{Input, Refusal, Refusals, Source},
    resources, storage,
    watch::Rereader,
};
use crate::{
    audit::{Audit, Entry, OK, REFUSED},
    config::{self, Config, ConfigErrors, Loaded, Settings},
    credentials::SharedCredentials,
    ingest::Ingest,
    journal::Journal,
    store::Retention,
    subscription::Sources,
};

/// The parts of the broker that a reload changes.
#[derive(Debug)]
pub(super) struct Reloader {
    /// As of the last reload.
    pub config: Arc<Mutex<Config>>,
    /// The same as it is written.
    pub settings: Arc<Mutex<Settings>>,
    pub addresses: Addresses,
    /// Reads the files that the configuration names.
    pub rereader: Rereader,
    pub refusals: Arc<Refusals>,
    pub retention: Arc<Mutex<Retention>>,
    pub sources: Arc<Sources>,
    pub credentials: Arc<SharedCredentials>,
    pub audit: Arc<Audit>,
    pub ingest: Arc<Ingest>,
    pub journal: Arc<dyn Journal>,
}

impl Reloader {
    /// Reads the files and the configuration again. `load` may take any time.
    ///
    /// The files go first, so that the new configuration is checked against what they say now.
    pub(super) async fn reload(
        &self,
        load: &Arc<impl Fn() -> Result<Loaded, ConfigErrors> + Send + Sync + 'static>,
    ) {
        let mut refused_files: Vec<_> = self
            .rereader
            .reread()
            .await
            .into_iter()
            .map(Input::label)
            .collect();
        refused_files.extend(self.reopen_audit().await);

        let before = self.config.lock().clone();
        let read = self.rereader.read(load).await;
        let mut entry = self.audit.entry("configuration");
        entry.note("by", "SIGHUP");
        let problems: Vec<String> = match read {
            Ok(Ok(new)) => self
                .put_into_force(new, &refused_files, &mut entry)
                .err()
                .unwrap_or_default(),
            Ok(Err(errors)) => errors.problems.iter().map(ToString::to_string).collect(),
            Err(problem) => vec![problem],
        };
        entry.note("problems", problems.clone());
        entry.end_now(if problems.is_empty() { OK } else { REFUSED });
        self.report(&problems);

        let in_force = self.config.lock().clone();
        if in_force.log != before.log || in_force.quarantine != before.quarantine {
            resources::warn_of_disk(&in_force, self.sources.store.summary()).await;
        }
    }

    /// Counts and logs how the reload of the configuration went.
    fn report(&self, problems: &[String]) {
        let result = if problems.is_empty() {
            "done"
        } else {
            "refused"
        };
        self.refusals.count(Input::Configuration, result);

        for problem in problems {
            tracing::error!(problem, "the configuration stays as it was: correct it");
        }
        let refusals = problems
            .iter()
            .map(|problem| Refusal::new(Input::Configuration, problem));
        self.refusals.set(Source::Configuration, refusals.collect());
    }

    /// Opens the audit file again, which may have been moved away. Returns its name if it cannot be opened.
    async fn reopen_audit(&self) -> Option<&'static str> {
        let input = Input::AuditFile;
        let opened = self.audit.reopen().await?;
        self.refusals
            .count(input, if opened.is_ok() { "done" } else { "refused" });

        let problem = opened.err();
        let refusals = problem.iter().map(|problem| {
            Refusal::new(input, format!("audit.file: {problem}; mend it and reload"))
        });
        self.refusals.set(Source::Audit, refusals.collect());

        let problem = problem?;
        tracing::error!(
            problem,
            "the audit file stays the one that was open: mend it and reload"
        );
        Some(input.label())
    }

    /// Puts into force what needs no restart, unless the credentials do not fit. `refused_files` stay as they were.
    fn put_into_force(
        &self,
        new: Loaded,
        refused_files: &[&str],
        entry: &mut Entry,
    ) -> Result<(), Vec<String>> {
        let mut config = self.config.lock();
        // A key that needs a restart keeps its old value here, so that the next reload compares with what is in force.
        let in_force = config.take_up(&new.config);
        let problems = credentials::problems(&in_force, &self.addresses, &self.credentials.get());
        if !problems.is_empty() {
            return Err(problems);
        }

        let need_a_restart = config::needs_restart(&in_force, &new.config);
        entry.note("changes", config.changes_to(&in_force));
        entry.note("need_a_restart", need_a_restart.clone());
        self.refusals.set_needs_restart(need_a_restart.clone());

        let retention = storage::retention(&in_force);
        *self.retention.lock() = retention;
        self.journal.retain(retention);
        logging::set_level(&in_force.logging);
        self.ingest
            .set_rules(credentials::rules(&in_force, Arc::clone(&self.credentials)));
        *config = in_force;
        self.settings.lock().take_up(new.settings, &need_a_restart);

        log_reloaded(&need_a_restart, refused_files);
        Ok(())
    }
}

fn log_reloaded(need_a_restart: &[&str], refused_files: &[&str]) {
    match (need_a_restart.is_empty(), refused_files.is_empty()) {
        (true, true) => tracing::info!("configuration reloaded"),
        (false, true) => tracing::warn!(
            ?need_a_restart,
            "configuration reloaded, but for what needs a restart"
        ),
        (_, false) => tracing::error!(
            refused = ?refused_files,
            ?need_a_restart,
            "configuration reloaded, but for files that could not be read or used: the error before this says why"
        ),
    }
}
