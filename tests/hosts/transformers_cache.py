#!/usr/bin/env python3
"""Hugging Face transformers reads prefold's prefixes through `prefold.transformers`.

    transformers_cache.py PREFOLD GOLDEN

PREFOLD is the built program, GOLDEN the folder with the tiny golden models. Both run in f32, so the ids must be the same: those
of `prefold generate` after a prefilled, a soft and three pruned prefixes, and those of the whole prompt for the first. So must
those that ICAE's own embedding asks for.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../bindings/python/python"))
import prefold.transformers as host

TEXT = [(i * i * 7 + 13 * i + 5) % 380 for i in range(150)]
PROMPT = [17, 4, 230, 9]
ANSWER = 24


def main(program, golden):
    def run(*arguments):
        return subprocess.run([program, *arguments], check=True, stdout=subprocess.PIPE).stdout

    options = {"max_new_tokens": ANSWER, "min_new_tokens": ANSWER, "do_sample": False, "pad_token_id": 0}
    with tempfile.TemporaryDirectory() as folder:
        made, exported = (os.path.join(folder, name) for name in ("made", "exported"))
        for family in ("500x/tiny", "models/llama3", "models/qwen2", "models/qwen3"):
            path = os.path.join(golden, family)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            cases = [["prefill"]]
            cases += [["prefill", "--keep", "0.4", "--by", by] for by in ("llmlingua", "snapkv", "expected-attention", "keydiff")]
            if family == "500x/tiny":
                adapter = os.path.join(golden, "500x/tiny-adapter-all")
                cases.append(["encode", "--adapter", adapter])
                cases.append(["encode", "--adapter", adapter, "--method", "icae", "--piece-tokens", "60"])
            for case in cases:
                common = ["--ids", json.dumps(TEXT), "--dtype", "f32", "--k-rope", "none", "-m", path, "-o", made]
                run(*case, *common)
                told = json.loads(run("export", "--to", "transformers", made, "-o", exported))
                prefix = host.Prefix.open(exported)
                assert len(told["tokens"]) == prefix.tokens and told["next_pos"] == prefix.next_pos
                got = host.generate(model, prefix, PROMPT, **options)
                asked = ["generate", "-p", made, "--prompt-ids", json.dumps(PROMPT), "-n", str(ANSWER)]
                want = json.loads(run(*asked, "--json", "--ignore-eos", "-m", path))["ids"]
                eos = model.generation_config.eos_token_id
                assert eos not in want, "choose another prompt: the answer ends early"
                assert got == want, "{0} {1}: {2} instead of {3}".format(family, case, got, want)
                if case == ["prefill"]:
                    ids = torch.tensor([TEXT + PROMPT])
                    whole = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
                    assert whole[0, ids.shape[1] :].tolist() == got
                print("transformers {0}, {1}: {2}: the same {3} ids".format(
                    transformers.__version__, family, " ".join(case[:1] + case[3:]), len(got)))
            if family == "500x/tiny":
                begin_by_an_embedding(run, model, path, adapter, folder, options)
    print("all passed")


def begin_by_an_embedding(run, model, path, adapter, folder, options):
    """A text that is asked for by [AE], which no id has."""
    own, prefix = os.path.join(folder, "own"), os.path.join(folder, "icae")
    shutil.copytree(adapter, own)
    begin = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    save_file({"ae_embedding": begin}, os.path.join(own, "ae_embedding.safetensors"))
    common = ["--ids", json.dumps(TEXT), "--dtype", "f32", "-m", path, "-o", prefix]
    run("encode", "--adapter", own, "--method", "icae", *common)
    asked = ["generate", "-p", prefix, "-a", own, "-n", str(ANSWER), "--json", "--ignore-eos", "-m", path]
    want = json.loads(run(*asked))["ids"]
    opened = host.Prefix.open(prefix)
    got = host.generate(model, opened, begin=host.beginning(own), **options)
    assert got == want, "[AE]: {0} instead of {1}".format(got, want)
    assert host.beginning(adapter) is None
    assert host.generate(model, opened, [1], **options) != want, "choose another embedding: BOS asks for the same"
    print("transformers {0}: after [AE]: the same {1} ids".format(transformers.__version__, len(got)))


if __name__ == "__main__":
    main(*sys.argv[1:])
