"""What the connector reports to vLLM's log and to its ``/metrics``, where a version takes it."""

# pyright: standard, reportMissingImports=false

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)
from vllm.v1.metrics.utils import create_metric_per_engine

COUNTERS = {
    "loads": "Prefixes loaded, by each worker",
    "rows": "Rows of prefixes loaded, by each worker",
    "bytes": "Bytes of keys and values loaded, by all workers",
    "seconds": "Seconds that workers spent on loading, reading files included",
    "ready_hits": "Loads whose tensors were ready in memory, by each worker",
    "refusals": "Requests refused by the scheduler, and loads that failed, by each worker",
}


class Stats(KVConnectorStats):
    """Counts since they were last taken."""

    def add(self, counts: dict[str, float]) -> None:
        """Adds to the counts that are named."""
        for name, count in counts.items():
            self.data[name] = self.data.get(name, 0) + count

    def reset(self) -> None:
        """Forgets all."""
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> Stats:
        """Adds another worker's, or those of a later step."""
        self.add(other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        """What vLLM logs of an interval."""
        return {f"prefix {name}": round(self.data.get(name, 0), 4) for name in COUNTERS}

    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not self.data


class PromMetrics(KVConnectorPromMetrics):
    """The same as counters of Prometheus, ``vllm:prefold_prefix_..._total``."""

    def __init__(
        self, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters: dict[str, Any] = {
            name: create_metric_per_engine(
                self._counter_cls(
                    name=f"vllm:prefold_prefix_{name}",
                    documentation=f"{text}.",
                    labelnames=labelnames,
                ),
                per_engine_labelvalues,
            )
            for name, text in COUNTERS.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Adds what happened in a step."""
        for name, count in transfer_stats_data.items():
            self._counters[name][engine_idx].inc(count)
