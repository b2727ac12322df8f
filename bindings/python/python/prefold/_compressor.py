"""The compressor: an open model and what it does to prompts."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefold._errors import DeviceError, InputError, PrefoldError
from prefold._library import error_of, library, translated
from prefold._result import (
    Decision,
    JsonResult,
    KeptContext,
    MessagesResult,
    Piece,
    Result,
)

if TYPE_CHECKING:
    from prefold import _native
    from prefold._prefix import Prefix

Progress = Callable[[int, int], object]
RankFunction = Callable[[list[str], str], Iterable[float]]
Path = str | os.PathLike[str]


def count_tokens(text: str, count: str = "cl100k") -> int:
    """Counts the tokens of a text, without a model.

    Parameters
    ----------
    text : str
        Any text.
    count : str
        ``cl100k``, ``o200k``, or the path of a ``tokenizer.json``.

    Returns
    -------
    int

    Raises
    ------
    UnsupportedError
        For a vocabulary that is not built.
    """
    made: int = translated(library().count_tokens, _text("text", text), _vocabulary(count))
    return made


def _vocabulary(name: Path) -> str:
    """A vocabulary by tiktoken's names too."""
    name = os.fspath(name)
    return {"cl100k_base": "cl100k", "o200k_base": "o200k"}.get(name, name)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"argument `{name}`: expected a string, got {type(value).__name__}")
    return value


