"""The Python examples of docs/python-api.md and docs/explain.md run, as a user would paste them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def python_blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), flags=re.M | re.S)


@pytest.mark.slow
def test_the_examples_of_the_docs_run(tmp_path: Path):
    written = python_blocks("docs/python-api.md") + python_blocks("docs/explain.md")
    assert len(written) >= 10
    # webdataset is not among the packages that the tests install.
    blocks = [block for block in written if "import webdataset" not in block]
    assert len(written) - len(blocks) == 1
    (tmp_path / "examples.py").write_text(
        "\n\n".join([*blocks, "assert kept.count() == 500", "print('DONE')"])
    )
    done = subprocess.run(
        [sys.executable, "examples.py"], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.rstrip().endswith("DONE")
    assert done.stdout.count("\nok ") == 9  # what `verify` checked
    steps = re.search(
        r"^```text\n(ingest .*?)^```", (ROOT / "docs/python-api.md").read_text(), flags=re.M | re.S
    )
    assert (
        "\n".join(line.rstrip() for line in steps[1].splitlines()) in done.stdout
    )  # the table that is shown there
