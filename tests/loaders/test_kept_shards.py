"""KeptShards: each kept sample once, whatever the ranks and workers; resumed anywhere."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from conftest import ROOT
from made_shards import expected_sample, keys_of, number_of, write_shards

from spark_dbp.errors import ConfigError, InputError
from spark_dbp.loaders.index import open_index, write_index
from spark_dbp.loaders.webdataset import KeptShards

SIZES = [40, 7, 25, 60, 1]
KEPT = [number for number in range(133) if number % 7]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)


@pytest.fixture(scope="module")
def index(shards, tmp_path_factory):
    keys = keys_of(SIZES)
    out = tmp_path_factory.mktemp("index") / "index"
    write_index(out, shards, {keys[n] for n in KEPT})
    return str(out)


def make(index: str, **settings: object) -> KeptShards:
    return KeptShards(index, **{"batch_size": 8, "shuffle_window": 20, **settings})


def numbers(samples) -> list[int]:
    return [number_of(sample) for sample in samples]


def worker(monkeypatch, worker: int, num_workers: int) -> None:
    monkeypatch.setenv("WORKER", str(worker))
    monkeypatch.setenv("NUM_WORKERS", str(num_workers))


def in_step(of_ranks: list[list[int]], batch_size: int) -> list[int]:
    """What ranks that have full batches get, in the order of the epoch."""
    longest = max(map(len, of_ranks))
    return [
        n for at in range(0, longest, batch_size) for mine in of_ranks for n in mine[at : at + batch_size]
    ]


def test_samples_are_complete(index, shards):
    for sample in make(index):
        number = number_of(sample)
        shard = next(n for n, size in enumerate(SIZES) if number < sum(SIZES[: n + 1]))
        assert sample == expected_sample(number, shard, shards[shard])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_the_union_over_ranks_and_workers_is_the_kept_set(index, monkeypatch, world_size, num_workers):
    every: list[int] = []
    alone = numbers(make(index, seed=3))
    of_ranks = []
    for rank in range(world_size):
        mine = make(index, seed=3, rank=rank, world_size=world_size)
        batches: dict[int, list[int]] = {}
        for number in range(num_workers):
            worker(monkeypatch, number, num_workers)
            got = numbers(mine)
            assert len(got) == mine.count_samples(rank, number, num_workers)
            for at, batch in enumerate(range(0, len(got), 8)):
                batches[number + at * num_workers] = got[batch : batch + 8]
            assert -(-len(got) // 8) == mine.count_batches(rank, number, num_workers)
        delivered = [n for batch in sorted(batches) for n in batches[batch]]
        assert len(delivered) == len(mine) == mine.count_samples(rank)
        assert len(batches) == mine.count_batches(rank)
        of_ranks.append(delivered)
        every += delivered
    counts = Counter(every)
    assert set(counts) == set(KEPT)
    assert sum(counts.values()) - len(counts) == mine.n_padded == -len(KEPT) % world_size
    assert mine.count_samples() == sum(counts.values())
    full = len(KEPT) // (8 * world_size) * 8
    assert in_step([mine[:full] for mine in of_ranks], 8) == alone[: full * world_size]


def test_the_order_follows_from_seed_and_epoch(index):
    shards = make(index, seed=1)
    first = numbers(shards)
    assert first == numbers(shards) == numbers(make(index, seed=1))
    assert first != sorted(first)
    shards.set_epoch(1)
    second = numbers(shards)
    assert second != first != numbers(make(index, seed=2))
    assert second == numbers(make(index, seed=1, epoch=1))
    assert numbers(make(index, shuffle=False)) == KEPT
    assert shards.epoch == 1


@pytest.mark.parametrize("world_size", [1, 2])
def test_resumed_at_any_tenth_sample(index, world_size):
    """By one process, sample by sample; with other ranks too."""
    settings = {"seed": 5, "world_size": world_size}
    for at in range(0, 60, 10):
        of_ranks = [make(index, rank=rank, **settings) for rank in range(world_size)]
        streams = [iter(shards) for shards in of_ranks]
        done = [[number_of(next(stream)) for _ in range(at)] for stream in streams]
        states = [json.loads(json.dumps(shards.state_dict())) for shards in of_ranks]
        assert all(state == states[0] for state in states)
        for other in (1, 2, 3):
            rest = []
            for rank in range(other):
                again = make(index, seed=5, rank=rank, world_size=other, batch_size=5, remainder="uneven")
                again.load_state_dict(states[0])
                rest += numbers(again)
            assert sorted([*rest, *chain(*done)]) == KEPT
        again = make(index, rank=0, **settings)
        again.load_state_dict(states[0])
        if world_size == 1 or at % 8 == 0:  # the same ranks go on with the same samples
            assert numbers(again) == numbers(streams[0])
        else:
            assert len(numbers(again)) > 0


def test_a_position_holds_for_one_pass(index):
    shards = make(index)
    stream = iter(shards)
    done = [next(stream) for _ in range(30)]
    again = make(index)
    again.load_state_dict(shards.state_dict())
    assert len(list(again)) == len(KEPT) - len(done)
    assert len(list(again)) == len(KEPT)
    again.load_state_dict(shards.state_dict())
    again.set_epoch(0)  # the same epoch
    assert len(list(again)) == len(KEPT) - len(done)
    again.load_state_dict(shards.state_dict())
    again.set_epoch(1)
    assert len(list(again)) == len(KEPT)


def test_states_of_resumed_passes(index):
    shards = make(index)
    whole = numbers(make(index))
    got: list[int] = []
    while len(got) < len(whole):
        state = shards.state_dict()
        assert state["sample_in_epoch"] == len(got)
        shards = make(index)
        shards.load_state_dict(state)
        assert shards.state_dict() == state
        stream = iter(shards)
        got += [number_of(next(stream)) for _ in range(min(13, len(whole) - len(got)))]
    assert got == whole
    state = shards.state_dict()
    assert state["sample_in_epoch"] == len(KEPT)
    assert shards.state_dict(delivered=0)["sample_in_epoch"] == len(KEPT) // 13 * 13


def test_samples_that_somebody_else_counts(index):
    shards = make(index, rank=1, world_size=2)
    assert shards.state_dict(delivered=16)["sample_in_epoch"] == 32
    assert shards.state_dict(delivered=len(shards))["sample_in_epoch"] == len(KEPT)
    with pytest.raises(ConfigError, match="rank 1 has 57 samples, not 58"):
        shards.state_dict(delivered=58)


def test_the_end_of_an_epoch(index, caplog):
    shards = make(index)
    assert len(list(shards)) == len(KEPT)
    state = shards.state_dict()
    again = make(index)
    again.load_state_dict(state)
    with caplog.at_level(logging.WARNING, "spark_dbp"):
        assert list(again) == []
    assert "epoch 0 was delivered to its end" in caplog.text
    assert len(list(again)) == len(KEPT)


def test_what_does_not_fill_a_batch(index):
    assert make(index, drop_last=True).n_dropped == len(KEPT) % 8
    assert len(list(make(index, drop_last=True))) == len(KEPT) // 8 * 8
    ranks = [make(index, rank=rank, world_size=4, remainder="uneven") for rank in range(4)]
    assert [len(list(mine)) for mine in ranks] == [29, 29, 28, 28]
    assert ranks[0].n_padded == ranks[0].n_dropped == 0
    dropping = [make(index, rank=rank, world_size=4, remainder="drop") for rank in range(4)]
    assert [len(list(mine)) for mine in dropping] == [28] * 4
    assert dropping[0].n_dropped == 2


def test_equal_workers(index, monkeypatch):
    counts = []
    samples: list[int] = []
    for rank in range(2):
        shards = make(index, rank=rank, world_size=2, equal_workers=True, num_workers=3)
        for number in range(3):
            worker(monkeypatch, number, 3)
            got = numbers(shards)
            samples += got
            counts.append((len(got), shards.count_batches(rank, number, 3)))
            assert len(got) == shards.count_samples(rank, number, 3)
    assert len(set(counts)) == 1
    assert set(samples) == set(KEPT)
    assert len(samples) - len(KEPT) == shards.n_padded
    worker(monkeypatch, 0, 2)
    with pytest.raises(ConfigError, match="there are 2 workers, and equal_workers was told of 3"):
        iter(shards)


def test_ranks_are_found(index, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    shards = make(index)
    assert len(shards) == 38
    assert numbers(shards) == numbers(make(index, rank=1, world_size=3))
    again = pickle.loads(pickle.dumps(shards))  # into a process that is not told
    monkeypatch.delenv("RANK")
    assert numbers(again) == numbers(make(index, rank=1, world_size=3))
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ConfigError, match="RANK and WORLD_SIZE are 'one' and '3'"):
        make(index)


def test_it_is_the_first_stage_of_a_pipeline(index):
    shards = make(index)
    assert numbers(shards()) == numbers(shards)
    with pytest.raises(ConfigError, match="not by number"):
        shards[0]


def test_nothing_is_kept(shards, tmp_path):
    write_index(tmp_path / "index", shards, {"nowhere"})
    nothing = make(str(tmp_path / "index"), world_size=2, rank=0)
    assert (list(nothing), len(nothing), nothing.count_batches()) == ([], 0, 0)
    assert nothing.state_dict()["sample_in_epoch"] == 0


def test_neither_torch_nor_webdataset_nor_pyspark_is_imported(index):
    code = (
        "import sys\n"
        "for name in ('torch', 'webdataset', 'pyspark'): sys.modules[name] = None\n"
        "from spark_dbp.loaders.webdataset import KeptShards\n"
        "print(len(list(KeptShards(sys.argv[1], batch_size=4))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, index], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == str(len(KEPT))


BAD = {
    "batch_size": ({"batch_size": 0}, "batch_size is 0"),
    "rank": ({"rank": 2, "world_size": 2}, "rank is 2, and world_size 2"),
    "rank alone": ({"rank": 0}, "rank and world_size belong together"),
    "negative rank": ({"rank": -1, "world_size": 2}, "rank is -1"),
    "remainder": ({"remainder": "cut"}, "remainder 'cut' is not known"),
    "equal_workers alone": ({"equal_workers": True}, "equal_workers needs to know"),
    "uneven and equal": (
        {"equal_workers": True, "num_workers": 2, "remainder": "uneven"},
        "contradict each other",
    ),
    "num_workers": ({"num_workers": -1}, "num_workers is -1"),
    "seed": ({"seed": "x"}, "seed is 'x'"),
    "epoch": ({"epoch": -1}, "epoch is -1"),
    "shuffle_window": ({"shuffle_window": 0}, "shuffle_window is 0"),
    "whole_shard_above": ({"whole_shard_above": -1}, "whole_shard_above is -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused(index, name):
    settings, message = BAD[name]
    with pytest.raises(ConfigError, match=message) as caught:
        make(index, **settings)
    assert "to mend it" in str(caught.value)


def test_bad_counts_are_refused(index):
    shards = make(index)
    for arguments, message in (
        ((None, 0, 1), "belong together"),
        ((0, 0), "belong together"),
        ((1,), "rank is 1"),
        ((0, 2, 2), "worker is 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            shards.count_samples(*arguments)


STATES = {
    "another seed": ({"seed": 4}, "the state has seed 4, this loader 0"),
    "another window": ({"shuffle_window": 5}, "the state has shuffle_window 5, this loader 20"),
    "not shuffled": ({"shuffle": False}, "the state has shuffle False, this loader True"),
    "another index": ({"index": "abc"}, "the state has index 'abc', this loader"),
    "another version": ({"version": 2}, "the state has version 2, not 1"),
    "no state": ({}, "this is no state"),
    "beyond the end": ({"sample_in_epoch": 10**6}, "sample_in_epoch of the state is 1000000"),
    "no epoch": ({"epoch": None}, "epoch of the state is None"),
    "of a worker": ({"worker": 0}, "of a worker process"),
}


@pytest.mark.parametrize("name", STATES)
def test_states_of_something_else_are_refused(index, name):
    changed, message = STATES[name]
    shards = make(index)
    state = {**shards.state_dict(), **changed} if changed else {"epoch": 0}
    with pytest.raises(ConfigError, match=message) as caught:
        shards.load_state_dict(state)
    assert "to mend it" in str(caught.value)


def test_the_state_of_another_index_is_refused(index, shards, tmp_path):
    write_index(tmp_path / "index", shards, set(keys_of(SIZES)))
    other = make(str(tmp_path / "index"))
    with pytest.raises(ConfigError, match="the state has index"):
        make(index).load_state_dict(other.state_dict())
    moved = KeptShards(open_index(index), batch_size=8, shuffle_window=20)
    moved.load_state_dict(make(index).state_dict())


def test_no_index(tmp_path):
    with pytest.raises(InputError, match="no index of shards"):
        make(str(tmp_path / "nowhere"))


def test_a_missing_shard_is_named(tmp_path):
    shards = write_shards(tmp_path / "shards", SIZES)
    write_index(tmp_path / "index", shards, set(keys_of(SIZES)))
    Path(shards[3]).unlink()
    with pytest.raises(InputError, match=r"cannot read shard .*00003\.tar"):
        list(make(str(tmp_path / "index")))