def _texts(name: str, value: object) -> list[str]:
    """A string or several, as a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise InputError(
            f"argument `{name}`: expected a string or a list of strings, got {type(value).__name__}"
        )
    return list(value)


# A lock that another thread held when the process was forked is never released in the child.
_COMPRESSORS: weakref.WeakSet[Compressor] = weakref.WeakSet()
# Engines whose threads were left in the parent: to free them would wait for those.
_LEFT: list[Any] = []


def _after_fork() -> None:
    for compressor in list(_COMPRESSORS):
        compressor._lock = threading.Lock()
        if compressor._engine is not None:
            _LEFT.append(compressor._engine)
            compressor._engine = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Compressor:
    """An open model that shortens prompts.

    The model is opened at the first call, once, and any number of threads may call at a time; the
    interpreter's lock is released meanwhile. Ctrl-C and deadlines end a call within one layer of a
    forward pass. A compressor can be pickled: it is opened anew where it is unpickled, and in a
    forked process.

    Parameters
    ----------
    model : str or path, optional
        A GGUF file, a Hugging Face folder, or the name of a model on the hub, ``org/repo[:file]``,
        which is downloaded. By default ``$PREFOLD_MODEL``, or the model that
        ``prefold models pull`` fetched.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    threads : int, optional
        CPU threads of this compressor; one per core by default.
    adapter : path, optional
        An adapter that distribution alignment trained, used while scoring.
    precision : str
        What a CUDA device multiplies in: ``bf16`` or ``f32``. The CPU works in f32.
    encoder : str or path, optional
        An encoder beside the model, which ranks by meaning: a folder, ``minilm`` for
        all-MiniLM-L6-v2, or a reranker. With it there is the rank method ``sentbert``.

    Examples
    --------
    >>> compressor = Compressor()  # doctest: +SKIP
    >>> short = compressor.compress(documents, question="Who pays?", rate=0.3)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Path | None = None,
        device: str = "auto",
        threads: int | None = None,
        adapter: Path | None = None,
        precision: str = "bf16",
        encoder: Path | None = None,
    ) -> None:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InputError(f"threads {threads!r}: expected 1 or more")
        self._settings = (
            None if model is None else os.fspath(model),
            _text("device", device),
            threads or 0,
            None if adapter is None else os.fspath(adapter),
            _text("precision", precision),
            None if encoder is None else os.fspath(encoder),
        )
        self._fall_back_to_cpu = False
        self._lock = threading.Lock()
        self._engine: _native.Engine | None = None
        _COMPRESSORS.add(self)

    def __reduce__(self) -> Any:
        return _unpickled, (type(self), self._settings, self._fall_back_to_cpu)

    def __copy__(self) -> Compressor:
        return self

    def __deepcopy__(self, memo: object) -> Compressor:
        # Frameworks copy their configurations; the open model is shared.
        return self

    def __repr__(self) -> str:
        model, device, threads, *_ = self._settings
        return f"Compressor(model={model!r}, device={device!r}, threads={threads or None!r})"

    def open(self) -> Compressor:
        """Opens the model now instead of at the first call.

        Returns
        -------
        Compressor
            This one.

        Raises
        ------
        FormatError, FileError, UnsupportedError, DeviceError
            For a model or a device that cannot be used.
        """
        self._open()
        return self

    def _open(self) -> _native.Engine:
        with self._lock:
            if self._engine is None:
                self._engine = self._opened()
            return self._engine

    def _opened(self) -> _native.Engine:
        model, *rest = self._settings
        model = model or os.environ.get("PREFOLD_MODEL") or None
        engine = library().Engine
        made: _native.Engine
        try:
            made = translated(engine, model, *rest)
        except DeviceError as error:
            if not self._fall_back_to_cpu:
                raise
            warnings.warn(f"{error}; using the CPU", stacklevel=5)
            made = translated(engine, model, "cpu", *rest[1:])
        return made

    def info(self) -> dict[str, Any]:
        """Gives the model's name, architecture, sizes, fingerprint, and where it runs."""
        made: dict[str, Any] = json.loads(self._open().info())
        return made

    def compress(
        self,
        contexts: Iterable[str] | str,
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
            Ranks the contexts, and stays whole at the end.
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
            Called with tokens done and tokens in all of a stage, on this thread.
        **options
            All other options of the mode, as ``granularity``, ``count``, ``force_tokens``,
            ``effort``, ``reorder``; ``mode="llmlingua"`` takes those of llmlingua.

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
        arguments = _arguments(
            dict(
                options,
                contexts=contexts,
                question=question,
                instruction=instruction,
                rate=rate,
                target_tokens=target_tokens,
                rank_method=rank_method,
            )
        )
        return self._request("compress", arguments, deadline, progress)

    def compress_batch(
        self,
        requests: Iterable[Mapping[str, Any]],
        *,
        deadline: float | None = None,
        progress: Progress | None = None,
    ) -> list[Result | PrefoldError]:
        """Compresses many prompts; on a GPU they share forward passes.

        Parameters
        ----------
        requests : iterable of mappings
            The keyword arguments of `compress`, one mapping a prompt.
        deadline : float, optional
            Seconds for all of them; those that are not done have `DeadlineExceeded`.
        progress : callable, optional
            As in `compress`.

        Returns
        -------
        list
            For each request its result, or the error that it alone has.
        """
        made: list[Result | PrefoldError | None] = []
        calls: list[tuple[str, str]] = []
        for request in requests:
            try:
                calls.append(("compress", _json(_arguments(dict(request)))))
                made.append(None)
            except PrefoldError as error:
                made.append(error)
        rows = iter(translated(self._open().compress_many, calls, deadline, progress))
        return [_outcome(next(rows)) if done is None else done for done in made]

    async def acompress(self, *args: Any, **kwargs: Any) -> Result:
        """Does what `compress` does in a worker thread; cancelling the task ends the call."""
        loop = asyncio.get_running_loop()
        token = library().CancelToken()
        call = functools.partial(self._cancellable, token, args, kwargs)
        future = loop.run_in_executor(None, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            token.cancel()
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    def _cancellable(self, token: Any, args: Any, kwargs: Any) -> Result:
        _CALL.token = token
        try:
            return self.compress(*args, **kwargs)
        finally:
            _CALL.token = None

    def compress_messages(
        self,
        messages: Any,
        rate: float | None = None,
        target_tokens: int | None = None,
        *,
        deadline: float | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> MessagesResult:
        """Shortens a conversation: OpenAI's chat completions and responses, Anthropic's messages.

        System messages, tool calls, reasoning, images and the newest user turn stay untouched; tool
        results, documents and old turns are shortened against the newest user turn.

        Parameters
        ----------
        messages : list, dict, str or bytes
            The messages, or the body of a request that has them; or either as JSON, which comes
            back as JSON, byte for byte but for the shortened strings.
        rate : float, optional
            Share of its tokens that a shortened text keeps; 0.5 by default.
        target_tokens : int, optional
            Tokens of the whole conversation, instead of a rate.
        deadline, progress
            As in `compress`.
        **options
            ``question``, ``tool_results``, ``user``, ``assistant`` (``keep``, ``shorten`` or
            ``{"rate": 0.3}``), ``recent``, ``min_tokens``, ``min_saving``, ``errors_up_to``, and
            the options of `compress`.

        Returns
        -------
        MessagesResult

        Raises
        ------
        InputError
            For what is not a conversation, or an option out of its range.
        BudgetError
            Where what must not change is longer than ``target_tokens``.
        """
        given = dict(options, rate=rate, target_tokens=target_tokens)
        arguments = {name: value for name, value in given.items() if value is not None}
        if isinstance(messages, str):
            body = messages.encode("utf-8", "surrogatepass")
        elif isinstance(messages, (bytes, bytearray, memoryview)):
            body = bytes(messages)
        else:
            body = _json(messages).encode()
        text, before, after, decisions = translated(
            self._open().compress_messages,
            body,
            _json(arguments),
            deadline,
            progress,
            _cancel_token(),
        )
        short: Any = text
        if not isinstance(messages, str):
            if isinstance(messages, (bytes, bytearray, memoryview)):
                short = text.encode()
            else:
                short = json.loads(text)
        made = [Decision(**decision) for decision in json.loads(decisions)]
        return MessagesResult(short, before, after, made)

    def compress_json(
        self,
        value: Any,
        config: Mapping[str, Mapping[str, Any]] | Path,
        question: str = "",
        target_tokens: int | None = None,
        *,
        drop_members: bool = False,
        deadline: float | None = None,
        **options: Any,
    ) -> JsonResult:
        """Shortens a JSON object whose members have rates of their own.

        The result parses by construction; names, numbers, ``true``, ``false`` and ``null`` are
        those that were given.

        Parameters
        ----------
        value : dict or str
            An object, or its JSON.
        config : dict or path
            For each member ``rate``, ``compress``, ``value_type`` and ``pair_remove``, as llmlingua
            has it; or a YAML file with them.
        question : str
            Ranks what is kept.
        target_tokens : int, optional
            Tokens of the result; by default what the members' rates leave.
        drop_members : bool
            Whether members whose ``pair_remove`` allows it may go whole.
        deadline : float, optional
            As in `compress`.
        **options
            All other options of `compress`.

        Returns
        -------
        JsonResult

        Raises
        ------
        InputError
            For what is not an object, or does not fit its configuration.
        """
        arguments = dict(options, question=question, use_keyvalue_level_filter=drop_members)
        if target_tokens is not None:
            arguments["target_token"] = target_tokens
        return self._json_request(value, config, arguments, deadline)

    def _json_request(
        self,
        value: Any,
        config: Mapping[str, Mapping[str, Any]] | Path,
        arguments: Mapping[str, Any],
        deadline: float | None = None,
    ) -> JsonResult:
        yaml = not isinstance(config, Mapping)
        if isinstance(config, Mapping):
            described = _json(config)
        else:
            try:
                with open(config, encoding="utf-8") as file:
                    described = file.read()
            except (OSError, TypeError, UnicodeDecodeError) as error:
                raise InputError(f"json_config: {error}") from None
        row = translated(
            self._open().compress_json,
            value if isinstance(value, str) else _json(value),
            described,
            yaml,
            _json(arguments),
            deadline,
            _cancel_token(),
        )
        made = _result(row)
        return JsonResult(
            value=made.text if isinstance(value, str) else json.loads(made.text),
            tokens_before=made.tokens_before,
            tokens_after=made.tokens_after,
            warnings=made.warnings,
            _llmlingua=made._llmlingua,
        )

    def recover(self, original: Sequence[str] | str, result: Result | str, response: str) -> str:
        """Puts the original's words in place of shortened ones that a response quotes.

        Parameters
        ----------
        original : str or sequence of str
            The contexts that were compressed; with a result as text, the original prompt.
        result : Result or str
            What `compress` gave: by its spans a quotation is found exactly. Or a compressed prompt:
            then words are compared.
        response : str
            An answer to the compressed prompt.

        Returns
        -------
        str
        """
        made: str
        if isinstance(result, Result):
            kept = [(context.index, context.text, context.spans) for context in result.contexts]
            made = translated(
                library().recover_by_spans, _texts("original", original), kept, response
            )
        else:
            made = translated(
                library().recover, "\n\n".join(_texts("original", original)), result, response
            )
        return made

    def rank(
        self, contexts: Iterable[str], question: str, method: str | None = None
    ) -> list[tuple[int, float]]:
        """Ranks texts by a question.

        Parameters
        ----------
        contexts : iterable of str
            The texts.
        question : str
            What they are to answer.
        method : str, optional
            ``longllmlingua``, ``llmlingua``, ``bm25``, ``gzip``, or ``sentbert`` where the model is
            an encoder or has one beside it; by default the learned ranker, or that encoder.

        Returns
        -------
        list of (int, float)
            Index and score, the best first; scores are comparable within a call only.
        """
        scores = translated(self._open().rank, _texts("contexts", contexts), question, method)
        return sorted(enumerate(scores), key=lambda pair: -pair[1])

    def score(self, text: str, *, deadline: float | None = None) -> list[float]:
        """Gives the nll (nats) of every token of a text but the first.

        The tokens are those of ``tokenize(text, add_special_tokens=True)``.
        """
        ids = self.tokenize(text, add_special_tokens=True)
        made: list[float] = translated(self._open().score, ids, None, deadline, _cancel_token())
        return made

    def _score_from(self, ids: Sequence[int], start: int) -> list[float]:
        """Nll of ids from a place on, each given all before it."""
        made: list[float] = translated(self._open().score, list(ids), start)
        return made

    def tokenize(
        self, text: str, *, add_special_tokens: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Gives the ids of a text's tokens."""
        made: list[int] = translated(
            self._open().tokenize, _text("text", text), add_special_tokens, parse_special
        )
        return made

    def detokenize(self, ids: Iterable[int]) -> str:
        """Gives the text of token ids."""
        made: str = translated(self._open().detokenize, list(ids))
        return made

    def count_tokens(self, text: str, count: str = "scorer") -> int:
        """Counts tokens, the scorer's or those of `prefold.count_tokens`."""
        if count == "scorer":
            return len(self.tokenize(text))
        return count_tokens(text, count)

    def encode(
        self,
        text: str,
        adapter: Path,
        piece_tokens: int | None = None,
        memory_tokens: int | None = None,
    ) -> Prefix:
        """Encodes a text as the keys and values of a few memory tokens (500xCompressor, ICAE).

        Parameters
        ----------
        text : str
            Any text.
        adapter : path
            The folder of the encoder's adapter, in PEFT's layout.
        piece_tokens : int, optional
            Longest piece of text, each of which gets memory tokens of its own.
        memory_tokens : int, optional
            Only the first so many, of an adapter that was trained by ``--nested``; at least 1.

        Returns
        -------
        Prefix
        """
        from prefold._prefix import Prefix

        engine = self._open()
        return Prefix(
            translated(engine.encode, text, os.fspath(adapter), piece_tokens, memory_tokens)
        )

    def prefill(
        self, text: str, keep: float | None = None, by: str = "expected-attention"
    ) -> Prefix:
        """Gives the model's own keys and values of a text, or of a share of its tokens.

        Parameters
        ----------
        text : str
            The start of a prompt; special tokens may stand in it by their names.
        keep : float, optional
            Share of the tokens whose keys and values are kept; all by default.
        by : str
            Which: ``llmlingua``, ``snapkv``, ``expected-attention``, ``keydiff``.

        Returns
        -------
        Prefix
        """
        from prefold._prefix import Prefix

        return Prefix(translated(self._open().prefill, text, keep, by))

    def generate(
        self,
        prompt: str = "",
        prefix: Prefix | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Continues a prompt, after a prefix where one is given.

        Parameters
        ----------
        prompt : str
            The prompt; BOS alone where it is empty.
        prefix : Prefix, optional
            What stands before it.
        max_new_tokens : int
            The length at most.
        temperature : float
            0 takes the likeliest token.
        top_p : float
            The likeliest tokens whose probabilities add up to so much are candidates.
        seed : int
            The same seed gives the same text.

        Returns
        -------
        str
            What follows the prompt.
        """
        native = None if prefix is None else prefix._native
        made: str = translated(
            self._open().generate, prompt, native, max_new_tokens, temperature, top_p, seed
        )
        return made

    def _request(
        self,
        name: str,
        arguments: Mapping[str, Any],
        deadline: float | None = None,
        progress: Progress | None = None,
    ) -> Result:
        engine = self._open()
        return _result(
            translated(engine.compress, name, _json(arguments), deadline, progress, _cancel_token())
        )


def _unpickled(
    kind: type[Compressor], settings: tuple[Any, ...], fall_back_to_cpu: bool
) -> Compressor:
    made = kind(settings[0], settings[1], settings[2] or None, *settings[3:])
    made._fall_back_to_cpu = fall_back_to_cpu
    return made


class _Call(threading.local):
    """What a call of this thread can be cancelled by."""

    token: Any = None


_CALL = _Call()


def _cancel_token() -> Any:
    return _CALL.token


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `Compressor.compress` as those of the library."""
    arguments = {name: value for name, value in given.items() if value is not None}
    arguments["contexts"] = _texts("contexts", arguments.get("contexts", []))
    rank: str | RankFunction | None = arguments.get("rank_method")
    if callable(rank):
        del arguments["rank_method"]
        contexts: list[str] = arguments["contexts"]
        arguments["context_scores"] = _scores(rank, contexts, arguments.get("question", ""))
    if "count" in arguments and isinstance(arguments["count"], (str, os.PathLike)):
        arguments["count"] = _vocabulary(arguments["count"])
    return arguments


def _scores(rank: RankFunction, contexts: list[str], question: str) -> list[float]:
    """The scores that the caller's function gives."""
    scores = [float(score) for score in rank(list(contexts), question)]
    if len(scores) != len(contexts):
        raise InputError(
            f"rank_method: it gave {len(scores)} scores for {len(contexts)} contexts; "
            "give one for each"
        )
    return scores


def _json(arguments: Any) -> str:
    try:
        return json.dumps(arguments, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"arguments: {error}") from None


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, sets, iterators, paths."""
    if isinstance(value, os.PathLike):
        path: str = os.fspath(value)
        return path
    if hasattr(value, "tolist"):
        return value.tolist()
    if not isinstance(value, (bytes, bytearray, memoryview, type)) and hasattr(value, "__iter__"):
        return list(value)
    raise TypeError(f"a {type(value).__name__} where a string, number, list or dict was expected")


def _outcome(row: tuple[Any, ...]) -> Result | PrefoldError:
    if len(row) == 2:
        return error_of(*row)
    return _result(row)


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
