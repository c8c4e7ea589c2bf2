"""Choose the device and the type that a model computes in. Imports `errors`; torch inside functions."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from spark_dbp.errors import ConfigError


def _find_torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def list_gpus() -> list[int]:
    """Numbers of the GPUs that torch sees."""
    torch = _find_torch()
    if torch is None or not torch.cuda.is_available():
        return []
    return list(range(torch.cuda.device_count()))


def choose_devices(device: str, gpu: str | None, gpus: list[int]) -> list[str]:
    """Devices that may be taken, the first that is free.

    Parameters
    ----------
    device : str
        The user's ``embed.device``.
    gpu : str, optional
        Address of the GPU that Spark gave to the task.
    gpus : list of int
        Numbers of the GPUs that there are.

    Returns
    -------
    list of str
        ``["cpu"]``, ``["mps"]``, or one ``cuda:N`` or more.

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> choose_devices("auto", None, []), choose_devices("auto", None, [0, 1])
    (['cpu'], ['cuda:0', 'cuda:1'])
    >>> choose_devices("cuda", "1", [0, 1])
    ['cuda:1']
    """
    if device == "cpu" or (device == "auto" and not gpus):
        return ["cpu"]
    if device == "mps":
        torch = _find_torch()
        if torch is None or not torch.backends.mps.is_available():
            raise ConfigError(
                "embed.device is mps, and there is none here", mend="set embed.device: cpu or auto"
            )
        return ["mps"]
    if not gpus:
        raise ConfigError(
            f"embed.device is {device}, and no GPU can be used here",
            mend="set embed.device: cpu or auto, or run where nvidia-smi shows a GPU, with a build of "
            "torch (or "
            "onnxruntime-gpu) that is for it",
        )
    _, _, number = device.partition(":")
    number = number or (_translate(gpu) if gpu is not None else "")
    if not number:
        return [f"cuda:{index}" for index in gpus]
    if int(number) not in gpus:
        raise ConfigError(
            f"embed.device names the GPU {number}, and there are only {len(gpus)} here, from 0 on",
            mend="set embed.device: cuda or auto, or a number that each worker has",
        )
    return [f"cuda:{number}"]


def _translate(address: str) -> str:
    """Spark names a GPU of the machine; torch counts those that CUDA_VISIBLE_DEVICES leaves."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if address in visible:
        return str(visible.index(address))
    return address if address.isdigit() else ""


def choose_dtype(dtype: str, device: str) -> str:
    """The type to compute in: ``float32``, ``float16`` or ``bfloat16``.

    ``auto`` is float32, but on a GPU bfloat16 where it computes in that, else float16.

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> choose_dtype("auto", "cpu")
    'float32'
    >>> choose_dtype("float16", "cpu")
    Traceback (most recent call last):
    spark_dbp.errors.ConfigError: ...
    """
    if not device.startswith("cuda"):
        if dtype == "float16":
            raise ConfigError(
                f"embed.dtype is float16, which models do not compute in on {device}",
                mend="set embed.dtype: auto or float32 (bfloat16 works on newer CPUs)",
            )
        return "float32" if dtype == "auto" else dtype
    if dtype != "auto":
        return dtype
    torch = _find_torch()
    if torch is None:
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"


def use_dtype(device: str, dtype: str) -> AbstractContextManager[Any]:
    """Run a model in half precision where it is safe (autocast); weights and sums stay float32."""
    if dtype == "float32":
        return nullcontext()
    torch = _find_torch()
    context: AbstractContextManager[Any] = torch.autocast(device.partition(":")[0], getattr(torch, dtype))
    return context


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a model failed because its batch was too large for the memory.

    Examples
    --------
    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("CUDA out of memory. Tried ..."))
    (True, True)
    >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "failed to allocate", "cublas_status_alloc_failed")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def free_memory(device: str) -> None:
    """Give back what torch keeps of a GPU's memory after a batch that was too large."""
    torch = _find_torch() if device.startswith("cuda") else None
    if torch is not None:
        torch.cuda.empty_cache()


def default_batch_size(kind: str, device: str) -> int:
    """Items at once where neither the user nor the encoder says."""
    if device.startswith("cuda"):
        return 64 if kind == "images" else 256
    return 16 if kind == "images" else 32


def bound_threads(threads: int) -> None:
    """Keep torch, where it is loaded at all, and tokenizers to the cores of the task.

    Tokenizers would start as many threads as the machine has cores, in each worker, with its first batch.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
