//! Rule 1: the id.

use super::*;

#[test]
fn the_first_id_that_is_not_empty_is_taken() {
    let all = r#""id": "d", "task_id": "c", "task_uuid": "b", "generation_id": "#;
    assert_eq!(task_id(&format!(r#"{all} "a""#)), Ok("a".into()));
    assert_eq!(task_id(&format!(r#"{all} """#)), Ok("b".into()));
    assert_eq!(task_id(&format!(r#"{all} null"#)), Ok("b".into()));
    assert_eq!(task_id(r#""id": "d", "task_id": "c""#), Ok("c".into()));
    assert_eq!(task_id(r#""id": "d""#), Ok("d".into()));
}

#[test]
fn an_id_need_not_be_a_uuid() {
    assert_eq!(task_id(r#""id": "фото/1:ü_?""#), Ok("фото/1:ü_?".into()));
}

#[test]
fn a_number_as_id_is_taken_as_its_digits() {
    for digits in [
        "0",
        "42",
        "18446744073709551616",
        "12345678901234567890123456789012345678901234567890",
    ] {
        assert_eq!(task_id(&format!(r#""id": {digits}"#)), Ok(digits.into()));
    }
    assert_eq!(
        task_id(&format!(r#""id": {}"#, "1".repeat(129))),
        Err(Unreadable::BadTaskId)
    );
}

#[test]
fn an_id_that_is_neither_text_nor_number_is_none() {
    for value in [
        "{}",
        "[]",
        "true",
        "false",
        "null",
        "\"\"",
        "{\"id\": \"t\"}",
    ] {
        assert_eq!(
            task_id(&format!(r#""id": {value}"#)),
            Err(Unreadable::NoTaskId),
            "{value}"
        );
        assert_eq!(
            task_id(&format!(r#""generation_id": {value}, "id": "t""#)),
            Ok("t".into()),
            "{value}"
        );
    }
    assert_eq!(refusal("{}"), Unreadable::NoTaskId);
}

#[test]
fn an_id_with_spaces_or_of_the_wrong_length_is_bad_even_beside_a_good_one() {
    for value in [" ", "a b", "a\\n", "\\u0000", "\\u00a0", &"x".repeat(129)] {
        assert_eq!(
            task_id(&format!(r#""generation_id": "{value}", "id": "t""#)),
            Err(Unreadable::BadTaskId)
        );
    }
    assert_eq!(
        task_id(&format!(r#""id": "{}""#, "ü".repeat(128))),
        Ok("ü".repeat(128))
    );
}
