"""What clip-retrieval writes: arrays of embeddings beside Parquet files of metadata.

Imports what is beside it.

::

    img_emb/img_emb_0.npy      text_emb/text_emb_0.npy      metadata/metadata_0.parquet

Row by row they are of the same samples. Partitions without samples are not written, so numbers may be
missing.
"""

from __future__ import annotations

from collections.abc import Sequence

from spark_dbp.columns import EMBEDDING
from spark_dbp.errors import InputError
from spark_dbp.io.formats.arrays import find_npy
from spark_dbp.io.formats.pairs import pair_files
from spark_dbp.io.formats.parts import Part
from spark_dbp.io.formats.row_files import ArrayFile, find_table
from spark_dbp.lake import files
from spark_dbp.lake.table_files import map_in_threads


def find_parts(path: str, *, array: str = "img_emb", columns: Sequence[str] | None = None) -> list[Part]:
    """Find the files of a folder that clip-retrieval wrote.

    Parameters
    ----------
    path : str
        Folder with ``metadata`` and the folder `array`.
    array : str
        ``img_emb`` or ``text_emb``.
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
    arrays = files.list_sizes(files.join(path, array))
    tables = files.list_sizes(files.join(path, "metadata"))
    if not arrays:
        folders = sorted(name for name, is_folder in files.list_kinds(path).items() if is_folder)
        raise InputError(
            f"{path} has no folder {array!r} with .npy files",
            mend=f"it has: {', '.join(folders) or 'no folders'}; input.options.array names the folder",
        )
    pairs = pair_files(
        {files.join(path, array, name) for name in arrays if name.endswith(".npy")},
        {files.join(path, "metadata", name) for name in tables if name.endswith(".parquet")},
    )

    def look(pair: tuple[str, str]) -> Part:
        return Part((ArrayFile(find_npy(pair[0]), EMBEDDING), find_table(pair[1], columns)))

    return map_in_threads(look, pairs)
