"""Makes tokenize_fuzz.json: ids of random mixed-script strings by an unmodified llama.cpp.

    python make_tokenize_fuzz.py SmolLM2.gguf tokenize_fuzz.json     # needs xllamacpp and gguf

One vocabulary under four pre-tokenizers: copies of the file differ in `tokenizer.ggml.pre` only.
`ids` has special tokens as plain text, `special` has them parsed.
"""
import http.client
import json
import random
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path

PRE = ["smollm", "gpt-2", "llama-bpe", "qwen2"]


def texts():
    random.seed(11)
    pools = [
        [chr(c) for c in range(32, 127)],
        [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u200b", "\x0b", "\x85", " \n", "\n\n  "],
        list("0123456789٣४²½Ⅷ①𝟘〇一〆"),
        list("абвгЖЗИéüßñøœſK"),
        list("日本語中文한국어ひカ"),
        list("אבגدهوحनमस्तेไทย"),
        list("😀👩‍👩‍👧🇩🇪✨❤️‍🔥"),
        ["'s", "'t", "'re", "'VE", "'m", "'LL", "'d", "'S", "'ſ", "’s", "isn't", "'Re"],
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>", "<|im_", "|>", "<|"],
        [chr(c) for c in (4, 0x300, 0x327, 0xFE0F, 0x200D, 0x903, 0x10FFFF, 0xE000, 0xFFFD, 0xFEFF, 0x378)],
        ["hello", "world", " return", "    ", "{}", "();", "//", "!=", "...", "https://x.y/z?q=1", "1234567", "3.14"],
    ]
    for _ in range(160):
        chosen = random.sample(pools, random.randint(1, 3))
        yield "".join(random.choice(random.choice(chosen)) for _ in range(random.randint(1, 14)))


def serve(model, pre, rows):
    """Runs in its own process: the server cannot be stopped."""
    import os

    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.warmup, p.n_gpu_layers, p.port = model, 256, False, 0, 0
    server = xllamacpp.Server(p)
    url = urllib.parse.urlparse(server.listening_address)
    http_ = http.client.HTTPConnection(url.hostname, url.port)
    for row in rows:
        for key, parse in (("ids", False), ("special", True)):
            body = json.dumps({"content": row["text"], "add_special": False, "parse_special": parse})
            http_.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
            row[pre][key] = json.loads(http_.getresponse().read())["tokens"]
    sys.stdout.flush()
    print("\n@" + json.dumps(rows), flush=True)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], sys.argv[3], json.load(sys.stdin))
    source, out = sys.argv[1:]
    rows = [{"text": t} for t in texts()]
    with tempfile.TemporaryDirectory() as folder:
        for pre in PRE:
            model = str(Path(folder) / f"{pre}.gguf")
            tool = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata"]
            subprocess.run([*tool, "--pre-tokenizer", pre, source, model], check=True, capture_output=True)
            for row in rows:
                row[pre] = {}
            command = [sys.executable, __file__, "--serve", model, pre]
            done = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True, check=True)
            rows = json.loads(next(line for line in done.stdout.split("\n") if line.startswith("@"))[1:])
    with open(out, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in rows) + "\n]\n")
