#!/usr/bin/env python3
"""vLLM's server reads prefold's prefixes through `prefold.vllm`, over HTTP.

    vllm_connector.py PREFOLD FOLDER [GOLDEN]

PREFOLD is the built program, FOLDER SmolLM2-135M-Instruct as a Hugging Face folder
(tools/gguf_to_hf.py), GOLDEN the folder with the tiny golden models. Both compute in f32, so the
ids must be the same: those of `prefold generate` after a prefilled, a soft and a pruned prefix, and
for the first those of the whole prompt. Then two servers read the same prefixes, each from a store
of its own, and continue chats after them.
"""

import functools
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from smollm2_cases import ANSWER, HEAD, QUESTION, SOFT_QUESTION, TEXT, write_adapter

PYTHON = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../bindings/python/python")
STARTS_IN = 600


class Server:
    """`vllm serve` in a process of its own, gone when the block ends."""

    def __init__(self, folder, log, **extra):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        transfer = {
            "kv_connector": "PrefoldConnector",
            "kv_connector_module_path": "prefold.vllm",
            "kv_role": "kv_consumer",
            "kv_connector_extra_config": extra,
        }
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            folder,
            "--dtype",
            "float32",
        ]
        command += [
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--max-model-len",
            "1024",
            "--served-model-name",
            "m",
        ]
        command += ["--enforce-eager", "--kv-transfer-config", json.dumps(transfer)]
        known = [os.path.abspath(PYTHON)] + [part for part in sys.path if part.endswith("vllm")]
        known += [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        environment = dict(
            os.environ,
            PYTHONPATH=os.pathsep.join(known),
            VLLM_CPU_KVCACHE_SPACE="1",
            HF_HUB_OFFLINE="1",
        )
        environment["VLLM_NO_USAGE_STATS"] = "1"
        self.address = "http://127.0.0.1:{0}".format(port)
        self.process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def __enter__(self):
        end = time.monotonic() + STARTS_IN
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.address + "/health", timeout=5).close()
                return self
            except OSError:
                time.sleep(1)
        self.__exit__()
        raise AssertionError("vLLM does not start")

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def complete(self, prompt, route="completions", **more):
        body = {
            "model": "m",
            "prompt": prompt,
            "max_tokens": ANSWER,
            "temperature": 0,
            "ignore_eos": True,
        }
        body.update(return_token_ids=True, **more)
        request = urllib.request.Request(
            self.address + "/v1/" + route,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["choices"][0]["token_ids"]

    def refuses(self, prompt, **more):
        try:
            got = self.complete(prompt, **more)
        except urllib.error.HTTPError as error:
            assert error.code >= 400
            return
        raise AssertionError("not refused: {0}".format(got))

    def counted(self, name):
        """A counter of the connector in the server's metrics."""
        with urllib.request.urlopen(self.address + "/metrics", timeout=60) as page:
            lines = [
                line
                for line in page.read().decode().splitlines()
                if line.startswith("vllm:prefold_prefix_" + name)
            ]
        (line,) = [line for line in lines if "_total" in line]
        return float(line.rpartition(" ")[2])

    def tokenize(self, text):
        body = json.dumps({"model": "m", "prompt": text, "add_special_tokens": False}).encode()
        request = urllib.request.Request(
            self.address + "/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["tokens"]


def check_moves(run, golden, folder):
    """Keys that the connector rotates are those that prefold rotates, stretched frequencies too."""
    import torch
    from safetensors import safe_open

    sys.path.insert(0, PYTHON)
    import prefold.vllm

    for family in ("500x/tiny", "models/llama3"):
        paths = {}
        for state in ("none", "applied"):
            paths[state] = os.path.join(folder, "moved-" + state)
            ids = json.dumps([7 * i % 300 for i in range(90)])
            more = [
                "--dtype",
                "f32",
                "--k-rope",
                state,
                "-o",
                paths[state],
                "-m",
                os.path.join(golden, family),
            ]
            run("prefill", "--ids", ids, *more)
        header = prefold.vllm.read_header(paths["applied"])
        with safe_open(paths["none"], "pt") as plain, safe_open(paths["applied"], "pt") as rotated:
            k, want = plain.get_tensor("layers.0.k"), rotated.get_tensor("layers.0.k")
        for row in (0, 1, 33, header.rows - 1):
            got = prefold.vllm.moved(k[:, row : row + 1], row, header.metadata)
            assert torch.allclose(got.float(), want[:, row : row + 1], rtol=0, atol=2e-5), (
                family,
                row,
            )
    print("keys move as prefold moves them")


def main(program, model, golden=None):
    def run(*arguments):
        done = subprocess.run(
            [os.path.abspath(program), *arguments], stdout=subprocess.PIPE, check=True
        )
        return done.stdout

    with tempfile.TemporaryDirectory() as folder:
        if golden:
            check_moves(run, golden, folder)
        served = os.path.join(folder, "served")
        os.mkdir(served)
        adapter = os.path.join(folder, "adapter")
        write_adapter(adapter)
        with open(os.path.join(folder, "log"), "w+") as log:
            try:
                with Server(model, log, prefixes=served) as server:
                    compare(server, run, model, adapter, folder, served)
                check_replicas(run, model, adapter, folder, log)
            except BaseException:
                log.seek(0)
                sys.stderr.write(log.read()[-20000:])
                raise
    print("all passed")


class Replica:
    """A store: a folder that a web server gives out."""

    def __init__(self, folder):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(handler, *_):
                self.asked += 1

        self.asked = 0
        self.folder = folder
        handler = functools.partial(Quiet, directory=folder)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = "http://127.0.0.1:{0}".format(self.server.server_port)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def check_replicas(run, model, adapter, folder, log):
    """Two servers, each with a store of its own of the same files, continue the same chats."""
    sys.path.insert(0, PYTHON)
    from prefold.serving import of_store, request
    from prefold.store import PrefixStore
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    document = [{"role": "system", "content": TEXT}]
    head = tokenizer.apply_chat_template(document, return_dict=False)
    cases = {
        "a document": (["prefill", "--ids", json.dumps(head)], document),
        "a pruned document": (["prefill", "--ids", json.dumps(head), "--keep", "0.6"], document),
        "memory tokens": (["encode", "--adapter", adapter, "--text", TEXT], ()),
    }
    replicas = [Replica(os.path.join(folder, name)) for name in ("one", "two")]
    names, paths = {}, {}
    for name, (made, _) in cases.items():
        path = paths[name] = os.path.join(folder, name)
        run(*made, "--dtype", "f32", "-m", model, "-o", path)
        names[name] = run("prefixes", "push", path, "--store", replicas[0].folder).decode().strip()
    shutil.copytree(replicas[0].folder, replicas[1].folder)
    fingerprint = names["a document"].partition("/")[0]

    def server(replica):
        cache = os.path.join(folder, "cache-" + os.path.basename(replica.folder))
        return Server(model, log, prefixes=replica.url, cache=cache, fingerprint=fingerprint)

    chat = [{"role": "user", "content": "Which village paid for the repair?"}]
    with server(replicas[0]) as first, server(replicas[1]) as second:
        bodies = {}
        for name, (_, covers) in cases.items():
            store = PrefixStore(replicas[0].folder)
            body = request(of_store(store, names[name]), chat, tokenizer, covers=covers)
            question = body["prompt"][len(of_store(store, names[name])["tokens"]) :]
            more = [
                "--prompt-ids",
                json.dumps(question),
                "-n",
                str(ANSWER),
                "--json",
                "--ignore-eos",
            ]
            want = json.loads(run("generate", "-p", paths[name], *more, "-m", model))["ids"]
            if name == "a document":
                # As without a prefix.
                messages = [*document, *chat]
                assert first.complete(None, "chat/completions", messages=messages) == want
            for each in (first, second):
                assert each.complete(**body) == want, (name, want)
            by_chat = request(
                of_store(store, names[name]), chat, tokenizer, covers=covers, route="chat"
            )
            assert first.complete(None, "chat/completions", **by_chat) == want, (name, want)
            bodies[name] = (body, want)
            print("two servers with two stores, {0}: the same {1} ids".format(name, len(want)))
        assert [replica.asked for replica in replicas] == [len(cases)] * 2
        for replica in replicas:
            replica.stop()
        # All is on the servers' machines now, and what is not fails alone.
        for body, want in bodies.values():
            for each in (first, second):
                # Another salt would be another prefix; these rows come from the engine's own cache.
                assert each.complete(**body) == want
        # Without the ids the messages alone would be taken for what the prefix stands for.
        del by_chat["kv_transfer_params"]["prompt_token_ids"]
        first.refuses(None, route="chat/completions", **by_chat)
        body = bodies["a document"][0]
        absent = {"prefix": fingerprint + "/" + 64 * "0"}
        for each in (first, second):
            each.refuses(**dict(body, kv_transfer_params=absent))
            each.refuses(**dict(body, kv_transfer_params={"prefix": 32 * "0" + "/" + 64 * "0"}))
            assert each.counted("refusals") == (3 if each is first else 2)
            assert (
                each.counted("rows") > 0
                and each.counted("loads") >= len(cases)
                and each.counted("bytes") > 0
            )
        print("what was fetched is there without the stores, refusals and rows are counted")


def compare(server, run, model, adapter, folder, served):
    head = server.tokenize(HEAD)
    cases = {
        "prefilled": ["prefill", "--ids", json.dumps(head)],
        "soft": ["encode", "--adapter", adapter, "--text", TEXT, "--k-rope", "none"],
        "expected-attention": ["prefill", "--ids", json.dumps(head), "--keep", "0.6"],
    }
    requests = {}
    for name, made in cases.items():
        question = server.tokenize(SOFT_QUESTION if name == "soft" else QUESTION)
        prefix = os.path.join(folder, name)
        run(*made, "--dtype", "f32", "-m", model, "-o", prefix)
        told = json.loads(run("export", "--to", "vllm", prefix, "-o", os.path.join(served, name)))
        prompt = told["tokens"] + question
        asked = {"cache_salt": told["cache_salt"], "kv_transfer_params": told["kv_transfer_params"]}
        requests[name] = (prompt, asked)
        more = [
            "--prompt-ids",
            json.dumps(question),
            "-n",
            str(ANSWER),
            "--json",
            "--ignore-eos",
            "-m",
            model,
        ]
        want = json.loads(run("generate", "-p", prefix, *more))["ids"]
        # Placeholders alone, whose blocks must not be taken for the prefix's; the second request
        # finds blocks of the first.
        plain = server.complete(prompt)
        for attempt in ("first", "again"):
            got = server.complete(prompt, **asked)
            assert got == want, "{0}, {1}: {2} instead of {3}".format(name, attempt, got, want)
        assert server.complete(prompt) == plain
        assert (plain == want) == (name == "prefilled"), (name, plain)
        print("{0}: {1} rows, the same {2} ids, twice".format(name, len(told["tokens"]), len(got)))
    # What cannot be right fails, and the server continues.
    prompt, asked = requests["soft"]
    prefix = asked["kv_transfer_params"]["prefix"]
    server.refuses(prompt, kv_transfer_params=asked["kv_transfer_params"])
    server.refuses(prompt, **dict(asked, cache_salt=requests["prefilled"][1]["cache_salt"]))
    server.refuses(prompt, **dict(asked, kv_transfer_params={"prefix": "../" + prefix}))
    server.refuses(prompt, **dict(asked, kv_transfer_params={"prefix": "none"}))
    server.refuses(prompt[:3], **asked)
    with (
        open(os.path.join(served, prefix), "rb") as whole,
        open(os.path.join(served, "short"), "wb") as short,
    ):
        short.write(whole.read()[:-100])
    server.refuses(prompt, **dict(asked, kv_transfer_params={"prefix": "short"}))
    assert server.complete(prompt, **asked) != []
    print("missing salts, other folders and damaged files fail alone")


if __name__ == "__main__":
    main(*sys.argv[1:])
