//! An export: the pages of `ListEvents` as lines, each the JSON of one event.

use prost_reflect::{DynamicMessage, Value, prost::Message};

use super::{catalog::Rpc, json};

/// A page as lines.
#[derive(Debug)]
pub(crate) struct Page {
    pub lines: Vec<u8>,
    /// The request for the next page; `None` behind the last.
    pub next: Option<Vec<u8>>,
}

/// The lines of an encoded `ListEventsResponse`, the answer to `request`.
pub(crate) fn lines_of(request: &[u8], page: &[u8]) -> Result<Page, serde_json::Error> {
    let rpc = Rpc::named("ListEvents");
    let decoded = |descriptor, bytes| {
        DynamicMessage::decode(descriptor, bytes).map_err(serde::de::Error::custom)
    };
    let mut page = decoded(rpc.output.clone(), page)?;

    let mut lines = Vec::new();
    if let Some(Value::List(events)) = page.take_field_by_name("events") {
        for event in events.iter().filter_map(Value::as_message) {
            json::write(event, &mut lines)?;
            lines.push(b'\n');
        }
    }

    let token = page.take_field_by_name("next_page_token");
    let next = token.map(|token| {
        let mut request = decoded(rpc.input.clone(), request)?;
        request.set_field_by_name("page_token", token);
        Ok(request.encode_to_vec())
    });
    Ok(Page {
        lines,
        next: next.transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::v1;

    #[test]
    fn a_page_names_the_next_one_until_it_is_the_last() {
        let request = v1::ListEventsRequest {
            page_size: 2,
            ..Default::default()
        };
        let event = |id: &str| v1::Event {
            event_id: id.into(),
            ..Default::default()
        };
        let mut response = v1::ListEventsResponse {
            events: vec![event("a"), event("b")],
            next_page_token: "more".into(),
        };
        let page = lines_of(&request.encode_to_vec(), &response.encode_to_vec()).unwrap();
        let lines = String::from_utf8(page.lines).unwrap();
        assert_eq!(lines.lines().count(), 2);
        assert!(lines.ends_with('\n') && lines.contains(r#""eventId":"b""#));
        let next = v1::ListEventsRequest::decode(&page.next.unwrap()[..]).unwrap();
        assert_eq!(next.page_token, "more");
        assert_eq!(next.page_size, 2);

        response.next_page_token.clear();
        let last = lines_of(&[], &response.encode_to_vec()).unwrap();
        assert!(last.next.is_none());
    }
}
