//! Secret tokens in callback URLs: which line of the credentials file a token is of, and what the line says of its callbacks. Pure.
//!
//! Every entry is compared in constant time, as in `lookup`.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    binding::Binding,
    lifetime::{Generation, Lifetime},
    lookup::Credentials,
    secret::TokenHash,
};

impl Credentials {
    /// The name of the callback token `text`, and which of the line's secrets it is.
    pub fn callback_token(&self, text: &str, now: Timestamp) -> Option<(&Arc<str>, Generation)> {
        let hash = TokenHash::of(text);
        self.callback_tokens
            .iter()
            .fold(None, |found, (name, token)| {
                let is_valid = |known: &TokenHash, lifetime: &Lifetime| {
                    known.equals(&hash) & !lifetime.is_over(now)
                };
                let is_previous = token
                    .previous
                    .as_ref()
                    .is_some_and(|(known, lifetime)| is_valid(known, lifetime));

                match (is_valid(&token.hash, &token.lifetime), is_previous) {
                    (true, _) => Some((name, Generation::Current)),
                    (false, true) => Some((name, Generation::Previous)),
                    (false, false) => found,
                }
            })
    }

    /// The byte budget in the line of a callback token; `None`: the budget of the configuration.
    pub fn callback_token_budget(&self, name: &str) -> Option<u64> {
        self.callback_tokens.get(name)?.bytes_per_minute_max
    }

    /// The products and labels to which the line of a callback token binds its callbacks.
    pub fn callback_token_binding(&self, name: &str) -> Option<&Arc<Binding>> {
        self.callback_tokens.get(name)?.bound.as_ref()
    }
}
