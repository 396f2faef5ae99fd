//! `vendor`: runs a simulated vendor, for development without an account, and for tests.
//!
//! Turns its flags into settings of the [`simulator`](crate::simulator::server), and prints what
//! happens there. Keys and callback URLs, which may hold tokens, are never printed.

use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode, time::Duration};

use clap::Args;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    EXIT_INTERRUPTED, args,
    output::{self, Format, Usage},
};
use crate::{
    event::Product,
    simulator::server::{CallbackResult, Happened, Settings, SimulatedVendor, What},
    vendor::sample::PRODUCTS,
};

const AFTER_HELP: &str = "\
Examples:
  blobcast vendor                                            every task completes after 5 s
  blobcast vendor --after 20s --after gemini=3s --fail-rate 10
  blobcast vendor --lose-callbacks                           only the status API knows the ends
  blobcast vendor --lose-callbacks=30 --seed 7               the same 30 % in every run
  blobcast vendor --retry-speed 30                           RunBlob's 30 s become 1 s

POST /v1/PATH/generate answers 201 with an id. The task is pending, then processing, then completed \
or failed; then its callback is sent to the request's callback_url, with RunBlob's attempts and \
waits. GET /v1/PATH/generations/ID and GET /v1/PATH/generations?limit=100&offset=0 answer like \
RunBlob's status API: 401 without a key, 404 for tasks that this key has not created, 429 above 60 a \
minute for each key. Errors have RunBlob's words in `detail`, and the next step in `hint`.

Everything is in memory: 10,000 tasks with 64 MiB of prompts and URLs. Beyond that the oldest \
finished ones are forgotten; while all are open, new ones are answered 503.

With --output json each line has `what`: listening, task, callback, request (refused ones, and those \
of the status API; 0 as http_status: no answer), or left_out, with the number of lines that nobody \
read in time.

Exit codes: 0 SIGTERM, or standard output was closed; 1 it cannot listen; 2 usage; 130 Ctrl-C.";

/// Runs a simulated vendor.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct VendorArgs {
    /// Where to listen; port 0 chooses one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// How long a task takes, or a task of one product; repeat it for more products [default: 5s].
    #[arg(long, value_name = "[PRODUCT=]DURATION", value_parser = After::parse)]
    after: Vec<After>,
    /// The percentage of tasks that fail.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=100))]
    fail_rate: u8,
    /// Never send the callbacks of this percentage of tasks; without a number, of all.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, default_missing_value = "100", num_args = 0..=1, require_equals = true, value_parser = clap::value_parser!(u8).range(..=100))]
    lose_callbacks: u8,
    /// How long after the end of a task its callback is sent.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = args::duration)]
    delay: Duration,
    /// Divide RunBlob's waits between two attempts at a callback by this, 30 s for most products.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    retry_speed: u32,
    /// Accept only this key; repeat it for more [default: any key]. Never a real one.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// The seed of ids, failures and lost callbacks: the same requests have the same outcome [default: random, and printed].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How to print what happens.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
}

/// A value of `--after`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct After {
    product: Option<String>,
    duration: Duration,
}

impl After {
    fn parse(text: &str) -> Result<Self, String> {
        let (product, duration) = match text.split_once('=') {
            Some((product, duration)) => (Some(product), duration),
            None => (None, text),
        };
        let known = |product: &str| match Product::parse(product) {
            Ok(_) if PRODUCTS.contains(&product) => Ok(product.to_owned()),
            _ => Err(format!("not one of {}", PRODUCTS.join(", "))),
        };
        Ok(Self {
            product: product.map(known).transpose()?,
            duration: args::duration(duration)?,
        })
    }
}

