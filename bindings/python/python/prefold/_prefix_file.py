"""The head of a prefix file, read with the care that a file from others needs.

Whatever is wrong with a name or a file is a :class:`PrefixError`: a serving engine fails the one
request that asked for it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

LONGEST_HEADER = 1 << 20
"""Bytes of the header of a prefix file."""

LONGEST_NAME = 255
"""Bytes of the name of a prefix file."""


KNOWN_HEADERS = 256
"""Headers that are remembered: an engine asks for the same ones often."""


class PrefixError(Exception):
    """Why a request cannot have its prefix."""


class Header(NamedTuple):
    """What the head of a prefix file says."""

    metadata: dict[str, str]
    layers: int
    rows: int
    size: int
    """Bytes of the whole file."""
    source_ids: tuple[int, int] | None
    """First byte of the text's own ids in the file, and the byte after them."""


@contextlib.contextmanager
def told(name: str) -> Generator[None, None, None]:
    """Makes what is wrong with a file or its place a PrefixError that begins with `name`.

    Any exception is: a header may nest deeper than the parser goes, and clients of stores have
    errors of their own.
    """
    try:
        yield
    except PrefixError:
        raise
    except Exception as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        # Without the path, which `name` tells.
        said = (isinstance(error, OSError) and error.strerror) or said or type(error).__name__
        raise PrefixError(f"{name}: {' '.join(said.split())}") from None


def path_of(folder: str, name: Any) -> str:
    """The path of the prefix file `name` in `folder`.

    Raises
    ------
    PrefixError
        `name` is not the plain name of a file: not a string, empty, with a separator, a control
        character or a lone surrogate, hidden, or longer than file systems take.
    """
    if not isinstance(name, str):
        raise PrefixError(f"a prefix is named by a string, not by {type(name).__name__}")
    shown = ascii(name[:60])
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise PrefixError(f"{shown} is not a file name: it is not UTF-8") from None
    if not 0 < length <= LONGEST_NAME:
        raise PrefixError(f"{shown} is not a file name: it has {length} bytes")
    if name.startswith(".") or any(c in "/\\" or not c.isprintable() for c in name):
        raise PrefixError(f"{shown} is not the plain name of a file in the folder of prefixes")
    path = os.path.join(folder, name)
    # A link would lead out of the folder.
    if os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder):
        raise PrefixError(f"{shown} is not in the folder of prefixes")
    return path


def open_regular(path: str) -> Any:
    """Opens a regular file; a FIFO or a device, which would wait, is refused."""
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def parse(read: Callable[[int], bytes]) -> tuple[bytes, Header]:
    """Reads the head of a prefix file, and no byte more; gives its bytes and what they say.

    `read` gives at most so many bytes, and none at the end. What is wrong is an exception of any
    kind: call it inside :func:`told`.
    """

    def take(count: int) -> bytes:
        taken = b""
        while len(taken) < count:
            part = read(count - len(taken))
            if not part:
                raise ValueError("it ends within its header")
            taken += part
        return taken

    first = take(8)
    (length,) = struct.unpack("<Q", first)
    if length > LONGEST_HEADER:
        raise ValueError("its header is too long")
    text = take(length)
    header = json.loads(text)
    metadata = header.pop("__metadata__")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not strings")
    if metadata["format"] != "prefold-kv" or metadata["format_version"] != "1":
        raise ValueError("it is not a prefix of prefold")
    if metadata["k_rope"] != "applied" or metadata.get("rope_pairing", "half") != "half":
        raise ValueError(
            "K is not rotated, or in interleaved pairs; run `prefold export --to vllm` on it"
        )
    for name in ("content_id", "next_pos"):
        if name not in metadata:
            raise ValueError(f"its metadata have no `{name}`")
    int(metadata["next_pos"])
    # It stands in messages.
    if not re.fullmatch("[0-9A-Za-z]{1,128}", metadata["content_id"]):
        raise ValueError("its content id is not one of prefold's")
    rows = header["layers.0.k"]["shape"][1]
    if not isinstance(rows, int) or rows < 1:
        raise ValueError("it has no rows")
    start = 8 + length
    ranges = {name: tensor["data_offsets"] for name, tensor in header.items()}
    if not all(isinstance(at, int) and at >= 0 for ends in ranges.values() for at in ends):
        raise ValueError("its header gives odd offsets")
    source = ranges.get("source_ids")
    return first + text, Header(
        metadata=metadata,
        layers=sum(name.endswith(".k") for name in header),
        rows=rows,
        size=start + max(end for _, end in ranges.values()),
        source_ids=None if source is None else (start + source[0], start + source[1]),
    )


def stamp(path: str) -> tuple[str, int, int, int]:
    """Path, time of the last change, length and number of a file: another one has another stamp."""
    found = os.stat(path)
    return path, found.st_mtime_ns, found.st_size, found.st_ino


@functools.lru_cache(maxsize=KNOWN_HEADERS)
def _known(path: str, _changed: int, _size: int, _number: int) -> Header:
    with open_regular(path) as file:
        _, header = parse(file.read)
        size = os.fstat(file.fileno()).st_size
    if size != header.size:
        raise ValueError(f"it has {size} bytes, by its header {header.size}: it is cut or damaged")
    return header


def read_header(path: str) -> Header:
    """What the head of a prefix file says; read once while the file stays the same.

    Raises
    ------
    PrefixError
        The file cannot be read, is not a prefix of prefold's, is not as long as its head says, or
        has to be exported first.
    """
    with told(os.path.basename(path)):
        return _known(*stamp(path))


@functools.lru_cache(maxsize=KNOWN_HEADERS)
def _known_tokens(path: str, changed: int, size: int, number: int) -> list[int]:
    header = _known(path, changed, size, number)
    start, end = header.source_ids or (0, 0)
    if end - start == 4 * header.rows:
        with open_regular(path) as file:
            file.seek(start)
            return list(struct.unpack(f"<{header.rows}i", file.read(end - start)))
    # As src/kv_prefix/mod.rs draws them.
    vocab = int(header.metadata.get("vocab", 0)) or 1
    content_id = header.metadata["content_id"].encode()
    hashes = (
        hashlib.sha256(content_id + struct.pack("<Q", row)).digest() for row in range(header.rows)
    )
    return [int.from_bytes(each[:8], "little") % vocab for each in hashes]


def tokens_of(path: str) -> list[int]:
    """Ids that stand for the rows of a prefix file in a prompt; not to be changed.

    They are the text's own where each has a row, otherwise drawn from the content id.

    Raises
    ------
    PrefixError
        See `read_header`.
    """
    with told(os.path.basename(path)):
        return _known_tokens(*stamp(path))
