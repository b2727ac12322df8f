"""Calls into the extension module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefold import _errors
from prefold._errors import InputError, PrefoldError


def library() -> Any:
    """The extension module, which the first use of a name loads."""
    from prefold import _native

    return _native


def error_of(kind: str, message: str) -> PrefoldError:
    """The error of this package that the library's is."""
    made: PrefoldError = getattr(_errors, kind, PrefoldError)(message)
    return made


def translated(call: Callable[..., Any], *args: Any) -> Any:
    """Calls into the library; what it raises becomes an error of this package."""
    try:
        return call(*args)
    except library().NativeError as error:
        raise error_of(*error.args) from None
    except (TypeError, OverflowError, UnicodeEncodeError) as error:
        # A value of the wrong type, a number out of range, half of a surrogate pair. What a
        # function of the caller's raises has a frame of its own, and goes through.
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise
        raise InputError(f"arguments: {error}") from None
