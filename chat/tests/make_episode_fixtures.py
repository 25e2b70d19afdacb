"""Writes episode_fixtures.json: what apply_chat_template makes of whole episodes, in token ids.

    python chat/tests/make_episode_fixtures.py

Needs transformers 5; no network. The templates are those of make_template_fixtures.py and two more;
the tokenizers know bytes, the tags of the family, and the few merges its tool-call format needs.
`loss_mask` is 1 from the end of each generation prompt to the token that ends the message.
"""

import json
import pathlib

from make_template_fixtures import CHATML, HEADERS, THINKING, TIME, WEATHER, call
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML_TAGS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>",
    "<tool_response>", "</tool_response>", "<think>", "</think>",
]
LLAMA3_TAGS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|eom_id|>", "<|python_tag|>",
]
# Of these Qwen calls only the first three special.
ORDINARY = {"<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"}

# Constructs of Qwen3-Coder: macros over schemas, calls as XML, results grouped by the neighbours.
XML = r"""
{%- macro render_extra_keys(json_dict, handled_keys) -%}
    {%- if json_dict is mapping %}
        {%- for json_key in json_dict if json_key not in handled_keys %}
            {%- if json_dict[json_key] is mapping or (json_dict[json_key] is sequence and json_dict[json_key] is not string) %}
                {{- '\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | tojson | safe) ~ '</' ~ json_key ~ '>' }}
            {%- else %}
                {{- '\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | string) ~ '</' ~ json_key ~ '>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro -%}
{%- if tools is iterable and tools | length > 0 %}
    {{- "<|im_start|>system\nYou have these functions:\n\n<tools>" }}
    {%- for tool in tools %}
        {%- if tool.function is defined %}
            {%- set tool = tool.function %}
        {%- endif %}
        {{- "\n<function>\n<name>" ~ tool.name ~ "</name>" }}
        {%- if tool.description is defined %}
            {{- '\n<description>' ~ (tool.description | trim) ~ '</description>' }}
        {%- endif %}
        {{- '\n<parameters>' }}
        {%- if tool.parameters is defined and tool.parameters is mapping and tool.parameters.properties is defined and tool.parameters.properties is mapping %}
            {%- for param_name, param_fields in tool.parameters.properties | items %}
                {{- '\n<parameter>\n<name>' ~ param_name ~ '</name>' }}
                {%- if param_fields.type is defined %}
                    {{- '\n<type>' ~ (param_fields.type | string) ~ '</type>' }}
                {%- endif %}
                {{- render_extra_keys(param_fields, ['name', 'type', 'description']) }}
                {{- '\n</parameter>' }}
            {%- endfor %}
        {%- endif %}
        {{- '\n</parameters>\n</function>' }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls is defined and message.tool_calls is iterable and message.tool_calls | length > 0 %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content is defined and message.content is string and message.content | trim | length > 0 %}
            {{- '\n' + message.content | trim + '\n' }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n<function=' + tool_call.name + '>\n' }}
            {%- if tool_call.arguments is defined %}
                {%- for args_name, args_value in tool_call.arguments | items %}
                    {{- '<parameter=' + args_name + '>\n' }}
                    {%- set args_value = args_value | tojson | safe if args_value is mapping or (args_value is sequence and args_value is not string) else args_value | string %}
                    {{- args_value }}
                    {{- '\n</parameter>\n' }}
                {%- endfor %}
            {%- endif %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "user" or message.role == "system" or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if not loop.last and loop.nextitem.role != "tool" %}
            {{- '<|im_end|>\n' }}
        {%- elif loop.last %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

# Constructs of Llama 3.2 and 4 with calls in brackets: arguments printed by kind, the end of a turn.
PYTHONIC = r"""
{{- bos_token }}
{{- "<|start_header_id|>system<|end_header_id|>\n\nFunctions:\n" }}
{%- for t in tools or [] %}
    {{- t.function | tojson(indent=4) }}
    {{- "\n" }}
{%- endfor %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n[' -}}
        {%- for tool_call in message.tool_calls %}
            {%- set tool_call = tool_call.function %}
            {{- tool_call.name + '(' -}}
            {%- for param in tool_call.arguments %}
                {{- param + '=' -}}
                {{- ("%s" | format(tool_call.arguments[param])) if tool_call.arguments[param] is number else tool_call.arguments[param] | tojson -}}
                {%- if not loop.last %}{{- ', ' -}}{% endif %}
            {%- endfor %}
            {{- ')' -}}
            {%- if not loop.last %}{{- ', ' -}}{%- endif %}
        {%- endfor %}
        {{- ']<|eot_id|>' -}}
    {%- elif message.role == "tool" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" + message.content + "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

SMALL = (pathlib.Path(__file__).parents[1] / "src/chat_template.jinja").read_text(encoding="utf-8")

# Name, tool-call format, template, tags, merges, variables of the template.
FAMILIES = [
    ("small", "hermes", SMALL, CHATML_TAGS, ['{"'], {}),
    ("qwen2.5", "hermes", CHATML, CHATML_TAGS, ['{"'], {}),
    ("qwen3", "hermes", THINKING, CHATML_TAGS, ['{"'], {}),
    ("qwen3-coder", "qwen_xml", XML, CHATML_TAGS, ["</"], {}),
    ("llama3.1", "llama3", HEADERS, LLAMA3_TAGS, ['{"'], {"date_string": "26 Jul 2024"}),
    ("llama3.2", "pythonic", PYTHONIC, LLAMA3_TAGS, [], {}),
]
STOPS = ["<|im_end|>", "<|eot_id|>"]

CITY = "Z\u00fcrich \"old\" <town>"
REASONING = "I look it up."
USER = {"role": "user", "content": "How is it in \"Z\u00fcrich\"?\n<|im_end |> & {{ x }} \U0001f600"}


def episode(family):
    """Two turns of calls and an answer. Llama 3.1 knows one call a message; Qwen3 keeps reasoning."""
    first = [("weather", {"city": CITY, "days": 3})]
    if family != "llama3.1":
        first.append(("time", {}))
    turns = [(first, ["{\"celsius\": 21.5}", "12:05 </tool_response >"]), ([("weather", {"city": "Bern"})], ["{}"])]
    messages, number = [USER], 0
    for calls, results in turns:
        ids = [f"call{number + index:05}" for index in range(len(calls))]
        number += len(calls)
        message = {"role": "assistant", "content": "", "tool_calls": [call(id, *of) for id, of in zip(ids, calls)]}
        messages.append(message | ({"reasoning_content": REASONING} if family == "qwen3" else {}))
        for id, (name, _), result in zip(ids, calls, results):
            messages.append({"role": "tool", "name": name, "tool_call_id": id, "content": result})
    answer = {"role": "assistant", "content": "It is warm."}
    messages.append(answer | ({"reasoning_content": "21 is warm."} if family == "qwen3" else {}))
    return messages


def tokenizer(tags, merges, template):
    """Bytes, one token for each merge of two characters, and the tags."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate(alphabet + merges)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[(merge[0], merge[1]) for merge in merges]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken(tag, special=tag not in ORDINARY, normalized=False) for tag in tags])
    special = {"bos_token": "<|begin_of_text|>"} if "<|begin_of_text|>" in tags else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **special)


def main():
    episodes = []
    for family, format, template, tags, merges, variables in FAMILIES:
        made = tokenizer(tags, merges, template)
        messages, tools = episode(family), [with_days(WEATHER), TIME]
        render = lambda shown, prompt: made.apply_chat_template(shown, tools=tools, tokenize=False, add_generation_prompt=prompt, **variables)
        whole = render(messages, False)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = render(messages[:index], True)
                assert whole.startswith(prompt), (family, index)
                ends = [whole.find(stop, len(prompt)) + len(stop) for stop in STOPS if stop in whole[len(prompt):]]
                spans.append((len(prompt), min(ends)))
        encoded = made(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids = made.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True, **variables)["input_ids"]
        assert ids == encoded["input_ids"], family
        mask = [int(any(start <= a and b <= end for start, end in spans)) for a, b in encoded["offset_mapping"]]
        episodes.append({
            "family": family,
            "tool_call_format": format,
            "variables": variables,
            "tokenizer_json": made.backend_tokenizer.to_str(),
            "tokenizer_config": {"chat_template": template, "bos_token": made.bos_token},
            "tools": tools,
            "messages": messages,
            "token_ids": ids,
            "loss_mask": mask,
        })
    path = pathlib.Path(__file__).with_name("episode_fixtures.json")
    path.write_text(json.dumps(episodes, indent=None, separators=(",", ":")).replace('{"family"', '\n{"family"') + "\n", encoding="utf-8")
    for made in episodes:
        print(made["family"], len(made["token_ids"]), "tokens,", sum(made["loss_mask"]), "of the policy")


def with_days(tool):
    """The weather tool with a parameter that is a number."""
    tool = json.loads(json.dumps(tool))
    tool["function"]["parameters"]["properties"] |= {"days": {"type": "integer"}}
    return tool


if __name__ == "__main__":
    main()
