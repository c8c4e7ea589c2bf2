"""Choose what of examples, texts and thumbnails fits into the page. Imports `examples` and `lookup`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from spark_dbp.explore.report.examples import ClusterExamples, Duplicates, write_key
from spark_dbp.explore.report.lookup import Found
from spark_dbp.explore.report.page import write_json

# Characters of a key that are shown. Bytes that numbers and brackets around a thumbnail may take.
_MOST_CHARACTERS, _AROUND = 300, 64
_SLACK = 4096
# Pairs of duplicates get at most this share of what is left for thumbnails.
_SHARE_OF_PAIRS = 0.25


@dataclass
class Contents:
    """What the page shows of single rows.

    Attributes
    ----------
    examples : dict of str to dict
        By the id of a cluster: ``why`` (texts) and the lists ``nearest``, ``kept``, ``dropped`` of
        ``[key, distance, is_kept, rank or None, caption or None, thumbnail or -1]``.
    pairs : dict of str to list
        By method: ``[similarity, key, caption, thumbnail, duplicate_of, its caption, its thumbnail]``.
    thumbnails : list of [str, int, int]
        Base64 of WebP, width, height.
    has_images : bool
        Whether a row without a thumbnail shows a placeholder.
    """

    examples: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: dict[str, list[list[Any]]] = field(default_factory=dict)
    thumbnails: list[list[Any]] = field(default_factory=list)
    has_images: bool = False
    n_thumbnails_left_out: int = 0

    @property
    def n_examples(self) -> int:
        return sum(len(of[name]) for of in self.examples.values() for name in _KINDS)

    @property
    def n_captions(self) -> int:
        of_examples = sum(
            row[4] is not None for of in self.examples.values() for name in _KINDS for row in of[name]
        )
        return of_examples + sum(
            (row[2] is not None) + (row[5] is not None) for of in self.pairs.values() for row in of
        )

    def to_dict(self) -> dict[str, Any]:
        """For the page."""
        return {
            "examples": self.examples,
            "shown": [int(cluster) for cluster in self.examples],  # in order, which a browser does not keep
            "pairs": self.pairs,
            "thumbnails": self.thumbnails,
            "hasImages": self.has_images,
        }


_KINDS = ("nearest", "kept", "dropped")


def fit_contents(
    examples: dict[int, ClusterExamples],
    duplicates: dict[str, Duplicates],
    found: Found,
    key_type: str,
    reasons: dict[int, list[str]],
    measure: Callable[[Contents], int],
    most_bytes: int,
) -> Contents:
    """As much as fits: first keys and texts of all clusters, in the order of `reasons`; then thumbnails.

    Parameters
    ----------
    examples, duplicates, found
        What there is.
    key_type : str
    reasons : dict of int to list of str
        Why each cluster is shown; the most important first.
    measure : callable
        Bytes of the page with some contents.
    most_bytes : int

    Returns
    -------
    Contents
    """
    contents = Contents(has_images=found.has_images and not found.note)
    room = most_bytes - measure(contents) - _SLACK
    texts = partial(write_key, key_type=key_type)
    for method, of in duplicates.items():
        rows = [_list_pair(pair, texts, found) for pair in of.pairs]
        cost = _measure(rows)
        if cost < room / 2:
            contents.pairs[method] = rows
            room -= cost
    for cluster, whys in reasons.items():
        of_cluster = {"why": whys, **_list_examples(examples[cluster], texts, found)}
        cost = _measure(of_cluster) + _AROUND
        if cost > room:
            break
        contents.examples[str(cluster)] = of_cluster
        room -= cost
    _add_thumbnails(contents, found, room)
    return contents


def _measure(value: Any) -> int:
    return len(write_json(value).encode())


def _shorten(key: str) -> str:
    return key if len(key) <= _MOST_CHARACTERS else key[: _MOST_CHARACTERS - 1] + "…"


def _list_examples(
    of: ClusterExamples, texts: Callable[[Any], str], found: Found
) -> dict[str, list[list[Any]]]:
    listed: dict[str, list[list[Any]]] = {}
    for name in _KINDS:
        listed[name] = []
        for one in getattr(of, name):
            text = texts(one.key)
            row = [
                text,
                float(f"{one.distance:.5g}"),
                int(one.is_kept),
                one.rank,
                found.captions.get(text),
                text,
            ]
            listed[name].append(row)
    return listed


def _list_pair(pair: Any, texts: Callable[[Any], str], found: Found) -> list[Any]:
    one, other = texts(pair.key), texts(pair.duplicate_of)
    return [
        float(f"{pair.similarity:.5g}"),
        one,
        found.captions.get(one),
        one,
        other,
        found.captions.get(other),
        other,
    ]


def _add_thumbnails(contents: Contents, found: Found, room: float) -> None:
    """Put numbers of thumbnails where rows hold the texts of their keys, and shorten the keys shown."""
    numbers: dict[str, int] = {}
    spent = 0.0

    def number(key: str, most: float) -> int:
        nonlocal spent
        if key in numbers or key not in found.thumbnails:
            return numbers.get(key, -1)
        one = found.thumbnails[key]
        text = base64.b64encode(one.content).decode()
        if spent + len(text) + _AROUND > most:
            contents.n_thumbnails_left_out += 1
            numbers[key] = -1
            return -1
        spent += len(text) + _AROUND
        numbers[key] = len(contents.thumbnails)
        contents.thumbnails.append([text, one.width, one.height])
        return numbers[key]

    for row in _iter_pairs(contents):
        for at in (3, 6):
            row[at], row[at - 2] = number(row[at], _SHARE_OF_PAIRS * room), _shorten(row[at - 2])
    for of in contents.examples.values():
        for row in (row for name in _KINDS for row in of[name]):
            row[5], row[0] = number(row[5], room), _shorten(row[0])


def _iter_pairs(contents: Contents) -> Iterator[list[Any]]:
    for rows in contents.pairs.values():
        yield from rows
