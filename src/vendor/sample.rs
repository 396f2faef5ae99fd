//! Sample bodies like the vendor's, for trying the broker without the vendor and for tests.
//!
//! Owns one body for each documented shape and status, and the ways to break one. Deterministic: seed, prompt and URLs follow from
//! the task id.

use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::Unreadable;
use crate::event::TaskStatus;

/// The products with a documented body. [`Sample::body`] accepts any other product too.
pub const PRODUCTS: [&str; 10] = [
    "veo",
    "kling",
    "kling-o1-video",
    "kling-o3-video",
    "kling-o1-photo",
    "kling-o3-photo",
    "gemini",
    "chatgpt-images",
    "sora",
    "seedance",
];

/// The word is not the name of a status, shape or breakage; holds the list of names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not one of {0}")]
pub struct UnknownName(String);

/// The state of the task that a sample reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleStatus {
    /// The task has an output.
    Completed,
    /// The task failed, with a reason in the product's own form.
    Failed,
    /// The task took too long: code `TIMEOUT`.
    Timeout,
    /// Moderation refused the task: code `MODERATION_BLOCKED`.
    ModerationBlocked,
    /// The task has not started.
    Pending,
    /// The task is running.
    Processing,
}

impl SampleStatus {
    /// Every status, in the order of the command line's help.
    pub const ALL: [Self; 6] = [
        Self::Completed,
        Self::Failed,
        Self::Timeout,
        Self::ModerationBlocked,
        Self::Pending,
        Self::Processing,
    ];

    /// The status's name on the command line, in kebab-case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::ModerationBlocked => "moderation-blocked",
            Self::Pending => "pending",
            Self::Processing => "processing",
        }
    }

    /// The status that [`super::read`] finds in the body.
    pub fn task_status(self) -> TaskStatus {
        match self {
            Self::Completed => TaskStatus::Completed,
            Self::Failed | Self::Timeout | Self::ModerationBlocked => TaskStatus::Failed,
            Self::Pending => TaskStatus::Pending,
            Self::Processing => TaskStatus::Processing,
        }
    }

    fn is_terminal(self) -> bool {
        self.task_status().is_terminal()
    }
}

impl FromStr for SampleStatus {
    type Err = UnknownName;

    /// Accepts the vendor's spelling with `_` too.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name(&Self::ALL, Self::as_str, &name.replace('_', "-"))
    }
}

/// The shape of a sample body; it depends on which of the vendor's hosts is imitated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The shape that is documented for the product today.
    Documented,
    /// The shape of veo's old host for any product: `success` instead of `status`.
    Legacy,
}

impl Shape {
    /// Every shape, in the order of the command line's help.
    pub const ALL: [Self; 2] = [Self::Documented, Self::Legacy];

    /// The shape's name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Documented => "documented",
            Self::Legacy => "legacy",
        }
    }
}

impl FromStr for Shape {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name(&Self::ALL, Self::as_str, name)
    }
}

/// The content of a sample body.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The product's slug. A product without a documented body gets a generic one.
    pub product: &'a str,
    /// The shape of the vendor's host.
    pub shape: Shape,
    /// The state that the body reports.
    pub status: SampleStatus,
    /// The task that the body is about.
    pub task_id: &'a str,
    /// When the task ended; its `created_at` is 63 seconds earlier.
    pub at: Timestamp,
}

