"""Bands and shingles of MinHash deduplication."""

from __future__ import annotations

import pytest

from spark_dbp.errors import ConfigError
from spark_dbp.stages.minhash_dedup import _band_hashes, band_plan, shingles


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("num_perm", [32, 128, 256])
def test_the_longest_bands_that_reach_the_recall(threshold, num_perm):
    plan = band_plan(threshold, num_perm)
    assert plan.bands * plan.rows <= num_perm
    assert plan.expected_recall == 1 - (1 - threshold**plan.rows) ** plan.bands >= 0.97
    if plan.rows < num_perm:
        rows = plan.rows + 1
        assert 1 - (1 - threshold**rows) ** (num_perm // rows) < 0.97


@pytest.mark.parametrize(
    ("threshold", "num_perm", "words"),
    [
        (0.01, 8, ["dedup.minhash.num_perm 8", "at least 349"]),
        (1e-9, 128, ["dedup.minhash.num_perm 128", "at least 35065578"]),
        (0.0, 128, ["dedup.minhash.threshold 0.0"]),
        (1.5, 128, ["dedup.minhash.threshold 1.5"]),
        (0.8, 1, ["dedup.minhash.num_perm 1"]),
    ],
)
def test_plans_refused(threshold, num_perm, words):
    with pytest.raises(ConfigError) as caught:
        band_plan(threshold, num_perm)
    for word in words:
        assert word in str(caught.value)
    if "at least 349" in words:
        assert band_plan(threshold, 349).expected_recall >= 0.97


@pytest.mark.parametrize(
    ("text", "ngram", "tokens", "expected"),
    [
        ("", 3, "characters", set()),
        ("ab", 3, "characters", {"ab"}),
        ("abcd", 3, "characters", {"abc", "bcd"}),
        ("aaaa", 2, "characters", {"aa"}),
        ("é😀x", 2, "characters", {"é😀", "😀x"}),
        ("one", 2, "words", {"one"}),
        ("a b a b", 2, "words", {"a b", "b a"}),
    ],
)
def test_shingles(text, ngram, tokens, expected):
    assert shingles(text, ngram, tokens) == expected


def test_bands_agree_as_often_as_signatures_should():
    """Texts of similarity s share a band with probability 1 - (1 - s**r)**b, within sampling error."""
    import random

    rng = random.Random(0)
    plan = band_plan(0.8, 64)
    shared, expected, trials = 0, 0.0, 300
    for _ in range(trials):
        words = [f"w{rng.randrange(10**6)}" for _ in range(40)]
        other = words[:36] + [f"v{rng.randrange(10**6)}" for _ in range(4)]
        pair = [" ".join(words), " ".join(other)]
        a, b = (set(bands) for bands in _band_hashes(pair, plan, 64, 1, "words").to_pylist())
        shared += bool(a & b)
        s = len(set(words) & set(other)) / len(set(words) | set(other))
        expected += 1 - (1 - s**plan.rows) ** plan.bands
    assert abs(shared - expected) < 4 * (expected * (1 - expected / trials)) ** 0.5 + 1
