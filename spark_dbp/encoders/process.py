"""The model of this process: loaded once, run in batches that fit.

Imports numpy, `errors` and what is beside it.
"""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spark_dbp.encoders import devices
from spark_dbp.encoders.gpu_slots import Slot, acquire_slot
from spark_dbp.encoders.identity import check_identity, describe_located
from spark_dbp.encoders.locate import Located, locate_encoder
from spark_dbp.encoders.open import count_cores, list_usable_gpus, open_located, pin_revision
from spark_dbp.encoders.protocol import Encoder, FloatArray, check_embeddings
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.errors import ConfigError, SparkDbpError

_log = logging.getLogger("spark_dbp.encoders")


class LoadedEncoder:
    """An encoder and the batch size that it runs with in this process.

    Attributes
    ----------
    encoder : Encoder
    batch_size : int
        Halved for good where the memory did not hold a batch.
    dimension : int or None
        Of the embeddings, once there was one.
    """

    def __init__(self, encoder: Encoder, batch_size: int | None, slot: Slot | None = None) -> None:
        self.encoder = encoder
        self.batch_size = batch_size or encoder.batch_size
        self.dimension: int | None = None
        self._slot = slot

    def encode(self, items: Any) -> FloatArray:
        """The embeddings of any number of prepared items, in batches.

        Parameters
        ----------
        items : ndarray, shape (n, ...), or list
            What the encoder's `prepare` returned; n >= 1.

        Returns
        -------
        ndarray of float32, shape (n, dim)

        Raises
        ------
        ConfigError
            Not even one item fits the memory, or the encoder returned something else than embeddings.
        SparkDbpError
            The model failed.
        """
        found: FloatArray | None = None
        start = 0
        while start < len(items):
            part = self._encode_once(items[start : start + self.batch_size])
            if part is None:
                self._halve()
                continue
            if len(part) == len(items):
                return part
            if found is None:
                found = np.empty((len(items), part.shape[1]), np.float32)
            found[start : start + len(part)] = part
            start += len(part)
        assert found is not None
        return found

    def _encode_once(self, batch: Any) -> FloatArray | None:
        """The embeddings of one batch, or None where the memory did not hold it."""
        name = self.encoder.name
        try:
            found = self.encoder.encode(batch)
        except SparkDbpError:
            raise
        except Exception as error:
            if devices.is_out_of_memory(error):
                return None  # the error, and with it what its frames hold, goes before the next try
            raise SparkDbpError(
                f"the encoder {name} failed on a batch of {len(batch)} items: {type(error).__name__}: "
                f"{error}",
                mend="the keys are not known here: find the item with embed.batch_size: 1 and a filter, or "
                "let "
                "the encoder take whatever decodes",
            ) from error
        matrix = check_embeddings(name, found, len(batch), self.dimension)
        self.dimension = matrix.shape[1]
        return matrix

    def _halve(self) -> None:
        gc.collect()
        devices.free_memory(self.encoder.device)
        if self.batch_size == 1:
            raise ConfigError(
                f"the encoder {self.encoder.name} runs out of memory on {self.encoder.device} with one item "
                "(embed.batch_size is 1 now)",
                mend="take a smaller encoder, embed.dtype: auto, fewer processes on the device "
                "(embed.workers_per_gpu), or a machine with more memory",
            )
        self.batch_size //= 2
        _log.warning(
            "encoder %s: out of memory, embed.batch_size goes down to %d", self.encoder.name, self.batch_size
        )

    def close(self) -> None:
        """Drop the model, and give up the place on the GPU."""
        device = self.encoder.device
        del self.encoder
        gc.collect()
        devices.free_memory(device)
        if self._slot is not None:
            self._slot.release()

    @property
    def holds_slot(self) -> bool:
        """Whether it holds a place on a GPU, of which there are few."""
        return self._slot is not None

    def is_awaited(self) -> bool:
        """Whether another process waits for the place on the GPU."""
        return self._slot is not None and self._slot.is_awaited()


# One model a process: Spark's Python workers run many tasks, and loading takes seconds.
_loaded: dict[str, LoadedEncoder] = {}
_users: dict[int, int] = {}
_lock = threading.Lock()
# Seconds after which a model on a GPU that no stream uses makes way.
_IDLE_S = 2.0


def get_encoder(
    settings: EncoderSettings,
    *,
    cores: int | None = None,
    gpu: str | None = None,
    identity: Mapping[str, Any] | None = None,
) -> LoadedEncoder:
    """The encoder of these settings, loaded once in this process; another one that no one uses is dropped.

    Parameters
    ----------
    settings : EncoderSettings
    cores : int, optional
        Threads that the model may use on the CPU; None: as many as this process has cores.
    gpu : str, optional
        Address of the GPU that Spark gave to the task.
    identity : mapping, optional
        What `identify_encoder` said on the driver; other files are refused.

    Raises
    ------
    ConfigError
    """
    with _lock:
        settings = pin_revision(settings, identity)
        located = locate_encoder(settings)
        key = json.dumps([settings.to_text(), gpu, _stamp_files(located)])
        threads = cores or count_cores()
        if key not in _loaded:
            if identity is not None:
                check_identity(describe_located(settings, located), identity)
            for other in [k for k, v in _loaded.items() if not _users.get(id(v))]:
                _loaded.pop(other).close()
            _loaded[key] = _load(settings, located, threads, gpu)
        devices.bound_threads(threads)
        return _loaded[key]


def use_encoder(loaded: LoadedEncoder) -> None:
    """Note that a stream uses this encoder: it is not dropped meanwhile."""
    with _lock:
        _users[id(loaded)] = _users.get(id(loaded), 0) + 1


def leave_encoder(loaded: LoadedEncoder) -> None:
    """Note that a stream is done; a model on a GPU makes way for another process after a while."""
    with _lock:
        _users[id(loaded)] -= 1
        if not _users[id(loaded)]:
            del _users[id(loaded)]
            if loaded.holds_slot:
                threading.Thread(target=_make_way, args=(loaded,), daemon=True).start()


def _make_way(loaded: LoadedEncoder) -> None:
    """Give the GPU up when no stream has come for a while, and another process waits for it.

    Not at once: the next task of Spark most often comes to this process, and loading takes seconds.
    """
    left = time.monotonic()
    while True:
        time.sleep(_IDLE_S / 8)
        with _lock:
            key = next((k for k, v in _loaded.items() if v is loaded), None)
            if key is None or _users.get(id(loaded)):
                return  # it is gone, or at work again
            if time.monotonic() - left > _IDLE_S and loaded.is_awaited():
                _loaded.pop(key).close()
                return


def forget_encoders() -> None:
    """Drop what is loaded in this process."""
    with _lock:
        while _loaded:
            _loaded.popitem()[1].close()


def _load(settings: EncoderSettings, located: Located, threads: int, gpu: str | None) -> LoadedEncoder:
    choice = devices.choose_devices(settings.device, gpu, list_usable_gpus(located))
    slot = acquire_slot(choice, settings.workers_per_gpu) if choice[0].startswith("cuda") else None
    device = slot.device if slot is not None else choice[0]
    try:
        encoder = open_located(settings, located, device, threads)
    except BaseException:
        if slot is not None:
            slot.release()
        raise
    return LoadedEncoder(encoder, settings.batch_size, slot)


def _stamp_files(located: Located) -> list[Any]:
    """Size and time of change of the files: a model that was replaced is loaded anew."""
    found = []
    for path in (*located.weights, *located.preprocessing):
        state = Path(path).stat()
        found.append([str(path), state.st_size, state.st_mtime_ns])
    return found
