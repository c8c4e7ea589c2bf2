"""List what lies under the paths of the input, as Spark would. Imports `files`, `paths` and `errors`.

Spark passes over names that begin with ``_`` (without ``=``) or ``.`` or end in ``._COPYING_``, subfolders
whose name has no ``=``, and files beside partition folders. `passed_over` compares this with what it read.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from spark_dbp.errors import SparkDbpError
from spark_dbp.lake import files, paths

# Folders that hold what belongs to a program, not to the data. What lies in them is not looked at.
KNOWN_FOLDERS = re.compile(
    r"_temporary|_delta_log|_delta_index|_spark_metadata|_draft-.*|_magic.*|__MACOSX|__pycache__"
    r"|\.hoodie|\.spark-staging.*|\.hive-staging.*|\.sparkStaging|\.ipynb_checkpoints|\.git|\.dvc|\.cache"
    r"|\.snapshots?|\.Trash.*|\.tmp.*"
)
_ICEBERG = re.compile(r"(v\d+|\d+-[0-9a-f]{8}-[0-9a-f-]{27})(\.\w+)?\.metadata\.json(\.gz)?")
_LEVELS = 6  # of folders above those read, in which a table's log is looked for
_MOST_FOLDERS = 200  # whose parents are looked at


@dataclass(frozen=True)
class Found:
    """A file under a path of the input, or a link that leads nowhere.

    Attributes
    ----------
    path : str
        Absolute, or a URI; links are not followed.
    entry : str
        The item of ``input.path`` under which it lies.
    root : str
        The folder that the item names, or the file itself.
    names : tuple of str
        Folders and name below `root`; empty for `root` itself.
    size : int
        Bytes.
    place : str
        `path` with links followed.
    target : str or None
        What the link names, where nothing is there.
    """

    path: str
    entry: str
    root: str
    names: tuple[str, ...]
    size: int
    place: str
    target: str | None = None

    @property
    def name(self) -> str:
        """Its last name."""
        return posixpath.basename(self.path)

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders between `root` and the file."""
        return self.names[:-1]


@dataclass
class Listing:
    """What lies under the paths of the input. `list_paths` makes it.

    Attributes
    ----------
    found : list of Found
    roots : dict of str to list of str
        The files and folders that each item names.
    hidden_by_glob : dict of str to str
        Roots that a ``*`` or ``?`` reaches through a hidden folder, and the glob.
    known : list of tuple of str
        Folder and name of the known hidden folders.
    unchecked : dict of str to str
        Items that could not be listed, or only by Spark, and why.
    """

    found: list[Found] = field(default_factory=list)
    roots: dict[str, list[str]] = field(default_factory=dict)
    hidden_by_glob: dict[str, str] = field(default_factory=dict)
    known: list[tuple[str, str]] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)


def is_hidden(name: str) -> bool:
    """Whether Spark passes over a file or a folder for the beginning of its name.

    Examples
    --------
    >>> is_hidden("_part-1.parquet"), is_hidden("_year=2024"), is_hidden(".x"), is_hidden("part-1")
    (True, False, True, False)
    """
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def list_paths(entries: list[str]) -> Listing:
    """List all that lies under the items of ``input.path``, each a path or a glob as Spark takes it.

    Nothing is raised: what cannot be listed is in ``unchecked``.
    """
    listing = Listing()
    for entry in entries:
        listing.roots.setdefault(entry, [])
        try:
            for root, hidden_by in expand_glob(entry):
                listing.roots[entry].append(root)
                if hidden_by is not None:
                    listing.hidden_by_glob[root] = hidden_by
                walk = _walk_disk if files.is_local(root) else _walk_store
                listing.found += walk(entry, root, listing.known)
        except (OSError, SparkDbpError, ValueError) as error:
            listing.unchecked[entry] = getattr(error, "what", None) or str(error)
    return listing


