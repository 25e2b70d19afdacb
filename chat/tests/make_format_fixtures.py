"""What the tool parsers of vLLM read in the messages below: `format_fixtures.json`.

Run it with a Python that has vLLM: `python chat/tests/make_format_fixtures.py`. The tests of
`formats.rs` name every message that Ballast reads in another way.
"""

import json
import logging
import pathlib

import tokenizers
import transformers
from vllm import __version__
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser
from vllm.tool_parsers import ToolParserManager

PARSERS = {"hermes": "hermes", "llama3": "llama3_json", "qwen_xml": "qwen3_coder", "pythonic": "pythonic"}

TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "<|im_start|>", "<|im_end|>"]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "s": {"type": "string"},
                    "i": {"type": "integer"},
                    "n": {"type": "number"},
                    "b": {"type": "boolean"},
                    "l": {"type": "array"},
                    "o": {"type": "object"},
                },
            },
        },
    }
    for name in ["f", "g"]
]

# The arguments of a call in JSON.
VALUES = [
    "{}",
    '{"s": "x", "l": [1, {"k": null}]}',
    '{"s": "{\\"a\\": [}"}',
    '{"s": "</s> {name} \\u00e9\\ud83d\\ude00 \\n"}',
    '{"s": "caf\u00e9"}',
    '{"i": 1, "i": 2}',
    '{"n": -0}',
    '{"n": -0.0}',
    '{"n": 1e5}',
    '{"n": 1e400}',
    '{"i": 123456789012345678901234567890}',
    '{"n": NaN}',
    '{"s": "\\ud800"}',
    '{"s": "a\nb"}',
    '{"i": 01}',
    '{"i": 1,}',
    "{'s': 'x'}",
    '{"b": True}',
]

CALL = '{"name": "f", "arguments": {"i": 1}}'
OTHER = '{"name": "g", "arguments": {}}'

HERMES = [
    *[f'<tool_call>\n{{"name": "f", "arguments": {value}}}\n</tool_call>' for value in VALUES],
    f"<tool_call>{CALL}</tool_call>",
    f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{OTHER}\n</tool_call>",
    f"I look.\n<tool_call>\n{CALL}\n</tool_call> Then I wait.",
    f"<tool_call>\r\n\t{CALL}  \r\n</tool_call>",
    f"<tool_call>\n{CALL}\n",
    f"<tool_call>\n{CALL[:-1]}\n</tool_call>",
    f"<tool_call>\n{CALL}}}\n</tool_call>",
    f"<tool_call>\n{CALL}\n<tool_call>\n{OTHER}\n</tool_call>",
    f"<tool_call>\n{CALL}\n{OTHER}\n</tool_call>",
    f"<tool_call>\n[{CALL}]\n</tool_call>",
    f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{}}\n</tool_call>",
    '<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>',
    '<tool_call>\n{"name": "f"}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": "{\\"i\\": 1}"}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": null}\n</tool_call>',
    '<tool_call>\n{"name": "f", "name": "g", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {}, "arguments": {"i": 1}}\n</tool_call>',
    '<tool_call>\n{"arguments": {"i": 1}, "id": 7, "name": "f"}\n</tool_call>',
    '<tool_call>\n{"n\\u0061me": "f", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {"s": "</tool_call>"}}\n</tool_call>',
    f"<think>\nI may <b>call</b> f.\n</think>\n\n<tool_call>\n{CALL}\n</tool_call>",
    f"I may call f.\n</think>\n\n<tool_call>\n{CALL}\n</tool_call>",
    f"<tool_call>\n```json\n{CALL}\n```\n</tool_call>",
    f"```json\n{CALL}\n```",
    CALL,
]

