//! `quarantine`: lists, shows, releases and discards callbacks that were authentic but could not be
//! understood.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    process::ExitCode,
};

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    EXIT_OTHER, body,
    client::{Connection, GrpcArgs},
    output::{self, Format, note},
    render::{BodyJson, EventPrinter, clock, instant, time_json},
};
use crate::{
    event::{Product, TaskId},
    printable::printable,
    vendor::StatusWord,
    wire::v1::{self, admin_service_client::AdminServiceClient},
};

/// Most ids of one call: the broker's limit.
const DISCARD_IDS_MAX: usize = 256;

/// Lists, shows, releases and discards callbacks that were authentic but could not be understood.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast quarantine list
  blobcast quarantine show 7 --output body | jq .
  blobcast quarantine release 7 --task-id 7f3a… --dry-run   # shows the event, and releases nothing
  blobcast quarantine release 7 --task-id 7f3a…
  blobcast quarantine show 7 --output body > body.json   # repair it, then:
  blobcast quarantine release 7 --body body.json
  blobcast quarantine discard 7 8")]
pub(super) struct QuarantineArgs {
    #[command(subcommand)]
    command: QuarantineCommand,
}

#[derive(Debug, Subcommand)]
enum QuarantineCommand {
    /// List the callbacks in quarantine, oldest first.
    List(ListArgs),
    /// Print one callback with its body.
    Show(ShowArgs),
    /// Read a callback again, with corrections if given, and make it an event, or several if its body is an array.
    Release(ReleaseArgs),
    /// Delete callbacks for good.
    Discard(DiscardArgs),
}

