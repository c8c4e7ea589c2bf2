"""The configuration: what is refused and what the message says."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml
from conftest import ROOT

from spark_dbp.config import RunConfig
from spark_dbp.config_embed import ClipScoreConfig
from spark_dbp.errors import ConfigError, InfeasibleError
from spark_dbp.settings import apply_settings, read_yaml

BASE = {
    "input": {"path": "e"},
    "output": {"path": "o"},
    "cluster": {"n_clusters": 9},
    "prune": {"keep_ratio": 0.5},
}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prune.keep_ration=0.1", "unknown key 'prune.keep_ration'; did you mean 'prune.keep_ratio'"),
        ("prun.keep_ratio=0.1", "unknown key 'prun'; did you mean 'prune'"),
        ("prune.xyz=1", "unknown key 'prune.xyz'; known here: keep_ratio"),
        ("prune.keep_ratio=0", "prune.keep_ratio: .* greater than 0"),
        ("prune.keep_ratio=-0.1", "prune.keep_ratio: .* greater than 0"),
        ("prune.keep_ratio=1.01", "prune.keep_ratio: .* less than or equal to 1"),
        ("prune.keep_ratio=.nan", "prune.keep_ratio: .* finite"),
        ("prune.keep_ratio=true", "prune.keep_ratio: is a truth value"),
        ("prune.keep_ratio=half", "prune.keep_ratio: .* valid number"),
        ("prune.keep_ratio=", "exactly one of prune.keep_ratio and prune.n_keep"),
        ("prune.n_keep=5", "exactly one of prune.keep_ratio and prune.n_keep"),
        ("prune.temperature=0", "prune.temperature: .* greater than 0"),
        ("prune.temperature=.inf", "prune.temperature: .* finite"),
        ("prune.which_to_keep=hardest", "prune.which_to_keep: .*'hard', 'easy', 'random' or 'stratified'"),
        (
            "dedup.semantic={eps: 0.1, n_clusters: 2, which_to_keep: stratified}",
            "- dedup.semantic.which_to_keep: 'stratified' does not say which .* give 'hard', 'easy' or 'random'",
        ),
        (
            "dedup.semantic={eps: 0.1, n_clusters: 2, which_to_keep: hardest}",
            "dedup.semantic.which_to_keep: .*'hard', 'easy' or 'random' .got 'hardest'",
        ),
        ("prune.complexity=density", "prune.complexity: .*'uniform'"),
        ("prune.cluster_balance=2", "prune.cluster_balance"),
        ("cluster.n_clusters=0", "cluster.n_clusters"),
        ("cluster.n_clusters=2.5", "cluster.n_clusters: .*integer"),
        ("cluster.n_clusters=null", "cluster.n_clusters is missing"),
        ("cluster.train=all", "cluster.train"),
        ("input.path=[]", "input.path is empty"),
        ("input.path=null", "exactly one of input.path and input.table"),
        ("input.table=db.t", "exactly one of input.path and input.table"),
        ("input.centroids=c.npy", "input.centroids is given without input.cluster_id"),
        ("output.path=", "output.path"),
        ("output.path=e/run", "output.path e/run lies in input.path e"),
        (
            "output.path=https://user:hunter2@host/x",
            r"output.path 'https://\(redacted\)@host/x' holds credentials",
        ),
        ("output.format=delta", "output.format"),
        ("trie.shards=0", "trie.shards"),
        ("cluster=7", "cluster: .*dictionary"),
    ],
)
def test_refused_with_the_key_by_name(setting, message):
    with pytest.raises(ConfigError, match=f"(?s){message}") as caught:
        RunConfig.from_dict(apply_settings(BASE, [setting]))
    assert caught.value.exit_code == 2
    assert "conf/example.yaml" in str(caught.value)


@pytest.mark.parametrize("item", ["prune.keep_ratio", "=3", "input.path.deep=1"])
def test_malformed_settings(item):
    with pytest.raises(ConfigError, match="--set"):
        apply_settings(BASE, [item])


def test_settings_take_yaml_values_and_spark_names():
    values = apply_settings(BASE, ["prune.keep_ratio=1e-3", "spark.driver.memory=3g", "input.path=[a, b]"])
    config = RunConfig.from_dict(values)
    assert config.prune.keep_ratio == 0.001
    assert config.spark == {"spark.driver.memory": "3g"}
    assert config.input.paths == ["a", "b"]
    assert BASE["prune"] == {"keep_ratio": 0.5}


def test_one_of_ratio_and_number_replaces_the_other():
    config = RunConfig.from_dict(BASE).with_settings(["prune.n_keep=7"])
    assert (config.prune.n_keep, config.prune.keep_ratio) == (7, None)


@pytest.mark.parametrize(
    ("ratio", "rows", "kept"),
    [(0.3, 10, 3), (0.29, 100, 29), (0.1, 1_000_003, 100_000), (1.0, 7, 7), (1e-9, 10**9, 1)],
)
def test_keep_ratio_is_the_decimal_number_written(ratio, rows, kept):
    assert RunConfig.from_dict({**BASE, "prune": {"keep_ratio": ratio}}).prune.count_to_keep(rows) == kept


def test_none_to_keep_is_refused():
    with pytest.raises(InfeasibleError, match=r"prune\.keep_ratio 1e-09 of 10 rows cannot be kept"):
        RunConfig.from_dict({**BASE, "prune": {"keep_ratio": 1e-9}}).prune.count_to_keep(10)


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2", "just text", "\x00"])
def test_files_that_are_no_configuration(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_yaml(path)
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        read_yaml(tmp_path / "missing.yaml")


def test_secrets_are_blanked():
    config = RunConfig.from_dict(
        {
            **BASE,
            "spark": {
                "spark.hadoop.fs.s3a.secret.key": "hunter2",
                "spark.hadoop.fs.s3a.access.key": "hunter2",
                "spark.hadoop.fs.azure.account.key.x": "hunter2",
                "spark.sql.shuffle.partitions": 3,
            },
        }
    )
    assert "hunter2" not in str(config.to_redacted_dict())
    assert config.to_redacted_dict()["spark"]["spark.sql.shuffle.partitions"] == 3


def _keys(model, prefix=""):
    for name, field in model.model_fields.items():
        options = (field.annotation, *get_args(field.annotation))
        sections = [a for a in options if hasattr(a, "model_fields") and a is not ClipScoreConfig]
        if sections and str not in get_args(field.annotation):  # a column may be a text or {sql: ...}
            yield from _keys(sections[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_example_names_every_key_and_only_known_ones():
    text = (ROOT / "conf" / "example.yaml").read_text()
    values = yaml.safe_load(text)
    named = set()
    for section, content in values.items():
        is_leaf = section == "spark" or isinstance(content, str)
        named |= {section} if is_leaf else {f"{section}.{key}" for key in content or {}}
    import re

    section = ""
    for line in text.splitlines():
        if found := re.match(r"(\w+):", line):
            section = found[1]
        elif found := re.match(r"  # ([a-z_]+):", line):
            part = f"{section}.{found[1]}"
            named.add(part)
        elif found := re.match(r"  #   ([a-z_]+):", line):
            named.discard(part)
            named.add(f"{part}.{found[1]}")
    assert named == set(_keys(RunConfig))


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configurations_are_valid(path: Path):
    config = RunConfig.from_yaml(path)
    if path.name == "laion_dedup_280m.yaml":
        assert (config.cluster.n_clusters, config.prune.temperature, config.prune.n_neighbors) == (
            500,
            0.1,
            20,
        )
    if path.name == "datacomp_medium.yaml":
        assert config.cluster.n_clusters == 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("key: no", ["input.key", "the truth value false", "key: 'no'"]),
        ("embedding: 0", ["input.embedding", "the number 0", "embedding: '0'"]),
        ("cluster_id: 2020-01-01", ["input.cluster_id", "the date 2020-01-01", "cluster_id: '2020-01-01'"]),
        ("key:", ["input.key: is empty"]),
        ("table: yes", ["input.table", "table: 'yes'"]),
        ("path: 2024", ["input.path", "path: '2024'"]),
        ("path: [a, no]", ["input.path.1", "quotes around it: 'no'"]),
        ("key: {sql: 3}", ["input.key.sql", "sql: '3'"]),
        ("key: {sqll: a}", ["did you mean 'input.key.sql'"]),
        ("key: {sql: a, as: b}", ["unknown key 'input.key.as'"]),
        ("key: [a]", ["input.key: Input should be a valid string"]),
    ],
)
def test_names_that_yaml_reads_as_something_else(text, words):
    values = yaml.safe_load(
        "input: {path: e}\noutput: {path: o}\ncluster: {n_clusters: 9}\nprune: {keep_ratio: 0.5}"
    )
    values["input"] |= yaml.safe_load(text)
    if text.startswith("table"):
        del values["input"]["path"]
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(values)
    lines = str(caught.value).splitlines()
    for word in words:
        assert word in str(caught.value)
    if "YAML" in str(caught.value):
        assert len(lines) == 3  # nothing about the other forms that the value might have had


def test_sql_is_found_and_replaced_wherever_a_column_may_stand():
    values = {
        "input": {"path": "e", "key": {"sql": "now()"}, "filter": "now()"},
        "output": {"path": "now()"},
        "dedup": {"exact": {"columns": ["now()", {"sql": "now()"}]}, "minhash": {"column": {"sql": "x"}}},
        "cluster": {"n_clusters": 9},
        "prune": {"keep_ratio": 0.5},
        "trie": {"key": "now()"},
    }
    config = RunConfig.from_dict(values)
    assert [key for key, _ in config.list_sql()] == [
        "input.filter", "trie.key", "input.key", "dedup.exact.columns", "dedup.minhash.column",
    ]  # fmt: skip
    replaced = config.replace_sql({"now()": "3"})
    assert (str(replaced.input.key), replaced.input.filter, replaced.trie.key) == ("3", "3", "3")
    assert [str(column) for column in replaced.dedup.exact.columns] == ["now()", "3"]
    assert (replaced.output.path, replaced.dedup.columns) == ("now()", ["now()", "3", "x"])
