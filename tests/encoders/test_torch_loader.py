"""The loaders with the real torch, and the real webdataset and torchdata where they are installed."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import warnings
from collections import Counter
from pathlib import Path

import pytest
from made_shards import add_member, keys_of, number_of, write_shards, write_trie

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from spark_dbp.errors import ConfigError, InputError  # noqa: E402
from spark_dbp.exchange.plan_shards import plan_shards  # noqa: E402
from spark_dbp.exchange.write_shards import NewShard, write_shard  # noqa: E402
from spark_dbp.loaders.index import open_index, write_index  # noqa: E402
from spark_dbp.loaders.torch import KeptDataset, KeptLoader  # noqa: E402
from spark_dbp.loaders.webdataset import KeptShards, kept, read_kept  # noqa: E402

SIZES = [40, 7, 25, 60, 1]
KEPT = [number for number in range(133) if number % 7]
BATCH = 8
TOO_MANY = "This DataLoader will create"  # more processes than there are cores
pytestmark = pytest.mark.filterwarnings(f"ignore:{TOO_MANY}")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)


@pytest.fixture(scope="module")
def index(shards, tmp_path_factory) -> str:
    keys = keys_of(SIZES)
    out = tmp_path_factory.mktemp("index") / "index"
    write_index(out, shards, {keys[n] for n in KEPT})
    return str(out)


def make(index: str, **settings: object) -> KeptDataset:
    return KeptDataset(
        index, **{"batch_size": BATCH, "shuffle_window": 20, "transform": number_of, "seed": 1, **settings}
    )


def numbers(batches) -> list[int]:
    return [number for batch in batches for number in batch.tolist()]


# Ranks and workers.


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 1, 2, 4])
def test_the_union_is_the_kept_set_and_the_order_does_not_depend_on_workers(index, num_workers, world_size):
    every: list[int] = []
    for rank in range(world_size):
        dataset = make(index, rank=rank, world_size=world_size)
        alone = list(make(index, rank=rank, world_size=world_size))
        plain = DataLoader(dataset, batch_size=BATCH, num_workers=num_workers)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", TOO_MANY)
            assert len(plain) == -(-len(dataset) // BATCH)
            batches = list(plain)
        ours = KeptLoader(make(index, rank=rank, world_size=world_size), num_workers=num_workers)
        assert len(ours) == len(batches) == len(plain) == dataset.count_batches(rank)
        assert numbers(batches) == numbers(ours) == alone
        assert len(alone) == len(dataset)
        every += alone
    counts = Counter(every)
    assert set(counts) == set(KEPT)
    assert len(every) == len(KEPT) + dataset.n_padded


@pytest.mark.parametrize("num_workers", [0, 1, 2, 4])
def test_equal_workers(index, num_workers):
    got = []
    for rank in range(2):
        dataset = make(index, rank=rank, world_size=2, equal_workers=True, num_workers=num_workers)
        loader = KeptLoader(dataset, num_workers=num_workers)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert len(batches) % max(1, num_workers) == 0
        assert numbers(batches) == list(make(index, rank=rank, world_size=2, **equal(num_workers)))
        got += numbers(batches)
    assert set(got) == set(KEPT)
    assert len(got) == len(KEPT) + dataset.n_padded


def equal(num_workers: int) -> dict:
    return {"equal_workers": True, "num_workers": num_workers}


# Resuming.


@pytest.mark.parametrize("num_workers", [0, 1, 2, 4])
def test_resumed_after_any_batch_with_other_workers(index, num_workers):
    whole = numbers(KeptLoader(make(index, epoch=2)))
    loader = KeptLoader(make(index, epoch=2), num_workers=num_workers)
    states = [loader.state_dict()]
    for _ in loader:
        states.append(json.loads(json.dumps(loader.state_dict())))
    assert [state["sample_in_epoch"] for state in states] == [*range(0, len(KEPT), BATCH), len(KEPT)]
    for delivered, state in enumerate(states):
        for other in {0, num_workers, 2, 4} if delivered % 5 == 3 else {0}:
            again = KeptLoader(make(index), num_workers=other)
            again.load_state_dict(state)
            assert again.state_dict() == state
            assert numbers(again) == whole[delivered * BATCH :]
    # After the pass: the beginning of the next one.
    state = loader.state_dict()
    assert (state["epoch"], state["sample_in_epoch"]) == (3, 0)
    again = KeptLoader(make(index))
    again.load_state_dict(state)
    assert numbers(again) == numbers(KeptLoader(make(index, epoch=3)))


def test_resumed_at_every_tenth_sample(index):
    """The state is taken sample by sample, in one process; others go on with workers."""
    whole = list(make(index))
    dataset = make(index)
    stream = iter(dataset)
    for at in range(0, len(KEPT), 10):
        state = dataset.state_dict()
        assert state["sample_in_epoch"] == at
        for num_workers in (0, 1, 2, 4) if at % 40 == 10 else (0,):
            again = make(index)
            again.load_state_dict(state)
            loader = DataLoader(again, batch_size=BATCH, num_workers=num_workers)
            assert numbers(loader) == whole[at:]
            assert numbers(loader) == whole  # a position holds for one pass
        for _ in range(10):
            next(stream, None)


def test_resumed_with_other_ranks(index):
    for ranks, others in ((1, 2), (2, 1), (2, 3), (3, 2)):
        loaders = [
            KeptLoader(make(index, rank=rank, world_size=ranks), num_workers=2) for rank in range(ranks)
        ]
        streams = [iter(loader) for loader in loaders]
        done = [number for stream in streams for _ in range(2) for number in next(stream).tolist()]
        states = [loader.state_dict() for loader in loaders]
        assert all(state == states[0] for state in states)
        rest: list[int] = []
        for rank in range(others):
            again = make(index, rank=rank, world_size=others, remainder="uneven", batch_size=5)
            loader = KeptLoader(again, num_workers=1)
            loader.load_state_dict(states[0])
            rest += numbers(loader)
        assert sorted(done + rest) == KEPT


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_that_was_broken_off_begins_anew(index, num_workers):
    loader = KeptLoader(make(index), num_workers=num_workers)
    whole = numbers(loader)
    for number, _ in enumerate(loader):
        if number == 2:
            break
    assert loader.state_dict()["sample_in_epoch"] == 24
    assert numbers(loader) == whole
    loader.load_state_dict(loader.dataset.make_state(0, make_rest(24)))
    next(iter(loader))
    assert numbers(loader) == whole


def make_rest(position: int):
    from spark_dbp.loaders.order import Rest

    return Rest(position)


def test_a_dataset_that_a_loader_has_gone_through_is_as_before(index):
    whole = list(make(index))
    dataset = make(index)
    loader = KeptLoader(dataset, num_workers=1)
    loader.load_state_dict(dataset.make_state(0, make_rest(40)))
    assert numbers(loader) == whole[40:]
    assert list(dataset) == whole
    assert numbers(DataLoader(dataset, batch_size=BATCH, num_workers=1)) == whole
    assert numbers(loader) == whole


# Epochs, and workers that live on.


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_set_epoch_reaches_persistent_workers(index, num_workers, context):
    more = {"persistent_workers": True, "multiprocessing_context": context} if num_workers else {}
    if not num_workers and context == "spawn":
        return
    for kind in (KeptLoader, plain_loader):
        loader = kind(make(index), num_workers=num_workers, **more)
        dataset = loader.dataset
        for epoch in (0, 1, 0, 5):
            (loader if kind is KeptLoader else dataset).set_epoch(epoch)
            assert numbers(loader) == list(make(index, epoch=epoch))
        state = dataset.make_state(7, make_rest(40))
        (loader if kind is KeptLoader else dataset).load_state_dict(state)
        expected = list(make(index, epoch=7))
        assert numbers(loader) == expected[40:]
        assert numbers(loader) == expected  # the position was for one pass


def plain_loader(dataset: KeptDataset, **settings: object) -> DataLoader:
    return DataLoader(dataset, batch_size=BATCH, **settings)


def test_workers_that_do_not_live_on(index):
    loader = KeptLoader(make(index), num_workers=2)
    for epoch in range(3):
        loader.set_epoch(epoch)
        assert numbers(loader) == list(make(index, epoch=epoch))
    assert numbers(loader) == list(make(index, epoch=2))


def test_a_dataset_can_be_pickled(index):
    dataset = make(index, rank=1, world_size=2)
    assert list(pickle.loads(pickle.dumps(dataset))) == list(dataset)


# What cannot be known or done is refused.


def test_a_dataset_does_not_know_what_workers_delivered(index):
    dataset = make(index)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=2)
    stream = iter(loader)
    for _ in range(3):
        next(stream)
    with pytest.raises(ConfigError, match="does not know how many were delivered") as caught:
        dataset.state_dict()
    assert "KeptLoader" in str(caught.value)
    state = dataset.state_dict(delivered=24)
    again = make(index)
    again.load_state_dict(state)
    assert list(again) == list(make(index))[24:]
    del stream
    assert len(list(dataset)) == len(KEPT)
    assert dataset.state_dict()["sample_in_epoch"] == len(KEPT)


def fail(sample: dict) -> int:
    number = number_of(sample)
    if number == 50:
        raise ZeroDivisionError("no such image")
    return number


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_transform_that_fails_names_the_sample(index, num_workers):
    loader = KeptLoader(make(index, transform=fail), num_workers=num_workers)
    with pytest.raises(InputError, match=r"transform failed on sample .*000050.* of .*00002\.tar") as caught:
        list(loader)
    assert "no such image" in str(caught.value)


BAD = {
    "batch_size": ({"batch_size": 4}, "batch_size is 4, and that of the dataset 8"),
    "no batches": ({"batch_size": None}, "batch_size is None"),
    "shuffle": ({"shuffle": True}, "takes no shuffle"),
    "sampler": ({"sampler": [1]}, "takes no sampler"),
    "drop_last": ({"drop_last": True}, "takes no drop_last"),
    "order": ({"in_order": False}, "in_order=False"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused(index, name):
    settings, message = BAD[name]
    with pytest.raises(ConfigError, match=message) as caught:
        KeptLoader(make(index), **settings)
    assert "to mend it" in str(caught.value)


def test_other_bad_settings_are_refused(index):
    with pytest.raises(ConfigError, match="got a list"):
        KeptLoader([1, 2])
    with pytest.raises(ConfigError, match="transform is int"):
        make(index, transform=3)
    with pytest.raises(ConfigError, match="num_workers is 3, and that of the dataset 2"):
        KeptLoader(make(index, **equal(2)), num_workers=3)
    with pytest.raises(ConfigError, match="the state has seed 1, this loader 2"):
        KeptLoader(make(index, seed=2)).load_state_dict(KeptLoader(make(index)).state_dict())


def test_errors_of_workers_stay_what_they_are(tmp_path):
    shards = write_shards(tmp_path / "shards", SIZES)
    write_index(tmp_path / "index", shards, set(keys_of(SIZES)))
    Path(shards[3]).unlink()
    with pytest.raises(InputError, match=r"cannot read shard .*00003\.tar"):
        list(KeptLoader(make(str(tmp_path / "index")), num_workers=2))


# The ranks of torch.distributed.


def test_ranks_of_torch_distributed_are_found(index, tmp_path):
    import torch.distributed as dist

    dataset = make(index)
    assert len(dataset) == len(KEPT)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert len(dataset) == len(KEPT)
        assert numbers(KeptLoader(dataset, num_workers=1)) == list(make(index, rank=0, world_size=1))
    finally:
        dist.destroy_process_group()


# torchdata.


@pytest.mark.parametrize("num_workers", [0, 1, 2, 4])
def test_torchdata_stateful_loader(index, num_workers):
    """It keeps the state of each worker, and wants as many of them again."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    whole = list(make(index, epoch=1))

    def make_loader():
        return stateful(make(index, epoch=1), batch_size=BATCH, num_workers=num_workers)

    loader = make_loader()
    states = [loader.state_dict()]
    for _ in loader:
        states.append(loader.state_dict())
    for delivered, state in enumerate(states):
        if num_workers and delivered % 4 not in (0, 1):
            continue
        again = make_loader()
        again.load_state_dict(state)
        if delivered == len(states) - 1:
            assert numbers(again) == []
        else:
            assert numbers(again) == whole[delivered * BATCH :]
        assert numbers(again) == whole