impl Sample<'_> {
    /// The body, as an object that the caller can change.
    pub fn body(&self) -> Map<String, Value> {
        let body = match (self.shape, self.product) {
            // The old host reports terminal states only, so the others have today's shape.
            (Shape::Legacy, _) if self.status.is_terminal() => self.legacy(),
            (Shape::Legacy, _) | (_, "veo") => self.veo(),
            (_, "kling") => self.kling(),
            (_, "kling-o1-video" | "kling-o3-video") => self.kling_video(),
            (_, "kling-o1-photo" | "kling-o3-photo") => self.kling_photo(),
            (_, "gemini") => self.gemini(),
            (_, "chatgpt-images") => self.chatgpt_images(),
            (_, "sora") => self.sora(),
            (_, "seedance") => self.seedance(),
            _ => self.generic(),
        };

        // Every shape below is an object, but `json!` has no type for that.
        if let Value::Object(body) = body {
            body
        } else {
            Map::new()
        }
    }

    fn veo(&self) -> Value {
        let code = self.reason("UNSAFE_CONTENT", "TIMEOUT");
        json!({
            "generation_id": self.task_id,
            "status": self.word_without_timeout(),
            "prompt": self.prompt(),
            "video_url": self.result("videos", "mp4"),
            "created_at": self.created_at(),
            "completed_at": self.completed_at(),
            "seed": seed(self.task_id),
            "error": code.map(|code| json!({"message": code, "details": {}})),
        })
    }

    fn legacy(&self) -> Value {
        let blocked =
            (self.status == SampleStatus::ModerationBlocked).then_some("MODERATION_BLOCKED");
        let code = blocked.or_else(|| self.reason("UNSAFE_CONTENT", "TIMEOUT"));
        json!({
            "success": code.is_none(),
            "message": code.unwrap_or("Task completed successfully"),
            "task_id": self.task_id,
            "video_url": self.result("videos", "mp4"),
        })
    }

    fn kling(&self) -> Value {
        let mut body = json!({
            "generation_id": self.task_id,
            "status": self.word(),
            "video_url": self.result("videos", "mp4"),
        });
        if self.status.is_terminal() {
            body["completed_at"] = json!(format!("{:.0}", self.at));
        }
        if self.status == SampleStatus::Failed {
            body["description"] =
                json!("The service could not generate this video. Please try again.");
        }
        body
    }

    fn kling_video(&self) -> Value {
        // The documentation spells the older model with underscores, and adds length and quality to the newer one.
        let model = if self.product == "kling-o1-video" {
            "kling_o1_video"
        } else {
            "kling-o3-video-10s-pro"
        };
        json!({
            "generation_id": self.task_id,
            "status": self.word_without_timeout(),
            "video_url": self.result("videos", "mp4"),
            "model": model,
            "message": self.reason("CONTENT_POLICY_VIOLATION", "TIMEOUT"),
        })
    }

    fn kling_photo(&self) -> Value {
        json!({
            "generation_id": self.task_id,
            "status": self.word_without_timeout(),
            "image_url": self.result("photos", "png"),
            "model": self.product,
            "message": self.reason("CONTENT_POLICY_VIOLATION", "TIMEOUT"),
        })
    }

    fn gemini(&self) -> Value {
        json!({
            "task_uuid": self.task_id,
            "status": self.word_without_timeout(),
            "result_image_url": self.result("images", "png"),
            "message": self.reason("MODERATION_FAILED", "TIMEOUT"),
        })
    }

    fn chatgpt_images(&self) -> Value {
        let mut body = self.gemini();
        body["prompt"] = json!(self.prompt());
        body
    }

    fn sora(&self) -> Value {
        let mut body = json!({
            "generation_id": self.task_id,
            // Sora sends sentences and no codes, so only the status word reveals a time-out.
            "status": self.word(),
            "prompt": self.prompt(),
            "video_url": self.result("videos", "mp4"),
            "created_at": self.created_at(),
            "completed_at": self.completed_at(),
        });
        let photoreal = "Image contains photorealistic people. Please try with a different image.";
        if let Some(sentence) =
            self.reason(photoreal, "The generation took longer than 15 minutes.")
        {
            body["error_message"] = json!(sentence);
        }
        body
    }

    fn seedance(&self) -> Value {
        let output = json!({
            "video_urls": [self.result("videos", "mp4")],
            "last_frame_url": self.result("frames", "png"),
        });
        let code = self.reason("GENERATION_FAILED", "TIMEOUT");
        json!({
            "task_uuid": self.task_id,
            "status": self.word_without_timeout(),
            "model": "seedance-1-0-pro",
            "output": (self.status == SampleStatus::Completed).then_some(output),
            "error": code.map(|code| json!({"code": code, "message": "The generation did not succeed."})),
        })
    }

    fn generic(&self) -> Value {
        json!({
            "task_id": self.task_id,
            "status": self.word_without_timeout(),
            "url": self.result("videos", "mp4"),
            "message": self.reason("GENERATION_FAILED", "TIMEOUT"),
        })
    }

    /// The vendor's most specific word for the status.
    fn word(&self) -> String {
        self.status.as_str().replace('-', "_")
    }

    /// The word of products that call a time-out `failed` and give its reason in the error code.
    fn word_without_timeout(&self) -> String {
        if self.status == SampleStatus::Timeout {
            "failed".into()
        } else {
            self.word()
        }
    }

    /// The reason of a failure. `None` for `moderation_blocked`, whose status word is the reason.
    fn reason(&self, failed: &'static str, timeout: &'static str) -> Option<&'static str> {
        match self.status {
            SampleStatus::Failed => Some(failed),
            SampleStatus::Timeout => Some(timeout),
            _ => None,
        }
    }

    fn result(&self, folder: &str, extension: &str) -> Option<String> {
        (self.status == SampleStatus::Completed).then(|| url(self.task_id, folder, extension))
    }

    fn prompt(&self) -> &'static str {
        const PROMPTS: [&str; 4] = [
            "A cat playing with a ball in a sunny room",
            "A beautiful sunset over the ocean",
            "A paper boat on a rainy street, seen from above",
            "An old lighthouse in a storm, oil painting",
        ];
        PROMPTS[seed(self.task_id) as usize % PROMPTS.len()]
    }

    fn created_at(&self) -> String {
        naive(
            self.at
                .checked_sub(SignedDuration::from_secs(63))
                .unwrap_or(self.at),
        )
    }

    fn completed_at(&self) -> Option<String> {
        self.status.is_terminal().then(|| naive(self.at))
    }
}