LLAMA3 = [
    *[f'{{"name": "f", "parameters": {value}}}' for value in VALUES],
    CALL,
    '<|python_tag|>{"name": "f", "parameters": {"i": 1}}',
    '<|python_tag|>{"name": "f", "parameters": {"i": 1}}; {"name": "g", "parameters": {}}',
    '{"name": "f", "parameters": {"i": 1}};{"name": "g", "parameters": {}}',
    '{"name": "f", "parameters": {"i": 1}}\n{"name": "g", "parameters": {}}',
    '{"name": "f", "parameters": {"i": 1}}, {"name": "g", "parameters": {}}',
    '[{"name": "f", "parameters": {"i": 1}}, {"name": "g", "parameters": {}}]',
    '{"type": "function", "name": "f", "parameters": {"i": 1}}',
    '{"type": "function", "function": {"name": "f", "parameters": {"i": 1}}}',
    '{"name": "f", "parameters": {}, "arguments": {"i": 1}}',
    '{"name": "f", "parameters": "{\\"i\\": 1}"}',
    '{"name": "f", "parameters": null}',
    '{"name": "f"}',
    '{"name": "anna", "balance": 3}',
    '{"price": 4}',
    '\n {"name": "f",\n  "parameters": {"i": 1}\n}\n',
    'I look: {"name": "f", "parameters": {"i": 1}}',
    'I look. <|python_tag|>{"name": "f", "parameters": {"i": 1}}',
    '{"name": "f", "parameters": {"i": 1}} Then I wait.',
    '{"name": "f", "parameters": {"i": 1}}}',
    '{"name": "f", "parameters": {"i": 1}',
    '{"name": "f", "parameters": {"i": 1}}; {"name": "g", "par',
    '{"name": "f", "parameters": {"i": 1}}<|python_tag|>{"name": "g", "parameters": {}}',
    "<|python_tag|>f.call(i=1)",
    "<function=f>{\"i\": 1}</function>",
    "The set {1, 2} is small.",
    '<think>\nIt is {1}.\n</think>\n\n{"name": "f", "parameters": {"i": 1}}',
    'I may call f.\n</think>\n\n{"name": "f", "parameters": {"i": 1}}; {"name": "g", "parameters": {}}',
    '<think>\nNo.\n</think>\n\n<|python_tag|>{"name": "f", "parameters": {"i": 1}}',
    "<think>\nNo.\n</think>\n\nIt is {4}.",
]


def xml(*parameters, name="f"):
    body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


QWEN_XML = [
    xml(),
    xml(("s", "two\n\nlines"), ("i", "1")),
    xml(("s", "")),
    xml(("s", "  padded  ")),
    xml(("s", "\n")),
    xml(("s", "1 < 2 && <b>x</b> </param> </parameters> \\u00e9")),
    xml(("s", "<parameter=i>")),
    xml(("s", "x </function> y")),
    xml(("s", "</parameter>x")),
    xml(("s", '{"k": [1]}')),
    xml(("s", "42")),
    xml(("s", "null")),
    xml(("i", " 42 ")),
    xml(("i", "-0")),
    xml(("i", "4.5")),
    xml(("i", "many")),
    xml(("i", "null")),
    xml(("n", "1e5")),
    xml(("n", "1e400")),
    xml(("n", "2")),
    xml(("b", "True")),
    xml(("b", "false")),
    xml(("b", "1")),
    xml(("l", '[1, {"k": null}]')),
    xml(("l", "['x', None]")),
    xml(("o", '{"k": true}')),
    xml(("o", "{'k': True}")),
    xml(("o", "[1]")),
    xml(("other", "42")),
    xml(("other", '{"k": 1}')),
    xml(("other", "text")),
    xml(("i", "1"), ("i", "2")),
    xml(("i", "1"), name="unknown"),
    xml(("i", "1")) + "\n" + xml(name="g"),
    "I look.\n" + xml(("i", "1")) + " Then I wait.",
    "<tool_call><function=f><parameter=i>1</parameter></function></tool_call>",
    "<tool_call>\n<function=f>\n<parameter=i>\n1\n</parameter>\n</function>\n<function=g>\n</function>\n</tool_call>",
    "<tool_call>\n<function=f>\n<parameter=i>\n1\n</parameter>\n</function>",
    "<tool_call>\n<function=f>\n<parameter=i>\n1\n</parameter>\n</tool_call>",
    "<tool_call>\n<function=f>\n<parameter=i>\n1\n</function>\n</tool_call>",
    "<tool_call>\n<function=f>\n<parameter=i>\n1\n<parameter=s>\nx\n</parameter>\n</function>\n</tool_call>",
    "<function=f>\n<parameter=i>\n1\n</parameter>\n</function>\n</tool_call>",
    "<function=f>\n<parameter=i>\n1\n</parameter>\n</function>",
    "<tool_call>\n<function = f>\n<parameter = i>\n1\n</parameter>\n</function>\n</tool_call>",
    "<think>\nI may <b>call</b> f.\n</think>\n\n" + xml(("i", "1")),
    f"<tool_call>\n{CALL}\n</tool_call>",
]

