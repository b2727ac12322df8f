"""Prompt compression (LLMLingua, LongLLMLingua) and KV prefixes (500xCompressor), without torch.

>>> import prefold
>>> compressor = prefold.Compressor()  # doctest: +SKIP
>>> result = compressor.compress(documents, question="Who pays?", rate=0.25)  # doctest: +SKIP
>>> print(result.text)  # doctest: +SKIP

Importing this package opens no model and loads no extension module; the first use of a name does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Compressor": "prefold._compressor",
    "KeptContext": "prefold._result",
    "Decision": "prefold._result",
    "JsonResult": "prefold._result",
    "Piece": "prefold._result",
    "Prefix": "prefold._prefix",
    "PrefoldError": "prefold._errors",
    "AssertedError": "prefold._errors",
    "BudgetError": "prefold._errors",
    "Cancelled": "prefold._errors",
    "DeadlineExceeded": "prefold._errors",
    "DeviceError": "prefold._errors",
    "FormatError": "prefold._errors",
    "FileError": "prefold._errors",
    "InputError": "prefold._errors",
    "UnsupportedError": "prefold._errors",
    "Result": "prefold._result",
    "MessagesResult": "prefold._result",
    "count_tokens": "prefold._compressor",
}

__all__ = [
    "AssertedError",
    "BudgetError",
    "Cancelled",
    "Compressor",
    "DeadlineExceeded",
    "Decision",
    "DeviceError",
    "FileError",
    "FormatError",
    "InputError",
    "JsonResult",
    "KeptContext",
    "MessagesResult",
    "Piece",
    "Prefix",
    "PrefoldError",
    "Result",
    "UnsupportedError",
    "__version__",
    "count_tokens",
]

if TYPE_CHECKING:
    __version__: str
    from prefold._compressor import Compressor, count_tokens
    from prefold._errors import (
        AssertedError,
        BudgetError,
        Cancelled,
        DeadlineExceeded,
        DeviceError,
        FileError,
        FormatError,
        InputError,
        PrefoldError,
        UnsupportedError,
    )
    from prefold._prefix import Prefix
    from prefold._result import (
        Decision,
        JsonResult,
        KeptContext,
        MessagesResult,
        Piece,
        Result,
    )


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("prefold")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
