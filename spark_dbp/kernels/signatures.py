"""MinHash signatures of texts: normal form, shingles, permuted hashes, LSH bands.

Imports numpy and `errors`; pyarrow and datasketch inside functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

# Of all pairs of texts that are exactly as similar as the threshold, at least this share becomes candidates.
EXPECTED_RECALL = 0.97
# Characters between words: all that Python's str.split treats as a space.
_SPACES = r"[\s\x0b\x1c-\x1f\x{85}\p{Z}]+"
# Long texts are cut into pieces. Pieces computed at once, so that their signatures fit a core's cache; and
# shingles in a piece.
_BLOCK, _PIECE = 512, 64
_BITS_SET = np.array([bin(value).count("1") for value in range(2**16)], dtype=np.uint8)


@dataclass(frozen=True)
class BandPlan:
    """How signatures are cut into bands.

    Attributes
    ----------
    bands, rows : int
        Number of bands, and of signature values in each.
    expected_recall : float
        Probability that two texts with exactly the similarity of the threshold share a band.
    """

    bands: int
    rows: int
    expected_recall: float


def plan_bands(threshold: float, num_perm: int) -> BandPlan:
    """Choose the longest bands whose expected recall at the threshold reaches `EXPECTED_RECALL`.

    Longer bands make fewer candidate pairs of texts that are not alike. With r values in each of b bands, two
    texts of similarity s share a band with probability ``1 - (1 - s**r)**b`` (Leskovec et al., Mining of
    Massive Datasets, 3.4).

    Parameters
    ----------
    threshold : float
        In (0, 1].
    num_perm : int
        Length of the signatures.

    Returns
    -------
    BandPlan

    Raises
    ------
    ConfigError
        When the threshold is outside (0, 1], or `num_perm` is too small for it.

    Examples
    --------
    >>> plan = plan_bands(0.8, 128)
    >>> plan.bands, plan.rows, round(plan.expected_recall, 3)
    (18, 7, 0.986)
    """
    if not 0 < threshold <= 1:
        raise ConfigError(
            f"dedup.minhash.threshold {threshold} is outside (0, 1]", mend="0.8 is a common choice"
        )
    if num_perm < 2:
        raise ConfigError(f"dedup.minhash.num_perm {num_perm} is below 2", mend="128 is a common choice")
    for rows in range(num_perm, 0, -1):
        bands = num_perm // rows
        recall = 1 - (1 - threshold**rows) ** bands
        if recall >= EXPECTED_RECALL:
            return BandPlan(bands, rows, recall)
    needed = math.ceil(math.log(1 - EXPECTED_RECALL) / math.log1p(-threshold))
    raise ConfigError(
        f"dedup.minhash.num_perm {num_perm} is too small for dedup.minhash.threshold {threshold}: at most "
        f"{1 - (1 - threshold) ** num_perm:.0%} of such pairs would be found",
        mend=f"set dedup.minhash.num_perm to at least {needed}, or raise the threshold",
    )


def cut_shingles(text: str, ngram: int, tokens: str = "characters") -> set[str]:
    """Shingles of a text: all runs of `ngram` characters or words. A shorter text is one shingle.

    Parameters
    ----------
    text : str
        With single spaces between words.
    ngram : int
        At least 1.
    tokens : {"characters", "words"}

    Returns
    -------
    set of str
        Empty for an empty text.

    Examples
    --------
    >>> sorted(cut_shingles("abcd", 3)), sorted(cut_shingles("a b c", 2, "words"))
    (['abc', 'bcd'], ['a b', 'b c'])
    """
    if not text:
        return set()
    if tokens == "characters":
        return {text[i : i + ngram] for i in range(max(1, len(text) - ngram + 1))}
    words = text.split(" ")
    return {" ".join(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))}


def repair_utf8(texts: pa.Array) -> pa.Array:
    """The same texts in valid UTF-8: bytes that are not valid are replaced by U+FFFD.

    Spark allows any bytes in a string; Arrow does not.
    """
    import pyarrow as pa

    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        given = texts.cast(pa.large_binary()).to_pylist()
        return pa.array(
            [None if text is None else text.decode("utf-8", "replace") for text in given], texts.type
        )
    return texts


def normalize_texts(texts: pa.Array) -> pa.Array:
    """Texts in Unicode's NFKC form and lower case, with single spaces, and no space at either end.

    Parameters
    ----------
    texts : pyarrow.Array
        Strings.

    Returns
    -------
    pyarrow.Array

    Examples
    --------
    >>> import pyarrow as pa
    >>> normalize_texts(pa.array(["  The\\u00a0\\ufb01rst ＣＡＴ"])).to_pylist()
    ['the first cat']
    """
    import pyarrow.compute as pc

    lower = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))
    single = pc.replace_substring_regex(lower, pattern=_SPACES, replacement=" ")
    return pc.utf8_trim(single, characters=" ")


def hash_bands(
    hashes: npt.NDArray[np.uint32], owner: npt.NDArray[np.intp], plan: BandPlan, num_perm: int
) -> npt.NDArray[np.int64]:
    """Hash of each band of each text.

    The signatures are those that ``datasketch.MinHash(num_perm, seed=1)`` makes of these hashes, computed for
    many texts at a time.

    Parameters
    ----------
    hashes, owner
        From `hash_shingles`, for n texts.
    plan : BandPlan
    num_perm : int
        Length of the signatures.

    Returns
    -------
    ndarray of shape (n, plan.bands), int64
        Equal bands have equal hashes, in every process.

    Examples
    --------
    >>> a, b = hash_bands(*hash_shingles(["a text", "a text"], 5), plan_bands(0.8, 128), 128)
    >>> len(a), (a == b).all().item()
    (18, True)
    """
    signatures = _signatures(hashes, owner, num_perm)
    used = signatures[:, : plan.bands * plan.rows].reshape(len(signatures), plan.bands, plan.rows)
    # For each value: multiply modulo 2**64, then mix the bits.
    mixed = np.broadcast_to(np.arange(1, plan.bands + 1, dtype=np.uint64), used.shape[:2]).copy()
    for row in range(plan.rows):
        mixed = (mixed ^ used[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed.view(np.int64)


def hash_shingles(
    texts: list[str], ngram: int, tokens: str = "characters"
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]:
    """Hashes of the texts' shingles, one text after another.

    Parameters
    ----------
    texts : list of str
    ngram : int
    tokens : {"characters", "words"}

    Returns
    -------
    hashes : ndarray of uint32
        A shingle that occurs twice in a text has two hashes.
    owner : ndarray of intp
        For each hash, the number of its text.

    Examples
    --------
    >>> hashes, owner = hash_shingles(["abcabc", "ab"], 3)
    >>> owner.tolist(), (hashes[0] == hashes[3]).item()
    ([0, 0, 0, 0, 1], True)
    """
    gap = ngram - 1  # filler between texts, so that no shingle reaches into the next text
    if tokens == "characters":
        lengths = np.fromiter(map(len, texts), dtype=np.intp, count=len(texts))
        padding = "\0" * gap
        units = np.frombuffer((padding.join(texts) + padding).encode("utf-32-le"), dtype="<u4")
    else:
        split = [text.split(" ") for text in texts]
        lengths = np.fromiter(map(len, split), dtype=np.intp, count=len(texts))
        units = np.array(
            [unit for words in split for unit in (*(crc32(w.encode()) for w in words), *[0] * gap)],
            dtype=np.uint32,
        )
    hashes = np.zeros(len(units) - gap, dtype=np.uint32)
    for place in range(ngram):
        hashes = (hashes ^ units[place : len(units) - gap + place]) * np.uint32(0x9E3779B1)
        hashes ^= hashes >> np.uint32(15)
    counts = np.maximum(1, lengths - gap)
    owner = np.repeat(np.arange(len(texts)), counts)
    text_start = np.cumsum(lengths + gap) - (lengths + gap)
    return hashes[np.arange(len(owner)) + (text_start - (np.cumsum(counts) - counts))[owner]], owner


def sketch_parities(
    hashes: npt.NDArray[np.uint32], owner: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Number of shingles of every text, and a sketch of 64 bits for `bound_similarities`.

    The low 6 bits of a shingle's hash choose a bit of the sketch. Each shingle flips its bit.

    Parameters
    ----------
    hashes, owner
        From `hash_shingles`, for n texts.

    Returns
    -------
    n_shingles : ndarray of shape (n,), int32
        A shingle that occurs twice counts twice.
    parity : ndarray of shape (n,), int64
        The sketch. A shingle that occurs twice flips its bit once.

    Examples
    --------
    >>> hashes, owner = np.array([0, 65, 65, 66], dtype=np.uint32), np.array([0, 1, 1, 1])
    >>> n_shingles, parity = sketch_parities(hashes, owner)
    >>> n_shingles.tolist(), parity.tolist()
    ([1, 3], [1, 6])
    """
    n_shingles = np.bincount(owner)
    sorted_hashes = (owner.astype(np.uint64) << np.uint64(32)) | hashes
    sorted_hashes.sort()
    bits = np.uint64(1) << (sorted_hashes & np.uint64(63))
    bits[1:][sorted_hashes[1:] == sorted_hashes[:-1]] = 0
    starts = np.cumsum(n_shingles) - n_shingles
    return n_shingles.astype(np.int32), np.bitwise_xor.reduceat(bits, starts).view(np.int64)


