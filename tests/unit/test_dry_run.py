"""The dry run (`plan`) without a session: every configuration gives a plan, or is refused as a run would."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_inputs import CASES as BAD
from bad_inputs import check_message, filled, in_this_process, prepare, tree
from conftest import config_of, make_embeddings, make_keys, write_table
from made_formats import FORMATS
from made_shards import keys_of, write_shards

from spark_dbp import RunConfig, plan, plan_steps
from spark_dbp.explore.plan import make
from spark_dbp.explore.plan.costs import Machine
from spark_dbp.explore.plan.look import to_java_uri
from spark_dbp.explore.plan.show import write_bytes
from spark_dbp.lake.marks import FORMAT_VERSION, FinishedStep
from spark_dbp.lake.store import EarlierSteps

N, DIM, K = 400, 8, 6


class NeedsSessionError(Exception):
    """Stands for the session that would be started."""


@pytest.fixture(autouse=True)
def _no_session(monkeypatch):
    def refuse(*_args, **_settings):
        raise NeedsSessionError

    monkeypatch.setattr(make, "get_session", refuse)
    monkeypatch.setattr(make, "measure_machine", lambda _: Machine(2, 2e10, "2 cores"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A table that has every column that a configuration below names, and centroids beside it."""
    folder = tmp_path_factory.mktemp("planned")
    rng = np.random.default_rng(0)
    columns = {
        "sha": pa.array([f"{i % 390:08x}" for i in range(N)]),
        "at": pa.array(range(N)),
        "caption": pa.array([f"a photo of thing {i % 300}" for i in range(N)]),
        "clip": pa.array(rng.random(N)),
        "lang": pa.array(["de", "en"] * (N // 2)),
        "cid": pa.array(rng.integers(0, K, N).astype(np.int32)),
        "d": pa.array(rng.random(N).astype(np.float32)),
        "image": pa.array([b"jpeg"] * N),
    }
    write_table(folder / "in", make_keys(N), make_embeddings(N, DIM, K), n_files=3, **columns)
    np.save(folder / "c.npy", make_embeddings(K, DIM, K))
    pq.write_table(
        pa.table(
            {
                "cluster_id": pa.array(range(K), pa.int32()),
                "centroid": pa.array(make_embeddings(K, DIM, K).tolist(), pa.list_(pa.float32())),
            }
        ),
        folder / "c.parquet",
    )
    return folder


def plan_of(folder: Path, source: Path | str | None = None, **sections: object) -> make.Plan:
    """The plan of a configuration, of which all is well: its text is narrow, its JSON whole, nothing is written."""
    values = config_of(source or folder / "in", folder / "run", **sections)
    if source is None and "path" in sections.get("input", {}):
        values["input"] = sections["input"]
    before = sorted(folder.rglob("*"))
    config = RunConfig.from_dict(values)
    made = plan(config)
    assert [step.judged.step.name for step in made.steps] == [step.name for step in plan_steps(config)]
    assert max(map(len, str(made).splitlines())) <= 100
    assert json.loads(json.dumps(made.to_dict(), allow_nan=False)) == made.to_dict()
    assert "<table>" in made._repr_html_()
    assert sorted(folder.rglob("*")) == before
    return made


DEDUP = {
    "exact": {"columns": ["sha"], "order_by": "at"},
    "minhash": {"column": "caption"},
    "semantic": {"eps": 0.1, "n_clusters": 3},
}
GIVEN = [
    {},
    {"cluster_id": "cid"},
    {"cluster_id": "cid", "centroids": "{tmp}/c.npy"},
    {"cluster_id": "cid", "distance_to_centroid": "d"},
    {"cluster_id": "cid", "distance_to_centroid": "d", "centroids": "{tmp}/c.parquet"},
]
SCORES = [
    None,
    {"column": "clip", "keep_fraction": 0.5, "within": "lang"},
    {"column": "clip", "at_least": 0.3},
    {"expr": "clip > 0.3"},
]
TEXTS = {"texts": {"column": "caption"}, "encoder": "hf:a/b"}
EMBEDS = [
    ([], None),
    ([{**TEXTS, "name": "embedding"}], None),
    ([{**TEXTS, "name": "text"}], {"clip_score": {"image": "embedding", "text": "text"}, "at_least": 0.2}),
    ([{"images": {"column": "image"}, "name": "embedding"}, {**TEXTS, "name": "text"}],
     {"clip_score": {"image": "embedding", "text": "text"}, "keep_fraction": 0.5}),
]  # fmt: skip


CHOSEN = [
    [name for name, flag in zip(DEDUP, flags, strict=True) if flag] for flags in product([0, 1], repeat=3)
]


@pytest.mark.parametrize("names", CHOSEN, ids=str)
def test_every_kind_of_run_has_a_plan(source: Path, names: list[str]):
    dedup = {name: DEDUP[name] for name in names}
    engine = "auto" if len(names) % 2 else "sql"
    for given, score in product(GIVEN, SCORES):
        made = plan_of(
            source,
            input=filled(given, source),
            engine=engine,
            dedup=dedup,
            **({"score_filter": score} if score else {}),
            cluster={} if given else {"n_clusters": K},
        )
        found = made.to_dict()
        assert found["input"]["rows"] == N
        assert found["input"]["rows_are"] == "exact"
        kinds = {name: t["rows_are"] for s in found["steps"] for name, t in s["tables"].items()}
        assert kinds["samples"] == "exact"
        assert (kinds["assignments"] == "exact") == (not dedup and score is None)
        if engine == "sql":
            assert found["engine"]["name"] == "sql"


@pytest.mark.parametrize(("embed", "score"), EMBEDS)
def test_embed(source: Path, embed: list, score: dict | None):
    made = plan_of(source, embed=embed, **({"score_filter": score} if score else {}))
    found = made.to_dict()
    assert found["total"]["not_in_seconds"] == [f"embed_{section['name']}" for section in embed]
    assert len(made.unchecked) == len(embed)


def test_shards(tmp_path: Path):
    """Samples are counted in the headers of the tars, exactly where these are few."""
    write_shards(tmp_path / "in", [30, 1, 41])
    n = len(keys_of([30, 1, 41])) + 3  # each has an __info__.json, which is a sample as any other
    values = config_of(
        "", tmp_path / "run", prune={"n_keep": 30, "keep_ratio": None}, cluster={"n_clusters": 3}
    )
    values["input"] = {"key": "uid"}
    values["embed"] = {"images": {"webdataset": str(tmp_path / "in")}, "encoder": "hf:a/b"}
    found = plan(RunConfig.from_dict(values)).to_dict()
    assert (found["input"]["rows"], found["input"]["rows_are"]) == (n, "exact")
    assert found["input"]["key_type"] is None  # a field of the json
    values["embed"]["images"]["webdataset"] = str(tmp_path / "none")
    with pytest.raises(Exception, match=r"names no \.tar file"):
        plan(RunConfig.from_dict(values))


@pytest.mark.parametrize("form", FORMATS)
def test_formats(tmp_path: Path, form: str):
    given = FORMATS[form](tmp_path / "in")
    values = config_of("", tmp_path / "run", cluster={"n_clusters": 3})
    values["input"] = given
    found = plan(RunConfig.from_dict(values)).to_dict()
    assert found["input"]["rows"] == 300
    assert found["input"]["dimension"] == 8


def test_sql_is_not_guessed(source: Path):
    """A filter makes counts bounds, and nothing says that it is valid."""
    made = plan_of(source, input={"filter": "no such column", "key": {"sql": "concat(key, 'x')"}})
    found = made.to_dict()
    kinds = {name: t["rows_are"] for s in found["steps"] for name, t in s["tables"].items()}
    assert kinds["samples"] == kinds["keep_list"] == "at most"
    assert [text for text in made.unchecked if "input.filter" in text]
    assert [text for text in made.unchecked if "input.key" in text]
    assert found["input"]["key_type"] is None
    assert found["input"]["dimension"] == DIM


def test_a_table_of_the_catalog_needs_a_session(source: Path):
    values = config_of("", source / "run")
    values["input"] = {"table": "default.t"}
    with pytest.raises(NeedsSessionError):
        plan(RunConfig.from_dict(values))


QUOTAS = [
    ({"n_keep": N}, {"n_clusters": K}, True, ""),
    ({"n_keep": 30, "min_per_cluster": 6}, {"n_clusters": K}, False, "prune.min_per_cluster to 5"),
    ({"n_keep": 3}, {"n_clusters": K}, False, "at most 3"),
    ({"keep_ratio": 0.5, "cluster_balance": 1.0}, {"n_clusters": K}, True, ""),
]


@pytest.mark.parametrize(("prune", "cluster", "is_ok", "mend"), QUOTAS)
def test_quotas(source: Path, prune: dict, cluster: dict, is_ok: bool, mend: str):
    quotas = plan_of(source, prune={"keep_ratio": None, **prune}, cluster=cluster).quotas
    assert quotas.is_ok == is_ok
    assert mend in quotas.mend


RUNS = [name for name, case in BAD.items() if case.arguments[:1] == ("run",)]
# What a plan does not look for: it needs a session, or all rows.
UNSEEN = 0.2


@pytest.fixture(scope="module")
def refused() -> list[bool]:
    return []


@pytest.mark.parametrize("name", RUNS)
def test_bad_inputs(tmp_path: Path, name: str, capsys, refused: list[bool]):
    """What a run refuses, a plan refuses in the same words, or it gives a plan; it writes nothing."""
    case = BAD[name]
    prepare(tmp_path, case)
    before = tree(tmp_path)
    arguments = ["plan", *(filled(a, tmp_path) for a in case.arguments[1:] if a != "--fresh")]
    done = in_this_process(arguments, capsys)
    assert tree(tmp_path) == before
    assert "Traceback" not in done.err
    refused.append(done.code not in (0, 1) and not done.out)
    if refused[-1]:
        check_message(done, case.code, [filled(word, tmp_path) for word in case.words])
    elif done.code == 1:
        assert "NeedsSessionError" in done.err
    else:
        assert done.out


def test_most_bad_inputs_are_seen(refused: list[bool]):
    if len(refused) == len(RUNS):
        assert sum(refused) > (1 - UNSEEN) * len(RUNS) - 5


def test_a_run_under_way_is_named(source: Path, tmp_path: Path):
    values = config_of(source / "in", tmp_path / "run", cluster={"n_clusters": K})
    (tmp_path / "run").mkdir()
    lock = {"token": "x", "pid": 1, "host": "elsewhere", "since": "2026-01-01"}
    (tmp_path / "run/lock.json").write_text(json.dumps(lock))
    made = plan(RunConfig.from_dict(values))
    assert "process 1 on elsewhere" in str(made)
    assert made.to_dict()["output"]["in_use"].startswith("process 1 on elsewhere")


def test_an_older_version_is_why(source: Path, tmp_path: Path):
    values = config_of(source / "in", tmp_path / "run", cluster={"n_clusters": K})
    (tmp_path / "run/stages").mkdir(parents=True)
    mark = FinishedStep("ingest", "x", format_version=FORMAT_VERSION, version="0.0.1")
    (tmp_path / "run/stages/ingest.json").write_text(json.dumps(vars(mark)))
    assert EarlierSteps(str(tmp_path / "run")).read_earlier("ingest") == mark
    first, second = plan(RunConfig.from_dict(values)).to_dict()["steps"][:2]
    assert (first["status"], second["status"]) == ("changed", "new")
    assert "version 0.0.1" in first["why"]


def test_paths_as_java_writes_them():
    assert to_java_uri("/a/ü [1]#?%&'+{}.parquet") == "file:/a/ü%20%5B1%5D%23%3F%25&'+%7B%7D.parquet"
    assert to_java_uri("s3a://bucket/a b") == "s3a://bucket/a%20b"


@pytest.mark.parametrize(
    ("n", "text"), [(999, "999 B"), (1000, "1.0 kB"), (10**6 - 1, "1.0 MB"), (5e14, "500 TB")]
)
def test_bytes_for_people(n: float, text: str):
    assert write_bytes(n) == text


def test_html_is_inert(tmp_path: Path):
    write_table(tmp_path / "<b>in", make_keys(40), make_embeddings(40, 4, 3))
    values = config_of(tmp_path / "<b>in", tmp_path / "run", cluster={"n_clusters": 3})
    assert "<b>" not in plan(RunConfig.from_dict(values))._repr_html_()
