#!/usr/bin/env python3
"""tools/convert_500x.py makes of 500xCompressor's own checkpoint the adapter that it is.

    convert_500x.py PREFOLD GOLDEN

PREFOLD is the built program, GOLDEN the folder with the golden models. Their adapters are written as the authors' training code
saves them; the adapter that is made of that must encode to the same K and V as the golden one.
"""

import json
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file

TOOL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/convert_500x.py")
IDS = json.dumps([(i * 37 + 11) % 500 for i in range(30)])


def main(program, golden):
    def run(*arguments):
        return subprocess.run(arguments, check=True, stdout=subprocess.PIPE)

    model = os.path.join(golden, "500x/tiny")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tiny-adapter-qv", "tiny-adapter-all"):
            adapter = os.path.join(golden, "500x", name)
            with open(os.path.join(adapter, "adapter_config.json")) as file:
                alpha = json.load(file)["lora_alpha"]
            state = {"llama.base_model.model.model.norm.weight": torch.ones(64)}
            for key, tensor in load_file(os.path.join(adapter, "adapter_model.safetensors")).items():
                state["llama." + key.removesuffix(".weight") + ".default.weight"] = tensor
            state["memory_embeddings"] = load_file(os.path.join(adapter, "memory_embeddings.safetensors"))["memory_embeddings"][None]
            state["ae_embedding"] = torch.arange(64.0).reshape(1, 1, 64) / 64
            checkpoint, made = os.path.join(folder, name + ".bin"), os.path.join(folder, name)
            torch.save(state, checkpoint)
            run(sys.executable, TOOL, checkpoint, made, "--alpha", str(alpha), "--max-text-tokens", "40")
            tensors = []
            for each in (adapter, made):
                prefix = os.path.join(folder, "prefix")
                run(program, "encode", "-a", each, "--ids", IDS, "--dtype", "f32", "-m", model, "-o", prefix)
                tensors.append(load_file(prefix))
            assert tensors[0].keys() == tensors[1].keys()
            assert all(torch.equal(tensor, tensors[1][key]) for key, tensor in tensors[0].items())
            begin = load_file(os.path.join(made, "ae_embedding.safetensors"))["ae_embedding"]
            assert torch.equal(begin, state["ae_embedding"].flatten())
            print("{0}: the same K and V".format(name))
            # What it was trained with is heeded.
            run(sys.executable, TOOL, checkpoint, made, "--alpha", str(alpha), "--pad-to", "35", "--pad-id", "2")
            run(program, "encode", "-a", made, "--ids", IDS, "-m", model, "-o", prefix)
            shown = json.loads(run(program, "inspect", "--json", prefix).stdout)
            assert shown["rope_positions"][0] == 35, shown["rope_positions"]
        torch.save({"memory_embeddings": torch.ones(1, 2, 64)}, checkpoint)
        done = subprocess.run([sys.executable, TOOL, checkpoint, made + "-none"], capture_output=True, text=True, check=False)
        assert done.returncode != 0 and "no LoRA" in done.stderr, done.stderr
    print("all passed")


if __name__ == "__main__":
    main(*sys.argv[1:])