#[derive(Args, Debug)]
struct ListArgs {
    /// How to print the list: a table, or one JSON object a line.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

#[derive(Args, Debug)]
struct ShowArgs {
    /// The callback's id, from `quarantine list`.
    quarantine_id: String,
    /// How to print it.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: ShowFormat,
    #[command(flatten)]
    grpc: GrpcArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ShowFormat {
    /// For people.
    Pretty,
    /// One JSON object; the body in `raw_body` if it is UTF-8, else in hexadecimal in `raw_body_hex`.
    Json,
    /// Only the body, byte for byte.
    Body,
}

#[derive(Args, Debug)]
struct ReleaseArgs {
    /// The callback's id, from `quarantine list`.
    quarantine_id: String,
    /// Use this product instead of the callback URL's.
    #[arg(long, value_name = "PRODUCT", value_parser = Product::parse)]
    product: Option<Product>,
    /// Use this task id if the body has no usable one.
    #[arg(long, value_name = "TASK_ID", value_parser = TaskId::parse)]
    task_id: Option<TaskId>,
    /// Use this status word instead of the body's: completed, failed, or another word of the
    /// vendor's.
    #[arg(long, value_name = "WORD")]
    status: Option<StatusWord>,
    /// Read the event from this file instead of the callback's body, which stays the event's raw
    /// body; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    body: Option<String>,
    /// Ignore the labels of the callback URL; labels that its credential is bound to stay.
    #[arg(long)]
    drop_labels: bool,
    /// Only print what the callback would become: it stays in quarantine.
    #[arg(long)]
    dry_run: bool,
    /// How to print what it would become.
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "pretty",
        requires = "dry_run"
    )]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

#[derive(Args, Debug)]
struct DiscardArgs {
    /// Ids of the callbacks, from `quarantine list`.
    #[arg(required = true, value_name = "QUARANTINE_ID")]
    quarantine_ids: Vec<String>,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: QuarantineArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        QuarantineCommand::List(args) => list(args).await,
        QuarantineCommand::Show(args) => show(args).await,
        QuarantineCommand::Release(args) => release(args).await,
        QuarantineCommand::Discard(args) => discard(args).await,
    }
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let mut pages = Pages::new(&args.grpc, false)?;
    let mut rows = Vec::new();
    let now = Timestamp::now();
    while let Some(callbacks) = pages.next().await? {
        for callback in &callbacks {
            match args.output {
                Format::Json => output::emit_json(&json(callback))?,
                Format::Pretty => rows.push(row(callback, now)),
            }
        }
    }
    match args.output {
        Format::Pretty if rows.is_empty() => note("the quarantine is empty"),
        Format::Pretty => {
            let header = ["ID", "RECEIVED", "REASON", "BYTES", "TARGET", "DETAIL"];
            output::emit_table(header, &rows)?;
        }
        Format::Json => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(args: ShowArgs) -> anyhow::Result<ExitCode> {
    // There is no call for one callback: the quarantine is small and looked at rarely.
    let mut pages = Pages::new(&args.grpc, true)?;
    while let Some(callbacks) = pages.next().await? {
        if let Some(callback) = callbacks
            .iter()
            .find(|callback| callback.quarantine_id == args.quarantine_id)
        {
            match args.output {
                ShowFormat::Pretty => output::emit_lines(&pretty(callback))?,
                ShowFormat::Json => output::emit_json(&json(callback))?,
                ShowFormat::Body => emit_body(&callback.body)?,
            }
            return Ok(ExitCode::SUCCESS);
        }
    }
    anyhow::bail!(
        "{} is not in quarantine; `blobcast quarantine list` shows what is",
        args.quarantine_id
    )
}

async fn release(args: ReleaseArgs) -> anyhow::Result<ExitCode> {
    let body = args.body.as_deref().map(body::read).transpose()?;
    if body.as_ref().is_some_and(Bytes::is_empty) {
        anyhow::bail!("--body is empty: an empty body cannot become an event");
    }

    let request = v1::ReleaseQuarantinedRequest {
        quarantine_id: args.quarantine_id,
        product: args
            .product
            .map(|product| product.to_string())
            .unwrap_or_default(),
        task_id: args
            .task_id
            .map(|task_id| task_id.to_string())
            .unwrap_or_default(),
        drop_labels: args.drop_labels,
        body: body.unwrap_or_default(),
        status: args
            .status
            .map(|word| word.as_str().to_owned())
            .unwrap_or_default(),
        validate_only: args.dry_run,
    };

    let answer = args.grpc.admin()?.release_quarantined(request).await;
    let released = answer
        .map_err(|status| args.grpc.error(&status))?
        .into_inner()
        .events;

    if args.dry_run {
        preview(&released, args.output)?;
        return Ok(ExitCode::SUCCESS);
    }

    for event in &released {
        output::emit_line(&event.event_id)?;
    }

    match released.iter().filter(|event| event.duplicate).count() {
        0 => {}
        1 if released.len() == 1 => note("the log already had this event"),
        duplicates => note(&format!(
            "the log already had {duplicates} of these {} events",
            released.len()
        )),
    }

    Ok(ExitCode::SUCCESS)
}

/// Prints what a callback would become.
fn preview(released: &[v1::ReleasedEvent], format: Format) -> anyhow::Result<()> {
    let mut printer = EventPrinter::new(format);
    for became in released {
        match &became.event {
            Some(event) => printer.print(event)?,
            None => note(&format!(
                "the event of {} is too large to be shown here",
                became.task_id
            )),
        }
        if became.duplicate {
            let of = match &*became.event_id {
                "" => "one before it",
                event_id => event_id,
            };
            note(&format!(
                "{} would be a duplicate of {of}, and add no event",
                became.task_id
            ));
        }
    }
    note("nothing was released");
    Ok(())
}

async fn discard(args: DiscardArgs) -> anyhow::Result<ExitCode> {
    let mut client = args.grpc.admin()?;
    let mut discarded_count = 0;
    for ids in args.quarantine_ids.chunks(DISCARD_IDS_MAX) {
        let request = v1::DiscardQuarantinedRequest {
            quarantine_ids: ids.to_vec(),
        };
        let answer = client
            .discard_quarantined(request)
            .await
            .map_err(|status| args.grpc.error(&status))?;
        discarded_count += answer.into_inner().discarded_count as usize;
    }

    let asked_count = args.quarantine_ids.len();
    output::emit_line(&format!("{discarded_count} of {asked_count} discarded"))?;
    if discarded_count < asked_count {
        note(
            "the others are not in quarantine: they were released, discarded or expired before; \
             `blobcast quarantine list` shows what is there",
        );
    }

    Ok(if discarded_count == asked_count {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_OTHER)
    })
}

/// Prints the body byte for byte. On a terminal, refuses bodies with control characters.
fn emit_body(body: &[u8]) -> anyhow::Result<()> {
    let is_harmless = || {
        std::str::from_utf8(body).is_ok_and(|text| text.lines().all(|line| printable(line) == line))
    };
    if io::stdout().is_terminal() && !is_harmless() {
        anyhow::bail!(
            "the body has control characters that could affect the terminal: write it to a file, \
             or use --output pretty"
        );
    }
    output::emit(body)
}

/// The quarantine, page by page.
struct Pages<'a> {
    grpc: &'a GrpcArgs,
    client: AdminServiceClient<Connection>,
    /// `None` after the last page.
    request: Option<v1::ListQuarantineRequest>,
}

impl<'a> Pages<'a> {
    fn new(grpc: &'a GrpcArgs, include_body: bool) -> anyhow::Result<Self> {
        let include_large_bodies = include_body;
        let request = v1::ListQuarantineRequest {
            include_body,
            include_large_bodies,
            ..Default::default()
        };
        Ok(Self {
            grpc,
            client: grpc.admin()?,
            request: Some(request),
        })
    }

