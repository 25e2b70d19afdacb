//! What `transformers` renders, we render: `template_fixtures.json` replayed. The script beside it
//! makes it.

use std::{collections::BTreeMap, ops::Range};

use ballast_chat::{ChatTemplate, Conversation, TemplateError};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Where we render and `transformers` fails: it cannot iterate over none.
const LENIENT: [(&str, &str); 1] = [("headers", "null content")];

#[derive(Deserialize)]
struct Fixtures {
    unix_seconds: i64,
    special_tokens: Map<String, Value>,
    templates: BTreeMap<String, String>,
    conversations: BTreeMap<String, Given>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Given {
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    documents: Option<Vec<Value>>,
    extra: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    add_generation_prompt: bool,
    text: Option<String>,
    /// In characters.
    spans: Option<Vec<Range2>>,
    error: Option<String>,
    message: Option<String>,
}

type Range2 = [usize; 2];

fn fixtures() -> Fixtures {
    serde_json::from_str(include_str!("template_fixtures.json")).expect("the script wrote it")
}

/// The clock of the fixtures.
fn clock() -> i64 {
    1_721_999_109
}

fn in_characters(text: &str, spans: &[Range<usize>]) -> Vec<Range2> {
    let characters = |byte: usize| text[..byte].chars().count();
    spans.iter().map(|span| [characters(span.start), characters(span.end)]).collect()
}

fn render(fixtures: &Fixtures, case: &Case) -> Result<(String, Vec<Range2>), TemplateError> {
    let source = &fixtures.templates[&case.template];
    let template = ChatTemplate::from_source(source, fixtures.special_tokens.clone(), Some(clock))?;
    let given = &fixtures.conversations[&case.conversation];
    let rendered = template.render(&Conversation {
        messages: &given.messages,
        tools: given.tools.as_deref(),
        documents: given.documents.as_deref(),
        add_generation_prompt: case.add_generation_prompt,
        extra: given.extra.as_ref(),
    })?;
    let spans = in_characters(&rendered.text, &rendered.assistant_spans);
    Ok((rendered.text, spans))
}

/// What is wrong with the outcome of a case, if anything.
fn difference(
    case: &Case,
    outcome: &Result<(String, Vec<Range2>), TemplateError>,
) -> Option<String> {
    let lenient = LENIENT.contains(&(&case.template, &case.conversation));
    match (outcome, &case.text, case.error.as_deref()) {
        (Ok((text, _)), Some(expected), _) if text != expected => {
            Some(format!("wrote {text:?}\n  not   {expected:?}"))
        }
        (Ok((_, spans)), Some(_), _) => {
            let expected = case.spans.as_ref();
            (Some(spans) != expected).then(|| format!("marked {spans:?}, not {expected:?}"))
        }
        (Ok((text, _)), None, error) if !lenient => {
            Some(format!("wrote {text:?}, and not the error {error:?} {:?}", case.message))
        }
        (Err(TemplateError::Raised { message, .. }), _, Some("TemplateError")) => {
            (Some(message) != case.message.as_ref()).then(|| format!("raised {message:?}"))
        }
        (Err(error), None, Some("TemplateError")) => Some(format!("failed: {error}")),
        (Err(error), Some(expected), _) => Some(format!("failed: {error}\n  not   {expected:?}")),
        _ => None,
    }
}

#[test]
fn every_fixture_renders_as_transformers_renders_it() {
    let fixtures = fixtures();
    assert_eq!(clock(), fixtures.unix_seconds);
    let differences: Vec<_> = fixtures
        .cases
        .iter()
        .filter_map(|case| {
            let what = difference(case, &render(&fixtures, case))?;
            let Case { template, conversation, add_generation_prompt, .. } = case;
            let source = fixtures.templates[template].lines().next().filter(|s| !s.is_empty());
            let source = source.unwrap_or_default();
            Some(format!(
                "{template} | {conversation} | {add_generation_prompt}: {source}\n  {what}"
            ))
        })
        .collect();
    assert!(
        differences.is_empty(),
        "{} of {} cases differ:\n{}",
        differences.len(),
        fixtures.cases.len(),
        differences.join("\n")
    );
}

#[test]
fn errors_name_the_template_and_the_line() {
    let user = serde_json::json!([{"role": "user", "content": "a"}]);
    let messages = user.as_array().unwrap();
    for (source, words) in [
        (
            "\n{{ raise_exception('not ' ~ messages[0].role) }}",
            "line 2: the template refuses the conversation: not user",
        ),
        ("\n\n{% if %}", "line 3: syntax error"),
        ("a\n{{ messages[0].x.y }}", "line 2: undefined value"),
        ("{{ nothing | unknown }}", "line 1: unknown filter"),
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "gave up after",
        ),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ 'abc'[0:2:-1] }}", "the template engine failed"),
        (
            "{% for i in range(100000) %}{{ 'aaaaaaaaaaaaaaaaaaaa' * 999 }}{% endfor %}",
            "larger than 8388608 bytes",
        ),
        ("{{ strftime_now('%Y') }}", "strftime_now is unknown"),
        ("{% include 'x' %}", "line 1"),
        ("\u{f0000}", "reserved character U+F0000"),
    ] {
        let render = || {
            let template = ChatTemplate::from_source(source, Map::new(), None)?;
            template.render(&Conversation { messages, ..Conversation::default() })
        };
        let error = render().unwrap_err().to_string();
        assert!(error.contains(words), "{source}: {error}");
        assert!(error.contains("chat template") || error.contains("rendered"), "{error}");
    }
}

