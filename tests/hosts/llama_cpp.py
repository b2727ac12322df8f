#!/usr/bin/env python3
"""An unmodified llama.cpp server reads prefold's prefixes, over HTTP.

    llama_cpp.py PREFOLD MODEL

PREFOLD is the built program, MODEL a GGUF of SmolLM2-135M-Instruct. Needs the package xllamacpp, which holds the server. Each
case restores an exported prefix into a slot, asks a question behind it, and compares the answer: with the ids that the server
itself gives for the whole prompt where the prefix is a text's own cache, with the ids and log-probabilities of `prefold
generate` where it is not. The server must say that it took the prefix from its cache.
"""

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import xllamacpp

TEXT = (
    "The lighthouse on Gannet Rock was built in 1887 by Ada Thorne, an engineer from Leeds. Its lamp burned whale oil "
    "until 1911, when the keeper, a man named Silas Brandt, replaced it with an electric light that he had made himself. "
    "In 1954 a storm broke the upper gallery, and for three years the tower stood dark. The village of Merrow paid for the "
    "repair with the money from its autumn fair. Today the lighthouse is a museum with nine rooms, and the old lamp stands "
    "in the first of them beside a portrait of the woman who built it."
)
HEAD = "<|im_start|>user\n" + TEXT
QUESTION = "\nWho built the lighthouse?<|im_end|>\n<|im_start|>assistant\n"
ANSWER = 12
# In nats. The server rounds activations to 8 bits and its cache to 16, prefold does not, and the random adapter's prefix is
# like no text's, which makes much of little; K or V in a wrong place is worth several.
TOLERANCE = 0.5

# Six tenths of the keys and values, chosen by surprise or by attention.
PRUNED = ("llmlingua", "snapkv", "expected-attention")

# name: (slots, flash attention, one stream for all slots)
SERVERS = {
    "one slot, flash attention": (1, True, False),
    "two slots, no flash attention": (2, False, False),
    "two slots, unified": (2, True, True),
}