    async fn next(&mut self) -> anyhow::Result<Option<Vec<v1::QuarantinedCallback>>> {
        let Some(request) = self.request.take() else {
            return Ok(None);
        };
        let answer = self.client.list_quarantine(request.clone()).await;
        let page = answer
            .map_err(|status| self.grpc.error(&status))?
            .into_inner();
        if !page.next_page_token.is_empty() {
            self.request = Some(v1::ListQuarantineRequest {
                page_token: page.next_page_token,
                ..request
            });
        }
        Ok(Some(page.callbacks))
    }
}

fn row(callback: &v1::QuarantinedCallback, now: Timestamp) -> [String; 6] {
    [
        callback.quarantine_id.clone(),
        callback
            .received_at
            .and_then(instant)
            .map_or_else(|| "-".to_owned(), |time| clock(time, now)),
        callback.reason.clone(),
        callback.body_bytes.to_string(),
        callback.target.clone(),
        callback.detail.clone(),
    ]
}

fn pretty(callback: &v1::QuarantinedCallback) -> String {
    let bound = bound_text(callback);
    let fields = [
        ("id", callback.quarantine_id.clone()),
        (
            "received",
            time_json(callback.received_at).unwrap_or_default(),
        ),
        ("target", callback.target.clone()),
        ("by", callback.credential.clone()),
        ("bound to", bound),
        ("reason", callback.reason.clone()),
        ("detail", callback.detail.clone()),
        ("bytes", callback.body_bytes.to_string()),
    ];

    // Each field stays on its line, whatever it contains, so a target cannot imitate another field.
    let said = fields
        .iter()
        .filter(|(name, value)| *name != "bound to" || !value.is_empty());
    let head: String = said
        .map(|(name, value)| format!("{name:<9} {}\n", printable(value)))
        .collect();
    format!("{head}\n{}", String::from_utf8_lossy(&callback.body))
}

/// `products=veo labels=team:ads`; empty if the credential is bound to nothing.
fn bound_text(callback: &v1::QuarantinedCallback) -> String {
    let mut labels: Vec<_> = callback
        .bound_labels
        .iter()
        .map(|(key, value)| format!("{key}:{value}"))
        .collect();
    labels.sort();
    let fields = [("products", &callback.bound_products), ("labels", &labels)];
    let set = fields.iter().filter(|(_, values)| !values.is_empty());
    set.map(|(name, values)| format!("{name}={}", values.join(",")))
        .collect::<Vec<_>>()
        .join(" ")
}

#[derive(Serialize)]
struct CallbackJson<'a> {
    quarantine_id: &'a str,
    reason: &'a str,
    detail: &'a str,
    target: &'a str,
    credential: &'a str,
    bound_labels: BTreeMap<&'a str, &'a str>,
    bound_products: &'a [String],
    received_at: Option<String>,
    body_bytes: u64,
    #[serde(flatten)]
    body: Option<BodyJson>,
}

fn json(callback: &v1::QuarantinedCallback) -> CallbackJson<'_> {
    CallbackJson {
        quarantine_id: &callback.quarantine_id,
        reason: &callback.reason,
        detail: &callback.detail,
        target: &callback.target,
        credential: &callback.credential,
        bound_labels: callback
            .bound_labels
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect(),
        bound_products: &callback.bound_products,
        received_at: time_json(callback.received_at),
        body_bytes: callback.body_bytes,
        body: BodyJson::new(&callback.body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callback() -> v1::QuarantinedCallback {
        v1::QuarantinedCallback {
            quarantine_id: "q1".into(),
            reason: "not_json".into(),
            target: "/webhook/veo".into(),
            received_at: Some(prost_types::Timestamp {
                seconds: 0,
                nanos: 0,
            }),
            body_bytes: 2,
            body: b"\x1b\xff".as_slice().into(),
            ..v1::QuarantinedCallback::default()
        }
    }

    #[test]
    fn a_body_that_is_not_text_is_shown_safely_and_complete_in_json() {
        assert!(pretty(&callback()).ends_with("\n\u{1b}\u{fffd}"));
        let value = serde_json::to_value(json(&callback())).unwrap();
        assert_eq!(
            (&value["raw_body_hex"], &value["received_at"]),
            (&"1bff".into(), &"1970-01-01T00:00:00Z".into())
        );
    }

    #[test]
    fn a_row_has_id_time_reason_size_and_target() {
        let row = row(&callback(), Timestamp::UNIX_EPOCH);
        assert_eq!(
            row,
            ["q1", "00:00:00Z", "not_json", "2", "/webhook/veo", ""]
        );
    }
}
