//! `token new vendor-key`: prints the lines of a key for the vendor's API. The vendor has made the key, so this only writes down where
//! it is, or what it is if it comes by standard input. Never asks the vendor.

use std::{
    path::{self, Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::{
    output::{self, Format, Usage},
    rotate::vendor_secret,
};
use crate::{credentials::Credentials, event::Product};

const SECTION: &str = "vendor_keys";

#[derive(Args, Debug)]
pub(super) struct VendorKeyArgs {
    /// Name of the key in logs, metrics and expectations.
    name: String,
    /// A product whose tasks are asked about with it, for example veo; repeat it for more [default:
    /// all].
    #[arg(long = "product", value_name = "PRODUCT", value_parser = Product::parse)]
    products: Vec<Product>,
    /// File with the key from your RunBlob account, and nothing else in it. The broker reads it, and
    /// reads it again when it changes. `-` reads the key from standard input, and prints it in the
    /// lines.
    #[arg(long, value_name = "PATH")]
    key_file: PathBuf,
}

pub(super) fn print(args: &VendorKeyArgs, format: Format) -> anyhow::Result<ExitCode> {
    let lines = lines(args)?;
    // Refuses here whatever the broker would refuse.
    Credentials::parse(&lines).map_err(|error| Usage(error.to_string()))?;

    match format {
        Format::Json => {
            output::emit_json(&json!({"section": SECTION, "name": args.name, "line": lines}))?;
        }
        Format::Pretty => output::emit(
            format!(
                "Add these lines at the end of the credentials file; each key has a header of its \
                 own:\n\n{lines}\nNext: set `reconcile.enabled = true`. The broker tries the key \
                 and says by blobcast_vendor_key_usable whether the vendor takes it. A running \
                 broker applies a changed key within a second.\n"
            )
            .as_bytes(),
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(args: &VendorKeyArgs) -> anyhow::Result<String> {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let key = if args.key_file == Path::new("-") {
        format!(
            "key = {}",
            quoted(&vendor_secret("--key-file", &args.key_file)?)
        )
    } else {
        // The broker has another working directory.
        let path = path::absolute(&args.key_file).context("--key-file")?;
        let path = path.to_str().ok_or_else(|| {
            Usage("--key-file is not UTF-8, and the credentials file is".to_owned())
        })?;
        format!("key_file = {}", quoted(path))
    };
    let products = match args.products.as_slice() {
        [] => String::new(),
        some => {
            let some: Vec<_> = some
                .iter()
                .map(|product| quoted(product.as_str()))
                .collect();
            format!("products = [{}]\n", some.join(", "))
        }
    };
    Ok(format!(
        "[[{SECTION}]]\nname = {}\n{key}\n{products}",
        quoted(&args.name)
    ))
}
