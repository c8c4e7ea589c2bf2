"""The metadata of DataComp: Parquet files beside ``.npz`` files of CLIP embeddings.

Imports what is beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from spark_dbp.columns import EMBEDDING
from spark_dbp.errors import InputError
from spark_dbp.io.formats.arrays import find_npz
from spark_dbp.io.formats.pairs import pair_files
from spark_dbp.io.formats.parts import Part
from spark_dbp.io.formats.row_files import ArrayFile, find_table
from spark_dbp.lake import files
from spark_dbp.lake.table_files import map_in_threads


def find_parts(path: str, *, array: str = "l14_img", columns: Sequence[str] | None = None) -> list[Part]:
    """Find the files of a folder of metadata, and of the folders in it.

    Parameters
    ----------
    path : str
    array : str
        ``l14_img``, ``l14_txt``, ``b32_img``, ``b32_txt``, or another array of the ``.npz`` files.
    columns : sequence of str, optional
        Columns of the metadata. By default all.

    Returns
    -------
    list of Part

    Raises
    ------
    InputError
        When a file has no partner, or cannot be read.
    """
    names = files.list_tree(path)
    found = [files.join(path, name) for name in names if not name.rpartition("/")[2].startswith((".", "_"))]
    arrays = [name for name in found if name.endswith(".npz")]
    if not arrays:
        raise InputError(
            f"{path} has no .npz files", mend="give the folder with the .parquet and .npz files of DataComp"
        )
    tables = [name for name in found if name.endswith(".parquet")]
    pairs = pair_files(arrays, tables, lambda name: name.rpartition(".")[0])

    def look(pair: tuple[str, str]) -> Part:
        return Part((ArrayFile(find_npz(pair[0], array), EMBEDDING), find_table(pair[1], columns)))

    return map_in_threads(look, pairs)
