//! `trigger`: sends callbacks like the vendor's, to try things without the vendor.
//!
//! Turns its flags into bodies and a plan for the [`simulator`](crate::simulator), which sends
//! them.

use std::{process::ExitCode, time::Duration};

use bytes::Bytes;
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use hyper::Uri;
use jiff::Timestamp;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    EXIT_OTHER, addresses::Urls, args, body, output, output::Usage, user_info::without_user_text,
};
use crate::{
    event::{Product, TaskId},
    simulator::{ATTEMPTS_MAX, DeliveryOutcome, Plan, Vendor, VendorCallback, retry_gaps},
    vendor::{
        self,
        sample::{Broken, Sample, SampleStatus, Shape, broken},
    },
};

/// Most open callbacks with --rate, where callbacks do not wait for earlier answers: well below the
/// broker's 1,024 connections.
const IN_FLIGHT_MAX: usize = 256;

/// All bodies are made before the first is sent; this many take about half a gigabyte.
const COUNT_MAX: i64 = 1_000_000;
/// Far more repetitions than the vendor has ever sent.
const DUPLICATES_MAX: i64 = 100;

const EXAMPLES: &str = "\
Examples:
  blobcast trigger                                           a veo video is done
  blobcast trigger --product sora --status failed --task-id t1
  blobcast trigger --product seedance --set output.last_frame_url=null --set seed=7
  blobcast trigger --label team=ads --label ref=order-42     as if the callback_url had these labels
  blobcast trigger --count 1000 --rate 100 --duplicate 1     load, each callback twice
  blobcast trigger --shape truncated                         something for the quarantine
  blobcast trigger --body callback.json --ingest-url 'http://127.0.0.1:8080/webhook?token=…'

Each callback's line has its task id, the HTTP status and the answer.
Exit codes: 0 all callbacks were answered 2xx; 1 not all, or another error; 2 usage.";

/// Sends callbacks like the vendor's.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct TriggerArgs {
    /// The product, for the URL and the body's shape: veo, sora, chatgpt-images, …; any other gets a plain body.
    #[arg(long, value_name = "PRODUCT", default_value = "veo", value_parser = Product::parse)]
    product: Product,
    /// The status of the task.
    #[arg(long, value_name = "STATUS", default_value = "completed", value_parser = status_parser())]
    status: SampleStatus,
    /// The task's id [default: a random UUID for each callback].
    #[arg(long, value_name = "TASK_ID", value_parser = TaskId::parse)]
    task_id: Option<TaskId>,
    /// Set a field of the body; a dotted path reaches into objects. The value is read as JSON if
    /// possible, else as text.
    #[arg(long = "set", value_name = "PATH=VALUE", value_parser = args::key_value)]
    sets: Vec<(String, String)>,
    /// Send this file's bytes as the body, whatever they are; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["status", "task_id", "sets", "shape"])]
    body: Option<String>,
    /// The body's shape: as documented, as from veo's old host, or broken in a way that leads to
    /// quarantine.
    #[arg(long, value_name = "SHAPE", default_value = "documented", value_parser = body_shape_parser())]
    shape: BodyShape,
    /// Add a label to the callback URL; repeat it for more.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = args::key_value)]
    labels: Vec<(String, String)>,
    /// How many callbacks to send.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    count: u32,
    /// Callbacks per second, without waiting for answers [default: one after the other, as fast as
    /// they are answered].
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// Repeat a callback that was not answered 2xx, like the vendor, up to 5 attempts in all.
    #[arg(long)]
    retry: bool,
    /// How long to wait between two attempts [default: as long as the vendor does for the product, 30s for most].
    #[arg(long, value_name = "DURATION", requires = "retry", value_parser = args::duration)]
    retry_interval: Option<Duration>,
    /// Send each callback N more times, as the vendor sometimes does.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=DUPLICATES_MAX))]
    duplicate: u32,
    /// Where callbacks go. Without a path, /webhook/PRODUCT is added; a URL with a path is used as it is, with its token. For a cluster,
    /// those of several nodes, separated by commas or each with a flag of its own: when one is away, the callback goes to the next one.
    #[arg(long = "ingest-url", value_name = "URL", env = "BLOBCAST_INGEST_URL", default_value = "http://127.0.0.1:8080", value_parser = Urls::parse, hide_env_values = true)]
    ingest_urls: Vec<Urls>,
}

/// A valid body in the shape of one of the vendor's two hosts, or a broken one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyShape {
    Good(Shape),
    Broken(Broken),
}

