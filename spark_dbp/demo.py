"""The demos: what each of them clusters and prunes. Imports `config` and `demo_data`; encoders in functions.

The plain one takes scikit-learn's handwritten digits, 1,797 real images of 8 x 8 pixels (UCI ML hand-written
digits), whose pixel values serve as the embedding. The other two embed pictures and texts with pretrained
models that are packages of PyPI.
"""

from __future__ import annotations

from typing import Any

from spark_dbp.config import RunConfig
from spark_dbp.demo_data import (
    load_digits,
    read_digit_labels,
    read_packages,
    write_digit_shards,
    write_docstrings,
)
from spark_dbp.errors import ConfigError
from spark_dbp.lake import files, parquet_files

N_CLUSTERS = 20
KEEP_RATIO = 0.3
# The complexities of clusters of digits, as pixels or as pictures, differ by 0.01: at the default of 0.1 all
# quotas would be about equal.
TEMPERATURE = 0.005
N_TEXT_CLUSTERS = 40
TEXTS_TEMPERATURE = 0.1


def write_digits(directory: str) -> tuple[str, str]:
    """Write the digits as two Parquet tables.

    Parameters
    ----------
    directory : str

    Returns
    -------
    embeddings, metadata : str
        Paths of the tables (``key``, ``embedding`` ARRAY<FLOAT>) and (``key``, ``label``).
    """
    import pyarrow as pa

    digits = load_digits()
    keys = [f"digits/{number:04d}.png" for number in range(len(digits.target))]
    pixels = pa.array(digits.data.astype("float32").tolist(), pa.list_(pa.float32()))
    tables = {
        "embeddings": pa.table({"key": keys, "embedding": pixels}),
        "metadata": pa.table({"key": keys, "label": digits.target.astype("int32")}),
    }
    paths = []
    for name, table in tables.items():
        path = files.join(files.normalize(directory), name)
        if not files.exists(path):  # written once: a second demo finds its input unchanged
            parquet_files.write_parquet(path, table)
        paths.append(path)
    return paths[0], paths[1]


def demo_config(directory: str) -> RunConfig:
    """Configuration of the demo in `directory`; writes its input there.

    Parameters
    ----------
    directory : str

    Returns
    -------
    RunConfig
    """
    directory = files.normalize(directory)
    embeddings, _ = write_digits(files.join(directory, "input"))
    return _make_config(directory, N_CLUSTERS, TEMPERATURE, input={"path": embeddings})


def _make_config(directory: str, n_clusters: int, temperature: float, **sources: Any) -> RunConfig:
    return RunConfig.from_dict(
        {
            **sources,
            "output": {"path": files.join(directory, "run")},
            "cluster": {"n_clusters": n_clusters},
            "prune": {"keep_ratio": KEEP_RATIO, "temperature": temperature},
        }
    )


def read_labels(directory: str) -> dict[str, str]:
    """The digit that each image of the demo in `directory` shows, by key.

    Parameters
    ----------
    directory : str

    Returns
    -------
    dict of str to str
    """
    _, metadata = write_digits(files.join(files.normalize(directory), "input"))
    keys, labels = parquet_files.read_parquet(metadata).select(["key", "label"]).columns
    return dict(zip(keys.to_pylist(), map(str, labels.to_pylist()), strict=True))


def images_config(directory: str) -> RunConfig:
    """Configuration of the demo that embeds pictures from shards; writes its input into `directory`.

    Parameters
    ----------
    directory : str

    Returns
    -------
    RunConfig
    """
    directory = _take_local(directory)
    shards = write_digit_shards(files.join(directory, "input"))
    encoder = "python:spark_dbp.encoders.packaged.EfficientNetLite0"
    embed = {"images": {"webdataset": shards}, "encoder": encoder}
    return _make_config(directory, N_CLUSTERS, TEMPERATURE, embed=embed)


def texts_config(directory: str) -> RunConfig:
    """Configuration of the demo that embeds texts; writes its input and unpacks the model into `directory`.

    Parameters
    ----------
    directory : str

    Returns
    -------
    RunConfig
    """
    from spark_dbp.encoders.packaged import unpack_minilm

    directory = _take_local(directory)
    texts = write_docstrings(files.join(directory, "input"))
    embed = {"texts": {"column": "text"}, "encoder": str(unpack_minilm(files.join(directory, "model")))}
    return _make_config(directory, N_TEXT_CLUSTERS, TEXTS_TEMPERATURE, input={"path": texts}, embed=embed)


def _take_local(directory: str) -> str:
    directory = files.normalize(directory)
    if not files.is_local(directory):
        raise ConfigError(
            f"the demo's directory {directory} is not on this machine", mend="name a local directory"
        )
    return directory


def configure(demo: str, directory: str) -> tuple[RunConfig, dict[str, str]]:
    """Write the input of a demo.

    Parameters
    ----------
    demo : {"digits", "images", "texts"}
    directory : str

    Returns
    -------
    config : RunConfig
    labels : dict of str to str
        What each sample is, by key.
    """
    if demo == "images":
        return images_config(directory), read_digit_labels()
    if demo == "texts":
        config = texts_config(directory)
        return config, read_packages(files.join(files.normalize(directory), "input"))
    config = demo_config(directory)
    return config, read_labels(directory)
