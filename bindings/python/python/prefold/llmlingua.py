"""A drop-in for ``llmlingua`` 0.2.2: the same names, defaults, results and keys, without torch.

>>> from prefold.llmlingua import PromptCompressor
>>> compressor = PromptCompressor()  # doctest: +SKIP
>>> compressor.compress_prompt(documents, question="Who pays?", rate=0.5)  # doctest: +SKIP

``install()`` makes ``import llmlingua`` find this module, for code that imports it by name.
"""

from __future__ import annotations

import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from os import PathLike
from typing import Any, NoReturn

from prefold._compressor import Compressor, _scores, _texts
from prefold._errors import AssertedError, InputError, UnsupportedError
from prefold._library import library, translated
from prefold._result import Result

__all__ = ["PromptCompressor", "install"]
__version__ = "0.2.2"

RankMethod = str | Callable[[list[str], str], Iterable[float]]

_RANK_METHODS = ("llmlingua", "longllmlingua", "bm25", "gzip", "sentbert")

# The defaults of the original are lists and dictionaries; nothing writes to these.
_NONE: dict[str, Any] = {}
_NO_TOKENS: list[str] = []
_NO_IDS: list[int] = []
_CHUNK_ENDS: list[str] = [".", "\n"]


def _device(device_map: object) -> str:
    """Maps transformers' ``device_map`` to a device of ours."""
    if isinstance(device_map, str) and (
        device_map in ("cpu", "cuda") or device_map.startswith("cuda:")
    ):
        return device_map
    return "auto"