class Server:
    def __init__(self, model, slots, flash, unified, folder):
        flags = xllamacpp.llama_flash_attn_type
        params = xllamacpp.CommonParams()
        params.model.path = model
        params.n_ctx = 2048
        params.n_parallel = slots
        params.kv_unified = unified
        params.port = 0
        params.cache_ram_mib = 0
        params.warmup = False
        # More would wait for each other in a loop, which on a busy machine takes a hundred times as long.
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.slot_save_path = folder + os.sep
        params.flash_attn_type = (
            flags.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else flags.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self.server = xllamacpp.Server(params)
        self.slot = slots - 1

    def post(self, path, body):
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError("{0}: {1} {2}".format(path, error.code, error.read().decode())) from None

    def tokenize(self, text):
        return self.post("/tokenize", {"content": text, "parse_special": True})["tokens"]

    def slot_file(self, action, name):
        return self.post("/slots/{0}?action={1}".format(self.slot, action), {"filename": name})

    def complete(self, ids, count=ANSWER):
        """The answer's ids, for each the likeliest ones with their log-probabilities, and how many of the prompt's came from
        the cache."""
        answer = self.post(
            "/completion",
            {
                "prompt": ids,
                "n_predict": count,
                "temperature": 0,
                "id_slot": self.slot,
                "cache_prompt": True,
                "return_tokens": True,
                "ignore_eos": True,
                "n_probs": 10,
            },
        )
        odds = [
            {one["id"]: one["logprob"] for one in each["top_logprobs"]} for each in answer["completion_probabilities"]
        ]
        return answer["tokens"], odds, answer["timings"]["cache_n"]

    def forget(self):
        self.post("/slots/{0}?action=erase".format(self.slot), {})


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


class Prefold:
    def __init__(self, program, model):
        self.program, self.model = program, model
        self.answers = {}

    def run(self, *arguments):
        done = subprocess.run(
            [self.program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def make(self, *arguments):
        self.run(*arguments, "--model", self.model)

    def export(self, prefix, slot, *more):
        return json.loads(self.run("export", "--to", "llama.cpp", prefix, "-o", slot, *more))

    def generate(self, prefix, ids, count=ANSWER):
        if prefix not in self.answers:
            self.answers[prefix] = self.ask(prefix, ids, count)
        return self.answers[prefix]

    def ask(self, prefix, ids, count):
        arguments = ["generate", "--prefix", prefix, "--prompt-ids", json.dumps(ids), "--json", "--ignore-eos"]
        done = self.run(*arguments, "--max-new-tokens", str(count), "--model", self.model)
        done = json.loads(done)
        return done["ids"], done["logprobs"]


def compare(name, answer, odds, wanted):
    """Holds a server's answer to ours, as far as both go on behind the same ids; gives the greatest difference."""
    worst = 0.0
    for index, (id, logprob) in enumerate(zip(*wanted)):
        assert id in odds[index], "{0}: {1}, unlikely at {2} of {3}".format(name, id, index, answer)
        difference = abs(odds[index][id] - logprob)
        assert difference < TOLERANCE, "{0}: {1} differs by {2} at {3}".format(name, id, difference, index)
        worst = max(worst, difference)
        if answer[index] != id:
            # Two runtimes part ways where two ids are about equally likely, and only there.
            assert odds[index][answer[index]] - odds[index][id] < TOLERANCE, "{0}: {1}".format(name, answer)
            break
    assert index > 0
    return "{0} ids compared, {1:.2f} nats apart".format(index + 1, worst)


def check(server, prefold, folder, prefixes, what, template_name):
    """Every prefix in one server."""
    server.complete([1], 1)
    server.slot_file("save", template_name)
    template = os.path.join(folder, template_name)
    question = server.tokenize(QUESTION)
    head = server.tokenize(HEAD)
    server.forget()
    whole, _, cached = server.complete(head + question)
    assert cached == 0
    for name, prefix in prefixes.items():
        slot = name + ".bin"
        told = prefold.export(prefix, os.path.join(folder, slot), "--template", template)
        server.forget()
        restored = server.slot_file("restore", slot)
        assert restored["n_restored"] == len(told["tokens"]), restored
        answer, odds, cached = server.complete(told["tokens"] + question)
        assert cached == len(told["tokens"]), "{0}: {1} of {2} cached".format(name, cached, len(told["tokens"]))
        if name == "prefilled":
            assert answer == whole, "{0}: {1} instead of {2}".format(name, answer, whole)
            same = "the whole prompt's answer"
        else:
            same = compare(name, answer, odds, prefold.generate(prefix, question))
        if name != "soft":
            assert told["tokens"] == head
        print("{0}: {1}: {2} tokens in {3} cells, cached, {4}".format(what, name, cached, told["cells"], same))
    # Without a template: the file is the same where the server is the default one.
    if what == "one slot, flash attention":
        slot = os.path.join(folder, "plain.bin")
        prefold.export(prefixes["soft"], slot)
        with open(slot, "rb") as plain, open(os.path.join(folder, "soft.bin"), "rb") as soft:
            assert plain.read() == soft.read()


def main(program, model):
    prefold = Prefold(os.path.abspath(program), os.path.realpath(model))
    with tempfile.TemporaryDirectory() as folder:
        adapter = os.path.join(folder, "adapter")
        write_adapter(adapter)
        names = ("prefilled", "soft") + PRUNED
        prefixes = {name: os.path.join(folder, name + ".safetensors") for name in names}
        server = None
        for number, (what, (slots, flash, unified)) in enumerate(SERVERS.items()):
            del server
            server = Server(prefold.model, slots, flash, unified, folder)
            if number == 0:
                ids = json.dumps(server.tokenize(HEAD))
                prefold.make("prefill", "--ids", ids, "-o", prefixes["prefilled"])
                for by in PRUNED:
                    prefold.make("prefill", "--ids", ids, "--keep", "0.6", "--by", by, "-o", prefixes[by])
                prefold.make("encode", "--adapter", adapter, "--text", TEXT, "--k-rope", "none", "-o", prefixes["soft"])
            check(server, prefold, folder, prefixes, what, "template-{0}.bin".format(number))
    print("all passed")


if __name__ == "__main__":
    main(*sys.argv[1:])
