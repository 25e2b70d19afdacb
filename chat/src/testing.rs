//! A small tokenizer and an example conversation for the tests of this crate.

use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::{Dialogue, Format, Renderer, Tokenizer, parse_message, train_tokenizer};

/// What the user of the example asks.
pub(crate) const QUESTION: &str = "Can anna pay a lamp?";

/// The example in the chat template.
pub(crate) const CONVERSATION: &str = r#"<|im_start|>system
<tools>
{"name": "product", "parameters": {"name": "string"}}
{"name": "customer", "parameters": {"name": "string"}}
</tools><|im_end|>
<|im_start|>user
Can anna pay a lamp?<|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "product", "arguments": {"name": "lamp"}}
</tool_call>
<tool_call>
{"name": "customer", "arguments": {"name": "anna"}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
{"price": 14, "stock": 7}
</tool_response>
<tool_response>
{"balance": 230}
</tool_response><|im_end|>
<|im_start|>assistant
Anna can pay 14.<|im_end|>
"#;

pub(crate) fn tools() -> Vec<Value> {
    ["product", "customer"]
        .map(|name| json!({"name": name, "parameters": {"name": "string"}}))
        .to_vec()
}

pub(crate) fn corpus() -> impl Iterator<Item = String> {
    let products = ["lamp", "chair", "table"];
    products.into_iter().map(|product| CONVERSATION.replace("lamp", product))
}

/// Trained once and shared by all tests.
pub(crate) fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| train_tokenizer(corpus(), 400).unwrap())
}

/// A small tokenizer of a checkpoint that speaks `format`.
pub(crate) fn tokenizer_of(format: Format) -> &'static Tokenizer {
    static TOKENIZERS: [OnceLock<Tokenizer>; 4] = [const { OnceLock::new() }; 4];
    let index = Format::ALL.iter().position(|other| *other == format).unwrap();
    TOKENIZERS[index].get_or_init(|| {
        let mut json: Value = serde_json::from_slice(tokenizer().json()).unwrap();
        match format {
            Format::Hermes | Format::Pythonic => {}
            Format::Llama3 => {
                for token in json["added_tokens"].as_array_mut().unwrap() {
                    let name = token["content"].as_str().unwrap();
                    let index = crate::ControlTokens::NAMES.iter().position(|n| *n == name);
                    token["content"] = LLAMA3_NAMES[index.unwrap()].into();
                }
            }
            Format::QwenXml => {
                let call = "<function=product>\n<parameter=name>\nlamp\n</parameter>\n</function>";
                let corpus = corpus().chain([call.to_owned(), call.to_owned()]);
                json =
                    serde_json::from_slice(train_tokenizer(corpus, 400).unwrap().json()).unwrap();
            }
        }
        Tokenizer::with_format(json.to_string().as_bytes(), format).unwrap()
    })
}

/// What Llama 3 has in place of each tag.
const LLAMA3_NAMES: [&str; 7] = [
    "<|start_header_id|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|python_tag|>",
    "<|eom_id|>",
    "<|end_header_id|>",
    "<|begin_of_text|>",
];

/// `CONVERSATION`, rendered turn by turn.
pub(crate) struct Conversation {
    pub(crate) token_ids: Vec<u32>,
    pub(crate) loss_mask: Vec<u8>,
}

impl Conversation {
    pub(crate) fn example() -> Self {
        let renderer = renderer_of(Format::Hermes);
        let mut example = Self { token_ids: Vec::new(), loss_mask: Vec::new() };
        let (mut dialogue, opening) = renderer.open(&tools(), QUESTION).unwrap();
        opening.iter().for_each(|segment| example.push(&segment.token_ids, 0));
        let (lamp, anna) = (object(json!({"name": "lamp"})), object(json!({"name": "anna"})));
        let calls = [("product", &lamp), ("customer", &anna)];
        let message = example.push_message(renderer, &dialogue, "", &calls);
        let results = ["{\"price\": 14, \"stock\": 7}", "{\"balance\": 230}"].map(str::to_owned);
        let message = parse_message(tokenizer(), &message);
        let continuation = dialogue.answer(&message, &results).unwrap();
        example.push(&continuation.trailer, 0);
        example.push(&continuation.results.token_ids, 0);
        example.push_message(renderer, &dialogue, "Anna can pay 14.", &[]);
        example.push(&continuation.trailer, 0);
        example
    }

    fn push_message(
        &mut self,
        renderer: &Renderer,
        dialogue: &Dialogue,
        text: &str,
        calls: &[(&str, &Map<String, Value>)],
    ) -> Vec<u32> {
        let message = dialogue.message_of(text, calls).unwrap();
        self.push(renderer.assistant_header(), 0);
        self.push(&message, 1);
        message
    }

    fn push(&mut self, token_ids: &[u32], mask: u8) {
        self.token_ids.extend(token_ids);
        self.loss_mask.extend(token_ids.iter().map(|_| mask));
    }
}

/// The built-in template for a format.
pub(crate) fn renderer_of(format: Format) -> &'static Renderer {
    static RENDERERS: [OnceLock<Renderer>; 4] = [const { OnceLock::new() }; 4];
    let index = Format::ALL.iter().position(|other| *other == format).unwrap();
    RENDERERS[index]
        .get_or_init(|| Renderer::built_in(tokenizer_of(format).clone(), Map::new()).unwrap())
}

/// What an expert writes to make a call.
pub(crate) fn written_call(format: Format, name: &str, arguments: &Map<String, Value>) -> Vec<u32> {
    let (dialogue, _) = renderer_of(format).open(&tools(), QUESTION).unwrap();
    dialogue.message_of("", &[(name, arguments)]).unwrap()
}

pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is no object"),
    }
}

/// Ids in and beyond the vocabulary, control tokens far more often than by chance.
pub(crate) fn any_ids() -> impl Strategy<Value = Vec<u32>> {
    let size = u32::try_from(tokenizer().vocab_size()).unwrap();
    let control = prop::sample::select(tokenizer().control().all().to_vec());
    prop::collection::vec(prop_oneof![control, 0..size, any::<u32>()], 0..64)
}

/// Arguments of a call. Without floats: serde_json reads their last digit approximately.
pub(crate) fn any_arguments() -> impl Strategy<Value = Map<String, Value>> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(crate::ControlTokens::NAMES.to_vec()).prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    });
    prop::collection::vec((any::<String>(), value), 0..4)
        .prop_map(|entries| entries.into_iter().collect())
}
