#!/usr/bin/env python3
"""Writes a GGUF as a Hugging Face folder with unpacked weights, for hosts that read such folders.

    gguf_to_hf.py MODEL.gguf FOLDER

Needs transformers, torch and gguf. `prefold` reads the folder too, and a prefix for that host is made from the folder: the
fingerprint is of the file that was read.
"""

import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(gguf, folder):
    parent, name = os.path.split(os.path.realpath(gguf))
    model = AutoModelForCausalLM.from_pretrained(parent, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name)
    # The folder gets its name when it is whole.
    model.save_pretrained(folder + ".tmp")
    tokenizer.save_pretrained(folder + ".tmp")
    os.rename(folder + ".tmp", folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
