//! `url`: prints a signed callback URL, minted by the broker through its admin service.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use serde_json::json;

use super::{
    args,
    client::GrpcArgs,
    output::{self, Format, Usage, note},
    render::{clock, instant, time_json},
};
use crate::{
    event::Product,
    wire::{self, v1},
};

/// Mints a signed callback URL, valid for one product, its labels, and a limited time.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast url --product veo --label team=ads --ttl 2h
  curl … -d \"{\\\"callback_url\\\": \\\"$(blobcast url --product veo)\\\", …}\"

Prints the URL alone on standard output. It is a secret: anybody who has it can send callbacks until it expires.")]
pub(super) struct UrlArgs {
    /// The product of the callbacks, for example veo [default: the only one of the key, or inferred
    /// from each callback].
    #[arg(long, value_name = "PRODUCT", value_parser = Product::parse)]
    product: Option<Product>,
    /// A label that every event will have; repeat it for more. Labels that the key is bound to need
    /// not be named.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = args::key_value)]
    labels: Vec<(String, String)>,
    /// How long callbacks are accepted, 1s to 366d.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = args::duration)]
    ttl: Duration,
    /// Name of the key to sign with [default: the newest key that is bound to nothing, or the only
    /// key].
    #[arg(
        long,
        value_name = "KEY_ID",
        default_value = "",
        hide_default_value = true
    )]
    key_id: String,
    /// The URL alone, or one JSON object with its expiry and key.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: UrlArgs) -> anyhow::Result<ExitCode> {
    let mut request = v1::MintCallbackUrlRequest {
        product: args
            .product
            .map(|product| product.to_string())
            .unwrap_or_default(),
        ttl: Some(wire::duration(args.ttl)),
        key_id: args.key_id,
        ..Default::default()
    };

    for (key, value) in args.labels {
        if request.labels.insert(key.clone(), value).is_some() {
            return Err(Usage(format!(
                "--label {key}=… is given twice: a label has one value"
            ))
            .into());
        }
    }

    let answer = args.grpc.admin()?.mint_callback_url(request).await;
    let minted = answer
        .map_err(|status| args.grpc.error(&status))?
        .into_inner();
    match args.output {
        Format::Pretty => {
            output::emit_line(&minted.callback_url)?;
            let until = minted
                .expire_time
                .and_then(instant)
                .map(|time| clock(time, jiff::Timestamp::now()));
            note(&format!(
                "accepted until {}, signed with {}",
                until.unwrap_or_default(),
                minted.key_id
            ));
        }
        Format::Json => output::emit_json(&json!({
            "callback_url": minted.callback_url,
            "expire_time": time_json(minted.expire_time),
            "key_id": minted.key_id,
        }))?,
    }

    Ok(ExitCode::SUCCESS)
}
