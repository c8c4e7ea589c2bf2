"""Bad configurations and arguments: refused before anything of Spark is imported."""

from __future__ import annotations

import sys

import pytest
from bad_inputs import CASES, check_refused, in_this_process

NAMES = [name for name, case in CASES.items() if not case.needs_spark]


@pytest.mark.parametrize("name", NAMES)
def test_refused_without_spark(capsys, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "pyspark", None)  # whoever imports it fails
    check_refused(lambda arguments: in_this_process(arguments, capsys), CASES[name], tmp_path)
