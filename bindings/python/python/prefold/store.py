"""Prefix stores: prefix files that many machines share.

>>> from prefold.store import PrefixStore
>>> store = PrefixStore("s3://bucket/prefixes")  # doctest: +SKIP
>>> store.path("FINGERPRINT/CONTENT_ID")  # doctest: +SKIP

A prefix is the file ``FINGERPRINT/CONTENT_ID.safetensors`` under the root of the store, by the
model that made it and by its content; ``prefold prefixes push`` puts it there. It is never written
again, so what has been downloaded is not asked for again.

A store is a folder or a URL:

============================== =================================================================
``/folder``, ``file:///folder`` is read where it lies
``https://host/root``          by Python itself
``s3://``, ``gs://``, ``az://`` by fsspec, with s3fs, gcsfs or adlfs, and whatever else it knows;
                               keys and endpoints by the variables that those read
``redis://host:port/db``       by redis-py, under the keys ``prefold/FINGERPRINT/...``
============================== =================================================================
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import secrets
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib import import_module
from typing import Any
from urllib.parse import unquote, urlsplit

from prefold._prefix_file import Header, PrefixError, parse, read_header, told

__all__ = ["PrefixError", "PrefixStore", "cache_folder"]

LARGEST = 16 << 30
"""Bytes of the largest prefix that is downloaded where nothing else is said."""

PATIENCE = 30
"""Seconds that a store may take for one answer."""

LONGEST = 900
"""Seconds that one download may take."""

CHUNK = 1 << 20
USED_ANEW = 3600
SUFFIX = ".safetensors"
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}

Open = Callable[[str], Any]
"""Gives a key's bytes: a context manager whose value has `read`."""


def cache_folder() -> str:
    """Where downloaded prefixes lie: ``$PREFOLD_CACHE/prefixes``, or in the platform's cache."""
    named = os.environ.get("PREFOLD_CACHE")
    if not named:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
            named = os.path.join(base, "prefold", "cache")
        elif sys.platform == "darwin":
            named = os.path.expanduser("~/Library/Caches/prefold")
        else:
            base = os.environ.get("XDG_CACHE_HOME", "")
            base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
            named = os.path.join(base, "prefold")
    return os.path.join(named, "prefixes")


def key_of(name: Any) -> str:
    """The key of a prefix under the root of a store.

    Raises
    ------
    PrefixError
        `name` is not ``FINGERPRINT/CONTENT_ID``.
    """
    # What matches has no way out of a folder.
    if not isinstance(name, str) or not re.fullmatch("[0-9a-f]{32}/[0-9a-f]{64}", name):
        shown = ascii(name[:60]) if isinstance(name, str) else type(name).__name__
        raise PrefixError(
            f"{shown} does not name a prefix of a store; expected FINGERPRINT/CONTENT_ID, "
            "of 32 and 64 hexadecimal digits"
        )
    return name + SUFFIX


def _same(header: Header, key: str) -> None:
    ids = [header.metadata.get(name) for name in ("model_fingerprint", "content_id")]
    if f"{ids[0]}/{ids[1]}{SUFFIX}" != key:
        raise PrefixError(f"{key}: it holds another prefix than its name says")


