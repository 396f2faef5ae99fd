//! Query parameters to the fields of a request. An unknown parameter is refused: a filter that is passed over by a spelling mistake
//! would show more than was asked for.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

/// What a parameter sets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    Text(&'static str),
    Flag(&'static str),
    Number(&'static str),
    /// A name of an enum, in lower case and without the prefix of its values, or as the enum has it.
    Word(&'static str, &'static str),
    /// Seconds, like `50s`.
    Seconds(&'static str),
    /// Repeated, in the filter.
    Each(&'static str),
    EachWord(&'static str, &'static str),
    /// `KEY:VALUE`, in the filter.
    Label,
}

/// A route's parameters by their names.
pub(super) type Fields = [(&'static str, Field)];

/// The fields that `query` sets, in the JSON of a request. The error is a sentence for people.
pub(super) fn request_of(query: &str, fields: &Fields) -> Result<Map<String, Value>, String> {
    let (mut request, mut filter) = (Map::new(), Map::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let Some((_, field)) = fields.iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = fields.iter().map(|(known, _)| *known).collect();
            return Err(format!(
                "no query parameter is named {name:?} here: use {}",
                known.join(", ")
            ));
        };

        let is_new = match field {
            Field::Each(key) => push(&mut filter, key, value.into()),
            Field::EachWord(key, prefix) => push(&mut filter, key, word(prefix, &value).into()),
            Field::Label => put_label(&mut filter, &value)?,
            Field::Text(key) => put(&mut request, key, value.into()),
            Field::Word(key, prefix) => put(&mut request, key, word(prefix, &value).into()),
            Field::Flag(key) => put(&mut request, key, flag(&name, &value)?),
            Field::Number(key) => put(&mut request, key, number(&name, &value)?),
            Field::Seconds(key) => put(&mut request, key, seconds(&name, &value)?),
        };
        if !is_new {
            return Err(format!("{name} is there twice: give it once"));
        }
    }

    if !filter.is_empty() {
        request.insert("filter".into(), filter.into());
    }
    Ok(request)
}

fn put(to: &mut Map<String, Value>, key: &str, value: Value) -> bool {
    to.insert(key.to_owned(), value).is_none()
}

fn push(to: &mut Map<String, Value>, key: &str, value: Value) -> bool {
    let values = to.entry(key).or_insert_with(|| json!([]));
    if let Value::Array(values) = values {
        values.push(value);
    }
    true
}

fn put_label(filter: &mut Map<String, Value>, pair: &str) -> Result<bool, String> {
    let (key, value) = pair
        .split_once(':')
        .ok_or_else(|| format!("label is {pair:?}: write it KEY:VALUE"))?;
    let labels = filter.entry("labels").or_insert_with(|| json!({}));
    let is_new = labels.get(key).is_none_or(|before| before == value);
    if !is_new {
        return Err(format!(
            "label has two values for {key:?}, and an event has one: give it once"
        ));
    }
    labels[key] = value.into();
    Ok(true)
}

fn word<'a>(prefix: &str, value: &'a str) -> Cow<'a, str> {
    let upper = value.to_ascii_uppercase().replace('-', "_");
    if upper.starts_with(prefix) {
        value.into()
    } else {
        format!("{prefix}{upper}").into()
    }
}

fn flag(name: &str, value: &str) -> Result<Value, String> {
    match value {
        "true" | "1" | "" => Ok(true.into()),
        "false" | "0" => Ok(false.into()),
        _ => Err(format!("{name} is {value:?}: use true or false")),
    }
}

fn number(name: &str, value: &str) -> Result<Value, String> {
    let number = value.parse::<i32>();
    number
        .map(Value::from)
        .map_err(|_| format!("{name} is {value:?}: use a number"))
}

fn seconds(name: &str, value: &str) -> Result<Value, String> {
    let number = value.strip_suffix('s').unwrap_or(value);
    let is_number = !number.is_empty()
        && number
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
    if !is_number {
        return Err(format!("{name} is {value:?}: use seconds, for example 50s"));
    }
    Ok(format!("{number}s").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &Fields = &[
        ("product", Field::Each("products")),
        ("status", Field::EachWord("statuses", "TASK_STATUS_")),
        ("label", Field::Label),
        ("order", Field::Word("order", "ORDER_")),
        ("wait", Field::Seconds("timeout")),
        ("page_size", Field::Number("page_size")),
        ("include_raw", Field::Flag("include_raw")),
        ("page_token", Field::Text("page_token")),
    ];

    #[test]
    fn parameters_set_the_fields_of_a_request() {
        let query = "product=veo&product=kling&status=completed&status=TASK_STATUS_FAILED&label=team:a%26b&label=ref:x:y\
                     &order=newest_first&wait=50&page_size=7&include_raw&page_token=a%2Bb";
        let request = request_of(query, FIELDS).unwrap();
        assert_eq!(
            Value::from(request),
            json!({
                "filter": {
                    "products": ["veo", "kling"],
                    "statuses": ["TASK_STATUS_COMPLETED", "TASK_STATUS_FAILED"],
                    "labels": {"team": "a&b", "ref": "x:y"},
                },
                "order": "ORDER_NEWEST_FIRST", "timeout": "50s", "page_size": 7,
                "include_raw": true, "page_token": "a+b",
            })
        );
        assert!(request_of("", FIELDS).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_name() {
        for (query, named) in [
            ("prodcut=veo", "\"prodcut\" here: use product, status"),
            ("label=team", "write it KEY:VALUE"),
            ("label=team:a&label=team:b", "two values"),
            ("wait=soon", "for example 50s"),
            ("wait=s", "for example 50s"),
            ("wait=1&wait=2", "wait is there twice"),
            ("page_size=many", "use a number"),
            ("include_raw=perhaps", "use true or false"),
        ] {
            let error = request_of(query, FIELDS).unwrap_err();
            assert!(error.contains(named), "{query}: {error}");
        }
    }
}
