#!/usr/bin/env python3
"""The program and `prefold.store` have the same stores: a folder, Redis, S3 and a web server.

    prefix_store.py PREFOLD MODEL

PREFOLD is the program, built with the feature `store`, MODEL any model that it reads. Redis is
`redis-server` with a password, S3 the server of moto. What one puts into a store the other reads,
byte for byte; both find in the cache what the other fetched.
"""

import contextlib
import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../bindings/python/python"))

import boto3
import redis
from prefold.serving import of_store
from prefold.store import PrefixError, PrefixStore

PASSWORD = "pass-word"
STARTS_IN = 60


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def server(port, *command):
    """A program that listens on a port while the block runs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + STARTS_IN
        while True:
            assert process.poll() is None and time.monotonic() < end, f"{command[0]} does not start"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def web_server(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def content(path):
    with open(path, "rb") as file:
        return file.read()


class Places:
    """Stores, each with a way to put a file into it without prefold."""

    def __init__(self, folder, redis_port, s3_port, web):
        self.folder = folder
        os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "testing"
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{s3_port}"
        os.environ["AWS_REGION"] = os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
        self.s3 = boto3.client("s3")
        self.s3.create_bucket(Bucket="bucket")
        self.redis = redis.Redis(port=redis_port, password=PASSWORD)
        self.urls = {
            "folder": folder,
            "redis": f"redis://:{PASSWORD}@127.0.0.1:{redis_port}/0",
            "s3": "s3://bucket/the/root",
            "web": web,
        }

    def put(self, kind, key, data):
        if kind == "redis":
            self.redis.set(f"prefold/{key}", data)
        elif kind == "s3":
            self.s3.put_object(Bucket="bucket", Key=f"the/root/{key}", Body=data)
        else:
            path = os.path.join(self.folder, key)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)

    def clear(self):
        self.redis.flushdb()
        for each in self.s3.list_objects_v2(Bucket="bucket").get("Contents", []):
            self.s3.delete_object(Bucket="bucket", Key=each["Key"])
        shutil.rmtree(self.folder)
        os.mkdir(self.folder)


def main(program, model):
    folder = os.environ["TMPDIR"] = tempfile.mkdtemp()
    redis_port, s3_port = free_port(), free_port()
    quiet = ["--save", "", "--requirepass", PASSWORD, "--bind", "127.0.0.1", "--dir", folder]
    moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)]
    served = os.path.join(folder, "served")
    os.mkdir(served)
    try:
        with (
            server(redis_port, "redis-server", "--port", str(redis_port), *quiet),
            server(s3_port, *moto),
            web_server(served) as web,
        ):
            check(os.path.abspath(program), model, folder, Places(served, redis_port, s3_port, web))
    finally:
        shutil.rmtree(folder)
    print("all passed")


def check(program, model, folder, places):
    caches = {side: os.path.join(folder, f"cache-{side}") for side in ("python", "rust")}

    def run(*arguments, cache="rust", succeeds=True):
        environment = dict(os.environ, PREFOLD_CACHE=caches[cache])
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, env=environment
        )
        assert (done.returncode == 0) == succeeds, (arguments, done.stdout, done.stderr)
        assert PASSWORD not in done.stdout + done.stderr
        return done.stdout if succeeds else done.stderr

    def cached(side):
        return os.path.join(caches[side], "prefixes")

    files = []
    for number, more in enumerate(([], ["--keep", "0.5"])):
        files.append(os.path.join(folder, f"prefix-{number}"))
        ids = json.dumps([7 * i % 300 for i in range(40 + number)])
        run("prefill", "--ids", ids, *more, "-m", model, "-o", files[-1])

    names = []
    for kind, url in places.urls.items():
        # From the program to Python; a web server is only read.
        target = places.folder if kind == "web" else url
        told = json.loads(run("prefixes", "push", *files, "--store", target, "--json"))
        told = told if isinstance(told, list) else told["prefixes"]
        names = [each["kv_transfer_params"]["prefix"] for each in told]
        store = PrefixStore(url, cached("python"))
        for name, path, each in zip(names, files, told, strict=True):
            assert (store.cached(name) is None) == store.remote
            assert content(store.path(name)) == content(path)
            # What a request to vLLM says, ids drawn from the content included.
            ours = of_store(store, name)
            assert ours == {field: each[field] for field in ours}, (ours, each)
        print(f"{kind}: the program pushes, Python reads")

        # From Python to the program.
        places.clear()
        for name, path in zip(names, files, strict=True):
            places.put(kind, f"{name}.safetensors", content(path))
            (found,) = run("prefixes", "pull", name, "--store", url).splitlines()
            assert content(found) == content(path)
        print(f"{kind}: Python puts, the program pulls")

        # Once fetched it is there without the store, for the other side too.
        places.clear()
        if store.remote:
            assert [content(store.path(name)) for name in names] == [
                content(each) for each in files
            ]
            for name, path in zip(names, files, strict=True):
                (found,) = run(
                    "prefixes", "pull", name, "--store", url, cache="python"
                ).splitlines()
                assert content(found) == content(path)
                other = PrefixStore(url, cached("rust"))
                assert content(other.path(name)) == content(path)
            print(f"{kind}: each finds what the other has in the cache")

        # What is not there, or wrong, is refused by both.
        for side in caches.values():
            shutil.rmtree(side, ignore_errors=True)
        refused(store, names[0])
        run("prefixes", "pull", names[0], "--store", url, succeeds=False)
        wrong = {
            "cut": content(files[0])[:-8],
            "longer": content(files[0]) + b"x",
            "another prefix": content(files[1]),
            "no prefix": b"{}" * 999,
        }
        for data in wrong.values():
            places.put(kind, f"{names[0]}.safetensors", data)
            refused(store, names[0])
            if store.remote:
                run("prefixes", "pull", names[0], "--store", url, succeeds=False)
            places.clear()
        if store.remote:
            left = [path for side in caches.values() for _, _, path in os.walk(side) if path]
            assert left == [], left
        print(f"{kind}: both refuse {', '.join(wrong)}, and keep nothing of it")

    # What a server says of a wrong password, or of a bucket that is not there.
    url = places.urls["redis"]
    wrong = PrefixStore(url.replace(PASSWORD, "other-word"), cached("python"))
    assert "other-word" not in refused(wrong, names[0])
    assert "bucket" in refused(PrefixStore("s3://no-bucket/root", cached("python")), names[0])


def refused(store, name):
    try:
        store.path(name)
    except PrefixError as error:
        assert PASSWORD not in str(error) and "\n" not in str(error), error
        return str(error)
    raise AssertionError(f"{store.shown} gives {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
