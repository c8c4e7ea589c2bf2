"""Encode a stream of Arrow batches: threads read and decode, the model runs on full batches.

Imports kernels, `columns`.

Memory is bounded by the model, three batches of pixels, the images that `decode_threads` threads decode at
the moment, and the Arrow batch that the caller holds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from spark_dbp.columns import DIMENSION, PROBLEM, VECTOR
from spark_dbp.encoders import bad_items
from spark_dbp.encoders.bad_items import BadItemError
from spark_dbp.encoders.images import decode_image
from spark_dbp.encoders.open import refuse_shapes
from spark_dbp.encoders.process import LoadedEncoder, get_encoder, leave_encoder, use_encoder
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.encoders.windows import Window, cut_windows, join_columns
from spark_dbp.errors import ConfigError, SparkDbpError
from spark_dbp.kernels.vectors import normalize_embeddings, to_binary_rows

# Windows that are read while the model runs on one.
_AHEAD = 2
# Batches of texts that are sorted by length together: texts of like length need less padding.
_SORTED_BATCHES = 16


def encode_stream(
    batches: Iterator[pa.RecordBatch],
    settings: EncoderSettings,
    *,
    load: Callable[[Any], bytes | str] | None = None,
    cores: int,
    gpu: str | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Encode items to unit vectors, in the order they come.

    Parameters
    ----------
    batches : iterator of pyarrow.RecordBatch
        Batches of any size, with the columns ``item`` (BINARY: the bytes of an image file; STRING: a text;
        or what `load` takes; null: no item), ``problem`` (STRING, optional: why a row is bad already; such
        items are not touched), and any others, which travel through.
    settings : EncoderSettings
    load : callable, optional
        Turns the value of ``item`` into bytes or text, on the reading threads. An OSError or a
        `BadItemError` of it makes the item a bad one.
    cores : int
        Of the task: threads of the model on the CPU, and of reading where the settings name no number.
    gpu : str, optional
        Address of the GPU that Spark gave to the task.
    identity : mapping, optional
        What `identify_encoder` said on the driver; other files on this machine are refused.

    Yields
    ------
    pyarrow.RecordBatch
        The columns that travel, then ``vector`` BINARY (float32 little endian, unit norm), ``dimension`` INT
        (both null where the item is bad) and ``problem`` STRING (null where it is good).

    Raises
    ------
    ConfigError
        The encoder cannot be loaded, returns something else than embeddings, or runs out of memory.
    SparkDbpError
        The model failed on a batch.

    Notes
    -----
    Texts longer than the model takes are truncated to it. Bad items have the reasons of `bad_items`, and of
    `kernels.vectors` where the model returned NaN or only zeros.
    """
    loaded = get_encoder(settings, cores=cores, gpu=gpu, identity=identity)
    use_encoder(loaded)
    try:
        threads = settings.decode_threads or cores
        reader = _Reader(loaded, settings, load, threads)
        try:
            yield from _run(batches, loaded, reader)
        finally:
            reader.close()
    finally:
        leave_encoder(loaded)


def _run(
    batches: Iterator[pa.RecordBatch], loaded: LoadedEncoder, reader: _Reader
) -> Iterator[pa.RecordBatch]:
    is_text = reader.is_text
    n_items = loaded.batch_size * (_SORTED_BATCHES if is_text else 1)
    null_reason = bad_items.NULL_TEXT if is_text else bad_items.NULL_IMAGE
    under_way: deque[_Task] = deque()
    for window in cut_windows(batches, n_items, null_reason):
        under_way.append(reader.start(window))
        if len(under_way) > _AHEAD:
            yield _finish(under_way.popleft(), loaded, reader)
    while under_way:
        yield _finish(under_way.popleft(), loaded, reader)


def _finish(task: _Task, loaded: LoadedEncoder, reader: _Reader) -> pa.RecordBatch:
    """Wait for a window's items, run the model on them, and make the rows."""
    window = task.window
    problems = np.full(window.n_rows, None, dtype=object)
    for row, reason in window.problems:
        problems[row] = reason
    rows, items = task.wait(problems)
    numbers = np.full(window.n_rows, -1, dtype=np.int64)
    if len(rows):
        matrix = loaded.encode(items)
        task.items.release()
        numbers[rows] = np.arange(len(rows))
        vectors, dimensions, reasons = normalize_embeddings(to_binary_rows(matrix))
        for number in np.flatnonzero(reasons.is_valid().to_numpy(zero_copy_only=False)):
            problems[rows[number]] = reasons[int(number)].as_py()
    else:
        task.items.release()
        vectors, dimensions = pa.array([], pa.binary()), pa.array([], pa.int32())
    if len(rows) < window.n_rows or (np.diff(numbers) != 1).any():
        places = pa.array(numbers, mask=numbers < 0)
        vectors, dimensions = vectors.take(places), dimensions.take(places)
    columns = join_columns(window)
    columns[VECTOR], columns[DIMENSION] = vectors, dimensions
    columns[PROBLEM] = pa.array(problems, pa.string())
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


