//! `console`: prints the address of the console, with a code that logs in once where a login is needed.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    header::{AUTHORIZATION, HeaderValue},
};
use serde_json::Value;

use super::{addresses::Urls, args, client, http, output, user_info::Shown};

/// Prints a link to the console. It logs in once, within a minute, as the client of the token.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast console                            # where no login is needed
  blobcast console --token-file ops.token     # a link that logs in once, within 60 s
  xdg-open \"$(blobcast console)\"

The code is behind the `#`, so that neither a proxy nor a log sees it.")]
pub(super) struct ConsoleArgs {
    /// Address of the broker's admin listener. Of several, separated by commas, the link is to the first.
    #[arg(
        long = "admin-url",
        value_name = "URL",
        env = "BLOBCAST_ADMIN_URL",
        default_value = "http://127.0.0.1:9090",
        value_parser = Urls::parse,
        hide_env_values = true
    )]
    admin_urls: Urls,
    /// File with the client token; BLOBCAST_TOKEN can hold the token itself.
    #[arg(long, value_name = "PATH", env = "BLOBCAST_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// How long to wait for the answer, for example 500ms.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = args::duration)]
    timeout: Duration,
}

pub(super) async fn run(args: ConsoleArgs) -> anyhow::Result<ExitCode> {
    let url = args
        .admin_urls
        .iter()
        .next()
        .context("name an address with --admin-url")?;
    let base = url.to_string();
    let page = format!("{}/ui/", base.trim_end_matches('/'));
    let mut request = Request::post(format!("{page}link")).body(Full::new(Bytes::new()))?;
    if let Some(bearer) = client::bearer(args.token_file.as_deref())? {
        let mut header = HeaderValue::from_bytes(bearer.as_encoded_bytes())?;
        header.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, header);
    }

    let asked = http::send(&http::client(url), request, args.timeout).await;
    let answer = asked.map_err(|error| {
        let url = Shown(url);
        anyhow::anyhow!("cannot ask {url}: {error:#}; is `blobcast serve` running? use --admin-url")
    })?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => anyhow::bail!(
            "a login is needed: name a client's token with --token-file or BLOBCAST_TOKEN; one whose line has `admin = true` sees all"
        ),
        status => anyhow::bail!(
            "{} answered {status}: is it the admin listener?",
            Shown(url)
        ),
    }

    let answer: Value = serde_json::from_slice(answer.body()).context("the answer is no JSON")?;
    let code = answer["code"].as_str().unwrap_or_default();
    let link = if code.is_empty() {
        page
    } else {
        format!("{page}#code={code}")
    };
    output::emit_lines(&link)?;
    Ok(ExitCode::SUCCESS)
}
