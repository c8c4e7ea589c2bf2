"""Reading kept samples while training: against webdataset's own reading, and filters of a stream.

The images are CIFAR-10's test set, 10,000 JPEGs in five shards, below `SPARK_DBP_BENCH_DATA` as
``cifar10-test/``. The store is emulated: each request takes a fixed time and then its bytes at a fixed rate.
"""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import in_turn, report, scratch
from spark_dbp.loaders.index import ShardIndex, open_index, write_index
from spark_dbp.loaders.kept import KeptSamples
from spark_dbp.loaders.webdataset import KeptShards, kept, read_kept

_DATA = Path(os.environ.get("SPARK_DBP_BENCH_DATA") or Path(__file__).parents[2] / "shared" / "data")
_NEEDED = ("torch", "webdataset", "PIL")
_BATCH = 256
# Of the emulated store: seconds until a request is answered, and bytes a second of each.
_LATENCY, _RATE = 0.03, 50e6


def find_missing() -> list[str]:
    """What is not installed, or not there."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    return missing + ([] if (_DATA / "cifar10-test").is_dir() else [str(_DATA / "cifar10-test")])


def measure(n_samples: int, runs: int, num_workers: int = 2) -> None:
    """Print samples a second of webdataset and of the loaders, when all is kept, and when a tenth is.

    Parameters
    ----------
    n_samples : int
        Of the 10,000; whole shards of 2,000 are taken.
    runs : int
    num_workers : int
        Of the DataLoader, where one is used.
    """
    import webdataset as wds

    shards = [str(path) for path in sorted((_DATA / "cifar10-test").glob("*.tar"))][: -(-n_samples // 2000)]
    keys = [sample["__key__"] for sample in wds.WebDataset(shards, shardshuffle=False)]
    with scratch() as folder:
        sides: dict[str, Callable[[], object]] = {}
        n_kept = {}
        for share, name in ((1, "all"), (10, "tenth")):
            keep = set(keys[::share])
            n_kept[name] = len(keep)
            write_index(folder / name, shards, keep)
            sides |= {f"{name} {what}": side for what, side in _sides(shards, folder / name, keep).items()}
            sides |= {
                f"{name} {what}": side
                for what, side in _loaders(shards, folder / name, keep, num_workers).items()
            }
        seconds = in_turn(runs, 1, **sides)
    for name, title in (("all", "all are kept"), ("tenth", "a tenth is kept")):
        rows = []
        for what in (side.removeprefix(f"{name} ") for side in sides if side.startswith(f"{name} ")):
            base = _BASES[what.partition(":")[0]]
            took = seconds[f"{name} {what}"]
            ratio = seconds[f"{name} {base}"] / took
            rows.append((what, f"{n_kept[name] / took:,.0f} kept samples/s, {ratio:.2f} times {base!r}"))
        report(f"{len(keys):,} images in {len(shards)} shards, {title} (median of {runs}, in turn)", rows)


# What each group of sides is compared with.
_BASES = {
    "bytes": "bytes: webdataset, select",
    "decoded": "decoded: webdataset, select after decode",
    "workers": "workers: webdataset, select after decode",
}


def _sides(shards: list[str], index: Path, keep: set[str]) -> dict[str, Callable[[], object]]:
    """Ways to read kept samples in one process."""
    import webdataset as wds

    def whole() -> Any:
        return wds.WebDataset(shards, shardshuffle=False)

    def stream() -> Any:
        return wds.DataPipeline(wds.SimpleShardList(shards), read_kept(keep))

    def ours(**settings: Any) -> Any:
        return wds.DataPipeline(KeptShards(str(index), batch_size=_BATCH, **settings))

    is_kept = kept(keep)
    return {
        "bytes: webdataset, select": lambda: _count(whole().select(is_kept), keep),
        "bytes: read_kept": lambda: _count(stream(), keep),
        "bytes: KeptShards, in order": lambda: _count(ours(shuffle=False), keep),
        "bytes: KeptShards, shuffled": lambda: _count(ours(), keep),
        "decoded: webdataset, select after decode": lambda: _count(
            whole().decode("pil").select(is_kept), keep
        ),
        "decoded: webdataset, select before decode": lambda: _count(
            whole().select(is_kept).decode("pil"), keep
        ),
        "decoded: read_kept": lambda: _count(stream().compose(wds.decode("pil")), keep),
        "decoded: KeptShards, shuffled": lambda: _count(ours().compose(wds.decode("pil")), keep),
    }


def _loaders(
    shards: list[str], index: Path, keep: set[str], num_workers: int
) -> dict[str, Callable[[], object]]:
    """The same with worker processes."""
    import webdataset as wds

    from spark_dbp.loaders.torch import KeptDataset, KeptLoader

    more = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    whole = (
        wds.WebDataset(shards, shardshuffle=False, empty_check=False)
        .decode("pil")
        .select(kept(keep))
        .map(_to_pixels)
        .batched(_BATCH)
    )
    theirs = wds.WebLoader(whole, batch_size=None, **more)
    ours = KeptLoader(KeptDataset(str(index), batch_size=_BATCH, transform=_decode), **more)
    return {
        "workers: webdataset, select after decode": lambda: _count_batches(theirs, keep),
        "workers: KeptLoader, shuffled": lambda: _count_batches(ours, keep),
    }


def _to_pixels(sample: dict[str, Any]) -> Any:
    return (np.array(sample["jpg"]),)


def _decode(sample: dict[str, Any]) -> Any:
    from PIL import Image

    return (np.array(Image.open(io.BytesIO(sample["jpg"])).convert("RGB")),)


def _count(samples: Iterable[Any], keep: set[str]) -> None:
    found = sum(1 for _ in samples)
    assert found == len(keep), (found, len(keep))


def _count_batches(batches: Iterable[Any], keep: set[str]) -> None:
    found = sum(len(images) for (images,) in batches)
    assert found == len(keep), (found, len(keep))


# Stores.


def measure_store(n_samples: int, sample_bytes: int, shares: list[float]) -> None:
    """Print how long it takes to read kept samples of an emulated store: by ranges, and in whole shards.

    Parameters
    ----------
    n_samples, sample_bytes : int
        Of each of two shards.
    shares : list of float
        Kept shares of the samples.
    """
    _register_store()
    with scratch() as folder:
        shards = [_write_shard(folder / f"{number}.tar", n_samples, sample_bytes) for number in range(2)]
        rows = []
        for share in shares:
            keep = {f"{n:06d}" for n in range(n_samples) if int(n * share) != int((n + 1) * share)}
            write_index(folder / f"index-{share}", shards, keep)
            index = open_index(folder / f"index-{share}", moved=(str(folder), f"emulated://{folder}"))
            took = {}
            for name, above in (("ranges", 2.0), ("whole", 0.0)):
                cache = str(folder / f"cache-{share}")
                started = time.perf_counter()
                found = sum(1 for _ in _read_store(index, cache, above))
                took[name] = time.perf_counter() - started
                assert found == 2 * len(keep)
            rows.append((f"{share:.1%} kept", f"ranges {took['ranges']:.2f} s, whole {took['whole']:.2f} s"))
    report(
        f"store with {_LATENCY * 1000:.0f} ms and {_RATE / 1e6:.0f} MB/s a request: two shards of "
        f"{n_samples:,} samples of {sample_bytes:,} bytes, one process",
        rows,
    )


def _read_store(index: ShardIndex, cache: str, above: float) -> KeptSamples:
    return KeptSamples(index, batch_size=_BATCH, cache_dir=cache, whole_shard_above=above)


def _write_shard(path: Path, n_samples: int, sample_bytes: int) -> str:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(n_samples):
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = sample_bytes
            tar.addfile(info, io.BytesIO(bytes(sample_bytes)))
    return str(path)


def _register_store() -> None:
    import fsspec
    from fsspec.spec import AbstractFileSystem

    class EmulatedStore(AbstractFileSystem):  # type: ignore[misc,unused-ignore]
        protocol = "emulated"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("emulated://").lstrip("/")

        def cat_file(self, path: str, start: int = 0, end: int = 0, **_: Any) -> bytes:
            time.sleep(_LATENCY + (end - start) / _RATE)
            with Path(self._strip_protocol(path)).open("rb") as stream:
                stream.seek(start)
                return stream.read(end - start)

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            time.sleep(_LATENCY)
            local = self._strip_protocol(path)
            return {"name": local, "size": Path(local).stat().st_size, "type": "file"}

    fsspec.register_implementation("emulated", EmulatedStore, clobber=True)
