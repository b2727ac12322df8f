#!/usr/bin/env python3
"""An unmodified llama.cpp server reads prefold's prefixes, over HTTP.

    llama_cpp.py PREFOLD MODEL [UNPACKED]
    llama_cpp.py PREFOLD --tiny GGUF...

PREFOLD is the built program, MODEL a GGUF, UNPACKED the same SmolLM2-135M-Instruct with weights of F32; each GGUF a tiny model of
40 ids with random weights of F32. Needs the package xllamacpp, which holds the server. A case restores an exported prefix into a slot, asks a question after it, and compares the
answer's ids: with those that the server itself gives for the whole prompt where the prefix is a text's own cache, with those of
`prefold generate` where it is not. The server must say that it took the prefix from its cache.

With quantised weights the server rounds activations to eight bits before it multiplies, and prefold does not: there only a
text's own cache is compared, which the server itself has an answer for. With weights of F32 both compute the same.

`prefold prefixes load` is then to do all of that by itself: the same answers as by hand, and one
line where it cannot.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import xllamacpp

from smollm2_cases import ANSWER, HEAD, QUESTION, SOFT_QUESTION, TEXT, write_adapter

# Six tenths of the keys and values, chosen by surprisal or by attention.
PRUNED = ("llmlingua", "snapkv", "expected-attention", "keydiff")

# ggml's numbers of element types.
F32, F16 = 0, 1

# name: (slots, flash attention, one stream for all slots, type of the cache)
SERVERS = {
    "one slot, flash attention": (1, True, False, F16),
    "two slots, no flash attention, f32": (2, False, False, F32),
    "two slots, unified": (2, True, True, F16),
}
# How far log-probabilities may be apart, in nats. Flash attention rounds queries and sums to f16; the other way is f32 all
# along, and differs by the order of sums.
APART = {True: 0.02, False: 0.001}


class Server:
    """One on `model`, that saves slots in `folder` (nowhere, if that is None) and wants `key`."""

    def __init__(self, model, slots, flash, unified, cache, folder, key=None):
        flags = xllamacpp.llama_flash_attn_type
        params = xllamacpp.CommonParams()
        params.model.path = model
        params.n_ctx = 2048
        params.n_parallel = slots
        params.kv_unified = unified
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type(cache)
        params.port = 0
        params.verbosity = 1
        params.cache_ram_mib = 0
        params.warmup = False
        # More would wait for each other in a loop, which on a busy machine takes a hundred times as long.
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        if folder is not None:
            params.slot_save_path = folder + os.sep
        if key is not None:
            params.api_keys = [key]
        params.flash_attn_type = (
            flags.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else flags.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self.server = xllamacpp.Server(params)
        self.headers = {"Content-Type": "application/json"}
        if key is not None:
            self.headers["Authorization"] = "Bearer " + key
        self.slot = slots - 1
        self.apart = APART[flash]

    def post(self, path, body):
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), self.headers
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


class Prefold:
    def __init__(self, program, model):
        self.program, self.model = program, model
        self.answers = {}

    def start(self, *arguments):
        return subprocess.run(
            [self.program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, check=False
        )

    def run(self, *arguments):
        done = self.start(*arguments)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def refused(self, *arguments):
        """The one line of a run that must fail."""
        done = self.start(*arguments)
        line = done.stderr.decode()
        assert (done.returncode, done.stdout) == (1, b""), (done.returncode, done.stdout, line)
        assert line.startswith("prefold: ") and line.count("\n") == 1 and line.endswith("\n"), line
        return line

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


def compare(name, answer, odds, wanted, apart):
    """Holds a server's answer to ours: the same ids, their log-probabilities within `apart`."""
    ids, logprobs = wanted
    assert answer == ids, "{0}: {1} instead of {2}".format(name, answer, ids)
    worst = max(abs(odds[index][id] - logprobs[index]) for index, id in enumerate(ids))
    assert worst < apart, "{0}: {1} nats apart".format(name, worst)
    return "our own {0} ids, at most {1:.4f} nats apart".format(len(ids), worst)


def check(server, prefold, folder, prefixes, what, head, questions, count=ANSWER):
    """Every prefix in one server: `head` are the ids of their text, `questions` those of what is
    asked after each. Gives what `export` said of each, and the answer."""
    by_hand = {}
    template = os.path.join(folder, "template.bin")
    server.complete([1], 1)
    server.slot_file("save", "template.bin")
    server.forget()
    whole, _, cached = server.complete(head + questions["prefilled"], count)
    assert cached == 0
    for name, prefix in prefixes.items():
        slot, question = name + ".bin", questions[name]
        told = prefold.export(prefix, os.path.join(folder, slot), "--template", template)
        server.forget()
        restored = server.slot_file("restore", slot)
        assert restored["n_restored"] == len(told["tokens"]), restored
        answer, odds, cached = server.complete(told["tokens"] + question, count)
        assert cached == len(told["tokens"]), "{0}: {1} of {2} cached".format(name, cached, len(told["tokens"]))
        if name == "prefilled":
            assert answer == whole, "{0}: {1} instead of {2}".format(name, answer, whole)
            same = "the whole prompt's answer"
        else:
            same = compare(name, answer, odds, prefold.generate(prefix, question, count), server.apart)
        if name != "soft":
            assert told["tokens"] == head
        by_hand[name] = told, answer, odds
        print("{0}: {1}: {2} tokens in {3} cells, cached, {4}".format(what, name, cached, told["cells"], same))
    return by_hand


