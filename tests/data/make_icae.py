#!/usr/bin/env python3
"""Makes icae.json: what PyTorch makes of ICAE's method on the tiny model.

    make_icae.py GOLDEN > icae.json

GOLDEN is the folder of 500xCompressor's golden values. Needs transformers 4.57, safetensors and torch. The encoder is the model
with LoRA's factors added by hooks; it reads a text and the memory embeddings, whose states behind the last norm the decoder, the
model alone, reads as embeddings at positions from 0. `ae` is the same with an embedding of its own in place of BOS.
"""

import json
import os
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


class Adapter:
    """LoRA on a model's layers, which can be off, and memory embeddings."""

    def __init__(self, model, folder):
        with open(os.path.join(folder, "adapter_config.json")) as file:
            config = json.load(file)
        self.on, self.scale = False, config["lora_alpha"] / config["r"]
        self.parameters = load_file(os.path.join(folder, "adapter_model.safetensors"))
        self.parameters.update(load_file(os.path.join(folder, "memory_embeddings.safetensors")))
        for tensor in self.parameters.values():
            tensor.requires_grad_(True)
        for name in self.parameters:
            if name.endswith(".lora_A.weight"):
                stem = name[: -len(".lora_A.weight")]
                a, b = self.parameters[name], self.parameters[stem + ".lora_B.weight"]
                model.get_submodule(stem[len("base_model.model.") :]).register_forward_hook(self.hook(a, b))

    def hook(self, a, b):
        def add(_, inputs, output):
            return output + self.scale * (inputs[0] @ a.T @ b.T) if self.on else output

        return add

    @property
    def memory(self):
        return self.parameters["memory_embeddings"]


def states(model, adapter, ids):
    """The memory tokens' states, [1, num_mem, hidden]."""
    embeddings = torch.cat([model.get_input_embeddings()(torch.tensor([ids])), adapter.memory[None]], 1)
    adapter.on = True
    hidden = model.model(inputs_embeds=embeddings).last_hidden_state
    adapter.on = False
    return hidden[:, len(ids) :]


def greedy(model, embeddings, count):
    made = []
    for _ in range(count):
        made.append(int(model(inputs_embeds=embeddings).logits[0, -1].argmax()))
        embeddings = torch.cat([embeddings, model.get_input_embeddings()(torch.tensor([made[-1:]]))], 1)
    return made


def rounded(tensor):
    return [float("{0:.7g}".format(value)) for value in tensor.detach().flatten().tolist()]


def main(golden):
    with open(os.path.join(golden, "tiny-qv.golden.json")) as file:
        facts = json.load(file)
    model = AutoModelForCausalLM.from_pretrained(os.path.join(golden, "tiny"), dtype=torch.float32).eval()
    model.requires_grad_(False)
    adapter = Adapter(model, os.path.join(golden, "tiny-adapter-qv"))
    embed = model.get_input_embeddings()
    bos, eos = facts["bos"], facts["eos"]
    begin = embed(torch.tensor([[bos]]))
    text = facts["ids"][0]

    with torch.no_grad():
        memory = states(model, adapter, text)
        cache = model(inputs_embeds=memory, use_cache=True).past_key_values
        layers = [[rounded(cache[i][0]), rounded(cache[i][1])] for i in range(model.config.num_hidden_layers)]
        # Values that a file of floats holds as they are.
        ae = torch.tensor([((i * 37 + 11) % 64 - 32) / 64 for i in range(embed.embedding_dim)])[None, None]
        out = {
            "layers": layers,
            "greedy_from_bos": greedy(model, torch.cat([memory, begin], 1), 16),
            "ae": ae.flatten().tolist(),
            "greedy_from_ae": greedy(model, torch.cat([memory, ae], 1), 16),
        }

    nll, targets = 0, 0
    for ids in facts["ids"]:
        memory = states(model, adapter, ids)
        read = torch.cat([memory, embed(torch.tensor([[bos] + ids]))], 1)
        logits = model(inputs_embeds=read).logits[0, memory.shape[1] :]
        nll = nll + torch.nn.functional.cross_entropy(logits, torch.tensor(ids + [eos]), reduction="sum")
        targets += len(ids) + 1
    loss = nll / targets
    loss.backward()
    out["regen_loss"] = rounded(loss)[0]
    out["regen_gradient_norms"] = {name: rounded(p.grad.norm())[0] for name, p in sorted(adapter.parameters.items())}
    out["regen_gradient_of_memory"] = rounded(adapter.memory.grad)
    print(json.dumps(out, separators=(",", ":")))


if __name__ == "__main__":
    main(*sys.argv[1:])
