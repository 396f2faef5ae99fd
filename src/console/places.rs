//! How many calls of the console are answered at once: a stream, a wait or an export lasts as long as its page is open. Pure.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::credentials::Client;

/// In all. The admin listener has 128 connections, so probes and scrapers still come in.
const CALLS_MAX: usize = 64;
/// Of clients without `admin`. The others can always look what is wrong.
const WITHOUT_ADMIN_MAX: usize = 40;
/// Of one client.
const OF_ONE_CLIENT: usize = 20;

/// The calls that are being answered.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    by_client: HashMap<Arc<str>, usize>,
    without_admin: usize,
    in_all: usize,
}

/// A place of a call, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    client: Option<Arc<Client>>,
}

impl Places {
    /// A place for a call of `client`; none where nobody has to log in. Or which limit is reached.
    pub(crate) fn try_take(
        self: &Arc<Self>,
        client: Option<&Arc<Client>>,
    ) -> Result<Place, String> {
        let mut taken = self.0.lock();
        let is_full = taken.in_all >= CALLS_MAX
            || client.is_some_and(|client| !client.admin)
                && taken.without_admin >= WITHOUT_ADMIN_MAX;
        if is_full {
            return Err("too many pages of the console are open: close some".to_owned());
        }
        if let Some(client) = client {
            let of_client = taken.by_client.entry(Arc::clone(&client.name)).or_default();
            if *of_client >= OF_ONE_CLIENT {
                return Err(format!(
                    "client {} has {OF_ONE_CLIENT} calls open: close some of its pages",
                    client.name
                ));
            }
            *of_client += 1;
            taken.without_admin += usize::from(!client.admin);
        }
        taken.in_all += 1;
        Ok(Place {
            places: Arc::clone(self),
            client: client.cloned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        taken.in_all -= 1;
        let Some(client) = &self.client else { return };
        taken.without_admin -= usize::from(!client.admin);
        let of_client = taken.by_client.get_mut(&client.name);
        let left = of_client.map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            taken.by_client.remove(&client.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::client_for_tests as client;

    #[test]
    fn a_client_has_a_share_and_administrators_get_in_beside_all_others() {
        let places = Arc::new(Places::default());
        let teams = ["a", "b", "c"].map(|name| client(name, false));
        let mut held = Vec::new();
        for team in &teams {
            held.extend((0..CALLS_MAX).map_while(|_| places.try_take(Some(team)).ok()));
        }
        assert_eq!(held.len(), WITHOUT_ADMIN_MAX);
        assert!(places.try_take(Some(&teams[0])).is_err());

        let ops = client("ops", true);
        let of_ops: Vec<_> = (0..CALLS_MAX)
            .map_while(|_| places.try_take(Some(&ops)).ok())
            .collect();
        assert_eq!(of_ops.len(), OF_ONE_CLIENT);
        let why = places.try_take(Some(&ops)).unwrap_err();
        assert!(why.contains("client ops has 20"), "{why}");

        drop(held);
        drop(of_ops);
        assert!(places.0.lock().by_client.is_empty());
        let open: Vec<_> = (0..=CALLS_MAX)
            .map_while(|_| places.try_take(None).ok())
            .collect();
        assert_eq!(open.len(), CALLS_MAX);
    }
}
