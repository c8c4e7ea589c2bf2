"""Write keys as the pickled trie of the research code's loader. Imports `key_files`, `errors` and pickle.

The one module that may write a pickle. None is ever read: to load one is to run whatever it says.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_dbp.errors import ConfigError
from spark_dbp.exchange.key_files import KeySink, find_no_text

if TYPE_CHECKING:
    import pyarrow as pa

# What every supported Python can read, whichever wrote it.
_PROTOCOL = 4
_CUT, _ENDING = 32, 4
EMPTY = f"have no more than {_ENDING} characters, and nothing is left of them"
SAME = "are the same as another one after that"
# Bytes of memory that a key takes on the driver, besides its text, while the trie is pickled (measured: 250).
KEY_BYTES = 300


def open_pygtrie() -> Any:
    """The package pygtrie.

    Raises
    ------
    ConfigError
        When it is not installed.
    """
    try:
        import pygtrie  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise ConfigError(
            "--to pygtrie needs the package pygtrie, which is not installed here",
            mend="pip install 'spark-dbp[pygtrie]'; --to txt writes the same keys without it",
        ) from None
    return pygtrie


def shorten_key(key: str) -> str:
    """The key as the research code stores it: 32 characters, blanks at its ends and the last 4 cut off.

    Examples
    --------
    >>> shorten_key("0/00000/000000012.jpg")
    '0/00000/000000012'
    """
    return key[:_CUT].strip()[:-_ENDING]


class TrieSink(KeySink):
    """Builds a trie in memory.

    Parameters
    ----------
    form : str
    path : Path
    research_keys : bool
        Whether keys become those of `shorten_key`.
    """

    def __init__(self, form: str, path: Path, *, research_keys: bool = False) -> None:
        super().__init__(form)
        self._trie, self._path, self._shortens = open_pygtrie().StringTrie(), path, research_keys

    def find_bad(self, keys: pa.Array) -> dict[str, pa.Array]:
        """Keys that are no text."""
        return find_no_text(keys)

    def goes_on(self) -> bool:
        """Also when some are the same after cutting, to count all of those."""
        return not set(self.refusals.counts) - {EMPTY, SAME}

    def write(self, keys: pa.Array) -> None:
        """Put the keys into the trie."""
        import pyarrow as pa

        for key in keys.cast(pa.string()).to_pylist():
            stored = shorten_key(key) if self._shortens else key
            if self._shortens and not stored:
                self.refusals.note(EMPTY, pa.array([key]))
            elif self._shortens and stored in self._trie:
                self.refusals.note(SAME, pa.array([key]))
            else:
                self._trie[stored] = 1

    def end(self) -> None:
        """Write the file."""
        with self._path.open("wb") as stream:
            pickle.dump(self._trie, stream, protocol=_PROTOCOL)
