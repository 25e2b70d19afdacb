"""Records what vLLM answers to the requests of the actor's external engine.

Starts `vllm` on a CPU with a tiny random model, sends what `actor/src/external` sends in an episode
with a tool's result and a change of weights, and writes requests and answers to
actor/tests/external_vllm.json, which actor/tests/external_vllm.rs replays. Run it after vLLM or the
requests change:

    .tools/vllm/bin/python bench/record_vllm.py

The server is the one that `requirements-vllm.txt` installs. It takes two minutes, most of it imports.
"""

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "examples/market/base/tokenizer.json"
FIXTURE = ROOT / "actor/tests/external_vllm.json"
CONTEXT = 256
TOKENS_MAX = 72
# As the spool names them.
VERSIONS = ["policy-1-0101010101010101", "policy-2-0202020202020202"]
START_S_MAX = 900

# Ids of the market tokenizer: `<|im_end|>` and `<|endoftext|>` end a message.
STOPS = [469, 467]
PROMPT = [468, 84, 82, 279, 198, 349, 220, 297, 220, 18, 220, 409, 469, 198, 468, 64, 383, 72, 267]
TOOL = [198, 468, 84, 82, 279, 198, 472, 198, 19, 17, 198, 473, 469, 198, 468, 64, 383, 72, 267]


def main():
    options = parse()
    control = control_ids()
    with tempfile.TemporaryDirectory() as directory:
        models = [make_model(Path(directory) / name, seed) for seed, name in enumerate(VERSIONS)]
        server = start(models[0], options.port)
        try:
            exchanges = record(options.port, models, control)
        finally:
            server.terminate()
            server.wait()
    import vllm

    written = {"vllm": vllm.__version__, "control": control, "prompt": PROMPT, "tool": TOOL}
    FIXTURE.write_text(json.dumps(written | {"exchanges": exchanges}, indent=1) + "\n")
    print(f"{len(exchanges)} exchanges in {FIXTURE}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=18817)
    return parser.parse_args()


def control_ids():
    """The control tokens that the market tokenizer spells, in the order of `ControlTokens::all`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    names = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>"]
    names += ["<tool_response>", "</tool_response>", '{"']
    ids = [tokenizer.token_to_id(name) for name in names]
    assert None not in ids, ids
    assert ids[1:3] == STOPS, ids
    return ids


def make_model(directory, seed):
    """A random Qwen3 over the market tokenizer; vLLM's CPU kernels want heads of 32 or wider."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=474,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        # At a reload vLLM's CPU build keeps the old head where the embedding is the head.
        tie_word_embeddings=False,
        eos_token_id=469,
        bos_token_id=None,
        pad_token_id=467,
        initializer_range=0.2,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        # The token that ends a message comes often.
        model.lm_head.weight[STOPS[0]] *= 2
    model.save_pretrained(directory)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(TOKENIZER.with_name(name), directory / name)
    return directory


def start(model, port):
    environment = os.environ | {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0-0",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", "policy", "--host", "127.0.0.1", "--port", port]
    command += ["--dtype", "float32", "--max-model-len", CONTEXT, "--max-num-seqs", 8]
    command += ["--enforce-eager", "--disable-uvicorn-access-log"]
    server = subprocess.Popen([str(word) for word in command], env=environment)
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if send(port, "GET", "/health", None)[0] == 200:
                return server
        except OSError:
            time.sleep(1)
    server.kill()
    raise SystemExit("vLLM did not start; its last words are above")


def send(port, method, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    data = None if body is None else json.dumps(body)
    headers = {} if body is None else {"content-type": "application/json"}
    connection.request(method, path, data, headers)
    answer = connection.getresponse()
    status, text = answer.status, answer.read().decode()
    connection.close()
    return status, text


def record(port, models, control):
    exchanges = []

    def exchange(method, path, body=None):
        status, text = send(port, method, path, body)
        if path.startswith("/server_info"):
            text = json.dumps({"vllm_config": parts_of(json.loads(text)["vllm_config"])})
        # Where the weights lie is the replaying test's to choose.
        if body is not None and "kwargs" in body:
            body = body | {"kwargs": {"weights_path": "SPOOL"}}
        exchanges.append(
            {"method": method, "path": path, "body": body, "status": status, "answer": text}
        )
        return text

    def load(model, version):
        exchange("POST", "/pause?mode=abort")
        rpc = {"method": "reload_weights", "kwargs": {"weights_path": str(model)}}
        exchange("POST", "/collective_rpc", rpc)
        exchange("POST", "/reset_prefix_cache")
        exchange("POST", "/update_weight_version", {"new_version": version})
        exchange("POST", "/resume")
        exchange("GET", "/weight_info")

    def complete(prompt, temperature, seed=7):
        body = request(prompt, temperature, TOKENS_MAX - len(prompt), control) | {"seed": seed}
        return tokens_of(exchange("POST", "/v1/completions", body))

    exchange("GET", "/server_info?config_format=json")
    load(models[0], VERSIONS[0])
    # A message that ends by itself and is more than its end; the replaying test has its own seeds.
    for seed in range(100):
        body = request(PROMPT, 1.0, 40, control) | {"seed": seed}
        if 4 <= len(tokens_of(send(port, "POST", "/v1/completions", body)[1])) < 20:
            break
    first = complete(PROMPT, 1.0, seed)
    assert first[-1] in STOPS, "no message ends; try other weights"
    complete(PROMPT + first + TOOL, 1.0)
    load(models[1], VERSIONS[1])
    complete(PROMPT, 0.0)
    # The same request as before, under the older weights.
    load(models[0], VERSIONS[0])
    complete(PROMPT, 0.0)
    # Refused: nothing may be left to sample, and weights that are not there.
    exchange("POST", "/v1/completions", request(PROMPT, 1.0, -1, control))
    exchange("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": "/"}})
    return exchanges


def parts_of(config):
    """What is read of vLLM's description of itself; the rest describes where it ran."""
    keys = [("model_config", "logprobs_mode"), ("device_config", "device")]
    return {part: {key: config[part][key]} for part, key in keys}


def tokens_of(text):
    events = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event).get("choices", [])]
    return [token for choice in choices for token in choice["token_ids"]]


def request(prompt, temperature, tokens_max, control):
    """What `completion::request` writes, but for the seed."""
    return {
        "prompt": prompt,
        "max_tokens": tokens_max,
        "stream": True,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": STOPS,
        "ignore_eos": True,
        "logprobs": 0,
        "logprob_token_ids": sorted(set(control)),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


if __name__ == "__main__":
    main()
