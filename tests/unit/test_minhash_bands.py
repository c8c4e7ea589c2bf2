"""Bands and shingles of MinHash deduplication."""

from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_dbp.errors import ConfigError
from spark_dbp.kernels import signatures
from spark_dbp.kernels.buckets import enter_bands, pair_in_buckets
from spark_dbp.kernels.signatures import (
    bound_similarities,
    cut_shingles,
    hash_bands,
    hash_shingles,
    normalize_texts,
    plan_bands,
    sketch_parities,
)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("num_perm", [32, 128, 256])
def test_the_longest_bands_that_reach_the_recall(threshold, num_perm):
    plan = plan_bands(threshold, num_perm)
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
        plan_bands(threshold, num_perm)
    for word in words:
        assert word in str(caught.value)
    if "at least 349" in words:
        assert plan_bands(threshold, 349).expected_recall >= 0.97


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
    assert cut_shingles(text, ngram, tokens) == expected


def test_bands_agree_as_often_as_signatures_should():
    """Texts of similarity s share a band with probability 1 - (1 - s**r)**b, within sampling error."""
    import random

    rng = random.Random(0)
    plan = plan_bands(0.8, 64)
    shared, expected, trials = 0, 0.0, 300
    for _ in range(trials):
        words = [f"w{rng.randrange(10**6)}" for _ in range(40)]
        other = words[:36] + [f"v{rng.randrange(10**6)}" for _ in range(4)]
        pair = [" ".join(words), " ".join(other)]
        a, b = (set(bands) for bands in hash_bands(*hash_shingles(pair, 1, "words"), plan, 64).tolist())
        shared += bool(a & b)
        s = len(set(words) & set(other)) / len(set(words) | set(other))
        expected += 1 - (1 - s**plan.rows) ** plan.bands
    assert abs(shared - expected) < 4 * (expected * (1 - expected / trials)) ** 0.5 + 1


TEXTS = ["a", "short one", "é😀 naïve", "ab" * 40, "x y z " * 200, "the quick brown fox jumps"]


@pytest.mark.parametrize("block", [1, 2, 512])
@pytest.mark.parametrize(("ngram", "tokens"), [(1, "characters"), (5, "characters"), (2, "words")])
def test_signatures_are_those_of_datasketch(monkeypatch, block, ngram, tokens):
    from datasketch import MinHash

    monkeypatch.setattr(signatures, "_BLOCK", block)
    hashes, owner = hash_shingles(TEXTS, ngram, tokens)
    got = signatures._signatures(hashes, owner, 128)
    for number in range(len(TEXTS)):
        theirs = MinHash(128, seed=1, hashfunc=int)
        theirs.update_batch(hashes[owner == number].tolist())
        assert got[number].tolist() == theirs.hashvalues.tolist()


@pytest.mark.parametrize(("ngram", "tokens"), [(1, "characters"), (5, "characters"), (2, "words")])
def test_equal_shingles_have_equal_hashes_whatever_stands_around(ngram, tokens):
    """And different ones different hashes, here."""
    hashes, owner = hash_shingles(TEXTS, ngram, tokens)
    for number, text in enumerate(TEXTS):
        alone, _ = hash_shingles([text], ngram, tokens)
        assert hashes[owner == number].tolist() == alone.tolist()
        assert len(set(alone.tolist())) == len(cut_shingles(text, ngram, tokens))


def test_bounds_rule_out_what_is_far_from_the_threshold():
    """Of texts of some fifty shingles that share half of them, few pass for 0.8; near-duplicates always do."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))
    texts = ["".join(rng.choice(letters, 50)) for _ in range(200)]
    half = [text[:35] + other[:15] for text, other in zip(texts, reversed(texts), strict=True)]
    near = [text[:48] + "zz" for text in texts]
    of_texts, of_half, of_near = (sketch_parities(*hash_shingles(side, 5)) for side in (texts, half, near))
    assert (bound_similarities(*of_texts, *of_half) > 0.8).mean() < 0.1
    assert (bound_similarities(*of_texts, *of_near) > 0.8).all()


@given(st.lists(st.tuples(st.text("abc ", min_size=1), st.text("abc ", min_size=1)), min_size=1))
def test_bounds_are_never_below_the_similarity(pairs):
    pairs = [(a.strip() or "a", b.strip() or "b") for a, b in pairs]
    a, b = (sketch_parities(*hash_shingles([pair[side] for pair in pairs], 2)) for side in (0, 1))
    bounds = bound_similarities(*a, *b)
    for (a, b), bound in zip(pairs, bounds, strict=True):
        one, two = cut_shingles(a, 2), cut_shingles(b, 2)
        assert bound >= len(one & two) / len(one | two) - 1e-12


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "A\x0bB\x1cC\x85D",
        "ﬁne  ＡＢＣ①",
        "Istanbul\u2028ΣΑΣ",
        "e\u0301 \u200b x",
        "\u3000 a\u00a0b ",
        "Å Å",
    ],
)
def test_normal_form(text):
    expected = " ".join(unicodedata.normalize("NFKC", text).split())
    (got,) = normalize_texts(pa.array([text])).to_pylist()
    assert got.casefold() == expected.casefold()
    assert normalize_texts(pa.array([got])).to_pylist() == [got]
    assert normalize_texts(pa.array([None], pa.string())).to_pylist() == [None]


def test_entries_hold_every_band_once_and_buckets_give_their_pairs():
    rng = np.random.default_rng(0)
    ids, bands = rng.permutation(500).astype(np.int64) - 250, rng.integers(-40, 40, (500, 3))
    of_text = {"id": ids, "n_shingles": np.ones_like(ids), "parity": np.zeros_like(ids)}
    entries = enter_bands(of_text, bands)
    assert sorted(zip(entries["band"].tolist(), entries["id"].tolist(), strict=True)) == sorted(
        (int(b), int(i)) for i, row in zip(ids, bands, strict=True) for b in row
    )
    expected = set()
    for band in set(bands.reshape(-1).tolist()):
        members = sorted(int(i) for i, row in zip(ids, bands, strict=True) if band in row)
        expected |= {(a, b) for n, a in enumerate(members) for b in members[n + 1 :]}
    found = {
        (int(a), int(b)) for one, two in pair_in_buckets(entries, 0.8) for a, b in zip(one, two, strict=True)
    }
    assert found == expected


def test_a_text_of_a_large_bucket_meets_those_that_follow_it():
    zeros = np.zeros(1000, dtype=np.int64)
    of_text = {"id": np.random.default_rng(0).permutation(1000), "n_shingles": zeros + 1, "parity": zeros}
    found = [
        pair
        for a, b in pair_in_buckets(enter_bands(of_text, zeros[:, None]), 0.8)
        for pair in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert sorted(found) == [(a, b) for a in range(1000) for b in range(a + 1, min(1000, a + 101))]
