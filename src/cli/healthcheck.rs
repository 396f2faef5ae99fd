//! `healthcheck`: asks the admin listener whether the broker is ready, so that a container image
//! needs no curl. Of several brokers it asks each.

use std::{process::ExitCode, time::Duration};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http_body_util::Full;
use hyper::{Request, Uri};
use tokio::task::JoinSet;

use super::{
    EXIT_OTHER,
    addresses::{Urls, shown},
    args, http, output,
    user_info::Shown,
};

/// Prints whether the broker is ready; exits with 0 if it is, else with 1. Of several brokers each
/// has a line, and 0 means that all are ready.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast healthcheck                    # callbacks are accepted, and events can be read
  blobcast healthcheck --listener ingest  # callbacks are accepted: fails while the disk is full
  blobcast healthcheck --listener grpc    # events can be read, also while the disk is full
  blobcast healthcheck --admin-url http://10.0.0.1:9090,http://10.0.0.2:9090   # a cluster: is each node ready?

Asks /readyz, /readyz/ingest or /readyz/grpc of the admin listener.")]
pub(super) struct HealthcheckArgs {
    /// Address of the broker's admin listener. For a cluster, those of its nodes, separated by commas or each with a flag of its own:
    /// each is asked.
    #[arg(long = "admin-url", value_name = "URL", env = "BLOBCAST_ADMIN_URL", default_value = "http://127.0.0.1:9090", value_parser = Urls::parse, hide_env_values = true)]
    admin_urls: Vec<Urls>,
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

/// What a broker's admin listener says about it.
struct Answer {
    is_ready: bool,
    /// Its own words.
    body: String,
}

pub(super) async fn run(args: HealthcheckArgs) -> anyhow::Result<ExitCode> {
    let path = args.listener.map_or("/readyz", Listener::path);
    let urls: Vec<_> = args.admin_urls.iter().flat_map(Urls::iter).collect();
    let is_ready = match urls[..] {
        [url] => {
            let asked = ask(url.clone(), path, args.timeout).await;
            let answer = asked.map_err(|error| {
                let url = Shown(url);
                anyhow::anyhow!(
                    "cannot ask {url}: {error:#}; is `blobcast serve` running? use --admin-url"
                )
            })?;
            output::emit_lines(&answer.body)?;
            answer.is_ready
        }
        _ => each_is_ready(&urls, path, args.timeout).await?,
    };
    Ok(if is_ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_OTHER)
    })
}

/// Asks all at once, and prints a line for each, in their order.
async fn each_is_ready(
    urls: &[&Uri],
    path: &'static str,
    timeout: Duration,
) -> anyhow::Result<bool> {
    let mut asking = JoinSet::new();
    for (index, &url) in urls.iter().enumerate() {
        let asked = ask(url.clone(), path, timeout);
        asking.spawn(async move { (index, asked.await) });
    }
    let mut answers = asking.join_all().await;
    answers.sort_unstable_by_key(|(index, _)| *index);

    let mut are_ready = true;
    for (index, answer) in answers {
        let url = shown(urls[index]);
        let line = match &answer {
            Ok(answer) => format!("{url}  {}", answer.body),
            Err(error) => format!("{url}  cannot be asked: {error:#}"),
        };
        output::emit_line(&line)?;
        are_ready &= answer.is_ok_and(|answer| answer.is_ready);
    }
    Ok(are_ready)
}

async fn ask(url: Uri, path: &str, timeout: Duration) -> anyhow::Result<Answer> {
    let asked = format!("{}{path}", url.to_string().trim_end_matches('/'));
    let request = Request::get(&asked).body(Full::new(Bytes::new()))?;
    let answer = http::send(&http::client(&url), request, timeout).await?;
    Ok(Answer {
        is_ready: answer.status().is_success(),
        body: String::from_utf8_lossy(answer.body()).trim_end().to_owned(),
    })
}