pub(super) async fn run(args: VendorArgs) -> anyhow::Result<ExitCode> {
    let settings = settings(&args)?;
    let seed = settings.seed;
    let listener = TcpListener::bind(args.listen).await.map_err(|error| {
        anyhow::anyhow!(
            "cannot listen on {}: {error}; choose another address with --listen",
            args.listen
        )
    })?;
    let (vendor, happened) = SimulatedVendor::start_watched(listener, settings)?;
    if !vendor.address().ip().is_loopback() {
        output::note(
            "anybody who reaches this address can make it POST to any URL: use it in a closed network",
        );
    }

    let mut terminate = signal(SignalKind::terminate())?;
    let printed = async {
        match args.output {
            Format::Pretty => output::emit(banner(&vendor, seed).as_bytes())?,
            Format::Json => output::emit_json(&listening(&vendor, seed))?,
        }
        print(happened, args.output).await
    };
    let ended = tokio::select! {
        printed = printed => printed.map(|()| ExitCode::SUCCESS),
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(EXIT_INTERRUPTED)),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
    };

    let (_, open) = vendor.counts();
    if open > 0 && ended.is_ok() {
        output::note(&format!(
            "open tasks are forgotten, with their callbacks: {open}"
        ));
    }
    vendor.stop().await;
    ended
}

fn settings(args: &VendorArgs) -> anyhow::Result<Settings> {
    let mut after_by_product = BTreeMap::new();
    let mut after = None;
    for each in &args.after {
        let earlier = match &each.product {
            Some(product) => after_by_product.insert(product.clone(), each.duration),
            None => after.replace(each.duration),
        };
        if earlier.is_some() {
            let of = each.product.as_deref().unwrap_or("all products");
            return Err(Usage(format!("--after is given twice for {of}: give it once")).into());
        }
    }

    let default = Settings::default();
    Ok(Settings {
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
        after: after.unwrap_or(default.after),
        after_by_product,
        fail_percent: args.fail_rate,
        lose_percent: args.lose_callbacks,
        callback_delay: args.delay,
        retry_speed: args.retry_speed,
        keys: args.keys.clone(),
        ..default
    })
}

fn banner(vendor: &SimulatedVendor, seed: u64) -> String {
    let url = vendor.base_url();
    format!(
        "blobcast {version}: a simulated vendor is ready, with seed {seed}

  API          {url}/v1/PATH/generate, /v1/PATH/generations/ID

Create a task, whose callback goes to a `blobcast serve` on this machine:
  curl -H 'authorization: Bearer any' -H 'content-type: application/json' -d '{{\"prompt\":\"a cat\",\"callback_url\":\"http://127.0.0.1:8080/webhook/veo\"}}' {url}/v1/veo/generate
See its event:
  blobcast listen --product veo

",
        version = env!("CARGO_PKG_VERSION"),
    )
}

fn listening(vendor: &SimulatedVendor, seed: u64) -> Value {
    json!({"what": "listening", "url": vendor.base_url(), "seed": seed})
}

/// Prints what happens until the vendor ends.
async fn print(mut happened: mpsc::Receiver<Happened>, format: Format) -> anyhow::Result<()> {
    while let Some(Happened {
        time,
        left_out,
        what,
    }) = happened.recv().await
    {
        match format {
            Format::Pretty if left_out > 0 => {
                output::note(&format!("{left_out} lines were left out"));
            }
            Format::Json if left_out > 0 => {
                output::emit_json(&json!({"what": "left_out", "count": left_out}))?;
            }
            _ => {}
        }
        match format {
            Format::Pretty => {
                output::emit_line(&format!("{} {}", time.strftime("%TZ"), line(&what)))?;
            }
            Format::Json => {
                let mut object = object(&what);
                object["time"] = json!(format!("{time:.6}"));
                output::emit_json(&object)?;
            }
        }
    }
    Ok(())
}

fn line(what: &What) -> String {
    match what {
        What::Task {
            product,
            id,
            status,
        } => format!("{product} {id} {status}"),
        What::Request {
            method,
            target,
            http_status: 0,
        } => format!("{method} {target} not answered"),
        What::Request {
            method,
            target,
            http_status,
        } => format!("{method} {target} {http_status}"),
        What::Callback {
            product,
            id,
            attempt,
            result,
        } => format!("{product} {id} {}", callback_line(*attempt, result)),
    }
}

fn callback_line(attempt: usize, result: &CallbackResult) -> String {
    let then = |again: &bool| if *again { "" } else { "; given up" };
    match result {
        CallbackResult::Lost => "callback lost, as asked for".to_owned(),
        CallbackResult::Taken(http_status) => {
            format!("callback attempt {attempt}: {http_status}")
        }
        CallbackResult::Refused { http_status, again } => {
            format!("callback attempt {attempt}: {http_status}{}", then(again))
        }
        CallbackResult::Unanswered { error, again } => {
            format!("callback attempt {attempt}: {error}{}", then(again))
        }
    }
}

