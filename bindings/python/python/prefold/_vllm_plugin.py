"""What vLLM finds by the entry point ``vllm.general_plugins``."""

# pyright: standard, reportMissingImports=false

from __future__ import annotations


def register() -> None:
    """Registers ``PrefoldConnector``, so that vLLM finds it by its name alone."""
    try:
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

        KVConnectorFactory.register_connector(
            "PrefoldConnector", "prefold.vllm", "PrefoldConnector"
        )
    except (ImportError, ValueError):
        # A version without the factory, or registered before: the module path works there.
        pass
