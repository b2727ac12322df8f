"""The loop of training in PyTorch, and prefold's beside it in one run: same model, same ids, same device.

    make bench-reference            (makes the virtual environment: torch, transformers)
    cargo build --release --bench train
    .venv-reference/bin/python benches/baseline.py train --batch 4 --tokens 64 --memory 8

On a GPU `--device cuda`, in bf16 (autocast over f32 adapters) or with `--device cuda-f32`; there `--folder`
is a Hugging Face folder that both read.

500xCompressor's pretraining (arXiv 2408.03094): the model with LoRA on q and v reads text and memory
tokens, the frozen model reads BOS + text after their K and V. Both compute the loss and the gradients of
LoRA and of the memory embeddings, and step with AdamW. B begins at zero and the memory embeddings at the mean
embedding, so that loss and gradient of the memory embeddings depend on no draw: they are compared first.
The two take turns.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache

# Of both, as benches/train.rs has it.
LR = 1e-4
ROOT = pathlib.Path(__file__).resolve().parent.parent


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
        self.device = args.device.split("-")[0]
        self.half = args.device == "cuda"
        dtype = torch.bfloat16 if self.half else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(folder).to(self.device, dtype).eval()
        self.model.requires_grad_(False)
        self.memory = torch.nn.Parameter(
            self.model.get_input_embeddings().weight.float().mean(0, keepdim=True).repeat(args.memory, 1)
        )
        self.trained = [self.memory]
        for layer in self.model.model.layers:
            for name in ("q_proj", "v_proj"):
                lora = Lora(getattr(layer.self_attn, name), args.rank, 32).to(self.device)
                setattr(layer.self_attn, name, lora)
                self.trained += [lora.a, lora.b]
        config = self.model.config
        self.text = torch.tensor([ids(i, args.tokens, config.vocab_size) for i in range(args.batch)], device=self.device)
        self.bos = torch.full((args.batch, 1), config.bos_token_id, device=self.device)
        self.eos = torch.full((args.batch, 1), config.eos_token_id, device=self.device)
        self.adamw = torch.optim.AdamW(self.trained, lr=LR)

    def gradient(self):
        self.adamw.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            loss = self.loss()
        loss.backward()
        return loss

    def step(self):
        loss = self.gradient()
        self.adamw.step()
        # Waits for the device.
        return loss.item()

    def loss(self):
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
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def layer_of(cache, i):
    layers = getattr(cache, "layers", None)
    return (layers[i].keys, layers[i].values) if layers else cache[i]


def ours(program, model, args):
    arguments = [program, model, "--json", "--steps", str(args.steps), "--device", args.device]
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


def options(parser):
    parser.add_argument("--model", type=pathlib.Path,
                        default=ROOT / ".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf")
    parser.add_argument("--folder", type=pathlib.Path, help="the same in Hugging Face's layout, f32")
    parser.add_argument("--program", help="the bench of benches/train.rs [default: the newest that was built]")
    parser.add_argument("--device", choices=["cpu", "cuda", "cuda-f32"], default="cpu")
    parser.add_argument("--out", type=pathlib.Path, help="the figures as JSON go here too")
    for name, value in (("batch", 4), ("tokens", 64), ("memory", 8), ("rank", 64), ("steps", 3),
                        ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)


def compare(args):
    torch.set_num_threads(args.threads)
    if args.folder is None:
        from reference import as_folder

        args.folder = as_folder(args.model.resolve())
    reference = Reference(args.folder, args)
    program = args.program or newest_bench()
    loss = reference.gradient().item()
    slope = reference.memory.grad.norm().item()
    got = ours(program, args.model, args)
    print(f"loss {loss:.5f} and {got['loss']:.5f}, gradient of the memory {slope:.6f} and {got['memory_gradient']:.6f}")
    near = (2e-2, 1e-1) if reference.half else (1e-4, 1e-3)
    if abs(got["loss"] / loss - 1) > near[0] or abs(got["memory_gradient"] / slope - 1) > near[1]:
        sys.exit("the two do not compute the same")
    losses, theirs, of_ours = [], [], [got["seconds_median"]]
    for number in range(args.rounds):
        for _ in range(args.steps):
            start = time.perf_counter()
            losses.append(reference.step())
            theirs.append(time.perf_counter() - start)
        if number > 0:
            of_ours.append(ours(program, args.model, args)["seconds_median"])
    # LoRA's A is drawn anew by each.
    print("losses of the first steps: " + ", ".join(f"{a:.3f} and {b:.3f}" for a, b in zip(losses, got["losses"])))
    t, o = statistics.median(theirs), statistics.median(of_ours)
    print(f"PyTorch {torch.__version__}: {t:.3f} s a step, {args.batch / t:.1f} samples/s; "
          f"prefold on {got['device']}: {o:.3f} s, {args.batch / o:.1f} samples/s, {t / o:.2f} times as fast")
    if args.out:
        figures = {name: getattr(args, name) for name in ("batch", "tokens", "memory", "rank")}
        figures |= {"device": got["device"], "torch": torch.__version__, "torch_seconds": t, "prefold_seconds": o}
        args.out.write_text(json.dumps(figures) + "\n")
