//! Messages at the edges of each format, beside what the parsers of vLLM read in them. The fixture
//! is written by `make_format_fixtures.py`.

use ballast_chat::{Format, MessageParser};
use serde_json::Value;

const FIXTURES: &str = include_str!("format_fixtures.json");

/// Messages that are read here in another way, and the reason.
struct Difference {
    format: Format,
    reason: &'static str,
    /// What all of them share, with `%` where they differ.
    frame: &'static str,
    /// What stands for `%`, and the well-formed calls that are read here.
    messages: &'static [(&'static str, &'static str)],
}

/// Every message that is read in another way. Malformed calls are left out on both sides: vLLM makes
/// a message with one plain text, here it is a call of its own that keeps its text.
const DIFFERENCES: &[Difference] = &[
    Difference {
        format: Format::Hermes,
        reason: "A number that no float holds, NaN, and half a surrogate pair are not JSON.",
        frame: "<tool_call>\n{\"name\": \"f\", \"arguments\": %}\n</tool_call>",
        messages: &[("{\"n\": 1e400}", ""), ("{\"n\": NaN}", ""), ("{\"s\": \"\\ud800\"}", "")],
    },
    Difference {
        format: Format::Hermes,
        reason: "Arguments are an object.",
        frame: "<tool_call>\n{\"name\": \"f\", \"arguments\": %}\n</tool_call>",
        messages: &[("\"{\\\"i\\\": 1}\"", ""), ("null", "")],
    },
    Difference {
        format: Format::Hermes,
        reason: "A name or arguments given twice are ambiguous.",
        frame: "<tool_call>\n{\"name\": \"f\", %}\n</tool_call>",
        messages: &[
            ("\"name\": \"g\", \"arguments\": {}", ""),
            ("\"arguments\": {}, \"arguments\": {\"i\": 1}", ""),
        ],
    },
    Difference {
        format: Format::Hermes,
        reason: "What is not closed may be cut off.",
        frame: "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"i\": 1}}\n%",
        messages: &[("", "")],
    },
    Difference {
        format: Format::Hermes,
        reason: "A malformed call takes no other with it.",
        frame: "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"i\": 1}}\n%",
        messages: &[
            ("<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>", "g{}"),
            ("</tool_call>\n<tool_call>\n{}\n</tool_call>", "f{\"i\":1.0}"),
        ],
    },
    Difference {
        format: Format::Llama3,
        reason: "A number that no float holds, NaN, and half a surrogate pair are not JSON.",
        frame: "{\"name\": \"f\", \"parameters\": %}",
        messages: &[("{\"n\": 1e400}", ""), ("{\"n\": NaN}", ""), ("{\"s\": \"\\ud800\"}", "")],
    },
    Difference {
        format: Format::Llama3,
        reason: "Arguments are an object, and given once.",
        frame: "{\"name\": \"f\", \"parameters\": %}",
        messages: &[
            ("\"{\\\"i\\\": 1}\"", ""),
            ("null", ""),
            ("{}, \"arguments\": {\"i\": 1}", ""),
        ],
    },
    Difference {
        format: Format::Llama3,
        reason: "Between calls stands no comma, and around them no list.",
        frame: "%{\"name\": \"f\", \"parameters\": {\"i\": 1}}, {\"name\": \"g\", \"parameters\": {}}",
        messages: &[("", "f{\"i\":1.0}")],
    },
    Difference {
        format: Format::Llama3,
        reason: "Between calls stands no comma, and around them no list.",
        frame: "%{\"name\": \"g\", \"parameters\": {}}]",
        messages: &[("[{\"name\": \"f\", \"parameters\": {\"i\": 1}}, ", "")],
    },
    Difference {
        format: Format::Llama3,
        reason: "In a text, only the tag begins a call: JSON may be a part of an answer.",
        frame: "%{\"name\": \"f\", \"parameters\": {\"i\": 1}}",
        messages: &[("I look: ", "")],
    },
    Difference {
        format: Format::Llama3,
        reason: "A malformed call takes no other with it.",
        frame: "{\"name\": \"f\", \"parameters\": {\"i\": 1}}; %",
        messages: &[("{\"name\": \"g\", \"par", "f{\"i\":1.0}")],
    },
    Difference {
        format: Format::QwenXml,
        reason: "A value reaches to `</parameter>`, whatever it holds.",
        frame: "<tool_call>\n<function=f>\n<parameter=%\n</parameter>\n</function>\n</tool_call>",
        messages: &[
            ("s>\n<parameter=i>", "f{\"s\":\"<parameter=i>\"}"),
            ("s>\nx </function> y", "f{\"s\":\"x </function> y\"}"),
            ("i>\n1\n<parameter=s>\nx", "f{\"i\":\"1\\n<parameter=s>\\nx\"}"),
        ],
    },
    Difference {
        format: Format::QwenXml,
        reason: "Behind a value stands a parameter or the end of the function.",
        frame: "<tool_call>\n<function=f>\n<parameter=s>\n%\n</function>\n</tool_call>",
        messages: &[("</parameter>x\n</parameter>", "")],
    },
    Difference {
        format: Format::QwenXml,
        reason: "Text that is no value of the declared type stays a string, which the tool refuses by name.",
        frame: "<tool_call>\n<function=f>\n<parameter=%\n</parameter>\n</function>\n</tool_call>",
        messages: &[
            ("i>\n4.5", "f{\"i\":\"4.5\"}"),
            ("i>\nnull", "f{\"i\":\"null\"}"),
            ("b>\n1", "f{\"b\":\"1\"}"),
            ("o>\n[1]", "f{\"o\":\"[1]\"}"),
        ],
    },
    Difference {
        format: Format::QwenXml,
        reason: "Models write lists and objects as Python does.",
        frame: "<tool_call>\n<function=f>\n<parameter=%\n</parameter>\n</function>\n</tool_call>",
        messages: &[
            ("l>\n['x', None]", "f{\"l\":[\"x\",null]}"),
            ("o>\n{'k': True}", "f{\"o\":{\"k\":true}}"),
        ],
    },
    Difference {
        format: Format::QwenXml,
        reason: "Where no type is declared, JSON is read as JSON.",
        frame: "<tool_call>\n<function=%\n</parameter>\n</function>\n</tool_call>",
        messages: &[
            ("f>\n<parameter=other>\n42", "f{\"other\":42.0}"),
            ("f>\n<parameter=other>\n{\"k\": 1}", "f{\"other\":{\"k\":1.0}}"),
            ("unknown>\n<parameter=i>\n1", "unknown{\"i\":1.0}"),
        ],
    },
    Difference {
        format: Format::QwenXml,
        reason: "A parameter is given once, and one block holds one function.",
        frame: "<tool_call>\n<function=f>\n<parameter=i>\n1\n</parameter>\n%</function>\n</tool_call>",
        messages: &[("<parameter=i>\n2\n</parameter>\n", ""), ("</function>\n<function=g>\n", "")],
    },
    Difference {
        format: Format::QwenXml,
        reason: "What is not closed may be cut off.",
        frame: "<tool_call>\n<function=f>\n<parameter=i>\n1\n%",
        messages: &[
            ("</parameter>\n</function>", ""),
            ("</parameter>\n</tool_call>", ""),
            ("</function>\n</tool_call>", ""),
        ],
    },
    Difference {
        format: Format::QwenXml,
        reason: "A call begins with its tag.",
        frame: "<function=f>\n<parameter=i>\n1\n</parameter>\n</function>%",
        messages: &[("\n</tool_call>", ""), ("", "")],
    },
    Difference {
        format: Format::Pythonic,
        reason: "White space and a last comma stand where Python allows them, and around the list.",
        frame: "%",
        messages: &[
            ("[ f( i = 1 ,\n s = 'x' ) ,\n g( ) ]", "f{\"i\":1.0,\"s\":\"x\"}; g{}"),
            ("[f(i=1,), g(),]", "f{\"i\":1.0}; g{}"),
            ("\n[f(i=1)]\n", "f{\"i\":1.0}"),
            ("<think>\nI may [call] f.\n</think>\n[f(i=1)]", "f{\"i\":1.0}"),
        ],
    },
    Difference {
        format: Format::Pythonic,
        reason: "Tools are named so.",
        frame: "[%(i=1)]",
        messages: &[("m.f", "m.f{\"i\":1.0}"), ("f-g", "f-g{\"i\":1.0}"), ("_f", "_f{\"i\":1.0}")],
    },
    Difference {
        format: Format::Pythonic,
        reason: "Values are Python literals that JSON has, in their usual spelling.",
        frame: "[f(%)]",
        messages: &[
            ("b=true, o=null", ""),
            ("l={1, 2}", ""),
            ("o={1: 2}", ""),
            ("n=1e400", ""),
            ("i=0x10", ""),
            ("i=1_000", ""),
            ("s='a' 'b'", ""),
            ("s=r'a\\b'", ""),
            ("s=f'a'", ""),
        ],
    },
    Difference {
        format: Format::Pythonic,
        reason: "An argument is given once, as in Python.",
        frame: "[f(i=1, %)]",
        messages: &[("i=2", "")],
    },
    Difference {
        format: Format::Pythonic,
        reason: "What follows the list, or the missing end of it, is misplaced and leaves the calls.",
        frame: "[f(i=1)%",
        messages: &[
            ("", "f{\"i\":1.0}"),
            ("]]", "f{\"i\":1.0}"),
            ("] Then I wait.", "f{\"i\":1.0}"),
            (", 2]", "f{\"i\":1.0}"),
        ],
    },
];

