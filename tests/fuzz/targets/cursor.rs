//! The opaque texts that clients hand back: cursors and page tokens. Each is read as exactly what it was given out for, and
//! no other text is read as the same.
//!
//! Input: the text; its first bytes are also the numbers of a cursor, and where its text is changed.

use blobcast::{
    event::{Cursor, Epoch, Sequence},
    fuzzing::{page_place, page_token},
};

/// What the tokens of the corpus are bound to.
const BINDING: u64 = 0x0123_4567_89ab_cdef;

pub(crate) fn run(input: &[u8]) {
    if let Ok(text) = str::from_utf8(input) {
        if let Ok(cursor) = Cursor::parse(text) {
            assert_eq!(cursor.to_string(), text);
        }
        match page_place(text, BINDING, u64::MAX) {
            Ok(Some(place)) => assert_eq!(page_token(place, BINDING), text),
            Ok(None) => assert_eq!(text, ""),
            Err(malformed) => assert_eq!(malformed.field, "page_token"),
        }
    }
    if let Some((numbers, change)) = input.split_first_chunk() {
        let [epoch, sequence, binding] = read_numbers(numbers);
        check_cursor(
            Cursor {
                epoch: Epoch(epoch),
                sequence: Sequence(sequence),
            },
            change,
        );
        check_token(sequence, binding, change);
    }
}

fn read_numbers(bytes: &[u8; 24]) -> [u64; 3] {
    let number = |at: usize| {
        bytes[at..at + 8]
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    [number(0), number(8), number(16)]
}

fn check_cursor(cursor: Cursor, change: &[u8]) {
    let text = cursor.to_string();
    assert_eq!(Cursor::parse(&text), Ok(cursor));
    if let Some(changed) = changed(&text, change) {
        assert_ne!(
            Cursor::parse(&changed),
            Ok(cursor),
            "{changed} is not {text}"
        );
    }
}

fn check_token(place: u64, binding: u64, change: &[u8]) {
    let text = page_token(place, binding);
    assert_eq!(page_place(&text, binding, place), Ok(Some(place)));
    assert!(
        page_place(&text, !binding, place).is_err(),
        "it belongs to another request"
    );
    assert!(
        place == 0 || page_place(&text, binding, place - 1).is_err(),
        "it names a place beyond the last"
    );
    if let Some(changed) = changed(&text, change) {
        assert_ne!(
            page_place(&changed, binding, u64::MAX),
            Ok(Some(place)),
            "{changed} is not {text}"
        );
    }
}

/// The text with something else in it; `None` if that is the same, or no text.
fn changed(text: &str, change: &[u8]) -> Option<String> {
    let [at, removed, inserted @ ..] = change else {
        return None;
    };
    let at = usize::from(*at) % (text.len() + 1);
    let end = text.len().min(at + usize::from(*removed) % 4);
    let bytes = [&text.as_bytes()[..at], inserted, &text.as_bytes()[end..]].concat();
    String::from_utf8(bytes)
        .ok()
        .filter(|changed| changed != text)
}
