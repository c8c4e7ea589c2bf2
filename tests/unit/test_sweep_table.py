"""Options of `sweep`, its table and its figures, on a small run that lies in the tests; without Spark."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from spark_dbp import open_run, sweep
from spark_dbp.cli import main
from spark_dbp.errors import ConfigError

RUN = str(ROOT / "tests/data/run-format-1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep-ratio", "0"], ["keep_ratio '0'", "at most 1"]),
        (["--keep-ratio", "0.1,nan"], ["keep_ratio 'nan'"]),
        (["--keep-ratio", "1.5"], ["keep_ratio '1.5'"]),
        (["--keep-ratio", " , "], ["keep_ratio is given without a value"]),
        (["--temperature", "-1"], ["temperature '-1'", "above 0"]),
        (["--temperature", "warm"], ["temperature 'warm'"]),
        (["--temperature", "inf"], ["temperature 'inf'"]),
        (["--complexity", "d_intra,d_iter"], ["'d_iter'", "d_intra*d_inter"]),
        (["--saturated-at-most", "-1"], ["--saturated-at-most '-1'"]),
        (["--saturated-at-most", "few"], ["--saturated-at-most 'few'"]),
        (["--saturated-at-most", "1", "--temperature", "1"], ["leave --temperature out"]),
        (["--saturated-at-most", "1", "--complexity", "uniform"], ["complexity uniform", "d_intra"]),
        (["--dedup-to", "many"], ["--dedup-to 'many'"]),
        (["--dedup-to", "10", "--keep-ratio", "0.1"], ["one at a time"]),
        (["--plot", "x.png"], ["nothing asks for that", "--keep-ratio"]),
        (["--plot", "x.jpeg", "--keep-ratio", "0.1"], ["x.jpeg", ".png"]),
        (["--csv", f"{RUN}/rows.csv", "--keep-ratio", "0.1"], ["lies in the run directory"]),
        (["--set", "prune.keep_ratio=0.1"], ["no settings but spark.*"]),
    ],
)
def test_refused(arguments, words, capsys):
    assert main(["sweep", RUN, *arguments]) == 2
    message = capsys.readouterr().err
    assert "to mend it: " in message
    for word in words:
        assert word in message


def test_a_run_of_format_1_is_swept_without_pyspark():
    code = (
        "import sys; sys.modules['pyspark'] = None\n"
        "from spark_dbp.cli import main\n"
        f"sys.exit(main(['sweep', {RUN!r}, '--keep-ratio', '0.1,0.3', '--json']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)
    summary = open_run(RUN).document["summary"]
    assert [row["n_keep"] for row in rows] == [5, 16]
    assert (rows[1]["saturated"], rows[1]["at_floor"]) == (summary["saturated"], summary["at_floor"])
    assert (
        abs(rows[1]["mean_distance_kept"] - summary["mean_distance_kept"])
        <= rows[1]["mean_distance_kept_error"]
    )


def test_the_table_shows_the_run_and_hints():
    found = sweep(open_run(RUN), [0.1, 1.0, 0.01], [0.1, 10])
    text, html = str(found), found._repr_html_()
    assert len(found) == 6
    assert sum(line.endswith("this run") for line in text.splitlines()) == 1
    assert text.splitlines()[2].split()[:4] == ["0.3", "0.1", "d_intra*d_inter", "16"]
    assert "all samples are kept" in text
    assert "cannot be kept" in text
    assert html.count("<tr") == 1 + 7
    assert "+-" not in html
    assert found.to_pandas()["n_keep"].isna().sum() == 2
    assert next(iter(found)).to_dict() == found.to_dicts()[0]
    assert "stays" not in text


def test_runs_and_summaries_show_in_notebooks():
    shown = open_run(RUN)._repr_html_()
    assert "run-format-1" in shown
    assert "rows in" in shown


def test_figures_without_matplotlib_say_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="spark-dbp\\[notebook\\]"):
        open_run(RUN).plot_clusters()
    assert main(["sweep", RUN, "--keep-ratio", "0.1", "--plot", "x.png"]) == 2
    assert "matplotlib, which is not installed" in capsys.readouterr().err


def test_a_figure_of_rows_that_cannot_be():
    figure = sweep(open_run(RUN), [0.001, 0.01], [0.1, 1.0, 3.0]).plot()
    figure.canvas.draw()
    assert len(figure.axes) == 4


def test_a_figure_is_the_same_file_each_time(tmp_path):
    written = []
    for name in ("a", "b"):
        for suffix in ("svg", "png"):
            path = tmp_path / f"{name}.{suffix}"
            assert main(["sweep", RUN, "--keep-ratio", "0.2,0.5", "--plot", str(path)]) == 0
            written.append(path.read_bytes())
    assert written[0] == written[2]
    assert written[1] == written[3]
