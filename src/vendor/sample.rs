//! Bodies like the vendor's, for trying things without the vendor, and for tests.
//!
//! Owns one body per documented shape and status, and the ways to break one. The same input gives the same body: seed, prompt
//! and URLs follow from the task id.

use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::Unreadable;
use crate::event::TaskStatus;

/// The products with a documented body; [`Sample::body`] takes any other too.
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

/// A word that is none of the names asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not one of {0}")]
pub struct UnknownName(String);

/// Which end, or which step on the way, a sample tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleStatus {
    /// Done, with a result.
    Completed,
    /// Failed, with a reason in the product's own way.
    Failed,
    /// Failed, because it took too long: code `TIMEOUT`.
    Timeout,
    /// Failed, refused by moderation: code `MODERATION_BLOCKED`.
    ModerationBlocked,
    /// Waiting.
    Pending,
    /// Under way.
    Processing,
}

impl SampleStatus {
    /// Every status.
    pub const ALL: [Self; 6] = [
        Self::Completed,
        Self::Failed,
        Self::Timeout,
        Self::ModerationBlocked,
        Self::Pending,
        Self::Processing,
    ];

    /// Its name on the command line, in kebab-case.
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

    /// What the body is read as.
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

    /// Takes the vendor's spelling too, with `_`.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name(&Self::ALL, Self::as_str, &name.replace('_', "-"))
    }
}

/// Which of the vendor's hosts a sample comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The shape that is documented for the product today.
    Documented,
    /// The shape of veo's old host, whatever the product: `success` instead of `status`.
    Legacy,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 2] = [Self::Documented, Self::Legacy];

    /// Its name on the command line.
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

/// What a sample body is to say.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The product's slug; one without a documented body gets a plain one.
    pub product: &'a str,
    /// Which host.
    pub shape: Shape,
    /// What became of the task.
    pub status: SampleStatus,
    /// Which task.
    pub task_id: &'a str,
    /// When the task ended; it was created about a minute before.
    pub at: Timestamp,
}

impl Sample<'_> {
    /// The body, as an object so that the caller can change it.
    pub fn body(&self) -> Map<String, Value> {
        let body = match (self.shape, self.product) {
            // The old host reports ends only, so steps on the way have today's shape.
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
        // Every shape below is an object; `json!` just cannot say so.
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
        // The documentation spells the older one with underscores, and the newer one with what was asked for.
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
            // Sora gives sentences and no codes, so only the status word can tell a time-out.
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

    /// The vendor's most telling word for the status.
    fn word(&self) -> String {
        self.status.as_str().replace('-', "_")
    }

    /// The same, for products that call a time-out `failed` and tell it by the code.
    fn word_without_timeout(&self) -> String {
        if self.status == SampleStatus::Timeout {
            "failed".into()
        } else {
            self.word()
        }
    }

    /// Why the task failed; `None` for `moderation_blocked` too, whose status word says it all.
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

/// The ways to break a body, one for each reason to quarantine and each thing that can happen to bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A page of HTML.
    NotJson,
    /// A good body, in an array.
    NotAnObject,
    /// A good body without the id.
    NoTaskId,
    /// An id and nothing that tells a status.
    NoStatus,
    /// The first half of a good body.
    Truncated,
    /// A good body but for a text that is Latin-1.
    InvalidUtf8,
    /// A good body but for 10,000 arrays in each other.
    DeeplyNested,
}

impl Broken {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::NotJson,
        Self::NotAnObject,
        Self::NoTaskId,
        Self::NoStatus,
        Self::Truncated,
        Self::InvalidUtf8,
        Self::DeeplyNested,
    ];

    /// Its name on the command line, in kebab-case.
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

    /// Why the body goes to quarantine.
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

/// A body that is broken in this way and otherwise like any other of the task.
pub fn broken(kind: Broken, task_id: &str) -> Vec<u8> {
    let url = url(task_id, "videos", "mp4");
    let good =
        json!({"generation_id": task_id, "status": "completed", "video_url": url}).to_string();
    // The good body with one more field, whose value need not be JSON.
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

/// FNV-1a, kept to 31 bits as the vendor's seeds are: enough to look random, and the same on every machine.
fn seed(task_id: &str) -> u32 {
    let hash = task_id.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash >> 1
}

/// As veo and sora write times: UTC, microseconds, no zone.
fn naive(time: Timestamp) -> String {
    format!("{time:.6}").trim_end_matches('Z').to_owned()
}
