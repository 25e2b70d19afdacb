"""Makes the models that `policy/tests/models.rs` holds the network to.

Usage: make_model_fixtures.py [OUT_DIR], by default policy/tests/models. Needs torch and transformers.

Each fixture is a checkpoint directory as users bring it, of a tiny random network of one family and
one variant of config.json, and `expected.json`: what transformers computes from that directory in
fp32 on a CPU.
    tokens     one sequence
    positions  where in it logits are recorded
    logits     at each of these positions, [positions, vocabulary]
    prompt     a start, and
    greedy     the tokens that follow it one by one, always the likeliest
    bf16_gap   mean |difference| of these tokens' log-probabilities in bf16, by transformers itself

Weights are large enough that attention is far from uniform, norms and biases are random too, and the
contexts that RoPE scaling starts from are short: a part that is left out shows in the logits.
"""

import json
import pathlib
import shutil
import sys

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

VOCABULARY = 64
SEQUENCE_TOKENS = 80
POSITIONS = [0, 1, 2, 7, 15, 31, 47, 63, 79]
PROMPT_TOKENS = 6
GREEDY_TOKENS = 64

# A greedy choice that hangs by less than this could fall otherwise on another machine.
MARGIN_MIN = 1e-3

# A network that repeats itself shows little.
DISTINCT_MIN = 10

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

QWEN2 = (Qwen2Config, Qwen2ForCausalLM)
QWEN3 = (Qwen3Config, Qwen3ForCausalLM)
LLAMA = (LlamaConfig, LlamaForCausalLM)


def rope(kind, **keys):
    """`rope_parameters` of one type."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **keys}}


def yarn(**keys):
    """YaRN on heads that are wide enough for each of its numbers to show."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return heads | rope("yarn", factor=4.0, original_max_position_embeddings=64, **keys)


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)

# name: (family, changes to the shape, dtype on disk)
FIXTURES = {
    "qwen2": (QWEN2, {}, "bfloat16"),
    "qwen2_untied": (QWEN2, {"tie_word_embeddings": False}, "bfloat16"),
    "qwen2_yarn": (QWEN2, yarn(), "bfloat16"),
    "qwen2_layout4": (QWEN2, rope("default") | {"rope_theta": 1e6}, "bfloat16"),
    "qwen2_yarn_layout4": (QWEN2, yarn(beta_fast=1.5, beta_slow=0.25), "bfloat16"),
    "qwen3": (QWEN3, {"head_dim": 8}, "bfloat16"),
    "qwen3_wide_heads": (QWEN3, {"head_dim": 16}, "bfloat16"),
    "qwen3_untied": (QWEN3, {"head_dim": 8, "tie_word_embeddings": False}, "bfloat16"),
    "qwen3_bias": (QWEN3, {"head_dim": 8, "attention_bias": True}, "bfloat16"),
    "qwen3_layout4": (QWEN3, {"head_dim": 16} | rope("default"), "bfloat16"),
    "qwen3_float16": (QWEN3, {"head_dim": 8}, "float16"),
    "qwen3_float32": (QWEN3, {"head_dim": 8}, "float32"),
    "llama": (LLAMA, {}, "bfloat16"),
    "llama_untied_sharded": (LLAMA, {"tie_word_embeddings": False}, "bfloat16"),
    "llama_heads": (LLAMA, {"head_dim": 16, "num_key_value_heads": 4}, "bfloat16"),
    "llama_bias": (LLAMA, {"attention_bias": True}, "bfloat16"),
    "llama_llama3": (LLAMA, LLAMA3, "bfloat16"),
    "llama_llama3_layout4": (LLAMA, LLAMA3 | {"num_key_value_heads": 1}, "bfloat16"),
    "llama_linear": (LLAMA, rope("linear", factor=4.0), "bfloat16"),
    "llama_linear_layout4": (LLAMA, rope("linear", factor=2.5), "bfloat16"),
    "llama_yarn": (LLAMA, yarn(), "bfloat16"),
    "llama_yarn_factor": (
        LLAMA,
        yarn(attention_factor=1.5, truncate=False, beta_fast=1.5, beta_slow=0.25),
        "bfloat16",
    ),
    "llama_yarn_mscale": (LLAMA, yarn(mscale=1.2, mscale_all_dim=0.5), "bfloat16"),
}


