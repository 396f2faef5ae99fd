//! Each key with its value as it is written, and where that comes from: what operators see of the configuration in force. Pure.
//!
//! No key holds a secret: secrets are in files of their own, of which the keys have the paths, and a URL with a password is refused.

use toml::Value;

use super::{
    keys::{Change, KEYS},
    layers::Layers,
    problem::Origin,
};

/// A key of the configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The dotted name.
    pub key: &'static str,
    /// The value in force, as it is written.
    pub value: String,
    /// The value in the default file.
    pub default: String,
    /// Where the value comes from.
    pub origin: Origin,
    /// A reload puts another value into force.
    pub is_reloadable: bool,
    /// The value was lowered at the start, because the machine has too little for the one that is written.
    pub is_lowered: bool,
    /// What was written since, and where: a restart puts it into force.
    pub pending: Option<(String, Origin)>,
}

/// All keys, in the order of the default file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings(pub Vec<Setting>);

impl Settings {
    pub(super) fn of(layers: &Layers) -> Self {
        let setting = |key: &super::Key| Setting {
            key: key.name,
            value: layers.value_of(key.name).map(text).unwrap_or_default(),
            default: layers.default_of(key.name).map(text).unwrap_or_default(),
            origin: layers.origin(key.name),
            is_reloadable: key.change == Change::Reload,
            is_lowered: false,
            pending: None,
        };
        Self(KEYS.iter().map(setting).collect())
    }

    /// Notes that a value was lowered at the start.
    pub(crate) fn lower(&mut self, key: &str, to: String) {
        if let Some(setting) = self.0.iter_mut().find(|setting| setting.key == key) {
            (setting.value, setting.is_lowered) = (to, true);
        }
    }

    /// Takes up what a reload has put into force, and notes what needs a restart.
    pub(crate) fn take_up(&mut self, new: Self, needs_restart: &[&str]) {
        for (setting, new) in self.0.iter_mut().zip(new.0) {
            if new.is_reloadable {
                *setting = new;
            } else {
                let is_pending = needs_restart.contains(&setting.key);
                setting.pending = is_pending.then_some((new.value, new.origin));
            }
        }
    }
}

/// A text as it is, anything else as in the file.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