pub(super) async fn run(args: TriggerArgs) -> anyhow::Result<ExitCode> {
    let callbacks = callbacks(&args)?;
    let deliveries = plan(&args).deliveries(&callbacks);
    let in_flight_max = if args.rate.is_some() {
        IN_FLIGHT_MAX
    } else {
        1
    };

    let urls = args.ingest_urls.iter().flat_map(Urls::iter);
    let urls: Vec<_> = urls.cloned().collect();
    let vendor = Vendor::of_several(urls.clone(), args.labels, in_flight_max);
    let (mut count, mut refused, mut unanswered) = (0, 0, 0);
    let print = |outcome: &DeliveryOutcome| {
        for (url, why) in &outcome.passed {
            output::note(&format!(
                "{}: {why}; going on at the next address",
                host(url)
            ));
        }
        count += 1;
        refused += usize::from(outcome.acknowledged().is_none());
        unanswered += usize::from(outcome.answer.is_err());
        output::emit_line(&line(outcome))
    };

    vendor.send_each(deliveries, print).await?;
    if unanswered > 0 {
        let brokers = urls.iter().map(host).collect::<Vec<_>>().join(", ");
        output::note(&format!(
            "{unanswered} of {count} callbacks had no answer from {brokers}; is `blobcast serve` \
             running? use --ingest-url"
        ));
    }

    Ok(if refused == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_OTHER)
    })
}

/// Without path and query: a callback URL may hold a token.
fn host(url: &Uri) -> &str {
    let authority = url.authority().map(without_user_text);
    authority.map_or("", |(_, host)| host)
}

fn plan(args: &TriggerArgs) -> Plan {
    let retry_gaps = match args.retry_interval {
        _ if !args.retry => vec![],
        None => retry_gaps(args.product.as_str()),
        Some(interval) => vec![interval; ATTEMPTS_MAX - 1],
    };
    let spacing = args
        .rate
        .map(|rate| Duration::from_secs_f64(1.0 / rate))
        .unwrap_or_default();
    Plan {
        spacing,
        retry_gaps,
        duplicates: args.duplicate as usize,
        ..Plan::default()
    }
}

fn callbacks(args: &TriggerArgs) -> anyhow::Result<Vec<VendorCallback>> {
    let product = args.product.to_string();
    if let Some(path) = &args.body {
        let body = body::read(path)?;
        // The id is only printed. A body without one is sent as well: it tests the quarantine.
        let task_id = vendor::read(&body)
            .map_or_else(|_| "-".to_owned(), |report| report.task_id.to_string());
        return Ok(vec![
            VendorCallback {
                product,
                task_id,
                body,
                status: None
            };
            args.count as usize
        ]);
    }

    if matches!(args.shape, BodyShape::Broken(_)) && !args.sets.is_empty() {
        return Err(Usage(
            "--set needs a whole body: leave it out, or use --shape documented or legacy".into(),
        )
        .into());
    }

    let at = Timestamp::now();
    let callback = |_| {
        let task_id = args
            .task_id
            .as_ref()
            .map_or_else(|| Uuid::new_v4().to_string(), ToString::to_string);
        VendorCallback {
            body: body(args, &task_id, at),
            product: product.clone(),
            task_id,
            status: None,
        }
    };

    Ok((0..args.count).map(callback).collect())
}

fn body(args: &TriggerArgs, task_id: &str, at: Timestamp) -> Bytes {
    let shape = match args.shape {
        BodyShape::Broken(kind) => return broken(kind, task_id).into(),
        BodyShape::Good(shape) => shape,
    };
    let mut body = Sample {
        product: args.product.as_str(),
        shape,
        status: args.status,
        task_id,
        at,
    }
    .body();
    for (path, text) in &args.sets {
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
        set(&mut body, path, value);
    }
    Value::Object(body).to_string().into()
}

