"""The notebook of the documentation, executed; skipped where nbclient is not installed."""

import os
import pathlib
import re

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = pathlib.Path(__file__).resolve().parents[3]
NOTEBOOK = ROOT / "docs/notebooks/compress.ipynb"
KINDS = ("span", "s")


def cell(notebook, name):
    (found,) = [each for each in notebook.cells if each["id"] == name]
    return found


def check(notebook):
    outputs = [output for each in notebook.cells for output in each.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    (shown,) = cell(notebook, "compress").outputs
    html = shown.data["text/html"]
    kept, dropped = (
        "".join(re.findall(f"<{tag}\\b[^>]*>(.*?)</{tag}>", html, re.S)) for tag in KINDS
    )
    assert "It is 333 metres tall" in kept
    assert "The Eiffel Tower" in dropped


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_stored_notebook_has_its_outputs_and_nothing_of_a_machine(stored):
    nbformat.validate(stored)
    check(stored)
    code = [each for each in stored.cells if each.cell_type == "code"]
    assert [each.execution_count for each in code] == list(range(1, len(code) + 1))
    assert all(each.outputs and not each.metadata for each in code)
    text = NOTEBOOK.read_text(encoding="utf-8")
    for folder in (str(ROOT), os.path.expanduser("~"), "/home/", "/tmp/", "site-packages"):
        assert folder not in text


def test_no_cell_of_the_notebook_fails(stored, model, monkeypatch):
    monkeypatch.setenv("PREFOLD_MODEL", os.path.abspath(model))
    made = nbclient.NotebookClient(
        nbformat.from_dict(stored),
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    ).execute()
    check(made)
