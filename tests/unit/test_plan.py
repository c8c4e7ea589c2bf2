"""The plan of a run, looked at without running anything: what steps need, write, and in which order."""

from __future__ import annotations

from itertools import product

import pytest
from conftest import config_of

from spark_dbp import RunConfig, plan_steps
from spark_dbp.steps import CENTROIDS, INPUT

DEDUP = {
    "exact": {"columns": ["sha"], "order_by": "at"},
    "minhash": {"column": "caption"},
    "semantic": {"eps": 0.1, "n_clusters": 3},
}
SEMANTIC_GIVEN = {"eps": 0.1}  # the given clusters
GIVEN = [
    {},
    {"cluster_id": "cid"},
    {"cluster_id": "cid", "centroids": "c.npy"},
    {"cluster_id": "cid", "distance_to_centroid": "d"},
    {"cluster_id": "cid", "distance_to_centroid": "d", "centroids": "c.npy"},
]
# No filter on a score, or one on a column of the input.
FILTERS = [None, {"column": "clip", "keep_fraction": 0.5, "within": "lang"}]
CASES = [
    (dedup, given, score_filter)
    for score_filter in FILTERS
    for flags in product([False, True], repeat=3)
    for chosen in [{name: DEDUP[name] for name, flag in zip(DEDUP, flags, strict=True) if flag}]
    for given in GIVEN
    for dedup in [
        chosen,
        *([{**chosen, "semantic": SEMANTIC_GIVEN}] if "semantic" in chosen and given else []),
    ]
]


def plan(dedup: dict, given: dict, **sections):
    return plan_steps(RunConfig.from_dict(config_of("in", "out", dedup=dedup, input=given, **sections)))


def names(steps) -> list[str]:
    return [step.name for step in steps]


@pytest.mark.parametrize(("dedup", "given", "score_filter"), CASES, ids=str)
def test_a_step_needs_what_earlier_ones_write(dedup, given, score_filter):
    written: set[str] = set()
    for step in plan(dedup, given, score_filter=score_filter):
        assert set(step.needs.tables) <= written, step.name
        assert not set(step.writes) & written, "a table is written once"
        assert step.writes
        written |= set(step.writes)
        # Nothing goes back to the input after ingest.
        assert (INPUT in step.needs.sources) == bool(step.needs.columns) == (step.name == "ingest")
    assert ("survivors" in written) == bool(dedup)
    assert ("filtered" in written) == (score_filter is not None)


@pytest.mark.parametrize(("dedup", "given", "score_filter"), CASES, ids=str)
def test_vectors_are_written_again_only_for_those_who_read_them_twice(dedup, given, score_filter):
    steps = plan(dedup, given, score_filter=score_filter)
    for number, step in enumerate(steps):
        if step.name.endswith("survivors") or step.name == "score_filter":
            readers = [later for later in steps[number + 1 :] if step.writes[0] in later.needs.tables]
            passes = sum(reader.vector_passes for reader in readers)
            assert step.build.keywords["with_vectors"] == (passes > 1)
    columns = steps[0].needs.columns
    needs_vectors = any(step.vector_passes for step in steps[1:])
    assert ("embedding" in columns) == needs_vectors == steps[0].build.keywords["has_vectors"]


def test_the_order_of_a_whole_run():
    assert names(plan(DEDUP, {})) == [
        "ingest", "exact_dedup", "exact_survivors", "minhash_dedup", "minhash_survivors", "semantic_clusters",
        "semantic_dedup", "survivors", "cluster", "assign", "cluster_stats", "quota", "select", "keep_trie",
    ]  # fmt: skip
    assert names(plan({"semantic": DEDUP["semantic"]}, {}))[:4] == [
        "ingest", "semantic_clusters", "semantic_dedup", "survivors",
    ]  # fmt: skip


def test_columns_that_deduplication_looks_at_are_read_once_and_the_key_travels_as_such():
    (ingest, *_) = plan(
        {"exact": {"columns": ["sha", "key"], "order_by": "sha"}, "minhash": {"column": "key"}}, {}
    )
    assert ingest.needs.columns == ("key", "embedding", "sha")
    assert ingest.build.keywords["carried"] == ["sha"]


def test_the_score_filter_comes_between_deduplication_and_clustering():
    steps = plan(DEDUP, {}, score_filter=FILTERS[1])
    assert names(steps)[6:10] == ["semantic_dedup", "survivors", "score_filter", "cluster"]
    at = {step.name: step for step in steps}
    assert at["score_filter"].needs.tables == ("survivors",)
    assert at["cluster"].needs.tables == ("filtered",)
    assert at["ingest"].build.keywords["carried"] == ["sha", "at", "caption", "clip", "lang"]
    assert at["survivors"].build.keywords["carried"] == ("clip", "lang")
    alone = plan({}, {}, score_filter={"expr": "clip > 0.3 AND lang = 'en'"})
    assert names(alone)[:3] == ["ingest", "score_filter", "cluster"]
    assert alone[0].build.keywords["carried"] == ["clip > 0.3 AND lang = 'en'"]
    assert plan({}, {}, score_filter={"column": "key", "at_least": 3})[0].build.keywords["carried"] == []