def main(out):
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name, (family, changes, dtype) in FIXTURES.items():
        for seed in range(100):
            expected, margin = make(out / name, family, changes, dtype, seed)
            distinct = len(set(expected["greedy"]))
            if margin >= MARGIN_MIN and distinct >= DISTINCT_MIN:
                break
        else:
            sys.exit(f"{name}: no seed gives greedy choices that are clear and various enough")
        size = sum(file.stat().st_size for file in (out / name).iterdir())
        print(
            f"{name:24} seed {seed}, least margin {margin:.4f}, {distinct} distinct tokens, "
            f"bf16 gap {expected['bf16_gap']:.4f}, {size // 1024} KiB"
        )


def make(directory, family, changes, dtype, seed):
    """Writes one fixture; returns what is expected and the least margin of the greedy choices."""
    config_class, model_class = family
    torch.manual_seed(seed)
    changes = dict(changes)
    theta = changes.pop("rope_theta", None)
    if theta:
        changes["rope_parameters"] = changes["rope_parameters"] | {"rope_theta": theta}
    model = model_class(config_class(**(SHAPE | changes)))
    randomise(model)
    shutil.rmtree(directory, ignore_errors=True)
    shards = {"max_shard_size": "16KB"} if "sharded" in directory.name else {}
    model.to(getattr(torch, dtype)).save_pretrained(directory, **shards)
    (directory / "generation_config.json").unlink(missing_ok=True)
    if directory.name.endswith("layout4"):
        to_layout_4(directory / "config.json")
    expected, margin = expect(directory)
    (directory / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")
    return expected, margin


def randomise(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
            elif "embed" in name or "lm_head" in name:
                parameter.normal_(0.0, 0.3)
            else:
                parameter.normal_(0.0, 1.2 / parameter.shape[1] ** 0.5)
        model.tie_weights()


def to_layout_4(path):
    """Rewrites a config.json of transformers 5 as transformers 4 wrote it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters["rope_type"]
    if kind == "default":
        config["rope_scaling"] = None
    elif kind == "llama3":
        config["rope_scaling"] = parameters
    else:
        # What users were told to add by hand, with the key of that time.
        del parameters["rope_type"]
        config["rope_scaling"] = {"type": kind, **parameters}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    config.pop("layer_types", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def expect(directory):
    model = load(directory, torch.float32)
    tokens = torch.randint(VOCABULARY, (SEQUENCE_TOKENS,)).tolist()
    logits = model(torch.tensor([tokens])).logits[0]
    sequence = tokens[:PROMPT_TOKENS]
    margin = float("inf")
    for _ in range(GREEDY_TOKENS):
        best = model(torch.tensor([sequence])).logits[0, -1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        sequence.append(best.indices[0].item())
    gap = logprobs(model, sequence) - logprobs(load(directory, torch.bfloat16), sequence)
    expected = {
        "tokens": tokens,
        "positions": POSITIONS,
        "logits": [[round(x, 6) for x in logits[at].tolist()] for at in POSITIONS],
        "prompt": sequence[:PROMPT_TOKENS],
        "greedy": sequence[PROMPT_TOKENS:],
        "bf16_gap": round(gap.abs().mean().item(), 6),
    }
    return expected, margin


def load(directory, dtype):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def logprobs(model, sequence):
    """Log-probabilities of the tokens after the first."""
    ids = torch.tensor([sequence])
    all_logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    return all_logprobs.gather(1, ids[0, 1:, None])[:, 0]


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if sys.argv[1:] else "policy/tests/models"))
