//! Formats events: one line for people, or one JSON object for programs. Pure, except for
//! [`EventPrinter`], which prints.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;

use unicode_width::UnicodeWidthStr;

use super::{
    columns::{cut, pad},
    output::{self, Format},
};
use crate::{printable::printable, wire::v1};

/// Part of the help of every verb that prints events.
pub(super) const JSON_HELP: &str = "\
JSON output: one object a line, with the field names of `blobcast.v1.Event`. Enums are their names \
(TASK_STATUS_COMPLETED), times are RFC 3339, numbers are numbers. Fields that the event does not \
have (error, overdue, seed, created_at, completed_at) are left out. `truncated` is true if fields were left \
out because the event would be too large for one message; `blobcast get TASK --raw` prints the \
whole callback.";
/// Follows [`JSON_HELP`] in verbs with --include-raw.
pub(super) const JSON_HELP_OF_BODY: &str = "\
With --include-raw the callback's body is in `raw_body` if it is UTF-8, else in hexadecimal in `raw_body_hex`.";

/// Longest product name that keeps columns aligned: chatgpt-images and kling-o1-photo.
const PRODUCT_WIDTH: usize = 14;
/// Longest status word.
const STATUS_WIDTH: usize = 10;

/// Longest task id that widens the column: a UUID, as most of the vendor's ids are.
const TASK_WIDTH_MAX: usize = 36;
/// The vendor's status word and error message are cut to these widths. JSON has the full texts.
const STATUS_WIDTH_MAX: usize = 32;
const ERROR_WIDTH_MAX: usize = 200;

/// Column widths: each as wide as the widest text so far, so that later lines are aligned.
#[derive(Debug, Default)]
pub(super) struct Widths {
    task_id: usize,
    latency: usize,
}

impl Widths {
    fn task_id(&mut self, text: &str) -> usize {
        self.task_id = self.task_id.max(text.width().min(TASK_WIDTH_MAX));
        self.task_id
    }

    fn latency(&mut self, text: &str) -> usize {
        self.latency = self.latency.max(text.len());
        self.latency
    }
}

/// Prints events in one format.
pub(super) struct EventPrinter {
    format: Format,
    colors: bool,
    widths: Widths,
    out: Box<dyn Write>,
}

impl EventPrinter {
    /// Prints to standard output.
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            colors: output::stdout_colors(),
            widths: Widths::default(),
            out: Box::new(io::stdout()),
        }
    }

    /// Prints to another writer, as JSON.
    #[cfg(test)]
    pub(super) fn json_to(out: impl Write + 'static) -> Self {
        Self {
            format: Format::Json,
            colors: false,
            widths: Widths::default(),
            out: Box::new(out),
        }
    }

    pub(super) fn print(&mut self, event: &v1::Event) -> anyhow::Result<()> {
        let line = match self.format {
            Format::Pretty => pretty(event, Timestamp::now(), self.colors, &mut self.widths),
            Format::Json => json(event)?,
        };
        output::write(&mut self.out, format!("{line}\n").as_bytes())
    }
}