def to_slot(server, slot, folder, *more):
    """What tells `prefixes load` where a prefix goes."""
    address = server if isinstance(server, str) else server.server.listening_address
    return ("--to", address, "--slot", str(slot), "--slot-folder", folder) + more


def loaded(server, prefold, prefix, slot, folder, exported, *more):
    """The ids that `prefixes load` printed, which are those of `export`."""
    where = to_slot(server, slot, folder, *more)
    told = json.loads(prefold.run("prefixes", "load", prefix, *where))
    assert sorted(told) == ["cells", "filename", "slot", "tokens"], told
    for key in ("tokens", "cells"):
        assert told[key] == exported[key], (key, told, exported)
    assert told["slot"] == slot, told
    assert told["filename"] == os.path.basename(told["filename"]), told
    return told["tokens"]


def check_load(server, prefold, folder, prefixes, what, questions, by_hand, count=ANSWER):
    """`prefixes load` of every prefix, by its file and by its name in a store, against `check`."""
    store = os.path.join(folder, what + "-store")
    for name, prefix in prefixes.items():
        exported, answer, odds = by_hand[name]
        stored = prefold.run("prefixes", "push", prefix, "--store", store).decode().strip()
        for given, more in ((prefix, ()), (stored, ("--store", store))):
            server.complete([5, 6, 7], 1)  # What lies in the slot before is gone afterwards.
            ids = loaded(server, prefold, given, server.slot, folder, exported, *more)
            got, got_odds, cached = server.complete(ids + questions[name], count)
            assert cached == len(ids), "{0}: {1} of {2} cached".format(name, cached, len(ids))
            assert got == answer, (name, got, answer)
            # The same bytes in the same slot: the same sums. The soft prefix is not rotated, and a store rounds its
            # rotated keys to 16 bits once more.
            assert name == "soft" or got_odds == odds, name
    print("{0}: {1} prefixes loaded, the same answers".format(what, len(prefixes)))


def other_slot_stays(server, prefold, folder, prefixes, questions, by_hand, count):
    """Two prefixes in two slots: loading one leaves the other where it is."""
    (first, a), (second, b) = list(prefixes.items())[:2]
    slots = {first: 0, second: 1}
    for name, prefix in ((first, a), (second, b)):
        loaded(server, prefold, prefix, slots[name], folder, by_hand[name][0])
    kept = server.slot
    for name in (first, second):
        exported, answer, _ = by_hand[name]
        server.slot = slots[name]
        got, _, cached = server.complete(exported["tokens"] + questions[name], count)
        assert (got, cached) == (answer, len(exported["tokens"])), (name, got, cached)
    server.slot = kept
    print("two slots: each keeps its own")


def check_refusals(server, prefold, folder, prefix, other, exported, model):
    """One line, and no file left, for each way in which nothing can be loaded; a server with a key
    takes what comes with it."""
    load = lambda file, *where: prefold.refused("prefixes", "load", file, *to_slot(*where))
    with tempfile.TemporaryDirectory() as elsewhere:
        line = load(prefix, server, 0, elsewhere)
        assert os.path.basename(elsewhere) in line and "--slot-save-path" in line, line
        assert os.listdir(elsewhere) == []
    for name in os.listdir(folder):
        # Those of the loads before, and one that the program could not see.
        if name.startswith("prefold-"):
            os.remove(os.path.join(folder, name))
    listed = sorted(os.listdir(folder))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # Without a listener it refuses.
        address = "127.0.0.1:{0}".format(closed.getsockname()[1])
        line = load(prefix, "http://" + address, 0, folder)
    assert address in line, line
    line = load(prefix, server, 9, folder)
    assert "slots 0 to 1, not 9" in line, line
    line = load(prefix, server, 0, os.path.join(folder, "nowhere"))
    assert "nowhere" in line, line
    line = load(other, server, 0, folder)
    assert "model" in line, line
    line = load(os.path.join(folder, "no-such-prefix"), server, 0, folder)
    assert "no-such-prefix" in line, line
    left = set(os.listdir(folder)) ^ set(listed)
    assert not left, left
    # After all of that the slot still takes what it should.
    loaded(server, prefold, prefix, 0, folder, exported)

    kind = SERVERS["one slot, flash attention"]
    without = Server(model, *kind, None)
    assert "--slot-save-path" in load(prefix, without, 0, folder)
    del without
    key = "a key of the server's"
    locked = Server(model, *kind, folder, key)
    lines = [
        load(prefix, locked, 0, folder),
        load(prefix, locked, 0, folder, "--api-key", "another"),
    ]
    assert all("--api-key" in line for line in lines), lines
    loaded(locked, prefold, prefix, 0, folder, exported, "--api-key", key)
    print("what cannot be loaded is one line")


