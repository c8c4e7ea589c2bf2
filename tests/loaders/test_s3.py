"""An index and shards on S3, as pyarrow reads them where s3fs is not installed. The store is moto's server."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_shards import keys_of, number_of, read_members, write_shards
from moto.server import ThreadedMotoServer
from pyarrow import fs

from spark_dbp.errors import InputError, SparkDbpError
from spark_dbp.exchange.plan_shards import plan_shards
from spark_dbp.exchange.write_shards import NewShard, write_shard
from spark_dbp.lake import files, mounts
from spark_dbp.loaders import open_index, write_index
from spark_dbp.loaders.webdataset import KeptShards

SIZES = [40, 7, 25]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[str]:
    """Shards in a bucket."""
    if importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        mounts.forget_clients()
        fs.FileSystem.from_uri("s3://lake/?allow_bucket_creation=true")[0].create_dir("lake")
        for path in write_shards(tmp_path_factory.mktemp("shards"), SIZES):
            files.write_bytes(f"s3://lake/shards/{Path(path).name}", Path(path).read_bytes())
        yield "s3a://lake"  # as Spark names it
    mounts.forget_clients()
    server.stop()


def test_an_index_and_shards_on_s3(bucket, tmp_path):
    shards = [f"{bucket}/shards/{number:05d}.tar" for number in range(3)]
    kept = [number for number in range(72) if number % 3]
    keys = keys_of(SIZES)
    report = write_index(f"{bucket}/index", shards, {keys[number] for number in kept})
    assert (report.info["n_kept"], report.missing) == (len(kept), 0)
    index = open_index(f"{bucket}/index")
    assert index.shard_path(1) == shards[1]
    by_ranges = KeptShards(index, batch_size=8, seed=3)
    assert sorted(number_of(sample) for sample in by_ranges) == kept
    whole = KeptShards(f"{bucket}/index", batch_size=8, seed=3, cache_dir=str(tmp_path / "cache"))
    assert [number_of(sample) for sample in whole] == [number_of(sample) for sample in by_ranges]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3


def test_what_is_not_there(bucket):
    with pytest.raises(InputError, match=r"there is no file s3a://lake/index-no/index\.json"):
        open_index(f"{bucket}/index-no")
    with pytest.raises(InputError, match=r"there is no file s3a://lake/shards/9\.tar"):
        write_index(f"{bucket}/other", [f"{bucket}/shards/9.tar"], {"a"})
    with pytest.raises(SparkDbpError, match="s3://no-such-bucket"):
        open_index("s3://no-such-bucket/index")


def test_new_shards_on_s3(bucket, tmp_path):
    """From a bucket to the bucket, each put as a whole."""
    shards = [f"{bucket}/shards/{number:05d}.tar" for number in range(3)]
    keys = keys_of(SIZES)
    write_index(f"{bucket}/index-of-new", shards, set(keys[::3]))
    index = open_index(f"{bucket}/index-of-new")
    plan = plan_shards(index, samples=10)
    for n in range(len(plan)):
        new = NewShard(plan.name(n), plan.list_pieces(n, index.kept), plan.samples[n], plan.bytes[n])
        write_shard(index, new, f"{bucket}/new", renames=False)
    assert files.list_sizes(f"{bucket}/new") == {
        **{f"{plan.name(n)}.tar": plan.size(n) for n in range(3)},
        **{
            f"{plan.name(n)}_stats.json": files.look_up(f"{bucket}/new/{plan.name(n)}_stats.json")[0]
            for n in range(3)
        },
    }
    found = []
    for n in range(3):
        (tmp_path / f"{n}.tar").write_bytes(files.read_bytes(f"{bucket}/new/{plan.name(n)}.tar"))
        found += list(read_members(tmp_path / f"{n}.tar"))
    assert found == keys[::3]
