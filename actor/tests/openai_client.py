"""The official `openai` client against `ballast-actor serve` with the model of examples/market/base.

Usage: openai_client.py BASE_URL MODEL

Drives a conversation over two tools to its answer, whole and streamed, and checks that both say the
same, with log-probabilities and token ids; then plain completions, the list of models and errors.
Exits with 1 at the first thing that is not as it should be.
"""

import json
import math
import sys

import openai

# As the model was trained: its own shorthand for parameters, and requests for one number.
FUNCTIONS = [
    {"name": "product", "parameters": {"name": "string"}},
    {"name": "customer", "parameters": {"name": "string"}},
    {"name": "compute", "parameters": {"op": "add|sub|mul", "a": "integer", "b": "integer"}},
    {"name": "reserve", "parameters": {"product": "string", "quantity": "integer"}},
    {"name": "order", "parameters": {"customer": "string", "reservation": "integer"}},
    {"name": "refund", "parameters": {"order": "integer"}},
]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
REQUEST = "cost of 3 lamp"
PRICE = 14
TURNS_MAX = 6


def product(name):
    return {"price": PRICE, "stock": 7} if name == "lamp" else {"error": "unknown product"}


def compute(op, a, b):
    return {"result": {"add": a + b, "sub": a - b, "mul": a * b}[op]}


def check(holds, what):
    if not holds:
        sys.exit(f"openai_client.py: {what}")


def check_tokens(token_ids, logprobs, finish_reason):
    """Every sampled token has its id and its log-probability."""
    check(len(token_ids) == len(logprobs) > 0, f"{len(token_ids)} ids, {len(logprobs)} logprobs")
    for entry in logprobs:
        check(math.isfinite(entry.logprob) and entry.logprob <= 0, f"logprob {entry.logprob}")
        check(isinstance(entry.bytes, list), "a token has bytes")
    check(finish_reason in ("stop", "tool_calls"), f"finish_reason {finish_reason}")


def whole(client, request):
    answer = client.chat.completions.create(**request)
    choice = answer.choices[0]
    check_tokens(choice.token_ids, choice.logprobs.content, choice.finish_reason)
    check(answer.usage.completion_tokens == len(choice.token_ids), f"usage {answer.usage}")
    check(answer.usage.prompt_tokens == len(answer.prompt_token_ids), f"usage {answer.usage}")
    calls = [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
    return choice.message.content or "", calls, choice.token_ids, choice.finish_reason


def streamed(client, request):
    content, calls, token_ids, logprobs, finish_reason, usage = "", {}, [], [], None, None
    chunks = client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                # As clients do it: the id and the name come once, arguments may come in pieces.
                told = calls.setdefault(call.index, ["", "", ""])
                told[0] += call.id or ""
                told[1] += call.function.name or ""
                told[2] += call.function.arguments or ""
            token_ids += getattr(choice, "token_ids", None) or []
            logprobs += choice.logprobs.content if choice.logprobs else []
            finish_reason = choice.finish_reason or finish_reason
    check_tokens(token_ids, logprobs, finish_reason)
    check(usage.completion_tokens == len(token_ids), f"usage {usage}")
    return content, [tuple(call) for call in calls.values()], token_ids, finish_reason


def converse(client, model, ask):
    """Runs the conversation to its answer; the tools called, and all that was sampled."""
    messages, called, sampled = [{"role": "user", "content": REQUEST}], [], []
    for _ in range(TURNS_MAX):
        content, calls, token_ids, finish_reason = ask(
            client,
            {
                "model": model,
                "messages": messages,
                "tools": TOOLS,
                "temperature": 0,
                "max_tokens": 64,
                "logprobs": True,
                "extra_body": {"return_token_ids": True},
            },
        )
        sampled.append(token_ids)
        if not calls:
            check(finish_reason == "stop", f"finish_reason {finish_reason} without a call")
            return called, sampled, content
        check(finish_reason == "tool_calls", f"finish_reason {finish_reason} with a call")
        tool_calls = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id, name, arguments in calls
        ]
        messages.append({"role": "assistant", "content": content or None, "tool_calls": tool_calls})
        for id, name, arguments in calls:
            called.append(name)
            result = {"product": product, "compute": compute}[name](**json.loads(arguments))
            messages.append({"role": "tool", "tool_call_id": id, "content": json.dumps(result)})
    sys.exit(f"openai_client.py: no answer after {TURNS_MAX} turns: {messages}")


def complete(client, model):
    """Plain completions: several choices, text or token ids, streamed or not."""
    request = {"model": model, "prompt": [5, 6, 7], "max_tokens": 8, "seed": 3, "logprobs": 0, "n": 2}
    answer = client.completions.create(**request, extra_body={"return_token_ids": True})
    check(len(answer.choices) == 2, "two choices")
    for choice in answer.choices:
        check(choice.prompt_token_ids == [5, 6, 7], f"prompt {choice.prompt_token_ids}")
        check(len(choice.token_ids) == len(choice.logprobs.token_logprobs), "a logprob for each token")
    texts = ["", ""]
    for chunk in client.completions.create(**request, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    check(texts == [choice.text for choice in answer.choices], "streamed text is the whole text")


def refuse(client, model):
    """Errors arrive as the client's own exceptions, with a message for people."""
    ask = client.chat.completions.create
    hello = [{"role": "user", "content": "x"}]
    expected = [
        (openai.NotFoundError, "does not exist", {"model": "gpt", "messages": hello}),
        (openai.BadRequestError, "messages", {"model": model, "messages": []}),
        (openai.BadRequestError, "context", {"model": model, "messages": hello, "max_tokens": 10**6}),
        (openai.BadRequestError, "top_logprobs",
         {"model": model, "messages": hello, "logprobs": True, "top_logprobs": 5}),
    ]
    for error, words, request in expected:
        try:
            ask(**request)
        except error as raised:
            check(words in raised.message, f"{raised.message!r} lacks {words!r}")
        else:
            sys.exit(f"openai_client.py: {request} was answered")


def main():
    base_url, model = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60)
    check([served.id for served in client.models.list()] == [model], "the model is listed")
    check(client.models.retrieve(model).id == model, "the model is found by its name")
    at_once = converse(client, model, whole)
    check(at_once[0] == ["product", "compute"], f"called {at_once[0]}")
    check(at_once == converse(client, model, streamed), "streamed and whole are the same")
    complete(client, model)
    refuse(client, model)
    print(f"ok: {REQUEST!r} -> {' -> '.join(at_once[0])} -> {at_once[2]!r}")


if __name__ == "__main__":
    main()
