//! How a node hands its commands to the one that writes, and gets their outcomes: messages between nodes whose versions may
//! differ. Pure.
//!
//! A message is read by the rules of protobuf: fields that a later version adds are passed over, and those that an earlier one does
//! not send have their defaults. A command or an outcome of an unknown kind is refused as a whole: then the node decides itself.

mod messages;

use bytes::Bytes;
use messages::{
    AppendedMessage, Became, CommandMessage, DraftMessage, EndMessage, ErasedMessage,
    ErasureMessage, ErrorMessage, ExpectedMessage, ExpectedsMessage, ExpectingMessage,
    GroupMessage, Kind, NothingMessage, NumbersMessage, OverdueMessage, ReleaseMessage,
    ReleasedMessage, ResultMessage, ResultsMessage, TaskMessage,
};
use prost::Message;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    event::{Fingerprint, Product, Sequence, TaskId, TaskStatus},
    store::{
        Appended, Draft, Expectation, Expected, NewQuarantined, Whose,
        expectation::Kept,
        layout::{encode_quarantined, parse_quarantined},
        writer::{
            command::{Command, Erased, Erasure, Expecting, Late, Outcome},
            error::WriteError,
        },
    },
};

/// Why what another node has sent cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what another node has sent cannot be used: {0}")]
pub struct HandoverError(pub &'static str);

const UNKNOWN: HandoverError = HandoverError("it is of a kind that this version does not know");
const MALFORMED: HandoverError = HandoverError("it is malformed");

/// The commands of a group. What only concerns its own node is not handed over.
pub(super) fn encode_commands(commands: &[Command]) -> Bytes {
    let commands = commands
        .iter()
        .map(|command| CommandMessage {
            kind: kind_of(command),
        })
        .collect();
    GroupMessage { commands }.encode_to_vec().into()
}

fn kind_of(command: &Command) -> Option<Kind> {
    Some(match command {
        Command::Append(draft, _) => Kind::Append(draft_message(draft)),
        Command::Release(number, drafts, _) => Kind::Release(ReleaseMessage {
            number: *number,
            drafts: drafts.iter().map(draft_message).collect(),
        }),
        Command::Quarantine(new, _) => {
            Kind::Quarantine(encode_quarantined(&new.header, &new.body).into())
        }
        Command::Discard(numbers, _) => Kind::Discard(NumbersMessage {
            numbers: numbers.clone(),
        }),
        Command::Erase(erasure, _) => Kind::Erase(ErasureMessage {
            task: Some(task_message(&erasure.product, &erasure.task_id)),
            places: erasure.places.iter().map(|place| place.0).collect(),
        }),
        Command::Expect(expecting, _) => Kind::Expect(ExpectingMessage {
            expectations: expecting.expectations.iter().map(kept).collect(),
            is_limited: expecting.is_limited,
        }),
        Command::EndExpectations(tasks, whose, _) => {
            let (of_anybody, client) = match whose {
                Whose::Anybody => (true, None),
                Whose::Client(client) => (false, client.clone()),
            };
            let tasks = tasks.iter();
            Kind::EndExpectations(EndMessage {
                tasks: tasks
                    .map(|(product, id)| task_message(product, id))
                    .collect(),
                of_anybody,
                client,
            })
        }
        Command::Overdue(late, _) => Kind::Overdue(OverdueMessage {
            number: late.number,
            draft: Some(draft_message(&late.draft)),
            gives_up: late.gives_up,
        }),
        Command::Probe(_) => Kind::Probe(NothingMessage {}),
        Command::Import(..) | Command::Backup(_) | Command::Retain | Command::Stop => return None,
    })
}

fn kept(expectation: &Expectation) -> Bytes {
    Bytes::copy_from_slice(Kept::new(expectation).bytes())
}

fn task_message(product: &Product, task_id: &TaskId) -> TaskMessage {
    TaskMessage {
        product: product.as_str().to_owned(),
        task_id: task_id.as_str().to_owned(),
    }
}

fn draft_message(draft: &Draft) -> DraftMessage {
    let mut fingerprint = Vec::with_capacity(Fingerprint::BYTES);
    draft.fingerprint.put(&mut fingerprint);
    DraftMessage {
        event_id: id_bytes(draft.event_id),
        product: draft.product.as_str().to_owned(),
        task_id: draft.task_id.as_str().to_owned(),
        status: draft.status as u32,
        fingerprint: fingerprint.into(),
        received_at_micros: draft.received_at_micros,
        labels: draft.labels.clone(),
        event: draft.event.clone(),
        raw: draft.raw.clone(),
        is_answer: draft.is_answer,
        lacks_output: draft.lacks_output,
        conceals_duplicates: draft.conceals_duplicates,
    }
}

fn id_bytes(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

/// The commands that another node has handed over. Nobody waits for their replies here.
pub(super) fn parse_commands(bytes: &Bytes) -> Result<Vec<Command>, HandoverError> {
    let group = GroupMessage::decode(bytes.clone()).map_err(|_| MALFORMED)?;
    group.commands.into_iter().map(command_of).collect()
}

fn command_of(message: CommandMessage) -> Result<Command, HandoverError> {
    Ok(match message.kind.ok_or(UNKNOWN)? {
        Kind::Append(draft) => Command::Append(Box::new(draft_of(draft)?), oneshot::channel().0),
        Kind::Release(ReleaseMessage { number, drafts }) => {
            let drafts = drafts.into_iter().map(draft_of);
            Command::Release(
                number,
                drafts.collect::<Result<_, _>>()?,
                oneshot::channel().0,
            )
        }
        Kind::Quarantine(value) => {
            let (header, body) = parse_quarantined(&value).map_err(|_| MALFORMED)?;
            let body = value.slice_ref(body);
            Command::Quarantine(NewQuarantined { header, body }, oneshot::channel().0)
        }
        Kind::Discard(NumbersMessage { numbers }) => {
            Command::Discard(numbers, oneshot::channel().0)
        }
        Kind::Erase(ErasureMessage { task, places }) => {
            let (product, task_id) = task_of(&task.ok_or(MALFORMED)?)?;
            let erasure = Erasure {
                task_id,
                product,
                places: places.into_iter().map(Sequence).collect(),
            };
            Command::Erase(erasure, oneshot::channel().0)
        }
        Kind::Expect(ExpectingMessage {
            expectations,
            is_limited,
        }) => {
            let expectations = expectations.iter().map(|bytes| expectation_of(0, bytes));
            let expecting = Expecting {
                expectations: expectations.collect::<Result<_, _>>()?,
                is_limited,
            };
            Command::Expect(expecting, oneshot::channel().0)
        }
        Kind::EndExpectations(EndMessage {
            tasks,
            of_anybody,
            client,
        }) => {
            let tasks = tasks.iter().map(task_of);
            let tasks = tasks.collect::<Result<_, _>>()?;
            let whose = if of_anybody {
                Whose::Anybody
            } else {
                Whose::Client(client)
            };
            Command::EndExpectations(tasks, whose, oneshot::channel().0)
        }
        Kind::Overdue(OverdueMessage {
            number,
            draft,
            gives_up,
        }) => {
            let late = Late {
                number,
                draft: draft_of(draft.ok_or(MALFORMED)?)?,
                gives_up,
            };
            Command::Overdue(Box::new(late), oneshot::channel().0)
        }
        Kind::Probe(NothingMessage {}) => Command::Probe(oneshot::channel().0),
    })
}

fn expectation_of(number: u64, bytes: &Bytes) -> Result<Expectation, HandoverError> {
    let kept = Kept::parse(bytes).map_err(|_| MALFORMED)?;
    Ok(kept.expectation(number))
}

fn task_of(message: &TaskMessage) -> Result<(Product, TaskId), HandoverError> {
    let product = Product::parse(&message.product).map_err(|_| MALFORMED)?;
    let task_id = TaskId::parse(&message.task_id).map_err(|_| MALFORMED)?;
    Ok((product, task_id))
}

fn draft_of(message: DraftMessage) -> Result<Draft, HandoverError> {
    let mut fingerprint = message.fingerprint;
    let fingerprint = Fingerprint::take(&mut fingerprint)
        .filter(|_| fingerprint.is_empty())
        .ok_or(MALFORMED)?;
    let status = u8::try_from(message.status).ok();
    Ok(Draft {
        event_id: id_of(&message.event_id)?,
        product: Product::parse(&message.product).map_err(|_| MALFORMED)?,
        task_id: TaskId::parse(&message.task_id).map_err(|_| MALFORMED)?,
        status: status.and_then(TaskStatus::from_number).ok_or(UNKNOWN)?,
        fingerprint,
        received_at_micros: message.received_at_micros,
        labels: message.labels,
        event: message.event,
        raw: message.raw,
        is_answer: message.is_answer,
        lacks_output: message.lacks_output,
        conceals_duplicates: message.conceals_duplicates,
        origin: None,
    })
}

fn id_of(bytes: &Bytes) -> Result<Uuid, HandoverError> {
    Uuid::from_slice(bytes).map_err(|_| MALFORMED)
}

/// What became of a group's commands.
pub(super) fn encode_results(outcomes: &[Result<Outcome, WriteError>]) -> Bytes {
    let results = outcomes
        .iter()
        .map(|outcome| ResultMessage {
            became: Some(match outcome {
                Ok(outcome) => became(outcome),
                Err(error) => Became::Error(error_message(error)),
            }),
        })
        .collect();
    ResultsMessage { results }.encode_to_vec().into()
}

fn became(outcome: &Outcome) -> Became {
    match outcome {
        Outcome::Append(appended) => Became::Append(appended_message(appended)),
        Outcome::Release(appended) => Became::Release(ReleasedMessage {
            appended: appended.iter().map(appended_message).collect(),
        }),
        Outcome::Quarantine(number) => Became::Quarantine(*number),
        Outcome::Discard(count) => Became::Discard(*count),
        Outcome::Erase(Erased { events, bytes }) => Became::Erase(ErasedMessage {
            events: *events,
            bytes: *bytes,
        }),
        Outcome::Expect(expected) => Became::Expect(ExpectedsMessage {
            expected: expected.iter().map(expected_message).collect(),
        }),
        Outcome::EndExpectations(count) => Became::EndExpectations(*count),
        Outcome::Overdue(appended) => Became::Overdue(ReleasedMessage {
            appended: appended.iter().map(appended_message).collect(),
        }),
        Outcome::Probe => Became::Probe(NothingMessage {}),
    }
}

fn appended_message(appended: &Appended) -> AppendedMessage {
    AppendedMessage {
        event_id: id_bytes(appended.event_id),
        sequence: appended.sequence.0,
        duplicate: appended.duplicate,
    }
}

fn expected_message(expected: &Expected) -> ExpectedMessage {
    match expected {
        Expected::Over(place) => ExpectedMessage {
            over: Some(place.0),
            number: 0,
            expectation: Bytes::new(),
        },
        Expected::Open(expectation) => ExpectedMessage {
            over: None,
            number: expectation.number,
            expectation: kept(expectation),
        },
    }
}

/// What became of the commands that were handed over, in order.
pub(super) fn parse_results(
    bytes: &Bytes,
) -> Result<Vec<Result<Outcome, WriteError>>, HandoverError> {
    let message = ResultsMessage::decode(bytes.clone()).map_err(|_| MALFORMED)?;
    let results = message.results.into_iter();
    results
        .map(|result| outcome_of(result.became.ok_or(UNKNOWN)?))
        .collect()
}

fn outcome_of(became: Became) -> Result<Result<Outcome, WriteError>, HandoverError> {
    Ok(Ok(match became {
        Became::Append(appended) => Outcome::Append(appended_of(&appended)?),
        Became::Release(ReleasedMessage { appended }) => {
            let appended = appended.iter().map(appended_of);
            Outcome::Release(appended.collect::<Result<_, _>>()?)
        }
        Became::Quarantine(number) => Outcome::Quarantine(number),
        Became::Discard(count) => Outcome::Discard(count),
        Became::Erase(ErasedMessage { events, bytes }) => Outcome::Erase(Erased { events, bytes }),
        Became::Expect(ExpectedsMessage { expected }) => {
            let expected = expected.iter().map(expected_of);
            Outcome::Expect(expected.collect::<Result<_, _>>()?)
        }
        Became::EndExpectations(count) => Outcome::EndExpectations(count),
        Became::Overdue(ReleasedMessage { appended }) => {
            Outcome::Overdue(appended.first().map(appended_of).transpose()?)
        }
        Became::Probe(NothingMessage {}) => Outcome::Probe,
        Became::Error(error) => return error_of(error).map(Err),
    }))
}

fn appended_of(message: &AppendedMessage) -> Result<Appended, HandoverError> {
    Ok(Appended {
        event_id: id_of(&message.event_id)?,
        sequence: Sequence(message.sequence),
        duplicate: message.duplicate,
    })
}

fn expected_of(message: &ExpectedMessage) -> Result<Expected, HandoverError> {
    match message.over {
        Some(place) => Ok(Expected::Over(Sequence(place))),
        None => expectation_of(message.number, &message.expectation).map(Expected::Open),
    }
}

fn error_message(error: &WriteError) -> ErrorMessage {
    let (kind, text, numbers) = match error {
        WriteError::Overloaded => (1, "", vec![]),
        WriteError::DiskLow {
            free_bytes,
            needed_bytes,
        } => (2, "", vec![*free_bytes, *needed_bytes]),
        WriteError::Failed(problem) => (3, problem.as_str(), vec![]),
        WriteError::Corrupt(problem) => (4, problem.as_str(), vec![]),
        WriteError::Closed => (5, "", vec![]),
        WriteError::NotInQuarantine => (6, "", vec![]),
        WriteError::TooManyEvents => (7, "", vec![]),
        WriteError::TooManyExpectations { limit, open } => {
            (8, "", vec![*limit as u64, *open as u64])
        }
        WriteError::Away(problem) => (9, problem.as_str(), vec![]),
        WriteError::TooLarge => (10, "", vec![]),
    };
    ErrorMessage {
        kind,
        text: text.to_owned(),
        numbers,
    }
}

fn error_of(message: ErrorMessage) -> Result<WriteError, HandoverError> {
    let number = |at: usize| message.numbers.get(at).copied().ok_or(MALFORMED);
    let count = |at: usize| usize::try_from(number(at)?).map_err(|_| MALFORMED);
    Ok(match message.kind {
        1 => WriteError::Overloaded,
        2 => WriteError::DiskLow {
            free_bytes: number(0)?,
            needed_bytes: number(1)?,
        },
        3 => WriteError::Failed(message.text),
        4 => WriteError::Corrupt(message.text),
        5 => WriteError::Closed,
        6 => WriteError::NotInQuarantine,
        7 => WriteError::TooManyEvents,
        8 => WriteError::TooManyExpectations {
            limit: count(0)?,
            open: count(1)?,
        },
        9 => WriteError::Away(message.text),
        10 => WriteError::TooLarge,
        _ => return Err(UNKNOWN),
    })
}

#[cfg(test)]
mod tests;
