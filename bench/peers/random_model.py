"""Writes a Hugging Face checkpoint with random weights, for benchmarks that need a size and no skill.

Usage: random_model.py SHAPE DIRECTORY
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

# Qwen2 in two sizes: 24M is what a CPU cluster trains, 0.5B is Qwen2.5-0.5B's shape.
SHAPES = {
    "qwen2-24m": dict(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    ),
    "qwen2-0.5b": dict(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    ),
}


def main(shape, directory):
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen2Config(**SHAPES[shape], rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    config.dtype = torch.bfloat16
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    byte_tokenizer().save(f"{directory}/tokenizer.json")


def byte_tokenizer():
    """Bytes and the control tokens of the Hermes format; ids beyond them have no text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: id for id, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>"]
        + ["<tool_response>", "</tool_response>", '{"']
    )
    return tokenizer


if __name__ == "__main__":
    main(*sys.argv[1:])
