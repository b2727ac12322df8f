#!/usr/bin/env python3
"""Turns a checkpoint of 500xCompressor's own code into an adapter folder that prefold reads.

    convert_500x.py CHECKPOINT.bin FOLDER [--alpha 32] [--max-text-tokens 500] [--pad-to 500] [--pad-id ID] [--method icae]

The checkpoint is the dictionary that its training code saves: `llama.base_model.model.model.layers.N.….lora_A.default.weight`
and `memory_embeddings` of [1, num_mem, hidden]. LoRA's alpha does not stand in it; the code's default is 32 (for r 64). That
code fills every text up to 500 tokens with the end-of-text token, which --pad-to and --pad-id say. ICAE's `ae_embedding`, after
which it gives a text back, becomes a file of its own. Needs PyTorch to read the checkpoint; nothing in it is executed.
"""

import argparse
import json
import os
import re
import struct
import sys

import torch

LORA = re.compile(r"(model\.layers\.\d+\.(?:self_attn|mlp)\.(\w+_proj)\.lora_[AB])(?:\.default)?\.weight$")
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_safetensors(path, tensors):
    """Writes name: tensor; under another name first."""
    header, parts, start = {}, [], 0
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        part = tensor.view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + len(part)],
        }
        parts.append(part)
        start += len(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".tmp", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(parts)
    os.replace(path + ".tmp", path)


def convert(checkpoint, folder, args):
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    lora, targets, memory, rank, begin = {}, set(), None, None, None
    for name, tensor in state.items():
        found = LORA.search(name)
        if found:
            lora["base_model.model." + found[1] + ".weight"] = tensor
            targets.add(found[2])
            if ".lora_A" in found[1]:
                rank = tensor.shape[0]
        elif name.split(".")[-1] == "memory_embeddings":
            memory = tensor.reshape(-1, tensor.shape[-1])
        elif name.split(".")[-1] == "ae_embedding":
            begin = tensor.reshape(-1)
    if not lora or memory is None:
        sys.exit("convert_500x: {0}: no LoRA or no memory_embeddings in it".format(checkpoint))
    os.makedirs(folder, exist_ok=True)
    write_safetensors(os.path.join(folder, "adapter_model.safetensors"), lora)
    write_safetensors(os.path.join(folder, "memory_embeddings.safetensors"), {"memory_embeddings": memory})
    begin_path = os.path.join(folder, "ae_embedding.safetensors")
    if begin is not None:
        write_safetensors(begin_path, {"ae_embedding": begin})
    elif os.path.exists(begin_path):
        os.remove(begin_path)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}
    config.update(r=rank, lora_alpha=args.alpha, target_modules=sorted(targets))
    settings = {"method": args.method, "max_text_tokens": args.max_text_tokens, "pad_to": args.pad_to, "pad_id": args.pad_id}
    settings = {name: value for name, value in settings.items() if value is not None}
    for name, content in (("adapter_config.json", config), ("prefold.json", settings)):
        with open(os.path.join(folder, name), "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
    print("{0}: {1} tensors of rank {2}, {3} memory tokens".format(folder, len(lora), rank, memory.shape[0]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("--alpha", type=float, default=32)
    parser.add_argument("--max-text-tokens", type=int)
    parser.add_argument("--pad-to", type=int)
    parser.add_argument("--pad-id", type=int)
    parser.add_argument("--method", choices=("500xcompressor", "icae"), default="500xcompressor")
    args = parser.parse_args()
    convert(args.checkpoint, args.folder, args)


if __name__ == "__main__":
    main()
