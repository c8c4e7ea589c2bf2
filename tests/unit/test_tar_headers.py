"""The headers of tars, as Python's tarfile and GNU's tar read them."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_dbp.errors import InputError
from spark_dbp.lake.tar_headers import TarMember, TarWalker
from spark_dbp.lake.tar_samples import read_tar_samples

KINDS = [
    tarfile.REGTYPE,
    tarfile.AREGTYPE,
    tarfile.CONTTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
]
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def pack(members: list[tuple[str, bytes, bytes]], form: int = tarfile.PAX_FORMAT, **named: object) -> bytes:
    """A tar of (name, content, kind)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, **named) as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime = kind, 1234.5
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = "x" * (20 if form == tarfile.USTAR_FORMAT else 150)
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def walk(body: bytes, *, seeks: bool = True) -> list[tuple[TarMember, bytes]]:
    walker = TarWalker(io.BytesIO(body), len(body) if seeks else None)
    return [(member, walker.read(member)) for member in walker]


class Pipe(io.RawIOBase):
    """Gives a few bytes at a time, and does not seek."""

    def __init__(self, body: bytes) -> None:
        self.stream = io.BytesIO(body)

    def read(self, size: int = -1) -> bytes:
        return self.stream.read(min(size, 300))


def read_by_tarfile(body: bytes) -> list[tuple[str, int, int, int, bool, bytes]]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        for info in tar:
            content = tar.extractfile(info).read() if info.isreg() else b""
            found.append((info.name, info.offset, info.offset_data, tar.offset, info.isreg(), content))
    return found


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=300)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
MEMBERS = st.lists(st.tuples(PATHS, st.binary(max_size=1200), st.sampled_from(KINDS)), max_size=6)


@given(MEMBERS, st.sampled_from(FORMATS[1:]))
@settings(max_examples=150, deadline=None)
def test_members_are_those_that_tarfile_finds(members, form):
    body = pack(members, form)
    expected = read_by_tarfile(body)
    for found in (walk(body), walk(body, seeks=False)):
        assert [
            (member.name.rstrip("/"), member.start, member.offset, member.stop, member.is_file, content)
            for member, content in found
        ] == [(name.rstrip("/"), *rest) for name, *rest in expected]


def test_names_in_two_fields_of_the_header():
    body = pack([("d" * 90 + "/" + "n" * 80, b"x", tarfile.REGTYPE)], tarfile.USTAR_FORMAT)
    assert walk(body)[0][0].name == "d" * 90 + "/" + "n" * 80


def test_a_pipe_is_read_from_beginning_to_end():
    body = pack([("a", b"x" * 5000, tarfile.REGTYPE), ("b", b"y", tarfile.REGTYPE)])
    walker = TarWalker(Pipe(body))
    first = next(iter(walker))
    assert walker.read(first) == b"x" * 5000
    with pytest.raises(ValueError, match="cannot seek"):
        walker.read(first)
    names = [member.name for member in TarWalker(Pipe(body))]  # content is passed over
    assert names == ["a", "b"]


def test_global_headers_belong_to_no_member():
    body = pack([("a.jpg", b"x", tarfile.REGTYPE)], pax_headers={"comment": "of all"})
    ((member, content),) = walk(body)
    assert (member.name, member.start, content) == ("a.jpg", 1024, b"x")


def test_large_sizes_are_bytes_of_a_number():
    info = tarfile.TarInfo("large")
    info.size = 9 << 33
    body = info.tobuf(tarfile.GNU_FORMAT)
    member = next(iter(TarWalker(io.BytesIO(body))))
    assert member.size == 9 << 33
    with pytest.raises(tarfile.ReadError, match="unexpected end"):
        walk(body)
    (member,) = TarWalker(io.BytesIO(body), 10 << 33)  # the file is as large as its headers say
    assert member.stop == (9 << 33) + 512


def test_a_tar_without_its_end_is_read():
    body = pack([("a", b"x", tarfile.REGTYPE), ("b", b"y", tarfile.REGTYPE)], tarfile.GNU_FORMAT)
    assert [member.name for member, _ in walk(body[:2048])] == ["a", "b"]


