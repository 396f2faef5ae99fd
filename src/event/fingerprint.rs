//! Fingerprints: hashes of an event's content, stored with its task, by which the store recognises repeats and contradictions.
//!
//! Owns both rules. A *repeat* has the same status, outputs and error as an earlier event of its task; it is answered 200 and not
//! stored. A *contradiction* is a terminal event that differs from an earlier terminal one. Pure.

use bytes::{Buf, BufMut};
use serde_json::Value;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed, xxh3_128};

use super::{Labels, Overdue, Report, TaskError, TaskStatus};

/// The content of one event, as three hashes. Stored, so the rules must not change within a format version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// Hash of status, outputs and error: equal in two reports of one task, it makes the later one a repeat. The whole body is hashed
    /// too if the task is over and neither an output nor a reason was found: the content may be under a key that is not read yet.
    exact: u128,
    /// Hash of status and output URLs without their queries: a URL that was only signed again is the same result.
    result: u64,
    /// Hash of the error; 0 if there is no error or the error gives no reason.
    reason: u64,
}

impl Fingerprint {
    /// Bytes that [`Self::put`] writes and [`Self::take`] reads.
    pub const BYTES: usize = 32;

    /// The fingerprint of a report and the body that it was read from.
    pub fn of(report: &Report, body: &[u8]) -> Self {
        let error = report.error.as_ref();
        let details = error
            .and_then(TaskError::said_details)
            .map(Value::to_string)
            .unwrap_or_default();
        Self {
            exact: exact(report, &details, body),
            result: result(report),
            reason: reason(error, &details),
        }
    }

    /// The fingerprint of an event whose credential is bound to `labels`. Tenants do not share repeats: otherwise one tenant's
    /// callback could suppress another tenant's event. Unchanged without labels.
    #[must_use]
    pub fn of_tenant(self, labels: Option<&Labels>) -> Self {
        let Some(labels) = labels.filter(|labels| !labels.is_empty()) else {
            return self;
        };
        let mut hasher = Xxh3::new();
        hasher.update(&self.exact.to_le_bytes());
        for text in labels.iter().flat_map(|(key, value)| [key, value]) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        Self {
            exact: hasher.digest128(),
            ..self
        }
    }

    /// The fingerprint of an event whose report is no longer available: only identical bytes repeat it.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self {
            exact: xxh3_128(bytes),
            result: xxh3_64(bytes),
            reason: 0,
        }
    }

    /// The fingerprint of an event by which the broker says that a task is late. One deadline has two: late, and given up. It repeats
    /// no report: a report never has this status, which is hashed, too.
    pub fn of_overdue(overdue: &Overdue) -> Self {
        let mut hasher = Xxh3::new();
        let status = TaskStatus::Overdue.as_str();
        hasher.update(&(status.len() as u64).to_le_bytes());
        hasher.update(status.as_bytes());
        hasher.update(&overdue.expected_by.as_microsecond().to_le_bytes());
        hasher.update(&[u8::from(overdue.gave_up)]);
        Self {
            exact: hasher.digest128(),
            result: TaskStatus::Overdue as u64,
            reason: 0,
        }
    }

    /// True if this report has the same content as an earlier one of the task.
    pub fn repeats(self, earlier: Self) -> bool {
        self.exact == earlier.exact
    }

    /// True if a terminal event differs from an earlier terminal one. Newly signed URLs, and a reason where the earlier event gave
    /// none, are no difference.
    pub fn contradicts(self, earlier: Self) -> bool {
        self.result != earlier.result || (earlier.reason != 0 && self.reason != earlier.reason)
    }

    /// Appends the stored form, [`Self::BYTES`] long.
    pub fn put(self, bytes: &mut impl BufMut) {
        bytes.put_u128_le(self.exact);
        bytes.put_u64_le(self.result);
        bytes.put_u64_le(self.reason);
    }

    /// Reads the stored form; `None` if `bytes` is too short.
    pub fn take(bytes: &mut impl Buf) -> Option<Self> {
        Some(Self {
            exact: bytes.try_get_u128_le().ok()?,
            result: bytes.try_get_u64_le().ok()?,
            reason: bytes.try_get_u64_le().ok()?,
        })
    }
}

