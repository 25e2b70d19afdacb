"""Tokens per second of llama.cpp on a CPU, one sequence: the peer of `ballast-actor bench --batch 1`.

Prints {"tokens_per_s": [...], "tokens_per_cpu_s": [...]}, one value per repetition, after one to warm
up. Decoding only, without sampling: the best case of an engine that sits at the memory's roof.
"""

import argparse
import json
import time

import llama_cpp


def main():
    options = parse()
    llama_cpp.llama_backend_init()
    # llama.cpp keeps the address alone, so the callback must outlive this function.
    llama_cpp.llama_log_set(SILENT, None)
    model = llama_cpp.llama_model_load_from_file(
        options.gguf.encode(), llama_cpp.llama_model_default_params()
    )
    if not model:
        raise SystemExit(f"llama.cpp cannot load {options.gguf}")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = options.prompt + options.new
    params.n_threads = params.n_threads_batch = options.threads
    context = llama_cpp.llama_init_from_model(model, params)
    runs = [decode(context, options) for _ in range(options.repeat + 1)][1:]
    tokens_per_s = [options.new / wall for wall, _ in runs]
    tokens_per_cpu_s = [options.new / cpu for _, cpu in runs]
    print(json.dumps({"tokens_per_s": tokens_per_s, "tokens_per_cpu_s": tokens_per_cpu_s}))


@llama_cpp.llama_log_callback
def SILENT(_level, _text, _data):
    """Takes llama.cpp's log messages and prints none."""


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--prompt", type=int, default=128, help="tokens given")
    parser.add_argument("--new", type=int, default=128, help="tokens decoded")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def decode(context, options):
    """Prefills the prompt, then decodes token after token; wall and CPU seconds of the latter."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    step(context, [(at * 7) % 2000 for at in range(options.prompt)])
    wall, cpu = time.perf_counter(), time.process_time()
    for at in range(options.new):
        step(context, [(at * 31) % 2000])
    return time.perf_counter() - wall, time.process_time() - cpu


def step(context, tokens):
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))):
        raise SystemExit("llama.cpp cannot decode")


if __name__ == "__main__":
    main()
