"""A matrix of embeddings and a list of keys. Imports what is beside it."""

from __future__ import annotations

from spark_dbp.columns import EMBEDDING
from spark_dbp.errors import InputError
from spark_dbp.io.formats.arrays import find_npy
from spark_dbp.io.formats.parts import Part
from spark_dbp.io.formats.row_files import ArrayFile, RowFile, find_lines, find_table

_KEY = "key"


def find_parts(path: str, *, keys: str, key_column: str = "key") -> list[Part]:
    """Find a matrix and its keys.

    Parameters
    ----------
    path : str
        ``.npy`` file of shape (n, dim).
    keys : str
        ``.npy`` file of n texts or numbers; ``.parquet`` file with the column `key_column`; or a text file
        with a key a line.
    key_column : str

    Returns
    -------
    list of Part

    Raises
    ------
    InputError
        When they do not have as many rows, or cannot be read.
    """
    matrix = find_npy(path)
    if len(matrix.shape) != 2:
        raise InputError(f"{path} is no matrix: its shape is {matrix.shape}", mend="give an array of n x dim")
    named: RowFile
    if keys.endswith(".npy"):
        place = find_npy(keys)
        if len(place.shape) != 1:
            raise InputError(f"{keys} is no list: its shape is {place.shape}", mend="give an array of n keys")
        named = ArrayFile(place, _KEY)
    elif keys.endswith(".parquet"):
        named = find_table(keys, [_KEY], {_KEY: key_column})
    else:
        named = find_lines(keys, _KEY)
    return [Part((named, ArrayFile(matrix, EMBEDDING)))]
