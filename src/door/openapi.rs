//! The description of the door as OpenAPI 3.1, made of the descriptors: names, types and comments are those of the protos.

use std::{collections::BTreeMap, sync::LazyLock};

use bytes::Bytes;
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::{
    catalog::{Rpc, comment},
    query::{Field, Fields},
    route::{EVENTS, STREAM, TASK},
};

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(document().to_string()));

/// The document, which is made once.
pub(crate) fn openapi() -> Bytes {
    DOCUMENT.clone()
}

fn document() -> Value {
    let (mut paths, mut schemas) = (Map::new(), Schemas::default());
    for rpc in Rpc::all().iter().filter(|rpc| rpc.is_unary) {
        let operation = operation(rpc, &mut schemas);
        paths.insert(format!("/v1/{}", rpc.name), json!({"post": operation}));
    }
    for (path, methods) in [
        ("/v1/tasks/{task_id}", json!({"get": task(&mut schemas)})),
        ("/v1/events", json!({"get": events(&mut schemas)})),
        ("/v1/events/stream", json!({"get": stream(&mut schemas)})),
        ("/v1/stream-tickets", json!({"post": ticket(&mut schemas)})),
    ] {
        paths.insert(path.to_owned(), methods);
    }

    schemas.0.insert("Problem".into(), problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "blobcast", "version": env!("CARGO_PKG_VERSION"),
            "description": "blobcast.v1 in JSON. docs/http-api.md has the rules.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.0,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn task(schemas: &mut Schemas) -> Value {
    let (get, wait) = (Rpc::named("GetTask"), Rpc::named("WaitTask"));
    let id = json!({
        "name": "task_id", "in": "path", "required": true, "schema": {"type": "string"},
        "description": "The vendor's id of the task.",
    });
    let mut task = read(wait, TASK, "GetTask, or with `wait` WaitTask.", schemas);
    if let Some(Value::Array(parameters)) = task.get_mut("parameters") {
        parameters.insert(0, id);
    }
    let either = json!({"anyOf": [schemas.of(&get.output), schemas.of(&wait.output)]});
    task["responses"] = responses("application/json", &either);
    task
}

fn events(schemas: &mut Schemas) -> Value {
    let list = Rpc::named("ListEvents");
    let mut events = read(list, EVENTS, "ListEvents.", schemas);
    events["responses"] = responses("application/json", &schemas.of(&list.output));
    let lines = json!({"type": "string", "description": "One event on each line, over all pages."});
    events["responses"]["200"]["content"]["application/x-ndjson"] = json!({"schema": lines});
    events
}

fn stream(schemas: &mut Schemas) -> Value {
    let subscribe = Rpc::named("Subscribe");
    schemas.of(&subscribe.output);
    let mut stream = read(
        subscribe,
        STREAM,
        "Subscribe, as server-sent events.",
        schemas,
    );
    let text = json!({
        "type": "string",
        "description": "Server-sent events: `event` is the name of the message's content, `id` its cursor, `data` its JSON.",
    });
    stream["responses"] = responses("text/event-stream", &text);
    stream["responses"]["204"] =
        json!({"description": "The stream was complete, and is not to be opened again."});
    if let Some(Value::Array(parameters)) = stream.get_mut("parameters") {
        parameters.push(json!({
            "name": "ticket", "in": "query", "schema": {"type": "string"},
            "description": "A ticket of /v1/stream-tickets, instead of all other parameters.",
        }));
        parameters.push(json!({
            "name": "Last-Event-ID", "in": "header", "schema": {"type": "string"},
            "description": "The last `id`, to resume behind it.",
        }));
    }
    stream
}

/// `POST` of an RPC.
fn operation(rpc: &Rpc, schemas: &mut Schemas) -> Value {
    json!({
        "operationId": rpc.name,
        "description": rpc.comment,
        "requestBody": {"content": {"application/json": {"schema": schemas.of(&rpc.input)}}},
        "responses": responses("application/json", &schemas.of(&rpc.output)),
    })
}

fn ticket(schemas: &mut Schemas) -> Value {
    let request = schemas.of(&Rpc::named("Subscribe").input);
    let issued = json!({
        "type": "object",
        "required": ["ticket", "expires_in"],
        "properties": {"ticket": {"type": "string"}, "expires_in": {"type": "string"}},
    });
    json!({
        "operationId": "StreamTicket",
        "description": "A ticket for /v1/events/stream?ticket=: good once, for 60 s, and for this request.",
        "requestBody": {"content": {"application/json": {"schema": request}}},
        "responses": responses("application/json", &issued),
    })
}

/// `GET` of a resource, without its answer.
fn read(rpc: &Rpc, fields: &Fields, does: &str, schemas: &mut Schemas) -> Value {
    let parameters: Vec<_> = fields
        .iter()
        .map(|(name, field)| parameter(rpc, name, field, schemas))
        .collect();
    json!({"description": format!("{does} {}", rpc.comment), "parameters": parameters})
}

fn parameter(rpc: &Rpc, name: &str, field: &Field, schemas: &mut Schemas) -> Value {
    let of = |message: &MessageDescriptor, key: &str| {
        let field = message.get_field_by_name(key);
        field.expect("a parameter names a field of its request")
    };
    let filter = |key: &str| match of(&rpc.input, "filter").kind() {
        Kind::Message(filter) => of(&filter, key),
        _ => unreachable!("a filter is a message"),
    };
    let (field, schema) = match *field {
        Field::Each(key) | Field::EachWord(key, _) => {
            let field = filter(key);
            let schema = schemas.of_field(&field);
            (field, schema)
        }
        Field::Label => {
            let pairs = json!({"type": "array", "items": {"type": "string", "pattern": ":"}});
            (filter("labels"), pairs)
        }
        Field::Text(key)
        | Field::Flag(key)
        | Field::Number(key)
        | Field::Word(key, _)
        | Field::Seconds(key) => {
            let field = of(&rpc.input, key);
            let schema = schemas.of_field(&field);
            (field, schema)
        }
    };
    let comment = comment(&field.parent_message().parent_file(), field.path());
    json!({"name": name, "in": "query", "description": comment, "schema": schema})
}

fn responses(content_type: &str, schema: &Value) -> Value {
    let problem = json!({"$ref": "#/components/schemas/Problem"});
    json!({
        "200": {"description": "The answer.", "content": {content_type: {"schema": schema}}},
        "default": {
            "description": "An error.",
            "content": {"application/problem+json": {"schema": problem}},
        },
    })
}

fn problem() -> Value {
    let text = json!({"type": "string"});
    let field = json!({
        "type": "object",
        "properties": {"field": text, "description": text},
    });
    json!({
        "type": "object",
        "description": "RFC 9457. docs/errors.md has the reasons.",
        "required": ["title", "status", "detail", "request_id"],
        "properties": {
            "title": text, "status": {"type": "integer"}, "detail": text, "request_id": text,
            "code": text, "reason": text,
            "metadata": {"type": "object", "additionalProperties": text},
            "violations": {"type": "array", "items": field},
        },
    })
}

/// The schemas that are referred to, by their names.
#[derive(Default)]
struct Schemas(BTreeMap<String, Value>);

impl Schemas {
    /// A reference to the schema of a message, which is added if it is new.
    fn of(&mut self, message: &MessageDescriptor) -> Value {
        if let Some(known) = well_known(message.full_name()) {
            return known;
        }

        let name = message.name();
        if !self.0.contains_key(name) {
            self.0.insert(name.to_owned(), Value::Null); // it may contain itself
            let mut properties = Map::new();
            for field in message.fields() {
                let mut schema = self.of_field(&field);
                schema["description"] = comment(&message.parent_file(), field.path()).into();
                properties.insert(field.json_name().to_owned(), schema);
            }
            let schema = json!({
                "type": "object",
                "description": comment(&message.parent_file(), message.path()),
                "properties": properties,
            });
            self.0.insert(name.to_owned(), schema);
        }
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    fn of_field(&mut self, field: &FieldDescriptor) -> Value {
        if field.is_map()
            && let Kind::Message(entry) = field.kind()
        {
            let value = self.of_kind(&entry.map_entry_value_field().kind());
            return json!({"type": "object", "additionalProperties": value});
        }
        let one = self.of_kind(&field.kind());
        if field.is_list() {
            json!({"type": "array", "items": one})
        } else {
            one
        }
    }

    fn of_kind(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Message(message) => self.of(message),
            Kind::Enum(of) => self.of_enum(of),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::Double | Kind::Float => json!({"type": "number"}),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                json!({"type": "integer", "format": "int32"})
            }
            Kind::Uint32 | Kind::Fixed32 => {
                json!({"type": "integer", "minimum": 0, "maximum": u32::MAX})
            }
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                json!({"type": "string", "pattern": "^-?[0-9]+$"})
            }
            Kind::Uint64 | Kind::Fixed64 => json!({"type": "string", "pattern": "^[0-9]+$"}),
            Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
            Kind::String => json!({"type": "string"}),
        }
    }

    fn of_enum(&mut self, of: &EnumDescriptor) -> Value {
        let values: Vec<_> = of.values().map(|value| value.name().to_owned()).collect();
        let schema = json!({
            "type": "string",
            "description": comment(&of.parent_file(), of.path()),
            "enum": values,
        });
        self.0.insert(of.name().to_owned(), schema);
        json!({"$ref": format!("#/components/schemas/{}", of.name())})
    }
}

/// The JSON of messages that have one of their own.
fn well_known(name: &str) -> Option<Value> {
    Some(match name {
        "google.protobuf.Timestamp" => json!({"type": "string", "format": "date-time"}),
        "google.protobuf.Duration" => {
            json!({"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"})
        }
        "google.protobuf.Struct" => json!({"type": "object"}),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_and_everything_it_refers_to_is_described() {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        for rpc in Rpc::all() {
            let path = format!("/v1/{}", rpc.name);
            assert_eq!(paths.contains_key(&path), rpc.is_unary, "{path}");
        }
        let wait = &paths["/v1/tasks/{task_id}"]["get"];
        assert_eq!(wait["parameters"][0]["name"], "task_id");

        let schemas = document["components"]["schemas"].as_object().unwrap();
        let text = document.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas[name].is_object(), "{name}");
        }
        let event = &schemas["Event"]["properties"];
        assert_eq!(event["seed"]["type"], "string");
        assert_eq!(event["labels"]["additionalProperties"]["type"], "string");
        assert_eq!(event["receivedAt"]["format"], "date-time");
        assert!(!event["taskId"]["description"].as_str().unwrap().is_empty());
    }
}
