//! The index is a cache: what a writer does when it does not fit the log, and what a start does.

use super::*;
use crate::store::{doubt, layout::TaskEvent};

/// What the index would name of a task with an event at a place.
fn named_at(task: &str, place: u64) -> (TaskId, Vec<TaskEvent>) {
    let event = TaskEvent {
        sequence: Sequence(place),
        event_id: uuid::Uuid::new_v4(),
        fingerprint: 99.into(),
        revision: 1,
        status: TaskStatus::Processing,
        product: Product::parse("veo").unwrap(),
        is_erased: false,
    };
    (TaskId::parse(task).unwrap(), vec![event])
}

#[test]
fn an_index_that_names_an_event_behind_the_log_is_built_again_before_a_place_is_taken_twice() {
    for (place, is_doubted) in [(2, false), (3, true), (9, true)] {
        let mut stepped = Stepped::new();
        stepped.receive("t1");
        stepped.receive("t2");
        stepped
            .store
            .index
            .tasks
            .change([named_at("t3", place)])
            .unwrap();
        let answer = stepped.appender.append(draft("t3", 0));
        stepped.step();
        let answer = answer.blocking_recv().unwrap();
        assert_eq!(
            matches!(&answer, Err(WriteError::Failed(problem)) if problem.contains("the log ends behind 2")),
            is_doubted,
            "{place}: {answer:?}"
        );
        let said = doubt::said_in(&stepped.store.path);
        assert_eq!(said.is_some(), is_doubted, "{place}: {said:?}");
        assert_eq!(
            matches!(stepped.store.health(), Health::Failed(_)),
            is_doubted
        );
        if !is_doubted {
            continue;
        }

        let mut stepped = stepped.reopen();
        stepped.receive("t3");
        let task_id = TaskId::parse("t3").unwrap();
        let events = stepped.store.index.tasks.get(&task_id).unwrap();
        let places: Vec<_> = events.iter().map(|event| event.sequence.0).collect();
        assert_eq!(places, [3], "as the log has it");
    }
}