/// Calls in one line. Numbers are floats: 1, 1.0 and 1e0 are one value.
fn spell<'a>(calls: impl Iterator<Item = (&'a str, Option<Value>)>) -> String {
    let calls: Vec<_> = calls
        .map(|(name, arguments)| match arguments {
            Some(arguments) => format!("{name}{}", with_floats(arguments)),
            None => format!("{name} without JSON"),
        })
        .collect();
    calls.join("; ")
}

fn with_floats(value: Value) -> Value {
    match value {
        // Adding zero makes -0 zero.
        Value::Number(number) => number.as_f64().map(|float| float + 0.0).into(),
        Value::Array(items) => items.into_iter().map(with_floats).collect(),
        Value::Object(entries) => {
            entries.into_iter().map(|(key, value)| (key, with_floats(value))).collect()
        }
        other => other,
    }
}

fn read(format: Format, message: &str, tools: &[Value]) -> String {
    let mut parser = MessageParser::new(format, tools);
    parser.push_text(message.as_bytes());
    let (_, parsed) = parser.finish();
    let well_formed = parsed.calls.iter().filter(|call| !call.malformed);
    spell(well_formed.map(|call| (call.name.as_str(), Some(Value::Object(call.arguments.clone())))))
}

#[test]
fn messages_are_read_as_vllm_reads_them_but_where_that_is_meant() {
    let fixture: Value = serde_json::from_str(FIXTURES).unwrap();
    let tools = fixture["tools"].as_array().unwrap();
    let mut expected: Vec<_> = DIFFERENCES
        .iter()
        .flat_map(|Difference { format, reason, frame, messages }| {
            messages
                .iter()
                .map(move |(message, ours)| (*format, frame.replace('%', message), *ours, *reason))
        })
        .collect();
    for case in fixture["cases"].as_array().unwrap() {
        let format: Format = case["format"].as_str().unwrap().parse().unwrap();
        let message = case["message"].as_str().unwrap();
        let ours = read(format, message, tools);
        let theirs = spell(case["calls"].as_array().unwrap().iter().map(|call| {
            (call[0].as_str().unwrap(), serde_json::from_str(call[1].as_str().unwrap()).ok())
        }));
        let index = expected.iter().position(|(of, text, ..)| *of == format && text == message);
        match index.map(|index| expected.remove(index)) {
            Some((_, _, meant, reason)) => {
                assert_eq!(ours, meant, "{format} {message:?}: {reason}");
                assert_ne!(ours, theirs, "{format} {message:?} does not differ any more");
            }
            None => assert_eq!(ours, theirs, "{format} {message:?}"),
        }
    }
    assert_eq!(expected, [], "no such messages");
}