PYTHONIC = [
    "[f()]",
    "[f(i=1)]",
    '[f(s="x", i=1), g()]',
    "[f(s='a, (b) [c] {d} \"e\"', i=-1)]",
    "[f(s='it\\'s', n=1.5e3)]",
    "[f(s='caf\u00e9 \\u00e9\\n')]",
    "[f(s='''two\nlines''')]",
    "[f(s='two\nlines')]",
    "[f(l=[1, 'x', None, True], o={'k': {'j': []}})]",
    "[ f( i = 1 ,\n s = 'x' ) ,\n g( ) ]",
    "[f (i=1)]",
    "[f(i=1,), g(),]",
    "\n[f(i=1)]\n",
    "[m.f(i=1)]",
    "[_f(i=1)]",
    "[f-g(i=1)]",
    "[f(b=true, o=null)]",
    "[f(l=(1, 2))]",
    "[f(l={1, 2})]",
    "[f(o={1: 2})]",
    "[f(n=-0)]",
    "[f(n=+1)]",
    "[f(n=1e400)]",
    "[f(i=123456789012345678901234567890)]",
    "[f(i=0x10)]",
    "[f(i=1_000)]",
    "[f(s='a' 'b')]",
    "[f(s=r'a\\b')]",
    "[f(s=f'a')]",
    "[f(s=b'a')]",
    "[f(i=1 + 1)]",
    "[f(s=g())]",
    "[f(1)]",
    "[f(**{'i': 1})]",
    "[f(i=1, i=2)]",
    "[f(s=x)]",
    "[f(i=1)",
    "[f(i=1",
    "[f(i=1)]]",
    "[f(i=1)] Then I wait.",
    "I look: [f(i=1)]",
    "f(i=1)",
    "f(i=1); g()",
    "[f(i=1)]\n[g()]",
    "[1, 2]",
    "[f]",
    "[]",
    "[f(i=1), 2]",
    "```python\n[f(i=1)]\n```",
    "<think>\nI may [call] f.\n</think>\n[f(i=1)]",
    "I may call f.\n</think>[f(i=1), g()]",
    "<think>\nNo.\n</think>It is 4.",
]

MESSAGES = {"hermes": HERMES, "llama3": LLAMA3, "qwen_xml": QWEN_XML, "pythonic": PYTHONIC}


def make_tokenizer():
    """Every byte is a token and every tag is one."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: index for index, letter in enumerate(sorted(alphabet))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_tokens([tokenizers.AddedToken(tag, normalized=False) for tag in TAGS])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def read(tokenizer, format_name, message):
    request = ChatCompletionRequest(
        messages=[{"role": "user", "content": "?"}],
        tools=TOOLS,
        chat_template_kwargs={"enable_thinking": False},
    )
    content = message
    if "</think>" in message:
        _, content = DeepSeekR1ReasoningParser(tokenizer).extract_reasoning(message, request)
    parser_class = ToolParserManager.get_tool_parser(PARSERS[format_name])
    parser = parser_class(tokenizer, request.tools)
    information = parser.extract_tool_calls(content, request)
    functions = [call.function for call in information.tool_calls]
    # Half of a surrogate pair has no UTF-8, so the arguments are written in ASCII.
    return [[function.name, json.dumps(json.loads(function.arguments))] for function in functions]


def main():
    logging.disable(logging.CRITICAL)
    tokenizer = make_tokenizer()
    cases = [
        {"format": name, "message": message, "calls": read(tokenizer, name, message)}
        for name, messages in MESSAGES.items()
        for message in messages
    ]
    fixture = {"vllm": __version__, "tools": TOOLS, "cases": cases}
    path = pathlib.Path(__file__).with_name("format_fixtures.json")
    path.write_text(json.dumps(fixture, indent=1) + "\n")
    print(f"{len(cases)} messages in {path}")


if __name__ == "__main__":
    main()
