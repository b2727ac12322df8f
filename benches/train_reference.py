"""A training step of prefold beside PyTorch's in one run: same model, same ids, same cores.

    make bench-reference            (makes the virtual environment: torch, transformers)
    cargo build --release --bench train
    .venv-reference/bin/python benches/train_reference.py --batch 4 --tokens 64 --memory 8

500xCompressor's pretraining (arXiv 2408.03094): the model with LoRA on q and v reads text and memory
tokens, the frozen model reads BOS + text behind their K and V. Both compute the loss and the gradients of
LoRA and of the memory embeddings; the optimiser is in neither. B begins at zero and the memory embeddings
at the mean embedding, so that loss and gradient of the memory embeddings depend on no draw: they are
compared first. The two take turns.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import torch
from reference import ROOT, as_folder
from transformers import AutoModelForCausalLM, DynamicCache


def ids(text, length, vocab):
    """The generator of benches/train.rs."""
    state, out = 12_345 + text, []
    for _ in range(length):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append((state >> 33) % vocab)
    return out


class Lora(torch.nn.Module):
    """A frozen projection with an adapter that can be switched off."""

    on = True

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.a = torch.nn.Parameter(torch.empty(rank, base.in_features))
        torch.nn.init.kaiming_uniform_(self.a, a=5**0.5)
        self.b = torch.nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        y = self.base(x)
        return y + self.scale * (x @ self.a.T @ self.b.T) if Lora.on else y


class Reference:
    def __init__(self, folder, args):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.requires_grad_(False)
        self.memory = torch.nn.Parameter(
            self.model.get_input_embeddings().weight.mean(0, keepdim=True).repeat(args.memory, 1)
        )
        self.trained = [self.memory]
        for layer in self.model.model.layers:
            for name in ("q_proj", "v_proj"):
                lora = Lora(getattr(layer.self_attn, name), args.rank, 32)
                setattr(layer.self_attn, name, lora)
                self.trained += [lora.a, lora.b]
        config = self.model.config
        self.text = torch.tensor([ids(i, args.tokens, config.vocab_size) for i in range(args.batch)])
        self.bos = torch.full((args.batch, 1), config.bos_token_id)
        self.eos = torch.full((args.batch, 1), config.eos_token_id)

    def step(self):
        for parameter in self.trained:
            parameter.grad = None
        batch, count = len(self.text), len(self.memory)
        texts = self.model.get_input_embeddings()(self.text)
        texts = torch.cat([texts, self.memory.expand(batch, -1, -1)], 1)
        Lora.on = True
        encoded = DynamicCache()
        # The head is not needed.
        self.model.model(inputs_embeds=texts, past_key_values=encoded, use_cache=True)
        keys = DynamicCache()
        for i in range(self.model.config.num_hidden_layers):
            k, v = layer_of(encoded, i)
            keys.update(k[:, :, -count:], v[:, :, -count:], i)
        Lora.on = False
        reads = torch.cat([self.bos, self.text], 1)
        logits = self.model(reads, past_key_values=keys, use_cache=True).logits
        targets = torch.cat([self.text, self.eos], 1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        return loss.item(), self.memory.grad.norm().item()


def layer_of(cache, i):
    layers = getattr(cache, "layers", None)
    return (layers[i].keys, layers[i].values) if layers else cache[i]


def ours(program, model, args):
    arguments = [program, model, "--json", "--steps", str(args.steps)]
    for name in ("batch", "tokens", "memory", "rank"):
        arguments += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def newest_bench():
    built = [p for p in (ROOT / "target/release/deps").glob("train-*") if not p.suffix]
    if not built:
        sys.exit("cargo build --release --bench train")
    return str(max(built, key=lambda p: p.stat().st_mtime))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path,
                        default=ROOT / ".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf")
    parser.add_argument("--folder", type=pathlib.Path, help="the same in Hugging Face's layout, f32")
    for name, value in (("batch", 4), ("tokens", 64), ("memory", 8), ("rank", 64), ("steps", 3),
                        ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    reference = Reference(args.folder or as_folder(args.model.resolve()), args)
    program = newest_bench()
    loss, slope = reference.step()
    got = ours(program, args.model, args)
    print(f"loss {loss:.5f} and {got['loss']:.5f}, gradient of the memory {slope:.6f} and {got['memory_gradient']:.6f}")
    if abs(got["loss"] / loss - 1) > 1e-4 or abs(got["memory_gradient"] / slope - 1) > 1e-3:
        sys.exit("the two do not compute the same")
    theirs, of_ours = [], []
    for _ in range(args.rounds):
        for _ in range(args.steps):
            start = time.perf_counter()
            reference.step()
            theirs.append(time.perf_counter() - start)
        of_ours.append(ours(program, args.model, args)["seconds_median"])
    t, o = statistics.median(theirs), statistics.median(of_ours)
    print(f"PyTorch {torch.__version__}: {t:.2f} s a step; prefold: {o:.2f} s, {t / o:.2f} times as fast")


if __name__ == "__main__":
    main()