/// One line for people. Times are in UTC, without the date if it is that of `now`.
pub(super) fn pretty(
    event: &v1::Event,
    now: Timestamp,
    colors: bool,
    widths: &mut Widths,
) -> String {
    let styled = |style: Style, text: &str| {
        if colors {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    };

    let received_at = event.received_at.and_then(instant);
    let color = match event.status() {
        v1::TaskStatus::Completed => AnsiColor::Green,
        v1::TaskStatus::Failed => AnsiColor::Red,
        v1::TaskStatus::Overdue => AnsiColor::Magenta,
        _ => AnsiColor::Yellow,
    };

    let task_id = printable(&event.task_id);
    let task_width = widths.task_id(&task_id);
    let mut parts = vec![
        styled(
            Style::new().dimmed(),
            &received_at.map_or_else(|| "-".to_owned(), |time| clock(time, now)),
        ),
        pad(&printable(&event.product), PRODUCT_WIDTH),
        pad(&task_id, task_width),
        styled(color.on_default(), &pad(&status_text(event), STATUS_WIDTH)),
    ];

    let ended_at = event.completed_at.and_then(instant);
    let latency = ended_at
        .zip(received_at)
        .map(|(ended, received)| latency(received.duration_since(ended)));
    let latency = latency.unwrap_or_default();
    let latency_width = widths.latency(&latency);
    if latency_width > 0 {
        parts.push(format!("{latency:<latency_width$}"));
    }

    parts.extend(
        event
            .outputs
            .iter()
            .map(|output| printable(&output.url).into_owned()),
    );

    if let Some(error) = &event.error {
        parts.push(cut(&printable(&error_line(error)), ERROR_WIDTH_MAX).into_owned());
    }

    parts.extend(
        event
            .overdue
            .as_ref()
            .map(|overdue| overdue_line(overdue, now)),
    );

    let markers = markers(event);
    parts.extend(markers.map(|marker| styled(AnsiColor::Yellow.on_default(), &marker)));
    parts.join(" ").trim_end().to_owned()
}

/// The status, or the vendor's word if the status is unknown.
fn status_text(event: &v1::Event) -> String {
    match event.status() {
        v1::TaskStatus::Unspecified if !event.status_text.is_empty() => {
            cut(&printable(&event.status_text), STATUS_WIDTH_MAX).into_owned()
        }
        status => status_word(status).to_owned(),
    }
}

fn markers(event: &v1::Event) -> impl Iterator<Item = String> {
    let markers = [
        (event.conflict, "[conflict]".to_owned()),
        (event.corrected, "[corrected]".to_owned()),
        (event.revision > 1, format!("[revision {}]", event.revision)),
        (event.product_inferred, "[product inferred]".to_owned()),
        (event.truncated, "[truncated]".to_owned()),
    ];
    markers
        .into_iter()
        .filter_map(|(applies, marker)| applies.then_some(marker))
}

/// `CODE: message`, or only the code if the message repeats it.
pub(super) fn error_line(error: &v1::TaskError) -> String {
    let says_more = !error.message.is_empty() && !error.message.eq_ignore_ascii_case(&error.code);
    if says_more {
        format!("{}: {}", error.code, error.message)
    } else {
        error.code.clone()
    }
}

/// What is known of a late task: `expected by 12:00:00Z; processing by the vendor at 12:04:10Z, of 3 checks; given up`.
pub(super) fn overdue_line(overdue: &v1::Overdue, now: Timestamp) -> String {
    let time = |time: Option<prost_types::Timestamp>| {
        time.and_then(instant)
            .map_or_else(|| "-".to_owned(), |time| clock(time, now))
    };

    let said = match (&*overdue.vendor_status, overdue.vendor_http_status) {
        _ if overdue.checked_at.is_none() => "the vendor could not be asked".to_owned(),
        ("", 0) => format!("no answer of the vendor at {}", time(overdue.checked_at)),
        ("", status) => format!(
            "HTTP {status} by the vendor at {}",
            time(overdue.checked_at)
        ),
        (word, _) => {
            let word = printable(word);
            let word = cut(&word, STATUS_WIDTH_MAX);
            format!("{word} by the vendor at {}", time(overdue.checked_at))
        }
    };

    let checks = match overdue.check_count {
        0 | 1 => String::new(),
        count => format!(", of {count} checks"),
    };
    let end = if overdue.gave_up { "; given up" } else { "" };
    format!(
        "expected by {}; {said}{checks}{end}",
        time(overdue.expected_by)
    )
}

/// The status word as on the command line.
pub(super) fn status_word(status: v1::TaskStatus) -> &'static str {
    match status {
        v1::TaskStatus::Unspecified => "unspecified",
        v1::TaskStatus::Pending => "pending",
        v1::TaskStatus::Processing => "processing",
        v1::TaskStatus::Completed => "completed",
        v1::TaskStatus::Failed => "failed",
        v1::TaskStatus::Overdue => "overdue",
    }
}

