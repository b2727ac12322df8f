"""What others do with the cases of benches/kernels, on the same GPU, and one table of both.

    cargo bench --bench kernels -- --json > ours.jsonl
    python3 benches/baseline.py kernels --ours ours.jsonl --out theirs.jsonl --table table.txt
    python3 benches/baseline.py train --device cuda       (the loop of training: baseline_train.py)

PyTorch always; Liger-Kernel, Cut Cross-Entropy and FlashInfer where they import; and with --prefold and
--model llmlingua itself, end to end on the same device, where it imports. Times are medians by CUDA
events, each run with a cold last cache, as benches/kernels takes them. A ratio above 1 means that ours is
faster.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROUNDS = 21
DEVICE = "cuda"
MODELS = {
    "smollm2": dict(hidden=576, ffn=1536, vocab=49152, heads=9, kv=3, dim=64),
    "llama3-8b": dict(hidden=4096, ffn=14336, vocab=128256, heads=32, kv=8, dim=128),
    "tiny": dict(hidden=48, ffn=40, vocab=300, heads=4, kv=2, dim=16),
}


def optional(name):
    """A module, or None and a word why not."""
    try:
        return __import__(name, fromlist=["_"])
    except Exception as error:  # a package for another CUDA fails in many ways
        print(f"not compared: {name} ({type(error).__name__}: {str(error).splitlines()[:1]})", file=sys.stderr)
        return None


class Bench:
    def __init__(self, torch, out, deadline):
        self.torch, self.rows, self.deadline = torch, [], deadline
        self.out = open(out, "w") if out else None
        self.sweep = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)

    def seconds(self, run):
        cuda = self.torch.cuda
        if DEVICE == "cpu":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        for _ in range(3):
            run()
        times = []
        for _ in range(ROUNDS):
            self.sweep.zero_()
            start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return statistics.median(times)

    def case(self, who, op, detail, model, rows, run, check=None):
        """Times `run`; what fails is said and left out. `check` gives what the result must be near."""
        if time.monotonic() > self.deadline:
            return
        row = {"who": who, "op": op, "detail": detail, "model": model, "rows": rows}
        try:
            if check is not None:
                got, want = run().float(), check().float()
                off = (got - want).abs().max().item() if got.shape == want.shape else float("inf")
                row["worst_difference"] = off
                if not off < 0.1:
                    raise ValueError(f"differs by {off}")
            row["seconds"] = self.seconds(run)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
            if DEVICE == "cuda":
                self.torch.cuda.empty_cache()
        self.rows.append(row)
        if self.out:
            self.out.write(json.dumps(row) + "\n")
            self.out.flush()


def nll(b, name, m, rows, modules):
    torch = b.torch
    F = torch.nn.functional
    scale = 3 / (m["hidden"] / 3) ** 0.5
    head = (torch.rand(m["vocab"], m["hidden"], device=DEVICE) * 2 - 1).mul_(scale).bfloat16()
    x = (torch.rand(rows, m["hidden"], device=DEVICE) * 2 - 1).bfloat16()
    target = torch.randint(m["vocab"], (rows,), device=DEVICE)

    def plain():
        logits = (x @ head.T).float()
        return -torch.log_softmax(logits, -1).gather(1, target[:, None])[:, 0]

    def in_parts():
        return torch.cat([
            F.cross_entropy((x[i:i + 1024] @ head.T).float(), target[i:i + 1024], reduction="none")
            for i in range(0, rows, 1024)
        ])

    with torch.no_grad():
        b.case("torch", "nll", "", name, rows, plain)
        b.case("torch, 1024 rows", "nll", "", name, rows, in_parts, plain if rows <= 2000 else None)
        # The product alone: what no fused kernel can be faster than by much.
        b.case("torch, product only", "nll", "", name, rows, lambda: x @ head.T)
        if modules["liger"]:
            loss = modules["liger"].LigerFusedLinearCrossEntropyFunction
            b.case("liger", "nll", "", name, rows, lambda: loss.apply(
                x, head, target, None, None, -100, 0.0, 0.0, "none")[0], in_parts)
        if modules["cce"]:
            b.case("cut cross-entropy", "nll", "", name, rows, lambda: modules["cce"].linear_cross_entropy(
                x, head, target, reduction="none"), in_parts)
        if rows == 200:
            logits = (torch.rand(rows, m["vocab"], device=DEVICE) * 2 - 1) * 8
            b.case("torch", "nll_logits", "", name, rows,
                   lambda: F.cross_entropy(logits, target, reduction="none"))


def linear(b, name, m, rows):
    torch = b.torch
    width = (m["heads"] + 2 * m["kv"]) * m["dim"]
    for detail, outputs in [("qkv", width), ("up", 2 * m["ffn"])]:
        w = torch.randn(outputs, m["hidden"], device=DEVICE).bfloat16()
        x = torch.randn(rows, m["hidden"], device=DEVICE).bfloat16()
        b.case("torch", "linear", detail, name, rows, lambda: x @ w.T)


def attention(b, name, m, rows, prefix, detail, modules):
    torch = b.torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def states(heads, length):
        return torch.randn(1, heads, length, m["dim"], device=DEVICE).bfloat16()

    q, k, v = states(m["heads"], rows), states(m["kv"], prefix + rows), states(m["kv"], prefix + rows)
    position = torch.arange(prefix + rows, device=DEVICE)
    mask = None if prefix == 0 else position[None, :] <= position[prefix:, None]
    full = [t.repeat_interleave(m["heads"] // m["kv"], 1) for t in (k, v)]

    def sdpa(k, v, **more):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, **more)

    with torch.no_grad():
        for backend in [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]:
            with sdpa_kernel([backend]):
                who = "sdpa " + backend.name.split("_")[0].lower()
                # Heads of a group repeated beforehand, where the backend does not take groups.
                b.case(who, "attention", detail, name, rows, lambda: sdpa(k, v, enable_gqa=True))
                b.case(who + ", repeated", "attention", detail, name, rows, lambda: sdpa(*full))
        if modules["flashinfer"]:
            flat = [t[0].transpose(0, 1).contiguous() for t in (q, k, v)]
            b.case("flashinfer", "attention", detail, name, rows,
                   lambda: modules["flashinfer"].single_prefill_with_kv_cache(*flat, causal=True))


def selection(b, name, rows, modules):
    torch = b.torch
    for segments, detail in [(1, "1 segment"), (64, "64 segments")]:
        scores = torch.randn(segments, rows, device=DEVICE)

        def topk():
            chosen = scores.topk(rows // 2, -1).indices
            return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)

        def sort():
            chosen = scores.sort(-1, descending=True).indices[:, :rows // 2]
            return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)

        b.case("torch.topk, mask", "topk", detail, name, rows, topk)
        b.case("torch.sort, mask", "topk", detail, name, rows, sort)
        b.case("torch.topk alone", "topk", detail, name, rows, lambda: scores.topk(rows // 2, -1))
        if modules["flashinfer"] and hasattr(modules["flashinfer"], "top_k"):
            b.case("flashinfer.top_k", "topk", detail, name, rows,
                   lambda: modules["flashinfer"].top_k(scores, rows // 2))


def layers(b, name, m, rows):
    torch = b.torch
    x, w = torch.randn(rows, m["hidden"], device=DEVICE), torch.randn(m["hidden"], device=DEVICE)
    b.case("torch", "norm", "", name, rows, lambda: torch.nn.functional.rms_norm(x, (m["hidden"],), w, 1e-5))
    gate, up = torch.randn(2, rows, m["ffn"], device=DEVICE)
    b.case("torch", "swiglu", "", name, rows, lambda: torch.nn.functional.silu(gate) * up)
    q, k = (torch.randn(1, heads, rows, m["dim"], device=DEVICE) for heads in (m["heads"], m["kv"]))
    b.case("torch", "rotate", "", name, rows, lambda: rotated(torch, m, rows, q, k)[0])


def backward(b, name, m, rows, modules):
    """Gradients by autograd. A forward that ours makes anew in its backward is timed with it; others are not."""
    torch = b.torch
    F = torch.nn.functional

    def leaf(*shape, dtype=torch.bfloat16, scale=1.0):
        return torch.randn(*shape, device=DEVICE).mul_(scale).to(dtype).requires_grad_()

    def of(out, inputs, dout):
        return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)[0]

    # nll: of the hidden states, the head being frozen.
    x, head = leaf(rows, m["hidden"]), leaf(m["vocab"], m["hidden"], scale=m["hidden"] ** -0.5).detach()
    target = torch.randint(m["vocab"], (rows,), device=DEVICE)

    def plain():
        loss = F.cross_entropy((x @ head.T).float(), target, reduction="sum")
        return torch.autograd.grad(loss, x)[0]

    b.case("torch", "nll_bwd", "", name, rows, plain)
    if modules["liger"]:
        apply = modules["liger"].LigerFusedLinearCrossEntropyFunction.apply
        b.case("liger", "nll_bwd", "", name, rows, lambda: torch.autograd.grad(
            apply(x, head, target, None, None, -100, 0.0, 0.0, "sum")[0], x)[0], plain)
    if modules["cce"]:
        b.case("cut cross-entropy", "nll_bwd", "", name, rows, lambda: torch.autograd.grad(
            modules["cce"].linear_cross_entropy(x, head, target, reduction="sum"), x)[0], plain)

    # The prefill's attention.
    from torch.nn.attention import SDPBackend, sdpa_kernel
    q, k, v = (leaf(1, heads, rows, m["dim"]) for heads in (m["heads"], m["kv"], m["kv"]))
    dout = torch.randn_like(q)
    for backend in [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]:
        who = "sdpa " + backend.name.split("_")[0].lower()
        for grouped in (True, False):
            pair = [k, v] if grouped else [
                t.detach().repeat_interleave(m["heads"] // m["kv"], 1).requires_grad_() for t in (k, v)]
            try:
                with sdpa_kernel([backend]):
                    out = F.scaled_dot_product_attention(q, *pair, is_causal=True, enable_gqa=grouped)
            except RuntimeError:  # no groups, or not on this device
                continue
            b.case(who + ("" if grouped else ", repeated"), "attention_bwd", "prefill", name, rows,
                   of(out, [q, *pair], dout))

    # What stands between the products, in f32 as ours.
    f32 = torch.float32
    x, weight = leaf(rows, m["hidden"], dtype=f32), torch.randn(m["hidden"], device=DEVICE)
    dy = torch.randn_like(x)
    b.case("torch", "norm_bwd", "", name, rows, of(F.rms_norm(x, (m["hidden"],), weight, 1e-5), [x], dy))
    if modules["liger_norm"]:
        # Forward and backward together, and its kernel makes the gradient of the weight too.
        apply = modules["liger_norm"].LigerRMSNormFunction.apply
        b.case("liger, with forward", "norm_bwd", "", name, rows, lambda: torch.autograd.grad(
            apply(x, weight, 1e-5, 0.0, "llama", False), x, dy)[0])
    gate, up = leaf(rows, m["ffn"], dtype=f32), leaf(rows, m["ffn"], dtype=f32)
    dy = torch.randn_like(gate)
    b.case("torch", "swiglu_bwd", "", name, rows, of(F.silu(gate) * up, [gate, up], dy))
    if modules["liger_swiglu"]:
        # It writes into what its forward kept: forward and backward together.
        apply = modules["liger_swiglu"].LigerSiLUMulFunction.apply
        b.case("liger, with forward", "swiglu_bwd", "", name, rows,
               lambda: torch.autograd.grad(apply(gate, up), [gate, up], dy)[0])
    q, k = leaf(1, m["heads"], rows, m["dim"], dtype=f32), leaf(1, m["kv"], rows, m["dim"], dtype=f32)
    both = rotated(torch, m, rows, q, k)
    b.case("torch", "rotate_bwd", "", name, rows, of(both, [q, k], [torch.randn_like(t) for t in both]))


def rotated(torch, m, rows, q, k):
    """Halves of a head rotated, as transformers writes it."""
    angles = torch.rand(rows, m["dim"] // 2, device=DEVICE).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()

    def one(x):
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat((-high, low), -1) * sin

    return one(q), one(k)


def lora(b, name, m, rows):
    """The update of q, k and v of rank 64, in f32 onto f32 as ours, by bf16 products as autocast has them."""
    torch = b.torch
    rank, kv = min(64, m["hidden"] // 4), m["kv"] * m["dim"]
    x = torch.randn(rows, m["hidden"], device=DEVICE)
    parts = []
    for outputs in (m["heads"] * m["dim"], kv, kv):
        parts.append(dict(
            a=torch.randn(rank, m["hidden"], device=DEVICE).mul_(m["hidden"] ** -0.5).bfloat16().requires_grad_(),
            b=torch.randn(outputs, rank, device=DEVICE).mul_(0.1).bfloat16().requires_grad_(),
            y=torch.zeros(rows, outputs, device=DEVICE)))

    def update(x):
        narrow = x.bfloat16()
        return [p["y"] + (narrow @ p["a"].T) @ p["b"].T for p in parts]

    with torch.no_grad():
        b.case("torch", "lora", "qkv", name, rows, lambda: update(x)[0])
        whole = torch.cat([p["a"] for p in parts])

        def joined():
            low = (x.bfloat16() @ whole.T).split(rank, -1)
            return [p["y"].add_(part @ p["b"].T) for part, p in zip(low, parts)][0]

        b.case("torch, one A", "lora", "qkv", name, rows, joined)
    x = x.requires_grad_()
    out = update(x)
    leaves = [x] + [p[side] for p in parts for side in "ab"]
    dy = [torch.randn_like(y) for y in out]
    b.case("torch", "lora_bwd", "qkv", name, rows,
           lambda: torch.autograd.grad(out, leaves, dy, retain_graph=True)[0])


def kernels(torch, ours, out, limit):
    b = Bench(torch, out, time.monotonic() + limit)
    modules = {
        "liger": optional("liger_kernel.ops.fused_linear_cross_entropy"),
        "liger_norm": optional("liger_kernel.ops.rms_norm"),
        "liger_swiglu": optional("liger_kernel.ops.swiglu"),
        "cce": optional("cut_cross_entropy"),
        "flashinfer": optional("flashinfer"),
    }
    wanted = {(row["model"], row["rows"]) for row in ours if row["op"] != "ceilings"}
    if not wanted:
        wanted = {(name, rows) for name in list(MODELS)[:2] for rows in (200, 2000, 8192)}
    for name, rows in sorted(wanted):
        if name not in MODELS:
            continue
        m = MODELS[name]
        for work in [
            lambda: nll(b, name, m, rows, modules),
            lambda: linear(b, name, m, rows),
            lambda: attention(b, name, m, rows, 0, "prefill", modules),
            lambda: rows == 200 and attention(b, name, m, rows, 9 * rows, "on 10x keys", modules),
            lambda: selection(b, name, rows, modules),
            lambda: layers(b, name, m, rows),
            lambda: lora(b, name, m, rows),
            # As benches/kernels: training's batches are not larger.
            lambda: rows <= 2000 and backward(b, name, m, rows, modules),
        ]:
            try:
                work()
            except Exception as error:  # out of memory, above all
                print(f"{name}, {rows} rows: {type(error).__name__}: {error}", file=sys.stderr)
            if DEVICE == "cuda":
                torch.cuda.empty_cache()
    return b.rows


# About 2000 tokens of plain English, so that nothing needs to be brought along.
SENTENCE = ("On the {}th day the committee of the harbour met in the old customs house, where {} members heard "
            "that the northern pier, built of larch in the year {}, would cost {} thousand crowns to repair. ")
TEXT = "".join(SENTENCE.format(i + 1, 7 + i * 5 % 31, 1800 + i * 13 % 97, 3 + i * 17 % 89) for i in range(40))


CASE = {"context": [TEXT], "rate": 0.5}


def own_prompt(args):
    """A prompt of about 2000 tokens compressed to half, in both precisions."""
    rows = []
    for precision in ("bf16", "f32"):
        process = subprocess.Popen(
            [args.prefold, "batch", "-", "--model", args.model, "--device", "cuda", "--precision", precision],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        times, row = [], {}
        for _ in range(1 + 10):
            try:
                start = time.perf_counter()
                process.stdin.write(json.dumps({"name": "x", "call": "compress_prompt", "args": CASE}) + "\n")
                process.stdin.flush()
                row = json.loads(process.stdout.readline() or "{}")
                times.append(time.perf_counter() - start)
            except (OSError, ValueError):
                break
            if "result" not in row:
                break
        if process.poll() is None:
            process.stdin.close()
        said = process.stderr.read().strip()[-300:]
        process.wait()
        found = {"who": f"prefold {precision}", "op": "compress", "rows": 2000, "model": "smollm2", "detail": ""}
        if "result" in row:
            found["seconds"] = statistics.median(times[1:])
            found["text"] = row["result"]["compressed_prompt"]
        else:
            found["error"] = row.get("error") or said
        rows.append(found)
    return rows


def end_to_end(args, torch):
    """The same beside llmlingua."""
    rows = own_prompt(args)
    found = {"who": "llmlingua", "op": "compress", "rows": 2000, "model": "smollm2", "detail": ""}
    try:
        import os
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import tiktoken

        class Words:
            def encode(self, text):
                return text.split()

        tiktoken.encoding_for_model = lambda name: Words()  # cl100k_base would need a download
        from llmlingua import PromptCompressor

        folder = args.reference_model or args.model
        compressor = PromptCompressor(folder, device_map="cuda", model_config={"torch_dtype": torch.bfloat16})
        times = []
        for _ in range(1 + 5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            result = compressor.compress_prompt(**CASE)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        found["seconds"], found["text"] = statistics.median(times[1:]), result["compressed_prompt"]
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {str(error)[:200]}"
    rows.append(found)
    return rows


def table(ours, theirs, whole):
    """Lines of a table: ours, theirs, ratio."""
    lines = []
    for row in ours:
        if row["op"] == "ceilings":
            best = [(row.get("bytes_per_second"), "copy {:.2f} TB/s"), (row.get("flops_per_second"), "cublasLt {:.0f} TFLOP/s")]
            lines.append("; ".join([row["device"]] + [text.format(value / 1e12) for value, text in best if value]))
    lines.append(f"{'model':<10} {'op':<14} {'':<12} {'rows':>5} {'ours µs':>10} {'expected':>12} {'of best':>8}  {'theirs µs':>10} {'ratio':>7}  who")
    for row in ours:
        if row["op"] == "ceilings":
            continue
        seconds = row.get("seconds")
        us = f"{seconds * 1e6:.1f}" if seconds else "-"
        best = f"{100 * row['of_ceiling']:.0f} %" if row.get("of_ceiling") else "-"
        said = row.get("expected_seconds")
        said = f"{said[0] * 1e6:.0f}-{said[1] * 1e6:.0f}" if said else "-"
        head = f"{row['model']:<10} {row['op']:<14} {row['detail']:<12} {row['rows']:>5} {us:>10} {said:>12} {best:>8}"
        if not row["right"]:
            head += "  WRONG"
        key = (row["model"], row["op"].removesuffix(" (own)"), row["detail"], row["rows"])
        others = [t for t in theirs if (t["model"], t["op"], t["detail"], t["rows"]) == key]
        if not others:
            lines.append(head)
        for i, other in enumerate(others):
            there = other.get("seconds")
            cells = f"{there * 1e6:>10.1f}" if there else f"{'-':>10}"
            cells += f" {there / seconds:>7.2f}" if there and seconds else f" {'-':>7}"
            lines.append(f"{head if i == 0 else '':<{len(head)}}  {cells}  {other['who']}"
                         + (f" ({other['error'][:60]})" if "error" in other else ""))
    reference = next((r for r in whole if r["who"] == "llmlingua"), {}).get("seconds")
    for row in whole:
        seconds = row.get("seconds")
        what = f"{seconds * 1e3:.1f} ms" if seconds else row.get("error", "-")
        ratio = f", {reference / seconds:.1f} times llmlingua" if seconds and reference else ""
        lines.append(f"compress 2000 tokens to half, {row['who']}: {what}{ratio}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    kernel = what.add_parser("kernels", help="the cases of benches/kernels")
    kernel.add_argument("--ours", help="JSON lines of benches/kernels")
    kernel.add_argument("--out", help="JSON lines of the others go here")
    kernel.add_argument("--table", help="the table goes here too")
    kernel.add_argument("--prefold", help="the program, for the comparison end to end")
    kernel.add_argument("--model", help="SmolLM2 as GGUF, for the same")
    kernel.add_argument("--reference-model", help="the same as a Hugging Face folder, for llmlingua")
    kernel.add_argument("--cpu", action="store_true", help="on the CPU, to try this script with tiny shapes")
    kernel.add_argument("--no-others", action="store_true", help="the table of ours alone")
    kernel.add_argument("--limit", type=float, default=240, help="seconds for the cases")
    prompt = what.add_parser("prompt", help="one prompt by prefold alone")
    prompt.add_argument("--prefold", required=True)
    prompt.add_argument("--model", required=True)
    prompt.add_argument("--out")
    training = optional("baseline_train")
    if training:
        training.options(what.add_parser("train", help="the loop of training"))
    args = parser.parse_args()
    if args.what == "train":
        training.compare(args)
    elif args.what == "prompt":
        rows = own_prompt(args)
        lines = [json.dumps(row) + "\n" for row in rows]
        print("".join(lines), end="")
        if args.out:
            pathlib.Path(args.out).write_text("".join(lines))
        sys.exit(any("seconds" not in row for row in rows))
    else:
        compare_kernels(args)


def compare_kernels(args):
    ours = [json.loads(line) for line in open(args.ours)] if args.ours else []
    torch = None if args.no_others else optional("torch")
    theirs, whole = [], []
    missing = None if torch else "no PyTorch"
    if args.cpu:
        global DEVICE
        DEVICE = "cpu"
    elif torch and not torch.cuda.is_available():
        missing = "no GPU"
    if missing:
        print(f"{missing}: others are not measured", file=sys.stderr)
    else:
        theirs = kernels(torch, ours, args.out, args.limit)
    if args.prefold and args.model and not missing:
        whole = end_to_end(args, torch)
        if args.out:
            with open(args.out, "a") as out:
                out.writelines(json.dumps(row) + "\n" for row in whole)
    lines = table(ours, theirs, whole)
    print("\n".join(lines))
    if args.table:
        pathlib.Path(args.table).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
