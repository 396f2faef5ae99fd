//! A place for the newest of something: newer replaces older. What a handle passes to a task without waiting.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Debug)]
pub(super) struct Slot<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    newest: Mutex<Option<T>>,
    filled: Notify,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Slot<T> {
    pub(super) fn new() -> Self {
        let (newest, filled) = (Mutex::new(None), Notify::new());
        Self(Arc::new(Inner { newest, filled }))
    }

    pub(super) fn put(&self, value: T) {
        *self.0.newest.lock() = Some(value);
        self.0.filled.notify_one();
    }

    /// Waits until there is something. For one task only.
    pub(super) async fn take(&self) -> T {
        loop {
            if let Some(value) = self.0.newest.lock().take() {
                return value;
            }
            self.0.filled.notified().await;
        }
    }

    /// Waits until there is something, and leaves it there.
    pub(super) async fn filled(&self) {
        while self.0.newest.lock().is_none() {
            self.0.filled.notified().await;
        }
    }

    pub(super) fn is_filled(&self) -> bool {
        self.0.newest.lock().is_some()
    }
}