#[cfg(test)]
impl From<u128> for Fingerprint {
    /// A fingerprint that neither repeats nor agrees with the fingerprint of any other number.
    fn from(number: u128) -> Self {
        Self {
            exact: number,
            result: number as u64,
            reason: 0,
        }
    }
}

fn exact(report: &Report, details: &str, body: &[u8]) -> u128 {
    let mut hasher = Xxh3::new();
    let mut text = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };

    text(report.status.as_str());
    // Only the vendor's word distinguishes two reports whose status is unknown.
    text(if report.status == TaskStatus::Unspecified {
        &report.status_text
    } else {
        ""
    });
    for output in &report.outputs {
        text(&output.url);
    }

    if let Some(error) = &report.error {
        text(&error.code);
        text(&error.message);
        text(details);
    }

    if is_only_terminal(report) {
        hasher.update(body);
    }
    hasher.digest128()
}

/// True if the report is terminal and has neither an output nor a reason.
fn is_only_terminal(report: &Report) -> bool {
    match report.status {
        TaskStatus::Completed => report.outputs.is_empty(),
        TaskStatus::Failed => !report.error.as_ref().is_some_and(TaskError::gives_a_reason),
        _ => false,
    }
}

fn result(report: &Report) -> u64 {
    let without_query = |url: &str| url.find('?').unwrap_or(url.len());
    let urls = report
        .outputs
        .iter()
        .map(|output| &output.url.as_bytes()[..without_query(&output.url)]);
    urls.fold(report.status as u64, |seed, url| {
        xxh3_64_with_seed(url, seed)
    })
}

