"""MinHash deduplication end to end against datasketch's signatures alone, and its recall and precision."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
from collections import defaultdict
from pathlib import Path
from zlib import crc32

from benchmarks.common import in_turn, report, scratch
from spark_dbp.engine.session import start_local_session
from spark_dbp.kernels.signatures import cut_shingles
from spark_dbp.stages.minhash_dedup import minhash_dedup

THRESHOLD, NUM_PERM, NGRAM = 0.8, 128, 5
_SUMMARIES = Path(__file__).parents[2] / "shared" / "data" / "debian-packages" / "metadata.parquet"


def make_texts(n_texts: int, alike: bool) -> list[str]:
    """Real summaries of packages where they are at hand, else made-up ones; beyond their number, mixtures.

    By default the begin of one is followed by the end of another, and one in thirty differs in a word from
    one before. With `alike` all are one that was there with a word changed and mostly a word added: every
    text has a dozen others just below the threshold, the hardest case for candidates.
    """
    rng = random.Random(0)
    if _SUMMARIES.exists():
        import pyarrow.parquet as pq

        real = pq.read_table(_SUMMARIES, columns=["summary"]).column("summary").to_pylist()
        rng.shuffle(real)
    else:
        words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(5000)]
        real = [
            " ".join(rng.choices(words, k=rng.randint(5, 12))) for _ in range(min(n_texts * 4 // 5, 60_000))
        ]
    texts = real[:n_texts]
    while len(texts) < n_texts:
        words = rng.choice(real).split(" ")
        if alike or rng.random() < 1 / 30:
            words[rng.randrange(len(words))] = f"{rng.randrange(10**6)}"
            if alike and rng.random() < 0.75:
                words.insert(rng.randrange(len(words)), f"{rng.randrange(10**6)}")
        else:
            other = rng.choice(real).split(" ")
            words = words[: -(-len(words) // 2)] + other[len(other) // 2 :]
        texts.append(" ".join(words))
    return texts


def _signatures(texts: list[str]) -> int:
    from datasketch import MinHash

    encoded = ([s.encode() for s in cut_shingles(" ".join(t.lower().split()), NGRAM)] for t in texts)
    return sum(1 for _ in MinHash.generator(encoded, num_perm=NUM_PERM, seed=1, hashfunc=crc32))


def measure(n_texts: int, runs: int, check: bool = True, alike: bool = False) -> None:
    """Print the medians, their ratio, and recall and precision against brute force.

    Parameters
    ----------
    n_texts, runs : int
    check : bool
        Compare with brute force: minutes above some ten thousand texts.
    alike : bool
        Texts with many others just below the threshold.
    """
    texts = make_texts(n_texts, alike)
    cores = os.cpu_count() or 1
    with scratch() as folder, multiprocessing.get_context("spawn").Pool(cores) as pool:
        spark = start_local_session()
        rows = [(f"{i:09d}", text) for i, text in enumerate(texts)]
        spark.createDataFrame(rows, "key string, text string").repartition(2 * cores, "key").write.parquet(
            str(folder / "in")
        )
        frame = spark.read.parquet(str(folder / "in"))

        def ours() -> None:
            shutil.rmtree(folder / "scratch", ignore_errors=True)
            minhash_dedup(
                frame, column="text", threshold=THRESHOLD, num_perm=NUM_PERM, ngram=NGRAM,
                scratch=str(folder / "scratch"),
            ).write.mode("overwrite").parquet(str(folder / "out"))  # fmt: skip

        parts = [texts[number :: 4 * cores] for number in range(4 * cores)]
        seconds = in_turn(runs, ours=ours, signatures=lambda: pool.map(_signatures, parts))
        lines = [
            ("datasketch's signatures alone", f"{seconds['signatures']:.1f} s"),
            ("ours, end to end", f"{seconds['ours']:.1f} s"),
            ("ratio", f"{seconds['ours'] / seconds['signatures']:.2f}"),
        ]
        if check:
            pairs = spark.read.parquet(str(folder / "scratch" / "pairs")).select("a", "b").collect()
            found = {frozenset((int(a), int(b))) for a, b in pairs}
            true = _brute_force(texts)
            lines += [
                ("pairs by brute force", f"{len(true):,}"),
                ("recall of pairs", f"{len(found & true) / max(1, len(true)):.4f}"),
                ("precision of pairs", f"{len(found & true) / max(1, len(found)):.4f}"),
            ]
        spark.stop()
    like = " that are much alike" if alike else ""
    report(f"MinHash of {n_texts:,} texts{like}, threshold {THRESHOLD} (median of {runs}, in turn)", lines)


def _brute_force(texts: list[str]) -> set[frozenset[int]]:
    """All pairs of different texts that reach the threshold, by counting common shingles."""
    first: dict[str, int] = {}
    for number, text in enumerate(texts):
        first.setdefault(" ".join(text.lower().split()), number)
    sets = {number: cut_shingles(text, NGRAM) for text, number in first.items()}
    holders: dict[str, list[int]] = defaultdict(list)
    pairs = set()
    for number, own in sets.items():
        common: dict[int, int] = defaultdict(int)
        for shingle in own:
            for other in holders[shingle]:
                common[other] += 1
            holders[shingle].append(number)
        for other, count in common.items():
            if count / (len(own) + len(sets[other]) - count) >= THRESHOLD:
                pairs.add(frozenset((number, other)))
    return pairs
