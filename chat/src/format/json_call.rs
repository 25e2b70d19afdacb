//! A call as one JSON object: what is certain of it before it is complete.
//!
//! The scanner follows the outer level of the object exactly and everything inside by brackets and
//! strings alone. When the object is complete, `serde_json` says whether it is JSON.

use serde_json::{Map, Value};

use super::{Event, block::Body};
use crate::json::python_json;

/// Follows one JSON object while its text grows.
#[derive(Clone, Debug)]
pub(crate) struct ObjectScanner {
    /// The keys whose value may be the arguments.
    arguments_keys: &'static [&'static str],
    /// How many bytes of the text it has seen.
    at: usize,
    depth: usize,
    /// Whether the object began, with nothing before it.
    begun: bool,
    in_string: bool,
    escaped: bool,
    place: Place,
    key: Key,
    string_start: usize,
    arguments_key_seen: bool,
    name: Option<String>,
    /// Where the object of arguments begins and, once it is known, ends.
    arguments: Option<(usize, Option<usize>)>,
    closed: bool,
    broken: bool,
}

/// Where in the outer level of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Key,
    Colon,
    Value,
    Scalar,
    AfterValue,
}

/// The key whose value comes or stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Other,
}

impl ObjectScanner {
    fn new(arguments_keys: &'static [&'static str]) -> Self {
        Self {
            arguments_keys,
            at: 0,
            depth: 0,
            begun: false,
            in_string: false,
            escaped: false,
            place: Place::Key,
            key: Key::Other,
            string_start: 0,
            arguments_key_seen: false,
            name: None,
            arguments: None,
            closed: false,
            broken: false,
        }
    }

    /// `raw` has grown. It goes no further than the end of the object.
    pub(crate) fn advance(&mut self, raw: &str) {
        while let Some(byte) = raw.as_bytes().get(self.at).filter(|_| !self.closed) {
            self.byte(raw, *byte);
            self.at += 1;
        }
    }

    /// Whether the object, well formed or not, has come to its end.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the text stops inside a string.
    pub(crate) fn is_in_string(&self) -> bool {
        self.in_string
    }

    /// Whether it cannot become a JSON object any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the key of the arguments came.
    pub(crate) fn has_arguments_key(&self) -> bool {
        self.arguments_key_seen
    }

    /// The string under `name`.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What is there of the object of arguments.
    fn arguments<'a>(&self, raw: &'a str) -> Option<&'a str> {
        let (start, end) = self.arguments?;
        raw.get(start..end.unwrap_or(raw.len()))
    }

    fn byte(&mut self, raw: &str, byte: u8) {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    self.string_ended(raw);
                }
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                self.string_began();
            }
            b'{' | b'[' => self.opened(byte),
            b'}' | b']' => self.closed(),
            b' ' | b'\n' | b'\r' | b'\t' => {}
            _ if self.depth == 0 => self.broken = true,
            _ if self.depth == 1 => self.outer(byte),
            _ => {}
        }
    }

    fn string_began(&mut self) {
        self.string_start = self.at;
        let has_place = self.depth > 1 || matches!(self.place, Place::Key | Place::Value);
        self.broken |= self.depth == 0 || !has_place;
    }

    fn string_ended(&mut self, raw: &str) {
        if self.depth != 1 || self.broken {
            return;
        }
        let string = raw.get(self.string_start..=self.at);
        let string: Option<String> = string.and_then(|json| serde_json::from_str(json).ok());
        match (self.place, string) {
            (_, None) => self.broken = true,
            (Place::Key, Some(key)) => {
                self.key = match key.as_str() {
                    "name" => Key::Name,
                    key if self.arguments_keys.contains(&key) => Key::Arguments,
                    _ => Key::Other,
                };
                self.arguments_key_seen |= self.key == Key::Arguments;
                self.place = Place::Colon;
            }
            (_, Some(value)) => {
                match self.key {
                    Key::Name if self.name.is_none() => self.name = Some(value),
                    // The first name may have been emitted, so a second never replaces it.
                    Key::Name | Key::Arguments => self.broken = true,
                    Key::Other => {}
                }
                self.place = Place::AfterValue;
            }
        }
    }

    fn opened(&mut self, byte: u8) {
        match self.depth {
            0 => {
                self.broken |= byte != b'{' || self.begun;
                self.begun |= !self.broken;
            }
            1 if !self.broken => {
                let is_twice = self.arguments.is_some();
                match self.key {
                    Key::Arguments if byte == b'{' && !is_twice && self.place == Place::Value => {
                        self.arguments = Some((self.at, None));
                    }
                    Key::Other if self.place == Place::Value => {}
                    _ => self.broken = true,
                }
            }
            _ => {}
        }
        self.depth = self.depth.saturating_add(1);
    }

    fn closed(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        match self.depth {
            0 if self.begun => self.closed = true,
            0 => self.broken = true,
            1 => {
                if let Some((_, end @ None)) = &mut self.arguments {
                    *end = Some(self.at + 1);
                }
                self.place = Place::AfterValue;
            }
            _ => {}
        }
    }

    fn outer(&mut self, byte: u8) {
        self.place = match (self.place, byte) {
            (Place::Colon, b':') => Place::Value,
            (Place::AfterValue | Place::Scalar, b',') => Place::Key,
            (Place::Value, b':' | b',') => return self.broken = true,
            (Place::Value, _) if self.key == Key::Other => Place::Scalar,
            (Place::Scalar, byte) if byte != b':' => Place::Scalar,
            _ => return self.broken = true,
        }
    }
}