# webdataset.


@pytest.mark.parametrize("num_workers", [0, 1, 2, 4])
@pytest.mark.parametrize("world_size", [1, 2])
def test_webdataset_pipelines(index, num_workers, world_size):
    wds = pytest.importorskip("webdataset")
    every: list[int] = []
    for rank in range(world_size):
        shards = KeptShards(
            index, batch_size=BATCH, shuffle_window=20, seed=1, rank=rank, world_size=world_size
        )
        pipeline = wds.DataPipeline(shards, wds.decode(), wds.to_tuple("cls"), wds.batched(BATCH))
        loader = wds.WebLoader(pipeline, batch_size=None, num_workers=num_workers)
        for epoch in range(2):
            shards.set_epoch(epoch)
            got = [int(number) for (batch,) in loader for number in batch]
            expected = list(make(index, rank=rank, world_size=world_size, epoch=epoch))
            assert got == expected
            assert len(got) == len(shards)
        every += got
    assert set(every) == set(KEPT)


def test_webdataset_persistent_workers(index):
    wds = pytest.importorskip("webdataset")
    shards = KeptShards(index, batch_size=BATCH, shuffle_window=20, seed=1)
    pipeline = wds.DataPipeline(shards, wds.decode(), wds.to_tuple("cls"), wds.batched(BATCH))
    loader = wds.WebLoader(pipeline, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in range(3):
        shards.set_epoch(epoch)
        assert [int(number) for (batch,) in loader for number in batch] == list(make(index, epoch=epoch))


def test_kept_shards_in_a_loader_of_torch(index):
    shards = KeptShards(index, batch_size=BATCH, shuffle_window=20, seed=1)
    loader = DataLoader(shards, batch_size=BATCH, collate_fn=lambda batch: [number_of(one) for one in batch])
    assert [number for batch in loader for number in batch] == list(make(index))


def test_samples_are_those_of_webdataset(index, shards):
    """Kept by an index, by a stage, and by a predicate."""
    wds = pytest.importorskip("webdataset")
    keep = {key for number, key in enumerate(keys_of(SIZES)) if number in KEPT}
    by_webdataset = list(wds.WebDataset(shards, shardshuffle=False).select(kept(keep)))
    assert [number_of(sample) for sample in by_webdataset] == KEPT
    urls = wds.SimpleShardList(shards)
    by_stage = list(wds.DataPipeline(urls, read_kept(keep)))
    opener = wds.tariterators.url_opener
    by_opener = list(wds.DataPipeline(urls, wds.split_by_worker, opener, read_kept(keep)))
    by_index = list(wds.DataPipeline(KeptShards(index, batch_size=4, shuffle=False)))

    def bare(samples: list[dict]) -> list[dict]:
        return [
            {name: value for name, value in sample.items() if name != "__local_path__"} for sample in samples
        ]

    assert bare(by_index) == bare(by_stage) == bare(by_opener) == bare(by_webdataset)


def test_webdataset_by_json(shards):
    wds = pytest.importorskip("webdataset")
    from made_shards import uid_of

    keep = {uid_of(number) for number in KEPT}
    by_webdataset = list(wds.WebDataset(shards, shardshuffle=False).select(kept(keep, "json:uid")))
    decoded = list(wds.WebDataset(shards, shardshuffle=False).decode().select(kept(keep, "json:uid")))
    by_stage = list(wds.DataPipeline(wds.SimpleShardList(shards), read_kept(keep, "json:uid")))
    for samples in (by_webdataset, decoded, by_stage):
        assert [int(sample["cls"]) for sample in samples] == KEPT


# Real images.

ROOT = Path(__file__).resolve().parents[2]
PART = ROOT / "notebooks" / "data" / "cifar10-part"
WHOLE = Path(os.environ.get("SPARK_DBP_BENCH_DATA") or ROOT.parent / "shared" / "data") / "cifar10-test"


def to_image(sample: dict) -> tuple:
    import numpy as np
    from PIL import Image

    return np.array(Image.open(io.BytesIO(sample["jpg"])).convert("RGB")), json.loads(sample["json"])["uid"]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("folder", [PART, WHOLE], ids=["part", "whole"])
def test_a_tenth_of_real_images(folder, num_workers, tmp_path):
    wds = pytest.importorskip("webdataset")
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = wds.WebDataset(shards, shardshuffle=False, empty_check=False)
    uids = [json.loads(sample["json"])["uid"] for sample in samples]
    keep = set(uids[::10])
    report = write_index(tmp_path / "index", shards, keep, key="json:uid")
    assert (report.info["n_kept"], report.missing, report.twice) == (len(keep), 0, 0)
    for world_size in (1, 2):
        got: list[str] = []
        for rank in range(world_size):
            settings = {"batch_size": 16, "transform": to_image, "rank": rank, "world_size": world_size}
            loader = KeptLoader(KeptDataset(str(tmp_path / "index"), **settings), num_workers=num_workers)
            stream = iter(loader)
            images, names = next(stream)
            assert images.shape[1:] == (32, 32, 3)
            again = KeptLoader(KeptDataset(str(tmp_path / "index"), **settings))
            again.load_state_dict(loader.state_dict())
            rest = [uid for _, batch in again for uid in batch]
            assert rest == [uid for _, batch in stream for uid in batch]
            assert len(names) + len(rest) == len(loader.dataset)
            got += [*names, *rest]
        assert set(got) == keep
        assert len(got) == len(keep) + loader.dataset.n_padded


def test_webdataset_reads_new_shards(tmp_path):
    """Of real images: the same samples as webdataset filters out of the old ones; sizes.json says how many."""
    wds = pytest.importorskip("webdataset")
    shards = [str(path) for path in sorted(PART.glob("*.tar"))]
    uids = [
        json.loads(sample["json"])["uid"]
        for sample in wds.WebDataset(shards, shardshuffle=False, empty_check=False)
    ]
    write_index(tmp_path / "index", shards, set(uids[::3]), key="json:uid")
    index = open_index(tmp_path / "index")
    plan = plan_shards(index, samples=50)
    for n in range(len(plan)):
        new = NewShard(plan.name(n), plan.list_pieces(n, index.kept), plan.samples[n], plan.bytes[n])
        write_shard(index, new, str(tmp_path), renames=True)

    def read(paths: list[str]) -> list[dict]:
        samples = wds.WebDataset(paths, shardshuffle=False, empty_check=False)
        return [{name: value for name, value in sample.items() if name[:2] != "__"} for sample in samples]

    new = sorted(map(str, tmp_path.glob("*.tar")))
    kept_uids = set(uids[::3])
    assert read(new) == [sample for sample in read(shards) if json.loads(sample["json"])["uid"] in kept_uids]
    assert [len(read([path])) for path in new] == plan.samples == [50, 50, 34]


# The docs.


def write_images(folder: Path, n_shards: int, n_samples: int) -> list[str]:
    """Shards of small images with their classes. Returns the keys."""
    from PIL import Image

    folder.mkdir()
    keys = []
    for shard in range(n_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(n_samples):
                keys.append(f"{shard:05d}{number:04d}")
                stream = io.BytesIO()
                Image.new("RGB", (8, 8), (number, shard, 0)).save(stream, "JPEG")
                add_member(tar, f"{keys[-1]}.jpg", stream.getvalue())
                add_member(tar, f"{keys[-1]}.cls", str(number % 10).encode())
    return keys


def test_the_examples_of_the_docs_run(tmp_path):
    pytest.importorskip("webdataset")
    keys = write_images(tmp_path / "shards", 2, 100)
    write_trie(tmp_path / "run", keys[::2])
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/loaders.md").read_text(), flags=re.M | re.S)
    assert len(blocks) >= 5
    checks = (
        "assert report.info['n_kept'] == n_streamed == 2 * n_selected == 100\n"
        "assert len(loader) == 4 and state['sample_in_epoch'] == 64, state\nprint('DONE')"
    )
    (tmp_path / "examples.py").write_text("\n\n".join([*blocks, checks]))
    done = subprocess.run(
        [sys.executable, "examples.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.rstrip().endswith("DONE")
