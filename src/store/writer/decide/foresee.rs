//! What drafts would become if they were released now. Reads the index alone, and changes nothing.

use std::collections::{HashMap, hash_map::Entry};

use uuid::Uuid;

use super::duplicate::{By, Verdict, judge};
use crate::{
    event::TaskId,
    store::{Draft, ReadError, Store, layout::TaskEvent, task_entry::insert},
};

/// What a draft would become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreseen {
    /// An event.
    New {
        /// Its number among those of its task and product.
        revision: u32,
        /// It contradicts another one.
        conflict: bool,
    },
    /// No event: the log has it already, by this id, or a draft before it says the same.
    Duplicate(Option<Uuid>),
}

impl Store {
    /// What each of these would become if all of them were released from quarantine now.
    pub fn foresee(&self, drafts: &[Draft]) -> Result<Vec<Foreseen>, ReadError> {
        let head = self.head();
        let mut tasks: HashMap<&TaskId, Vec<TaskEvent>> = HashMap::new();
        // Later drafts may repeat earlier ones, so these are known as if they were in the log.
        let (mut place, mut foreseen) = (head, Vec::with_capacity(drafts.len()));
        for draft in drafts {
            let known = match tasks.entry(&draft.task_id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(task) => task.insert(self.index.tasks.get(&draft.task_id)?),
            };
            let (product, fingerprint) = (&draft.product, draft.fingerprint);
            let verdict = judge(known, product, draft.status, fingerprint, By::Trusted);
            let (revision, conflict) = match verdict {
                Verdict::New { revision, conflict } => (revision, conflict),
                Verdict::Duplicate(of) => {
                    let is_in_log = of.sequence <= head;
                    foreseen.push(Foreseen::Duplicate(is_in_log.then_some(of.event_id)));
                    continue;
                }
                Verdict::TooMany => (0, false), // never of what an operator releases
            };

            foreseen.push(Foreseen::New { revision, conflict });
            place = place.next();
            let event = TaskEvent {
                sequence: place,
                event_id: draft.event_id,
                fingerprint,
                revision,
                status: draft.status,
                product: product.clone(),
                is_erased: false,
            };
            insert(known, event);
        }
        Ok(foreseen)
    }
}
