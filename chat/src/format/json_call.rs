//! A call as one JSON object: what is certain of it before it is complete.
//!
//! The scanner follows the outer level of the object exactly and everything inside by brackets and
//! strings alone. Whether the object is a call, `serde_json` decides when it is complete.

use serde_json::{Map, Value};

use super::Event;
use crate::json::python_json;

/// Follows one JSON object while its text grows.
#[derive(Clone, Debug)]
pub(crate) struct ObjectScanner {
    /// The key whose value holds the arguments.
    arguments_key: &'static str,
    /// How many bytes of the text it has seen.
    at: usize,
    depth: usize,
    begun: bool,
    /// Whether something stood before the object.
    preceded: bool,
    in_string: bool,
    escaped: bool,
    place: Place,
    key: Key,
    string_start: usize,
    arguments_key_seen: bool,
    name: Option<String>,
    /// Where the object of arguments begins and, once it is known, ends.
    arguments: Option<(usize, Option<usize>)>,
    closed_at: Option<usize>,
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
    pub(crate) fn new(arguments_key: &'static str) -> Self {
        Self {
            arguments_key,
            at: 0,
            depth: 0,
            begun: false,
            preceded: false,
            in_string: false,
            escaped: false,
            place: Place::Key,
            key: Key::Other,
            string_start: 0,
            arguments_key_seen: false,
            name: None,
            arguments: None,
            closed_at: None,
            broken: false,
        }
    }

    /// `raw` has grown. With `stop_at_end` it stops right after the object.
    pub(crate) fn advance(&mut self, raw: &str, stop_at_end: bool) {
        while let Some(byte) = raw.as_bytes().get(self.at) {
            if stop_at_end && self.closed_at.is_some() {
                break;
            }
            self.byte(raw, *byte);
            self.at += 1;
        }
    }

    /// Where the text goes on after the object.
    pub(crate) fn closed_at(&self) -> Option<usize> {
        self.closed_at
    }

    /// Whether an object began and every bracket of it is closed.
    pub(crate) fn is_balanced(&self) -> bool {
        self.begun && self.depth == 0 && !self.in_string
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
                    key if key == self.arguments_key => Key::Arguments,
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
                self.preceded |= self.broken && !self.begun;
                self.broken |= byte != b'{' || self.begun;
                self.begun |= byte == b'{';
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
            0 if self.begun && !self.preceded && self.closed_at.is_none() => {
                self.closed_at = Some(self.at + 1);
            }
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
    pub(crate) fn new(arguments_key: &'static str) -> Self {
        Self { scanner: ObjectScanner::new(arguments_key), started: false, sent: 0 }
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

    /// The call is complete and well formed: emits what the scanner did not find.
    pub(crate) fn complete(
        &mut self,
        name: &str,
        arguments: &Map<String, Value>,
        index: usize,
        events: &mut Vec<Event>,
    ) {
        if !self.started {
            events.push(Event::CallStarted { index, name: name.to_owned() });
        }
        if self.sent == 0 {
            let delta = python_json(&Value::Object(arguments.clone()));
            events.push(Event::Arguments { index, delta });
        }
    }
}
