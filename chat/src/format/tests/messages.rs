//! Single messages of each format. Those of the Hermes format from tokens are beside its parser.

use ballast_proto::v1::StructuralState::{self, Collapsed, HealthyCall, HealthyResponse, Polluted};
use serde_json::{Value, json};

use super::read;
use crate::format::Format;

/// A message as (text, calls, state); a malformed call as its raw text.
type Case<'a> = (&'a str, &'a str, &'a [Result<(&'a str, Value), &'a str>], StructuralState);

fn check(format: Format, cases: &[Case<'_>]) {
    for (message, text, calls, state) in cases {
        let parsed = read(format, message);
        let parsed_calls: Vec<_> = parsed
            .calls
            .iter()
            .map(|call| match call.malformed {
                true => Err(call.raw.as_str()),
                false => Ok((call.name.as_str(), Value::Object(call.arguments.clone()))),
            })
            .collect();
        assert_eq!(parsed_calls, *calls, "{message}");
        assert_eq!((parsed.text.as_str(), parsed.state), (*text, *state), "{message}");
    }
}

#[test]
fn llama3_messages() {
    let f = || Ok(("f", json!({"a": 1})));
    const F: &str = "{\"name\": \"f\", \"parameters\": {\"a\": 1}}";
    check(
        Format::Llama3,
        &[
            (F, "", &[f()], HealthyCall),
            (&format!(" {F}<|eot_id|>"), "", &[f()], HealthyCall),
            (&format!("<|python_tag|>{F}<|eom_id|>"), "", &[f()], HealthyCall),
            (&format!("{F}; {F}\n{F}"), "", &[f(), f(), f()], HealthyCall),
            (&format!("I look. <|python_tag|>{F}"), "I look.", &[f()], HealthyCall),
            (
                "{\"type\": \"function\", \"parameters\": {\"a\": 1}, \"name\": \"f\"}",
                "",
                &[f()],
                HealthyCall,
            ),
            (&F.replace("parameters", "arguments"), "", &[f()], HealthyCall),
            ("It is 4.<|eot_id|>", "It is 4.", &[], HealthyResponse),
            ("{\"price\": 4}", "{\"price\": 4}", &[], HealthyResponse),
            ("{\"name\": \"anna\"}", "{\"name\": \"anna\"}", &[], HealthyResponse),
            ("{it} is", "{it} is", &[], HealthyResponse),
            ("It is 4.<|eom_id|>", "It is 4.<|eom_id|>", &[], Polluted),
            (&format!("I look: {F}"), &format!("I look: {F}"), &[], HealthyResponse),
            (&format!("{F} done"), "done", &[f()], Polluted),
            (&format!("{F}}}"), "}", &[f()], Polluted),
            (&format!("{F}<|eot_id|><|eot_id|>"), "<|eot_id|>", &[f()], Polluted),
            ("<|python_tag|>print(1)", "", &[Err("print(1)")], Polluted),
            ("<|python_tag|>print({1})", "", &[Err("print({1})")], Polluted),
            ("<|python_tag|>", "", &[Err("")], Collapsed),
            ("{\"name\": \"f\", \"par", "", &[Err("{\"name\": \"f\", \"par")], Polluted),
            (
                "{\"name\": \"f\", \"parameters\": {\"a\": }}",
                "",
                &[Err("{\"name\": \"f\", \"parameters\": {\"a\": }}")],
                Polluted,
            ),
            (
                "{\"name\": \"f\", \"parameters\": \"a\"}",
                "",
                &[Err("{\"name\": \"f\", \"parameters\": \"a\"}")],
                Polluted,
            ),
            ("<|eot_id|>", "", &[], Collapsed),
            ("<|start_header_id|>4", "<|start_header_id|>4", &[], Collapsed),
        ],
    );
}

#[test]
fn qwen_xml_messages() {
    let f = || Ok(("f", json!({"a": 1, "b": "two\nlines"})));
    const BODY: &str = "\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\ntwo\nlines\n\
                        </parameter>\n</function>\n";
    let call = format!("<tool_call>{BODY}</tool_call>");
    let call = call.as_str();
    let malformed = |body: &'static str| (format!("<tool_call>{body}</tool_call>"), body);
    let bodies = [
        malformed("\n<function=f>\n<parameter=a>\n1\n</parameter>\n"),
        malformed("\n<function=f>\n<parameter=a>\n1\n</function>\n"),
        malformed("<function=f></function>more"),
        malformed("<function=></function>"),
        malformed("<function=f><parameter=a>1</parameter><parameter=a>2</parameter></function>"),
        malformed("{\"name\": \"f\", \"arguments\": {}}"),
        malformed("<function=f</function>"),
    ];
    for (message, body) in &bodies {
        check(Format::QwenXml, &[(message, "", &[Err(body)], Polluted)]);
    }
    check(
        Format::QwenXml,
        &[
            (call, "", &[f()], HealthyCall),
            (&format!("I look.\n{call}\n{call}<|im_end|>"), "I look.", &[f(), f()], HealthyCall),
            (
                "<tool_call><function=g></function></tool_call>",
                "",
                &[Ok(("g", json!({})))],
                HealthyCall,
            ),
            (
                "<tool_call><function=g><parameter=x>\n\n a < b \n\n</parameter></function></tool_call>",
                "",
                &[Ok(("g", json!({"x": "\n a < b \n"})))],
                HealthyCall,
            ),
            ("<function=f> is XML", "<function=f> is XML", &[], HealthyResponse),
            (&format!("{call}</tool_call>"), "</tool_call>", &[f()], Polluted),
            (&format!("<tool_call>{BODY}"), "", &[Err(BODY)], Polluted),
            ("<tool_call></tool_call>", "", &[Err("")], Collapsed),
        ],
    );
}

#[test]
fn pythonic_messages() {
    let f = || Ok(("f", json!({"a": 1, "b": "x"})));
    const F: &str = "f(a=1, b=\"x\")";
    check(
        Format::Pythonic,
        &[
            (&format!("[{F}]"), "", &[f()], HealthyCall),
            (&format!(" [ {F},\n {F} , ]\n<|im_end|>"), "", &[f(), f()], HealthyCall),
            ("[m.f-g()]", "", &[Ok(("m.f-g", json!({})))], HealthyCall),
            (
                "[g(s='it\\'s), (', d={'k': [1.5, None, True,], 'l': {}}, )]",
                "",
                &[Ok(("g", json!({"s": "it's), (", "d": {"k": [1.5, null, true], "l": {}}})))],
                HealthyCall,
            ),
            (
                "[g(s='''a, 'b')''', t=\"\")]",
                "",
                &[Ok(("g", json!({"s": "a, 'b')", "t": ""})))],
                HealthyCall,
            ),
            ("It is 4.", "It is 4.", &[], HealthyResponse),
            ("[]", "[]", &[], HealthyResponse),
            ("[1, 2]", "[1, 2]", &[], HealthyResponse),
            ("[see](page)", "[see](page)", &[], HealthyResponse),
            ("[f", "[f", &[], HealthyResponse),
            (&format!("I call [{F}]"), &format!("I call [{F}]"), &[], HealthyResponse),
            (&format!("[{F}] done"), "done", &[f()], Polluted),
            (&format!("[{F}"), "", &[f()], Polluted),
            (&format!("[{F}, 3]"), ", 3]", &[f()], Polluted),
            (&format!("[{F}]<tool_call>"), "<tool_call>", &[f()], Polluted),
            ("[g(x=(1, 2))]", "", &[Ok(("g", json!({"x": [1, 2]})))], HealthyCall),
            ("[f(1)]", "", &[Err("f(1)")], Polluted),
            ("[f(a=b)]", "", &[Err("f(a=b)")], Polluted),
            ("[f(a=1, a=2)]", "", &[Err("f(a=1, a=2)")], Polluted),
            ("[f(a=1]", "", &[Err("f(a=1]")], Polluted),
            ("[f(a='x)]", "", &[Err("f(a='x)]")], Polluted),
            ("[f(a='<|im_start|>')]", "", &[Err("f(a='<|im_start|>')")], Polluted),
            (&format!("[f(x), {F}]"), "", &[Err("f(x)"), f()], Polluted),
            ("<|im_end|>", "", &[], Collapsed),
            ("[f(<|im_end|>", "", &[Err("f(")], Collapsed),
        ],
    );
}

#[test]
fn a_hermes_message_from_text_is_the_one_from_tokens() {
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    check(
        Format::Hermes,
        &[
            (call, "", &[Ok(("f", json!({"a": 1})))], HealthyCall),
            ("It is 4.<|im_end|>", "It is 4.", &[], HealthyResponse),
            ("It <tool_cal", "It <tool_cal", &[], HealthyResponse),
            ("<tool_call>{}", "", &[Err("{}")], Collapsed),
        ],
    );
}

/// What reasoning models write: reasoning, which the prompt may have begun, then what the format says
/// a message is.
#[test]
fn calls_may_follow_reasoning() {
    let f = || Ok(("f", json!({"a": 1})));
    let llama3 = "{\"name\": \"f\", \"parameters\": {\"a\": 1}}";
    let hermes = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let xml = "<tool_call><function=f><parameter=a>1</parameter></function></tool_call>";
    let formats = [
        (Format::Hermes, hermes),
        (Format::Llama3, llama3),
        (Format::QwenXml, xml),
        (Format::Pythonic, "[f(a=1)]"),
    ];
    for (format, call) in formats {
        for reasoning in [
            "<think>\n\n</think>",
            "<think>\nI may call f(a=2) or {\"a\": 2}.\n</think>",
            "I may call f.\n</think>",
            "{it} is [it]</think>",
            "{\"name\": \"g\",</think>",
            "{\"a\": [</think>",
            "[</think>",
            "One.</think> Two.</think>",
            "</think></think>",
        ] {
            let message = format!("{reasoning}\n\n{call}");
            check(format, &[(&message, reasoning, &[f()], HealthyCall)]);
            let both = format!("{reasoning}\n\nI look: [1] {{2}}");
            check(format, &[(&both, &both, &[], HealthyResponse)]);
            check(format, &[(reasoning, reasoning, &[], HealthyResponse)]);
        }
        let unended = format!("<think>{call}");
        let calls: &[_] = if call.starts_with("<tool_call>") { &[f()] } else { &[] };
        assert_eq!(read(format, &unended).calls.len(), calls.len(), "{format}");
    }
    // A tag in the middle of `</think>` leaves nothing of it.
    let cut = "</thi<tool_call>nk>[f(a=1)]";
    check(Format::Pythonic, &[(cut, cut, &[], Polluted)]);
    // After a call it is only text.
    let (again, pythonic) = (format!("{llama3}</think>{llama3}"), "[f(a=1)]</think>[f(a=1)]");
    check(Format::Llama3, &[(&again, &again[llama3.len()..], &[f()], Polluted)]);
    check(Format::Pythonic, &[(pythonic, "</think>[f(a=1)]", &[f()], Polluted)]);
    // In a string it is a part of the string, whether or not that is known to be a call's yet. The
    // second was found by fuzzing.
    let value = json!({"a": "</think>{"});
    for (call, name) in [
        ("{\"name\": \"f\", \"parameters\": {\"a\": \"</think>{\"}}", "f"),
        ("{\"name\": \"f</think>\", \"parameters\": {\"a\": \"</think>{\"}}", "f</think>"),
        ("{\"parameters\": {\"a\": \"</think>{\"}, \"name\": \"f\"}", "f"),
    ] {
        check(Format::Llama3, &[(call, "", &[Ok((name, value.clone()))], HealthyCall)]);
    }
    check(Format::Pythonic, &[("[f(a='</think>{')]", "", &[Ok(("f", value))], HealthyCall)]);
}

/// A message ends at its stop token; one that goes on behind it is damaged.
#[test]
fn a_stop_token_in_the_middle_is_misplaced() {
    let text = "It <|im_end|> is 4.<|im_end|>";
    let said = "It <|im_end|> is 4.";
    for format in [Format::Hermes, Format::QwenXml, Format::Pythonic] {
        check(format, &[(text, said, &[], Polluted)]);
    }
    let [hermes, llama3, xml, pythonic] = [
        "{\"name\": \"f\", <|im_end|>\"arguments\": {}}",
        "{\"name\": \"f\", \"parameters\": {<|eot_id|>}}",
        "<function=f><|im_end|></function>",
        "f(a=1<|im_end|>, b=2)",
    ];
    let (in_tags, xml_in_tags) =
        (format!("<tool_call>{hermes}</tool_call>"), format!("<tool_call>{xml}</tool_call>"));
    check(Format::Hermes, &[(&in_tags, "", &[Err(hermes)], Polluted)]);
    check(Format::Llama3, &[(llama3, "", &[Err(llama3)], Polluted)]);
    check(Format::QwenXml, &[(&xml_in_tags, "", &[Err(xml)], Polluted)]);
    check(Format::Pythonic, &[(&format!("[{pythonic}]"), "", &[Err(pythonic)], Polluted)]);
}
