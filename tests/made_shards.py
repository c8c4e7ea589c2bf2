"""Made shards of a WebDataset for tests: a few hundred small samples, with all that tars may hold between them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

FORMATS = [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def add_member(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, len(content), 1.5
    tar.addfile(info, io.BytesIO(content))


def content_of(number: int) -> bytes:
    """Another length and other bytes for each sample."""
    return f"image {number} ".encode() * (1 + number * 7919 % 90)


def key_of(number: int, shard: int) -> str:
    """Plain, long, non-ASCII and nested keys, as webdataset forms them."""
    kind = number % 5
    if kind == 1:
        return f"folder/{number:06d}" + "n" * 180  # needs a header of its own
    if kind == 2:
        return f"ü{number:06d}漢"
    return f"{number:09d}" if kind else f"s{shard}/{number:06d}"


def write_shard(path: Path, numbers: range, shard: int) -> None:
    """Samples of several members, and between them what belongs to none. The first one has no key of json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[shard % 2], pax_headers={"comment": "made"}) as tar:
        add_member(tar, "__info__.json", b"{}")  # a sample as any other, but no meta member
        add_member(tar, "folder", kind=tarfile.DIRTYPE)
        for number in numbers:
            key = key_of(number, shard)
            fields = {"uid": f"{number * 2654435761 % 2**32:032x}", "number": number}
            if number % 3 == 0:  # json first
                add_member(tar, f"{key}.json", json.dumps(fields).encode())
            add_member(tar, f"{key}.JPG", content_of(number))
            if number % 4 == 0:
                add_member(tar, "__meta__/x.txt", b"not of a sample")
                add_member(tar, "README", b"not either")
                add_member(tar, f"{key}.seg.png", b"")
            add_member(tar, f"{key}.cls", str(number).encode())
            if number % 3:
                add_member(tar, f"{key}.json", json.dumps(fields).encode())


def write_shards(folder: Path, sizes: list[int]) -> list[str]:
    """Shards of so many samples each. Returns their paths."""
    paths, start = [], 0
    for shard, size in enumerate(sizes):
        path = folder / f"{shard:05d}.tar"
        write_shard(path, range(start, start + size), shard)
        paths.append(str(path))
        start += size
    return paths


def keys_of(sizes: list[int]) -> list[str]:
    """The keys of all samples that `write_shards` writes, but the one that begins each shard."""
    keys, start = [], 0
    for shard, size in enumerate(sizes):
        keys += [key_of(number, shard) for number in range(start, start + size)]
        start += size
    return keys


def uid_of(number: int) -> str:
    return f"{number * 2654435761 % 2**32:032x}"


def expected_sample(number: int, shard: int, url: str) -> dict:
    """The sample as webdataset gives it."""
    fields = {"uid": uid_of(number), "number": number}
    sample = {
        "__key__": key_of(number, shard),
        "__url__": url,
        "jpg": content_of(number),
        "cls": str(number).encode(),
        "json": json.dumps(fields).encode(),
    }
    if number % 4 == 0:
        sample["seg.png"] = b""
    return sample


def number_of(sample: dict) -> int:
    return int(sample["cls"])


def write_trie(folder: Path, keys: list[str]) -> None:
    """The tries of a run that kept these keys."""
    import marisa_trie

    from spark_dbp.loaders.keep_trie import FORMAT, FORMAT_VERSION, find_shards

    folder.mkdir()
    texts = [key.encode() for key in keys]
    numbers = find_shards(texts, 3)
    shards = []
    for number in range(3):
        mine = [text for text, of in zip(texts, numbers, strict=True) if of == number]
        marisa_trie.BinaryTrie(mine).save(str(folder / f"{number}.marisa"))
        shards.append({"shard": number, "file": f"{number}.marisa", "n_keys": len(mine)})
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "n_shards": 3,
        "n_keys": len(keys),
        "shards": shards,
    }
    manifest |= {"key_type": "string", "expression": None}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_run(folder: Path, keys: list[str], digest: str = "abc") -> str:
    """As much of a finished run as a reader of its tries looks at. Returns its directory."""
    folder.mkdir()
    write_trie(folder / "keep_trie", keys)
    document = {"tables": {"keep_trie": "keep_trie"}, "digests": {"keep_list": digest}, "format_version": 2}
    document |= {"summary": {}, "stages": {}, "config": {}, "accounting": {}}
    (folder / "run.json").write_text(json.dumps(document))
    return str(folder)


def read_members(path: str | Path) -> dict[str, list[tuple[str, bytes, bytes]]]:
    """Of each sample of a tar, by its key, the members in their order: name, headers, data; as tarfile finds them."""
    found: dict[str, list[tuple[str, bytes, bytes]]] = {}
    raw = Path(path).read_bytes()
    with tarfile.open(path) as tar:
        for member in tar:
            folders, _, name = member.name.rpartition("/")
            key = f"{folders}/" * bool(folders) + name.partition(".")[0]
            if member.isfile() and "." in name and not name.startswith("__meta__") and folders != "__meta__":
                data = raw[member.offset_data : member.offset_data + member.size]
                found.setdefault(key, []).append((member.name, raw[member.offset : member.offset_data], data))
    return found
