"""A drop-in for ``llmlingua`` 0.2.2: the same names, defaults, results and keys, without torch.

>>> from prefold.llmlingua import PromptCompressor
>>> compressor = PromptCompressor()  # doctest: +SKIP
>>> compressor.compress_prompt(documents, question="Who pays?", rate=0.5)  # doctest: +SKIP

``install()`` makes ``import llmlingua`` find this module, for code that imports it by name.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefold._compressor import Compressor
from prefold._errors import InputError, UnsupportedError

__all__ = ["PromptCompressor", "install"]
__version__ = "0.2.2"

_OTHER_MODELS = "only language models (GGUF or Hugging Face folders) are supported here"


def _device(device_map: str) -> str:
    """Maps transformers' ``device_map`` to a device of ours."""
    if device_map == "cpu" or device_map == "cuda" or device_map.startswith("cuda:"):
        return device_map
    return "auto"


class PromptCompressor:
    """Compresses prompts as ``llmlingua.PromptCompressor`` does, token for token.

    Parameters
    ----------
    model_name : str, optional
        A GGUF file or a Hugging Face folder; without one, or where the name is the reference's
        default, the model that ``prefold models path`` names.
    device_map : str
        ``cpu``, ``cuda`` or ``cuda:N``; ``cuda`` runs on the CPU, with a warning, where no CUDA
        device can be used. Everything else is ``auto``.
    model_config, open_api_config : dict
        Taken and not used: what they say concerns transformers and OpenAI's client.
    use_llmlingua2 : bool
        Refused: LLMLingua-2 needs an encoder model.
    budget : {"reference", "exact"}
        ``exact`` keeps prefold's own budget under llmlingua's names.
    threads : int, optional
        CPU threads; all cores by default.
    """

    _DEFAULT = "NousResearch/Llama-2-7b-hf"

    def __init__(
        self,
        model_name: str | None = _DEFAULT,
        device_map: str = "cuda",
        model_config: Mapping[str, Any] | None = None,
        open_api_config: Mapping[str, Any] | None = None,
        use_llmlingua2: bool = False,
        llmlingua2_config: Mapping[str, Any] | None = None,
        *,
        budget: str = "reference",
        threads: int | None = None,
    ) -> None:
        del open_api_config, llmlingua2_config
        if use_llmlingua2:
            raise UnsupportedError(
                f"use_llmlingua2 is not supported: LLMLingua-2 needs an encoder model, and "
                f"{_OTHER_MODELS}; leave it out for LLMLingua and LongLLMLingua"
            )
        if budget not in ("reference", "exact"):
            raise InputError(f"budget {budget!r}: expected 'reference' or 'exact'")
        if model_config:
            warnings.warn(
                "model_config has no effect: the model is not opened by transformers", stacklevel=2
            )
        model = None if model_name == self._DEFAULT else model_name
        self._budget = budget
        self._compressor = Compressor(model, device=_device(device_map), threads=threads)
        if device_map.startswith("cuda"):
            self._compressor._fall_back_to_cpu = True

    @property
    def compressor(self) -> Compressor:
        """The compressor that does the work, with prefold's own calls."""
        return self._compressor

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        return int(self._compressor.info()["max_positions"])

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
        rank_method: str | Callable[[list[str], str], Sequence[float]] = "llmlingua",
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
        force_tokens: Sequence[str] = (),
        force_reserve_digit: bool = False,
        drop_consecutive: bool = False,
        chunk_end_tokens: Sequence[str] = (".", "\n"),
        strict_preserve_uncompressed: bool = True,
    ) -> dict[str, Any]:
        """Compresses a prompt: ``llmlingua.PromptCompressor.compress_prompt``.

        Returns
        -------
        dict
            ``compressed_prompt``, ``origin_tokens``, ``compressed_tokens``, ``ratio``, ``rate`` and
            ``saving``, as llmlingua; and ``contexts``, what is left of each context.

        Raises
        ------
        InputError
            For an argument out of its range or of the wrong type.
        BudgetError
            With ``budget="exact"``, where what must be kept is longer than the target.
        """
        arguments = {name: value for name, value in locals().items() if name != "self"}
        return self._call("compress_prompt", arguments)

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
        rank_method: str = "llmlingua",
        concate_question: bool = True,
        strict_preserve_uncompressed: bool = True,
    ) -> dict[str, Any]:
        """Compresses contexts whose segments carry ``<llmlingua, rate=…, compress=…>`` tags.

        Raises
        ------
        InputError
            For a malformed tag, or an argument out of its range.
        """
        arguments = {name: value for name, value in locals().items() if name != "self"}
        return self._call("structured_compress_prompt", arguments)

    def compress_json(
        self,
        json_data: Mapping[str, Any] | str,
        json_config: Mapping[str, Any] | str,
        instruction: str = "",
        question: str = "",
        rate: float = 0.5,
        target_token: float = -1,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Compresses a JSON object by a configuration per key: ``llmlingua``'s ``compress_json``.

        The result always parses, and keys and numbers are never changed; the reference can cut
        inside both.
        """
        arguments.update(
            json_data=json_data,
            json_config=json_config,
            instruction=instruction,
            question=question,
            rate=rate,
            target_token=target_token,
        )
        return self._compressor._json_call("compress_json", arguments)

    def recover(self, original_prompt: str, compressed_prompt: str, response: str) -> str:
        """Puts words of the original prompt in place of their shortened forms in a response."""
        arguments = dict(
            original_prompt=original_prompt,
            compressed_prompt=compressed_prompt,
            response=response,
        )
        return str(self._compressor._json_call("recover", arguments)["recovered"])

    def get_token_length(
        self, text: str, add_special_tokens: bool = True, use_oai_tokenizer: bool = False
    ) -> int:
        """Counts tokens of a text, the scorer's or cl100k_base's."""
        if use_oai_tokenizer:
            return self._compressor.count_tokens(text, "cl100k")
        return len(self._compressor.tokenize(text, add_special_tokens=add_special_tokens))

    def get_ppl(self, text: str, granularity: str = "sentence", **other: Any) -> Any:
        """Gives the mean nll of a text (``sentence``) or that of each token but the first.

        Values are natural logarithms, as the reference's losses are.
        """
        used = sorted(name for name, value in other.items() if value not in (None, "none", 0))
        if used:
            raise UnsupportedError(
                f"get_ppl({used[0]}=…) is not supported; there are text and granularity"
            )
        nll = self._compressor.score(text)
        if granularity == "token":
            return nll
        if granularity != "sentence":
            raise InputError(f"granularity {granularity!r}: expected 'sentence' or 'token'")
        return sum(nll) / len(nll) if nll else 0.0

    def get_rank_results(
        self, context: Sequence[str], question: str, rank_method: str = "longllmlingua", **_: Any
    ) -> list[tuple[int, float]]:
        """Ranks contexts by a question, the best first."""
        return self._compressor.rank(list(context), question, method=rank_method)

    def _call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        context = arguments["context"]
        if not isinstance(context, str):
            arguments["context"] = list(context)
        if arguments.get("force_context_ids") is not None:
            arguments["force_context_ids"] = list(arguments["force_context_ids"])
        method = arguments["rank_method"]
        if callable(method):
            raise UnsupportedError(
                "a callable rank_method is not supported by the reference's loop; "
                "use prefold.Compressor.compress(…, rank_method=callable)"
            )
        if self._budget == "exact":
            arguments = self._exact(arguments)
        result = self._compressor._request(name, arguments)
        return {**result.usage_dict(), "contexts": result.contexts}

    @staticmethod
    def _exact(arguments: dict[str, Any]) -> dict[str, Any]:
        """Leaves out what has no effect under the exact budget, where it has its default."""
        defaults = _defaults()
        kept = {
            name: value
            for name, value in arguments.items()
            if name == "context" or value != defaults.get(name, _MISSING)
        }
        kept["budget"] = "exact"
        return kept


_MISSING = object()


def _defaults() -> dict[str, Any]:
    import inspect

    parameters = inspect.signature(PromptCompressor.compress_prompt).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def install() -> None:
    """Makes ``import llmlingua`` find this module, in this process."""
    module = sys.modules[__name__]
    compressor = types.ModuleType("llmlingua.prompt_compressor")
    compressor.PromptCompressor = PromptCompressor  # type: ignore[attr-defined]
    sys.modules["llmlingua"] = module
    sys.modules["llmlingua.prompt_compressor"] = compressor
