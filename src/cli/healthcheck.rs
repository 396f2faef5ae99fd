//! `healthcheck`: one question to the admin listener, so that a container image needs no curl.

use std::{process::ExitCode, time::Duration};

use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::{Request, Uri};

use super::{EXIT_OTHER, args, http, output};

/// Prints what /readyz answers; exits with 0 if the broker is ready, else with 1.
#[derive(Args, Debug)]
pub(super) struct HealthcheckArgs {
    /// Address of the broker's admin listener.
    #[arg(long, value_name = "URL", env = "BLOBCAST_ADMIN_URL", default_value = "http://127.0.0.1:9090", value_parser = args::http_url)]
    admin_url: Uri,
    /// How long to wait for the answer, for example 500ms.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = args::duration)]
    timeout: Duration,
}

pub(super) async fn run(args: HealthcheckArgs) -> anyhow::Result<ExitCode> {
    let url = format!("{}/readyz", args.admin_url.to_string().trim_end_matches('/'));
    let request = Request::get(&url).body(Full::new(Bytes::new()))?;
    let asked = http::send(&http::client(&args.admin_url), request, args.timeout).await;
    let (status, body) = asked.map_err(|error| {
        anyhow::anyhow!("cannot ask {url}: {error:#}; is `blobcast serve` running? use --admin-url")
    })?;
    let body = String::from_utf8_lossy(&body);
    output::emit_lines(body.trim_end())?;
    Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_OTHER) })
}
