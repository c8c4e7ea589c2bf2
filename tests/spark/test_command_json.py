"""Every command with --json prints one JSON document and nothing else, and none where it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from bad_inputs import Done, in_this_process
from conftest import config_of, make_embeddings, write_table
from made_formats import write_datacomp
from made_shards import keys_of, write_shards

from spark_dbp import cli
from spark_dbp.commands.parsers import list_commands

pytestmark = pytest.mark.slow

SIZES = [40, 30]
KEYS = keys_of(SIZES)


@pytest.fixture(scope="module")
def place(spark, tmp_path_factory) -> Path:
    """A directory with an input, shards of the same keys, and a finished run."""
    folder = tmp_path_factory.mktemp("json") / "a b"
    write_shards(folder / "shards", SIZES)
    source = write_table(folder / "in", KEYS, make_embeddings(len(KEYS), 8, 4))
    write_datacomp(folder / "datacomp")
    config = config_of(
        source, folder / "run", cluster={"n_clusters": 3, "n_iter": 3},
        dedup={"semantic": {"eps": [0.01, 0.05], "n_clusters": 2}},
    )  # fmt: skip
    (folder / "conf.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["run", str(folder / "conf.yaml"), "--quiet"]) == 0
    shutil.copytree(folder / "run", folder / "run2")
    return folder


@pytest.fixture
def command(spark, capsys):
    return lambda arguments: in_this_process(arguments, capsys)


def fill(words: str, place: Path) -> list[str]:
    names = {"CONF": place / "conf.yaml", "RUN": place / "run", "KEY": KEYS[0], "HERE": place}
    return [
        str(names[word]) if word in names else word.replace("HERE/", f"{place}/") for word in words.split()
    ]


# Arguments; the exit code; and what the document has, of a list each of its items.
GOOD = [
    ("plan CONF", 0, {"steps", "total"}),
    ("run CONF", 0, {"run", "accounting", "summary", "hints", "clusters", "tables", "digests"}),
    ("select RUN --set prune.keep_ratio=0.5 --out HERE/select", 0, {"run", "accounting", "hints"}),
    ("sweep RUN --keep-ratio 0.1,0.5", 0, {"keep_ratio", "temperature", "n_keep", "saturated", "at_floor"}),
    ("sweep RUN", 0, {"eps", "removed", "left"}),
    ("sweep RUN --dedup-to 60", 0, {"eps", "removed", "left"}),
    ("explain RUN KEY", 0, {"key", "kept", "reason", "rank", "quota"}),
    ("export RUN --to verdicts --out HERE/verdicts", 0, set()),
    ("explain RUN no-such-key", 3, {"key", "reason", "near_misses"}),
    ("diff RUN HERE/run2", 0, set()),
    ("report RUN --out HERE/page.html", 0, {"path"}),
    ("import datacomp HERE/datacomp --out HERE/table", 0, {"path", "rows"}),
    ("export RUN --to txt --out HERE/kept.txt", 0, set()),
    ("index RUN --shards HERE/shards --out HERE/index", 0, {"out", "n_kept"}),
    ("reshard RUN --shards HERE/shards --out HERE/new", 0, {"out", "samples"}),
    ("verify RUN", 0, {"run", "ok", "checks"}),
    ("clean RUN --dry-run", 0, {"run", "bytes", "found"}),
    ("clean RUN", 0, {"run", "deleted", "found"}),
    ("doctor", 0, {"can_run", "findings"}),
]
# Errors that come before there is anything to print.
BAD = [
    ("plan HERE/none.yaml", 2),
    ("run HERE/none.yaml", 2),
    ("run CONF --set nonsense.a=1", 2),
    ("run CONF --set input.path=/no/such/path", 3),
    ("select HERE/none --out HERE/x", 3),
    ("sweep HERE/none --keep-ratio 0.1", 3),
    ("sweep RUN --keep-ratio 7", 2),
    ("explain HERE/none KEY", 3),
    ("diff RUN HERE/none", 3),
    ("report HERE/none", 3),
    ("import datacomp HERE/none --out HERE/x", 3),
    ("export RUN --to nonsense --out HERE/x", 2),
    ("index RUN --shards HERE/none --out HERE/x", 3),
    ("reshard RUN --shards HERE/none --out HERE/x", 3),
    ("verify HERE/none", 3),
    ("clean HERE/none", 3),
    ("doctor HERE/none.yaml", 2),
    ("demo --set a=1", 2),
]


def test_the_table_has_every_command():
    names = set(list_commands(cli.make_parser())) - {"completion"}
    assert {line.split()[0] for line, *_ in GOOD} >= names - {"demo"}
    assert {line.split()[0] for line, _ in BAD} >= names


@pytest.mark.parametrize(("line", "code", "has"), GOOD, ids=[line for line, *_ in GOOD])
def test_one_document(command, place, line, code, has):
    done: Done = command([*fill(line, place), "--json"])
    assert done.code == code, done.err
    document = json.loads(done.out)
    assert not isinstance(document, list) or document
    for item in document if isinstance(document, list) else [document]:
        assert has <= set(item)


@pytest.mark.parametrize(("line", "code"), BAD, ids=[line for line, _ in BAD])
def test_no_document_where_it_fails(command, place, line, code):
    done: Done = command([*fill(line, place), "--json"])
    assert (done.code, done.out) == (code, "")
    assert "to mend it" in done.err
    assert "Traceback" not in done.err


def test_what_run_prints_without_json(command, place):
    """The summary, clusters at both ends, hints, and commands that work."""
    done: Done = command(["run", str(place / "conf.yaml"), "--quiet"])
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    at = [lines.index(next(line for line in lines if line.startswith(begin))) for begin in (
        "rows in  ", "kept  ", "tables", "narrowest and widest clusters", "what next",
    )]  # fmt: skip
    assert at == sorted(at)
    assert "\x1b" not in done.out
    assert f"spark-dbp verify '{place}/run'" in done.out
