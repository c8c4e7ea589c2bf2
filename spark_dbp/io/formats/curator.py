"""What NeMo Curator writes: Parquet files of embeddings, and folders of its clusters.

Imports what is beside it.

::

    embeddings/*.parquet                                        id, embeddings, further columns
    kmeans_results/centroid=7/*.parquet                         with cosine_dist_to_cent
    clustering_results/embs_by_nearest_center/nearest_cent=7/   the same in versions before 1.0

Newer versions write the bits of float16 as lists of UINT16.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from spark_dbp.columns import CLUSTER_ID, DISTANCE, EMBEDDING
from spark_dbp.errors import InputError
from spark_dbp.io.formats.parts import Part
from spark_dbp.io.formats.row_files import Constant, RowFile, find_table
from spark_dbp.lake import files
from spark_dbp.lake.table_files import map_in_threads

_FOLDER = re.compile(r"(?:^|/)(?:centroid|nearest_cent)=(\d+)/[^/]*$")
_COSINE = "cosine_dist_to_cent"


def find_parts(
    path: str, *, embedding_column: str = "embeddings", columns: Sequence[str] | None = None
) -> list[Part]:
    """Find the files of a folder of embeddings, or of the folder that holds those of the clusters.

    Parameters
    ----------
    path : str
    embedding_column : str
    columns : sequence of str, optional
        Further columns, the one of the keys among them. By default all.

    Returns
    -------
    list of Part
        With clusters they have ``cluster_id`` and, where the files have the cosine distance,
        ``distance_to_centroid``.

    Raises
    ------
    InputError
    """
    names = [name for name in files.list_tree(path) if name.endswith(".parquet") or not name]
    if not names:
        raise InputError(f"{path} has no .parquet files", mend="give a folder that NeMo Curator wrote")
    numbers = {name: _FOLDER.search(name) for name in sorted(names)}
    if len({found is None for found in numbers.values()}) > 1:
        bare = next(name for name, found in numbers.items() if found is None)
        raise InputError(
            f"{path} has folders of clusters, and beside them {bare!r}",
            mend="give the folder of the clusters alone, such as kmeans_results, or that of the embeddings",
        )

    def look(name: str) -> Part:
        found = numbers[name]
        given = {EMBEDDING: embedding_column, **({DISTANCE: _COSINE} if found is not None else {})}
        table = find_table(
            files.join(path, name) if name else path,
            None if columns is None else [*columns, EMBEDDING],
            given,
            further=[DISTANCE] if found is not None else [],
            bits=[EMBEDDING],
        )
        if EMBEDDING not in table.columns:
            raise InputError(
                f"{table.name} has no column {embedding_column!r}",
                mend=f"name it with input.options.embedding_column; the file has: {', '.join(table.columns)}",
            )
        of_all: list[RowFile] = [table]
        if found is not None:
            of_all.append(Constant(CLUSTER_ID, int(found[1]), table.n_rows, table.name))
        return Part(tuple(of_all))

    return map_in_threads(look, numbers)
