#!/usr/bin/env python3
"""Makes pruned.json: which positions kvpress 0.5.5 keeps of a text's K and V.

    make_pruned.py MODELS

MODELS is the folder of the tiny golden models. Needs kvpress, transformers 4.57 and torch.
"""

import json
import os
import sys

import torch
from kvpress import ExpectedAttentionPress, KeyDiffPress, SnapKVPress
from transformers import AutoModelForCausalLM

TOKENS = 150
RATES = (0.5, 0.8)
PRESSES = (("snapkv", SnapKVPress), ("expected-attention", ExpectedAttentionPress), ("keydiff", KeyDiffPress))


class Recorded:
    """Keeps what a press keeps."""

    def __init__(self, press, kept):
        self.press, self.kept, self.score = press, kept, press.score
        press.score = self.heard

    def heard(self, module, *args, **kwargs):
        scores = self.score(module, *args, **kwargs)
        count = int(scores.shape[-1] * (1 - self.press.compression_ratio))
        rows = scores[0].topk(count, dim=-1).indices.sort(dim=-1).values
        self.kept.append(rows.tolist())
        return scores


def main(models):
    rows = []
    ids = [(i * i * 7 + 13 * i + 5) % 380 for i in range(TOKENS)]
    for family in ("llama3", "qwen2", "qwen3"):
        model = AutoModelForCausalLM.from_pretrained(os.path.join(models, family), dtype=torch.float32).eval()
        for name, make in PRESSES:
            for rate in RATES:
                kept = []
                press = make(compression_ratio=1 - rate)
                Recorded(press, kept)
                with torch.no_grad(), press(model):
                    model(torch.tensor([ids]))
                rows.append({"family": family, "by": name, "keep": rate, "kept": kept})
    print(json.dumps({"ids": ids, "rows": rows}, separators=(",", ":")))


if __name__ == "__main__":
    main(*sys.argv[1:])
