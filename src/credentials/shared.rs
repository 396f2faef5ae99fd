//! The credentials in force, shared by everything that authenticates. Replaced as a whole when the file changes.

use std::sync::Arc;

use parking_lot::RwLock;

use super::lookup::Credentials;

/// The current version of the credentials file.
#[derive(Debug, Default)]
pub struct SharedCredentials(RwLock<Arc<Credentials>>);

impl SharedCredentials {
    /// The credentials in force now. A caller keeps one version for the whole of a decision.
    pub fn get(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.read())
    }

    /// Puts `credentials` in force. Authentication that was required stays required: removing the last token must lock everyone out,
    /// not let everyone in.
    pub fn set(&self, mut credentials: Credentials) {
        let mut current = self.0.write();
        credentials.succeed(&current);
        *current = Arc::new(credentials);
    }
}
