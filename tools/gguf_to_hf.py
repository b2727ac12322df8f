#!/usr/bin/env python3
"""Writes a GGUF as a Hugging Face folder with unpacked weights, for hosts that read such folders.

    gguf_to_hf.py MODEL.gguf FOLDER

Needs transformers, torch and gguf. `prefold` reads the folder too, and a prefix for that host is made from the folder: the
fingerprint is of the file that was read.
"""

import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(gguf, folder):
    parent, name = os.path.split(os.path.realpath(gguf))
    model = AutoModelForCausalLM.from_pretrained(parent, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name)
    # The folder gets its name when it is whole.
    made = folder.rstrip("/") + ".tmp"
    shutil.rmtree(made, ignore_errors=True)
    os.makedirs(made)
    # By hand: what came from a GGUF counts as quantised, unpacked or not, and `save_pretrained` refuses that.
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # An output that is the embedding is stored once.
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    weights = os.path.join(made, "model.safetensors")
    save_file(tensors, weights, metadata={"format": "pt"})
    os.chmod(weights, os.stat(gguf).st_mode & 0o644)
    for config in (model.config, model.generation_config):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.save_pretrained(made)
    tokenizer.save_pretrained(made)
    os.rename(made, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