def expand_glob(entry: str) -> list[tuple[str, str | None]]:
    """Files and folders that a path or a glob names.

    Parameters
    ----------
    entry : str

    Returns
    -------
    list of (str, str or None)
        The path, and the glob where a ``*`` or ``?`` at its beginning has matched a hidden folder.

    Raises
    ------
    ValueError
        When a bracket is not closed.
    """
    if not paths.has_glob(entry):
        return [(_make_absolute(entry), None)]
    found = []
    for pattern in paths.expand_braces(entry):
        names = pattern.split("/")
        n_plain = next((i for i, name in enumerate(names) if not paths.is_literal(name)), len(names))
        begin = paths.unescape_glob("/".join(names[:n_plain])) or ("/" if pattern.startswith("/") else ".")
        found += _expand_names(_make_absolute(begin), [name for name in names[n_plain:] if name], None)
    return found


def _make_absolute(path: str) -> str:
    """As Hadoop does: ``..`` takes the name before it away, be that a link or nothing."""
    return os.path.normpath(files.normalize(path)) if files.is_local(path) else files.normalize(path)


def _expand_names(folder: str, names: list[str], hidden_by: str | None) -> list[tuple[str, str | None]]:
    if not names:
        return [(folder, hidden_by)] if _exists(folder) else []
    if paths.is_literal(names[0]):
        return _expand_names(files.join(folder, paths.unescape_glob(names[0])), names[1:], hidden_by)
    wanted = paths.compile_name(names[0])
    found = []
    for name, is_folder in sorted(_list_kinds(folder).items()):
        if wanted.fullmatch(name) and (is_folder or not names[1:]):
            by_star = is_folder and is_hidden(name) and names[0].startswith(("*", "?"))
            below = f"{folder.rstrip('/')}/{name}"
            found += _expand_names(below, names[1:], "/".join([folder, *names]) if by_star else hidden_by)
    return found


def _exists(path: str) -> bool:
    return os.path.lexists(path) if files.is_local(path) else files.exists(path)


def _list_kinds(folder: str) -> dict[str, bool]:
    if not files.is_local(folder):
        return files.list_kinds(folder)
    try:
        with os.scandir(folder) as items:
            return {item.name: _is_folder(item) for item in items}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False


def _walk_disk(entry: str, root: str, known: list[tuple[str, str]]) -> Iterator[Found]:
    place = os.path.realpath(root)
    if not os.path.isdir(root):  # noqa: PTH112  (pathlib resolves and joins names)
        if os.path.lexists(root):
            yield _find_on_disk(entry, root, (), root, place)
        return
    waiting: list[tuple[str, tuple[str, ...], str, frozenset[str]]] = [(root, (), place, frozenset([place]))]
    while waiting:
        folder, names, place, above = waiting.pop()
        with os.scandir(folder) as items:
            for item in sorted(items, key=lambda item: item.name):
                below = (*names, item.name)
                at = os.path.realpath(item.path) if item.is_symlink() else f"{place.rstrip('/')}/{item.name}"
                if not _is_folder(item):
                    try:
                        yield _find_on_disk(entry, root, below, item.path, at)
                    except FileNotFoundError:
                        continue  # deleted since
                elif KNOWN_FOLDERS.fullmatch(item.name):
                    known.append((folder, item.name))
                elif at not in above:  # a link to a folder above would have no end
                    waiting.append((item.path, below, at, above | {at}))


def _find_on_disk(entry: str, root: str, names: tuple[str, ...], path: str, place: str) -> Found:
    try:
        return Found(path, entry, root, names, os.stat(path).st_size, place)  # noqa: PTH116
    except OSError:
        if not os.path.islink(path):  # noqa: PTH114
            raise
        return Found(path, entry, root, names, 0, place, os.readlink(path))  # noqa: PTH115


