"""Names and files that a client or another party may have made: each refusal is a PrefixError."""

import json
import os
import queue
import struct
import threading

import pytest
from prefold._prefix_file import LONGEST_HEADER, PrefixError, path_of, read_header

METADATA = {
    "format": "prefold-kv",
    "format_version": "1",
    "k_rope": "applied",
    "content_id": "c",
    "next_pos": "3",
}


def write(path, metadata=METADATA, layer=None, head=None, data=b"12345678"):
    layer = {"shape": [1, 3, 4], "data_offsets": [0, 8]} if layer is None else layer
    header = {"__metadata__": metadata, "layers.0.k": layer}
    head = head if head is not None else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return str(path)


def test_a_plain_name_is_a_path_in_the_folder(tmp_path):
    assert path_of(str(tmp_path), "a prefix.safetensors") == str(tmp_path / "a prefix.safetensors")
    assert path_of(str(tmp_path), "日本") == str(tmp_path / "日本")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a\0b",
        "\ud800",
        "x\udfff",
        "../a",
        "/etc/passwd",
        "a/b",
        "a\\b",
        ".",
        "..",
        ".hidden",
        "a\nb",
        "\x1b[2J",
        "\u202eabc",
        "x" * 256,
        "é" * 200,
        7,
        1.5,
        True,
        [],
        {},
        ["a"],
        b"a",
    ],
)
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(PrefixError):
        path_of(str(tmp_path), name)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    inside = tmp_path / "prefixes"
    inside.mkdir()
    write(tmp_path / "other")
    os.symlink(tmp_path / "other", inside / "link")
    with pytest.raises(PrefixError, match="not in the folder"):
        path_of(str(inside), "link")


def test_a_header_is_read(tmp_path):
    header = read_header(write(tmp_path / "p"))
    assert (header.metadata, header.layers, header.rows) == (METADATA, 1, 3)
    assert header.size == (tmp_path / "p").stat().st_size


def test_a_file_that_changed_is_read_again(tmp_path):
    path = write(tmp_path / "p")
    assert read_header(path) is read_header(path)
    write(tmp_path / "new", {**METADATA, "content_id": "d"})
    os.replace(tmp_path / "new", path)
    assert read_header(path).metadata["content_id"] == "d"


@pytest.mark.parametrize("data", [b"", b"1234567", b"123456789"])
def test_a_file_of_another_length_is_refused(tmp_path, data):
    with pytest.raises(PrefixError, match="cut or damaged"):
        read_header(write(tmp_path / "p", data=data))


@pytest.mark.parametrize("missing", sorted(METADATA))
def test_missing_metadata_are_refused(tmp_path, missing):
    path = write(tmp_path / "p", {k: v for k, v in METADATA.items() if k != missing})
    with pytest.raises(PrefixError, match=r"^p: "):
        read_header(path)


@pytest.mark.parametrize(
    "change",
    [
        {"next_pos": "x"},
        {"next_pos": 3},
        {"format": ["prefold-kv"]},
        {"k_rope": "none"},
        {"rope_pairing": "interleaved"},
        {"content_id": None},
    ],
)
def test_odd_metadata_are_refused(tmp_path, change):
    with pytest.raises(PrefixError):
        read_header(write(tmp_path / "p", {**METADATA, **change}))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"__metadata__": 3}',
        b'{"__metadata__": []}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1e999999",
        b"NaN",
    ],
)
def test_odd_headers_are_refused(tmp_path, head):
    with pytest.raises(PrefixError):
        read_header(write(tmp_path / "p", head=head))


@pytest.mark.parametrize(
    "layer",
    [
        3,
        {"shape": []},
        {"shape": [1]},
        {"shape": [1, "3"]},
        {"shape": [1, 0]},
        {"shape": [1, -3]},
        {"shape": None},
        {"shape": {"1": 3}},
        {"shape": [1, 3, 4], "data_offsets": [0, -8]},
        {"shape": [1, 3, 4], "data_offsets": [0, 8.0]},
        {"shape": [1, 3, 4], "data_offsets": [8]},
        {"shape": [1, 3, 4], "data_offsets": 8},
    ],
)
def test_odd_layers_are_refused(tmp_path, layer):
    with pytest.raises(PrefixError):
        read_header(write(tmp_path / "p", layer=layer))


def test_what_is_no_file_or_cut_short_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "short").write_bytes(b"\1\0\0")
    (tmp_path / "long").write_bytes(struct.pack("<Q", LONGEST_HEADER + 1))
    (tmp_path / "huge").write_bytes(struct.pack("<Q", 2**64 - 1))
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "short", "long", "huge", "folder", "missing"):
        # A reader that waits for a writer would never end.
        refused = queue.Queue()
        path = str(tmp_path / name)
        threading.Thread(target=refuse, args=(path, refused), daemon=True).start()
        assert "not" in refused.get(timeout=10) or name not in ("fifo", "folder"), name


def refuse(path, refused):
    with pytest.raises(PrefixError) as error:
        read_header(path)
    refused.put(str(error.value))