WHOLE = pack([("a.jpg", b"x" * 700, tarfile.REGTYPE), ("b.jpg", b"y", tarfile.REGTYPE)])
DAMAGED = {
    "empty": (b"", "empty file"),
    "no tar": (b"no tar at all" * 100, "invalid header"),
    "shorter than a header": (WHOLE[:300], "unexpected end"),
    "cut in the data": (WHOLE[:1800], "unexpected end"),
    "cut in a later header": (WHOLE[:3900], "unexpected end"),  # tarfile takes it for the end
    "cut after a header of the next": (WHOLE[: 2560 + 1024], "unexpected end"),
    "cut in a prefix header": (WHOLE[: 2560 + 600], "unexpected end"),
    "garbled header": (WHOLE[:2560] + b"?" + WHOLE[2561:], "invalid header at byte 2560"),
    "garbled size": (WHOLE[:2684] + b"zz" + WHOLE[2686:], "invalid header at byte 2560"),
}


@pytest.mark.parametrize("seeks", [True, False])
@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told(name, seeks):
    body, message = DAMAGED[name]
    with pytest.raises(tarfile.ReadError, match=message):
        walk(body, seeks=seeks)
    with pytest.raises(InputError, match=r"shard x\.tar is no whole tar") as caught:
        list(read_tar_samples(io.BytesIO(body), "x.tar", size=len(body) if seeks else None))
    assert "to mend it" in str(caught.value)


@pytest.mark.parametrize("form", ["gnu", "posix", "ustar", "v7"])
def test_what_gnu_tar_writes(tmp_path, form):
    if shutil.which("tar") is None:
        pytest.skip("no tar here")
    (tmp_path / "in" / "d").mkdir(parents=True)
    names = ["a.jpg", "d/b.jpg"] if form in ("ustar", "v7") else ["a.jpg", "d/ü" + "n" * 180 + ".jpg"]
    for number, name in enumerate(names):
        (tmp_path / "in" / name).write_bytes(b"z" * (700 + number))
    done = subprocess.run(["tar", f"--format={form}", "-cf", "../out.tar", "."], cwd=tmp_path / "in")
    assert done.returncode == 0
    body = (tmp_path / "out.tar").read_bytes()
    files = {member.name.removeprefix("./"): content for member, content in walk(body) if member.is_file}
    assert {name: len(content) for name, content in files.items()} == {names[0]: 700, names[1]: 701}


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_members_are_refused(tmp_path, form):
    if shutil.which("tar") is None:
        pytest.skip("no tar here")
    with (tmp_path / "holes.bin").open("wb") as stream:
        stream.truncate(1 << 20)
        stream.write(b"x")
    subprocess.run(
        ["tar", f"--format={form}", "--sparse", "-cf", "out.tar", "holes.bin"], cwd=tmp_path, check=True
    )
    body = (tmp_path / "out.tar").read_bytes()
    if len(body) > 1 << 20:
        pytest.skip("this file system has no holes")
    with pytest.raises(InputError, match="sparse"):
        list(read_tar_samples(io.BytesIO(body), "x.tar", size=len(body)))


def test_samples_say_where_they_lie():
    members = [
        ("d", b"", tarfile.DIRTYPE),
        ("d/a.jpg", b"x" * 700, tarfile.REGTYPE),
        ("__meta__.txt", b"m", tarfile.REGTYPE),
        ("__meta__", b"m", tarfile.REGTYPE),
        ("d/a.Seg.PNG", b"y", tarfile.REGTYPE),
        ("noext", b"m", tarfile.REGTYPE),
        ("ü" * 150 + ".txt", b"z", tarfile.REGTYPE),
    ]
    body = pack(members)
    found = list(read_tar_samples(io.BytesIO(body), "x.tar", size=len(body), with_texts=["json"]))
    assert [(sample.key, sample.position, sample.text) for sample in found] == [
        ("d/a", 0, None),
        ("__meta__", 1, None),
        ("d/a", 2, None),
        ("ü" * 150, 3, None),
    ]
    for sample in found:
        part = body[sample.start : sample.stop]
        inside = [name for name, *_ in read_by_tarfile(part + bytes(1024))]
        assert all(name.startswith(sample.key) for name in inside)
        assert len(inside) == len(sample.members)
    assert [(suffix, body[at : at + size]) for suffix, at, size in found[2].members] == [("seg.png", b"y")]
    assert list(read_tar_samples(io.BytesIO(body), "x.tar")) == list(
        read_tar_samples(io.BytesIO(body), "x.tar", size=len(body))
    )