fn object(what: &What) -> Value {
    match what {
        What::Task {
            product,
            id,
            status,
        } => json!({"what": "task", "product": product, "task_id": id, "status": status}),
        What::Request {
            method,
            target,
            http_status,
        } => {
            json!({"what": "request", "method": method, "target": target, "http_status": http_status})
        }
        What::Callback {
            product,
            id,
            attempt,
            result,
        } => {
            let mut object =
                json!({"what": "callback", "product": product, "task_id": id, "attempt": attempt});
            let result = match result {
                CallbackResult::Lost => json!({"result": "lost"}),
                CallbackResult::Taken(http_status) => {
                    json!({"result": "taken", "http_status": http_status})
                }
                CallbackResult::Refused { http_status, again } => {
                    json!({"result": "refused", "http_status": http_status, "again": again})
                }
                CallbackResult::Unanswered { error, again } => {
                    json!({"result": "unanswered", "error": error, "again": again})
                }
            };
            if let (Value::Object(object), Value::Object(result)) = (&mut object, result) {
                object.extend(result);
            }
            object
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: VendorArgs,
    }

    fn parse(line: &str) -> Result<VendorArgs, clap::Error> {
        let words = std::iter::once("vendor").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args)
    }

    fn of(line: &str) -> Settings {
        settings(&parse(line).unwrap()).unwrap()
    }

    #[test]
    fn times_are_set_for_all_products_and_for_one() {
        let settings = of("--after 20s --after veo=1m --after kling-o1-video=2s");
        assert_eq!(settings.after, Duration::from_secs(20));
        let expected = [("kling-o1-video", 2), ("veo", 60)];
        let expected =
            expected.map(|(product, seconds)| (product.into(), Duration::from_secs(seconds)));
        assert_eq!(settings.after_by_product, BTreeMap::from(expected));
        assert_eq!(of("").after, Duration::from_secs(5));
        for wrong in ["veo", "vioe=3s", "veo=soon", "=3s"] {
            assert!(parse(&format!("--after {wrong}")).is_err(), "{wrong}");
        }
        for twice in ["--after 1s --after 2s", "--after veo=1s --after veo=2s"] {
            let error = settings_error(twice);
            assert!(error.contains("given twice"), "{error}");
        }
    }

    fn settings_error(line: &str) -> String {
        let error = settings(&parse(line).unwrap()).unwrap_err();
        assert!(error.is::<Usage>());
        error.to_string()
    }

    #[test]
    fn callbacks_are_lost_as_a_flag_or_by_a_percentage() {
        assert_eq!(of("").lose_percent, 0);
        assert_eq!(of("--lose-callbacks").lose_percent, 100);
        assert_eq!(of("--lose-callbacks=30 --fail-rate 100").lose_percent, 30);
        assert!(parse("--lose-callbacks=101").is_err() && parse("--fail-rate 101").is_err());
    }

    #[test]
    fn a_seed_is_used_as_given_and_else_differs_from_run_to_run() {
        assert_eq!(of("--seed 7").seed, 7);
        assert_ne!(of("").seed, of("").seed);
    }

    #[test]
    fn a_line_says_what_happened_and_whether_it_goes_on() {
        let callback = |result| What::Callback {
            product: "veo".into(),
            id: "t".into(),
            attempt: 2,
            result,
        };
        let refused = |again| {
            callback(CallbackResult::Refused {
                http_status: 503,
                again,
            })
        };
        assert_eq!(line(&refused(true)), "veo t callback attempt 2: 503");
        assert_eq!(
            line(&refused(false)),
            "veo t callback attempt 2: 503; given up"
        );
        assert_eq!(object(&refused(false))["again"], false);
        let unanswered = object(&callback(CallbackResult::Unanswered {
            error: "refused".into(),
            again: true,
        }));
        assert_eq!(unanswered["error"], "refused");
        assert_eq!(unanswered.get("http_status"), None);
    }
}
