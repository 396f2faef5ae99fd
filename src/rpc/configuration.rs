//! The configuration in force, as administrators see it.

use super::Context;
use crate::{
    audit::Entry,
    config::{Origin, Setting},
    wire::v1,
};

pub(super) fn describe(context: &Context, entry: &mut Entry) -> v1::GetConfigurationResponse {
    let settings = context.settings.lock().clone();
    entry.note("count", settings.0.len());
    v1::GetConfigurationResponse {
        settings: settings.0.into_iter().map(on_wire).collect(),
    }
}

fn on_wire(setting: Setting) -> v1::Setting {
    let source = if setting.is_lowered {
        v1::SettingSource::Machine
    } else {
        source(&setting.origin)
    };
    let (pending_value, pending_origin) = setting.pending.unzip();
    v1::Setting {
        key: setting.key.to_owned(),
        value: setting.value,
        default_value: setting.default,
        source: source.into(),
        origin: setting.origin.to_string(),
        reloadable: setting.is_reloadable,
        pending_value,
        pending_origin: pending_origin.map(|origin| origin.to_string()),
    }
}

fn source(origin: &Origin) -> v1::SettingSource {
    match origin {
        Origin::Default => v1::SettingSource::DefaultFile,
        Origin::File(_) | Origin::Line { .. } => v1::SettingSource::File,
        Origin::Environment(_) => v1::SettingSource::Environment,
        Origin::Flag(_) => v1::SettingSource::Flag,
    }
}