#[test]
fn a_conversation_too_large_or_malformed_is_refused() {
    let template = ChatTemplate::from_source("{{ messages }}", Map::new(), None).unwrap();
    let refusal = |message: Value| {
        let messages = [message];
        let conversation = Conversation { messages: &messages, ..Conversation::default() };
        template.render(&conversation).unwrap_err().to_string()
    };
    let large = serde_json::json!({"role": "user", "content": "a".repeat(10 << 20)});
    assert!(refusal(large).contains("the conversation is larger than 8388608 bytes"));
    assert!(refusal(Value::from("hello")).contains("message 0 is not an object"));
    let deep = (0..200).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
    assert!(refusal(serde_json::json!({"content": deep})).contains("more than 128 levels"));
}

#[test]
fn the_template_for_tools_is_taken_when_there_are_tools() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"eos_token": {"content": "</s>"}, "chat_template": [
        {"name": "default", "template": "plain{{ eos_token }}"},
        {"name": "tool_use", "template": "tools"}]}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let template = ChatTemplate::load(dir.path(), None).unwrap();
    let render = |tools| {
        let conversation = Conversation { tools, ..Conversation::default() };
        template.render(&conversation).unwrap().text
    };
    assert_eq!(render(None), "plain</s>");
    assert_eq!(render(Some(&[])), "tools");
}

/// A source that nests or chains as deep as its size allows is refused or compiled: it must not
/// exhaust the stack.
#[test]
fn a_deep_template_does_not_exhaust_the_stack() {
    for (before, link, after) in [
        ("{{ ", "(", " }}"),
        ("{{ ", "[", " }}"),
        ("{{ ", "{1:", " }}"),
        ("{{ ", "-", "1 }}"),
        ("{{ ", "not ", "1 }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ 1", "~1", " }}"),
        ("{{ 1", " and 1", " }}"),
        ("{{ 1", "**1", " }}"),
        ("{{ 1", "|trim", " }}"),
        ("{{ m", ".a", " }}"),
        ("{{ m", "()", " }}"),
        ("{{ m", "[0]", " }}"),
        ("{{ 1", " if 1 else 1", " }}"),
        ("{{ 1", " is odd", " }}"),
        ("{{ 1", "<1", " }}"),
        ("", "{% if 1 %}", ""),
        ("{% if 1 %}", "{% elif 1 %}", "{% endif %}"),
        ("", "{% for m in messages %}", ""),
        ("", "{% generation %}", ""),
        ("", "{% set x %}", ""),
        ("{% filter a", "|a", " %}{% endfilter %}"),
    ] {
        let links = ((256 << 10) - before.len() - after.len()) / link.len();
        let source = format!("{before}{}{after}", link.repeat(links));
        if let Ok(template) = ChatTemplate::from_source(&source, Map::new(), None) {
            drop(template.render(&Conversation::default()));
        }
    }
    for nest in ["[ns.x]", "{'a': ns.x}", "ns.x[1:]", "ns.x * 1", "(ns.x, 1)"] {
        let source = format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for a in range(9) %}}{{% for i in range(99999) %}}\
             {{% set ns.x = {nest} %}}{{% endfor %}}{{% endfor %}}"
        );
        let template = ChatTemplate::from_source(&source, Map::new(), None).unwrap();
        let error = template.render(&Conversation::default()).unwrap_err().to_string();
        assert!(error.contains("gave up after 50000 steps"), "{error}");
    }
}

/// What the probe says of the families.
#[test]
fn the_probe_says_which_templates_keep_what_they_wrote() {
    let fixtures = fixtures();
    let report = |name: &str| {
        let source = &fixtures.templates[name];
        let tokens = fixtures.special_tokens.clone();
        ChatTemplate::from_source(source, tokens, Some(clock)).unwrap().probe_prefixes(None)
    };
    for name in ["chatml", "headers"] {
        let report = report(name);
        assert!(report.episodes_are_preserved(), "{name}: {report}");
        assert!(matches!(report.second_question, Ok(None)), "{name}: {report}");
    }
    // Reasoning is taken out when the user speaks again.
    let thinking = report("thinking");
    assert!(thinking.episodes_are_preserved(), "{thinking}");
    let broken = thinking.second_question.unwrap().unwrap();
    assert_eq!((broken.message, broken.role.as_str()), (6, "user"));
    assert!(broken.before[broken.at_byte..].starts_with("hink>\nI look up Bern."));
    assert!(broken.after[broken.at_byte..].starts_with("ool_call>"));
    // The tools move to the last question.
    let brackets = report("brackets");
    assert!(brackets.episodes_are_preserved(), "{brackets}");
    assert!(matches!(brackets.second_question, Ok(Some(_))), "{brackets}");
    assert!(brackets.to_string().contains("a second question: not kept, with message 6 (user)"));
}
