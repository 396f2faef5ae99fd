//! `healthcheck`: asks the admin listener whether the broker is ready, so that a container image
//! needs no curl.

use std::{process::ExitCode, time::Duration};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http_body_util::Full;
use hyper::{Request, Uri};

use super::{EXIT_OTHER, args, http, output, user_info::Shown};

/// Prints whether the broker is ready; exits with 0 if it is, else with 1.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast healthcheck                    # callbacks are accepted, and events can be read
  blobcast healthcheck --listener ingest  # callbacks are accepted: fails while the disk is full
  blobcast healthcheck --listener grpc    # events can be read, also while the disk is full

Asks /readyz, /readyz/ingest or /readyz/grpc of the admin listener.")]
pub(super) struct HealthcheckArgs {
    /// Address of the broker's admin listener.
    #[arg(long, value_name = "URL", env = "BLOBCAST_ADMIN_URL", default_value = "http://127.0.0.1:9090", value_parser = args::http_url, hide_env_values = true)]
    admin_url: Uri,
    /// Ask only whether this listener is ready [default: both].
    #[arg(long, value_name = "LISTENER")]
    listener: Option<Listener>,
    /// How long to wait for the answer, for example 500ms.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = args::duration)]
    timeout: Duration,
}

/// A listener that can be ready without the other one.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Listener {
    /// Callbacks.
    Ingest,
    /// Readers.
    Grpc,
}

impl Listener {
    fn path(self) -> &'static str {
        match self {
            Self::Ingest => "/readyz/ingest",
            Self::Grpc => "/readyz/grpc",
        }
    }
}

pub(super) async fn run(args: HealthcheckArgs) -> anyhow::Result<ExitCode> {
    let path = args.listener.map_or("/readyz", Listener::path);
    let url = format!("{}{path}", args.admin_url.to_string().trim_end_matches('/'));
    let request = Request::get(&url).body(Full::new(Bytes::new()))?;
    let asked = http::send(&http::client(&args.admin_url), request, args.timeout).await;
    let answer = asked.map_err(|error| {
        let url = Shown(&args.admin_url);
        anyhow::anyhow!("cannot ask {url}: {error:#}; is `blobcast serve` running? use --admin-url")
    })?;
    let body = String::from_utf8_lossy(answer.body());
    output::emit_lines(body.trim_end())?;
    Ok(if answer.status().is_success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_OTHER)
    })
}
