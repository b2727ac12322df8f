"""Prefix stores: a folder, a web server that may do anything, and what is said where it fails."""

import contextlib
import hashlib
import http.server
import json
import os
import struct
import sys
import threading
import time
import types

import pytest
from prefold import store as stores
from prefold._prefix_file import PrefixError
from prefold.serving import of_store, request
from prefold.store import PrefixStore, cache_folder

MODEL, CONTENT = "a" * 32, "0123456789abcdef" * 4
NAME = f"{MODEL}/{CONTENT}"
ROWS = 3


def prefix_bytes(model=MODEL, content=CONTENT, ids=None, filling=64, rows=ROWS, **metadata):
    """A prefix file whose K and V are not looked at."""
    tensors = {"layers.0.k": ("F32", [1, rows, 4], bytes(filling))}
    if ids is not None:
        tensors["source_ids"] = ("I32", [len(ids)], struct.pack(f"<{len(ids)}i", *ids))
    header, data = {}, b""
    for name, (dtype, shape, part) in tensors.items():
        offsets = [len(data), len(data) + len(part)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += part
    header["__metadata__"] = {
        "format": "prefold-kv",
        "format_version": "1",
        "k_rope": "applied",
        "model_fingerprint": model,
        "content_id": content,
        "next_pos": str(rows),
        **metadata,
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def fill(folder, name=NAME, data=None):
    path = folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(prefix_bytes() if data is None else data)
    return str(path)


class Web:
    """A web server that answers as `answer(handler)` does, and counts its answers."""

    def __init__(self):
        web = self
        self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                web.asked.append((self.path, self.headers.get("Authorization")))
                # A client may have had enough.
                with contextlib.suppress(OSError):
                    web.answer(self)

            def log_message(self, *_):
                pass

        self.answer = whole(prefix_bytes())
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/root"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def whole(data, announced=None):
    """Answers with `data`, whose length may be announced wrongly, or not at all."""

    def answer(handler):
        handler.send_response(200)
        if announced != "not":
            handler.send_header("Content-Length", str(announced or len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


@pytest.fixture
def web():
    made = Web()
    yield made
    made.server.shutdown()
    made.server.server_close()


def left_over(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("address", ["{}", "file://{}"])
def test_a_folder_is_read_where_it_lies(tmp_path, address):
    path = fill(tmp_path)
    store = PrefixStore(address.format(tmp_path), cache=str(tmp_path / "none"))
    assert store.path(NAME) == store.cached(NAME) == path
    assert not store.remote and not (tmp_path / "none").exists()
    with pytest.raises(PrefixError, match="a whole path"):
        PrefixStore("file://part/of/a/path")


def test_what_a_folder_lacks_or_has_wrong_is_refused(tmp_path):
    store = PrefixStore(str(tmp_path))
    with pytest.raises(PrefixError, match="No such file"):
        store.path(NAME)
    assert store.cached(NAME) is None
    fill(tmp_path, data=prefix_bytes(content="b" * 64))
    with pytest.raises(PrefixError, match="another prefix than its name"):
        store.path(NAME)
    fill(tmp_path, data=prefix_bytes(model="b" * 32))
    with pytest.raises(PrefixError, match="another prefix than its name"):
        store.path(NAME)
    fill(tmp_path, data=prefix_bytes()[:-1])
    with pytest.raises(PrefixError, match="cut or damaged"):
        store.path(NAME)
    # What it held before is not remembered.
    path = fill(tmp_path, data=prefix_bytes(filling=65))
    assert store.path(NAME) == path


def test_a_link_out_of_a_folder_is_refused(tmp_path):
    other = fill(tmp_path / "other")
    (tmp_path / "store" / MODEL).mkdir(parents=True)
    os.symlink(other, tmp_path / "store" / f"{NAME}.safetensors")
    with pytest.raises(PrefixError, match="not in"):
        PrefixStore(str(tmp_path / "store")).path(NAME)


@pytest.mark.parametrize(
    "name",
    [
        "",
        CONTENT,
        NAME + "/",
        NAME + "\n",
        NAME + ".safetensors",
        f"../{CONTENT}",
        f"{MODEL}/../{CONTENT}",
        f"{MODEL}\\{CONTENT}",
        NAME.upper(),
        f"{MODEL}/{'é' * 64}",
        f"{MODEL}/{'٣' * 64}",
        f"{MODEL[1:]}/{CONTENT}",
        None,
        7,
        ["a"],
        NAME.encode(),
    ],
)
def test_other_names_are_refused_before_anything_is_asked(tmp_path, web, name):
    for store in (PrefixStore(str(tmp_path)), PrefixStore(web.url, str(tmp_path))):
        for ask in (store.path, store.cached):
            with pytest.raises(PrefixError, match="does not name"):
                ask(name)
    assert web.asked == [] and left_over(tmp_path) == []


@pytest.mark.parametrize("announced", [None, "not"])
def test_a_prefix_is_downloaded_once(tmp_path, web, announced):
    data = prefix_bytes(filling=3 << 20)
    web.answer = whole(data, announced)
    store = PrefixStore(web.url + "/", str(tmp_path))
    assert store.cached(NAME) is None and web.asked == []
    path = store.path(NAME)
    assert path == str(tmp_path / f"{NAME}.safetensors")
    with open(path, "rb") as file:
        assert file.read() == data
    web.server.shutdown()
    web.server.server_close()
    assert store.path(NAME) == store.cached(NAME) == path
    # Another one finds it, the folder itself is a store, and what is damaged counts as absent.
    assert PrefixStore(web.url, str(tmp_path)).path(NAME) == path
    assert PrefixStore(str(tmp_path)).path(NAME) == path
    assert web.asked == [(f"/root/{NAME}.safetensors", None)]
    os.truncate(path, 100)
    assert store.cached(NAME) is None


def test_what_was_long_unused_is_marked_as_used(tmp_path, web):
    store = PrefixStore(web.url, str(tmp_path))
    path = store.path(NAME)
    before = os.stat(path).st_mtime_ns
    assert store.path(NAME) == path and os.stat(path).st_mtime_ns == before
    os.utime(path, (1, 1))
    assert store.path(NAME) == path and os.stat(path).st_mtime > time.time() - 60


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1 << 16))


def endless_rows(handler):
    """A sound head that is followed by more than it says."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(prefix_bytes())
    while True:
        handler.wfile.write(bytes(1 << 16))


def absent(handler):
    handler.send_error(404)


def huge(handler):
    """A head that promises an exabyte."""
    handler.send_response(200)
    handler.end_headers()
    header = json.loads(prefix_bytes()[8:-64])
    header["layers.0.k"]["data_offsets"] = [0, 1 << 60]
    text = json.dumps(header).encode()
    handler.wfile.write(struct.pack("<Q", len(text)) + text)
    while True:
        handler.wfile.write(bytes(1 << 16))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (absent, "404"),
        (whole(b""), "ends within its header"),
        (whole(b"\xff" * 100), "header is too long"),
        (whole(b"<html>not found</html>" * 9), "header is too long"),
        (whole(prefix_bytes()[:-5]), "ends 5 bytes too early"),
        (whole(prefix_bytes()[:-5], len(prefix_bytes())), "ends 5 bytes too early"),
        (whole(prefix_bytes()[:50]), "ends within its header"),
        (whole(prefix_bytes() + b"x"), "longer than"),
        (whole(prefix_bytes(content="b" * 64)), "another prefix than its name"),
        (whole(prefix_bytes(model="b" * 32)), "another prefix than its name"),
        (whole(prefix_bytes(k_rope="none")), "K is not rotated"),
        (whole(prefix_bytes(filling=5000)), "more than 4000"),
        (endless, "it has no '__metadata__'|Expecting value|not a prefix"),
        (endless_rows, "longer than"),
        (huge, "more than 4000"),
    ],
)
def test_what_comes_wrong_is_refused_and_not_kept(tmp_path, web, answer, reason):
    web.answer = answer
    store = PrefixStore(web.url, str(tmp_path), max_bytes=4000)
    with pytest.raises(PrefixError, match=reason) as error:
        store.path(NAME)
    assert "\n" not in str(error.value)
    assert left_over(tmp_path) == [] and store.cached(NAME) is None
    # It is tried anew.
    web.answer = whole(prefix_bytes())
    assert store.path(NAME) == store.cached(NAME)


def test_a_slow_body_ends(tmp_path, web, monkeypatch):
    def slow(handler):
        handler.send_response(200)
        handler.end_headers()
        for byte in prefix_bytes(filling=4000):
            handler.wfile.write(bytes([byte]))
            time.sleep(0.01)

    web.answer = slow
    monkeypatch.setattr(stores, "LONGEST", 0.5)
    begun = time.monotonic()
    with pytest.raises(PrefixError, match="longer than"):
        PrefixStore(web.url, str(tmp_path)).path(NAME)
    assert time.monotonic() - begun < 5 and left_over(tmp_path) == []


def test_a_server_that_does_not_answer_is_left(tmp_path, web, monkeypatch):
    held = threading.Event()
    web.answer = lambda _: held.wait(10)
    monkeypatch.setattr(stores, "PATIENCE", 0.2)
    with pytest.raises(PrefixError, match="timed out"):
        PrefixStore(web.url, str(tmp_path)).path(NAME)
    held.set()


def test_many_at_once_get_one_whole_file(tmp_path, web):
    data = prefix_bytes(filling=1 << 20)
    together, results = threading.Barrier(8), []

    def answer(handler):
        # All have found that it is not there.
        together.wait(10)
        whole(data)(handler)

    def ask():
        path = PrefixStore(web.url, str(tmp_path)).path(NAME)
        with open(path, "rb") as file:
            results.append(file.read() == data)

    web.answer = answer
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [True] * 8
    assert left_over(tmp_path) == [tmp_path / f"{NAME}.safetensors"]


def test_passwords_are_sent_and_not_told(tmp_path, web):
    url = f"http://user:p%40ss-word@{web.host}/root?sig=sig-word"
    web.answer = absent
    store = PrefixStore(url, str(tmp_path))
    with pytest.raises(PrefixError) as error:
        store.path(NAME)
    ((path, authorization),) = web.asked
    assert path.endswith(".safetensors?sig=sig-word")
    assert authorization == "Basic dXNlcjpwQHNzLXdvcmQ="
    assert "-word" not in f"{error.value}{store.shown}" and web.host in store.shown


def test_a_redirection_takes_no_password_along(tmp_path, web):
    other = Web()

    def moved(handler):
        handler.send_response(302)
        handler.send_header("Location", f"{other.url}/x")
        handler.end_headers()

    web.answer = moved
    PrefixStore(f"http://user:secret@{web.host}/root", str(tmp_path)).path(NAME)
    assert web.asked[0][1] and other.asked == [("/root/x", None)]
    other.server.shutdown()
    other.server.server_close()


@pytest.mark.parametrize(
    "url",
    [
        "http://user:a-word@host:port/root",
        "http://user:a/b-word@host/root",
        "http://[a-word@host",
        "redis://:b-word@host:port/0",
        "redis://:b-word/x@host/0",
        "nonsense://u:a-word@host",
    ],
)
def test_an_address_that_is_not_understood_is_not_repeated(tmp_path, monkeypatch, url):
    def parse(url, **_):
        raise ValueError(f"invalid {url}")

    monkeypatch.setitem(
        sys.modules, "redis", types.SimpleNamespace(Redis=types.SimpleNamespace(from_url=parse))
    )
    fsspec = types.SimpleNamespace(get_filesystem_class=parse)
    monkeypatch.setitem(sys.modules, "fsspec", fsspec)
    with pytest.raises(PrefixError, match="not understood|Name or service|resolution") as error:
        PrefixStore(url, str(tmp_path)).path(NAME)
    assert "-word" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "package"),
    [("redis://h", "redis"), ("s3://b/r", "s3fs"), ("gs://b/r", "gcsfs"), ("az://c/r", "adlfs")],
)
def test_a_missing_package_is_named(monkeypatch, url, package):
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(PrefixError, match=f"pip install {package}$"):
        PrefixStore(url)


class Redis:
    """As redis-py's client, over a dictionary."""

    def __init__(self, values):
        self.values = values

    def exists(self, key):
        return int(key in self.values)

    def getrange(self, key, start, end):
        assert end - start < stores.CHUNK
        return self.values[key][start : end + 1]


def test_redis_is_read_in_parts(tmp_path, monkeypatch):
    data = prefix_bytes(filling=(2 << 20) + 1)
    values = {}
    redis = types.SimpleNamespace(from_url=lambda url, **_: Redis(values))
    monkeypatch.setitem(sys.modules, "redis", types.SimpleNamespace(Redis=redis))
    store = PrefixStore("redis://user:secret@host/0", str(tmp_path))
    with pytest.raises(PrefixError, match=r"^redis://host/0/.*no such prefix"):
        store.path(NAME)
    values[f"prefold/{NAME}.safetensors"] = data
    with open(store.path(NAME), "rb") as file:
        assert file.read() == data


def test_the_default_cache_is_where_the_program_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFOLD_CACHE", "/named")
    assert cache_folder() == os.path.join("/named", "prefixes")
    monkeypatch.setenv("PREFOLD_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == "/xdg/prefold/prefixes"
    # As the standard says, and the Rust crate reads it.
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == str(tmp_path / ".cache/prefold/prefixes")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == str(tmp_path / "Library/Caches/prefold/prefixes")


# What a client sends.


def test_a_store_tells_what_a_request_says(tmp_path):
    store = PrefixStore(str(tmp_path))
    fill(tmp_path, data=prefix_bytes(ids=[5, 6, 7]))
    wanted = {"cache_salt": CONTENT, "kv_transfer_params": {"prefix": NAME}}
    assert of_store(store, NAME) == {"tokens": [5, 6, 7], **wanted}
    # A pruned prefix, whose text had more ids, has ids drawn from its content.
    fill(tmp_path, data=prefix_bytes(ids=[5, 6, 7, 8], vocab="1000"))
    digests = [
        hashlib.sha256(CONTENT.encode() + row.to_bytes(8, "little")).digest() for row in range(ROWS)
    ]
    drawn = [int.from_bytes(digest[:8], "little") % 1000 for digest in digests]
    assert of_store(store, NAME) == {"tokens": drawn, **wanted}
    fill(tmp_path, data=prefix_bytes())
    assert of_store(store, NAME)["tokens"] == [0] * ROWS


class Tokenizer:
    """A chat template over letters: the role, what is said, a full stop."""

    def apply_chat_template(self, chat, add_generation_prompt, tokenize, return_dict, stern=False):
        assert tokenize and not return_dict
        text = "".join(f"{message['role'][0]}{message['content']}." for message in chat)
        if stern and len(chat) > 1:
            text = text.upper()
        return [ord(letter) for letter in text + ("a" if add_generation_prompt else "")]


def test_a_chat_stands_after_the_prefix():
    prefix = {"tokens": [1, 2], "cache_salt": "c", "kv_transfer_params": {"prefix": "p"}}
    asked = [{"role": "user", "content": "Q"}]
    body = request(prefix, asked, Tokenizer(), model="m", max_tokens=5)
    assert body == {
        "model": "m",
        "max_tokens": 5,
        "prompt": [1, 2, *map(ord, "uQ.a")],
        "cache_salt": "c",
        "kv_transfer_params": {"prefix": "p"},
    }
    # The prefix is the chat's beginning.
    covers = [{"role": "system", "content": "S"}]
    body = request(prefix, asked, Tokenizer(), covers=covers)
    assert body["prompt"] == [1, 2, *map(ord, "uQ.a")]
    # By the chat route the ids go along with the messages.
    ids = body["prompt"]
    body = request(prefix, asked, Tokenizer(), covers=covers, route="chat", model="m")
    assert body == {
        "model": "m",
        "messages": covers + asked,
        "cache_salt": "c",
        "kv_transfer_params": {"prefix": "p", "prompt_token_ids": ids},
    }
    assert prefix["kv_transfer_params"] == {"prefix": "p"}
    with pytest.raises(ValueError, match="route"):
        request(prefix, asked, Tokenizer(), route="responses")
    with pytest.raises(ValueError, match="otherwise"):
        request(prefix, asked, Tokenizer(), covers=covers, chat_template_kwargs={"stern": True})