class PromptCompressor:
    """Compresses prompts as ``llmlingua.PromptCompressor`` does, token for token.

    Parameters
    ----------
    model_name : str, optional
        A GGUF file, a Hugging Face folder, or the name of a causal model on the hub; without one,
        or where the name is the original's default, prefold's default model.
    device_map : str
        ``cpu``, ``cuda`` or ``cuda:N``; ``cuda`` runs on the CPU, with a warning, where no CUDA
        device can be used. Everything else is ``auto``.
    model_config, open_api_config, llmlingua2_config : dict
        Taken and not used: they are for transformers, OpenAI's client and batches on a GPU.
    use_llmlingua2 : bool
        Compress as LLMLingua-2 does. `model_name` is a token classifier then, by default
        ``microsoft/llmlingua-2-xlm-roberta-large-meetingbank``.
    budget : {"reference", "exact"}
        ``exact`` keeps prefold's own budget under llmlingua's names.
    threads : int, optional
        CPU threads; all cores by default.
    encoder : str or path, optional
        What ``rank_method="sentbert"`` ranks by: a folder, or ``minilm``.
    """

    _DEFAULT = "NousResearch/Llama-2-7b-hf"
    _CLASSIFIER = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"

    def __init__(
        self,
        model_name: str | None = "NousResearch/Llama-2-7b-hf",
        device_map: str = "cuda",
        model_config: Mapping[str, Any] = _NONE,
        open_api_config: Mapping[str, Any] = _NONE,
        use_llmlingua2: bool = False,
        llmlingua2_config: Mapping[str, Any] = _NONE,
        *,
        budget: str = "reference",
        threads: int | None = None,
        encoder: str | PathLike[str] | None = None,
    ) -> None:
        del llmlingua2_config
        if budget not in ("reference", "exact"):
            raise InputError(f"budget {budget!r}: expected 'reference' or 'exact'")
        if model_config:
            warnings.warn(
                "model_config has no effect: the model is not opened by transformers", stacklevel=2
            )
        self.model_name = model_name
        self.use_llmlingua2: bool = bool(use_llmlingua2)
        self.open_api_config = open_api_config
        self.context_idxs: list[list[int]] = []
        self._budget = budget
        model = None if model_name in (None, self._DEFAULT) else model_name
        if self.use_llmlingua2:
            if budget == "exact":
                raise InputError("budget 'exact' has no effect with use_llmlingua2; leave it out")
            model = model or self._CLASSIFIER
        self._has_encoder = encoder is not None
        self._compressor = Compressor(
            model, device=_device(device_map), threads=threads, encoder=encoder
        )
        if isinstance(device_map, str) and device_map.startswith("cuda"):
            self._compressor._fall_back_to_cpu = True

    @property
    def compressor(self) -> Compressor:
        """The compressor that does the work, with prefold's own calls."""
        return self._compressor

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        return int(self._compressor.info()["max_positions"])

    def _no_torch(self) -> NoReturn:
        # AttributeError: `hasattr` and `getattr` with a default find it missing.
        raise AttributeError(
            "prefold.llmlingua.PromptCompressor has neither model nor tokenizer of transformers; "
            "`compressor` has calls for tokens and scores"
        )

    @property
    def tokenizer(self) -> NoReturn:
        self._no_torch()

    @property
    def model(self) -> NoReturn:
        self._no_torch()

    @property
    def oai_tokenizer(self) -> NoReturn:
        self._no_torch()

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.compress_prompt(*args, **kwargs)

    def compress_prompt(
        self,
        context: Sequence[str] | str,
        instruction: str = "",
        question: str = "",
        rate: float = 0.5,
        target_token: float = -1,
        iterative_size: int = 200,
        force_context_ids: Sequence[int] | None = None,
        force_context_number: int | None = None,
        use_sentence_level_filter: bool = False,
        use_context_level_filter: bool = True,
        use_token_level_filter: bool = True,
        keep_split: bool = False,
        keep_first_sentence: int = 0,
        keep_last_sentence: int = 0,
        keep_sentence_number: int = 0,
        high_priority_bonus: float = 100,
        context_budget: str = "+100",
        token_budget_ratio: float = 1.4,
        condition_in_question: str = "none",
        reorder_context: str = "original",
        dynamic_context_compression_ratio: float = 0.0,
        condition_compare: bool = False,
        add_instruction: bool = False,
        rank_method: RankMethod = "llmlingua",
        concate_question: bool = True,
        context_segs: Sequence[Sequence[str]] | None = None,
        context_segs_rate: Sequence[Sequence[float]] | None = None,
        context_segs_compress: Sequence[Sequence[bool]] | None = None,
        target_context: int = -1,
        context_level_rate: float = 1.0,
        context_level_target_token: int = -1,
        return_word_label: bool = False,
        word_sep: str = "\t\t|\t\t",
        label_sep: str = " ",
        token_to_word: str = "mean",
        force_tokens: Sequence[str] = _NO_TOKENS,
        force_reserve_digit: bool = False,
        drop_consecutive: bool = False,
        chunk_end_tokens: Sequence[str] = _CHUNK_ENDS,
        strict_preserve_uncompressed: bool = True,
    ) -> dict[str, Any]:
        """Compresses a prompt: ``llmlingua.PromptCompressor.compress_prompt``.

        Returns
        -------
        dict
            ``compressed_prompt``, ``origin_tokens``, ``compressed_tokens``, ``ratio``, ``rate`` and
            ``saving``; with ``budget="exact"`` also ``contexts``, what is left of each.

        Raises
        ------
        AssertedError
            For a rate above 1, and for ``longllmlingua`` without a question.
        InputError
            For another argument out of its range or of the wrong type.
        UnsupportedError
            For a rank method that needs another model; a function of contexts and question that
            gives a score for each context does instead.
        BudgetError
            With ``budget="exact"``, where what must be kept is longer than the target.
        """
        arguments = {name: value for name, value in locals().items() if name != "self"}
        if self.use_llmlingua2:
            return self._classify(arguments)
        return self._call("compress_prompt", arguments)

    def compress_prompt_llmlingua2(
        self,
        context: Sequence[str] | str,
        rate: float = 0.5,
        target_token: float = -1,
        use_context_level_filter: bool = False,
        use_token_level_filter: bool = True,
        target_context: int = -1,
        context_level_rate: float = 1.0,
        context_level_target_token: int = -1,
        force_context_ids: Sequence[int] = _NO_IDS,
        return_word_label: bool = False,
        word_sep: str = "\t\t|\t\t",
        label_sep: str = " ",
        token_to_word: str = "mean",
        force_tokens: Sequence[str] = _NO_TOKENS,
        force_reserve_digit: bool = False,
        drop_consecutive: bool = False,
        chunk_end_tokens: Sequence[str] = _CHUNK_ENDS,
    ) -> dict[str, Any]:
        """Compresses contexts by a token classifier: LLMLingua-2.

        Returns
        -------
        dict
            As `compress_prompt`, with ``compressed_prompt_list``, and where `return_word_label`
            asks for it ``fn_labeled_original_prompt``.

        Raises
        ------
        InputError
            For an argument out of its range or of the wrong type.
        UnsupportedError
            For a model that is not a token classifier of two labels.
        """
        return self._classify({n: value for n, value in locals().items() if n != "self"})

    def structured_compress_prompt(
        self,
        context: Sequence[str] | str,
        instruction: str = "",
        question: str = "",
        rate: float = 0.5,
        target_token: float = -1,
        iterative_size: int = 200,
        force_context_ids: Sequence[int] | None = None,
        force_context_number: int | None = None,
        use_sentence_level_filter: bool = False,
        use_context_level_filter: bool = True,
        use_token_level_filter: bool = True,
        keep_split: bool = False,
        keep_first_sentence: int = 0,
        keep_last_sentence: int = 0,
        keep_sentence_number: int = 0,
        high_priority_bonus: float = 100,
        context_budget: str = "+100",
        token_budget_ratio: float = 1.4,
        condition_in_question: str = "none",
        reorder_context: str = "original",
        dynamic_context_compression_ratio: float = 0.0,
        condition_compare: bool = False,
        add_instruction: bool = False,
        rank_method: RankMethod = "llmlingua",
        concate_question: bool = True,
        strict_preserve_uncompressed: bool = True,
    ) -> dict[str, Any]:
        """Compresses contexts whose segments carry ``<llmlingua, rate=…, compress=…>`` tags.

        Returns
        -------
        dict
            As `compress_prompt`.

        Raises
        ------
        InputError
            For a malformed tag, or an argument out of its range.
        """
        arguments = {name: value for name, value in locals().items() if name != "self"}
        if self.use_llmlingua2:
            raise UnsupportedError(
                "structured_compress_prompt with use_llmlingua2 is not supported; there is "
                "compress_prompt, and without use_llmlingua2 both"
            )
        return self._call("structured_compress_prompt", arguments)

    def compress_json(
        self,
        json_data: Mapping[str, Any],
        json_config: Mapping[str, Mapping[str, Any]] | str,
        instruction: str = "",
        question: str = "",
        rate: float = 0.5,
        target_token: float = -1,
        iterative_size: int = 200,
        use_sentence_level_filter: bool = False,
        use_keyvalue_level_filter: bool = False,
        use_token_level_filter: bool = True,
        keep_split: bool = False,
        keep_first_sentence: int = 0,
        keep_last_sentence: int = 0,
        keep_sentence_number: int = 0,
        high_priority_bonus: float = 100,
        context_budget: str = "+100",
        token_budget_ratio: float = 1.4,
        condition_in_question: str = "none",
        reorder_keyvalue: str = "original",
        condition_compare: bool = False,
        rank_method: str = "llmlingua",
    ) -> dict[str, Any]:
        """Compresses a JSON object by a configuration per key.

        The result always parses, and keys and numbers are never changed; the original can cut
        inside both. So it is not the original's, token for token, and options of its token level
        have no effect, with a warning.

        Returns
        -------
        dict
            As `compress_prompt`; ``compressed_prompt`` is an object.

        Raises
        ------
        AssertedError
            Where the keys of data and configuration differ.
        InputError
            For a value that is not of its configured type.
        """
        arguments = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "json_data", "json_config")
        }
        # The default there; here it is the learned ranker.
        if rank_method == "llmlingua":
            del arguments["rank_method"]
        if isinstance(json_config, Mapping) and isinstance(json_data, Mapping):
            unequal = set(json_data) ^ set(json_config)
            if unequal:
                raise AssertedError(
                    f"json_config: {sorted(map(str, unequal))[0]!r} is in one of data and "
                    "configuration only; give both the same keys"
                )
        made = self._compressor._json_request(json_data, json_config, arguments)
        _warn(made.warnings)
        return made.usage_dict()

    def recover(self, original_prompt: str, compressed_prompt: str, response: str) -> str:
        """Puts words of the original prompt in place of their shortened forms in a response."""
        return self._compressor.recover(original_prompt, compressed_prompt, response)

    def get_token_length(
        self, text: str, add_special_tokens: bool = True, use_oai_tokenizer: bool = False
    ) -> int:
        """Counts tokens of a text, the scorer's or cl100k_base's."""
        if use_oai_tokenizer:
            return self._compressor.count_tokens(text, "cl100k")
        return len(self._ids(text, add_special_tokens))

    def get_ppl(
        self,
        text: str,
        granularity: str = "sentence",
        input_ids: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        return_kv: bool = False,
        end: int | None = None,
        condition_mode: str = "none",
        condition_pos_id: int = 0,
    ) -> Any:
        """Gives the mean nll of a text (``sentence``) or that of each token but the first.

        Values are natural logarithms, a float or a list of them. Tensors and cached keys and values
        are not taken.
        """
        given = dict(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            return_kv=return_kv or None,
        )
        for name, value in given.items():
            if value is not None:
                raise UnsupportedError(
                    f"get_ppl({name}=…) is not supported; there are text, granularity, end, "
                    "condition_mode and condition_pos_id"
                )
        if granularity not in ("sentence", "token"):
            raise InputError(f"granularity {granularity!r}: expected 'sentence' or 'token'")
        ids = self._ids(text)[: self.max_position_embeddings]
        nll = self._compressor._score_from(ids[:end], 1)
        if condition_mode == "before":
            nll = nll[:condition_pos_id]
        elif condition_mode == "after":
            nll = nll[condition_pos_id:]
        if granularity == "token":
            return nll
        return sum(nll) / len(nll) if nll else float("nan")

    def get_condition_ppl(
        self,
        text: str,
        question: str,
        condition_in_question: str = "none",
        granularity: str = "sentence",
    ) -> Any:
        """Gives the nll of a text, of it after the question, or of the question after it."""
        if condition_in_question == "none":
            return self.get_ppl(text, granularity=granularity)
        if condition_in_question not in ("before", "after"):
            raise InputError(
                f"condition_in_question {condition_in_question!r}: "
                "expected 'none', 'before' or 'after'"
            )
        first, second = (question, text) if condition_in_question == "before" else (text, question)
        return self.get_ppl(
            first + second,
            granularity=granularity,
            condition_mode="after",
            condition_pos_id=self.get_token_length(first) - 1,
        )

    def get_rank_results(
        self,
        context: Sequence[str],
        question: str,
        rank_method: str,
        condition_in_question: str,
        context_tokens_length: Sequence[int],
    ) -> list[tuple[int, float]]:
        """Ranks contexts, the ones to keep first: index and score."""
        del context_tokens_length
        texts = _texts("context", context)
        if rank_method in ("llmlingua", "longllmlingua"):
            query = question + " We can get the answer to this question in the given documents."
            sign = -1 if condition_in_question == "none" else 1
            nll = [self.get_condition_ppl(text, query, condition_in_question) for text in texts]
            return sorted(enumerate(nll), key=lambda pair: sign * pair[1])
        order = translated(library().order_by_words, rank_method, texts, question)
        return [(index, 0.0) for index in order]

    def _classify(self, arguments: dict[str, Any]) -> dict[str, Any]:
        context = arguments["context"]
        if not isinstance(context, str):
            arguments["context"] = _texts("context", context or [])
        for name in ("force_tokens", "chunk_end_tokens", "force_context_ids"):
            arguments[name] = list(arguments[name] or [])
        if callable(arguments.get("rank_method")):
            del arguments["rank_method"]
        made: Result = self._compressor._request("compress_prompt_llmlingua2", arguments)
        _warn(made.warnings)
        return made.usage_dict()

    def _ids(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._compressor.tokenize(
            text, add_special_tokens=add_special_tokens, parse_special=True
        )

    def _call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        arguments["context"] = contexts = _texts("context", arguments["context"] or [])
        if arguments["force_context_ids"] is not None:
            arguments["force_context_ids"] = list(arguments["force_context_ids"])
        rate = arguments["rate"]
        method: RankMethod = arguments["rank_method"]
        if isinstance(rate, (int, float)) and rate > 1:
            raise AssertedError(f"rate {rate}: the share of tokens to keep lies in (0, 1]")
        if method == "longllmlingua" and not arguments["question"]:
            raise AssertedError("rank_method longllmlingua: it ranks by a question; give one")
        if method == "sentbert" and not self._has_encoder:
            raise UnsupportedError(
                "rank_method 'sentbert' is not supported without an encoder; name one when the "
                "compressor is made: encoder='minilm', or a folder"
            )
        if isinstance(method, str) and method not in _RANK_METHODS:
            raise UnsupportedError(
                f"rank_method {method!r} is not supported; there is {', '.join(_RANK_METHODS)}, "
                "and a function of contexts and question that gives a score for each context"
            )
        if callable(method):
            arguments["rank_method"] = "llmlingua"
            if contexts:
                arguments["context_scores"] = _scores(method, contexts, arguments["question"])
        if self._budget == "exact":
            arguments = _exact(arguments)
        elif not contexts:
            # As the original: a prompt without contexts has one of a space.
            arguments["context"] = [" "]
        made: Result = self._compressor._request(name, arguments)
        _warn(made.warnings)
        if self._budget == "exact":
            return {**made.usage_dict(), "contexts": made.contexts}
        return made.usage_dict()


def _exact(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments without those that have their defaults, which the exact budget ignores."""
    kept = {
        name: value
        for name, value in arguments.items()
        if name not in _DEFAULTS or value != _DEFAULTS[name]
    }
    return {**kept, "budget": "exact"}


_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(PromptCompressor.compress_prompt).parameters.items()
    if parameter.default is not parameter.empty
}


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        warnings.warn(line, stacklevel=4)


def install() -> None:
    """Makes ``import llmlingua`` find this module, in this process."""
    package = types.ModuleType("llmlingua", __doc__)
    package.__path__ = []
    inner = types.ModuleType("llmlingua.prompt_compressor", __doc__)
    for module in (package, inner):
        module.__dict__.update(PromptCompressor=PromptCompressor, __version__=__version__)
        # `importlib.util.find_spec` asks for it.
        module.__spec__ = ModuleSpec(module.__name__, None, is_package=module is package)
        sys.modules[module.__name__] = module
    package.__dict__["prompt_compressor"] = inner