/// Time of day in UTC, with the date if it is not that of `now`.
pub(super) fn clock(time: Timestamp, now: Timestamp) -> String {
    let date = |time: Timestamp| time.strftime("%F").to_string();
    if date(time) == date(now) {
        time.strftime("%TZ").to_string()
    } else {
        time.strftime("%FT%TZ").to_string()
    }
}

/// A timestamp of the API; `None` if it is out of range.
pub(super) fn instant(time: prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

/// `+1.2s`, `+2m5s`, `-0.3s`: from the end of the task, by the vendor's clock, to the callback's
/// arrival, by the broker's.
fn latency(latency: SignedDuration) -> String {
    let sign = if latency.is_negative() { '-' } else { '+' };
    let length = latency.unsigned_abs();
    let seconds = length.as_secs();
    match seconds {
        0..60 => format!("{sign}{:.1}s", length.as_secs_f64()),
        60..3600 => format!("{sign}{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{sign}{}h{}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[derive(Serialize)]
struct EventJson<'a> {
    event_id: &'a str,
    cursor: &'a str,
    product: &'a str,
    task_id: &'a str,
    status: Value,
    status_text: &'a str,
    terminal: bool,
    outputs: Vec<OutputJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overdue: Option<OverdueJson<'a>>,
    prompt: &'a str,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    received_at: Option<String>,
    revision: u32,
    conflict: bool,
    corrected: bool,
    product_inferred: bool,
    verification: Value,
    #[serde(skip_serializing_if = "str::is_empty")]
    credential: &'a str,
    // Ordered, so that equal events print equally.
    labels: BTreeMap<&'a str, &'a str>,
    truncated: bool,
    #[serde(flatten)]
    raw_body: Option<BodyJson>,
}

#[derive(Serialize)]
struct OutputJson<'a> {
    kind: Value,
    url: &'a str,
}

#[derive(Serialize)]
struct ErrorJson<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Value>,
}

#[derive(Serialize)]
struct OverdueJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checked_at: Option<String>,
    vendor_http_status: u32,
    vendor_status: &'a str,
    check_count: u32,
    gave_up: bool,
}

/// A raw body in JSON: text if it is UTF-8, else hexadecimal.
#[derive(Serialize)]
pub(super) enum BodyJson {
    #[serde(rename = "raw_body")]
    Text(String),
    #[serde(rename = "raw_body_hex")]
    Hex(String),
}

impl BodyJson {
    /// `None` if there are no bytes.
    pub(super) fn new(body: &[u8]) -> Option<Self> {
        match std::str::from_utf8(body) {
            Ok("") => None,
            Ok(text) => Some(Self::Text(text.to_owned())),
            Err(_) => Some(Self::Hex(
                body.iter().map(|byte| format!("{byte:02x}")).collect(),
            )),
        }
    }
}

/// One JSON object on one line; [`JSON_HELP`] describes it.
pub(super) fn json(event: &v1::Event) -> serde_json::Result<String> {
    output::json(&EventJson {
        event_id: &event.event_id,
        cursor: &event.cursor,
        product: &event.product,
        task_id: &event.task_id,
        status: name(event.status, v1::TaskStatus::as_str_name),
        status_text: &event.status_text,
        terminal: event.terminal,
        outputs: event.outputs.iter().map(output_json).collect(),
        error: event.error.as_ref().map(error_json),
        overdue: event.overdue.as_ref().map(overdue_json),
        prompt: &event.prompt,
        model: &event.model,
        seed: event.seed,
        created_at: time_json(event.created_at),
        completed_at: time_json(event.completed_at),
        received_at: time_json(event.received_at),
        revision: event.revision,
        conflict: event.conflict,
        corrected: event.corrected,
        product_inferred: event.product_inferred,
        verification: name(event.verification, v1::Verification::as_str_name),
        credential: &event.credential,
        labels: event
            .labels
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect(),
        truncated: event.truncated,
        raw_body: BodyJson::new(&event.raw_body),
    })
}

