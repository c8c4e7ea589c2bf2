"""Paths as people write them: forms that are refused, home directories, Hadoop's globs."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import config_of

from spark_dbp import RunConfig
from spark_dbp.cli import make_parser
from spark_dbp.commands.ending import tell_next
from spark_dbp.errors import ConfigError
from spark_dbp.lake import files, paths


def configured(source="in", out="run", **more) -> RunConfig:
    return RunConfig.from_dict(config_of(source, out, **more))


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.parquet", "_x.parquet", True),
        ("part-?", "part-1", True),
        ("part-?", "part-12", False),
        ("{a,b}x", "bx", True),
        ("{a,b}x", "cx", False),
        ("[!_.]*", "_x", False),
        ("[^_.]*", ".x", False),
        ("[a-c]1", "b1", True),
        (r"\[v2\]", "[v2]", True),
        ("[v2]", "[v2]", False),
        ("a.b", "axb", False),
        ("a+(b)$", "a+(b)$", True),
        ("{x[12],y}", "x2", True),
        ("a}", "a}", True),
        ("a,b", "a,b", True),
        ("*", "a\nb", True),
    ],
)
def test_globs_are_those_of_hadoop(pattern, name, matches):
    assert bool(paths.compile_name(pattern).fullmatch(name)) is matches


@pytest.mark.parametrize("pattern", ["[ab", "{a,b", "[z-a]"])
def test_globs_without_end(pattern):
    with pytest.raises(ValueError, match=r"not closed|no glob"):
        paths.compile_name(pattern)


@pytest.mark.parametrize("name", ["x [v2]", "{a,b}", "a*b?", "back\\slash", "[", "plain"])
def test_an_escaped_name_names_itself_only(name):
    pattern = paths.escape_glob(name)
    assert paths.compile_name(pattern).fullmatch(name)
    assert paths.is_literal(pattern)
    assert paths.unescape_glob(pattern) == name


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ("s3:/bucket/x", "s3://bucket/x"),
        ("s3a:///bucket/x", "s3a://bucket/x"),
        ("gs:bucket/x", "gs://bucket/x"),
        ("abfss:/c@a.dfs.core.windows.net/x", "abfss://c@a.dfs.core.windows.net/x"),
        ("file://data/x", "file:///data/x"),
        ("file:data/x", "file:///data/x"),
        ("S3://bucket/x", "s3://bucket/x"),
        ("HDFS:/x", "hdfs:/x"),
    ],
)
def test_forms_that_mean_something_else_are_refused_with_the_one_that_works(given, form):
    for name in ("input.path", "output.path", "input.centroids"):
        section, key = name.split(".")
        values = {section: {key: given, **({"cluster_id": "c"} if key == "centroids" else {})}}
        with pytest.raises(ConfigError) as caught:
            configured(**values) if key == "centroids" else RunConfig.from_dict(
                config_of("in", "run", **values)
            )
        assert f"{name} {given!r}: write {form}" in str(caught.value)


@pytest.mark.parametrize("root", ["dbfs:/", "viewfs://cluster/", "hdfs:///"])
def test_what_only_spark_opens_is_let_through(root):
    """Whether this process reaches it through the session is known when there is one."""
    more = {"input": {"cluster_id": "c", "centroids": f"{root}c.npy"}}
    config = configured(f"{root}x", f"{root}run", **more)
    assert (config.input.paths, config.output.path) == ([f"{root}x"], f"{root}run")


def test_dbfs_is_where_databricks_shows_it():
    with pytest.raises(ConfigError, match="lies in"):
        configured("dbfs:/x", "/dbfs/x/run")


def test_one_slash_is_as_good_as_three_where_there_is_no_bucket():
    assert files.normalize("hdfs:/x/run/") == "hdfs:///x/run"
    assert files.join(files.normalize("hdfs:/x/run"), "tables") == "hdfs:///x/run/tables"
    assert files.make_relative("hdfs:///x/a/t", "hdfs:///x/b") == "../a/t"
    assert files.normalize("file:/x") == "/x"
    assert configured("file:/x/in", "hdfs:/x/run").output.path == "hdfs:/x/run"
    with pytest.raises(ConfigError, match="lies in"):
        configured("hdfs:/x", "hdfs:///x/run")
    with pytest.raises(ConfigError, match="lies in"):
        configured("file:/x", "/x/run")


def test_home_directories_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = {"path": ["~/in", "/x/~y"], "cluster_id": "c", "centroids": "~/c.parquet"}
    config = configured(out="~/run", input=given)
    assert config.input.paths == ["/home/me/in", "/x/~y"]
    assert config.input.centroids == "/home/me/c.parquet"
    assert config.output.path == "/home/me/run"
    with pytest.raises(ConfigError, match=r"'~nobody-of-this-name/x' names the home directory of nobody"):
        configured("~nobody-of-this-name/x")
    with pytest.raises(ConfigError, match="nobody"):
        configured(out="~nobody-of-this-name/x")
    with pytest.raises(ConfigError, match="lies in"):
        configured("~", "/home/me/run")
    assert files.normalize("./~x") == f"{Path.cwd()}/~x"


@pytest.mark.parametrize(
    ("source", "out", "words"),
    [
        ("{t}/in", "{t}/in/run", "lies in input.path"),
        ("{t}/*", "{t}/run", "lies in input.path"),
        ("{t}/[r]un/*", "{t}/run/x", "lies in input.path"),
        ("{t}/{run/x,y}", "{t}/run/x/y", "lies in input.path"),
        (r"{t}/\[v2\]", "{t}/[v2]/run", "lies in input.path"),
        ("{t}/[v2]", "{t}/[v2]/run", "lies in input.path"),  # it exists, so it is no glob
        ("{t}/link", "{t}/[v2]/run", "lies in input.path"),
        ("{t}/run/tables/[a]*", "{t}/run", "lies in output.path"),
        ("{t}/[v2]/x", "{t}/[v2]", "lies in output.path"),
        ("{t}/[v3]", "{t}/[v3]/run", None),  # a glob of folders v and 3
        ("{t}/{a,b}", "{t}/c/run", None),
        ("{t}/[!_]*/x", "{t}/_run", None),
        ("{t}/[ab", "{t}/[ab/run", None),  # Spark refuses the glob
    ],
)
def test_an_output_in_the_input_or_around_it(tmp_path, source, out, words):
    (tmp_path / "[v2]/x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "[v2]")
    source, out = (path.replace("{t}", str(tmp_path)) for path in (source, out))
    if words is None:
        assert configured(source, out).output.path == out
    else:
        with pytest.raises(ConfigError, match=words):
            configured(source, out)


def test_what_the_summary_says_to_paste_can_be_pasted():
    at = '/data/my "run" [v2]\'s $HOME'
    document = {"accounting": {"kept": 300}, "summary": {"rows_to_prune": 1000}}
    run = SimpleNamespace(path=at, document=document, table_path=lambda table: f"{at}/tables/{table}")
    join, loader, *commands = tell_next(run).splitlines()[1:]
    assert eval(join.split("spark.read.parquet(")[1].split(").join")[0]) == paths.escape_glob(
        f"{at}/tables/keep_list"
    )
    assert eval(loader.split("KeepTrie.open(")[1][:-1]) == at
    for line in commands:
        words = shlex.split(line.split("  ")[-1])
        parsed = make_parser().parse_args(words[1:])
        assert (words[0], parsed.run) == ("spark-dbp", at)
        if parsed.command_name == "select":
            assert parsed.out == f"{at}-0.2"
