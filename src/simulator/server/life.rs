//! The life of one task: pending, processing, its end, and the callback with its attempts.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::sleep;

use super::{
    happened::{CallbackResult, What},
    lot::Lot,
    shared::Shared,
    tasks::{State, Task},
};
use crate::simulator::{
    plan::ATTEMPTS_MAX,
    send::{Answer, DeliveryOutcome},
};

/// A task is pending for this part of its time. The vendor's take 10 to 30 seconds of some minutes.
const PENDING_PART: u32 = 5;

/// Lives the life of a task that was accepted just now.
pub(super) async fn live(shared: Arc<Shared>, number: u64, task: Task, lot: Lot) {
    let after = shared.settings.after(&task.product);
    let pending = after / PENDING_PART;
    enter(&shared, &task, State::Pending);
    sleep(pending).await;
    enter(&shared, &task, State::Processing);
    sleep(after.saturating_sub(pending)).await;

    let end = if lot.fails {
        State::Failed
    } else {
        State::Completed
    };
    let task = enter(&shared, &task, end).unwrap_or(task);
    if task.callback_url.is_some() {
        if lot.loses_callback {
            report(&shared, &task, 0, CallbackResult::Lost);
        } else {
            sleep(shared.settings.callback_delay).await;
            deliver(&shared, &task).await;
        }
    }
    shared.tasks.lock().settle(number);
}

/// Puts a task into a state, and reports it.
fn enter(shared: &Shared, task: &Task, state: State) -> Option<Task> {
    let task = shared
        .tasks
        .lock()
        .set_state(&task.product, &task.id, state, Shared::now())?;
    shared.report(What::Task {
        product: task.product.clone(),
        id: task.id.clone(),
        status: state.as_str(),
    });
    Some(task)
}

/// Sends a task's callback with the vendor's attempts. A task without a callback URL has none: no attempt.
pub(super) async fn deliver(shared: &Shared, task: &Task) -> DeliveryOutcome {
    let mut outcome = DeliveryOutcome {
        product: task.product.clone(),
        task_id: task.id.clone(),
        attempts: 0,
        answer: Err("the task has no callback URL".to_owned()),
        passed: Vec::new(),
    };
    let Some(url) = &task.callback_url else {
        return outcome;
    };

    let after = shared.settings.after(&task.product);
    let body = Value::Object(task.sample(Shared::now(), after).callback()).to_string();
    let body = bytes::Bytes::from(body);
    let gaps = shared.settings.retry_gaps(&task.product);
    let waits: Vec<_> = std::iter::once(Duration::ZERO)
        .chain(gaps)
        .take(ATTEMPTS_MAX)
        .collect();
    for wait in &waits {
        sleep(*wait).await;
        outcome.attempts += 1;
        outcome.answer = {
            // Not held while an attempt waits for its time.
            let _place = shared.attempts.acquire().await;
            let sender = shared.sender(url);
            sender.attempt(&task.product, url, body.clone(), None).await
        };

        let result = result(&outcome.answer, outcome.attempts < waits.len());
        let is_taken = matches!(result, CallbackResult::Taken(_));
        report(shared, task, outcome.attempts, result);
        if is_taken {
            break;
        }
    }
    outcome
}

fn result(answer: &Result<Answer, String>, again: bool) -> CallbackResult {
    match answer {
        Ok(answer) if answer.is_taken() => CallbackResult::Taken(answer.http_status),
        Ok(answer) => CallbackResult::Refused {
            http_status: answer.http_status,
            again,
        },
        Err(error) => CallbackResult::Unanswered {
            error: error.clone(),
            again,
        },
    }
}

fn report(shared: &Shared, task: &Task, attempt: usize, result: CallbackResult) {
    shared.report(What::Callback {
        product: task.product.clone(),
        id: task.id.clone(),
        attempt,
        result,
    });
}