def questions_by(server, names):
    """What is asked after each prefix of the text, as ids."""
    return {name: server.tokenize(SOFT_QUESTION if name == "soft" else QUESTION) for name in names}


def tiny(program, paths, folder):
    """A tiny model of each family: whether K's pairs are interleaved is a matter of the family."""
    head, eos, count = [3, 17, 8, 30, 11, 25, 6, 33, 21, 14], 2, 8
    first = None
    for path in paths:
        prefold, name = Prefold(program, path), os.path.splitext(os.path.basename(path))[0]
        prefixes = {}
        for by in ("prefilled",) + PRUNED:
            if (name, by) == ("gpt2", "expected-attention"):
                continue  # It is about rotations, which GPT-2 has none of.
            prefixes[by] = os.path.join(folder, name + "-" + by)
            keep = [] if by == "prefilled" else ["--keep", "0.6", "--by", by]
            prefold.make("prefill", "--ids", json.dumps(head), *keep, "--dtype", "f32", "-o", prefixes[by])
        # One whose answers continue: where prefold ignores an end of text, the server says something else instead.
        questions = ([9, at] for at in range(3, 40))
        answers = lambda question: (prefold.ask(prefix, question, count)[0] for prefix in prefixes.values())
        question = next(question for question in questions if all(eos not in answer for answer in answers(question)))
        server = Server(path, *SERVERS["two slots, no flash attention, f32"], folder)
        questions = dict.fromkeys(prefixes, question)
        by_hand = check(server, prefold, folder, prefixes, name, head, questions, count)
        check_load(server, prefold, folder, prefixes, name, questions, by_hand, count)
        if first is None:
            other_slot_stays(server, prefold, folder, prefixes, questions, by_hand, count)
            first = prefixes["prefilled"]
        elif path == paths[-1]:
            own = prefixes["prefilled"]
            check_refusals(server, prefold, folder, own, first, by_hand["prefilled"][0], path)
        del server


def quantised(prefold, folder):
    """A text's own cache in a server with the model as it is."""
    server = Server(prefold.model, *SERVERS["one slot, flash attention"], folder)
    prefixes = {"prefilled": os.path.join(folder, "quantised.safetensors")}
    head = server.tokenize(HEAD)
    prefold.make("prefill", "--ids", json.dumps(head), "--dtype", "f16", "-o", prefixes["prefilled"])
    what, questions = os.path.basename(prefold.model), questions_by(server, prefixes)
    by_hand = check(server, prefold, folder, prefixes, what, head, questions)
    check_load(server, prefold, folder, prefixes, what, questions, by_hand)


def unpacked(prefold, folder):
    """Every kind of prefix in every kind of server, with weights of F32."""
    adapter = os.path.join(folder, "adapter")
    write_adapter(adapter)
    names = ("prefilled", "soft") + PRUNED
    prefixes = {name: os.path.join(folder, name + ".safetensors") for name in names}
    server = None
    for what, kind in SERVERS.items():
        del server
        server = Server(prefold.model, *kind, folder)
        head = server.tokenize(HEAD)
        if not os.path.exists(prefixes["soft"]):
            # What the servers' caches keep, but for one, so that both sides read the same.
            made = ["--ids", json.dumps(head), "--dtype", "f16"]
            prefold.make("prefill", *made, "-o", prefixes["prefilled"])
            for by in PRUNED:
                prefold.make("prefill", *made, "--keep", "0.6", "--by", by, "-o", prefixes[by])
            made = ["--text", TEXT, "--dtype", "f16", "--k-rope", "none"]
            prefold.make("encode", "--adapter", adapter, *made, "-o", prefixes["soft"])
        questions = questions_by(server, prefixes)
        by_hand = check(server, prefold, folder, prefixes, what, head, questions)
        # Its tokens are not text's: the ids must be those that were printed.
        soft = {"soft": prefixes["soft"]}
        check_load(server, prefold, folder, soft, what, questions, by_hand)
        if kind == SERVERS["one slot, flash attention"]:
            # Without a template the file is the same where the server is the default one.
            slot = os.path.join(folder, "plain.bin")
            prefold.export(prefixes["soft"], slot)
            with open(slot, "rb") as plain, open(os.path.join(folder, "soft.bin"), "rb") as soft:
                assert plain.read() == soft.read()


def main(program, model, *more):
    program = os.path.abspath(program)
    with tempfile.TemporaryDirectory() as folder:
        if model == "--tiny":
            tiny(program, more, folder)
        else:
            quantised(Prefold(program, os.path.realpath(model)), folder)
            for f32 in more:
                unpacked(Prefold(program, os.path.realpath(f32)), folder)
    print("all passed")


if __name__ == "__main__":
    main(*sys.argv[1:])