class PrefixStore:
    """Prefix files that many machines share; see the module.

    Parameters
    ----------
    url : str
        A folder or a URL.
    cache : str, optional
        The folder of downloaded files; `cache_folder` gives the default.
    max_bytes : int
        Longer prefixes are refused.

    Raises
    ------
    PrefixError
        The URL is not understood, or a package that reads it is missing.
    """

    def __init__(
        self, url: str | os.PathLike[str], cache: str | None = None, *, max_bytes: int = LARGEST
    ) -> None:
        url = os.fspath(url)
        scheme, separator, rest = url.partition("://")
        # A password of Redis may hold a question mark, a signature after one elsewhere an @.
        if scheme.startswith("redis"):
            before, _, after = rest.rpartition("@")
            after, _, query = after.partition("?")
        else:
            after, _, query = rest.partition("?")
            before, _, after = after.rpartition("@")
        secret = {before, before.partition(":")[2], query}
        self._secrets: list[str] = sorted({*secret, *map(unquote, secret)} - {""}, key=len)[::-1]
        self.shown: str = f"{scheme}{separator}{after}".rstrip("/") if separator else url
        self._max_bytes = max_bytes
        self._open: Open | None = None
        self.root: str = os.path.abspath(cache or cache_folder())
        if not separator:
            self.root = os.path.abspath(url)
        elif scheme == "file":
            if not rest.startswith("/"):
                raise PrefixError(f"{self.shown}: expected file:///, and a whole path")
            self.root = urllib.request.url2pathname(rest)
        else:
            kind = {"http": _web, "https": _web, "redis": _redis, "rediss": _redis}
            try:
                self._open = kind.get(scheme, _bucket)(url)
            except PrefixError:
                raise
            # What a parser says may quote a piece of a password.
            except Exception:
                raise PrefixError(f"{self.shown}: this URL of a store is not understood") from None

    @property
    def remote(self) -> bool:
        """Whether `path` may have to wait for a network."""
        return self._open is not None

    def path(self, name: str) -> str:
        """The path of the prefix ``FINGERPRINT/CONTENT_ID`` on this machine.

        It is downloaded the first time, whole or not at all, by any number of callers at once. In a
        store that is a folder it is the file itself.

        Raises
        ------
        PrefixError
            The store does not have it or fails, or what it has is not that prefix.
        """
        key = key_of(name)
        if self._open is None:
            return self._checked(key)
        return self.cached(name) or self._download(self._open, key)

    def cached(self, name: str) -> str | None:
        """The path of a prefix where it is on this machine and sound; no network is touched.

        Raises
        ------
        PrefixError
            `name` is not ``FINGERPRINT/CONTENT_ID``.
        """
        key = key_of(name)
        try:
            path = self._checked(key)
        except PrefixError:
            return None
        # `prefold prefixes gc` removes what was not used for longest. Not at each use: who keeps
        # tensors of a file takes it for another one then.
        with contextlib.suppress(OSError):
            if self.remote and time.time() - os.stat(path).st_mtime > USED_ANEW:
                os.utime(path)
        return path

    def _checked(self, key: str) -> str:
        path = os.path.join(self.root, key)
        # A link would lead out of the folder.
        if os.path.realpath(path) != os.path.join(os.path.realpath(self.root), key):
            raise PrefixError(f"{key}: it is not in {self.root}")
        _same(read_header(path), key)
        return path

    def _download(self, open_: Open, key: str) -> str:
        path = os.path.join(self.root, key)
        scratch = f"{path[: -len(SUFFIX)]}.{secrets.token_hex(8)}.tmp"
        end = time.monotonic() + LONGEST
        try:
            with told(f"{self.shown}/{key}"), open_(key) as body:
                # `read` of a slow body would come back after the end.
                some: Callable[[int], bytes] = getattr(body, "read1", body.read)

                def read(count: int) -> bytes:
                    if time.monotonic() > end:
                        raise TimeoutError(f"it takes longer than {LONGEST} s")
                    return some(min(count, CHUNK))

                head, header = parse(read)
                _same(header, key)
                if header.size > self._max_bytes:
                    raise ValueError(f"it has {header.size} bytes, more than {self._max_bytes}")
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(scratch, "xb") as file:
                    file.write(head)
                    left = header.size - len(head)
                    digest = hashlib.sha256()
                    while left:
                        part = read(left)
                        if not part:
                            raise ValueError(f"it ends {left} bytes too early")
                        file.write(part)
                        digest.update(part)
                        left -= len(part)
                    if read(1):
                        raise ValueError(f"it is longer than {header.size} bytes")
                    # Files of version 0.1.0 and before do not say.
                    if header.metadata.get("data_sha256", digest.hexdigest()) != digest.hexdigest():
                        raise ValueError("it is damaged: its data have another SHA-256")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(scratch, path)
        except PrefixError as error:
            said = str(error)
            for secret in self._secrets:
                said = said.replace(secret, "***")
            raise PrefixError(said) from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(scratch)
        return path


def _module(name: str, package: str, shown: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise PrefixError(
            f"{shown}: a store of this kind needs {package}: pip install {package}"
        ) from None


def _web(url: str) -> Open:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = f"?{parts.query}" if parts.query else ""
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    # A bad port is an error here already.
    _ = parts.port

    def open_(key: str) -> Any:
        request = urllib.request.Request(
            f"{parts.scheme}://{host}{parts.path.rstrip('/')}/{key}{query}"
        )
        if parts.username is not None:
            token = base64.b64encode(user.encode()).decode()
            # A redirection does not take it along.
            request.add_unredirected_header("Authorization", f"Basic {token}")
        return urllib.request.urlopen(request, timeout=PATIENCE)

    return open_


class _Value:
    """A value of Redis, read in parts."""

    def __init__(self, client: Any, key: str) -> None:
        self._client = client
        self._key = key
        self._at = 0

    def read(self, count: int) -> bytes:
        part: bytes = self._client.getrange(self._key, self._at, self._at + count - 1)
        self._at += len(part)
        return part


def _redis(url: str) -> Open:
    redis = _module("redis", "redis", "redis://")
    client = redis.Redis.from_url(url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE)

    def open_(key: str) -> Any:
        if not client.exists(f"prefold/{key}"):
            raise FileNotFoundError("no such prefix")
        return contextlib.nullcontext(_Value(client, f"prefold/{key}"))

    return open_


def _bucket(url: str) -> Open:
    scheme = url.partition("://")[0]
    package = PACKAGES.get(scheme, "fsspec")
    fsspec = _module("fsspec", package, f"{scheme}://")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        # It names what is missing.
        raise PrefixError(f"{scheme}://: {error}") from None

    def open_(key: str) -> Any:
        # Not before: some look for credentials on the network.
        files, root = fsspec.core.url_to_fs(url)
        return files.open(f"{root.rstrip('/')}/{key}", "rb")

    return open_
