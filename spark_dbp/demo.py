"""The demo: scikit-learn's handwritten digits, clustered and pruned. Imports scikit-learn in a function.

1,797 real images of 8 x 8 pixels (UCI ML hand-written digits), which scikit-learn carries; the pixel
values serve as the embedding.
"""

from __future__ import annotations

from spark_dbp.config import RunConfig
from spark_dbp.errors import SparkDbpError
from spark_dbp.lake import files, parquet_files

N_CLUSTERS = 20
KEEP_RATIO = 0.3
# The complexities of these clusters differ by 0.01: at the default of 0.1 all quotas would be about equal.
TEMPERATURE = 0.005


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
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SparkDbpError(
            f"the demo's data is not installed: {error}", mend="pip install 'spark-dbp[local]'"
        ) from error
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
    embeddings, _ = write_digits(files.join(files.normalize(directory), "input"))
    return RunConfig.from_dict(
        {
            "input": {"path": embeddings},
            "output": {"path": files.join(files.normalize(directory), "run")},
            "cluster": {"n_clusters": N_CLUSTERS},
            "prune": {"keep_ratio": KEEP_RATIO, "temperature": TEMPERATURE},
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