fn reason(error: Option<&TaskError>, details: &str) -> u64 {
    let Some(error) = error.filter(|error| error.gives_a_reason()) else {
        return 0;
    };
    let mut hasher = Xxh3::new();
    for text in [&error.code, &error.message, details] {
        hasher.update(&xxh3_64(text.as_bytes()).to_le_bytes());
    }
    hasher.digest().max(1)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::event::{Output, OutputKind, Product, TaskId};

    fn report(status: TaskStatus, urls: &[String], error: Option<TaskError>) -> Report {
        let output = |url: &String| Output {
            kind: OutputKind::Other,
            url: url.clone(),
        };
        Report {
            task_id: TaskId::parse("t").unwrap(),
            inferred_product: Product::parse("veo").unwrap(),
            status,
            status_text: String::new(),
            outputs: urls.iter().map(output).collect(),
            error,
            prompt: String::new(),
            model: String::new(),
            seed: None,
            created_at: None,
            completed_at: None,
        }
    }

    fn completed(urls: &[String]) -> Fingerprint {
        Fingerprint::of(&report(TaskStatus::Completed, urls, None), b"{}")
    }

    fn failed(code: &str, message: &str, details: Option<Value>) -> Fingerprint {
        let error = TaskError {
            code: code.into(),
            message: message.into(),
            details,
        };
        Fingerprint::of(&report(TaskStatus::Failed, &[], Some(error)), b"{}")
    }

    #[test]
    fn a_late_task_is_two_events_for_each_deadline_and_repeats_no_report() {
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let late = |expected_by, checks, gave_up| {
            Fingerprint::of_overdue(&Overdue {
                expected_by,
                checked_at: (checks > 0).then_some(expected_by),
                vendor_http_status: 200,
                vendor_status: "processing".into(),
                check_count: checks,
                gave_up,
            })
        };
        let first = late(at(9), 0, false);
        assert!(late(at(9), 3, false).repeats(first), "noticed once more");
        assert!(!late(at(9), 3, true).repeats(first), "given up");
        assert!(!late(at(10), 0, false).repeats(first), "expected anew");
        for status in TaskStatus::ALL {
            let report = Fingerprint::of(&report(status, &[], None), b"{}");
            assert!(
                !report.repeats(first) && !first.repeats(report),
                "{status:?}"
            );
        }
    }

    #[test]
    fn reports_without_output_and_reason_differ_by_their_bodies() {
        let none = TaskError {
            code: "UNSPECIFIED".into(),
            message: String::new(),
            details: None,
        };
        let blocked = TaskError {
            message: "blocked".into(),
            ..none.clone()
        };
        let urls = ["https://x/1".to_owned()];
        for (report, is_told_apart) in [
            (report(TaskStatus::Completed, &[], None), true),
            (report(TaskStatus::Failed, &[], Some(none)), true),
            (report(TaskStatus::Failed, &[], None), true),
            (report(TaskStatus::Completed, &urls, None), false),
            (report(TaskStatus::Failed, &[], Some(blocked)), false),
            (report(TaskStatus::Processing, &[], None), false),
        ] {
            let [one, other] =
                [b"{\"a\":1}", b"{\"a\":2}"].map(|body| Fingerprint::of(&report, body));
            assert_eq!(!other.repeats(one), is_told_apart, "{report:?}");
            assert!(!other.contradicts(one) && one.repeats(one));
        }
    }

    proptest! {
        #[test]
        fn urls_signed_anew_are_no_repeat_and_no_contradiction(
            paths in vec("https://[a-z]{1,8}/[a-z/]{0,12}", 1..4),
            queries in ("[a-z=&?]{0,12}", "[a-z=&?]{1,12}"),
            other in "https://[0-9]{1,8}/",
        ) {
            let signed = |query: &str| paths.iter().map(|path| format!("{path}?{query}")).collect::<Vec<_>>();
            let (first, second) = (completed(&signed(&queries.0)), completed(&signed(&queries.1)));
            prop_assert_eq!(second.repeats(first), queries.0 == queries.1);
            prop_assert!(!second.contradicts(first) && !first.contradicts(second));
            prop_assert!(!completed(&paths).contradicts(first), "nor without a signature");

            let mut changed = paths.clone();
            changed[0] = other;
            prop_assert!(completed(&changed).contradicts(first) && completed(&[]).contradicts(first));
            changed.push(paths[0].clone());
            prop_assert!(completed(&changed).contradicts(first));
        }

        #[test]
        fn a_reason_where_there_was_none_is_no_contradiction_and_another_reason_is(
            code in "[A-Z_]{1,20}", message in ".{0,20}", details in proptest::option::of("[a-z]{1,9}"),
        ) {
            let none = failed("UNSPECIFIED", "", None);
            let given = failed(&code, &message, details.map(Value::from));
            prop_assert!(!given.repeats(none) && !given.contradicts(none));
            prop_assert!(none.contradicts(given), "nothing takes a reason back");
            let other = failed(&(code + "X"), &message, None);
            prop_assert!(other.contradicts(given));
            prop_assert!(given.contradicts(completed(&[])) && completed(&[]).contradicts(given));
        }

        #[test]
        fn details_that_say_nothing_are_no_reason_and_no_other_one(code in "[A-Z_]{1,20}", message in ".{0,20}") {
            let none = failed("UNSPECIFIED", "", None);
            let given = failed(&code, &message, None);
            for details in [serde_json::json!({}), serde_json::json!([]), serde_json::json!(""), serde_json::json!(" ")] {
                prop_assert!(!given.contradicts(failed("UNSPECIFIED", "", Some(details.clone()))));
                prop_assert!(failed("UNSPECIFIED", "", Some(details.clone())).repeats(none));
                prop_assert!(failed(&code, &message, Some(details)).repeats(given));
            }
        }

        #[test]
        fn a_fingerprint_is_read_back_as_it_was_written(exact: u128, result: u64, reason: u64) {
            let fingerprint = Fingerprint { exact, result, reason };
            let mut bytes = Vec::new();
            fingerprint.put(&mut bytes);
            prop_assert_eq!(bytes.len(), Fingerprint::BYTES);
            prop_assert_eq!(Fingerprint::take(&mut &bytes[..]), Some(fingerprint));
            prop_assert_eq!(Fingerprint::take(&mut &bytes[1..]), None);
        }
    }
}
