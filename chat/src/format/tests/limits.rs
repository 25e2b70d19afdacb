//! When a call is emitted, what bounds a message, and what is refused.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{joined, read, read_pieces};
use crate::{
    ControlRole, Tokenizer,
    format::{CALL_BYTES_MAX, DEPTH_MAX, Event, Format, MessageParser, NAME_BYTES_MAX},
    testing::{object, tokenizer, tokenizer_of},
};

/// A call is streamed before it is complete: this is what the pieces are for.
#[test]
fn calls_are_emitted_as_they_come() {
    let cases = [
        (Format::Hermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1", "{\"a\": [1"),
        (Format::Llama3, "{\"name\": \"f\", \"parameters\": {\"a\": [1", "{\"a\": [1"),
        (Format::QwenXml, "<tool_call><function=f><parameter=a>1</parameter>", "{\"a\": 1"),
        (Format::Pythonic, "[f(a=1, b=2", "{\"a\": 1"),
    ];
    for (format, text, arguments) in cases {
        let mut parser = MessageParser::new(format, &[]);
        let events = joined(parser.push_text(text.as_bytes()));
        let started = Event::CallStarted { index: 0, name: "f".to_owned() };
        let arguments = Event::Arguments { index: 0, delta: arguments.to_owned() };
        assert_eq!(events, [started, arguments], "{format}");
    }
}

/// Found by fuzzing: the second name took the place of the first, unless that was emitted before.
#[test]
fn the_first_name_is_the_one_that_is_emitted() {
    let texts = [
        (
            Format::Hermes,
            "<tool_call>{\"name\": \"f\", \"name\": \"g\", \"arguments\": {}}</tool_call>",
        ),
        (Format::Llama3, "<|python_tag|>{\"name\": \"f\", \"name\": \"g\", \"parameters\": {}}"),
    ];
    for (format, text) in texts {
        let started = |events: Vec<Event>| {
            let names = events.into_iter().filter_map(|event| match event {
                Event::CallStarted { name, .. } => Some(name),
                _ => None,
            });
            names.collect::<Vec<_>>()
        };
        let (once, message) = read_pieces(format, &[], [text.as_bytes()]);
        assert_eq!(started(once), ["f"], "{format}");
        assert_eq!(started(read_pieces(format, &[], text.as_bytes().chunks(1)).0), ["f"]);
        assert!(message.calls[0].malformed);
    }
}

#[test]
fn depth_and_size_are_bounded() {
    let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let message = |format, value: &str| match format {
        Format::Hermes => {
            format!("<tool_call>{{\"name\": \"f\", \"arguments\": {{\"a\": {value}}}}}</tool_call>")
        }
        Format::Llama3 => format!("{{\"name\": \"f\", \"parameters\": {{\"a\": {value}}}}}"),
        Format::QwenXml => format!(
            "<tool_call><function=f><parameter=a>{value}</parameter></function></tool_call>"
        ),
        Format::Pythonic => format!("[f(a={value})]"),
    };
    for format in Format::ALL {
        let is_malformed = |value: &str| {
            let call = read(format, &message(format, value)).calls.remove(0);
            call.malformed || !(call.arguments["a"].is_array() || call.arguments["a"].is_string())
        };
        assert!(!is_malformed(&nested(DEPTH_MAX - 2)), "{format}");
        let is_text = |value: &str| {
            let call = read(format, &message(format, value)).calls.remove(0);
            call.arguments.get("a").is_some_and(Value::is_string)
        };
        let (deeper, deepest) = (nested(DEPTH_MAX - 1), "[".repeat(100_000));
        assert!(is_malformed(&deeper) || is_text(&deeper), "{format}");
        assert!(is_malformed(&deepest) || is_text(&deepest), "{format}");
        let long = format!("\"{}\"", "x".repeat(CALL_BYTES_MAX));
        assert!(is_malformed(&long), "{format}");
    }
    let name = "f".repeat(NAME_BYTES_MAX);
    assert_eq!(read(Format::Pythonic, &format!("[{name}()]")).calls, []);
    let xml = format!("<tool_call><function={name}></function></tool_call>");
    assert!(read(Format::QwenXml, &xml).calls[0].malformed);
}

/// In pieces, anything but linear time would take minutes as well.
#[test]
fn a_long_message_takes_linear_time() {
    const BYTES: usize = 1 << 21;
    const BYTES_IN_PIECES: usize = 1 << 16;
    let patterns = [
        ("", " "),
        ("", "<"),
        ("", "<tool_call>"),
        ("", "\u{1f600}"),
        ("<tool_call>", " "),
        ("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"", "x"),
        ("<tool_call><function=f>", " "),
        ("<tool_call><function=f><parameter=a>", "</param"),
        ("<tool_call><function=f>", "<parameter=a>1</parameter>"),
        ("[", " "),
        ("[", "f"),
        ("[f(", "("),
        ("[f(", "a=1,"),
        ("[f(a=", "'"),
        ("[", "f(),"),
        ("{", " "),
        ("{\"name\": \"", "\\"),
        ("", "{}"),
        ("<|python_tag|>", "{\"name\": \"f\", \"parameters\": {}};"),
        ("<|python_tag|>", " "),
        ("", "</think>{\"a\": {"),
        ("{\"a\": {", "</think>{\"a\": {"),
        ("", "</think>[f"),
        ("[f(a=", "("),
    ];
    for (start, pattern) in patterns {
        let text = start.to_owned() + &pattern.repeat(BYTES / pattern.len());
        for format in Format::ALL {
            read_pieces(format, &[], text.as_bytes()[..BYTES_IN_PIECES].chunks(1));
            let began = Instant::now();
            read(format, &text);
            assert!(began.elapsed() < Duration::from_secs(30), "{format} {start}{pattern}");
        }
    }
}

#[test]
fn a_call_that_cannot_be_written_is_refused_by_name() {
    let (fine, tagged, spaced) =
        (object(json!({"a": 1})), object(json!({"a": "x</parameter>"})), object(json!({"a b": 1})));
    let message = |format: Format, text, name, arguments: &Map<String, Value>| {
        format.render(text, &[(name, arguments)]).unwrap_err().to_string()
    };
    let cases = [
        (message(Format::QwenXml, "", "f>", &fine), "\"f>\""),
        (message(Format::QwenXml, "", "f", &tagged), "the value of \"a\""),
        (message(Format::Pythonic, "", "f g", &fine), "\"f g\""),
        (message(Format::Pythonic, "</think> I look.", "f", &fine), "reasoning"),
        (message(Format::Pythonic, "", "f", &spaced), "\"a b\""),
        (
            message(Format::Pythonic, "I look.", "f", &fine),
            "text other than reasoning beside calls",
        ),
    ];
    for (message, part) in cases {
        assert!(message.contains(part) && message.contains("tool-call format cannot"), "{message}");
    }
}

#[test]
fn an_unknown_format_is_answered_with_those_known() {
    for format in Format::ALL {
        assert_eq!(format.name().parse(), Ok(format));
    }
    let error = "Lama3".parse::<Format>().unwrap_err().to_string();
    assert!(error.contains("did you mean \"llama3\"?"), "{error}");
    let error = "yaml".parse::<Format>().unwrap_err().to_string();
    assert!(!error.contains("did you mean"), "{error}");
    assert!(error.contains("hermes, llama3, qwen_xml, pythonic"), "{error}");
}

#[test]
fn the_format_is_told_by_the_tokens_unless_it_is_named() {
    let detect = |tokenizer: &Tokenizer| Tokenizer::from_bytes(tokenizer.json()).unwrap().format();
    assert_eq!(detect(tokenizer_of(Format::Hermes)), Format::Hermes);
    assert_eq!(detect(tokenizer_of(Format::Llama3)), Format::Llama3);
    for format in Format::ALL {
        assert_eq!(tokenizer_of(format).format(), format);
    }
    let wrong = Tokenizer::with_format(tokenizer().json(), Format::Llama3).unwrap_err();
    assert!(wrong.to_string().contains("<|eot_id|>"), "{wrong}");
    let on_llama =
        Tokenizer::with_format(tokenizer_of(Format::Llama3).json(), Format::Pythonic).unwrap();
    let names = on_llama.control().stops().into_iter().map(|id| on_llama.decode(&[id]));
    assert_eq!(names.collect::<Vec<_>>(), ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"]);
    assert_eq!(on_llama.control().id(ControlRole::CallOpener), None);
}
