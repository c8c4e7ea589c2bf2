"""docs/start.md says what its commands print: they are run here, in its order, and its Python too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from spark_dbp.cli import main


@pytest.mark.slow
def test_the_start_page_shows_what_is_printed(spark, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # Spark's own process stays where it was started, and wants whole paths
    page = (ROOT / "docs" / "start.md").read_text()
    begun = {"spark": spark}
    printed, n_compared = "", 0
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", page, flags=re.M | re.S):
        if kind == "yaml":
            (tmp_path / "conf.yaml").write_text(block.replace("demo-run/", f"{tmp_path}/demo-run/"))
        elif kind == "sh" and "spark-dbp" in block:
            for line in block.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
            printed = capsys.readouterr().out.replace(f"{tmp_path}/", "")
        elif kind == "python":
            code = re.sub(r"^spark = .*", "", block, flags=re.M).replace("demo-run/", f"{tmp_path}/demo-run/")
            exec(code, begun)
            printed = capsys.readouterr().out
        elif kind == "text":
            shown = [line for line in block.splitlines() if not re.match(r"\.\.\.|\d\d:\d\d:\d\d", line)]
            there = printed.splitlines()
            assert [line for line in shown if line not in there] == []
            n_compared += 1
    assert n_compared == 6
    assert (tmp_path / "my-run-2-report.html").exists()
    assert f"{len(begun['keep'])} {'digits/0043.png' in begun['keep']}" in page
