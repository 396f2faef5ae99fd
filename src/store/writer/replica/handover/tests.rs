use proptest::{collection, option, prelude::*};

use super::*;
use crate::store::QuarantineHeader;

fn any_draft() -> impl Strategy<Value = Draft> {
    let texts = ("[a-z0-9][a-z0-9-]{0,20}", "[a-zA-Z0-9äö]{1,40}");
    let labels = collection::btree_map("\\PC{1,9}", "\\PC{0,9}", 0..4);
    (
        any::<(u128, u128, i64, Vec<u8>, Vec<u8>)>(),
        texts,
        0..6u8,
        labels,
        any::<[bool; 3]>(),
    )
        .prop_map(
            |((id, fingerprint, at, event, raw), texts, status, labels, flags)| Draft {
                event_id: Uuid::from_u128(id),
                product: Product::parse(&texts.0).unwrap(),
                task_id: TaskId::parse(&texts.1).unwrap(),
                status: TaskStatus::from_number(status).unwrap(),
                fingerprint: fingerprint.into(),
                received_at_micros: at,
                labels,
                event: event.into(),
                raw: raw.into(),
                is_answer: flags[0],
                lacks_output: flags[1],
                conceals_duplicates: flags[2],
                origin: None,
            },
        )
}

fn any_expectation() -> impl Strategy<Value = Expectation> {
    let names = (option::of("\\PC{0,9}"), option::of("\\PC{0,9}"));
    (any::<(u64, i64, i64, bool)>(), any_draft(), names).prop_map(|(numbers, of, names)| {
        Expectation {
            number: numbers.0,
            product: of.product,
            task_id: of.task_id,
            labels: of.labels,
            client: names.0,
            vendor_key: names.1,
            expected_at_micros: numbers.1,
            expected_by_micros: numbers.2,
            is_overdue: numbers.3,
        }
    })
}

fn any_command() -> impl Strategy<Value = Command> {
    let task = || any_draft().prop_map(|draft| (draft.product, draft.task_id));
    let whose = prop_oneof![
        Just(Whose::Anybody),
        option::of("\\PC{0,9}").prop_map(Whose::Client)
    ];
    let header = any::<(String, i64, u8)>().prop_map(|(text, at, verification)| QuarantineHeader {
        reason: text.clone(),
        target: text.clone(),
        credential: text,
        received_at_micros: at,
        verification,
        ..QuarantineHeader::default()
    });
    prop_oneof![
        any_draft().prop_map(|draft| Command::Append(Box::new(draft), oneshot::channel().0)),
        (any::<u64>(), collection::vec(any_draft(), 0..3)).prop_map(|(number, drafts)| {
            Command::Release(number, drafts, oneshot::channel().0)
        }),
        (header, any::<Vec<u8>>()).prop_map(|(header, body)| {
            let body = body.into();
            Command::Quarantine(NewQuarantined { header, body }, oneshot::channel().0)
        }),
        any::<Vec<u64>>().prop_map(|numbers| Command::Discard(numbers, oneshot::channel().0)),
        (task(), any::<Vec<u64>>()).prop_map(|((product, task_id), places)| {
            let places = places.into_iter().map(Sequence).collect();
            let erasure = Erasure {
                task_id,
                product,
                places,
            };
            Command::Erase(erasure, oneshot::channel().0)
        }),
        (collection::vec(any_expectation(), 0..3), any::<bool>()).prop_map(
            |(expectations, is_limited)| {
                let expecting = Expecting {
                    expectations,
                    is_limited,
                };
                Command::Expect(expecting, oneshot::channel().0)
            }
        ),
        (collection::vec(task(), 0..3), whose).prop_map(|(tasks, whose)| {
            Command::EndExpectations(tasks, whose, oneshot::channel().0)
        }),
        (any::<u64>(), any_draft(), any::<bool>()).prop_map(|(number, draft, gives_up)| {
            let late = Late {
                number,
                draft,
                gives_up,
            };
            Command::Overdue(Box::new(late), oneshot::channel().0)
        }),
        Just(()).prop_map(|()| Command::Probe(oneshot::channel().0)),
    ]
}

