//! Where the writer hands committed events over.

use crate::event::Record;

/// Takes committed events, on the writer's thread, in log order, before their callbacks are answered.
pub trait Publish: Send {
    /// Takes the events of one commit; never blocks.
    fn publish(&mut self, records: &[Record]);

    /// Replaces its copies of erased events by the keys that are left. By default it keeps no copies.
    fn erase(&mut self, _erased: &[Record]) {}
}

impl<F: FnMut(&[Record]) + Send> Publish for F {
    fn publish(&mut self, records: &[Record]) {
        self(records);
    }
}
