"""The compressor: an open model and what it does to prompts."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefold import _errors
from prefold._errors import InputError, PrefoldError
from prefold._result import KeptContext, Message, MessagesResult, Piece, Result

if TYPE_CHECKING:
    from prefold import _native
    from prefold._prefix import Prefix

Progress = Callable[[int, int], object]
RankFunction = Callable[[list[str], str], Sequence[float]]


def count_tokens(text: str, count: str = "cl100k") -> int:
    """Counts the tokens of a text, without a model.

    Parameters
    ----------
    text : str
        Any text.
    count : str
        ``cl100k``, ``o200k``, or the path of a ``tokenizer.json``.

    Raises
    ------
    UnsupportedError
        For a vocabulary that is not built.
    """
    return _translated(_module().count_tokens, text, _vocabulary(count))


def _vocabulary(name: str) -> str:
    """A vocabulary by tiktoken's names too."""
    return name.removesuffix("_base")


def _module() -> Any:
    from prefold import _native

    return _native


def _translated(call: Callable[..., Any], *args: Any) -> Any:
    """Calls into the library; what it raises becomes an error of this package."""
    try:
        return call(*args)
    except _module().NativeError as error:
        kind, message = error.args
        raise getattr(_errors, kind, PrefoldError)(message) from None


class Compressor:
    """An open model that shortens prompts.

    The model is opened at the first call, once, and any number of threads may call at a time; the
    interpreter's lock is released meanwhile. Ctrl-C and deadlines end a call within one layer of a
    forward pass. A compressor can be pickled: it is opened anew where it is unpickled.

    Parameters
    ----------
    model : str or path, optional
        A GGUF file, a Hugging Face folder, or the name of a model on the hub, ``org/repo[:file]``.
        By default ``$PREFOLD_MODEL``, or the model that ``prefold models pull`` fetched.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    threads : int, optional
        CPU threads of this compressor; one per core by default.
    adapter : path, optional
        An adapter that distribution alignment trained, used while scoring.
    precision : str
        What a CUDA device multiplies in: ``bf16`` or ``f32``. The CPU works in f32.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        device: str = "auto",
        threads: int | None = None,
        adapter: str | os.PathLike[str] | None = None,
        precision: str = "bf16",
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads {threads}: expected 1 or more")
        self._settings = (
            None if model is None else os.fspath(model),
            device,
            threads or 0,
            None if adapter is None else os.fspath(adapter),
            precision,
        )
        self._fall_back_to_cpu = False
        self._lock = threading.Lock()
        self._engine: _native.Engine | None = None
        self._owner = os.getpid()

    def __reduce__(self) -> Any:
        return type(self), self._settings

    def __repr__(self) -> str:
        model, device, threads, *_ = self._settings
        return f"Compressor(model={model!r}, device={device!r}, threads={threads or None!r})"

    def open(self) -> Compressor:
        """Opens the model now instead of at the first call.

        Raises
        ------
        FormatError, FileNotFoundError, UnsupportedError, DeviceError
            For a model or a device that cannot be used.
        """
        self._open()
        return self

    def _open(self) -> _native.Engine:
        with self._lock:
            # The threads of an engine do not survive a fork.
            if self._engine is None or self._owner != os.getpid():
                self._engine = self._opened()
                self._owner = os.getpid()
            return self._engine

    def _opened(self) -> _native.Engine:
        native = _module()
        try:
            return _translated(native.Engine, *self._settings)
        except _errors.DeviceError as error:
            if not self._fall_back_to_cpu:
                raise
            warnings.warn(f"{error}; using the CPU", stacklevel=4)
            model, _, *rest = self._settings
            return _translated(native.Engine, model, "cpu", *rest)

    def info(self) -> dict[str, Any]:
        """Gives the model's name, architecture, sizes, fingerprint, and where it runs."""
        return json.loads(self._open().info())

    def compress(
        self,
        contexts: Sequence[str] | str,
        question: str = "",
        instruction: str = "",
        rate: float | None = None,
        target_tokens: int | None = None,
        *,
        rank_method: str | RankFunction | None = None,
        deadline: float | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Result:
        """Compresses a prompt to a rate or to a number of tokens.

        Parameters
        ----------
        contexts : str or sequence of str
            The documents, the only part that is shortened.
        question : str
            What is to be answered: ranks the contexts, and stays whole at the end.
        instruction : str
            Stays whole, in front.
        rate : float, optional
            Share of the tokens to keep, in (0, 1]; 0.5 by default.
        target_tokens : int, optional
            Tokens to keep, instead of a rate.
        rank_method : str or callable, optional
            ``longllmlingua``, ``llmlingua``, ``bm25``, ``gzip``; or a function of contexts and
            question that gives a score for each context, the higher the better.
        deadline : float, optional
            Seconds after which the call raises `DeadlineExceeded`.
        progress : callable, optional
            Called with tokens done and tokens in all, on this thread.
        **options
            All other options of the mode, as ``granularity``, ``count``, ``force_tokens``.

        Returns
        -------
        Result

        Raises
        ------
        InputError
            For an argument that is unknown, out of its range or of the wrong type.
        BudgetError
            Where what must be kept is longer than ``target_tokens``.
        DeadlineExceeded
            Where the deadline passed.
        """
        contexts = [contexts] if isinstance(contexts, str) else list(contexts)
        if callable(rank_method):
            return self._ranked(
                contexts, question, instruction, rate, target_tokens, rank_method, deadline, progress, options
            )
        arguments = dict(options, contexts=contexts, question=question, instruction=instruction)
        given = dict(rate=rate, target_tokens=target_tokens, rank_method=rank_method)
        arguments.update((name, value) for name, value in given.items() if value is not None)
        return self._request("compress", arguments, deadline, progress)

    def _ranked(
        self,
        contexts: list[str],
        question: str,
        instruction: str,
        rate: float | None,
        target_tokens: int | None,
        rank: RankFunction,
        deadline: float | None,
        progress: Progress | None,
        options: dict[str, Any],
    ) -> Result:
        """Compresses by the caller's own ranking."""
        scores = [float(score) for score in rank(list(contexts), question)]
        if len(scores) != len(contexts):
            raise InputError(
                f"rank_method: it gave {len(scores)} scores for {len(contexts)} contexts; "
                "give one for each"
            )
        arguments = dict(options, contexts=contexts, question=question, instruction=instruction)
        arguments["context_scores"] = scores
        given = dict(rate=rate, target_tokens=target_tokens)
        arguments.update((name, value) for name, value in given.items() if value is not None)
        return self._request("compress", arguments, deadline, progress)

    def compress_batch(
        self, requests: Iterable[Mapping[str, Any]], *, deadline: float | None = None
    ) -> list[Result | PrefoldError]:
        """Compresses many prompts; on a GPU they share forward passes.

        Parameters
        ----------
        requests : iterable of mappings
            The keyword arguments of `compress`, one mapping a prompt.

        Returns
        -------
        list
            For each request its result, or the error that it alone has.
        """
        calls = []
        for request in requests:
            arguments = {name: value for name, value in request.items() if value is not None}
            contexts = arguments.get("contexts", [])
            arguments["contexts"] = [contexts] if isinstance(contexts, str) else list(contexts)
            calls.append(("compress", _json(arguments)))
        rows = _translated(self._open().compress_many, calls, deadline)
        return [_result(row) if isinstance(row, tuple) and len(row) != 2 else _error(row) for row in rows]

    async def acompress(self, *args: Any, **kwargs: Any) -> Result:
        """Does what `compress` does in a worker thread; cancelling the task ends the call."""
        loop = asyncio.get_running_loop()
        token = _module().CancelToken()
        call = functools.partial(self._cancellable, token, args, kwargs)
        future = loop.run_in_executor(None, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            token.cancel()
            future.add_done_callback(lambda done: done.exception())
            raise

    def _cancellable(self, token: Any, args: Any, kwargs: Any) -> Result:
        _CANCEL.token = token
        try:
            return self.compress(*args, **kwargs)
        finally:
            _CANCEL.token = None

    def compress_messages(
        self,
        messages: Any,
        rate: float | None = None,
        target_tokens: int | None = None,
        **options: Any,
    ) -> MessagesResult:
        """Shortens a conversation (OpenAI's or Anthropic's form).

        System messages, tool calls, reasoning, images and the newest user turn stay untouched; tool
        results and old turns are shortened against the last question. All else is byte for byte what
        was given.
        """
        arguments = dict(options, messages=messages)
        given = dict(rate=rate, target_tokens=target_tokens)
        arguments.update((name, value) for name, value in given.items() if value is not None)
        made = self._json_call("compress_messages", arguments)
        decisions = [
            Message(
                message=d["message"],
                block=d.get("block"),
                action=d["action"],
                reason=d["reason"],
                tokens_before=d["tokens_before"],
                tokens_after=d["tokens_after"],
            )
            for d in made["decisions"]
        ]
        return MessagesResult(made["messages"], made["tokens_before"], made["tokens_after"], decisions)

    def compress_json(
        self,
        value: Any,
        config: Mapping[str, Any] | str | None = None,
        question: str = "",
        rate: float = 0.5,
        **options: Any,
    ) -> Any:
        """Shortens strings of a JSON value, or drops array items; keys and numbers stay.

        Returns
        -------
        Any
            A value of the same structure.
        """
        arguments = dict(options, json_data=value, question=question, rate=rate)
        if config is not None:
            arguments["json_config"] = config
        return self._json_call("compress_json", arguments)["compressed_prompt"]

    def recover(self, original: str, result: Result | str, response: str) -> str:
        """Puts the original's words in place of shortened ones that a response quotes."""
        compressed = result.text if isinstance(result, Result) else result
        arguments = dict(original_prompt=original, compressed_prompt=compressed, response=response)
        return str(self._json_call("recover", arguments)["recovered"])

    def rank(
        self, contexts: Sequence[str], question: str, method: str = "longllmlingua"
    ) -> list[tuple[int, float]]:
        """Ranks contexts by a question: index and score, the best first."""
        return _translated(self._open().rank, list(contexts), question, method)

    def score(self, text: str, *, deadline: float | None = None) -> list[float]:
        """Gives the nll (nats) of every token of a text but the first."""
        ids = self.tokenize(text, add_special_tokens=True)
        return _translated(self._open().score, ids, deadline, _cancel_token())

    def tokenize(
        self, text: str, *, add_special_tokens: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Gives the ids of a text's tokens."""
        return _translated(self._open().tokenize, text, add_special_tokens, parse_special)

    def count_tokens(self, text: str, count: str = "scorer") -> int:
        """Counts tokens, the scorer's or those of `prefold.count_tokens`."""
        if count == "scorer":
            return len(self.tokenize(text))
        return count_tokens(text, count)

    def encode(self, text: str, adapter: str | os.PathLike[str], **options: Any) -> Prefix:
        """Compresses a text into the keys and values of a few memory tokens (500xCompressor)."""
        from prefold._prefix import Prefix

        made = _translated(self._open().encode, text, os.fspath(adapter), _json(options))
        return Prefix(made)

    def prefill(self, text: str, keep: float = 1.0, by: str = "surprisal") -> Prefix:
        """Gives the model's own keys and values of a text, or of a share of its tokens."""
        from prefold._prefix import Prefix

        return Prefix(_translated(self._open().prefill, text, keep, by))

    def generate(
        self,
        prompt: str = "",
        prefix: Prefix | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Continues a prompt, after a prefix where one is given."""
        native = None if prefix is None else prefix._native
        return _translated(
            self._open().generate, prompt, native, max_new_tokens, temperature, top_p, seed
        )

    def _request(
        self,
        name: str,
        arguments: Mapping[str, Any],
        deadline: float | None = None,
        progress: Progress | None = None,
    ) -> Result:
        row = _translated(
            self._open().compress, name, _json(arguments), deadline, progress, _cancel_token()
        )
        return _result(row)

    def _json_call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return json.loads(_translated(self._open().call, name, _json(arguments), _cancel_token()))


_CANCEL = threading.local()


def _cancel_token() -> Any:
    return getattr(_CANCEL, "token", None)


def _json(arguments: Mapping[str, Any]) -> str:
    try:
        return json.dumps(arguments, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"arguments: {error}") from None


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, tuples' relatives, paths."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)) or hasattr(value, "__iter__"):
        return list(value)
    raise TypeError(f"a {type(value).__name__} where a string, number, list or dict was expected")


def _error(row: tuple[str, str]) -> PrefoldError:
    kind, message = row
    return getattr(_errors, kind, PrefoldError)(message)


def _result(row: tuple[Any, ...]) -> Result:
    text, before, after, target, contexts, warned, pieces, llmlingua = row
    return Result(
        text=text,
        tokens_before=before,
        tokens_after=after,
        target=target,
        contexts=[KeptContext(*context) for context in contexts],
        warnings=warned,
        pieces=[Piece(*piece) for piece in pieces],
        _llmlingua=json.loads(llmlingua),
    )
