"""The dry run (`plan`) without a session: every configuration gives a plan, or is refused as a run would."""

from __future__ import annotations

import json
import subprocess
import sys
import time
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

from spark_dbp import RunConfig, plan, plan_quotas, plan_steps
from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.explore.plan import make
from spark_dbp.explore.plan.costs import Machine
from spark_dbp.explore.plan.feasible import judge_quotas
from spark_dbp.explore.plan.look import to_java_uri
from spark_dbp.explore.plan.seen import Count
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

    monkeypatch.setattr(make, "borrow_session", refuse)
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
    ({"n_keep": 30, "min_per_cluster": 6}, {"n_clusters": K}, True, "prune.min_per_cluster to 5"),
    ({"n_keep": 3}, {"n_clusters": K}, True, "at most 3"),
    ({"n_keep": 3, "min_per_cluster": 4}, {"n_clusters": K}, False, "keep at least"),
    ({"keep_ratio": 0.5, "cluster_balance": 1.0}, {"n_clusters": K}, True, ""),
]


@pytest.mark.parametrize(("prune", "cluster", "is_ok", "mend"), QUOTAS)
def test_quotas(source: Path, prune: dict, cluster: dict, is_ok: bool, mend: str):
    quotas = plan_of(source, prune={"keep_ratio": None, **prune}, cluster=cluster).quotas
    assert quotas.is_ok == is_ok
    assert mend in quotas.mend


def test_clusters_smaller_than_their_floor(source: Path, tmp_path: Path):
    """Of a large cluster and small ones floors take little: a plan without their sizes cannot refuse."""
    cid = pa.array([0] * 390 + list(range(1, K)) * 2)
    write_table(tmp_path / "in", make_keys(N), make_embeddings(N, DIM, K), cid=cid)
    given = {"path": str(tmp_path / "in"), "cluster_id": "cid", "centroids": str(source / "c.npy")}
    quotas = plan_of(
        tmp_path, input=given, prune={"n_keep": 80, "min_per_cluster": 60, "keep_ratio": None}
    ).quotas
    assert quotas.is_ok
    assert "met only if" in quotas.why
    made = plan_quotas(np.bincount(cid), np.ones(K), np.ones(K), 80, min_per_cluster=60)
    assert made["quota"].sum() == 80


@pytest.mark.parametrize(("kind", "is_ok"), [("exact", False), ("at most", False), ("about", True)])
def test_of_an_estimate_nothing_is_certain(source: Path, kind: str, is_ok: bool):
    values = config_of(
        source / "in", source / "run", prune={"n_keep": 500, "keep_ratio": None}, cluster={"n_clusters": K}
    )
    quotas = judge_quotas(RunConfig.from_dict(values), Count(N, kind), Count(K))
    assert (quotas.is_ok, "met only if" in quotas.why) == (is_ok, is_ok)


def test_only_rows_that_are_certain_are_too_many_for_the_driver(source: Path, monkeypatch):
    monkeypatch.setattr(make, "read_memory_limit", lambda: 1000)
    plan_of(source, input={"filter": "at < 4"}, cluster={"n_clusters": K})
    with pytest.raises(SparkDbpError, match="training sample"):
        plan_of(source, cluster={"n_clusters": K})


SCORED = [
    (pa.array(range(N)), "exact"),
    (pa.array([None, *range(N - 1)]), "at most"),
    (pa.array(np.arange(N) / 2), "at most"),  # footers do not see NaN
]


@pytest.mark.parametrize(("scores", "kind"), SCORED)
def test_rows_without_a_score_do_not_count(tmp_path: Path, scores: pa.Array, kind: str):
    write_table(tmp_path / "in", make_keys(N), make_embeddings(N, DIM, K), n_files=2, score=scores)
    made = plan_of(
        tmp_path, cluster={"n_clusters": K}, score_filter={"column": "score", "keep_fraction": 0.5}
    )
    kinds = {name: table.rows.kind for step in made.steps for name, table in step.tables.items()}
    assert kinds["filtered"] == kinds["keep_list"] == kind


