"""The samples of a WebDataset shard, found in the headers of a tar. Imports `tar_headers` and `errors`.

Members with the same name up to the first dot of the last part, one after the other, are a sample, as
webdataset groups them.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from spark_dbp.errors import InputError
from spark_dbp.lake.tar_headers import TarMember, TarWalker

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
# Largest text or json that is read: a caption or metadata, not data of its own.
_MOST_BYTES = 16 << 20

_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")


@dataclass
class TarSample:
    """A sample of a shard.

    Attributes
    ----------
    key : str
        As webdataset forms it: folders and name up to the first dot of the name.
    position : int
        Number of the sample in its shard, from 0.
    image : tuple of (int, int) or None
        Where the bytes of the image begin in the shard, and how many they are.
    text, json : bytes or None
        Content of ``.txt`` and of ``.json``.
    start, stop : int
        The bytes of the shard that hold all members of the sample, with their headers.
    members : list of (str, int, int)
        Of each member its suffix, where its data begins in the shard, and how many bytes it has.
    """

    key: str
    position: int
    image: tuple[int, int] | None = None
    text: bytes | None = None
    json: bytes | None = None
    start: int = 0
    stop: int = 0
    members: list[tuple[str, int, int]] = field(default_factory=list)


def split_member_name(name: str) -> tuple[str, str] | None:
    """Key and suffix of a member, as webdataset splits its name; None for one that belongs to no sample.

    Examples
    --------
    >>> split_member_name("train/0001.seg.PNG"), split_member_name("README")
    (('train/0001', 'seg.png'), None)
    """
    found = _KEY.fullmatch(name)
    return (found[1], found[2].lower()) if found else None


def split_member(member: TarMember, shard: str) -> tuple[str, str] | None:
    """Key and suffix of a member; None for one that webdataset passes over.

    Raises
    ------
    InputError
        When its name is not UTF-8.
    """
    if not member.is_file or _META.match(member.name):
        return None
    parts = split_member_name(member.name)
    if parts is not None:
        _check_name(shard, parts[0])
    return parts


def read_tar_samples(
    content: IO[bytes] | Any,
    name: str,
    *,
    size: int | None = None,
    with_texts: bool | Collection[str] = True,
) -> Iterator[TarSample]:
    """Read the headers of a tar, and the small members of its samples.

    Parameters
    ----------
    content : file
        The tar, open for reading. One that cannot seek is read from beginning to end.
    name : str
        Path of the tar, for messages.
    size : int, optional
        Its bytes, where it can seek: then the images are passed over.
    with_texts : bool or collection of str
        Whether ``.txt`` and ``.json`` are read; or which of the two, ``["json"]``.

    Yields
    ------
    TarSample

    Raises
    ------
    InputError
        When it is no tar, is compressed, or ends too early.

    Examples
    --------
    >>> import io
    >>> stream = io.BytesIO()
    >>> with tarfile.open(fileobj=stream, mode="w") as tar:
    ...     for member, body in (("a.jpg", b"JPEG"), ("a.txt", b"a cat")):
    ...         info = tarfile.TarInfo(member)
    ...         info.size = len(body)
    ...         tar.addfile(info, io.BytesIO(body))
    >>> sample, = read_tar_samples(io.BytesIO(stream.getvalue()), "x.tar")
    >>> sample.key, sample.image, sample.text, (sample.start, sample.stop), sample.members
    ('a', (512, 4), b'a cat', (0, 2048), [('jpg', 512, 4), ('txt', 1536, 5)])
    """
    wanted = {"txt": "text", "json": "json"} if with_texts else {}
    if not isinstance(with_texts, bool):
        wanted = {suffix: attribute for suffix, attribute in wanted.items() if suffix in with_texts}
    sample: TarSample | None = None
    suffixes: set[str] = set()
    rank = len(IMAGE_SUFFIXES)
    try:
        walker = TarWalker(content, size)
        for member in walker:
            parts = split_member(member, name)
            if parts is None:
                continue
            key, suffix = parts
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                position = 0 if sample is None else sample.position + 1
                sample = TarSample(key, position, start=member.start)
                suffixes, rank = set(), len(IMAGE_SUFFIXES)
            if suffix in suffixes:
                raise refuse_two_members(name, key, suffix)
            suffixes.add(suffix)
            sample.members.append((suffix, member.offset, member.size))
            sample.stop = member.stop
            if suffix in IMAGE_SUFFIXES and IMAGE_SUFFIXES.index(suffix) < rank:
                rank = IMAGE_SUFFIXES.index(suffix)
                sample.image = (member.offset, member.size)
            elif suffix in wanted:
                _check_member(name, key, suffix, member.size)
                setattr(sample, wanted[suffix], walker.read(member))
    except tarfile.TarError as error:
        raise refuse_tar(name, content, error) from None
    if sample is not None:
        yield sample


def refuse_tar(name: str, content: Any, error: Exception) -> InputError:
    """What to say of a shard that cannot be walked over."""
    return InputError(f"shard {name} is no whole tar: {error}", mend=_mend(content, error))


def refuse_two_members(name: str, key: str, suffix: str) -> InputError:
    """What to say of a sample with two members of one suffix."""
    return InputError(
        f"shard {name}: sample {key!r} has two members .{suffix}",
        mend="webdataset refuses such a shard too: write it again with each name once",
    )


def _check_name(shard: str, key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError:  # so tarfile says other bytes
        shown = key.encode("utf-8", "surrogateescape")
        raise InputError(
            f"shard {shard}: the name of a member is not UTF-8: {shown!r}",
            mend="write the shard again with names in UTF-8",
        ) from None


def _check_member(shard: str, key: str, suffix: str, size: int) -> None:
    if size > _MOST_BYTES:
        raise InputError(
            f"shard {shard}: sample {key!r} has a .{suffix} of {size:,} bytes, where up to "
            f"{_MOST_BYTES:,} are read",
            mend="keep data of that size under another suffix: .txt and .json become columns",
        )


def _mend(content: Any, error: Exception) -> str:
    if "unexpected end" in str(error):
        return "it is cut off: fetch or write it again, or leave it out"
    try:
        content.seek(0)
        start = bytes(content.read(6))
    except (OSError, ValueError, tarfile.TarError):
        start = b""
    if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start[:4] in (b"\x28\xb5\x2f\xfd", b"\xfd7zX"):
        return "it is compressed: samples cannot be found in it; unpack it to a plain .tar"
    return "leave it out, or write it again as a plain .tar"
