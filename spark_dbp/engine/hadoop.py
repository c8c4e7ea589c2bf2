"""Hadoop's FileSystem of a classic session as a file system of pyarrow. Imports pyarrow; never pyspark.

The only module that reaches into the JVM. With it the driver reads and writes what Spark reads and writes,
with Spark's own connectors and credentials. It is for few small files: each request takes about a millisecond
more, and bytes pass at about 10 MB/s. Paths are taken as they are, never as globs, and no file is hidden.
"""

from __future__ import annotations

import io
import posixpath
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Stores that show a file only when it is closed, or that do not replace one in one step: a new file is
# created in its place. Elsewhere it is written under another name and then renamed.
_CREATED_IN_PLACE = {
    *("s3", "s3a", "s3n", "gs", "oss", "obs", "cosn", "abfs", "abfss", "wasb", "wasbs", "adl", "dbfs"),
}
# Java exceptions, by the ends of their names, and Python's.
_ERRORS: tuple[tuple[str, type[OSError]], ...] = (
    ("FileNotFoundException", FileNotFoundError),
    ("NoSuchFileException", FileNotFoundError),
    ("FileAlreadyExistsException", FileExistsError),
    ("AccessControlException", PermissionError),
    ("AccessDeniedException", PermissionError),
    ("ParentNotDirectoryException", NotADirectoryError),
)
# A file of more bytes is copied through a local one, which is faster than through the socket of py4j.
_LARGE_BYTES = 4 << 20


def open_hadoop(spark: SparkSession, root: str) -> fs.PyFileSystem:
    """The file system by which a session reaches a root.

    Parameters
    ----------
    spark : SparkSession
        Classic.
    root : str
        Scheme and authority: ``viewfs://cluster``, ``hdfs://``.

    Returns
    -------
    pyarrow.fs.PyFileSystem
        Its paths begin with ``/``.

    Raises
    ------
    OSError
        When the session has no file system for that scheme, or it cannot be opened.
    """
    return fs.PyFileSystem(HadoopFiles(spark, root))


def has_jvm(spark: SparkSession) -> bool:
    """Whether the JVM of a session can be reached: it is classic, and its platform does not forbid it."""
    try:
        return spark._jvm is not None and hasattr(spark, "_jsparkSession")
    except Exception:  # a Connect session has no such attribute; it says so by an error of its own
        return False


