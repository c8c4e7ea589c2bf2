"""The demos' data, and the message where the models are not installed. Needs no torch."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from spark_dbp import demo, demo_data
from spark_dbp.encoders import packaged
from spark_dbp.errors import ConfigError

MODULE = '''
import no_such_module_at_all

def {name}(a):
    """{text}

    More about it.
    """

class Hidden_not:
    "A class of the module {name}."

def _hidden():
    "Not shown to anybody at all."

def short():
    "Too few words."
'''


def test_digits_as_shards(tmp_path: Path):
    images = pytest.importorskip("PIL.Image")
    paths = demo_data.write_digit_shards(str(tmp_path / "in"))
    before = [(path, Path(path).stat().st_mtime_ns) for path in paths]
    assert demo_data.write_digit_shards(str(tmp_path / "in")) == paths
    assert [(path, Path(path).stat().st_mtime_ns) for path in paths] == before
    labels, found = demo_data.read_digit_labels(), {}
    for path in paths:
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        assert len(members) == 3 * 200
        for name, body in members.items():
            key, suffix = name.split(".")
            if suffix == "json":
                found[key] = str(json.loads(body)["label"])
            elif suffix == "png":
                assert images.open(io.BytesIO(body)).size == (96, 96)
    assert found == labels
    assert len(found) == 600
    assert min(list(labels.values()).count(digit) for digit in map(str, range(10))) > 50


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch) -> Path:
    """A package `made_up` and a standard library of a few files, with sources that cannot be run."""
    folders = [tmp_path / "lib" / "made_up", tmp_path / "stdlib"]
    for folder in folders:
        (folder / "tests").mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / "bad.py").write_text("def broken(:\n")
        (folder / "tests" / "t.py").write_text(MODULE.format(name="test", text="This is of no use to users."))
        for name in ("one", "two", "same"):
            text = "Say something that is said once." if name != "one" else "Count all the ones there are."
            (folder / f"{name}.py").write_text(MODULE.format(name=name, text=text))
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.setattr(demo_data, "PACKAGES", {"made-up": "made_up", "absent": "no_such_package_here"})
    monkeypatch.setattr(demo_data.sysconfig, "get_path", lambda name: str(tmp_path / "stdlib"))
    return tmp_path


def test_docstrings_of_packages_that_are_not_imported(made_up: Path):
    path = demo_data.write_docstrings(str(made_up / "in"))
    rows = pq.read_table(path).to_pylist()
    assert [row["key"] for row in rows] == sorted({row["key"] for row in rows})
    ours = {row["key"]: row["text"] for row in rows if row["package"] == "made-up"}
    assert ours["made_up.one.one"] == "Count all the ones there are."
    assert ours["made_up.one.Hidden_not"] == "A class of the module one."
    assert len(ours) == 5  # of two functions that say the same, one
    assert {row["key"] for row in rows if row["package"] == "python"} >= {"one.one", "two.Hidden_not"}
    assert {row["package"] for row in rows} == {"made-up", "python"}
    assert demo_data.read_packages(str(made_up / "in"))["made_up.one.one"] == "made-up"
    assert "made_up" not in sys.modules
    written = next(Path(path).glob("*.parquet")).stat().st_mtime_ns
    demo_data.write_docstrings(str(made_up / "in"))
    assert next(Path(path).glob("*.parquet")).stat().st_mtime_ns == written


def test_fewer_texts_are_the_first_of_more(made_up: Path, monkeypatch):
    chosen = demo_data.choose_texts("made-up")
    monkeypatch.setattr(demo_data, "TEXTS_A_PACKAGE", 2)
    assert demo_data.choose_texts("made-up") == chosen[:2]


def test_all_that_is_missing_is_named_at_once(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        packaged.importlib.util, "find_spec", lambda name: None if name in ("PIL", "torch") else found("json")
    )
    with pytest.raises(ConfigError, match=r"pip install torch pillow$"):
        packaged.check_installed("images")
    with pytest.raises(ConfigError, match=r"torch is not installed: .* needs it\n.*pip install torch$"):
        packaged.check_installed("texts")


@pytest.mark.parametrize("configure", [demo.images_config, demo.texts_config])
def test_a_directory_elsewhere_is_refused(configure):
    with pytest.raises(ConfigError, match="is not on this machine"):
        configure("s3://bucket/demo")
