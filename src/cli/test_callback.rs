//! `test-callback`: has the broker send itself a made-up callback, through its admin service.

use std::{io, process::ExitCode};

use clap::Args;
use serde_json::{Value, json};

use super::{
    EXIT_OTHER,
    client::GrpcArgs,
    output::{self, Format, note},
    trigger::status_parser,
};
use crate::{event::TaskId, vendor::sample::SampleStatus, wire::v1};

/// Tries a callback URL: the broker sends itself a made-up callback to it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast url --product veo --label team=ads | blobcast test-callback -
  blobcast test-callback                          where callbacks need no credential

The callback passes everything that a real one passes but the network: that the vendor reaches the \
broker is not shown. Its event is an event like any other, of a task whose id begins with test-. \
`blobcast trigger` sends callbacks from here, over HTTP.

Exit codes: 0 the callback was answered 2xx; 1 it was refused, or another error; 2 usage.")]
pub(super) struct TestCallbackArgs {
    /// The callback URL, or its path and query alone; `-` reads it from standard input, where others cannot see it [default:
    /// /webhook/veo].
    #[arg(
        value_name = "CALLBACK_URL",
        default_value = "",
        hide_default_value = true
    )]
    callback_url: String,
    /// The id of the task [default: test- and a random UUID].
    #[arg(long, value_name = "TASK_ID", value_parser = TaskId::parse)]
    task_id: Option<TaskId>,
    /// The status of the task.
    #[arg(long, value_name = "STATUS", default_value = "completed", value_parser = status_parser())]
    status: SampleStatus,
    /// How to print the answer: a line, or one JSON object.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: TestCallbackArgs) -> anyhow::Result<ExitCode> {
    let callback_url = match &*args.callback_url {
        "-" => io::read_to_string(io::stdin())?.trim().to_owned(),
        url => url.to_owned(),
    };
    let request = v1::SendTestCallbackRequest {
        callback_url,
        task_id: args
            .task_id
            .map(|task_id| task_id.to_string())
            .unwrap_or_default(),
        status: args.status.as_str().to_owned(),
    };

    let answer = args.grpc.admin()?.send_test_callback(request).await;
    let v1::SendTestCallbackResponse {
        http_status,
        body,
        task_id,
        request_id,
    } = answer
        .map_err(|status| args.grpc.error(&status))?
        .into_inner();

    match args.output {
        Format::Pretty => output::emit_line(&format!("{task_id} {http_status} {body}"))?,
        Format::Json => output::emit_json(&json!({
            "task_id": task_id,
            "http_status": http_status,
            "body": serde_json::from_str(&body).unwrap_or(Value::String(body)),
            "request_id": request_id,
        }))?,
    }

    Ok(if (200..300).contains(&http_status) {
        ExitCode::SUCCESS
    } else {
        note(&format!(
            "refused; `blobcast refusals` says why, of request {request_id}"
        ));
        ExitCode::from(EXIT_OTHER)
    })
}
