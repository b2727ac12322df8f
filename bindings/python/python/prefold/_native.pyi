from collections.abc import Callable
from typing import Any

_Row = tuple[
    str,
    int,
    int,
    int | None,
    list[tuple[int, str, int, list[tuple[int, int]]]],
    list[str],
    list[tuple[str, bool, float | None]],
    str,
]
_Progress = Callable[[int, int], object]

class NativeError(Exception): ...

class CancelToken:
    def __new__(cls) -> CancelToken: ...
    def cancel(self) -> None: ...

class Engine:
    def __new__(
        cls,
        model: str | None,
        device: str,
        threads: int,
        adapter: str | None,
        precision: str,
        encoder: str | None,
    ) -> Engine: ...
    def info(self) -> str: ...
    def compress(
        self,
        name: str,
        json: str,
        deadline: float | None = None,
        progress: _Progress | None = None,
        token: CancelToken | None = None,
    ) -> _Row: ...
    def compress_many(
        self,
        calls: list[tuple[str, str]],
        deadline: float | None = None,
        progress: _Progress | None = None,
    ) -> list[_Row | tuple[str, str]]: ...
    def compress_messages(
        self,
        body: bytes,
        json: str,
        deadline: float | None = None,
        progress: _Progress | None = None,
        token: CancelToken | None = None,
    ) -> tuple[str, int, int, str]: ...
    def compress_json(
        self,
        data: str,
        config: str,
        yaml: bool,
        json: str,
        deadline: float | None = None,
        token: CancelToken | None = None,
    ) -> _Row: ...
    def rank(
        self, contexts: list[str], question: str, method: str | None = None
    ) -> list[float]: ...
    def score(
        self,
        ids: list[int],
        start: int | None = None,
        deadline: float | None = None,
        token: CancelToken | None = None,
    ) -> list[float]: ...
    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]: ...
    def detokenize(self, ids: list[int]) -> str: ...
    def encode(
        self,
        text: str,
        adapter: str,
        piece_tokens: int | None = None,
        memory_tokens: int | None = None,
    ) -> Prefix: ...
    def prefill(self, text: str, keep: float | None, by: str) -> Prefix: ...
    def generate(
        self,
        prompt: str,
        prefix: Prefix | None,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> str: ...

class Tensor:
    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object: ...

class Prefix:
    @staticmethod
    def open(path: str) -> Prefix: ...
    def save(self, path: str, dtype: str) -> None: ...
    def origin(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def next_pos(self) -> int: ...
    @property
    def content_id(self) -> str: ...
    def tensor(self, layer: int, value: bool) -> Tensor: ...

def main(arguments: list[str]) -> int: ...
def count_tokens(text: str, count: str) -> int: ...
def order_by_words(method: str, texts: list[str], question: str) -> list[int]: ...
def recover(original: str, compressed: str, response: str) -> str: ...
def recover_by_spans(
    contexts: list[str], kept: list[tuple[int, str, list[tuple[int, int]]]], response: str
) -> str: ...
