"""Writes a Qwen2 checkpoint as a GGUF file without a vocabulary, for llama.cpp's own benchmark.

Usage: to_gguf.py CHECKPOINT_DIR FILE
llama.cpp's converter refuses tokenizers it does not know, and a benchmark needs none. Matrices stay
bf16, vectors become fp32, as that converter does it.
"""

import json
import sys

import gguf
import torch
from safetensors.torch import load_file

BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def main(checkpoint, path):
    with open(f"{checkpoint}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("random")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, tensor in load_file(f"{checkpoint}/model.safetensors").items():
        name = gguf_name(name)
        if tensor.dim() == 1:
            writer.add_tensor(name, tensor.float().numpy())
        else:
            bits = tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name):
    outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in outside:
        return outside[name]
    _, _, layer, rest = name.split(".", 3)
    for ours, theirs in BLOCK.items():
        rest = rest.replace(ours, theirs)
    return f"blk.{layer}.{rest}"


if __name__ == "__main__":
    main(*sys.argv[1:])
