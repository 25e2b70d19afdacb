//! Chat templates and conversations: any two of them give a text or an error.
#![no_main]

use std::sync::Once;

use ballast_chat::{ChatTemplate, Conversation};
use serde_json::{Map, Value, json};

/// Numbers with more digits only find that a text repeated so often takes memory.
const DIGITS_MAX: usize = 4;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check(&String::from_utf8_lossy(data)));

fn check(input: &str) {
    forgive_the_engine();
    let (source, messages) = input.split_once('\0').unwrap_or((input, ""));
    if source.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > DIGITS_MAX) {
        return;
    }
    let messages = serde_json::from_str::<Vec<Value>>(messages).unwrap_or_else(|_| {
        vec![json!({"role": "user", "content": "a <b>"}), json!({"role": "assistant", "content": null})]
    });
    let Ok(template) = ChatTemplate::from_source(source, Map::new(), Some(|| 0)) else { return };
    let conversation = Conversation { messages: &messages, ..Conversation::default() };
    if let Ok(rendered) = template.render(&conversation) {
        for span in rendered.assistant_spans {
            assert!(rendered.text.get(span).is_some(), "a span is no part of the text");
        }
    }
    drop(template.probe_prefixes(None).to_string());
}

/// libFuzzer's hook aborts at a panic, even at one that becomes an error, as those of the template
/// engine do. One of our own code is a finding, also where it is caught.
fn forgive_the_engine() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let abort = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.location().is_some_and(|at| at.file().contains("/minijinja-")) {
                abort(info);
            }
        }));
    });
}
