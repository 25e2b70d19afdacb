"""Tokens per second of Hugging Face transformers on eager PyTorch, on a CPU.

The peer of `ballast-actor bench` and `ballast-learner bench`: same checkpoint, shapes and threads.
Prints {"tokens_per_s": [...], "tokens_per_cpu_s": [...]}, one value per repetition, after one to warm
up.
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=options.dtype)
    work = rollout(model, options) if options.mode == "rollout" else train(model, options)
    runs = [measure(work) for _ in range(options.repeat + 1)][1:]
    tokens_per_s = [tokens / wall for tokens, wall, _ in runs]
    tokens_per_cpu_s = [tokens / cpu for tokens, _, cpu in runs]
    print(json.dumps({"tokens_per_s": tokens_per_s, "tokens_per_cpu_s": tokens_per_cpu_s}))


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["rollout", "train"])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--batch", type=int, default=64, help="sequences at once")
    parser.add_argument("--prompt", type=int, default=96, help="rollout: tokens given")
    parser.add_argument("--new", type=int, default=64, help="rollout: tokens sampled")
    parser.add_argument("--tokens", type=int, default=256, help="train: tokens per sequence")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def rollout(model, options):
    """Samples from the whole distribution with a KV cache; counts sampled tokens."""
    model.eval()
    prompts = random_ids(model, options.batch, options.prompt)

    def work():
        # No token ends a sequence early, so every repetition samples the same number.
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            min_new_tokens=options.new,
            max_new_tokens=options.new,
            pad_token_id=0,
        )
        return options.batch * options.new

    return work


def train(model, options):
    """Forward, backward and an AdamW step; counts the tokens of the batch."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0)
    batch = random_ids(model, options.batch, options.tokens)

    def work():
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return batch.numel()

    return work


def random_ids(model, batch, tokens):
    return torch.randint(0, model.config.vocab_size, (batch, tokens))


def measure(work):
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return tokens, time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
