"""The section ``input``, and the options of its formats. Imports pydantic and `config_base`; no Spark."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from spark_dbp.columns import split_name
from spark_dbp.config_base import ColumnOrSql, Section, UserPath, Whole, check_path
from spark_dbp.config_errors import explain_errors
from spark_dbp.errors import ConfigError

Format = Literal["parquet", "clip_retrieval", "datacomp", "semdedup", "curator", "npy"]

# Of each format: the options that it takes, and the column that is the key unless another one is named.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "parquet": (),
    "clip_retrieval": ("array", "columns"),
    "datacomp": ("array", "columns"),
    "semdedup": ("embeddings", "keys", "shape", "key_type", "clusters", "distances"),
    "curator": ("embedding_column", "columns"),
    "npy": ("keys", "key_column"),
}
DEFAULT_KEYS = {"clip_retrieval": "image_path", "datacomp": "uid", "curator": "id"}


def _check_key_type(text: str) -> str:
    if not re.fullmatch(r"[|<]?[SU][1-9]\d{0,4}", text):
        raise ValueError(
            f"input.options.key_type: {text!r} is no type of texts; numpy writes S24 for 24 bytes, U24 for "
            "24 characters"
        )
    kind = text.lstrip("|<")
    return f"|{kind}" if kind[0] == "S" else f"<{kind}"


class FormatOptions(Section):
    """What the files of a format do not say themselves."""

    array: str | None = Field(default=None, min_length=1)
    columns: list[str] | None = None
    keys: UserPath | Annotated[list[UserPath], Field(min_length=1)] | None = None
    key_column: str = "key"
    embedding_column: str = "embeddings"
    embeddings: UserPath | None = None
    shape: Annotated[list[Whole], Field(min_length=2, max_length=2)] | None = None
    key_type: Annotated[str, AfterValidator(_check_key_type)] = "|S24"
    clusters: UserPath | None = None
    distances: Literal["auto", "distance", "similarity", "squared_l2"] = "auto"

    @property
    def key_files(self) -> list[str]:
        """`keys` as a list."""
        if self.keys is None:
            return []
        return [self.keys] if isinstance(self.keys, str) else list(self.keys)

    def to_dict(self) -> dict[str, Any]:
        """The options that are not as by default."""
        defaults = FormatOptions.model_fields
        values = {name: getattr(self, name) for name in sorted(defaults)}
        return {name: value for name, value in values.items() if value != defaults[name].default}


def make_format_options(form: str, values: dict[str, Any], paths: list[str]) -> FormatOptions:
    """The options of a format.

    Raises
    ------
    ConfigError
        It names every option that is wrong.
    """
    mend = "every format and its options are described in docs/formats.md"
    if form not in _OPTIONS or form == "parquet":
        known = ", ".join(name for name in _OPTIONS if name != "parquet")
        raise ConfigError(f"there is no format {form!r}", mend=f"the formats are: {known}")
    try:
        options = FormatOptions.model_validate(values)
    except ValidationError as error:
        lines = "\n".join(f"  - {line}" for line in explain_errors(error, FormatOptions))
        raise ConfigError(f"options of {form}:\n{lines}", mend=mend) from None
    try:
        check_format(form, options, None, paths)
    except ValueError as error:
        raise ConfigError(str(error), mend=mend) from None
    return options


def check_format(form: str, options: FormatOptions, table: str | None, paths: list[str]) -> None:
    """Refuse options that a format does not take, or lacks.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_format("npy", FormatOptions(array="l14_img"), None, ["x.npy"])
    Traceback (most recent call last):
    ...
    ValueError: input.options.array does not go with input.format npy, which takes: keys, key_column
    """
    known = _OPTIONS[form]
    for name in options.to_dict():
        if name not in known:
            takes = f"takes: {', '.join(known)}" if known else "takes none"
            raise ValueError(f"input.options.{name} does not go with input.format {form}, which {takes}")
    if form == "parquet":
        return
    if table is not None:
        raise ValueError(f"input.format {form} goes with input.path, not with input.table")
    if form == "npy":
        if not options.key_files:
            raise ValueError(
                "input.options.keys is missing: the file of the keys, one for each row of the matrix"
            )
        if len(options.key_files) != len(paths):
            raise ValueError(
                f"input.options.keys names {len(options.key_files):,} files, input.path {len(paths):,}: "
                "there must be one for each"
            )
    if form == "semdedup":
        _check_semdedup(options, paths)
    for name, paths_ in (
        ("keys", options.key_files),
        ("embeddings", [options.embeddings]),
        ("clusters", [options.clusters]),
    ):
        for path in paths_:
            if path is not None:
                check_path(f"input.options.{name}", path)


def _check_semdedup(options: FormatOptions, paths: list[str]) -> None:
    if len(paths) > 1:
        raise ValueError("input.format semdedup takes one folder as input.path")
    if options.keys is not None and not isinstance(options.keys, str):
        raise ValueError("input.options.keys: semdedup takes one memmap of keys")
    has_embeddings, has_keys = options.embeddings is not None, options.keys is not None
    if not has_embeddings and options.clusters is None:
        raise ValueError(
            "give input.options.embeddings and keys (memmaps), or clusters (the folder of SemDeDup's "
            "clusters), or all of them"
        )
    if has_embeddings and not has_keys and options.clusters is None:
        raise ValueError("input.options.keys is missing: the memmap of the paths, one for each embedding")
    if has_keys and not has_embeddings:
        raise ValueError("input.options.embeddings is missing: the memmap that input.options.keys belongs to")
    if has_embeddings and options.shape is None:
        raise ValueError(
            "input.options.shape is missing: [rows, dimensions], which a memmap does not say itself"
        )


def name_default_key(values: Any) -> Any:
    """The section ``input`` with the key that its format has, where none is named."""
    if isinstance(values, dict) and "key" not in values and values.get("format") in DEFAULT_KEYS:
        return {**values, "key": DEFAULT_KEYS[values["format"]]}
    return values


class InputConfig(Section):
    """Where the samples are, and the names of their columns."""

    path: UserPath | list[UserPath] | None = None
    table: str | None = None
    format: Format = "parquet"
    options: FormatOptions = FormatOptions()
    key: ColumnOrSql = "key"
    embedding: ColumnOrSql = "embedding"
    embedding_binary: Literal["float32", "float64", "float16"] | None = None
    filter: str | None = None
    cluster_id: ColumnOrSql | None = None
    distance_to_centroid: ColumnOrSql | None = None
    centroids: UserPath | None = None
    on_bad_rows: Literal["fail", "drop"] = "fail"

    @model_validator(mode="after")
    def _check(self) -> InputConfig:
        if self.path is not None and self.table is not None:
            raise ValueError("give exactly one of input.path and input.table")
        if self.path is not None and (not self.path or not all(self.paths)):
            raise ValueError("input.path is empty")
        for path in self.paths:
            check_path("input.path", path)
        if self.table is not None:
            split_name(self.table)
        check_format(self.format, self.options, self.table, self.paths)
        if self.centroids is not None:
            check_path("input.centroids", self.centroids)
        for name in ("distance_to_centroid", "centroids"):
            if getattr(self, name) is not None and self.cluster_id is None:
                raise ValueError(f"input.{name} is given without input.cluster_id, which it belongs to")
        return self

    @property
    def paths(self) -> list[str]:
        """`path` as a list; empty for a table."""
        if self.path is None:
            return []
        return [self.path] if isinstance(self.path, str) else list(self.path)
