"""The notebook: its outputs are whole and say nothing of the machine, and every cell of it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.process import ROOT

NOTEBOOK = ROOT / "notebooks" / "truthfulqa.ipynb"
SMALL = ["data.limit=60", "data.split.test=0.5", "train.max_steps=2", "train.evals_per_epoch=0", "evaluation.samples=1"]


def _code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _printed(notebook: Any) -> str:
    outputs = [output for cell in _code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    return "".join(output.get("text", "") for output in outputs)


def test_the_committed_outputs_are_those_of_one_run_from_top_to_bottom():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = _code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "loss 0.6931, and ln 2 is 0.6931" in _printed(notebook)
    pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2


def test_the_committed_outputs_hold_no_noise_and_no_path_of_a_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    outputs = [output for cell in _code_cells(notebook) for output in cell.outputs]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert re.findall(r"/(?:home|root|tmp|site-packages)/", text) == []
    assert str(ROOT) not in text
    assert len(text) < 1_000_000


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source += f"\nOVERRIDES = {SMALL!r}"
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = _printed(notebook)
    assert "questions on two sides of the split: 0" in printed
    assert "loss 0.6931, and ln 2 is 0.6931" in printed
    assert json.loads((tmp_path / "runs" / "notebook" / "report.json").read_text())["training"]["steps"] == 2
    assert "same most likely token: 100.00%" in printed