def test_the_score_of_two_embeddings_needs_their_tables():
    text = {"name": "text", "texts": {"column": "caption"}, "encoder": "hf:a/b"}
    score = {"clip_score": {"image": "embedding", "text": "text"}, "at_least": 0.3}
    step = {step.name: step for step in plan({}, {}, embed=[text], score_filter=score)}["score_filter"]
    assert step.needs.tables == ("samples", "embeddings_text")
    assert step.vector_passes == 1


def leaves(values: dict, prefix: str = ""):
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


# Where a run is written, and what Spark is told, change no answer.
WITHOUT_EFFECT = {
    "embed",
    "engine",
    "output.path",
    "output.format",
    "report.image",
    "report.caption",
    "output.table",
    "output.table_format",
    "spark",
}


TEXTS = {"texts": {"column": "caption"}, "encoder": "hf:a/b"}
SHARDS_OF = {"images": {"webdataset": "s3://b/{0..9}.tar"}}


def plan_embed(embed, **sections):
    values = config_of("in", "out", embed=embed, **sections)
    return plan_steps(RunConfig.from_dict(values))


def test_what_is_embedded_comes_first():
    steps = plan_embed(TEXTS, dedup={"exact": DEDUP["exact"]}, score_filter={"column": "clip", "at_least": 1})
    assert names(steps)[:4] == ["embed_embedding", "ingest", "exact_dedup", "survivors"]
    first, ingest = steps[:2]
    assert first.writes == ("embeddings", "rejected", "embeddings_files")
    assert first.needs.sources == (INPUT,)
    assert first.needs.columns == ("key", "caption", "sha", "at", "clip")
    assert first.needs.carried == ("sha", "at", "clip")
    assert first.needs.encoders == ("embedding",)
    assert (ingest.needs.sources, ingest.needs.tables) == ((), ("embeddings",))
    two = plan_embed([TEXTS | {"name": "text"}])
    assert names(two)[:3] == ["embed_text", "ingest", "cluster"]
    assert two[1].needs.columns == ("key", "embedding")
    values = config_of("in", "out", embed=SHARDS_OF)
    del values["input"]
    steps = plan_steps(RunConfig.from_dict(values))
    assert names(steps)[:4] == ["list_shards", "embed_embedding", "ingest", "cluster"]


def test_every_setting_of_embed_that_changes_vectors_is_needed():
    config = RunConfig.from_dict(config_of("in", "out", embed=TEXTS))
    needed = set(plan_steps(config)[0].needs.settings)
    without_effect = {"name", "batch_size", "device", "workers_per_gpu", "decode_threads"}
    for key in type(config.embed[0]).model_fields:
        assert (f"embed.embedding.{key}" in needed) != (key in without_effect), key
        config.value_at(f"embed.embedding.{key}")


def test_every_setting_is_needed_by_a_step():
    """A setting that no step names would be no reason to compute anything anew."""
    sections = {"dedup": DEDUP, "score_filter": FILTERS[1]}
    everything = RunConfig.from_dict(config_of("in", "out", **sections)).model_dump()
    plans = [plan(DEDUP, given, score_filter=FILTERS[1]) for given in (GIVEN[0], GIVEN[2])]
    needed = {path for steps in plans for step in steps for path in step.needs.settings}
    for leaf in leaves(everything):
        covered = any(leaf == path or leaf.startswith(f"{path}.") for path in needed)
        assert covered != (leaf in WITHOUT_EFFECT), leaf


def test_settings_that_are_needed_exist():
    config = RunConfig.from_dict(config_of("in", "out", dedup=DEDUP))
    for step in plan(DEDUP, {}):
        for path in step.needs.settings:
            config.value_at(path)  # raises KeyError for a name that is none


def test_statistics_need_the_centroids_and_given_ones_the_file():
    steps = {step.name: step for step in plan({}, {"cluster_id": "cid", "centroids": "c.npy"})}
    assert "centroids" in steps["cluster_stats"].needs.tables
    assert steps["cluster"].needs.sources == (CENTROIDS,)


@pytest.mark.parametrize(
    ("given", "passes", "writes_centroids", "reads_the_file"),
    [
        (GIVEN[1], 2, True, False),  # distances to the means
        (GIVEN[2], 1, True, True),  # distances to the given centroids
        (GIVEN[3], 0, False, False),  # distances as given
        (GIVEN[4], 0, True, True),
    ],
)
def test_semantic_deduplication_takes_what_is_given(given, passes, writes_centroids, reads_the_file):
    step = next(s for s in plan({"semantic": SEMANTIC_GIVEN}, given) if s.name == "semantic_clusters")
    assert step.vector_passes == passes
    assert step.writes[-1] == "semantic_assignments"
    assert ("semantic_centroids" in step.writes) == writes_centroids
    assert (CENTROIDS in step.needs.sources) == reads_the_file
    assert ("input.centroids" in step.needs.settings) == reads_the_file
    own = next(s for s in plan({"semantic": DEDUP["semantic"]}, given) if s.name == "semantic_clusters")
    assert (own.vector_passes, own.needs.sources) == (2, ())  # clusters of its own, whatever is given


@pytest.mark.parametrize("others", [{}, {"exact": DEDUP["exact"]}, {"minhash": DEDUP["minhash"]}])
def test_embeddings_are_read_when_a_step_that_runs_goes_over_them(others):
    given = GIVEN[4]
    assert "embedding" not in plan(others, given)[0].needs.columns
    assert "embedding" in plan({**others, "semantic": SEMANTIC_GIVEN}, given)[0].needs.columns
