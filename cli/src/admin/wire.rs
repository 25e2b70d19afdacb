//! Wire messages as JSON, field by field under the names of the `.proto` files: what a program reads
//! here is what it would read over gRPC.
//!
//! Enum values are short and in lower case (`RUN_STATE_RUNNING` is "running"; `..._UNSPECIFIED` is
//! null), bytes are hexadecimal. Absent fields and numbers that are not finite are null.

use std::{fmt::Write as _, sync::LazyLock};

use ballast_proto::v1::FILE_DESCRIPTOR_SET;
use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey,
    ReflectMessage as _,
};
use serde_json::{Map, Value, json};

/// End of the name of an enum's value that says nothing.
const UNSPECIFIED: &str = "UNSPECIFIED";

static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the build made these descriptors")
});

/// A message as one JSON object.
pub(crate) fn to_json<M: Message + Name>(message: &M) -> Value {
    let name = M::full_name();
    let descriptor = DESCRIPTORS.get_message_by_name(&name).expect("the build described it");
    let encoded = message.encode_to_vec();
    let decoded = DynamicMessage::decode(descriptor, encoded.as_slice());
    object(&decoded.expect("it was encoded by the same description"))
}

/// Name of an enum's value for people: `MODE_EXPLORE` without `MODE_` is "explore".
pub(crate) fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase().replace('_', " ")
}

fn object(message: &DynamicMessage) -> Value {
    let descriptor = message.descriptor();
    let fields = descriptor.fields().map(|field| {
        let absent = field.supports_presence() && !message.has_field(&field);
        let value = if absent { Value::Null } else { value(&field, &message.get_field(&field)) };
        (field.name().to_owned(), value)
    });
    Value::Object(fields.collect())
}

fn value(field: &FieldDescriptor, any: &prost_reflect::Value) -> Value {
    use prost_reflect::Value as Any;
    match any {
        Any::Bool(value) => json!(value),
        Any::I32(value) => json!(value),
        Any::I64(value) => json!(value),
        Any::U32(value) => json!(value),
        Any::U64(value) => json!(value),
        Any::F32(value) => json!(value),
        Any::F64(value) => json!(value),
        Any::String(value) => json!(value),
        Any::Bytes(value) => json!(hex(value)),
        Any::EnumNumber(number) => match field.kind() {
            Kind::Enum(descriptor) => enum_value(&descriptor, *number),
            _ => json!(number),
        },
        Any::Message(message) => object(message),
        Any::List(items) => items.iter().map(|item| value(field, item)).collect(),
        Any::Map(entries) => {
            let Kind::Message(entry) = field.kind() else { return Value::Null };
            let of_value = entry.map_entry_value_field();
            let mut entries: Vec<(String, Value)> =
                entries.iter().map(|(key, item)| (key_text(key), value(&of_value, item))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(Map::from_iter(entries))
        }
    }
}

/// Every enum's values begin alike, and 0 ends in `UNSPECIFIED`. A number that is not known here
/// stays a number.
fn enum_value(descriptor: &EnumDescriptor, number: i32) -> Value {
    let zero = descriptor.default_value();
    let prefix = zero.name().trim_end_matches(UNSPECIFIED);
    match descriptor.get_value(number) {
        Some(value) if value.number() == 0 => Value::Null,
        Some(value) => json!(value.name().trim_start_matches(prefix).to_lowercase()),
        None => json!(number),
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use ballast_proto::v1::{
        EpisodeCounts, RunState, ShowTrajectoryResponse, Span, StatusResponse, Trajectory,
    };

    use super::*;

    #[test]
    fn names_are_those_of_the_wire_and_absence_is_null() {
        let status = StatusResponse {
            state: RunState::Running.into(),
            episodes: Some(EpisodeCounts {
                dispatched: u64::MAX,
                cancelled_by_reason: [("b".to_owned(), 2), ("a".to_owned(), 1)].into(),
                ..Default::default()
            }),
            metrics: [("rollout/success".to_owned(), 0.5), ("x".to_owned(), f64::NAN)].into(),
            ..Default::default()
        };
        let value = to_json(&status);
        assert_eq!(value["state"], "running");
        assert_eq!(value["episodes"]["dispatched"], u64::MAX);
        assert_eq!(value["episodes"]["cancelled_by_reason"].to_string(), r#"{"a":1,"b":2}"#);
        assert_eq!(value["metrics"].to_string(), r#"{"rollout/success":0.5,"x":null}"#);
        assert_eq!(value["step"], 0);
        assert_eq!(value["actors"], json!([]));
        assert!(value["learner"].is_null() && value["checkpoint"].is_null());
        assert!(to_json(&StatusResponse::default())["state"].is_null());
    }

    #[test]
    fn nested_messages_bytes_and_unknown_enum_values() {
        let trajectory = Trajectory {
            token_ids: vec![1, 2],
            loss_mask: vec![0, 1],
            spans: vec![Span { role: 3, state: 99, ..Default::default() }],
            ..Default::default()
        };
        let value = to_json(&ShowTrajectoryResponse { trajectory: Some(trajectory) });
        let trajectory = &value["trajectory"];
        assert_eq!(trajectory["token_ids"], json!([1, 2]));
        assert_eq!(trajectory["loss_mask"], "0001");
        assert_eq!(trajectory["spans"][0]["role"], "assistant");
        assert_eq!(trajectory["spans"][0]["state"], 99);
        assert!(trajectory["reward"].is_null(), "absent is not zero");
    }

    #[test]
    fn words_are_for_people() {
        assert_eq!(word("STOP_REASON_TURN_LIMIT", "STOP_REASON_"), "turn limit");
    }
}