fn any_appended() -> impl Strategy<Value = Appended> {
    any::<(u128, u64, bool)>().prop_map(|(id, place, duplicate)| Appended {
        event_id: Uuid::from_u128(id),
        sequence: Sequence(place),
        duplicate,
    })
}

fn any_outcome() -> impl Strategy<Value = Result<Outcome, WriteError>> {
    let appended = || collection::vec(any_appended(), 0..3);
    let expected = prop_oneof![
        any::<u64>().prop_map(|place| Expected::Over(Sequence(place))),
        any_expectation().prop_map(Expected::Open),
    ];
    let outcome = prop_oneof![
        any_appended().prop_map(Outcome::Append),
        appended().prop_map(Outcome::Release),
        any::<u64>().prop_map(Outcome::Quarantine),
        any::<u32>().prop_map(Outcome::Discard),
        any::<(u32, u64)>().prop_map(|(events, bytes)| Outcome::Erase(Erased { events, bytes })),
        collection::vec(expected, 0..3).prop_map(Outcome::Expect),
        any::<u32>().prop_map(Outcome::EndExpectations),
        option::of(any_appended()).prop_map(Outcome::Overdue),
        Just(Outcome::Probe),
    ];
    let error = prop_oneof![
        Just(WriteError::Overloaded),
        any::<(u64, u64)>().prop_map(|(free_bytes, needed_bytes)| WriteError::DiskLow {
            free_bytes,
            needed_bytes
        }),
        any::<String>().prop_map(WriteError::Failed),
        any::<String>().prop_map(WriteError::Corrupt),
        Just(WriteError::Closed),
        Just(WriteError::NotInQuarantine),
        Just(WriteError::TooManyEvents),
        any::<(u32, u32)>().prop_map(|(limit, open)| WriteError::TooManyExpectations {
            limit: limit as usize,
            open: open as usize
        }),
    ];
    prop_oneof![3 => outcome.prop_map(Ok), 1 => error.prop_map(Err)]
}

proptest! {
    #[test]
    fn commands_that_are_handed_over_are_those_that_come_there(commands in collection::vec(any_command(), 0..5)) {
        let bytes = encode_commands(&commands);
        let there = parse_commands(&bytes).unwrap();
        prop_assert_eq!(there.len(), commands.len());
        for (there, here) in there.iter().zip(&commands) {
            prop_assert_eq!((there.tasks(), there.bytes()), (here.tasks(), here.bytes()));
            prop_assert!(kind_of(here).is_some());
            prop_assert_eq!(kind_of(there), kind_of(here));
        }
    }

    #[test]
    fn results_come_back_as_they_were(outcomes in collection::vec(any_outcome(), 0..5)) {
        prop_assert_eq!(parse_results(&encode_results(&outcomes)), Ok(outcomes));
    }

    #[test]
    fn any_bytes_are_commands_or_refused(
        bytes: Vec<u8>, commands in collection::vec(any_command(), 1..3), at: prop::sample::Index, byte: u8,
    ) {
        let bytes = Bytes::from(bytes);
        let _ = (parse_commands(&bytes).is_ok(), parse_results(&bytes).is_ok());
        let mut damaged = encode_commands(&commands).to_vec();
        if !damaged.is_empty() {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        let _ = parse_commands(&damaged.into()).is_ok();
    }
}

#[test]
fn a_command_or_an_error_that_only_a_later_version_knows_is_refused() {
    let commands = vec![CommandMessage { kind: None }];
    let bytes = GroupMessage { commands }.encode_to_vec().into();
    assert_eq!(parse_commands(&bytes).err(), Some(UNKNOWN));

    let error = ErrorMessage {
        kind: 99,
        ..ErrorMessage::default()
    };
    let became = Some(Became::Error(error));
    let results = vec![ResultMessage { became }, ResultMessage { became: None }];
    for result in results {
        let results = vec![result];
        let bytes = ResultsMessage { results }.encode_to_vec().into();
        assert_eq!(parse_results(&bytes).err(), Some(UNKNOWN));
    }
}
