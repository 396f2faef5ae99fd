//! `expect` and `expectations`: has the broker see to it that a task ends in an answer, and lists the
//! tasks that are expected, or cancels some of them.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    EXIT_OTHER,
    args::{duration, key_value},
    client::GrpcArgs,
    output::{self, Format, Usage, note},
    render::{EventPrinter, clock, instant, name, time_json},
};
use crate::{
    event::{Product, TaskId},
    wire::{self, v1},
};

/// Most tasks of one call: the broker's limit.
const CANCELLED_MAX: usize = 1_000;

/// Expects a task that was submitted to the vendor: if its callback does not come, the broker asks
/// the vendor's status API, and what it learns becomes an event.
#[derive(Args, Debug)]
#[command(after_help = "\
The task is expected until its terminal event is here, or until the broker gives up. To expect it \
again changes nothing. The broker needs `reconcile.enabled` and a vendor key.

Examples:
  blobcast expect veo 7f3a
  blobcast expect veo 7f3a --label user=17 --within 10m

Exit codes: 0 it is expected, or over already; 1 it is not; 2 usage.")]
pub(super) struct ExpectArgs {
    /// The task's product, for example veo.
    #[arg(value_name = "PRODUCT", value_parser = Product::parse)]
    product: Product,
    /// The task's id.
    #[arg(value_name = "TASK_ID", value_parser = TaskId::parse)]
    task_id: TaskId,
    /// A label of the task's callback URL; repeat it for more. The event that the broker learns of by asking carries them.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// How long from now until the task is late and the vendor is asked. Default: the product's.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    within: Option<Duration>,
    /// Name of the broker's key with which the task was submitted. Default: the first for the product.
    #[arg(long, value_name = "NAME")]
    vendor_key: Option<String>,
    /// How to print the answer: a line, or a JSON object.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

/// Lists the tasks that are expected, oldest first, or cancels some of them.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast expectations
  blobcast expectations --overdue --product veo
  blobcast expectations --cancel veo 7f3a --cancel sora 9c1e

Tasks that somebody only waits for (`wait --product`, `listen --task`) are not listed: nothing is \
stored of them.

The vendor is not asked any more for a task that is cancelled; its callback is an event as ever. \
An administrator, or anybody where no credentials are needed, may cancel what any client expects; \
any other client what it expects itself.

Exit codes: 0 done; 1 a task to cancel was not expected, or another error; 2 usage.")]
pub(super) struct ExpectationsArgs {
    /// Only those whose deadline has passed.
    #[arg(long)]
    overdue: bool,
    /// Only those of this product, for example veo.
    #[arg(long, value_name = "PRODUCT", value_parser = Product::parse)]
    product: Option<Product>,
    /// Cancel this task's expectation instead; repeat it for more.
    #[arg(
        long,
        num_args = 2,
        value_names = ["PRODUCT", "TASK_ID"],
        conflicts_with_all = ["overdue", "product", "output"],
    )]
    cancel: Vec<String>,
    /// How to print the list: a table, or one JSON object a line.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn expect(args: ExpectArgs) -> anyhow::Result<ExitCode> {
    let mut expectation = v1::Expectation {
        product: args.product.to_string(),
        task_id: args.task_id.to_string(),
        expect_within: args.within.map(wire::duration),
        vendor_key: args.vendor_key.clone().unwrap_or_default(),
        ..v1::Expectation::default()
    };
    for (key, value) in &args.labels {
        let earlier = expectation.labels.insert(key.clone(), value.clone());
        if earlier.is_some_and(|earlier| earlier != *value) {
            let problem = format!("--label {key}=… is given twice: a task has one value per key");
            return Err(Usage(problem).into());
        }
    }

    let request = v1::ExpectTasksRequest {
        expectations: vec![expectation],
    };
    let answer = args.grpc.events()?.expect_tasks(request).await;
    let answer = answer
        .map_err(|status| args.grpc.error(&status))?
        .into_inner();
    let task = answer.tasks.into_iter().next().unwrap_or_default();
    match args.output {
        Format::Json => output::emit_json(&expected_json(&task)?)?,
        Format::Pretty => print_expected(&task)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_expected(task: &v1::ExpectedTask) -> anyhow::Result<()> {
    let v1::ExpectedTask {
        product, task_id, ..
    } = task;
    let now = Timestamp::now();
    if !task.over {
        let by = task.expected_by.and_then(instant);
        let by = by.map_or_else(|| "-".to_owned(), |time| clock(time, now));
        return output::emit_line(&format!("{product} {task_id} is expected by {by}"));
    }
    match &task.event {
        Some(event) => EventPrinter::new(Format::Pretty).print(event),
        None => output::emit_line(&format!("{product} {task_id} is over")),
    }
}

fn expected_json(task: &v1::ExpectedTask) -> anyhow::Result<Value> {
    let event = task.event.as_ref().map(super::render::json).transpose()?;
    let event: Option<Value> = event.map(|text| serde_json::from_str(&text)).transpose()?;
    Ok(json!({
        "product": task.product,
        "task_id": task.task_id,
        "over": task.over,
        "event": event,
        "expected_by": time_json(task.expected_by),
    }))
}

pub(super) async fn run(args: ExpectationsArgs) -> anyhow::Result<ExitCode> {
    if args.cancel.is_empty() {
        list(args).await
    } else {
        cancel(args).await
    }
}

async fn cancel(args: ExpectationsArgs) -> anyhow::Result<ExitCode> {
    let tasks = args
        .cancel
        .chunks_exact(2)
        .map(|pair| task_key(&pair[0], &pair[1]));
    let tasks = tasks.collect::<Result<Vec<_>, _>>()?;
    let mut client = args.grpc.events()?;
    let mut cancelled_count = 0;
    for tasks in tasks.chunks(CANCELLED_MAX) {
        let request = v1::CancelExpectationsRequest {
            tasks: tasks.to_vec(),
        };
        let answer = client.cancel_expectations(request).await;
        let answer = answer.map_err(|status| args.grpc.error(&status))?;
        cancelled_count += answer.into_inner().cancelled_count as usize;
    }

    let asked_count = tasks.len();
    output::emit_line(&format!("{cancelled_count} of {asked_count} cancelled"))?;
    if cancelled_count < asked_count {
        note(
            "the others are not expected: they are over, given up or cancelled, or another client \
             expects them",
        );
        return Ok(ExitCode::from(EXIT_OTHER));
    }
    Ok(ExitCode::SUCCESS)
}

fn task_key(product: &str, task_id: &str) -> Result<v1::TaskKey, Usage> {
    let usage = |problem: String| Usage(format!("--cancel {product} {task_id}: {problem}"));
    Product::parse(product).map_err(|error| usage(error.to_string()))?;
    TaskId::parse(task_id).map_err(|error| usage(error.to_string()))?;
    Ok(v1::TaskKey {
        product: product.to_owned(),
        task_id: task_id.to_owned(),
    })
}

async fn list(args: ExpectationsArgs) -> anyhow::Result<ExitCode> {
    let mut client = args.grpc.admin()?;
    let state = if args.overdue {
        v1::ExpectationState::Overdue
    } else {
        v1::ExpectationState::Unspecified
    };
    let mut request = v1::ListExpectationsRequest {
        product: args
            .product
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        state: state.into(),
        ..v1::ListExpectationsRequest::default()
    };

    let (mut rows, now) = (Vec::new(), Timestamp::now());
    loop {
        let answer = client.list_expectations(request.clone()).await;
        let page = answer
            .map_err(|status| args.grpc.error(&status))?
            .into_inner();
        for expectation in &page.expectations {
            match args.output {
                Format::Json => output::emit_json(&as_json(expectation))?,
                Format::Pretty => rows.push(row(expectation, now)),
            }
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }

    if args.output == Format::Pretty && rows.is_empty() {
        note("no task is expected");
    } else if args.output == Format::Pretty {
        let header = [
            "PRODUCT", "TASK", "STATE", "BY", "CLIENT", "KEY", "CHECKS", "VENDOR", "LABELS",
        ];
        output::emit_table(header, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(expectation: &v1::ExpectationInfo, now: Timestamp) -> [String; 9] {
    let state = match expectation.state() {
        v1::ExpectationState::Unspecified => "-",
        v1::ExpectationState::Waiting => "waiting",
        v1::ExpectationState::Overdue => "overdue",
    };
    let by = expectation.expected_by.and_then(instant);
    let mut labels: Vec<_> = expectation
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort();
    [
        expectation.product.clone(),
        expectation.task_id.clone(),
        state.to_owned(),
        by.map_or_else(|| "-".to_owned(), |time| clock(time, now)),
        or_dash(&expectation.client),
        or_dash(&expectation.vendor_key),
        expectation.check_count.to_string(),
        vendor(expectation),
        or_dash(&labels.join(" ")),
    ]
}

/// The vendor's last answer: `200 processing`.
fn vendor(expectation: &v1::ExpectationInfo) -> String {
    match (
        expectation.vendor_http_status,
        expectation.vendor_status.as_str(),
    ) {
        (0, "") => "-".to_owned(),
        (http, "") => http.to_string(),
        (http, word) => format!("{http} {word}"),
    }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn as_json(expectation: &v1::ExpectationInfo) -> Value {
    json!({
        "product": expectation.product,
        "task_id": expectation.task_id,
        "labels": expectation.labels,
        "client": expectation.client,
        "vendor_key": expectation.vendor_key,
        "state": name(expectation.state, v1::ExpectationState::as_str_name),
        "expected_at": time_json(expectation.expected_at),
        "expected_by": time_json(expectation.expected_by),
        "check_count": expectation.check_count,
        "checked_at": time_json(expectation.checked_at),
        "vendor_http_status": expectation.vendor_http_status,
        "vendor_status": expectation.vendor_status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_uses_the_names_of_the_proto_and_a_row_the_words_of_people() {
        let expectation = v1::ExpectationInfo {
            product: "veo".into(),
            task_id: "t1".into(),
            state: v1::ExpectationState::Overdue.into(),
            labels: [("b", "2"), ("a", "1")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            vendor_http_status: 200,
            vendor_status: "processing".into(),
            check_count: 3,
            ..v1::ExpectationInfo::default()
        };
        let value = as_json(&expectation);
        assert_eq!(value["state"], "EXPECTATION_STATE_OVERDUE");
        assert_eq!(value["checked_at"], Value::Null);
        assert_eq!(
            row(&expectation, Timestamp::UNIX_EPOCH),
            [
                "veo",
                "t1",
                "overdue",
                "-",
                "-",
                "-",
                "3",
                "200 processing",
                "a=1 b=2"
            ]
        );
    }
}
