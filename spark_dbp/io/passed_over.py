"""Refuse, by name, files of the input that Spark passes over or reads twice. Imports `listing` and `lake`.

What lies there comes from `listing`, what was read from Spark. Only what Spark has not read is refused, so
that a rule of Spark that is not known here costs a message and never a run.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections.abc import Callable, Collection, Iterable
from urllib.parse import unquote

from spark_dbp.errors import InputError, SparkDbpError
from spark_dbp.io.listing import Found, Listing, find_key, find_table, is_hidden
from spark_dbp.lake import files, paths

log = logging.getLogger("spark_dbp")

_PARQUET = re.compile(r".*\.(parquet|parq|pqt?)", re.IGNORECASE | re.DOTALL)
_HARMLESS = re.compile(
    r"_SUCCESS|_metadata|_common_metadata|_committed_.*|_started_.*|.*\.crc|\.DS_Store", re.DOTALL
)
_MAGIC = (b"PAR1", b"PARE")
_MOST_OPENED = 100  # files of other names whose first bytes are looked at
_SHOWN = 3

_UPLOAD, _HIDDEN, _HIDDEN_FOLDER = "an upload", "a hidden name", "a hidden folder"
_SUBFOLDER, _BESIDE = "a subfolder", "beside partition folders"


# Lies beside a table that was imported, and says whether all of it is there.
IMPORT_MARK = "_import.json"


def is_unfinished_import(folder: str) -> bool:
    """Whether a folder holds what an import that was cut off has left."""
    mark = files.join(folder, IMPORT_MARK)
    try:
        return files.exists(mark) and not json.loads(files.read_bytes(mark)).get("complete")
    except (ValueError, AttributeError, OSError, SparkDbpError):
        return False


class PassedOver:
    """What of a listing Spark has read, and what it has not.

    Parameters
    ----------
    setting : str
        For messages: ``input.path``.
    listing : Listing
    read : collection of str or None
        URIs of the files of which Spark has read rows. None where it could not open the input.
    """

    def __init__(self, setting: str, listing: Listing, read: Collection[str] | None) -> None:
        self.setting = setting
        self.listing = listing
        self.read = read
        keys = {key for uri in read or () for key in (find_key(uri), find_key(unquote(uri)))}
        visible = [one for one in listing.found if not any(map(is_hidden, one.folders))]
        self.partitioned = {one.root for one in visible if any("=" in folder for folder in one.folders)}
        self.reasons = {one: self._find_reason(one) for one in listing.found}
        if read is None:
            self.is_read = {
                one.path for one in listing.found if self.reasons[one] is None and one.target is None
            }
        else:
            self.is_read = {one.path for one in listing.found if find_key(one.path) in keys}

    def _find_reason(self, one: Found) -> str | None:
        """Why Spark passes over a file; None where it reads it."""
        if any(map(is_hidden, one.folders)):
            return _HIDDEN_FOLDER
        if one.name.endswith("._COPYING_"):
            return _UPLOAD
        if is_hidden(one.name):
            return _HIDDEN
        if one.root in self.partitioned:
            return None if any("=" in folder for folder in one.folders) else _BESIDE
        return _SUBFOLDER if one.folders else None

    def check(self, list_seen: Callable[[], list[str]]) -> None:
        """Refuse what is lost or doubled, and log what is left out or was not compared.

        Parameters
        ----------
        list_seen : callable
            Gives the URIs of all files that Spark has listed, also of those without rows.

        Raises
        ------
        InputError
        """
        self._refuse_table()
        self._refuse_unfinished_import()
        self._refuse_dead_links()
        if self.read and not self.is_read:
            reason = f"Spark reads other files, such as {min(self.read)}"
            self.listing.unchecked = dict.fromkeys(self.listing.roots, reason) | self.listing.unchecked
        else:
            self._refuse_lost()
            self._refuse_hidden_by_glob()
            self._refuse_twice()
            if self.read is not None:
                self._refuse_empty()
                self._refuse_unseen(list_seen)
        self._log()

    def _refuse(self, entry: str, what: str, mend: str) -> None:
        raise InputError(f"{self.setting} {entry}: {what}", mend=mend)

    def _refuse_table(self) -> None:
        table = find_table(self.listing)
        if table is None:
            return
        folder, kind = table
        entry = next(
            (entry for entry, roots in self.listing.roots.items() if any(_is_near(r, folder) for r in roots)),
            folder,
        )
        is_it = entry.rstrip("/") == folder
        lies = "is the folder of" if is_it else f"lies in, or holds, the folder {folder} of"
        section = self.setting.split(".")[0]
        self._refuse(
            entry,
            f"it {lies} a table ({kind}), whose files also hold rows that were deleted or replaced",
            f"name it in {section}.table, as a catalog knows it, or a view that you make before "
            "spark_dbp.run(config, spark): "
            f"spark.read.format({kind.lower()!r}).load({folder!r}).createOrReplaceTempView('samples'); "
            "or write its rows as Parquet to another folder",
        )

    def _refuse_unfinished_import(self) -> None:
        for one in self.listing.found:
            if one.name == IMPORT_MARK and is_unfinished_import(posixpath.dirname(one.path)):
                self._refuse(
                    one.entry,
                    f"{posixpath.dirname(one.path)} holds a part of an import that was cut off",
                    "run the same `spark-dbp import` again",
                )

    def _refuse_dead_links(self) -> None:
        dead = [
            one
            for one in self.listing.found
            if one.target is not None
            and not any(map(is_hidden, one.folders))
            and (not is_hidden(one.name) or (_PARQUET.fullmatch(one.name) and one.name[1:2] not in "#."))
        ]
        if dead:
            shown = _show(f"{_name(one)} -> {one.target}" for one in dead)
            self._refuse(
                dead[0].entry,
                f"{_count(dead, 'link leads', 'links lead')} nowhere: {shown}",
                "bring back or fetch what they name, or delete them",
            )

    def _find_lost(self) -> list[Found]:
        """Parquet files with bytes that Spark has not read, of which it has read no other link."""
        streams = {folder for folder, name in self.listing.known if name == "_spark_metadata"}
        places = {one.place for one in self.listing.found if one.path in self.is_read}
        lost = [
            one
            for one in self.listing.found
            if self.reasons[one] is not None
            and one.path not in self.is_read
            and one.size > 0
            and one.place not in places
            and one.root not in streams
            and not _HARMLESS.fullmatch(one.name)
        ]
        return self._keep_parquet(lost)

    def _keep_parquet(self, found: list[Found]) -> list[Found]:
        named = [one for one in found if _PARQUET.fullmatch(one.name) and not one.name.startswith("._")]
        others = [
            one
            for one in found
            if one.name.endswith("._COPYING_")
            or (self.reasons[one] != _HIDDEN_FOLDER and one not in named)
        ] if len(named) < len(found) else []  # fmt: skip
        others.sort(key=lambda one: "." in one.name.lstrip("._"))  # names without a suffix first
        if len(others) > _MOST_OPENED:
            log.info("%s: %d files of other names were not looked into", self.setting, len(others))
        return named + [one for one in others[:_MOST_OPENED] if self._is_parquet(one)]

    def _is_parquet(self, one: Found) -> bool:
        try:
            return one.name.endswith("._COPYING_") or files.read_start(one.path, 4) in _MAGIC
        except (OSError, SparkDbpError):
            return False

    def _refuse_lost(self) -> None:
        lost = self._find_lost()
        by_reason: dict[str | None, list[Found]] = {}
        for one in sorted(lost, key=lambda one: one.path):
            by_reason.setdefault(self.reasons[one], []).append(one)
        if _UPLOAD in by_reason:
            those = by_reason[_UPLOAD]
            self._refuse(
                those[0].entry,
                f"{_count(those, 'file is', 'files are')} still being copied (._COPYING_): "
                + _show(map(_name, those)),
                "wait until the copy has ended; delete what an interrupted one has left",
            )
        if _HIDDEN in by_reason:
            those = by_reason[_HIDDEN]
            self._refuse(
                those[0].entry,
                f"Spark passes over names that begin with _ or . and so over "
                f"{_count(those, 'Parquet file', 'Parquet files')}: {_show(map(_name, those))}",
                "rename them, or move them to another folder",
            )
        if _HIDDEN_FOLDER in by_reason:
            those = by_reason[_HIDDEN_FOLDER]
            folder = posixpath.dirname(those[0].path)
            self._refuse(
                those[0].entry,
                f"Spark passes over folders whose names begin with _ or . and so over "
                f"{_count(those, 'Parquet file', 'Parquet files')}: {_show(map(_name, those))}",
                f"rename the folder, name it too ({self.setting}: {_write_list([those[0].root, folder])}), "
                "or move it to another place",
            )
        if _SUBFOLDER in by_reason:
            self._refuse_subfolders(by_reason[_SUBFOLDER])
        if _BESIDE in by_reason:
            self._refuse_beside(by_reason[_BESIDE])

    def _refuse_subfolders(self, those: list[Found]) -> None:
        first = those[0]
        same = [one for one in self.listing.found if one.root == first.root]
        read = [one for one in same if self.reasons[one] is None and _PARQUET.fullmatch(one.name)]
        where = "beside subfolders that it does not look into" if read else "only in subfolders"
        self._refuse(
            first.entry,
            f"Spark reads the files of a folder, not those of its subfolders. "
            f"{_count(those, 'Parquet file lies', 'Parquet files lie')} "
            f"{'in subfolders beside others' if read else where}: {_show(map(_name, those))}",
            f"{self.setting}: {_write_list(self._write_globs(first.root, [*those, *read], same))} reads all; "
            "or move away what is not to be read",
        )

    def _write_globs(self, root: str, wanted: list[Found], all_there: list[Found]) -> list[str]:
        """Globs that name all `wanted` files below a root, each once."""
        star, begin = self._write_star(root), paths.escape_glob(root)
        depths = sorted({len(one.names) for one in wanted})
        shown = [one for one in all_there if self.reasons[one] in (None, _SUBFOLDER)]
        if any(one.size and not _PARQUET.fullmatch(one.name) for one in shown):
            suffixes = {posixpath.splitext(one.name)[1] for one in wanted}
            if len(suffixes) == 1:  # other files lie there too
                last = f"*{suffixes.pop()}"
                return ["/".join([begin, *[star] * (depth - 1), last]) for depth in depths]
        globs = []
        while depths:
            depth = depths.pop(0)
            if depths[:1] == [depth + 1] and depth > 0:
                depths.pop(0)  # the files of this depth and the folders beside them
            else:
                depth -= 1
            globs.append("/".join([begin, *[star] * depth]))
        return globs

    def _write_star(self, root: str) -> str:
        """The glob of all names; without hidden ones where a root has hidden folders."""
        inside = [one for one in self.listing.found if one.root == root]
        is_known = any(f"{folder}/".startswith(f"{root}/") for folder, _ in self.listing.known)
        return "[!_.]*" if is_known or any(is_hidden(name) for one in inside for name in one.folders) else "*"

    def _refuse_beside(self, those: list[Found]) -> None:
        folders = {name for one in self.listing.found for name in one.folders if "=" in name}
        names = sorted({name.split("=")[0] for name in folders})
        first = those[0]
        glob = "/".join([first.root, *first.folders])
        glob = f"{paths.escape_glob(glob)}/{self._write_star(first.root)}"
        self._refuse(
            first.entry,
            f"Spark reads only the partition folders ({_show(sorted(folders))}) and leaves out "
            f"{_count(those, 'Parquet file that lies', 'Parquet files that lie')} beside them: "
            + _show(map(_name, those)),
            "move them into a partition folder or to another place; or read all, without "
            f"{', '.join(names)} as a column: {self.setting}: {_write_list([glob])}",
        )

    def _refuse_hidden_by_glob(self) -> None:
        by_glob = self.listing.hidden_by_glob
        those = [one for one in self.listing.found if one.root in by_glob and one.path in self.is_read]
        if those:
            glob = by_glob[those[0].root]
            self._refuse(
                those[0].entry,
                f"the glob also names hidden folders, of which Spark then reads "
                f"{_count(those, 'file', 'files')}: {_show(one.path for one in those)}",
                f"write [!_.]* for the * in {glob}, or name those folders",
            )

    def _refuse_twice(self) -> None:
        first: dict[str, Found] = {}
        twice: list[tuple[Found, Found]] = []
        for one in self.listing.found:
            if one.path in self.is_read and self.reasons[one] is None and one.size > 0:
                before = first.setdefault(one.place, one)
                if before is not one:
                    twice.append((before, one))
        if not twice:
            return
        one, two = twice[0]
        entries = f"{one.entry} and {two.entry}" if one.entry != two.entry else one.entry
        shown = one.path if one.path == two.path else f"{one.path} and {two.path} (links)"
        self._refuse(
            entries,
            f"{_count(twice, 'file is', 'files are')} named more than once, and read as often: {shown}",
            "name every file once: leave out the item that holds it already, or the link",
        )

    def _refuse_empty(self) -> None:
        empty = sorted(
            one.path
            for one in self.listing.found
            if self.reasons[one] is None
            and one.size == 0
            and one.target is None
            and _PARQUET.fullmatch(one.name)
        )
        if empty:
            raise empty_files_error(self.setting, empty)

    def _refuse_unseen(self, list_seen: Callable[[], list[str]]) -> None:
        """Refuse files that Spark cannot see, as of names beyond ASCII in a JVM of another locale."""
        unseen = [
            one
            for one in self.listing.found
            if self.reasons[one] is None
            and one.path not in self.is_read
            and one.size > 0
            and _PARQUET.fullmatch(one.name)
        ]
        if not unseen or self.listing.unchecked or any(n == "_spark_metadata" for _, n in self.listing.known):
            return
        seen = {key for uri in list_seen() for key in (find_key(uri), find_key(unquote(uri)))}
        unseen = [one for one in unseen if find_key(one.path) not in seen]  # the others have no rows
        if unseen:
            self._refuse(
                unseen[0].entry,
                f"Spark does not see {_count(unseen, 'Parquet file', 'Parquet files')} that lies there: "
                + _show(map(_name, unseen)),
                "rename what has other letters than ASCII, or start Spark with LC_ALL=C.UTF-8; where files "
                "come and go, run again when nothing writes there",
            )

    def _log(self) -> None:
        for entry, reason in self.listing.unchecked.items():
            log.warning("%s %s: not checked for hidden files and links: %s", self.setting, entry, reason)
        left_out = sorted({name for _, name in self.listing.known})
        if left_out:
            log.info("%s: left out, as Spark does: %s", self.setting, ", ".join(left_out[:10]))
        for entry, roots in self.listing.roots.items():
            if self.read and entry not in self.listing.unchecked and len(self.listing.roots) > 1:
                within = {one.path for one in self.listing.found if one.entry == entry}
                if not within & self.is_read:
                    log.warning("%s %s: no rows come from there (%d paths)", self.setting, entry, len(roots))


def empty_files_error(setting: str, empty: list[str]) -> InputError:
    """The error for Parquet files of 0 bytes, which Spark skips without a word."""
    return InputError(
        f"{setting}: {len(empty):,} Parquet file{'s have' if len(empty) > 1 else ' has'} 0 bytes, "
        f"such as {', '.join(empty[:5])}",
        mend="write them again, or move them away",
    )


def _is_near(root: str, folder: str) -> bool:
    return f"{root}/".startswith(f"{folder}/") or f"{folder}/".startswith(f"{root}/")


def _name(one: Found) -> str:
    return "/".join(one.names) or one.path


def _show(names: Iterable[str]) -> str:
    several = list(names)
    more = f" and {len(several) - _SHOWN:,} more" if len(several) > _SHOWN else ""
    return ", ".join(several[:_SHOWN]) + more


def _count(things: Collection[object], one: str, several: str) -> str:
    return f"{len(things):,} {one if len(things) == 1 else several}"


def _write_list(items: list[str]) -> str:
    """A YAML list, or its only item."""
    quoted = ["'" + item.replace("'", "''") + "'" for item in items]
    return quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"
