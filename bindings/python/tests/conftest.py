"""Fixtures: the model, and golden rows made with llmlingua 0.2.2."""

import json
import os
import pathlib

import prefold
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests/data/golden/llmlingua.jsonl"


def model_path():
    named = os.environ.get("PREFOLD_MODEL")
    path = pathlib.Path(named) if named else ROOT / ".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf"
    return path if path.is_file() else None


@pytest.fixture(scope="session")
def model():
    path = model_path()
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no model: `make model` fetches it")
        pytest.skip("no model: `make model` fetches it")
    return str(path)


@pytest.fixture(scope="session")
def compressor(model):
    return prefold.Compressor(model, device="cpu").open()


@pytest.fixture(scope="session")
def golden():
    return [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


DOCUMENTS = [
    "The town hall was built in 1901. It has a clock and two towers. The roof is green.",
    "The school stands by the river. It has nine rooms and a yard. Lessons begin at eight.",
    "The baker opens at six. His bread is dark and sells out by noon.",
    "The mayor is called Ilse Brandt. She was elected in May and likes to sail.",
    "A market is held on Fridays. Farmers sell eggs, honey and early potatoes there.",
]


@pytest.fixture(scope="session")
def documents():
    return list(DOCUMENTS)
