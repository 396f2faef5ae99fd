//! What the rest of the broker sees of the reconciler: the schedule behind a lock, for the calls
//! that ask what is expected. The lock is never held over an await.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    asking::Parts,
    keys::NoKey,
    paths,
    schedule::{Checked, Schedule, TaskKey},
    waiting::Waiting,
};
use crate::event::{Product, TaskId};

/// What the configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most calls with one key in any minute, lists too.
    pub checks_per_minute_max: u32,
    /// From a task's deadline until it is given up.
    pub give_up_after: Duration,
    /// In which time a task should be over, for products whose default is not good.
    pub expect_within: BTreeMap<Product, Duration>,
    /// After an outage, also tasks that nobody expects are appended.
    pub publishes_unknown_tasks: bool,
    /// A shorter absence of the broker is no outage.
    pub outage_min: Duration,
}

/// The reconciler, shared by its loop and by calls.
#[derive(Debug)]
pub struct Reconciler {
    pub(super) parts: Arc<Parts>,
    pub(super) settings: Settings,
    pub(super) schedule: Mutex<Schedule>,
}

/// Why the vendor is not asked for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAsked {
    /// No key is for the product, or no path of its status API is known.
    Product,
    /// There is no key of this name for the product.
    Key,
}

impl Reconciler {
    /// Makes one; [`Reconciler::run`] has it ask. The keys are those of the credentials in force.
    pub(crate) fn new(parts: Parts, settings: Settings) -> Self {
        parts.keys.refresh(&parts.credentials.get());
        let schedule = Schedule::new(settings.give_up_after, fastrand::u64(..));
        Self {
            parts: Arc::new(parts),
            settings,
            schedule: Mutex::new(schedule),
        }
    }

    /// Which tasks somebody waits for.
    pub fn waiting(&self) -> &Arc<Waiting> {
        &self.parts.waiting
    }

    /// Whether there is any key to ask with.
    pub fn has_keys(&self) -> bool {
        !self.parts.keys.is_empty()
    }

    /// In which time a task of a product should be over, if it can be asked for with a key of that name, or with any.
    pub fn expect_within(
        &self,
        product: &Product,
        named_key: Option<&str>,
    ) -> Result<Duration, NotAsked> {
        if !self.parts.api.has_status(product) {
            return Err(NotAsked::Product);
        }
        match self.parts.keys.choose(product, named_key) {
            // A refused key may be replaced, before or after the deadline.
            Ok(_) | Err(NoKey::Refused(_)) => Ok(self.default_within(product)),
            Err(NoKey::Named(..)) => Err(NotAsked::Key),
            Err(NoKey::ForProduct(_)) => Err(NotAsked::Product),
        }
    }

    /// The name of the key with which a task is asked for; `None` if there is none that is good, or no path.
    pub fn key_of(&self, product: &Product, named: Option<&str>) -> Option<Arc<str>> {
        if !self.parts.api.has_status(product) {
            return None;
        }
        let key = self.parts.keys.choose(product, named).ok()?;
        Some(Arc::clone(&key.name))
    }

    /// What checks of a task have brought since the start.
    pub fn checked(&self, product: &Product, task_id: &TaskId) -> Checked {
        let task = TaskKey {
            product: product.clone(),
            task_id: task_id.clone(),
        };
        let schedule = self.schedule.lock();
        schedule.checked(&task).cloned().unwrap_or_default()
    }

    pub(super) fn default_within(&self, product: &Product) -> Duration {
        let configured = self.settings.expect_within.get(product).copied();
        configured.unwrap_or_else(|| paths::expect_within(product))
    }
}