class _Items:
    """The prepared items of one window: arrays of one shape in a buffer, anything else in a list."""

    def __init__(self, n_items: int, reader: _Reader) -> None:
        self._list: list[Any] = [None] * n_items
        self._buffer: Any = None
        self._reader = reader
        self._lock = threading.Lock()

    def put(self, number: int, item: Any) -> None:
        """Store one item; called on the reading threads."""
        if not (isinstance(item, np.ndarray) and item.dtype == np.float32):
            self._list[number] = item
            return
        if self._buffer is None:
            with self._lock:
                if self._buffer is None:
                    self._buffer = self._reader.take_buffer(len(self._list), item.shape)
        if self._buffer.shape[1:] != item.shape:
            raise refuse_shapes(self._reader.name, self._buffer.shape[1:], item.shape)
        self._buffer[number] = item

    def take(self, numbers: list[int]) -> Any:
        """The items of these numbers (ascending), in an order of its own, and that order."""
        if self._buffer is None:
            return [self._list[number] for number in numbers], numbers
        n_good = len(numbers)
        moved = list(numbers[: int(np.searchsorted(numbers, n_good))])
        # Holes that bad items left are filled from the end: the model gets one contiguous array.
        late = numbers[len(moved) :]
        order = np.full(n_good, -1)
        order[moved] = moved
        holes = np.flatnonzero(order < 0)
        if len(holes):
            self._buffer[holes] = self._buffer[late]
            order[holes] = late
        return self._buffer[:n_good], order.tolist()

    def release(self) -> None:
        """Let another window have the buffer."""
        self._list = []
        if self._buffer is not None:
            self._reader.give_back(self._buffer)
            self._buffer = None


class _Task:
    """A window whose items are being read."""

    def __init__(self, window: Window, items: _Items, futures: list[Future[list[str | None]]]) -> None:
        self.window, self.items, self._futures = window, items, futures

    def wait(self, problems: Any) -> tuple[Any, Any]:
        """The rows of the good items and the items themselves; what is wrong with others goes to
        `problems`.
        """
        reasons = [reason for future in self._futures for reason in future.result()]
        good = []
        for number, reason in enumerate(reasons):
            if reason is None:
                good.append(number)
            else:
                problems[self.window.places[number][2]] = reason
        items, order = self.items.take(good)
        if isinstance(items, list) and items and isinstance(items[0], str):
            # Sorted by length, ties in the order they came.
            by_length = sorted(range(len(items)), key=lambda number: len(items[number]))
            items, order = [items[n] for n in by_length], [order[n] for n in by_length]
        rows = np.array([self.window.places[number][2] for number in order], dtype=np.int64)
        return rows, items


class _Reader:
    """Threads that turn values into prepared items."""

    def __init__(
        self,
        loaded: LoadedEncoder,
        settings: EncoderSettings,
        load: Callable[[Any], bytes | str] | None,
        threads: int,
    ) -> None:
        self.is_text = settings.kind == "texts"
        self.name = loaded.encoder.name
        self._encoder, self._settings, self._load = loaded.encoder, settings, load
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="spark-dbp-read")
        self._buffers: list[Any] = []
        self._lock = threading.Lock()

    def start(self, window: Window) -> _Task:
        """Begin to read the items of a window."""
        items = _Items(len(window.places), self)
        # Texts need no waiting for files: a few large pieces of work. Images one by one, for all threads to
        # end together.
        step = 256 if self.is_text and self._load is None else 1
        starts = range(0, len(window.places), step)
        futures = [self._pool.submit(self._read_some, window, items, first, step) for first in starts]
        return _Task(window, items, futures)

    def _read_some(self, window: Window, items: _Items, first: int, step: int) -> list[str | None]:
        """Read some items; why each is bad, or None."""
        reasons: list[str | None] = []
        for number in range(first, min(first + step, len(window.places))):
            array, place, _ = window.places[number]
            try:
                items.put(number, self._read(array[place].as_py()))
                reasons.append(None)
            except BadItemError as error:
                reasons.append(error.reason)
        return reasons

    def _read(self, value: Any) -> Any:
        if self._load is not None:
            try:
                value = self._load(value)
            except FileNotFoundError:
                raise BadItemError(bad_items.NO_SUCH_FILE) from None
            except OSError:
                raise BadItemError(bad_items.UNREADABLE) from None
        if self.is_text:
            item = _check_text(value)
        else:
            if not isinstance(value, bytes | bytearray | memoryview):
                raise ConfigError(
                    f"images come as {type(value).__name__}, not as the bytes of files",
                    mend="name a BINARY column in embed.images.column; for paths use "
                    "embed.images.path_column",
                )
            item = decode_image(bytes(value), self._settings.max_pixels)
        try:
            return self._encoder.prepare(item)
        except (BadItemError, SparkDbpError):
            raise
        except Exception as error:
            raise SparkDbpError(
                f"the encoder {self.name} failed to prepare an item{_describe(item)}: "
                f"{type(error).__name__}: {error}",
                mend="the key is not known here: find the item with a filter, or let prepare raise "
                "spark_dbp.encoders.BadItemError for what has no vector",
            ) from error

    def take_buffer(self, n_items: int, shape: tuple[int, ...]) -> Any:
        """Room for the arrays of a window; reused, and pinned where it goes to a GPU."""
        with self._lock:
            for number, buffer in enumerate(self._buffers):
                if buffer.shape[1:] == shape and len(buffer) >= n_items:
                    return self._buffers.pop(number)
        if self._encoder.device.startswith("cuda"):
            import torch

            return torch.empty((n_items, *shape), dtype=torch.float32, pin_memory=True).numpy()
        return np.empty((n_items, *shape), np.float32)

    def give_back(self, buffer: Any) -> None:
        """Keep a buffer for the next window."""
        with self._lock:
            self._buffers.append(buffer)

    def close(self) -> None:
        """End the threads; what was not begun is not."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(
            f"texts come as {type(value).__name__}",
            mend="name a STRING column, or cast in SQL, in embed.texts.column",
        )
    if not value.strip():
        raise BadItemError(bad_items.EMPTY_TEXT)
    return value


def _describe(item: Any) -> str:
    size = getattr(item, "size", None)
    return f" ({size[0]} x {size[1]} pixels)" if isinstance(size, tuple) else f" ({len(item)} characters)"
