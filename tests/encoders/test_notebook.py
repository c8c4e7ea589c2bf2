"""The notebooks that embed and train run from top to bottom, on the small part of CIFAR-10 beside them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from conftest import ROOT
from nbclient import NotebookClient


def test_from_images(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("CIFAR10_SHARDS", raising=False)
    notebook = nbformat.read(ROOT / "notebooks" / "04_from_images.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 3
    assert kinds.count("text/html") == 3
    printed = "".join(output.get("text", "") for output in outputs)
    assert "400 samples in 2 shards" in printed
    assert "the same vectors: True" in printed
    assert "120 of 400 samples go into training" in printed
    for noise in ("Loading weights", "Traceback", "FutureWarning"):
        assert noise not in printed


def test_train_with_keep_list(tmp_path: Path):
    notebook = nbformat.read(ROOT / "notebooks" / "03_train_with_keep_list.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 2
    assert kinds.count("text/html") == 2
    printed = "".join(output.get("text", "") for output in outputs)
    for line in (
        "kept keys that no shard has: 0",
        "kept keys that several samples have: 0",
        "13 batches of an epoch",
        "200 samples an epoch, 200 different ones",
        "each sample once, in the same order: True",
        "the same losses: True",
    ):
        assert line in printed
    first, last = map(float, re.search(r"loss ([\d.]+) in the first batches, ([\d.]+) in", printed).groups())
    assert last < first
    for noise in ("Traceback", "Warning"):
        assert noise not in printed
