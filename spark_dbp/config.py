"""The typed configuration of a run. Imports pydantic and what is beside it; no Spark.

Every key is documented in ``conf/example.yaml``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from spark_dbp.columns import split_name
from spark_dbp.config_base import (
    ColumnOrSql,
    Real,
    Section,
    UserPath,
    Whole,
    check_path,
)
from spark_dbp.config_embed import (
    MAIN,
    EmbedConfig,
    ScoreFilterConfig,
    check_embed,
    list_sections,
    take_empty_as_none,
)
from spark_dbp.config_errors import explain_errors
from spark_dbp.config_input import InputConfig, name_default_key
from spark_dbp.config_report import ReportConfig
from spark_dbp.errors import ConfigError, InfeasibleError
from spark_dbp.lake import paths
from spark_dbp.secrets import redact
from spark_dbp.settings import apply_settings, read_yaml

Order = Literal["hard", "easy", "random"]
WhichToKeep = Literal["hard", "easy", "random", "stratified"]
Complexity = Literal["d_intra*d_inter", "d_intra", "d_inter", "cluster_size", "uniform"]

MAX_CLUSTERS = 2**31 - 1


class OutputConfig(Section):
    """Where the run is written."""

    path: UserPath = Field(min_length=1)
    format: Literal["parquet"] = "parquet"
    table: str | None = Field(default=None, min_length=1)
    table_format: Literal["parquet", "delta", "iceberg"] = "parquet"

    @model_validator(mode="after")
    def _check(self) -> OutputConfig:
        check_path("output.path", self.path)
        if self.table is not None and len(split_name(self.table)) < 3:
            raise ValueError(
                f"output.table {self.table!r} does not have three parts: write catalog.schema.prefix "
                "(the catalog of Spark itself is spark_catalog)"
            )
        return self


class ExactConfig(Section):
    """Exact deduplication."""

    columns: list[ColumnOrSql] = Field(min_length=1)
    order_by: ColumnOrSql | None = None


class MinHashConfig(Section):
    """Near-duplicate texts by MinHash."""

    column: ColumnOrSql
    threshold: Real = Field(default=0.8, gt=0, le=1)
    num_perm: Whole = Field(default=128, ge=2, le=4096)
    ngram: Whole = Field(default=5, ge=1, le=100)
    tokens: Literal["characters", "words"] = "characters"
    normalize: bool = True
    order_by: ColumnOrSql | None = None


Eps = Annotated[Real, Field(gt=0, lt=1)]


def _no_stratified(value: Any) -> Any:
    if value == "stratified":
        raise ValueError(
            "dedup.semantic.which_to_keep: 'stratified' does not say which of two duplicates comes first; "
            "give 'hard', 'easy' or 'random' here (prune.which_to_keep takes 'stratified')"
        )
    return value


class SemanticConfig(Section):
    """Semantic deduplication within clusters."""

    eps: Eps | Annotated[list[Eps], Field(min_length=1)]
    n_clusters: Whole | None = Field(default=None, ge=1, le=MAX_CLUSTERS)
    which_to_keep: Annotated[Order, BeforeValidator(_no_stratified)] = "hard"
    groups: Literal["earlier", "connected"] = "earlier"
    n_iter: Whole = Field(default=10, ge=1)
    max_points_per_centroid: Whole = Field(default=64, ge=1)
    seed: Whole = Field(default=0, ge=-(2**63), lt=2**63)

    @property
    def all_eps(self) -> list[float]:
        """Every eps for which duplicates are counted. The first one is applied."""
        return [self.eps] if isinstance(self.eps, float) else list(self.eps)


class DedupConfig(Section):
    """Deduplication before clustering: exact, then MinHash, then semantic."""

    exact: ExactConfig | None = None
    minhash: MinHashConfig | None = None
    semantic: SemanticConfig | None = None

    @property
    def columns(self) -> list[str]:
        """Names of the columns that exact and MinHash deduplication read, each once."""
        found: list[ColumnOrSql | None] = []
        if self.exact is not None:
            found += [*self.exact.columns, self.exact.order_by]
        if self.minhash is not None:
            found += [self.minhash.column, self.minhash.order_by]
        return list(dict.fromkeys(str(column) for column in found if column is not None))


class ClusterConfig(Section):
    """Spherical k-means."""

    n_clusters: Whole | None = Field(default=None, ge=1, le=MAX_CLUSTERS)
    n_iter: Whole = Field(default=20, ge=1)
    train: Literal["sample", "full"] = "sample"
    init: Literal["random", "k-means++"] = "random"
    tol: Real = Field(default=0.0, ge=0, lt=1)
    max_points_per_centroid: Whole = Field(default=256, ge=1)
    seed: Whole = Field(default=0, ge=-(2**63), lt=2**63)


class PruneConfig(Section):
    """How many samples are kept, and which."""

    keep_ratio: Real | None = Field(default=None, gt=0, le=1)
    n_keep: Whole | None = Field(default=None, ge=1, lt=2**63)
    temperature: Real = Field(default=0.1, gt=0)
    n_neighbors: Whole = Field(default=20, ge=1)
    complexity: Complexity = "d_intra*d_inter"
    which_to_keep: WhichToKeep = "hard"
    min_per_cluster: Whole = Field(default=1, ge=0, lt=2**63)
    cluster_balance: Real = Field(default=0.0, ge=0, le=1)
    seed: Whole = Field(default=0, ge=-(2**63), lt=2**63)

    @model_validator(mode="after")
    def _check(self) -> PruneConfig:
        if (self.keep_ratio is None) == (self.n_keep is None):
            raise ValueError("give exactly one of prune.keep_ratio and prune.n_keep")
        return self

    def count_to_keep(self, n_rows: int) -> int:
        """N: `n_keep`, or floor(keep_ratio * n_rows). `n_rows` is the number of rows that reach pruning.

        The ratio counts as the decimal number that the user wrote. 0.29 of 100 rows is 29, although the float
        0.29 times 100 is less than that.

        Raises
        ------
        InfeasibleError
            When N is 0, or more than `n_rows`.

        Examples
        --------
        >>> PruneConfig(keep_ratio=0.29).count_to_keep(100)
        29
        """
        n_keep = self.n_keep or math.floor(Fraction(repr(self.keep_ratio)) * n_rows)
        if not 1 <= n_keep <= n_rows:
            asked = f"prune.n_keep {n_keep:,}" if self.n_keep else f"prune.keep_ratio {self.keep_ratio}"
            raise InfeasibleError(
                f"{asked} of {n_rows:,} rows cannot be kept", mend=f"keep between 1 and {n_rows:,} rows"
            )
        return n_keep


class TrieConfig(Section):
    """Tries of the kept keys."""

    key: str | None = Field(default=None, min_length=1)
    shards: Whole | None = Field(default=None, ge=1, le=100_000)


class RunConfig(Section):
    """The whole configuration of a run.

    Examples
    --------
    >>> config = RunConfig.from_dict({
    ...     "input": {"path": "embeddings/"},
    ...     "output": {"path": "run/"},
    ...     "cluster": {"n_clusters": 100},
    ...     "prune": {"keep_ratio": 0.3},
    ... })
    >>> config.prune.temperature
    0.1
    """

    engine: Literal["auto", "arrow", "sql"] = "auto"
    input: Annotated[InputConfig, BeforeValidator(name_default_key)] = InputConfig()
    embed: Annotated[list[EmbedConfig], BeforeValidator(list_sections)] = Field(default_factory=list)
    output: OutputConfig
    dedup: DedupConfig = DedupConfig()
    score_filter: Annotated[ScoreFilterConfig | None, BeforeValidator(take_empty_as_none)] = None
    cluster: ClusterConfig = ClusterConfig()
    prune: PruneConfig
    trie: TrieConfig = TrieConfig()
    report: ReportConfig = ReportConfig()
    spark: dict[str, str | int | float | bool] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        self._check_sources()
        if self.input.cluster_id is None and self.cluster.n_clusters is None:
            raise ValueError(
                "cluster.n_clusters is missing (the paper uses 500 for 280M rows, 100 for DataComp Medium)"
            )
        semantic = self.dedup.semantic
        if semantic is not None and semantic.n_clusters is None and self.input.cluster_id is None:
            raise ValueError(
                "dedup.semantic.n_clusters is missing (the papers use tens of thousands at web scale)"
            )
        bad = [name for name in self.spark if not name.startswith("spark.")]
        if bad:
            raise ValueError(f"spark.{bad[0]!r} is no Spark setting: the names start with 'spark.'")
        out, setting = paths.locate(self.output.path), self.source_setting
        for given in self.shards or self.input.paths:
            patterns = paths.locate_globs(given)
            if any(paths.lies_in(out, pattern) for pattern in patterns):
                raise ValueError(
                    f"output.path {self.output.path} lies in {setting} {given}: the run's own tables would "
                    "be read as input; name a directory outside of it"
                )
            if any(paths.lies_around(out, pattern) for pattern in patterns):
                raise ValueError(
                    f"{setting} {given} lies in output.path {self.output.path}, where the run's own tables "
                    "are; name another directory for the run"
                )
        return self

    def _check_sources(self) -> None:
        check_embed(self.embed, self.score_filter)
        given = self.input
        if self.shards:
            if given.path is not None or given.table is not None:
                raise ValueError(
                    "embed.images.webdataset stands in place of input.path and input.table; leave these out"
                )
        elif given.path is None and given.table is None:
            raise ValueError("give exactly one of input.path and input.table")
        if not self.embeds_main:
            if self.shards:
                raise ValueError(
                    f"embed: none of the sections is named {MAIN!r}, which is clustered, and shards carry no "
                    "other vectors"
                )
            return
        for name in ("embedding", "embedding_binary", "cluster_id", "distance_to_centroid", "centroids"):
            if getattr(given, name) != InputConfig.model_fields[name].default:
                raise ValueError(
                    f"input.{name} does not go with embed, which makes the vectors that are clustered; give "
                    "the section of embed another name, or leave one of them out"
                )

    @property
    def embeds_main(self) -> bool:
        """Whether the vectors that are clustered come from an encoder."""
        return any(section.name == MAIN for section in self.embed)

    @property
    def shards(self) -> list[str]:
        """Paths and globs of the WebDataset that is the input; empty where it is a table."""
        found = (section.images.shards for section in self.embed if section.images is not None)
        return next(filter(None, found), [])

    @property
    def source_setting(self) -> str:
        """The key that names the input, for messages."""
        if self.shards:
            return "embed.images.webdataset"
        return "input.path" if self.input.paths else "input.table"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "configuration") -> RunConfig:
        """Validate `values`.

        Raises
        ------
        ConfigError
            It names every key that is wrong, and suggests the nearest known name for an unknown one.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source} is no mapping of sections", mend="see conf/example.yaml")
        values = {name: {} if section is None else section for name, section in values.items()}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = explain_errors(error, cls)
            if isinstance(values.get("embed"), dict):  # a section that stands alone
                lines = [line.replace("embed.0.", "embed.") for line in lines]
            raise ConfigError(
                f"{source}:\n" + "\n".join(f"  - {line}" for line in lines),
                mend="every key is described in conf/example.yaml",
            ) from None

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], settings: Iterable[str] = ()) -> RunConfig:
        """Read a YAML file, then apply ``a.b=value`` settings.

        Raises
        ------
        ConfigError
            When the file cannot be read or a key is wrong.
        """
        return cls.from_dict(apply_settings(read_yaml(path), settings), source=os.fspath(path))

    def with_settings(self, settings: Iterable[str]) -> RunConfig:
        """A copy with ``a.b=value`` settings applied.

        Setting one of keep_ratio and n_keep replaces the other.

        Examples
        --------
        >>> base = RunConfig.from_dict({"input": {"path": "e"}, "output": {"path": "o"},
        ...                             "cluster": {"n_clusters": 9}, "prune": {"keep_ratio": 0.5}})
        >>> base.with_settings(["prune.n_keep=10"]).prune.keep_ratio is None
        True
        """
        settings = list(settings)
        values = self.model_dump(exclude_unset=True)
        given = {item.split("=", 1)[0] for item in settings}
        for one, other in (("keep_ratio", "n_keep"), ("n_keep", "keep_ratio")):
            if f"prune.{one}" in given:
                values["prune"].pop(other, None)
        return self.from_dict(apply_settings(values, settings), source="--set")

    def value_at(self, path: str) -> Any:
        """The value of a key or a section, by its path.

        Examples
        --------
        >>> config = RunConfig.from_dict({"input": {"path": "e"}, "output": {"path": "o"},
        ...                               "cluster": {"n_clusters": 9}, "prune": {"keep_ratio": 0.5}})
        >>> config.value_at("prune.temperature"), config.value_at("dedup.exact.columns")
        (0.1, None)
        """
        value: Any = self.model_dump()
        for name in path.split("."):
            if isinstance(value, list):  # sections that have names
                value = next((item for item in value if item["name"] == name), None)
            else:
                value = None if value is None else value[name]
        return value

    def list_sql(self) -> list[tuple[str, str]]:
        """All SQL of the configuration: the key that has it, and its text.

        Examples
        --------
        >>> config = RunConfig.from_dict({"input": {"path": "e", "key": {"sql": "md5(u)"}, "filter": "x > 1"},
        ...     "output": {"path": "o"}, "cluster": {"n_clusters": 9}, "prune": {"n_keep": 5}})
        >>> config.list_sql()
        [('input.filter', 'x > 1'), ('input.key', 'md5(u)')]
        """
        found = [("input.filter", self.input.filter), ("trie.key", self.trie.key)]
        if self.score_filter is not None:
            found.append(("score_filter.expr", self.score_filter.expr))

        def search(path: str, value: Any) -> None:
            if isinstance(value, dict) and set(value) == {"sql"}:
                found.append((path, value["sql"]))
            elif isinstance(value, dict | list | tuple):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                for name, item in items:
                    search(f"{path}.{name}" if isinstance(name, str) else path, item)

        for section in ("input", "embed", "dedup", "score_filter"):
            search(section, self.model_dump()[section])
        return [(path, text) for path, text in found if text is not None]

    def replace_sql(self, texts: Mapping[str, str]) -> RunConfig:
        """A copy with other SQL: for each text that it has, the one that `texts` gives."""

        def replace(value: Any, path: str = "") -> Any:
            if isinstance(value, dict):
                return {name: replace(item, f"{path}.{name}") for name, item in value.items()}
            if isinstance(value, list):
                return [replace(item, path) for item in value]
            is_sql = path in (".input.filter", ".trie.key", ".score_filter.expr") or path.endswith(".sql")
            return texts.get(value, value) if is_sql and isinstance(value, str) else value

        return self.model_validate(replace(self.model_dump(exclude_unset=True)))

    def to_redacted_dict(self) -> dict[str, Any]:
        """All values with secrets blanked out, for run.json and logs."""
        return redact(self.model_dump())
