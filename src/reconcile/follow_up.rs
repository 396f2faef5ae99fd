//! What follows from each answer of the vendor, and from each event that was appended.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    answer::{List, Listed, Understood, understand},
    asking::{Call, Done},
    entry::micros,
    lanes::Id,
    run::{Key, Loop},
    schedule::{Answered, Follows, TaskKey},
    vendor_api::{Answer, Problem},
    walks::{Aim, ListKey, Page},
};
use crate::{
    event::{Product, TaskId},
    metrics::{CheckOutcome, NAMED_PRODUCTS, OTHER_PRODUCT},
    store::{Appended, Draft},
};

impl Loop {
    /// Notes what became of a step.
    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::LookedUp(tasks) => {
                let mut schedule = self.shared.schedule.lock();
                for (id, is_over) in tasks {
                    schedule.looked_up(id, is_over);
                }
            }
            Done::Answered {
                id,
                task,
                call,
                answer,
            } => {
                self.calls -= 1;
                self.note_answer(&call, &answer);
                self.answered(id, &task, &call.key, answer);
            }
            Done::Paged { page, call, answer } => {
                self.calls -= 1;
                self.note_answer(&call, &answer);
                self.paged(&page, &call.key, &answer);
            }
            Done::Tried { call, answer } => {
                self.calls -= 1;
                self.note_trial(&call, &answer);
            }
            Done::Appended {
                id,
                product,
                list,
                appended,
            } => self.appended(id, &product, list.as_ref(), appended),
            Done::Noted { late, is_noted } => {
                self.late -= 1;
                let now = self.now();
                let mut schedule = self.shared.schedule.lock();
                if is_noted {
                    schedule.noted(&late, now);
                } else {
                    schedule.not_noted(&late, now);
                }
            }
            Done::NotLate(late) => {
                self.late -= 1;
                self.shared.schedule.lock().settled(late.id);
            }
            Done::TimeNoted => {}
        }
    }

    /// Notes what an answer says of its key and of the host.
    fn note_answer(&mut self, call: &Call, answer: &Answer) {
        self.note_call(call, answer, Instant::now());
        self.shared.parts.keys.note(&call.key, answer);
    }

    /// Notes what the answer to a trial says of its key and of the host.
    fn note_trial(&mut self, call: &Call, answer: &Answer) {
        let now = Instant::now();
        self.note_call(call, answer, now);
        self.lists_seen_at = None;
        if self.shared.parts.keys.tried(&call.key, answer, now) {
            self.take_keys();
        }
    }

    fn note_call(&mut self, call: &Call, answer: &Answer, now: Instant) {
        self.presence.note(answer, now);
        self.limits.note(&call.key, answer, call.began, now);
    }

    fn warn_of(&self, problem: &Problem) {
        if let Some(unlogged) = self.shared.parts.unanswered.due(problem.word()) {
            tracing::warn!(
                cause = %problem,
                unlogged,
                "the vendor's API gives no usable answer, and is asked again: look whether reconcile.base_url is \
                 its URL, and whether it can be reached from here"
            );
        }
    }

    /// Notes the answer for a task.
    fn answered(&mut self, id: Id, task: &TaskKey, key: &Key, answer: Answer) {
        let (outcome, answered) = match answer {
            Answer::Body { status, body } => {
                let parts = &self.shared.parts;
                let Some(subject) = parts.subject(task) else {
                    self.count(&task.product, CheckOutcome::Over);
                    self.shared.schedule.lock().settled(id); // it has ended meanwhile
                    return;
                };
                let asked = subject.asked(task, Some(&key.name), parts.store.clock().now());
                let understood = understand(&asked, status, &body);
                self.understood(id, task, status, understood, true);
                return;
            }
            Answer::NotFound => {
                if let Some(next) = self.shared.parts.keys.next(&task.product, &key.name) {
                    let mut schedule = self.shared.schedule.lock();
                    schedule.use_key(id, Arc::clone(&next.name));
                }
                (CheckOutcome::NotFound, with_status(404))
            }
            Answer::Later {
                status,
                retry_after,
            } => {
                let answered = Answered {
                    retry_after: micros(retry_after.unwrap_or_default()),
                    ..with_status(status)
                };
                (CheckOutcome::Later, answered)
            }
            Answer::Failed(problem) => {
                self.warn_of(&problem);
                let status = match problem {
                    Problem::Status(status) | Problem::Redirect(status) => status,
                    _ => 0,
                };
                (CheckOutcome::Failed, with_status(status))
            }
            Answer::KeyRefused { status } => {
                if self.shared.parts.keys.named(&key.name).is_none() {
                    self.count(&task.product, CheckOutcome::KeyRefused);
                    let now = self.now();
                    let mut schedule = self.shared.schedule.lock();
                    schedule.refused(id, with_status(status), now);
                    return;
                }
                // It may be about this task alone: a trial of the key decides.
                (CheckOutcome::KeyRefused, with_status(status))
            }
        };
        self.count(&task.product, outcome);
        self.unsettled(id, answered);
    }

    /// Notes what an answer or an element of a list says of a task. A list may show less than an answer does.
    fn understood(
        &mut self,
        id: Id,
        task: &TaskKey,
        http_status: u16,
        understood: Understood,
        is_answer: bool,
    ) {
        let outcome = match &understood {
            Understood::Ended(_) => CheckOutcome::Ended,
            Understood::CompletedWithoutOutputs(_) => CheckOutcome::WithoutOutputs,
            Understood::NotYet { .. } => CheckOutcome::NotYet,
            Understood::Unknown { .. } => CheckOutcome::Unknown,
        };
        if is_answer {
            self.count(&task.product, outcome);
        }

        match understood {
            Understood::Ended(draft) => self.append(Some(id), None, draft),
            Understood::CompletedWithoutOutputs(draft) if is_answer => {
                self.lacks_outputs(id, http_status, draft);
            }
            Understood::CompletedWithoutOutputs(_) => self.shared.schedule.lock().not_listed(id),
            Understood::NotYet { vendor_status } | Understood::Unknown { vendor_status } => {
                let answered = Answered {
                    http_status,
                    vendor_status,
                    ..Answered::default()
                };
                self.unsettled(id, answered);
            }
        }
    }

    fn lacks_outputs(&mut self, id: Id, http_status: u16, draft: Box<Draft>) {
        let answered = Answered {
            http_status,
            vendor_status: "completed".to_owned(),
            lacks_outputs: true,
            ..Answered::default()
        };
        if self.unsettled(id, answered) == Follows::TakeAsItIs {
            self.append(Some(id), None, draft);
        }
    }

    fn unsettled(&mut self, id: Id, answered: Answered) -> Follows {
        let now = self.now();
        self.shared.schedule.lock().unsettled(id, answered, now)
    }

    /// Begins to append an end. `list`: where a walk after an outage has found it.
    fn append(&mut self, id: Option<Id>, list: Option<ListKey>, draft: Box<Draft>) {
        if let Some(list) = &list {
            self.walks.appending(list);
        }
        let parts = Arc::clone(&self.shared.parts);
        self.in_flight.push(parts.append(id, list, draft));
    }

    /// Notes that the end of a task is in the log, or could not be appended.
    fn appended(
        &mut self,
        id: Option<Id>,
        product: &Product,
        list: Option<&ListKey>,
        appended: Option<Appended>,
    ) {
        if let Some(list) = list {
            let now = Instant::now();
            if self.walks.appended(list, appended.is_some(), now) {
                self.lists_seen_at = None;
            }
        }

        let now = self.now();
        let mut schedule = self.shared.schedule.lock();
        match (appended, id) {
            (Some(_), Some(id)) => schedule.settled(id),
            (None, Some(id)) => schedule.not_appended(id, now),
            (_, None) => {} // if it is not in the log, its list is read again
        }
        if appended.is_some_and(|appended| !appended.duplicate) {
            let recovered = &self.shared.parts.metrics.reconcile_recovered;
            recovered.with_label_values(&[shown(product)]).inc();
        }
    }

    /// Notes a page of a list.
    fn paged(&mut self, page: &Page, key: &Key, answer: &Answer) {
        let (outcome, list) = match answer {
            Answer::Body { status, body } => match List::read(*status, body) {
                Some(list) => (CheckOutcome::Listed, Some((list, *status))),
                None => (CheckOutcome::Unknown, None),
            },
            Answer::NotFound => (CheckOutcome::NotFound, None),
            Answer::Later { .. } => (CheckOutcome::Later, None),
            Answer::KeyRefused { .. } => (CheckOutcome::KeyRefused, None),
            Answer::Failed(_) => (CheckOutcome::Failed, None),
        };
        self.count(&page.product, outcome);
        // One that is too large is asked for with fewer tasks.
        if let Answer::Failed(problem) = answer
            && *problem != Problem::TooLarge
        {
            self.warn_of(problem);
        }

        let Some((list, status)) = list else {
            self.page_failed(page, answer);
            return;
        };
        self.listed(page, key, list, status);
        let missing = self.walks.end_if_done(page.walk);
        self.lists_seen_at = None;
        let mut schedule = self.shared.schedule.lock();
        for id in missing {
            schedule.not_listed(id);
        }
    }

    /// A page that cannot be read ends its walk, unless the vendor can be asked for it later.
    fn page_failed(&mut self, page: &Page, answer: &Answer) {
        let is_outage = self.walks.is_outage(page.walk);
        let is_asked_again = match answer {
            Answer::Later { .. } | Answer::Failed(Problem::TimedOut | Problem::Broken(_)) => {
                self.walks.try_again(page.walk)
            }
            Answer::Failed(Problem::TooLarge) => self.walks.ask_for_less(page.walk),
            // A trial decides whether the key is good.
            Answer::KeyRefused { .. } => self.walks.refused(page.walk),
            _ => false,
        };
        if is_asked_again {
            return;
        }
        if self.shared.parts.keys.named(&page.key).is_some() {
            self.warn_of_list(page, answer, is_outage);
            self.walks.leave_alone(&page.product, Instant::now());
            self.lists_seen_at = None;
        }
        let missing = self.walks.end(page.walk);
        let mut schedule = self.shared.schedule.lock();
        for id in missing {
            schedule.not_listed(id);
        }
    }

    fn warn_of_list(&self, page: &Page, answer: &Answer, is_outage: bool) {
        let cause = match answer {
            Answer::Body { .. } => "the answer is no list of tasks".to_owned(),
            other => other.word(),
        };
        let publishes = self.shared.settings.publishes_unknown_tasks;
        let instead = match (is_outage, publishes) {
            (false, _) => "its tasks are asked for one by one",
            (true, false) => "its tasks are asked for at their deadlines",
            (true, true) => {
                "tasks that are expected are asked for at their deadlines, and others are not found"
            }
        };
        tracing::warn!(
            product = page.product.as_str(),
            cause,
            "cannot read the vendor's list: {instead}"
        );
    }

    /// Takes what a walk looks for from a page.
    fn listed(&mut self, page: &Page, key: &Key, list: List, status: u16) {
        let created: Vec<i64> = list.tasks.iter().filter_map(created_at).collect();
        let tasks = list.tasks.iter();
        let shown = tasks.map(|listed| listed.task_id().clone()).collect();
        let Some(walk) = self.walks.note(page.walk, list.count, &created, shown) else {
            return;
        };
        let mut wanted = Vec::new();
        match &mut walk.aim {
            Aim::Due(missing) => {
                for listed in list.tasks {
                    if let Some(id) = missing.remove(listed.task_id()) {
                        wanted.push((Some(id), listed));
                    }
                }
            }
            Aim::Outage { since } => {
                let publishes = self.shared.settings.publishes_unknown_tasks;
                let schedule = self.shared.schedule.lock();
                for listed in list.tasks {
                    let id = schedule.id(&task_of(&page.product, listed.task_id()));
                    let is_new = created_at(&listed).is_some_and(|at| at >= *since);
                    if id.is_some() || publishes && is_new {
                        wanted.push((id, listed));
                    }
                }
            }
        }
        let is_due = matches!(walk.aim, Aim::Due(_));
        for (id, listed) in wanted {
            self.take_listed(page, key, id, listed, status, is_due);
        }
    }

    fn take_listed(
        &mut self,
        page: &Page,
        key: &Key,
        id: Option<Id>,
        listed: Listed,
        status: u16,
        is_due: bool,
    ) {
        let parts = &self.shared.parts;
        let task = task_of(&page.product, listed.task_id());
        let subject = parts.subject(&task);
        if let Some(id) = id.filter(|_| subject.is_none()) {
            self.shared.schedule.lock().settled(id); // it has ended meanwhile
            return;
        }

        let subject = subject.unwrap_or_default();
        let asked = subject.asked(&task, Some(&key.name), parts.store.clock().now());
        let understood = listed.understand(&asked);
        let list: ListKey = (Arc::clone(&page.key), page.product.clone());
        match (id, understood) {
            (Some(id), understood) if is_due => {
                self.understood(id, &task, status, understood, false);
            }
            (id, Understood::Ended(draft)) => self.append(id, Some(list), draft),
            (None, Understood::CompletedWithoutOutputs(draft)) => {
                self.unknown_lacks_outputs(list, draft);
            }
            // Before its deadline only its end is news.
            _ => {}
        }
    }

    /// Its outputs may be named a little later, and no schedule has it.
    fn unknown_lacks_outputs(&mut self, list: ListKey, draft: Box<Draft>) {
        if !self.walks.lacks_outputs(&list, Instant::now()) {
            self.append(None, Some(list), draft);
        } else if let Some(unlogged) = self.shared.parts.log.due("empty") {
            tracing::info!(
                product = list.1.as_str(),
                unlogged,
                "the vendor's list shows completed tasks without outputs that nobody expects: it is read again"
            );
        }
    }

    fn count(&self, product: &Product, outcome: CheckOutcome) {
        let checks = &self.shared.parts.metrics.reconcile_checks;
        checks
            .with_label_values(&[shown(product), outcome.as_str()])
            .inc();
    }
}

fn with_status(http_status: u16) -> Answered {
    Answered {
        http_status,
        ..Answered::default()
    }
}

fn created_at(listed: &Listed) -> Option<i64> {
    listed.created_at().map(|at| at.as_microsecond())
}

fn task_of(product: &Product, task_id: &TaskId) -> TaskKey {
    TaskKey {
        product: product.clone(),
        task_id: task_id.clone(),
    }
}

/// A product as metrics name it: those that the vendor documents, so that clients cannot make up more of them.
fn shown(product: &Product) -> &'static str {
    let known = NAMED_PRODUCTS
        .iter()
        .find(|known| **known == product.as_str());
    known.copied().unwrap_or(OTHER_PRODUCT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vendor::sample::PRODUCTS;

    #[test]
    fn metrics_name_the_products_that_the_vendor_documents() {
        for name in PRODUCTS {
            assert_eq!(shown(&Product::parse(name).unwrap()), name);
        }
        assert_eq!(shown(&Product::parse("made-up").unwrap()), "other");
    }
}