/// Emits a call as soon as its name is known, and its arguments as they come.
#[derive(Clone, Debug)]
pub(crate) struct JsonCall {
    pub(crate) scanner: ObjectScanner,
    started: bool,
    /// How much of the arguments' text was emitted.
    sent: usize,
}

impl JsonCall {
    /// At the start of a call whose arguments are the value of one of `arguments_keys`.
    pub(crate) fn new(arguments_keys: &'static [&'static str]) -> Self {
        Self { scanner: ObjectScanner::new(arguments_keys), started: false, sent: 0 }
    }

    /// Emits what the scanner found since the last time.
    pub(crate) fn emit(&mut self, raw: &str, index: usize, events: &mut Vec<Event>) {
        if !self.started {
            let Some(name) = self.scanner.name().filter(|name| !name.is_empty()) else { return };
            events.push(Event::CallStarted { index, name: name.to_owned() });
            self.started = true;
        }
        let arguments = self.scanner.arguments(raw).unwrap_or_default();
        if let Some(delta) = arguments.get(self.sent..).filter(|delta| !delta.is_empty()) {
            events.push(Event::Arguments { index, delta: delta.to_owned() });
            self.sent = arguments.len();
        }
    }

    /// The name and the arguments, if `raw`, all of which was scanned, is a call.
    pub(crate) fn read(&self, raw: &str) -> Option<(String, Map<String, Value>)> {
        if self.scanner.is_broken() {
            return None;
        }
        let mut object: Map<String, Value> = serde_json::from_str(raw).ok()?;
        let mut keys = self.scanner.arguments_keys.iter();
        match (object.remove("name")?, keys.find_map(|key| object.remove(*key))?) {
            (Value::String(name), Value::Object(arguments)) if !name.is_empty() => {
                Some((name, arguments))
            }
            _ => None,
        }
    }
}

impl Body for JsonCall {
    fn advance(&mut self, raw: &str, index: usize, events: &mut Vec<Event>) {
        self.scanner.advance(raw);
        self.emit(raw, index, events);
    }

    fn is_complete(&self) -> bool {
        self.scanner.is_closed()
    }

    fn finish(self, raw: &str) -> Option<(String, Map<String, Value>)> {
        self.read(raw)
    }
}

/// A call as its JSON object.
pub(crate) fn write(name: &str, arguments_key: &str, arguments: &Map<String, Value>) -> String {
    let name = python_json(&Value::from(name));
    let arguments = python_json(&Value::Object(arguments.clone()));
    format!("{{\"name\": {name}, \"{arguments_key}\": {arguments}}}")
}
