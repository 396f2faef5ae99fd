//! `erase`: removes the content of a task's events from the log, through the admin service.

use std::process::ExitCode;

use clap::Args;

use super::{
    client::GrpcArgs,
    output::{self, note},
};
use crate::{
    event::{Product, TaskId},
    wire::v1,
};

/// Erases the content of every retained event of one task: outputs, error, prompt, labels and raw body.
#[derive(Args, Debug)]
#[command(after_help = "\
When it is done, the content is overwritten in the log, and readers no longer get these events. The \
task is not expected any more; labels of `expect` stay in the log's files until their segment goes. \
Until retention removes them, the log keeps their ids, statuses and times, and a hash that detects \
a repeated callback, so that a repetition brings nothing back. A callback with other content is a \
new event: erase the task again.

It does not reach backups that were taken before (take a new one, and delete the old ones), events \
that readers have already received, and the quarantine (`blobcast quarantine list`, `discard`).

Example:
  blobcast erase veo 7f3a

Exit codes: 0 it is erased; 1 it is not; 2 usage.")]
pub(super) struct EraseArgs {
    /// The task's product, for example veo.
    #[arg(value_name = "PRODUCT", value_parser = Product::parse)]
    product: Product,
    /// The task's id.
    #[arg(value_name = "TASK_ID", value_parser = TaskId::parse)]
    task_id: TaskId,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: EraseArgs) -> anyhow::Result<ExitCode> {
    let request = v1::EraseTaskRequest {
        product: args.product.to_string(),
        task_id: args.task_id.to_string(),
    };
    let answer = args.grpc.admin()?.erase_task(request).await;
    let v1::EraseTaskResponse {
        erased_count,
        erased_bytes,
    } = answer
        .map_err(|status| args.grpc.error(&status))?
        .into_inner();
    let events = if erased_count == 1 { "event" } else { "events" };
    output::emit_line(&format!(
        "{erased_count} {events} erased, {erased_bytes} bytes"
    ))?;
    note("backups that were taken before still contain them");
    Ok(ExitCode::SUCCESS)
}
