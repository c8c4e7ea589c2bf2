"""Find which files belong together, by their names. Imports `errors`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from spark_dbp.errors import InputError


def read_number(path: str) -> str:
    """The last number in the name of a file, without zeros at its beginning.

    Raises
    ------
    InputError
        When there is none.

    Examples
    --------
    >>> read_number("a/img_emb_007.npy"), read_number("a/metadata_000.parquet")
    ('7', '0')
    """
    found = re.search(r"(\d+)\D*$", path.rpartition("/")[2].rpartition(".")[0])
    if found is None:
        raise InputError(
            f"{path} has no number in its name, which says what it belongs to",
            mend="move it elsewhere, or name it as the others",
        )
    return str(int(found[1]))


def pair_files(
    ones: Collection[str], others: Collection[str], tell: Callable[[str], str] = read_number
) -> list[tuple[str, str]]:
    """Pairs of files.

    Parameters
    ----------
    ones, others : collection of str
        Paths.
    tell : callable
        Says of a path which files belong together.

    Returns
    -------
    list of (str, str)
        In the order of the first paths.

    Raises
    ------
    InputError
        When a file has no partner, or several.

    Examples
    --------
    >>> pair_files(["e_0.npy", "e_1.npy"], ["m_1.parquet", "m_0.parquet"])
    [('e_0.npy', 'm_0.parquet'), ('e_1.npy', 'm_1.parquet')]
    >>> pair_files(["e_0.npy"], [])
    Traceback (most recent call last):
    ...
    spark_dbp.errors.InputError: e_0.npy has no partner: no file of the other kind is named '0'
      to mend it: fetch or write what is missing
    """
    known: list[dict[str, str]] = []
    for paths in (ones, others):
        found: dict[str, str] = {}
        for path in sorted(paths):
            name = tell(path)
            if name in found:
                raise InputError(
                    f"{found[name]} and {path} are both named {name!r}", mend="leave one of them out"
                )
            found[name] = path
        known.append(found)
    for here, there in (known, known[::-1]):
        for name, path in here.items():
            if name not in there:
                raise InputError(
                    f"{path} has no partner: no file of the other kind is named {name!r}",
                    mend="fetch or write what is missing",
                )
    return [(path, known[1][name]) for name, path in known[0].items()]