/// The ways to break a body: one for each reason to quarantine, and damage to the bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A page of HTML instead of a body.
    NotJson,
    /// A valid body inside an array.
    NotAnObject,
    /// A valid body without the task id.
    NoTaskId,
    /// A task id, and nothing that states or implies a status.
    NoStatus,
    /// The first half of a valid body.
    Truncated,
    /// A valid body with one text in Latin-1.
    InvalidUtf8,
    /// A valid body with 10,000 nested arrays.
    DeeplyNested,
}

impl Broken {
    /// Every kind of breakage, in the order of the command line's help.
    pub const ALL: [Self; 7] = [
        Self::NotJson,
        Self::NotAnObject,
        Self::NoTaskId,
        Self::NoStatus,
        Self::Truncated,
        Self::InvalidUtf8,
        Self::DeeplyNested,
    ];

    /// The kind's name on the command line, in kebab-case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not-json",
            Self::NotAnObject => "not-an-object",
            Self::NoTaskId => "no-task-id",
            Self::NoStatus => "no-status",
            Self::Truncated => "truncated",
            Self::InvalidUtf8 => "invalid-utf8",
            Self::DeeplyNested => "deeply-nested",
        }
    }

    /// The reason for which the body goes to quarantine.
    pub fn unreadable(self) -> Unreadable {
        match self {
            Self::NotJson | Self::Truncated | Self::InvalidUtf8 => Unreadable::NotJson,
            Self::DeeplyNested => Unreadable::TooDeeplyNested,
            Self::NotAnObject => Unreadable::Array,
            Self::NoTaskId => Unreadable::NoTaskId,
            Self::NoStatus => Unreadable::NoStatus,
        }
    }
}

impl FromStr for Broken {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name(&Self::ALL, Self::as_str, name)
    }
}

/// A completed body of the task, broken in the given way.
pub fn broken(kind: Broken, task_id: &str) -> Vec<u8> {
    let url = url(task_id, "videos", "mp4");
    let good =
        json!({"generation_id": task_id, "status": "completed", "video_url": url}).to_string();
    // The valid body with one more field, whose value need not be JSON.
    let with = |value: &[u8]| {
        [
            &good.as_bytes()[..good.len() - 1],
            b",\"extra\":",
            value,
            b"}",
        ]
        .concat()
    };

    match kind {
        Broken::NotJson => b"<html><body><h1>502 Bad Gateway</h1></body></html>".to_vec(),
        Broken::NotAnObject => format!("[{good}]").into_bytes(),
        Broken::NoTaskId => json!({"status": "completed", "video_url": url})
            .to_string()
            .into_bytes(),
        Broken::NoStatus => json!({"generation_id": task_id, "progress_pct": 40})
            .to_string()
            .into_bytes(),
        Broken::Truncated => good.as_bytes()[..good.len() / 2].to_vec(),
        Broken::InvalidUtf8 => with(b"\"caf\xe9\""),
        Broken::DeeplyNested => with(&[[b'['; 10_000], [b']'; 10_000]].concat()),
    }
}

fn by_name<T: Copy>(
    all: &[T],
    as_str: fn(T) -> &'static str,
    name: &str,
) -> Result<T, UnknownName> {
    let names = || {
        all.iter()
            .map(|&each| as_str(each))
            .collect::<Vec<_>>()
            .join(", ")
    };
    all.iter()
        .copied()
        .find(|&each| as_str(each) == name)
        .ok_or_else(|| UnknownName(names()))
}

fn url(task_id: &str, folder: &str, extension: &str) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '_'
        }
    };
    let file: String = task_id.chars().map(safe).collect();
    format!("https://cdn.runblob.io/{folder}/{file}.{extension}")
}

/// FNV-1a, cut to 31 bits like the vendor's seeds: it looks random and is the same on every machine.
pub(super) fn seed(task_id: &str) -> u32 {
    let hash = task_id.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash >> 1
}

/// A time as veo and sora write it: UTC, microseconds, no zone.
pub(super) fn naive(time: Timestamp) -> String {
    format!("{time:.6}").trim_end_matches('Z').to_owned()
}
