//! Whatever a template and a conversation are, rendering ends, in a text or in an error.

use ballast_chat::{ChatTemplate, Conversation};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// What templates are made of. Joined at random they are mostly malformed, and often enough not.
const PIECES: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{%-",
    "-%}",
    "{%+",
    " ",
    "\n",
    "if",
    "endif",
    "else",
    "for",
    "endfor",
    " in ",
    "set",
    "endset",
    "macro",
    "endmacro",
    "call",
    "endcall",
    "generation",
    "endgeneration",
    "raw",
    "endraw",
    "break",
    "continue",
    "filter",
    "endfilter",
    "with",
    "endwith",
    "messages",
    "tools",
    "loop",
    "loop.index0",
    "m",
    "x",
    "ns",
    "namespace()",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ":",
    ",",
    ".",
    "|",
    "=",
    "==",
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "**",
    "~",
    "<",
    "not ",
    "and ",
    "or ",
    " is ",
    "none",
    "true",
    "0",
    "1",
    "-1",
    "99999999999",
    "1.5",
    "'a'",
    "\"b\"",
    "'%'",
    "[::-1]",
    "[1:]",
    "[0:2:-1]",
    ".role",
    ".content",
    ".items()",
    ".split('a')",
    ".strip()",
    "tojson",
    "tojson(indent=2)",
    "trim",
    "length",
    "list",
    "join",
    "first",
    "last",
    "string",
    "int",
    "upper",
    "default('x')",
    "map(attribute='role')",
    "selectattr('role')",
    "replace('a','b')",
    "raise_exception('x')",
    "range(9)",
    "dict(a=1)",
    "defined",
    "string",
    "mapping",
    "iterable",
];

/// Statements that fit together, so that expressions are evaluated.
fn any_expression() -> impl Strategy<Value = String> {
    let word = prop::sample::select(PIECES[32..].to_vec());
    prop::collection::vec(word, 1..8).prop_map(|words| words.concat())
}

fn any_source() -> impl Strategy<Value = String> {
    let pieces = prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..24);
    let statement = any_expression().prop_flat_map(|expression| {
        prop::sample::select(vec![
            format!("{{{{ {expression} }}}}"),
            format!("{{% for m in {expression} %}}{{{{ m }}}}{{% endfor %}}"),
            format!("{{% if {expression} %}}a{{% endif %}}"),
            format!("{{% set x = {expression} %}}{{{{ x }}}}"),
            format!("{{% generation %}}{{{{ {expression} }}}}{{% endgeneration %}}"),
        ])
    });
    prop_oneof![
        pieces.prop_map(|pieces| pieces.concat()),
        prop::collection::vec(statement, 0..4).prop_map(|statements| statements.concat()),
        any::<String>(),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec!["user", "assistant", "tool", "", "\u{f0003}\u{f0000}"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let key = prop::sample::select(vec!["role", "content", "items", "tool_calls", "\u{f0001}"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4).prop_map(|entries| {
                entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            }),
        ]
    })
}

proptest! {
    #[test]
    fn no_template_and_no_conversation_makes_it_panic(
        source in any_source(),
        messages in prop::collection::vec(any_json(), 0..4),
        tools in prop::option::of(prop::collection::vec(any_json(), 0..2)),
        add_generation_prompt: bool,
    ) {
        let Ok(template) = ChatTemplate::from_source(&source, Map::new(), Some(|| 0)) else {
            return Ok(());
        };
        let conversation = Conversation {
            messages: &messages,
            tools: tools.as_deref(),
            add_generation_prompt,
            ..Conversation::default()
        };
        if let Ok(rendered) = template.render(&conversation) {
            for span in rendered.assistant_spans {
                prop_assert!(rendered.text.get(span).is_some());
            }
        }
        drop(template.probe_prefixes(None).to_string());
    }

    /// Texts come out as they went in, private characters included.
    #[test]
    fn a_template_that_prints_a_text_prints_that_text(content: String) {
        let template = ChatTemplate::from_source("{{ messages[0].content }}|", Map::new(), None);
        let messages = [json!({"role": "user", "content": content})];
        let conversation = Conversation { messages: &messages, ..Conversation::default() };
        prop_assert_eq!(template.unwrap().render(&conversation).unwrap().text, content + "|");
    }
}
