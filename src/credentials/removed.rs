//! Secrets that were in force since the start and are no longer, so that a refusal can name the line that a removed secret had.
//! Pure.

use std::sync::Arc;

use super::{
    callback_lines::KeyId,
    secret::{Secret, TokenHash},
};

/// Most removed secrets of each kind that are remembered; the oldest are forgotten. A file has a handful.
const REMOVED_MAX: usize = 256;

/// The secrets of one version of the file, or those that were removed since the start. Tokens are kept as hashes. Signing secrets are
/// kept in full, which reveals nothing new: a key that has leaked is removed for that reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NamedSecrets {
    pub callback_tokens: Vec<(Arc<str>, TokenHash)>,
    pub signing_keys: Vec<(KeyId, Secret)>,
    pub clients: Vec<(Arc<str>, TokenHash)>,
}

impl NamedSecrets {
    /// The removed secrets after `new` has replaced `old`; `self` are those that were removed before.
    pub(super) fn after_change(&self, old: Self, new: &Self) -> Self {
        Self {
            callback_tokens: removed(
                &self.callback_tokens,
                old.callback_tokens,
                &new.callback_tokens,
            ),
            signing_keys: removed(&self.signing_keys, old.signing_keys, &new.signing_keys),
            clients: removed(&self.clients, old.clients, &new.clients),
        }
    }
}

/// The entries of `before` and `old` whose secrets are not in `new`, the newest [`REMOVED_MAX`] of them.
fn removed<N: Clone, S: Clone + PartialEq>(
    before: &[(N, S)],
    old: Vec<(N, S)>,
    new: &[(N, S)],
) -> Vec<(N, S)> {
    let is_in_force = |secret: &S| new.iter().any(|(_, there)| there == secret);
    let all = before.iter().cloned().chain(old);
    let mut removed: Vec<_> = all.filter(|(_, secret)| !is_in_force(secret)).collect();

    removed.drain(..removed.len().saturating_sub(REMOVED_MAX));
    removed
}