def _walk_store(entry: str, root: str, known: list[tuple[str, str]]) -> Iterator[Found]:
    seen = set()
    for relative, size in sorted(files.list_tree(root).items()):
        names = tuple(relative.split("/")) if relative else ()
        depth = next((i for i, name in enumerate(names[:-1]) if KNOWN_FOLDERS.fullmatch(name)), None)
        path = "/".join([root, *names])
        if depth is None:
            yield Found(path, entry, root, names, size, paths.locate(path))
        elif (folder := ("/".join([root, *names[:depth]]), names[depth])) not in seen:
            seen.add(folder)
            known.append(folder)


def add_files(listing: Listing, entry: str, listed: Iterable[tuple[str, int]]) -> None:
    """Add what Spark has listed under an item, paths and sizes, where this program could not list it."""
    for path, size in listed:
        folders = below_root(path, [entry])
        if folders is not None:
            names = path.split("/")
            n_below = len(folders) + 1 if folders or not _is_named(path, entry) else 0
            below = tuple(names[len(names) - n_below :])
            root = "/".join(names[: len(names) - n_below])
            listing.found.append(Found(path, entry, root, below, size, path))


def _is_named(path: str, entry: str) -> bool:
    """Whether an item names this file itself, not a folder that holds it."""
    depths = {find_key(files.normalize(pattern)).count("/") for pattern in paths.expand_braces(entry)}
    return find_key(path).count("/") in depths


def below_root(path: str, entries: list[str]) -> list[str] | None:
    """Folders between what one of `entries` names and a file, as Spark names it; None without a match.

    Examples
    --------
    >>> below_root("file:/x/in/uid=a b/p.parquet", ["/x/i*"])
    ['uid=a b']
    """
    key = find_key(path)
    for entry in entries:
        for pattern in paths.expand_braces(entry):
            wanted = find_key(files.normalize(pattern))
            if paths.lies_in(key, wanted):
                return key.split("/")[wanted.count("/") + 1 : -1]
    return None


def find_key(uri: str) -> str:
    """The path of a file without scheme and host, as it is compared.

    Examples
    --------
    >>> find_key("s3a://bucket/x/a b.parquet"), find_key("file:/x/./y")
    ('/x/a b.parquet', '/x/y')
    """
    return posixpath.normpath(re.sub(r"^[A-Za-z][A-Za-z0-9+.-]+:(//[^/]*)?", "", uri))


def find_table(listing: Listing) -> tuple[str, str] | None:
    """Folder and kind of a Delta, Hudi or Iceberg table in, below or around the folders of the input."""
    for folder, name in listing.known:
        if name == "_delta_log" and _has_delta_log(folder):
            return folder, "Delta"
        if name == ".hoodie":
            return folder, "Hudi"
    for one in listing.found:
        if one.names[-2:-1] == ("metadata",) and _ICEBERG.fullmatch(one.name):
            return posixpath.dirname(posixpath.dirname(one.path)), "Iceberg"
    read: dict[str, bool] = {}
    for one in listing.found:
        if len(read) < _MOST_FOLDERS:
            read |= {one.root: True} if one.names else {}
            read[posixpath.dirname(one.path)] = True
    folders: dict[str, bool] = {}
    for folder in read:
        for _ in range(_LEVELS):
            if folder in folders or folder in ("", "/") or folder.endswith(":"):
                break
            folders[folder] = True
            folder = posixpath.dirname(folder)
    with ThreadPoolExecutor(16) as threads:
        return next((table for table in threads.map(_kind_of_table, folders) if table), None)


def _kind_of_table(folder: str) -> tuple[str, str] | None:
    try:
        if _has_delta_log(folder):
            return folder, "Delta"
        if _exists(f"{folder}/.hoodie"):
            return folder, "Hudi"
        if any(_ICEBERG.fullmatch(name) for name in _list_kinds(f"{folder}/metadata")):
            return folder, "Iceberg"
    except (OSError, SparkDbpError):
        return None  # it may not be looked at
    return None


def _has_delta_log(folder: str) -> bool:
    return any(re.match(r"\d{20}\.|_last_checkpoint", name) for name in _list_kinds(f"{folder}/_delta_log"))