/// Sets `a.b.c`; a value on the path that is not an object is replaced by one.
fn set(fields: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            fields.insert(path.to_owned(), value);
        }
        Some((key, rest)) => {
            let inner = fields.entry(key).or_insert(Value::Null);
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            if let Value::Object(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

fn line(outcome: &DeliveryOutcome) -> String {
    let answer = match &outcome.answer {
        Ok(answer) => format!("{} {}", answer.http_status, answer.body.trim_end())
            .trim_end()
            .to_owned(),
        Err(error) => format!("not sent: {error}"),
    };
    let attempts = if outcome.attempts > 1 {
        format!(" ({} attempts)", outcome.attempts)
    } else {
        String::new()
    };
    format!("{} {answer}{attempts}", outcome.task_id)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.strip_suffix("/s").unwrap_or(text).parse::<f64>().ok();
    // A rate below one a day or above one a microsecond is a typing error.
    rate.filter(|rate| (1e-5..=1e6).contains(rate))
        .ok_or_else(|| "not a number of callbacks per second".to_owned())
}

pub(super) fn status_parser() -> impl TypedValueParser<Value = SampleStatus> {
    // Shows the vendor's spelling, and also accepts kebab-case like other values.
    let statuses = SampleStatus::ALL.map(|status| match status {
        SampleStatus::ModerationBlocked => {
            PossibleValue::new("moderation_blocked").alias(status.as_str())
        }
        other => PossibleValue::new(other.as_str()),
    });
    PossibleValuesParser::new(statuses).try_map(|word| word.parse())
}

fn body_shape_parser() -> impl TypedValueParser<Value = BodyShape> {
    let names = Shape::ALL
        .map(Shape::as_str)
        .into_iter()
        .chain(Broken::ALL.map(Broken::as_str));
    PossibleValuesParser::new(names).try_map(|word| {
        let good = word.parse().map(BodyShape::Good);
        good.or_else(|_| word.parse().map(BodyShape::Broken))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::{event::TaskStatus, simulator::Answer};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TriggerArgs,
    }

    fn parse(line: &str) -> TriggerArgs {
        let words = std::iter::once("trigger").chain(line.split_whitespace());
        Line::try_parse_from(words)
            .map(|line| line.args)
            .unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn every_status_and_shape_can_be_asked_for() {
        for status in SampleStatus::ALL {
            assert_eq!(
                parse(&format!("--status {}", status.as_str())).status,
                status
            );
        }
        assert_eq!(
            parse("--status moderation_blocked").status,
            SampleStatus::ModerationBlocked
        );
        for kind in Broken::ALL {
            assert_eq!(
                parse(&format!("--shape {}", kind.as_str())).shape,
                BodyShape::Broken(kind)
            );
        }
        assert_eq!(
            parse("--shape legacy").shape,
            BodyShape::Good(Shape::Legacy)
        );
    }

    #[test]
    fn a_triggered_callback_says_what_was_asked_for() {
        let sent = callbacks(&parse(
            "--product sora --status failed --task-id t1 --set prompt=hello",
        ))
        .unwrap();
        let report = vendor::read(&sent[0].body).unwrap();
        assert_eq!(
            (report.task_id.as_str(), report.status),
            ("t1", TaskStatus::Failed)
        );
        assert_eq!(report.prompt, "hello");
    }

    #[test]
    fn each_callback_is_of_another_task_unless_one_is_named() {
        let sent = callbacks(&parse("--count 2")).unwrap();
        assert_ne!(sent[0].task_id, sent[1].task_id);
        let sent = callbacks(&parse("--count 2 --task-id t")).unwrap();
        assert_eq!(sent[0], sent[1]);
    }

    #[test]
    fn set_reaches_into_objects_and_replaces_what_is_in_the_way() {
        let mut fields = Map::new();
        set(&mut fields, "a.b.c", json!(1));
        set(&mut fields, "a.d", json!("x"));
        set(&mut fields, "a.b.c.e", Value::Null);
        assert_eq!(
            Value::Object(fields),
            json!({"a": {"b": {"c": {"e": null}}, "d": "x"}})
        );
    }

    #[test]
    fn a_value_is_json_where_it_can_be_and_text_elsewhere() {
        let sent = callbacks(&parse("--set a=1 --set b=null --set c=word --set d=[1]")).unwrap();
        let body: Value = serde_json::from_slice(&sent[0].body).unwrap();
        assert_eq!(
            json!([body["a"], body["b"], body["c"], body["d"]]),
            json!([1, null, "word", [1]])
        );
    }

    #[test]
    fn a_broken_body_cannot_be_changed() {
        let refused = callbacks(&parse("--shape not-json --set a=1")).unwrap_err();
        assert!(refused.is::<Usage>());
    }

    #[test]
    fn retries_and_rate_become_a_plan() {
        let gaps = |line| {
            plan(&parse(line))
                .retry_gaps
                .iter()
                .map(Duration::as_secs)
                .collect::<Vec<_>>()
        };
        assert_eq!(gaps("--retry"), [30; 4]);
        assert_eq!(gaps("--retry --product gemini"), [30; 2]);
        assert_eq!(gaps("--retry --product sora"), [30, 60, 120, 240]);
        assert!(gaps("").is_empty());
        let plan = plan(&parse(
            "--retry --retry-interval 2s --rate 4/s --duplicate 3",
        ));
        assert_eq!(plan.retry_gaps, [Duration::from_secs(2); 4]);
        assert_eq!(
            (plan.spacing, plan.duplicates),
            (Duration::from_millis(250), 3)
        );
        assert!(
            ["0", "-1", "NaN", "inf", "x"]
                .iter()
                .all(|text| rate(text).is_err())
        );
    }

    #[test]
    fn a_line_tells_the_task_and_the_answer() {
        let answer = Ok(Answer {
            http_status: 200,
            body: "{}\n".into(),
        });
        let mut outcome = DeliveryOutcome {
            product: "veo".into(),
            task_id: "t".into(),
            attempts: 1,
            answer,
            passed: vec![],
        };
        assert_eq!(line(&outcome), "t 200 {}");
        outcome.attempts = 3;
        outcome.answer = Err("connection refused".into());
        assert_eq!(
            line(&outcome),
            "t not sent: connection refused (3 attempts)"
        );
    }
}