@pytest.mark.parametrize(
    ("bad", "most"), [({}, 0), ({"on_bad_items": "drop", "max_bad_share": 0.25}, N // 4)]
)
def test_items_that_may_be_bad(source: Path, bad: dict, most: int):
    made = plan_of(source, embed=[{**TEXTS, "name": "embedding", **bad}])
    rejected = next(step.tables["rejected"] for step in made.steps if "rejected" in step.tables)
    assert rejected.rows == Count(most, "at most")
    assert all(
        table.is_assumed for step in made.steps for name, table in step.tables.items() if name == "embeddings"
    )


ML = pa.struct(
    [
        ("type", pa.int8()),
        ("size", pa.int32()),
        ("indices", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float64())),
    ]
)
DENSE, SPARSE = (
    {"type": 1, "size": None, "indices": None},
    {"type": 0, "size": DIM, "indices": list(range(DIM))},
)
ML_TYPE = {"type": "udt", "class": "org.apache.spark.ml.linalg.VectorUDT", "pyClass": "pyspark.ml.linalg.VectorUDT",
    "sqlType": {"type": "struct", "fields": [
        {"name": "type", "type": "byte", "nullable": False, "metadata": {}},
        {"name": "size", "type": "integer", "nullable": True, "metadata": {}},
        {"name": "indices", "type": {"type": "array", "elementType": "integer", "containsNull": False},
         "nullable": True, "metadata": {}},
        {"name": "values", "type": {"type": "array", "elementType": "double", "containsNull": False},
         "nullable": True, "metadata": {}}]}}  # fmt: skip
ML_SCHEMA = {"type": "struct", "fields": [
    {"name": "key", "type": "string", "nullable": True, "metadata": {}},
    {"name": "emb", "type": ML_TYPE, "nullable": True, "metadata": {}}]}  # fmt: skip
VECTORS = [
    ("emb", lambda x: pa.array([[row] for row in x], pa.list_(pa.list_(pa.float32())))),
    ("emb", lambda x: pa.array([[row] for row in x], pa.list_(pa.list_(pa.float64(), DIM), 1))),
    ("emb", lambda x: pa.array([[{"v": v} for v in row] for row in x])),
    ("emb.a.v", lambda x: pa.array([{"a": {"v": row}} for row in x])),
    ("emb.v", lambda x: pa.array([[{"v": v, "w": 1} for v in row] for row in x])),
    ("emb", lambda x: pa.array([{**(DENSE, SPARSE)[n % 2], "values": row} for n, row in enumerate(x)], ML)),
]


@pytest.mark.parametrize(("name", "make_column"), VECTORS)
def test_the_dimension_of_vectors_in_other_forms(tmp_path: Path, name: str, make_column):
    column = make_column([[float(v) for v in row] for row in make_embeddings(N, DIM, K)])
    table = pa.table({"key": make_keys(N), "emb": column})
    if column.type == ML:
        table = table.replace_schema_metadata(
            {"org.apache.spark.sql.parquet.row.metadata": json.dumps(ML_SCHEMA)}
        )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in/0.parquet", row_group_size=150)
    given = {"path": str(tmp_path / "in"), "embedding": name}
    made = plan_of(tmp_path, input=given, cluster={"n_clusters": K})
    assert made.seen.dimension == DIM
    assert not made.assumes
    assert made.unchecked == []
    assert made.seen.n_checked == 3 * 64
    assert made.steps[0].tables["samples"].bytes < N * (4 * DIM + 20) + 2000


def test_what_is_not_one_by_d_is_said(tmp_path: Path):
    column = pa.array([[[1.0, 2.0]]] * (N - 1) + [[[1.0], [2.0]]])
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"key": make_keys(N), "embedding": column[::-1]}), tmp_path / "in/0.parquet")
    with pytest.raises(InputError, match="1 x d"):
        plan_of(tmp_path, cluster={"n_clusters": K})


def test_an_assumed_dimension_makes_bytes_estimates(source: Path):
    made = plan_of(source, embed=[{**TEXTS, "name": "embedding"}])
    assert made.assumes
    assert made.to_dict()["total"]["dimension_assumed"]
    assert [line for line in str(made).splitlines() if line.startswith("total") and " ~ " in line]
    for name in ("samples", "embeddings", "centroids"):
        sizes = [step.tables[name] for step in made.steps if name in step.tables]
        assert all(size.bytes_are == "about" for size in sizes), name


@pytest.mark.parametrize("given", [0, -5, "abc", 2.5, 3_000_000_000, True])
def test_partitions_that_spark_refuses(source: Path, given: object):
    with pytest.raises(ConfigError, match=r"spark\.sql\.shuffle\.partitions cannot be"):
        plan_of(source, spark={"spark.sql.shuffle.partitions": given}, cluster={"n_clusters": K})


@pytest.mark.parametrize("given", ["auto", "7", 9])
def test_partitions_that_spark_takes(source: Path, given: object):
    plan_of(source, spark={"spark.sql.shuffle.partitions": given}, cluster={"n_clusters": K})


SILENT = [{"path": "s3://silent/in"}, {"cluster_id": "cid", "centroids": "s3://silent/c.npy"}]


@pytest.mark.parametrize("given", SILENT)
def test_a_store_that_does_not_answer(source: Path, given: dict, monkeypatch):
    """Also one that has the centroids only: this process does not wait for it."""
    monkeypatch.setattr(make, "look", lambda *_: time.sleep(3))
    monkeypatch.setattr(make, "_PATIENCE", 0.05)
    begun = time.monotonic()
    with pytest.raises(NeedsSessionError):
        plan_of(source, input={"path": str(source / "in"), "key": "key", "embedding": "embedding", **given},
                **({} if "cluster_id" in given else {"cluster": {"n_clusters": K}}))  # fmt: skip
    assert time.monotonic() - begun < 2


def test_an_output_that_stops_to_answer(source: Path, monkeypatch):
    monkeypatch.setattr(make, "_OUTPUT_PATIENCE", 0.05)
    monkeypatch.setattr(make.files, "list_names", lambda _: [])
    monkeypatch.setattr(make, "_make_plan", lambda *_: time.sleep(3))
    values = config_of(source / "in", "s3://silent/run", cluster={"n_clusters": K})
    with pytest.raises(ConfigError, match=r"output\.path s3://silent/run: no answer within"):
        plan(RunConfig.from_dict(values))


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


def test_a_process_does_not_end_with_a_silent_store(tmp_path: Path):
    """As pyarrow, whose end waits for its requests: what is given up does not hold up the exit code."""
    code = f"""
import atexit, sys, time
from spark_dbp.cli import main
from spark_dbp.engine.patience import finish_within
atexit.register(time.sleep, 60)
try:
    finish_within(0.01, lambda: time.sleep(60))
except TimeoutError:
    sys.argv = ["spark-dbp", "plan", {str(tmp_path / "none.yaml")!r}]
    sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False
    )
    assert done.returncode == 2
    assert "none.yaml" in done.stderr
