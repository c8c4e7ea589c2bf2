"""The order of kept samples: each once over ranks and workers, lengths exact, resumed anywhere."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_dbp.errors import ConfigError
from spark_dbp.loaders.order import Deal, Rest, SampleOrder, permute

SIZES = st.integers(0, 120)
MORE = settings(max_examples=200, deadline=None)


@st.composite
def deals(draw, n=SIZES, rest=None):
    remainder = draw(st.sampled_from(["pad", "drop", "uneven"]))
    return Deal(
        draw(n) if isinstance(n, st.SearchStrategy) else n,
        batch_size=draw(st.integers(1, 9)),
        world_size=draw(st.integers(1, 5)),
        remainder=remainder,
        drop_last=draw(st.booleans()),
        n_equal=1 if remainder == "uneven" else draw(st.integers(1, 4)),
        rest=rest,
    )


def deliver(deal: Deal, stop: int | None = None) -> list[int]:
    """Positions that all ranks get, in step, up to a batch."""
    return [
        position
        for number in range(deal.n_batches if stop is None else stop)
        for rank in range(deal.world_size)
        if number < deal.count_batches(rank)
        for position in deal.positions(rank, number).tolist()
    ]


def positions_of(rest: Rest, n: int) -> list[int]:
    return [p for start, stop in [*rest.left, (rest.position, n)] for p in range(start, stop)]


@given(deals())
@MORE
def test_each_position_comes_once(deal):
    counts = Counter(deliver(deal))
    assert sum(counts.values()) - len(counts) == deal.n_padded
    assert deal.n - len(counts) == deal.n_dropped
    assert set(counts) <= set(range(deal.n))
    assert max(counts.values(), default=1) <= 1 + -(-deal.n_padded // max(1, deal.n))
    assert sum(counts.values()) == deal.count_samples()


@given(deals())
@MORE
def test_positions_come_in_order(deal):
    """Over all ranks, batch by batch: what is doubled comes last."""
    delivered = deliver(deal)
    once = delivered[: len(delivered) - deal.n_padded]
    assert once == list(range(len(once)))


@given(deals(), st.integers(1, 6))
@MORE
def test_lengths_are_exact(deal, num_workers):
    for rank in range(deal.world_size):
        sizes = [len(deal.positions(rank, number)) for number in range(deal.count_batches(rank))]
        assert sum(sizes) == deal.count_samples(rank)
        assert all(0 < size <= deal.batch_size for size in sizes)
        for worker in range(num_workers):
            assert deal.count_batches(rank, worker, num_workers) == len(sizes[worker::num_workers])
            assert deal.count_samples(rank, worker, num_workers) == sum(sizes[worker::num_workers])


@given(deals())
@MORE
def test_ranks_and_equal_workers_have_as_much(deal):
    if deal._remainder == "uneven" and not deal.n_dropped:
        counts = [deal.count_samples(rank) for rank in range(deal.world_size)]
        assert max(counts) - min(counts) <= 1
        return
    workers = deal._tail_batches
    for count in (deal.count_batches, deal.count_samples):
        found = {count(rank, worker, workers) for rank in range(deal.world_size) for worker in range(workers)}
        assert len(found) == 1


@given(st.data(), SIZES)
@MORE
def test_resumed_after_any_batch_nothing_is_lost_or_doubled(data, n):
    """With other numbers of ranks and other batches, three times, in the middle of a batch too."""
    done: list[int] = []
    rest = None
    for _ in range(3):
        deal = data.draw(deals(n, rest))
        number = data.draw(st.integers(0, deal.n_batches))
        inside = 0
        done += deliver(deal, number)
        if number < deal.n_batches:
            sizes = [len(deal.positions(rank, number)) for rank in range(deal.world_size)]
            inside = data.draw(st.integers(0, max(0, max(sizes) - 1)))
            for rank in range(deal.world_size):
                done += deal.positions(rank, number)[:inside].tolist()
        rest = deal.find_rest(number, inside)
        at_end = number == deal.n_batches
        left = positions_of(rest, n)
        if at_end:
            assert left == []
            assert n - len(set(done)) == deal.n_dropped
            return
        assert set(done) | set(left) == set(range(n))
        assert not set(done) & set(left)
    last = Deal(n, batch_size=3, world_size=2, remainder="uneven", rest=rest)
    assert sorted(deliver(last)) == left


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 4), st.integers(0, 30))
@MORE
def test_resumed_after_a_batch_it_goes_on_as_if_uninterrupted(n, batch_size, world_size, number):
    deal = Deal(n, batch_size, world_size)
    number = min(number, deal.n_batches)
    again = Deal(n, batch_size, world_size, rest=deal.find_rest(number))
    assert deal.find_rest(number).left == ()
    assert deliver(again) == deliver(deal)[len(deliver(deal, number)) :]


def test_one_rank_resumes_at_any_sample_with_one_number():
    deal = Deal(100, batch_size=8)
    assert deal.find_rest(3, 5) == Rest(29)
    assert deal.find_rest(12, 3) == Rest(99)


def test_several_ranks_in_the_middle_of_a_batch():
    deal = Deal(100, batch_size=8, world_size=2)
    # Rank 0 had 16 to 18, rank 1 had 24 to 26.
    assert deal.find_rest(1, 3) == Rest(27, ((19, 24),))


def test_what_is_left_of_an_uneven_tail():
    deal = Deal(3, batch_size=4, world_size=5, remainder="uneven")
    assert [deal.count_batches(rank) for rank in range(5)] == [1, 1, 1, 0, 0]
    deal = Deal(3, batch_size=4, world_size=5)
    assert (deal.n_padded, deliver(deal)) == (2, [0, 1, 2, 0, 1])
    deal = Deal(3, batch_size=4, world_size=5, remainder="drop")
    assert (deal.n_dropped, deliver(deal), deal.n_batches) == (3, [], 0)


# The shuffle.


@given(
    st.lists(st.integers(0, 30), max_size=12), st.booleans(), st.integers(1, 40), st.integers(0, 2**64 - 1)
)
@MORE
def test_every_sample_has_a_position(kept, shuffle, window, seed):
    order = SampleOrder(np.array(kept, np.int64), shuffle=shuffle, window=window, seed=seed, epoch=3)
    shards, rows = order.locate(np.arange(order.n))
    expected = [(shard, row) for shard, n_kept in enumerate(kept) for row in range(n_kept)]
    found = list(zip(shards.tolist(), rows.tolist(), strict=True))
    assert sorted(found) == expected
    if not shuffle:
        assert found == expected
    for position in range(0, order.n, 7):  # the same, asked for alone
        shard, row = order.locate(np.array([position]))
        assert (shard[0], row[0]) == found[position]


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 40), st.integers(0, 200), st.integers(1, 50))
@MORE
def test_the_shards_of_what_comes_next_are_known(kept, window, position, n_samples):
    order = SampleOrder(np.array(kept, np.int64), window=window)
    known = order.shards_from(position, n_samples)
    stop = min(order.n, position + n_samples)
    if position < stop:
        needed = order.locate(np.arange(position, stop))[0].tolist()
        assert set(needed) <= set(known)
    assert len(known) == len(set(known))


def test_seed_and_epoch_change_the_order():
    kept = np.array([50, 50])
    orders = [
        SampleOrder(kept, seed=seed, epoch=epoch).locate(np.arange(100))[1].tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_the_order_is_pinned():
    """A state of one machine is resumed on another, with another numpy, so these numbers must stay."""
    assert permute(8, seed=7, epoch=2).tolist() == PINNED[0]
    order = SampleOrder(np.array([4, 0, 3, 5]), seed=1, epoch=1, window=5)
    shards, rows = order.locate(np.arange(12))
    assert (shards * 10 + rows).tolist() == PINNED[1]


PINNED = ([6, 7, 4, 0, 1, 5, 3, 2], [0, 3, 2, 1, 30, 31, 34, 32, 20, 33, 22, 21])


def test_windows_are_local():
    order = SampleOrder(np.array([1000]), window=10)
    rows = order.locate(np.arange(1000))[1]
    assert (rows // 10 == np.arange(1000) // 10).all()
    assert not (rows == np.arange(1000)).all()


BAD = {
    "batch_size": (lambda: Deal(3, 0), "batch_size is 0"),
    "no number": (lambda: Deal(3, "8"), "batch_size is '8'"),
    "a float": (lambda: Deal(3, 8.0), "batch_size is 8.0"),
    "world_size": (lambda: Deal(3, 1, 0), "world_size is 0"),
    "remainder": (lambda: Deal(3, 1, remainder="cut"), "remainder 'cut' is not known"),
    "uneven and equal": (lambda: Deal(3, 1, remainder="uneven", n_equal=2), "contradict"),
    "window": (lambda: SampleOrder(np.array([3]), window=0), "shuffle_window is 0"),
    "seed": (lambda: SampleOrder(np.array([3]), seed=-1), "seed is -1"),
    "epoch": (lambda: SampleOrder(np.array([3]), epoch=2**64), "epoch is 18446744073709551616"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused(name):
    make, message = BAD[name]
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "to mend it" in str(caught.value)
