//! Whether what is open may go on: its client may have lost its permission since. The server asks when the credentials have changed,
//! and as they expire.

use tonic::Status;

use super::{
    access::{Caller, Gate},
    errors,
};
use crate::{
    credentials::{Client, Products},
    event::Filter,
    subscription::Withdrawal,
};

impl Gate {
    /// Why an open stream has to end; `None` if it may go on.
    pub(crate) fn review(&self, client: Option<&Client>, filter: &Filter) -> Option<Withdrawal> {
        let credentials = self.credentials.get();
        let Some(client) = client else {
            return (!self.admits_anonymous(&credentials)).then_some(Withdrawal::Identity);
        };
        let Some(current) = credentials.current(client, self.clock.earliest()) else {
            return Some(Withdrawal::Identity);
        };

        let has_its_products = match &current.products {
            Products::All => true,
            Products::Only(products) => {
                !filter.products.is_empty() && filter.products.is_subset(products)
            }
        };
        if !has_its_products {
            return Some(Withdrawal::Products);
        }
        (!filter.is_within(current.labels.as_deref())).then_some(Withdrawal::Labels)
    }

    /// Whether an open backup may go on.
    pub(super) fn review_backup(&self, caller: &Caller) -> Result<(), Status> {
        let credentials = self.credentials.get();
        let current = match &caller.0 {
            None => self.admits_anonymous(&credentials).then_some(None),
            Some(client) => credentials
                .current(client, self.clock.earliest())
                .cloned()
                .map(Some),
        };
        let current = current
            .ok_or_else(|| errors::token_invalid("the permission was withdrawn, or has expired"))?;
        Caller(current).require_backup()
    }
}