def bound_similarities(
    n_a: npt.NDArray[np.int32],
    parity_a: npt.NDArray[np.int64],
    n_b: npt.NDArray[np.int32],
    parity_b: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Upper bounds of the Jaccard similarity of pairs of texts, from `sketch_parities`.

    With s = |A| + |B| and d shingles that only one of the two texts has, the similarity is
    ``(s - d) / (s + d)``. Every bit in which the two sketches differ stands for at least one of those d. A
    shingle that occurs twice in a text only raises the bound. The bound is useful for texts of up to a few
    hundred shingles.

    Parameters
    ----------
    n_a, parity_a, n_b, parity_b : ndarray of shape (n,)

    Returns
    -------
    ndarray of shape (n,)

    Examples
    --------
    >>> a, b = (sketch_parities(*hash_shingles([text], 3)) for text in ("one text", "one test"))
    >>> bound_similarities(*a, *b).round(2)
    array([0.5])
    """
    differ = (parity_a ^ parity_b).view(np.uint16).reshape(-1, 4)
    differing = _BITS_SET[differ].sum(axis=1, dtype=np.int64)
    total = n_a.astype(np.int64) + n_b
    return (total - differing) / (total + differing)


def _signatures(
    hashes: npt.NDArray[np.uint32], owner: npt.NDArray[np.intp], num_perm: int
) -> npt.NDArray[np.uint32]:
    from datasketch import MinHash

    a, b = MinHash(num_perm, seed=1, scheme="affine32").permutations
    mixed = _mixed(hashes)
    # Long texts are cut into pieces, and pieces are sorted by length. Each step of the inner loop then takes
    # one shingle of every piece that is long enough.
    counts = np.bincount(owner)
    n_pieces = -(-counts // _PIECE)
    first_piece = np.cumsum(n_pieces) - n_pieces
    before = (np.arange(n_pieces.sum()) - np.repeat(first_piece, n_pieces)) * _PIECE
    start = np.repeat(np.cumsum(counts) - counts, n_pieces) + before
    length = np.minimum(_PIECE, np.repeat(counts, n_pieces) - before)
    order = np.argsort(-length, kind="stable")
    of_pieces = np.empty((len(order), num_perm), dtype=np.uint32)
    permuted = np.empty((_BLOCK, num_perm), dtype=np.uint32)
    for block in range(0, len(order), _BLOCK):
        some = order[block : block + _BLOCK]
        least = np.full((len(some), num_perm), 0xFFFFFFFF, dtype=np.uint32)
        n_longer = np.searchsorted(-length[some], -np.arange(length[some[0]]), side="left")
        for place, n in enumerate(n_longer):
            values = np.multiply(mixed[start[some[:n]] + place, None], a, out=permuted[:n])
            values += b
            np.minimum(least[:n], values, out=least[:n])
        of_pieces[some] = least
    return np.minimum.reduceat(of_pieces, first_piece, axis=0)


def _mixed(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """The last step of MurmurHash3, which datasketch applies before its permutations."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))
