"""Writes template_fixtures.json: what transformers renders for the chat templates below.

    python chat/tests/make_template_fixtures.py

Needs transformers 5 and jinja2 3.1.6 or later; no network. The templates are our own; each uses the
constructs of a family of published ones. Every template meets every conversation it declares, with
and without generation prompt; errors are recorded as the exception's class and text.
"""

import datetime
import json
import pathlib

from transformers.utils import chat_template_utils

NOW = datetime.datetime(2024, 7, 26, 13, 5, 9)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class Clock(datetime.datetime):
    """The clock of `strftime_now`, stopped."""

    @classmethod
    def now(cls, tz=None):
        return cls(*NOW.timetuple()[:6])


chat_template_utils.datetime = Clock

# Constructs of Qwen2.5: system message with a fall-back, tools as JSON lines, tool results grouped
# into one user message by looking at the neighbours, arguments as an object or a text.
CHATML = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'Be brief.' }}
    {%- endif %}
    {{- "\n\n# Functions\n\nEach line is one:\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\nReply with {\"name\": ..., \"arguments\": ...} in <tool_call> tags.<|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nBe brief.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

# Constructs of Qwen3: a namespace that finds the last question by walking backwards, reasoning
# split out of the content with string methods, kept for the turns behind that question only.
THINKING = r"""
{%- set ns = namespace(multi_step=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "user" or message.role == "system" %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

# Constructs of Llama 3.1: `is not defined` fall-backs, the date, the list of messages cut, tools
# indented by four, a refusal of parallel calls, content that is a list of parts, `in` on objects.
HEADERS = r"""
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "01 Jan 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code') | join(", ") + "\n\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\n' -}}
    {{- 'Functions:\n\n' }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {%- if message['content'] is string %}
            {{- message['content'] | trim + '<|eot_id|>' }}
        {%- else %}
            {%- for content in message['content'] %}
                {%- if content['type'] == 'image' %}
                    {{- '<|image|>' }}
                {%- elif content['type'] == 'text' %}
                    {{- content['text'] | trim }}
                {%- endif %}
            {%- endfor %}
            {{- '<|eot_id|>' }}
        {%- endif %}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
            {{- "<|python_tag|>" + tool_call.name + ".call(" }}
            {%- for arg_name, arg_val in tool_call.arguments | items %}
                {{- arg_name + '="' ~ arg_val ~ '"' }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- endif %}
            {%- endfor %}
            {{- ")" }}
        {%- else %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
            {{- '{"name": "' + tool_call.name + '", ' }}
            {{- '"parameters": ' }}
            {{- tool_call.arguments | tojson }}
            {{- "}" }}
        {%- endif %}
        {%- if builtin_tools is defined %}
            {{- "<|eom_id|>" }}
        {%- else %}
            {{- "<|eot_id|>" }}
        {%- endif %}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

# Constructs of Mistral: `set` blocks over slices, selectattr, roles that must alternate, ids of
# nine letters, objects printed key by key, `not ... | length`, single quotes around JSON.
BRACKETS = r"""
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS][" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS]{"content": ' + content|string + ", " }}
        {%- if not message.tool_call_id is defined or message.tool_call_id|length != 9 %}
            {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

# `{% generation %}`, macros with defaults and recursion, XML-style calls, loop controls, blocks
# that set, filters, and dict methods where an argument has the name of a method.
MARKED = r"""
{%- macro show(value, depth=0) -%}
    {%- if value is mapping -%}
        {{ '{' }}{% for key, item in value.items() %}{{ key }}={{ show(item, depth + 1) }}{{ ';' if not loop.last }}{% endfor %}{{ '}' }}
    {%- elif value is sequence and value is not string -%}
        [{% for item in value %}{{ show(item, depth=depth + 1) }}{{ ',' if not loop.last else '' }}{% endfor %}]
    {%- else -%}
        {{ value }}@{{ depth }}
    {%- endif -%}
{%- endmacro -%}
{# {% generation %} in a comment is no tag #}
{%- for message in messages %}
    {%- if message.role == 'comment' %}{% continue %}{% endif %}
    {%- if message.role == 'stop' %}{% break %}{% endif %}
<|{{ message.role }}|>
{% if message.role == 'assistant' -%}
    {%- generation -%}
    {%- if message.reasoning_content %}<think>{{ message.reasoning_content | trim }}</think>{% endif %}
    {{- message.content or '' }}
    {%- for call in message.tool_calls or [] %}
<function={{ call.function.name }}>
        {%- if call.function.arguments is mapping %}
            {%- for name, value in call.function.arguments.items() %}
<parameter={{ name }}>{{ value if value is string else value | tojson | safe }}</parameter>
            {%- endfor %}
        {%- endif %}
</function>{{ show(call.function.arguments) }}
    {%- endfor %}
    {{- '<|end|>' }}
    {%- endgeneration %}
{% else %}
    {%- set body %}{{ message.content }}{% endset %}
    {{- body | replace('\r\n', '\n') }}<|end|>
{% endif %}
{%- endfor %}
{% if add_generation_prompt %}<|assistant|>
{% endif -%}
"""

# One expression a line: the filters, tests, methods and operators that templates use.
EXPRESSIONS = [
    "{{ true }} {{ false }} {{ none }} {{ 1 }} {{ -2 }} {{ 1.0 }} {{ 1e20 }} {{ 1e-7 }} {{ 3 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 8 }}",
    "{{ [1, 'a', none, true, 1.5, [2]] }} {{ {'a': 1, 'b': 'c'} }} {{ (1, 'x') }} {{ [] }} {{ {} }}",
    "{{ missing }}|{{ messages[99] }}|{{ messages[0].nothing }}|{{ missing is defined }}|{{ missing | default('d') }}|{{ '' | default('e', true) }}|{{ none | default('n') }}",
    "{{ missing.attribute }}",
    "{{ missing['key'] }}",
    "{{ none.attribute }}|{{ 'text'.attribute }}",
    "{{ missing + 'x' }}",
    "{{ 'x' + 1 }}",
    "{{ 'x' + none }}",
    "{{ 'x' ~ 1 ~ true ~ none ~ missing ~ 1.5 }}",
    "{% for x in missing %}never{% else %}empty{% endfor %}",
    "{{ missing() }}",
    "{{ messages.append(1) }}",
    "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a-b-c'.split('-', 1) }} {{ 'a-b-c'.split('-', maxsplit=1) }} {{ 'a-b-c'.rsplit('-', 1) }} {{ '  a b  c '.split(None, 1) }} {{ '  a b  c '.rsplit(None, 1) }}",
    "{{ ' x '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ '\\n a'.lstrip('\\n') }}|{{ 'a\\x1f\\u00a0'.rstrip() }}|{{ ' t ' | trim }}|{{ '--t--' | trim('-') }}",
    "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.find('c') }} {{ 'abcabc'.rfind('b') }} {{ 'abc'.replace('b', '') }} {{ 'aXbX'.replace('X', '-', 1) }} {{ 'abcabc'.count('b') }}",
    "{{ 'aB c'.upper() }} {{ 'aB'.lower() }} {{ 'ab cd'.title() }} {{ 'ab CD'.capitalize() }} {{ 'a\\nb'.splitlines() }} {{ '-'.join(['a', 'b']) }} {{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ '{} and {x}'.format(1, x=2) }}",
    "{{ 'prefix-a'.removeprefix('prefix-') }} {{ 'a.txt'.removesuffix('.txt') }} {{ 'k=v=w'.partition('=') }} {{ 'k=v=w'.rpartition('=') }}",
    "{{ 'hello'[0] }}{{ 'hello'[-1] }}{{ 'hello'[1:3] }}{{ 'hello'[::-1] }}{{ 'hello'[:-1] }}{{ 'hello'[-3:] }}{{ [1,2,3][::-1] }}{{ [1,2,3][1:] }}{{ [1,2,3,4][::2] }}",
    "{{ 'a' in 'abc' }} {{ 'a' not in ['b'] }} {{ 'k' in {'k': 1} }} {{ 1 in [1, 2] }} {{ 'x' in missing }}",
    "{{ 1 < 2 < 3 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ not true }} {{ true and 'x' }} {{ '' or 'y' }} {{ 'a' if false }}|{{ 'a' if false else 'b' }}",
    "{{ 'a' is string }} {{ 1 is string }} {{ {} is mapping }} {{ [] is mapping }} {{ 'a' is iterable }} {{ none is iterable }} {{ 1 is iterable }} {{ [] is sequence }} {{ {} is sequence }} {{ 1 is number }} {{ 1.0 is integer }} {{ 1 is integer }} {{ 1.5 is float }} {{ true is boolean }} {{ false is false }} {{ 1 is true }} {{ none is none }} {{ 2 is even }} {{ 3 is divisibleby 3 }} {{ 'a' is in ['a'] }} {{ 1 is eq 1 }} {{ 'x' is sameas 'x' }}",
    "{{ [3, 1, 2] | sort }} {{ [1, 2] | sum }} {{ [3, 1] | min }} {{ [3, 1] | max }} {{ [1, 1, 2] | unique | list }} {{ [1, 2, 3] | first }} {{ [1, 2, 3] | last }} {{ [1, 2] | join('-') }} {{ ['a', none, true] | join(',') }} {{ [1, 2] | reverse | list }} {{ 'abc' | reverse }} {{ 'abc' | list }} {{ 'abc' | length }} {{ {'a': 1} | length }}",
    "{{ messages | map(attribute='role') | list }} {{ messages | map(attribute='role') | join(',') }} {{ ['a', 'b'] | map('upper') | join }} {{ messages | selectattr('role', 'equalto', 'user') | map(attribute='role') | list }} {{ messages | rejectattr('role', 'in', ['user', 'tool']) | list | length }} {{ messages | selectattr('tool_calls', 'defined') | list | length }} {{ [1, 2, 3] | select('odd') | list }} {{ [0, 1, ''] | reject | list }}",
    "{{ {'b': 1, 'a': 2} | dictsort }} {{ {'b': 1} | items | list }} {{ {'b': 1}.items() | list }} {{ {'b': 1}.keys() | list }} {{ {'b': 1}.values() | list }} {{ {'b': 1}.get('b') }} {{ {'b': 1}.get('z') }} {{ {'b': 1}.get('z', 'd') }} {{ dict(a=1, b=2) }}",
    "{{ {'items': [1]}['items'] }} {% for k, v in {'items': 1, 'keys': 2, 'get': 3}.items() %}{{ k }}{{ v }}{% endfor %} {{ {'get': 1}.get('get') }}",
    "{{ 'a' | upper }} {{ 'A' | lower }} {{ 'a b' | title }} {{ 'ab' | capitalize }} {{ 'aXb' | replace('X', '-') }} {{ '<a>' | e }} {{ '<a>' | safe }} {{ 3.7 | int }} {{ '42' | int }} {{ 'x' | int(7) }} {{ '1.5' | float }} {{ 2.567 | round(1) }} {{ -3 | abs }} {{ 5 | string }} {{ true | string }} {{ none | string }}",
    "{{ 'a\\nb' | indent(2) }}|{{ 'a\\nb' | indent(2, true) }}|{{ '%s is %d' | format('x', 3) }}|{{ '%.2f' | format(1.005) }}|{{ [1, 2, 3, 4, 5] | batch(2) | list }}|{{ 'a b c' | wordcount if false else 3 }}",
    "{{ '\\u00e9\\n\\t\"\\\\/<>&\\'' | tojson }} {{ {'a': [1, 2.0, none, true, 'x'], 'b': {}, 'c': []} | tojson }} {{ 1e16 | tojson }} {{ 0.1 | tojson }} {{ 1e-5 | tojson }} {{ 12345678901234567890 | tojson }}",
    "{{ {'b': 1, 'a': [1, {'c': 2}], 'e': [], 'f': {}} | tojson(indent=2) }}",
    "{{ {'b': 1, 'a': '\\u00e9\U0001f600\\x7f'} | tojson(ensure_ascii=True, sort_keys=true) }} {{ {'b': [1, 2]} | tojson(separators=(',', ':')) }} {{ {'b': [1, 2]} | tojson(indent=1, separators=(',', ': ')) }} {{ [1, 2] | tojson(indent=0) }} {{ [1] | tojson(indent='\\t') }} {{ {2: 2, none: 3, false: 4, 1.5: 5} | tojson }} {{ [1e20, [1e-7]] }} {{ [1e20] | tojson }} {{ [1e20] | string }}",
    "{{ missing | tojson }}",
    "{{ messages | tojson }}",
    "{{ messages[1:] | tojson }}",
    "{{ raise_exception('no: ' ~ messages[0].role) }}",
    "{{ strftime_now('%Y-%m-%d %H:%M:%S %A %B %d %b %j') }}",
    "{% set ns = namespace(a=1, found=false) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.a }} {{ ns.found }}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{{ loop.index }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('a', 'b') }} {% endfor %}",
    "{% for i in [1, 2, 3] if i != 2 %}{{ loop.index }}{{ i }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}{% for c in 'ab' %}{{ c }}.{% endfor %}{% for k in {'x': 1} %}{{ k }}{% endfor %}",
    "{% macro m(a, b='B', c=none) %}[{{ a }}{{ b }}{{ c }}{{ caller() if caller else '' }}]{% endmacro %}{{ m(1) }}{{ m(1, c=2) }}{{ m() }}{% call m('x') %}body{% endcall %}",
    "{% macro down(n) %}{{ n }}{% if n %}{{ down(n - 1) }}{% endif %}{% endmacro %}{{ down(5) }}",
    "{% filter upper %}abc {{ 'd' }}{% endfilter %} {% with a = 1, b = 2 %}{{ a + b }}{% endwith %} {% raw %}{{ x }}{% endraw %} {# c #}",
    "a  {%- if true -%}  b  {%- endif -%}  c\n  {% if true %}\n  d\n  {% endif %}\n\n  {{ 'e' }}  \n{%+ if true %}f{% endif +%}\n g\n\n",
    "{{ 'a' 'b' }} {{ \"q'q\" }} {{ 'n\\n\\t\\x41\\u00e9' }} {{ 'it\\'s' }} {{ 1_000 }}",
    "{{ bos_token }}{{ eos_token }}{{ pad_token }}",
    "{{ tools is none }} {{ tools is defined }} {{ documents is none }} {{ add_generation_prompt }} {{ tools or [] }}",
    "{{ range(3) | list }} {{ range(1, 6, 2) | list }} {{ [1] + [2] }} {{ [0] * 3 }} {{ 'ab' * 2 }} {{ '-' * 3 }}",
    "{% if messages | length > 1 and messages[-1].role == 'user' %}last{% elif true %}other{% else %}none{% endif %}",
    "{{ messages[-1]['content'][:3] }} {{ (messages | last).role }} {{ messages | map(attribute='content') | select('string') | list | length }}",
    "{{ unknown_function(1) }}",
    "{{ 1 / 0 }}",
    "{{ 'x' | nosuchfilter }}",
    "{% if %}",
    "{% for x in %}{% endfor %}",
    "{{ 'unclosed }}",
    "{% generation %}{% for m in messages %}{{ loop.index }}{{ m.role }}{% endfor %}{% endgeneration %}|{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% endgeneration %}, {% endfor %}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% generation %}unclosed",
    "{{ '%' }}{{ '}}' }}{{ '{%' }}{{ {'a': {'b': 1}}['a']['b'] }}{{ '{% generation %}' }}",
]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city: \"now\" or <later> & 'soon'.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Caf\u00e9 \u6771\u4eac"},
                "items": {"type": "array", "items": {"type": "number"}, "default": [0.5, 1.0, 1e-7]},
            },
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "description": "", "parameters": {"type": "object", "properties": {}}}}


def call(id, name, arguments):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "  You help.\n"}
USER = {"role": "user", "content": "How is it in \"Z\u00fcrich\"?\n\n\t<b> & {{ x }} \U0001f600"}
CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [call("abcdefgh1", "weather", {"city": "Z\u00fcrich \"old\" <town>", "items": [1, 2.5, -0.001, None, True, {"a": [], "b": {}}]})],
}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abcdefgh1", "content": "{\"celsius\": 21.5}"}
ANSWER = {"role": "assistant", "content": "It is warm.  "}
PARALLEL = {
    "role": "assistant",
    "content": "Both:",
    "reasoning_content": "\nI need two.\n",
    "tool_calls": [call("abcdefgh1", "weather", {"city": "Bern"}), call("abcdefgh2", "time", {})],
}
RESULT_2 = {"role": "tool", "name": "time", "tool_call_id": "abcdefgh2", "content": "12:05"}
THOUGHT = {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nFine."}
AGAIN = {"role": "user", "content": "And tomorrow?"}

CONVERSATIONS = {
    "question": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "answered": {"messages": [SYSTEM, USER, ANSWER, AGAIN]},
    "tools": {"messages": [USER], "tools": [WEATHER, TIME]},
    "no tools": {"messages": [USER], "tools": []},
    "called": {"messages": [SYSTEM, USER, CALLS, RESULT, ANSWER], "tools": [WEATHER]},
    "parallel": {"messages": [USER, PARALLEL, RESULT, RESULT_2, ANSWER], "tools": [WEATHER, TIME]},
    "thoughts": {"messages": [USER, THOUGHT, AGAIN, PARALLEL, RESULT, RESULT_2, THOUGHT]},
    "text arguments": {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call("abcdefgh1", "time", "{\"zone\": 1.50}")]}, RESULT]},
    "null content": {"messages": [USER, {"role": "assistant", "content": None}, AGAIN]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": " See "}, {"type": "image"}, {"type": "text", "text": "this. "}]}]},
    "object result": {"messages": [USER, CALLS, dict(RESULT, content={"content": [1.0, "\u00e9"], "ok": True})], "tools": [WEATHER]},
    "short id": {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call("x", "time", {})]}, AGAIN]},
    "wrong order": {"messages": [USER, AGAIN]},
    "other roles": {"messages": [{"role": "comment", "content": "c"}, USER, {"role": "stop", "content": "s"}, AGAIN]},
    "no thinking": {"messages": [USER], "extra": {"enable_thinking": False}},
    "options": {"messages": [USER, CALLS], "tools": [WEATHER], "extra": {"tools_in_user_message": False, "builtin_tools": ["code", "weather"], "date_string": "1 May"}},
    "old names": {"messages": [USER, {"role": "assistant", "content": "Yes.", "thinking": "Hm."}]},
    "documents": {"messages": [USER], "documents": [{"title": "T", "text": "t"}]},
    "private characters": {"messages": [{"role": "user", "content": "a\ue000b\U000f0009c"}]},
    "crlf": {"messages": [{"role": "user", "content": "a\r\nb\rc\n"}]},
    "only system": {"messages": [SYSTEM], "tools": [WEATHER]},
}
TEMPLATES = {"chatml": CHATML, "thinking": THINKING, "headers": HEADERS, "brackets": BRACKETS, "marked": MARKED}


def render(template, conversation, add_generation_prompt):
    """The text and the assistant's spans in characters, or the error."""
    try:
        rendered, spans = chat_template_utils.render_jinja_template(
            conversations=[conversation["messages"]],
            tools=conversation.get("tools"),
            documents=conversation.get("documents"),
            chat_template=template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=add_generation_prompt,
            **TOKENS,
            **conversation.get("extra", {}),
        )
        return {"text": rendered[0], "spans": spans[0]}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


def main():
    cases = []
    for name, template in TEMPLATES.items():
        for conversation, given in CONVERSATIONS.items():
            for prompt in (False, True):
                cases.append({"template": name, "conversation": conversation, "add_generation_prompt": prompt, **render(template, given, prompt)})
    for index, template in enumerate(EXPRESSIONS):
        cases.append({"template": f"expression {index}", "conversation": "parallel", "add_generation_prompt": True, **render(template, CONVERSATIONS["parallel"], True)})
    fixtures = {
        "unix_seconds": int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp()),
        "special_tokens": TOKENS,
        "templates": TEMPLATES | {f"expression {index}": template for index, template in enumerate(EXPRESSIONS)},
        "conversations": CONVERSATIONS,
        "cases": cases,
    }
    path = pathlib.Path(__file__).with_name("template_fixtures.json")
    path.write_text(json.dumps(fixtures, indent=1) + "\n", encoding="utf-8")
    errors = sum("error" in case for case in cases)
    print(f"{path}: {len(cases)} cases, {errors} of them errors")


if __name__ == "__main__":
    main()
