#!/usr/bin/env python3
"""Makes icae_public/: a tiny random Mistral, ICAE weights for it in the published layout, and what comes of them.

    make_icae_public.py FOLDER

Needs numpy. The weights have the names and shapes of the authors' published safetensors (github.com/getao/icae, code/icae_v2):
the module's `icae.base_model.model.…lora_{A,B}.default.weight` and `memory_token_embed.weight`, whose rows are the memory tokens
and then AE, LM and FT; beside them stand tensors that a reader has to pass over. golden.json is computed here from the published
code's steps and in float64, with nothing of prefold: a text with its BOS is cut into ceil(tokens / (memory tokens * rate)) pieces
of ceil(tokens / pieces); the encoder (LoRA on q and v) reads each piece and the memory tokens from position 0; their states behind
the last norm are the slots. The decoder without LoRA reads, as embeddings from position 0,

    regen     slots, AE                                         (pretrained_inference.py)
    continue  slots, LM                                         (training_utils.py, add_special_token_for_lm)
    qa        template head, slots, FT, prompt, template tail   (fine_tuned_inference.py)

and continues greedily. `pooled` is not theirs: the encoder reads the text alone, without BOS, its states are averaged over 5 windows
(arXiv 2510.20797) of equal length but for one token, the longer ones first, and the decoder reads the means from position 0.
"""

import json
import math
import os
import struct
import sys

import numpy as np

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, VOCAB, POSITIONS = 16, 4, 2, 4, 24, 2, 48, 96
THETA, EPS = 10000.0, 1e-5
MEMORY, RATE, RANK, ALPHA = 4, 4, 3, 6.0
BOS, EOS = 1, 2
HEAD, TAIL = [1, 7, 9], [8, 10]
WINDOWS = 5


def make():
    """Tensors of the model and of the checkpoint, in f32."""
    random = np.random.default_rng(2307)

    def matrix(rows, columns, scale=None):
        return (random.standard_normal((rows, columns)) * (scale or 1.4 / math.sqrt(columns))).astype(np.float32)

    def norm():
        return (1 + 0.1 * random.standard_normal(HIDDEN)).astype(np.float32)

    model = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN, 0.6), "model.norm.weight": norm(), "lm_head.weight": matrix(VOCAB, HIDDEN, 1.0)}
    icae = {"memory_token_embed.weight": matrix(MEMORY + 3, HIDDEN, 0.6)}
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for i in range(LAYERS):
        layer = "model.layers.{0}.".format(i)
        model[layer + "input_layernorm.weight"], model[layer + "post_attention_layernorm.weight"] = norm(), norm()
        for name, out, inputs in (
            ("self_attn.q_proj", queries, HIDDEN),
            ("self_attn.k_proj", keys, HIDDEN),
            ("self_attn.v_proj", keys, HIDDEN),
            ("self_attn.o_proj", HIDDEN, queries),
            ("mlp.gate_proj", FFN, HIDDEN),
            ("mlp.up_proj", FFN, HIDDEN),
            ("mlp.down_proj", HIDDEN, FFN),
        ):
            model[layer + name + ".weight"] = matrix(out, inputs)
        for name, out in (("q_proj", queries), ("v_proj", keys)):
            stem = "icae.base_model.model.{0}self_attn.{1}.".format(layer, name)
            icae[stem + "lora_A.default.weight"] = matrix(RANK, HIDDEN)
            icae[stem + "lora_B.default.weight"] = matrix(out, RANK)
    # What the authors' module has beside: none of it is read.
    icae["icae.base_model.model.model.norm.weight"] = norm()
    icae["icae.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"] = matrix(queries, HIDDEN)
    icae["decoder.model.norm.weight"] = norm()
    return model, icae