/// The name of an enum value; a number that this client does not know stays a number.
pub(super) fn name<E: TryFrom<i32>>(
    number: i32,
    as_str_name: impl Fn(&E) -> &'static str,
) -> Value {
    E::try_from(number).map_or_else(|_| number.into(), |value| as_str_name(&value).into())
}

/// RFC 3339.
pub(super) fn time_json(time: Option<prost_types::Timestamp>) -> Option<String> {
    time.and_then(instant).map(|time| time.to_string())
}

fn output_json(output: &v1::Output) -> OutputJson<'_> {
    OutputJson {
        kind: name(output.kind, v1::OutputKind::as_str_name),
        url: &output.url,
    }
}

fn error_json(error: &v1::TaskError) -> ErrorJson<'_> {
    let v1::TaskError {
        code,
        message,
        details,
    } = error;
    ErrorJson {
        code,
        message,
        details: details.as_ref().map(struct_json),
    }
}

fn overdue_json(overdue: &v1::Overdue) -> OverdueJson<'_> {
    OverdueJson {
        expected_by: time_json(overdue.expected_by),
        checked_at: time_json(overdue.checked_at),
        vendor_http_status: overdue.vendor_http_status,
        vendor_status: &overdue.vendor_status,
        check_count: overdue.check_count,
        gave_up: overdue.gave_up,
    }
}

fn struct_json(details: &prost_types::Struct) -> Value {
    Value::Object(
        details
            .fields
            .iter()
            .map(|(key, value)| (key.clone(), value_json(value)))
            .collect(),
    )
}

