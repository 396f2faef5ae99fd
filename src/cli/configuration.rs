//! `configuration`: prints the configuration that a broker runs with, and where each value comes from.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::{
    client::GrpcArgs,
    output::{self, Format, note},
    render::name,
};
use crate::wire::v1;

/// Prints each key of a broker's configuration with its value in force, and where that comes from.
#[derive(Args, Debug)]
#[command(after_help = "\
No key holds a secret: secrets are in files, and what is printed are their paths.

Examples:
  blobcast configuration --changed
  blobcast configuration --output json | jq 'select(.source == \"SETTING_SOURCE_ENVIRONMENT\")'

Exit codes: 0 done; 1 an error; 2 usage.")]
pub(super) struct ConfigurationArgs {
    /// Only keys whose value is not the default, or that need a restart.
    #[arg(long)]
    changed: bool,
    /// How to print the keys: a table, or one JSON object a line.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: ConfigurationArgs) -> anyhow::Result<ExitCode> {
    let request = v1::GetConfigurationRequest {};
    let answer = args.grpc.admin()?.get_configuration(request).await;
    let answer = answer.map_err(|status| args.grpc.error(&status))?;
    let is_meant =
        |setting: &v1::Setting| !args.changed || is_changed(setting) || is_pending(setting);
    let settings = answer.into_inner().settings.into_iter().filter(is_meant);
    let settings: Vec<_> = settings.collect();

    match args.output {
        Format::Json => settings
            .iter()
            .try_for_each(|setting| output::emit_json(&as_json(setting)))?,
        Format::Pretty if settings.is_empty() => note("every key has its default"),
        Format::Pretty => {
            let rows: Vec<_> = settings.iter().map(row).collect();
            output::emit_table(["KEY", "VALUE", "FROM"], &rows)?;
            settings
                .iter()
                .filter(|setting| is_pending(setting))
                .for_each(|setting| note(&restart(setting)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn is_changed(setting: &v1::Setting) -> bool {
    setting.value != setting.default_value
}

fn is_pending(setting: &v1::Setting) -> bool {
    setting.pending_value.is_some()
}

fn row(setting: &v1::Setting) -> [String; 3] {
    let origin = match setting.source() {
        v1::SettingSource::Machine => format!("{}, lowered to fit the memory", setting.origin),
        _ => setting.origin.clone(),
    };
    let value = match &*setting.value {
        "" => "-",
        value => value,
    };
    [setting.key.clone(), value.to_owned(), origin]
}

fn restart(setting: &v1::Setting) -> String {
    format!(
        "{} is {:?} after a restart, by {}",
        setting.key,
        setting.pending_value.as_deref().unwrap_or_default(),
        setting.pending_origin.as_deref().unwrap_or_default(),
    )
}

fn as_json(setting: &v1::Setting) -> Value {
    json!({
        "key": setting.key,
        "value": setting.value,
        "default_value": setting.default_value,
        "source": name(setting.source, v1::SettingSource::as_str_name),
        "origin": setting.origin,
        "reloadable": setting.reloadable,
        "pending_value": setting.pending_value,
        "pending_origin": setting.pending_origin,
    })
}