class Decoder:
    """Mistral's forward in float64."""

    def __init__(self, model, icae):
        self.w = {name: tensor.astype(np.float64) for name, tensor in model.items()}
        self.lora = {name: tensor.astype(np.float64) for name, tensor in icae.items() if ".lora_" in name}

    def embed(self, ids):
        return self.w["model.embed_tokens.weight"][ids]

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * self.w[name]

    def project(self, x, module, adapted):
        y = x @ self.w[module + ".weight"].T
        stem = "icae.base_model.model." + module
        if adapted and stem + ".lora_A.default.weight" in self.lora:
            a, b = self.lora[stem + ".lora_A.default.weight"], self.lora[stem + ".lora_B.default.weight"]
            y = y + ALPHA / RANK * (x @ a.T) @ b.T
        return y

    def rotate(self, x, count):
        """x: [count, heads, head_dim] at positions from 0."""
        inverse = THETA ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = np.outer(np.arange(count), inverse)[:, None, :]
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2 :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def forward(self, x, adapted):
        """States behind the last norm, and each layer's K (rotated) and V, [kv_heads, count, head_dim]."""
        count, cache = len(x), []
        seen = np.tril(np.ones((count, count), bool))
        for i in range(LAYERS):
            layer = "model.layers.{0}.".format(i)
            h = self.norm(x, layer + "input_layernorm.weight")
            q = self.rotate(self.project(h, layer + "self_attn.q_proj", adapted).reshape(count, HEADS, HEAD_DIM), count)
            k = self.rotate(self.project(h, layer + "self_attn.k_proj", adapted).reshape(count, KV_HEADS, HEAD_DIM), count)
            v = self.project(h, layer + "self_attn.v_proj", adapted).reshape(count, KV_HEADS, HEAD_DIM)
            cache.append([k.transpose(1, 0, 2), v.transpose(1, 0, 2)])
            out = np.empty((count, HEADS, HEAD_DIM))
            for head in range(HEADS):
                group = head // (HEADS // KV_HEADS)
                scores = np.where(seen, q[:, head] @ k[:, group].T / math.sqrt(HEAD_DIM), -np.inf)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, group]
            x = x + self.project(out.reshape(count, -1), layer + "self_attn.o_proj", adapted)
            h = self.norm(x, layer + "post_attention_layernorm.weight")
            gate = self.project(h, layer + "mlp.gate_proj", adapted)
            up = self.project(h, layer + "mlp.up_proj", adapted)
            x = x + self.project(gate / (1 + np.exp(-gate)) * up, layer + "mlp.down_proj", adapted)
        return self.norm(x, "model.norm.weight"), cache

    def logits(self, x):
        return self.forward(x, False)[0][-1] @ self.w["lm_head.weight"].T


def compress(decoder, table, ids):
    """The memory slots of a text, its BOS included."""
    pieces = math.ceil(len(ids) / (MEMORY * RATE))
    length = math.ceil(len(ids) / pieces)
    slots = []
    for i in range(pieces):
        piece = ids[i * length : min((i + 1) * length, len(ids))]
        states, _ = decoder.forward(np.concatenate([decoder.embed(piece), table[:MEMORY]]), True)
        slots.append(states[len(piece) :])
    return np.concatenate(slots)


def greedy(decoder, x, count):
    made = []
    for _ in range(count):
        made.append(int(decoder.logits(x).argmax()))
        x = np.concatenate([x, decoder.embed(made[-1:])])
    return made


def save(path, tensors):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in sorted(tensors.items()):
        part = tensor.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def rounded(array):
    return [float("{0:.7g}".format(value)) for value in np.asarray(array).flatten().tolist()]


def main(folder):
    model, icae = make()
    os.makedirs(folder, exist_ok=True)
    save(os.path.join(folder, "model.safetensors"), model)
    save(os.path.join(folder, "icae.safetensors"), icae)
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": LAYERS,
        "intermediate_size": FFN,
        "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
        file.write("\n")

    decoder, table = Decoder(model, icae), icae["memory_token_embed.weight"].astype(np.float64)
    ae, lm, ft = table[MEMORY:]
    text, prompt = [(i * 29 + 5) % 44 + 3 for i in range(33)], [21, 4, 30]
    slots = compress(decoder, table, [BOS] + text)
    read = {
        "regen": (slots, ae[None]),
        "continue": (np.concatenate([slots, lm[None]]), decoder.embed([11])),
        "qa": (np.concatenate([decoder.embed(HEAD), slots, ft[None]]), decoder.embed(prompt + TAIL)),
    }
    out = {"alpha": ALPHA, "compression": RATE, "head": HEAD, "text": text, "prompts": {"regen": [], "continue": [11], "qa": prompt + TAIL}}
    for name, (prefix, then) in read.items():
        _, cache = decoder.forward(prefix, False)
        layers = [[rounded(k), rounded(v)] for k, v in cache]
        out[name] = {"rows": len(prefix), "layers": layers, "greedy": greedy(decoder, np.concatenate([prefix, then]), 12)}
    states, _ = decoder.forward(decoder.embed(text), True)
    means = np.stack([part.mean(0) for part in np.array_split(states, WINDOWS)])
    _, cache = decoder.forward(means, False)
    out["pooled"] = {"rows": WINDOWS, "layers": [[rounded(k), rounded(v)] for k, v in cache]}
    with open(os.path.join(folder, "golden.json"), "w") as file:
        json.dump(out, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
