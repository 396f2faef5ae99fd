//! What the vendor says about one task: on accepting it, in its callback, and when its status API is asked.
//!
//! Owns one body for each documented shape of the status API, beside the callbacks of [`sample`](super::sample). Several of them
//! carry no reason for a failure. Deterministic: what is not given follows from the task id.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::sample::{Sample, SampleStatus, Shape, naive, seed};

/// The keys of outputs in documented bodies.
const OUTPUTS: [&str; 5] = [
    "video_url",
    "image_url",
    "result_image_url",
    "output",
    "url",
];

/// A task as the vendor knows it.
#[derive(Clone, Copy, Debug)]
pub struct TaskSample<'a> {
    /// The product's slug. A product without a documented body gets a generic one.
    pub product: &'a str,
    /// The task's id.
    pub task_id: &'a str,
    /// The prompt of the request.
    pub prompt: &'a str,
    /// The seed of the request; `None`: one that follows from the id.
    pub seed: Option<u64>,
    /// The state that the bodies report.
    pub status: SampleStatus,
    /// False: a completed task whose outputs are missing.
    pub has_outputs: bool,
    /// How much of a task that is processed is done, from 0 to 100.
    pub progress_percent: u8,
    /// When the task was accepted.
    pub created_at: Timestamp,
    /// When the task ended, or now.
    pub at: Timestamp,
}

impl TaskSample<'_> {
    /// The answer to the request that creates the task: 201.
    pub fn accepted(&self) -> Map<String, Value> {
        let mut body = Map::new();
        body.insert(self.id_key().to_owned(), json!(self.task_id));
        body.insert("status".to_owned(), json!("pending"));
        if self.product == "veo" {
            body.insert("seed".to_owned(), self.seed());
        }
        // Seedance alone does not know its price beforehand.
        if self.product != "seedance" {
            body.insert("price".to_owned(), json!(self.price()));
        }
        body
    }

    /// The callback's body.
    pub fn callback(&self) -> Map<String, Value> {
        let mut body = Sample {
            product: self.product,
            shape: Shape::Documented,
            status: self.status,
            task_id: self.task_id,
            at: self.at,
        }
        .body();

        replace(&mut body, "prompt", json!(self.prompt));
        replace(&mut body, "created_at", json!(naive(self.created_at)));
        replace(&mut body, "seed", self.seed());
        if !self.has_outputs {
            for key in OUTPUTS {
                replace(&mut body, key, Value::Null);
            }
        }
        body
    }

    /// The body of the status API.
    pub fn answer(&self) -> Map<String, Value> {
        let mut body = self.callback();
        match self.product {
            "kling" => self.complete_kling(&mut body),
            "kling-o1-video" | "kling-o3-video" => {
                body.insert("prompt".to_owned(), json!(self.prompt));
                // The reason of a failure is in the callback only.
                body.remove("message");
            }
            "kling-o1-photo" => self.complete_kling_o1_photo(&mut body),
            "kling-o3-photo" => {
                body.insert("prompt".to_owned(), json!(self.prompt));
                body.insert("model".to_owned(), json!("kling_o3_photo"));
                body.remove("message");
            }
            "gemini" => {
                body.insert("prompt".to_owned(), json!(self.prompt));
            }
            "sora" => self.complete_sora(&mut body),
            "seedance" if self.is_over() => {
                body.insert("price".to_owned(), json!(self.price()));
            }
            _ => {}
        }
        body
    }

    fn complete_kling(&self, body: &mut Map<String, Value>) {
        body.insert("prompt".to_owned(), json!(self.prompt));
        body.insert(
            "created_at".to_owned(),
            json!(format!("{:.0}", self.created_at)),
        );
        body.insert("version".to_owned(), json!("2.5"));
        body.insert("duration".to_owned(), json!("5"));
        body.remove("description");
        if !self.is_over() {
            body.remove("video_url");
        }
    }

    fn complete_kling_o1_photo(&self, body: &mut Map<String, Value>) {
        if self.status == SampleStatus::Completed {
            body.insert("prompt".to_owned(), json!(self.prompt));
        }
        if !self.is_over() {
            body.remove("image_url");
        }
        if body.get("message").is_some_and(Value::is_null) {
            body.remove("message");
        }
    }

    fn complete_sora(&self, body: &mut Map<String, Value>) {
        let progress = match self.status {
            SampleStatus::Completed => json!(100),
            SampleStatus::Processing => json!(self.progress_percent),
            _ => Value::Null,
        };
        let place = match self.status {
            SampleStatus::Pending => json!(1 + seed(self.task_id) % 9),
            _ => Value::Null,
        };
        body.insert("progress_pct".to_owned(), progress);
        body.insert("progress_pos_in_queue".to_owned(), place);
        body.entry("error_message").or_insert(Value::Null);
    }

    fn id_key(&self) -> &'static str {
        match self.product {
            "gemini" | "chatgpt-images" | "seedance" => "task_uuid",
            "veo" | "sora" => "generation_id",
            product if product.starts_with("kling") => "generation_id",
            // As in the generic callback.
            _ => "task_id",
        }
    }

    fn seed(&self) -> Value {
        self.seed
            .map_or_else(|| json!(seed(self.task_id)), |seed| json!(seed))
    }

    /// The prices of the documented examples, where there is one.
    fn price(&self) -> &'static str {
        match self.product {
            "veo" => "0.2500",
            "sora" => "0.1200",
            "gemini" => "0.0200",
            "chatgpt-images" => "0.0123",
            _ => "0.2900",
        }
    }

    fn is_over(&self) -> bool {
        self.status.task_status().is_terminal()
    }
}

/// Sets a field that the shape has, and leaves out one that it has not.
fn replace(body: &mut Map<String, Value>, key: &str, value: Value) {
    if let Some(field) = body.get_mut(key) {
        *field = value;
    }
}
