"""Compression of data sets by many machines: Ray Data, Spark, pandas.

>>> import ray
>>> from prefold.ray import Compress
>>> shorter = ray.data.read_parquet("prompts").map_batches(
...     Compress,
...     fn_constructor_kwargs=dict(contexts="documents", question="question", rate=0.25, threads=4),
...     concurrency=8,
...     num_cpus=4,
...     batch_format="pyarrow",
... )  # doctest: +SKIP

An actor opens the model once; ``threads`` is what it computes with, and should be its ``num_cpus``.
"""

# pyright: standard, reportMissingImports=false

from __future__ import annotations

from typing import Any

from prefold._compressor import Compressor
from prefold._errors import PrefoldError

__all__ = ["Compress", "pandas_udf"]


class Compress:
    """Adds columns with the compressed prompt to batches of rows.

    Parameters
    ----------
    contexts : str
        The column with a text or a list of texts.
    question, instruction : str, optional
        Columns with texts.
    output : str
        The column of the result; ``<output>_tokens_before``, ``<output>_tokens_after``,
        ``<output>_kept`` (indices of the kept contexts) and ``<output>_error`` stand beside it.
    rate, target_tokens
        The budget, for all rows.
    model, device, threads, adapter
        See ``prefold.Compressor``.
    on_error : {"raise", "null"}
        ``null`` gives a row that cannot be compressed no result, and its error.
    **options
        All other options of ``Compressor.compress``.
    """

    def __init__(
        self,
        contexts: str = "contexts",
        question: str | None = None,
        instruction: str | None = None,
        output: str = "compressed",
        rate: float | None = None,
        target_tokens: int | None = None,
        model: str | None = None,
        device: str = "auto",
        threads: int = 1,
        adapter: str | None = None,
        on_error: str = "raise",
        **options: Any,
    ) -> None:
        if on_error not in ("raise", "null"):
            raise ValueError(f"on_error {on_error!r}: expected 'raise' or 'null'")
        self.columns: dict[str, str | None] = {
            "contexts": contexts,
            "question": question,
            "instruction": instruction,
        }
        self.output = output
        self.budget: dict[str, float | None] = {"rate": rate, "target_tokens": target_tokens}
        self.options = options
        self.on_error = on_error
        self.compressor: Compressor = Compressor(
            model, device=device, threads=threads, adapter=adapter
        )

    def __call__(self, batch: Any) -> Any:
        """Takes a pyarrow table, a pandas frame or a dictionary of columns, and gives the same."""
        if hasattr(batch, "column_names"):
            columns = {name: batch.column(name).to_pylist() for name in self._names(batch)}
            added = self._added(columns)
            import pyarrow

            for name, values in added.items():
                batch = batch.append_column(name, pyarrow.array(values, type=_arrow(name)))
            return batch
        columns = {name: list(batch[name]) for name in self._names(batch)}
        added = self._added(columns)
        if hasattr(batch, "assign"):
            return batch.assign(**added)
        import numpy

        made: dict[str, Any] = {}
        for name, values in added.items():
            array = numpy.empty(len(values), dtype=object)
            array[:] = values
            made[name] = array
        return {**batch, **made}

    def _names(self, batch: Any) -> list[str]:
        have = list(getattr(batch, "column_names", None) or batch.keys())
        wanted = [name for name in self.columns.values() if name is not None]
        for name in wanted:
            if name not in have:
                raise ValueError(f"column {name!r}: not in the batch; it has {', '.join(have)}")
        return wanted

    def _added(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = len(columns[self.columns["contexts"] or ""])
        requests: list[dict[str, Any]] = []
        for row in range(rows):
            request: dict[str, Any] = {**self.options, **self.budget}
            for argument, column in self.columns.items():
                if column is not None and columns[column][row] is not None:
                    value = columns[column][row]
                    request[argument] = value if isinstance(value, str) else list(value)
            request.setdefault("contexts", [])
            requests.append(request)
        added: dict[str, list[Any]] = {
            self.output + suffix: []
            for suffix in ("", "_tokens_before", "_tokens_after", "_kept", "_error")
        }
        for made in self.compressor.compress_batch(requests):
            if isinstance(made, PrefoldError):
                if self.on_error == "raise":
                    raise made
                row_values: tuple[Any, ...] = (None, None, None, None, str(made))
            else:
                row_values = (made.text, made.tokens_before, made.tokens_after, made.kept, None)
            for values, value in zip(added.values(), row_values, strict=True):
                values.append(value)
        return added


def _arrow(name: str) -> Any:
    import pyarrow

    if name.endswith(("_tokens_before", "_tokens_after")):
        return pyarrow.int64()
    if name.endswith("_kept"):
        return pyarrow.list_(pyarrow.int64())
    return pyarrow.string()


def pandas_udf(**settings: Any) -> Any:
    """Gives a function for Spark's ``mapInPandas``: frames in, frames with added columns out."""
    holder: list[Compress] = []

    def compress(frames: Any) -> Any:
        # Made where it runs: a worker opens the model once.
        if not holder:
            holder.append(Compress(**settings))
        for frame in frames:
            yield holder[0](frame)

    return compress
