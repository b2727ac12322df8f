"""A text, questions and an adapter for SmolLM2-135M-Instruct: what the hosts are asked in tests."""

import json
import os
import random
import struct

TEXT = (
    "The lighthouse on Gannet Rock was built in 1887 by Ada Thorne, an engineer from Leeds. Its lamp burned whale oil "
    "until 1911, when the keeper, a man named Silas Brandt, replaced it with an electric light that he had made himself. "
    "In 1954 a storm broke the upper gallery, and for three years the tower stood dark. The village of Merrow paid for the "
    "repair with the money from its autumn fair. Today the lighthouse is a museum with nine rooms, and the old lamp stands "
    "in the first of them beside a portrait of the woman who built it."
)
HEAD = "<|im_start|>user\n" + TEXT
ASKED = "\n{0}<|im_end|>\n<|im_start|>assistant\n"
# Questions whose answers are clear: each id is likelier than any other by a quarter of a nat at least, which is more than the
# kernels' rounding moves.
QUESTION = ASKED.format("Which village paid for the repair?")
SOFT_QUESTION = ASKED.format("Who built the lighthouse?")
ANSWER = 12


def safetensors(path, tensors):
    """Writes tensors of f32, name: (shape, values)."""
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        part = struct.pack("<{0}f".format(len(values)), *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def write_adapter(folder, layers=30, hidden=576, kv=192, rank=4, memory=6):
    """A small random adapter for SmolLM2-135M: it reads nothing, but its K and V are like no text's."""
    chance = random.Random(5)

    def noise(count, scale):
        return [chance.gauss(0, scale) for _ in range(count)]

    tensors = {}
    for layer in range(layers):
        for module, outputs in (("q_proj", hidden), ("v_proj", kv)):
            name = "base_model.model.model.layers.{0}.self_attn.{1}.lora_".format(layer, module)
            tensors[name + "A.weight"] = ([rank, hidden], noise(rank * hidden, 0.04))
            tensors[name + "B.weight"] = ([outputs, rank], noise(outputs * rank, 0.04))
    os.makedirs(folder)
    safetensors(os.path.join(folder, "adapter_model.safetensors"), tensors)
    embeddings = {"memory_embeddings": ([memory, hidden], noise(memory * hidden, 0.1))}
    safetensors(os.path.join(folder, "memory_embeddings.safetensors"), embeddings)
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
        json.dump(config, file)
