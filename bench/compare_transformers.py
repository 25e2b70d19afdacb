"""Compares a checkpoint's logits: Hugging Face transformers against `ballast-learner logits`.

Usage: compare_transformers.py CHECKPOINT_DIR BALLAST_LEARNER [RECORD]
Both compute in fp32. Fails if any logit of any position of any prompt differs by more than 1e-4.
RECORD is a file to write the prompts and transformers' logits of their last positions to; the test
`policy/tests/transformers.rs` holds us to them where there is no Python.
"""

import json
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

TOLERANCE = 1e-4

PROMPTS = [
    "<|im_start|>user\nHow many blue lamps are in stock?<|im_end|>\n<|im_start|>assistant\n",
    '<tool_call>\n{"name": "lookup", "arguments": {"product": "lamp"}}\n</tool_call><|im_end|>\n',
    "Order 3 chairs for customer 17 and say what they cost.",
]


def main(checkpoint, learner, record=None):
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    worst = 0.0
    recorded = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        expected = theirs(model, ids)
        recorded.append({"token_ids": ids, "logits": expected[-1].tolist()})
        difference = (expected - ours(learner, checkpoint, ids)).abs().max().item()
        worst = max(worst, difference)
        print(f"{len(ids):4} tokens, largest difference {difference:.2e}  {prompt[:40]!r}")
    if not worst <= TOLERANCE:
        sys.exit(f"logits differ by {worst:.2e}, and {TOLERANCE:.0e} is allowed")
    print(f"logits agree to {TOLERANCE:.0e}")
    if record:
        with open(record, "w", encoding="utf-8") as file:
            json.dump(recorded, file)
            file.write("\n")


def theirs(model, ids):
    """Logits of every position, [tokens, vocabulary]."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def ours(learner, checkpoint, ids):
    """The same from `ballast-learner`."""
    command = [learner, "logits", "--checkpoint", checkpoint, "--prompt-ids"]
    answer = subprocess.run(
        [*command, ",".join(map(str, ids))], check=True, stdout=subprocess.PIPE, text=True
    )
    return torch.tensor(json.loads(answer.stdout)["logits"], dtype=torch.float32)


if __name__ == "__main__":
    main(*sys.argv[1:])
