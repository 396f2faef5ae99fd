//! Every rule of the vendor's bodies, by behaviour; every documented body, by all its fields.

mod documented;
mod properties;
mod rules;
mod task_samples;

use super::{Unreadable, read};
use crate::event::{Output, OutputKind, Product, Report, TaskError, TaskId, TaskStatus};

/// The report of a body that holds only a task id and the status `completed`.
fn completed(task_id: &str, product: &str) -> Report {
    Report {
        task_id: TaskId::parse(task_id).unwrap(),
        inferred_product: Product::parse(product).unwrap(),
        status: TaskStatus::Completed,
        status_text: "completed".into(),
        outputs: Vec::new(),
        error: None,
        prompt: String::new(),
        model: String::new(),
        seed: None,
        created_at: None,
        completed_at: None,
    }
}

fn failed(task_id: &str, product: &str, code: &str, message: &str) -> Report {
    let error = TaskError {
        code: code.into(),
        message: message.into(),
        details: None,
    };
    let status_text = "failed".into();
    Report {
        status: TaskStatus::Failed,
        status_text,
        error: Some(error),
        ..completed(task_id, product)
    }
}

fn output(kind: OutputKind, url: &str) -> Output {
    Output {
        kind,
        url: url.into(),
    }
}
