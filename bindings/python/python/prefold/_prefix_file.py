"""The head of a prefix file, read with the care that a file from others needs.

Whatever is wrong with a name or a file is a :class:`PrefixError`: a serving engine fails the one
request that asked for it.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from typing import Any

LONGEST_HEADER = 1 << 20
"""Bytes of the header of a prefix file."""

LONGEST_NAME = 255
"""Bytes of the name of a prefix file."""


class PrefixError(Exception):
    """Why a request cannot have its prefix."""


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


def _open_regular(path: str) -> Any:
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


def read_header(path: str) -> tuple[dict[str, str], int]:
    """Metadata and number of rows of a prefix file.

    Raises
    ------
    PrefixError
        The file cannot be read, is not a prefix of prefold's, or has to be exported first.
    """
    try:
        with _open_regular(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LONGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        metadata = header["__metadata__"]
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not strings")
        if metadata["format"] != "prefold-kv" or metadata["format_version"] != "1":
            raise ValueError("it is not a prefix of prefold")
        if metadata["k_rope"] != "applied" or metadata.get("rope_pairing", "half") != "half":
            raise ValueError("K is not rotated; run `prefold export --to vllm` on it")
        for name in ("content_id", "next_pos"):
            if name not in metadata:
                raise ValueError(f"its metadata have no `{name}`")
        int(metadata["next_pos"])
        rows = header["layers.0.k"]["shape"][1]
        if not isinstance(rows, int) or rows < 1:
            raise ValueError("it has no rows")
        return metadata, rows
    # A header may nest deeper than the parser goes, or claim what memory does not hold.
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        struct.error,
        RecursionError,
        MemoryError,
        OverflowError,
    ) as error:
        said = str(error) if not isinstance(error, KeyError) else f"it has no {error}"
        raise PrefixError(f"{os.path.basename(path)}: {said or type(error).__name__}") from None