fn value_json(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    /// Integers below this are exact in a double.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < EXACT_MAX => {
            (*number as i64).into()
        }
        Some(Kind::NumberValue(number)) => (*number).into(),
        Some(Kind::StringValue(text)) => text.clone().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(value_json).collect(),
        Some(Kind::StructValue(fields)) => struct_json(fields),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event() -> v1::Event {
        let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        v1::Event {
            event_id: "e1".into(),
            cursor: "c1".into(),
            product: "veo".into(),
            task_id: "t1".into(),
            status: v1::TaskStatus::Completed.into(),
            status_text: "completed".into(),
            terminal: true,
            outputs: vec![v1::Output {
                kind: v1::OutputKind::Video.into(),
                url: "https://x/v.mp4".into(),
            }],
            seed: Some(42),
            completed_at: at(60, 0),
            received_at: at(61, 250_000_000),
            revision: 1,
            verification: v1::Verification::SignedUrl.into(),
            credential: "signing_key k1".into(),
            labels: [("team".to_owned(), "ads".to_owned())].into(),
            ..v1::Event::default()
        }
    }

    fn failed() -> v1::Event {
        use prost_types::value::Kind;
        let fields = [
            ("retryable", Kind::BoolValue(false)),
            ("after", Kind::NumberValue(30.0)),
        ];
        let value = |kind| prost_types::Value { kind: Some(kind) };
        let fields = fields
            .into_iter()
            .map(|(key, kind)| (key.to_owned(), value(kind)))
            .collect();
        v1::Event {
            status: v1::TaskStatus::Failed.into(),
            outputs: vec![],
            error: Some(v1::TaskError {
                code: "TIMEOUT".into(),
                message: "too slow".into(),
                details: Some(prost_types::Struct { fields }),
            }),
            revision: 2,
            conflict: true,
            product_inferred: true,
            ..event()
        }
    }

    #[test]
    fn a_completed_event_fits_a_line() {
        let line = pretty(
            &event(),
            Timestamp::UNIX_EPOCH,
            false,
            &mut Widths::default(),
        );
        assert_eq!(
            line,
            "00:01:01Z veo            t1 completed  +1.2s https://x/v.mp4"
        );
    }

    #[test]
    fn a_failed_event_shows_its_error_and_markers() {
        let line = pretty(
            &failed(),
            Timestamp::UNIX_EPOCH,
            false,
            &mut Widths::default(),
        );
        let end = "failed     +1.2s TIMEOUT: too slow [conflict] [revision 2] [product inferred]";
        assert!(line.ends_with(end), "{line}");
    }

    fn overdue() -> v1::Event {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        v1::Event {
            status: v1::TaskStatus::Overdue.into(),
            status_text: String::new(),
            terminal: false,
            outputs: vec![],
            completed_at: None,
            overdue: Some(v1::Overdue {
                expected_by: at(50),
                checked_at: at(60),
                vendor_http_status: 200,
                vendor_status: "processing".into(),
                check_count: 3,
                gave_up: false,
            }),
            ..event()
        }
    }

    #[test]
    fn an_overdue_event_says_what_is_known() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(
            pretty(&overdue(), now, false, &mut Widths::default()),
            "00:01:01Z veo            t1 overdue    expected by 00:00:50Z; processing by the vendor at 00:01:00Z, of 3 checks"
        );
        assert!(
            pretty(&overdue(), now, true, &mut Widths::default()).contains("\u{1b}[35moverdue")
        );

        let known = overdue().overdue.unwrap();
        let line = |overdue| overdue_line(&overdue, now);
        let gave_up = v1::Overdue {
            gave_up: true,
            check_count: 1,
            vendor_status: "up\u{1b}[2Jscaling".into(),
            ..known
        };
        assert_eq!(
            line(gave_up),
            "expected by 00:00:50Z; up\\u{1b}[2Jscaling by the vendor at 00:01:00Z; given up"
        );
        let not_found = v1::Overdue {
            vendor_status: String::new(),
            vendor_http_status: 404,
            ..known
        };
        assert!(line(not_found.clone()).contains("; HTTP 404 by the vendor at 00:01:00Z, of 3"));
        let silent = v1::Overdue {
            vendor_http_status: 0,
            ..not_found
        };
        assert!(line(silent).contains("; no answer of the vendor at 00:01:00Z, of 3 checks"));
        let unasked = v1::Overdue {
            checked_at: None,
            check_count: 0,
            ..known
        };
        assert_eq!(
            line(unasked),
            "expected by 00:00:50Z; the vendor could not be asked"
        );
    }

    #[test]
    fn json_of_an_overdue_event_has_what_is_known() {
        let value: Value = serde_json::from_str(&json(&overdue()).unwrap()).unwrap();
        assert_eq!(value["status"], "TASK_STATUS_OVERDUE");
        assert_eq!(
            value["overdue"],
            json!({"expected_by": "1970-01-01T00:00:50Z", "checked_at": "1970-01-01T00:01:00Z",
                "vendor_http_status": 200, "vendor_status": "processing", "check_count": 3, "gave_up": false})
        );
    }

    #[test]
    fn a_message_that_repeats_its_code_is_left_out() {
        let error = |code: &str, message: &str| v1::TaskError {
            code: code.into(),
            message: message.into(),
            ..v1::TaskError::default()
        };
        assert_eq!(
            error_line(&error("MAINTENANCE", "Maintenance")),
            "MAINTENANCE"
        );
        assert_eq!(error_line(&error("TIMEOUT", "")), "TIMEOUT");
        assert_eq!(
            error_line(&error("TIMEOUT", "too slow")),
            "TIMEOUT: too slow"
        );
    }

    #[test]
    fn lines_of_one_stream_are_aligned() {
        let mut widths = Widths::default();
        let mut line = |event: &v1::Event| pretty(event, Timestamp::UNIX_EPOCH, false, &mut widths);
        line(&v1::Event {
            task_id: "a-longer-id".into(),
            ..event()
        });
        assert_eq!(
            line(&event()),
            "00:01:01Z veo            t1          completed  +1.2s https://x/v.mp4"
        );
        let without_times = v1::Event {
            completed_at: None,
            ..event()
        };
        assert_eq!(
            line(&without_times),
            "00:01:01Z veo            t1          completed        https://x/v.mp4"
        );
    }

    #[test]
    fn an_event_of_another_day_shows_its_date() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24);
        assert!(
            pretty(&event(), now, false, &mut Widths::default())
                .starts_with("1970-01-01T00:01:01Z ")
        );
    }

    #[test]
    fn colours_are_used_only_where_they_are_wanted() {
        assert!(
            pretty(
                &event(),
                Timestamp::UNIX_EPOCH,
                true,
                &mut Widths::default()
            )
            .contains("\u{1b}[32mcompleted")
        );
        assert!(
            !pretty(
                &failed(),
                Timestamp::UNIX_EPOCH,
                false,
                &mut Widths::default()
            )
            .contains('\u{1b}')
        );
    }

    #[test]
    fn an_unknown_status_shows_the_vendors_word_escaped() {
        let odd = v1::Event {
            status: 0,
            status_text: "up\u{1b}[2Jscaling".into(),
            ..event()
        };
        assert!(
            pretty(&odd, Timestamp::UNIX_EPOCH, false, &mut Widths::default())
                .contains("up\\u{1b}[2Jscaling")
        );
    }

    #[test]
    fn an_event_without_times_has_no_latency() {
        let bare = v1::Event {
            completed_at: None,
            received_at: None,
            ..event()
        };
        assert_eq!(
            pretty(&bare, Timestamp::UNIX_EPOCH, false, &mut Widths::default()),
            "- veo            t1 completed  https://x/v.mp4"
        );
    }

    #[test]
    fn latencies_are_short() {
        let cases = [
            (1_240, "+1.2s"),
            (-300, "-0.3s"),
            (125_000, "+2m5s"),
            (7_380_000, "+2h3m"),
        ];
        for (millis, text) in cases {
            assert_eq!(latency(SignedDuration::from_millis(millis)), text);
        }
    }

    #[test]
    fn json_uses_the_field_names_of_the_proto() {
        let value: Value = serde_json::from_str(&json(&event()).unwrap()).unwrap();
        let expected = json!({
            "event_id": "e1", "cursor": "c1", "product": "veo", "task_id": "t1", "status": "TASK_STATUS_COMPLETED",
            "status_text": "completed", "terminal": true,
            "outputs": [{"kind": "OUTPUT_KIND_VIDEO", "url": "https://x/v.mp4"}],
            "prompt": "", "model": "", "seed": 42, "completed_at": "1970-01-01T00:01:00Z",
            "received_at": "1970-01-01T00:01:01.25Z", "revision": 1, "conflict": false, "corrected": false, "truncated": false, "product_inferred": false,
            "verification": "VERIFICATION_SIGNED_URL", "credential": "signing_key k1", "labels": {"team": "ads"},
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn json_keeps_the_vendors_details_and_numbers_it_does_not_know() {
        let event = v1::Event {
            status: 99,
            ..failed()
        };
        let value: Value = serde_json::from_str(&json(&event).unwrap()).unwrap();
        assert_eq!(value["status"], 99);
        let details = json!({"retryable": false, "after": 30});
        assert_eq!(
            value["error"],
            json!({"code": "TIMEOUT", "message": "too slow", "details": details})
        );
    }

    #[test]
    fn a_raw_body_is_text_or_hexadecimal() {
        let line = |raw: &'static [u8]| {
            json(&v1::Event {
                raw_body: raw.into(),
                ..event()
            })
            .unwrap()
        };
        assert!(line(b"{\"a\":1}").contains(r#""raw_body":"{\"a\":1}""#));
        assert!(line(b"\xff\x00").contains(r#""raw_body_hex":"ff00""#));
    }
}