class HadoopFiles(fs.FileSystemHandler):  # type: ignore[misc]
    """What pyarrow's file systems can do, by Hadoop's FileSystem. `open_hadoop` makes one."""

    def __init__(self, spark: SparkSession, root: str) -> None:
        self._root = root
        with _told_as_os_errors(root):
            self._jvm: Any = spark._jvm
            self._gateway: Any = spark.sparkContext._gateway
            # The settings with which Spark itself opens files: of the context, and of the session.
            self._conf = spark._jsparkSession.sessionState().newHadoopConf()
            self._hadoop = self._path("/").getFileSystem(self._conf)

    def _path(self, inner: str) -> Any:
        return self._jvm.org.apache.hadoop.fs.Path(f"{self._root}/{inner.lstrip('/')}")

    def _told(self, path: str) -> AbstractContextManager[None]:
        return _told_as_os_errors(f"{self._root}{path}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HadoopFiles) and self._root == other._root

    def __hash__(self) -> int:
        return hash(self._root)

    def get_type_name(self) -> str:
        """Name of the kind; pyarrow puts ``py::`` before it."""
        return "hadoop"

    def normalize_path(self, path: str) -> str:
        """The path as it is."""
        return path

    # What lies there.

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """Kind and size of each path."""
        return [self._look(path) for path in paths]

    def _look(self, path: str) -> fs.FileInfo:
        try:
            with self._told(path):
                return _describe(self._hadoop.getFileStatus(self._path(path)))
        except FileNotFoundError:
            return fs.FileInfo(path, fs.FileType.NotFound)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """What lies in a directory, or below it: then files only."""
        try:
            with self._told(selector.base_dir):
                return list(self._list(selector.base_dir, selector.recursive))
        except FileNotFoundError:
            if selector.allow_not_found:
                return []
            raise

    def _list(self, base: str, recursive: bool) -> Iterator[fs.FileInfo]:
        if self._hadoop.getFileStatus(self._path(base)).isFile():
            raise NotADirectoryError(f"{self._root}{base} is a file")
        if not recursive:
            yield from map(_describe, self._hadoop.listStatus(self._path(base)))
            return
        found = self._hadoop.listFiles(self._path(base), True)
        while found.hasNext():
            yield _describe(found.next())

    # Reading.

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Open a file for reading, from its beginning."""
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open a file for reading, anywhere in it."""
        with self._told(path):
            size = int(self._hadoop.getFileStatus(self._path(path)).getLen())
            stream = self._hadoop.open(self._path(path))
        return pa.PythonFile(
            _Reader(f"{self._root}{path}", stream, self._jvm.org.apache.commons.io.IOUtils, size), mode="r"
        )

    def copy_to_local(self, path: str, target: str) -> None:
        """Copy a file to a local path."""
        with self._told(path):
            # The last argument: without a file of checksums beside it.
            self._hadoop.copyToLocalFile(
                False, self._path(path), self._jvm.org.apache.hadoop.fs.Path(f"file://{target}"), True
            )

    # Writing.

    def open_output_stream(self, path: str, metadata: object = None) -> pa.NativeFile:
        """Open a new file for writing. It is there, whole, when it is closed."""
        return pa.PythonFile(_Writer(lambda content: self._replace(path, content)), mode="w")

    def _replace(self, path: str, content: bytes) -> None:
        with self._told(path):
            if not self._is_renamed(path):
                self._write(path, content, overwrite=True)
                return
            folder, name = posixpath.split(path)
            draft = posixpath.join(folder, f".{name}.{uuid4().hex[:8]}")
            try:
                self._write(draft, content, overwrite=False)
                self._rename_over(draft, path)
            except BaseException:
                self._hadoop.delete(self._path(draft), False)
                raise

    def _is_renamed(self, path: str) -> bool:
        """Whether a file is written under another name first. It rests on the store behind a view."""
        scheme = self._root.partition("://")[0]
        if scheme.startswith("viewfs"):
            folder = self._path(posixpath.dirname(path))
            self._hadoop.mkdirs(folder)
            scheme = self._hadoop.resolvePath(folder).toUri().getScheme()
        return scheme not in _CREATED_IN_PLACE

    def _write(self, path: str, content: bytes, *, overwrite: bool) -> None:
        if len(content) > _LARGE_BYTES:
            with tempfile.NamedTemporaryFile(prefix="spark-dbp-") as local:
                local.write(content)
                local.flush()
                source = self._jvm.org.apache.hadoop.fs.Path(f"file://{local.name}")
                self._hadoop.copyFromLocalFile(False, overwrite, source, self._path(path))
            return
        stream = self._hadoop.create(self._path(path), overwrite)
        try:
            stream.write(bytearray(content))
        finally:
            stream.close()

    def create_new(self, path: str, content: bytes) -> bool:
        """Write a file where there is none yet; False where there is one. Only HDFS is sure of it."""
        try:
            with self._told(path):
                self._write(path, content, overwrite=False)
        except FileExistsError:
            return False
        return True

    def open_append_stream(self, path: str, metadata: object = None) -> NoReturn:
        """Refused: nothing is appended to."""
        raise NotImplementedError("nothing is appended to")

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a directory, and those above it."""
        with self._told(path):
            self._hadoop.mkdirs(self._path(path))

    # Moving and deleting.

    def move(self, src: str, dest: str) -> None:
        """Rename a file, over another one too."""
        with self._told(src):
            self._rename_over(src, dest)

    def _rename_over(self, src: str, dest: str) -> None:
        source, target = self._path(src), self._path(dest)
        try:
            if self._hadoop.rename(source, target):
                return
        except Exception as error:
            if not _name(error).endswith("FileAlreadyExistsException"):
                raise
        # Something is there. Only this way does HDFS replace it in one step.
        options = self._jvm.org.apache.hadoop.fs.Options.Rename
        overwrite = self._gateway.new_array(options, 1)
        overwrite[0] = options.OVERWRITE
        context = self._jvm.org.apache.hadoop.fs.FileContext.getFileContext(target.toUri(), self._conf)
        context.rename(source, target, overwrite)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file."""
        with self._told(src):
            self._jvm.org.apache.hadoop.fs.FileUtil.copy(
                self._hadoop, self._path(src), self._hadoop, self._path(dest), False, True, self._conf
            )

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        with self._told(path):
            self._hadoop.delete(self._path(path), False)

    def delete_dir(self, path: str) -> None:
        """Delete a directory with all it holds."""
        with self._told(path):
            self._hadoop.delete(self._path(path), True)

    def delete_if_empty(self, path: str) -> None:
        """Delete a directory unless something lies in it."""
        try:
            with self._told(path):
                if not self._hadoop.listStatus(self._path(path)):
                    self._hadoop.delete(self._path(path), False)  # Hadoop looks again
        except OSError:
            return  # it does not exist, or something came to lie there

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> NoReturn:
        """Refused: nothing here needs it."""
        raise NotImplementedError("directories are deleted as a whole")

    def delete_root_dir_contents(self) -> NoReturn:
        """Refused."""
        raise NotImplementedError("a whole store is never deleted")


def _describe(status: Any) -> fs.FileInfo:
    path = status.getPath().toUri().getPath()
    if status.isDirectory():
        return fs.FileInfo(path, fs.FileType.Directory)
    return fs.FileInfo(path, fs.FileType.File, size=int(status.getLen()))


class _Reader(io.RawIOBase):
    """An open file of Hadoop, as Python reads one."""

    def __init__(self, path: str, stream: Any, streams: Any, size: int) -> None:
        self._path, self._stream, self._streams, self._size, self._at = path, stream, streams, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = begin + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        length = left if size is None or size < 0 else min(size, left)
        if not length:
            return b""
        with _told_as_os_errors(self._path):
            self._stream.seek(self._at)
            content = bytes(self._streams.toByteArray(self._stream, length))
        self._at += len(content)
        return content

    def close(self) -> None:
        if not self.closed:
            with _told_as_os_errors(self._path):
                self._stream.close()
        super().close()


class _Writer(io.BytesIO):
    """Collects what is written, and hands it over when it is closed."""

    def __init__(self, hand_over: Callable[[bytes], None]) -> None:
        super().__init__()
        self._hand_over = hand_over

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._hand_over(content)


def _name(error: BaseException) -> str:
    """Name of the Java class of an exception; that of Python's where it is none."""
    java = getattr(error, "java_exception", None)
    return str(java.getClass().getName()) if java is not None else type(error).__name__


@contextmanager
def _told_as_os_errors(path: str) -> Iterator[None]:
    """Errors of Java become errors of the operating system, in Hadoop's own words."""
    try:
        yield
    except OSError as error:
        # py4j's own: the JVM is gone.
        if type(error).__module__.startswith("py4j"):
            raise OSError(f"{path}: Spark's Java process does not answer: {error}") from error
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("py4j", "pyspark"):
            raise
        java = getattr(error, "java_exception", None)
        words = str((java.getMessage() if java is not None else None) or error).strip().split("\n")[0]
        name = _name(error)
        kind = next((kind for end, kind in _ERRORS if name.endswith(end)), OSError)
        raise kind(f"{path}: {words} ({name.rpartition('.')[2]})") from None
