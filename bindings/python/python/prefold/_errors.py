"""The errors of this package: each is one line that says what, where, and what to do."""

from __future__ import annotations


class PrefoldError(Exception):
    """The base of all errors of this package."""


class InputError(PrefoldError, ValueError):
    """An argument is out of its range, of the wrong type, unknown, or contradicts another."""


class AssertedError(InputError, AssertionError):
    """An argument that llmlingua refuses by ``assert``; `prefold.llmlingua` raises it there."""


class BudgetError(PrefoldError, ValueError):
    """What must be kept is already longer than the target."""


class FileError(PrefoldError, OSError):
    """A file, store or download cannot be read or written."""


class FormatError(PrefoldError, ValueError):
    """A file is not what its format demands."""


class UnsupportedError(PrefoldError, NotImplementedError):
    """A legitimate request for something that is not built."""


class DeviceError(PrefoldError, RuntimeError):
    """The device that was asked for is missing or failed."""


class DeadlineExceeded(PrefoldError, TimeoutError):
    """The call's deadline passed before it was done."""


class Cancelled(PrefoldError):
    """The call was cancelled."""
