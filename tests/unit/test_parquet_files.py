"""Parquet files of other people, as this process opens them itself."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_inputs import encrypted

from spark_dbp.lake.parquet_files import open_unencrypted


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_an_encrypted_file_is_refused_before_it_is_looked_into(tmp_path, plaintext_footer):
    encrypted(plaintext_footer)(tmp_path / "in")
    file = next((tmp_path / "in").glob("*.parquet"))
    with pytest.raises(OSError, match="encrypted"):
        open_unencrypted(str(file))
    # This is why: pyarrow ends the process. When it no longer does, the check can go.
    ask = "import sys, pyarrow.parquet as pq; pq.read_metadata(sys.argv[1]).row_group(0).column(0)"
    done = subprocess.run([sys.executable, "-c", ask, str(file)], capture_output=True, check=False)
    assert (done.returncode < 0) == plaintext_footer


def test_another_file_is_opened(tmp_path):
    pq.write_table(pa.table({"key": ["a", "b"]}), tmp_path / "a.parquet")
    assert open_unencrypted(str(tmp_path / "a.parquet")).metadata.num_rows == 2
