"""The sections ``embed`` and ``score_filter``. Imports pydantic and `config_base`; no Spark."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from spark_dbp.config_base import ColumnOrSql, Real, Section, UserPath, Whole, check_path, name_column
from spark_dbp.config_errors import explain_errors
from spark_dbp.errors import ConfigError

# The embedding that is clustered.
MAIN = "embedding"
DEFAULT_ENCODER = "hf:facebook/dinov2-large"


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise ValueError(
            f"embed: {name!r} cannot name an embedding; a name has at most 64 lower-case letters, digits "
            "and _, and begins with a letter"
        )
    return name


def _check_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device):
        raise ValueError(f"embed.device: {device!r} is no device; give auto, cpu, cuda, cuda:NUMBER or mps")
    return device


Name = Annotated[str, AfterValidator(_check_name)]


class ImagesConfig(Section):
    """Where the images are."""

    column: ColumnOrSql | None = None
    path_column: ColumnOrSql | None = None
    webdataset: UserPath | Annotated[list[UserPath], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> ImagesConfig:
        if sum(value is not None for value in (self.column, self.path_column, self.webdataset)) != 1:
            raise ValueError("give exactly one of images.column, images.path_column and images.webdataset")
        for path in self.shards:
            if not path:
                raise ValueError("embed.images.webdataset is empty")
            check_path("embed.images.webdataset", path)
        return self

    @property
    def shards(self) -> list[str]:
        """Paths and globs of the WebDataset; empty where images are elsewhere."""
        if self.webdataset is None:
            return []
        return [self.webdataset] if isinstance(self.webdataset, str) else list(self.webdataset)


class TextsConfig(Section):
    """Where the texts are."""

    column: ColumnOrSql


class EmbedConfig(Section):
    """Images or texts, and the pretrained encoder that makes vectors of them."""

    name: Name = MAIN
    images: ImagesConfig | None = None
    texts: TextsConfig | None = None
    encoder: str | None = Field(default=None, min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    weights: UserPath | None = Field(default=None, min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)
    batch_size: Whole | None = Field(default=None, ge=1, le=65_536)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: Annotated[str, AfterValidator(_check_device)] = "auto"
    workers_per_gpu: Whole = Field(default=1, ge=1, le=64)
    decode_threads: Whole | None = Field(default=None, ge=1, le=256)
    max_pixels: Whole = Field(default=100_000_000, ge=1)
    on_bad_items: Literal["fail", "drop"] = "fail"
    max_bad_share: Real = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> EmbedConfig:
        if (self.images is None) == (self.texts is None):
            raise ValueError("give exactly one of embed.images and embed.texts")
        if self.texts is not None and self.encoder is None:
            raise ValueError(
                f"embed.encoder is missing: the default, {DEFAULT_ENCODER}, takes images; texts need one of "
                "their own, such as hf:sentence-transformers/all-MiniLM-L6-v2"
            )
        return self

    @property
    def kind(self) -> Literal["images", "texts"]:
        """What is embedded."""
        return "images" if self.images is not None else "texts"

    @property
    def has_shards(self) -> bool:
        """Whether the images are in the shards of a WebDataset."""
        return self.images is not None and bool(self.images.shards)

    @property
    def item_column(self) -> str | None:
        """Name of the column of the items; None for images in shards."""
        if self.images is not None:
            return name_column(self.images.column or self.images.path_column)
        return name_column(self.texts.column if self.texts is not None else None)

    @property
    def item_setting(self) -> str:
        """The key that says where the items are, for messages."""
        if self.images is None:
            return "embed.texts.column"
        given = next(
            n for n in ("column", "path_column", "webdataset") if getattr(self.images, n) is not None
        )
        return f"embed.images.{given}"

    @property
    def encoder_name(self) -> str:
        """`encoder`, or the default one."""
        return self.encoder or DEFAULT_ENCODER

    @property
    def table(self) -> str:
        """Name of the table of vectors."""
        return "embeddings" if self.name == MAIN else f"embeddings_{self.name}"

    @property
    def rejected_table(self) -> str:
        """Name of the table of items that have no vector."""
        return "rejected" if self.name == MAIN else f"rejected_{self.name}"


def make_embed_config(values: dict[str, Any]) -> EmbedConfig:
    """The section ``embed`` of these values.

    Raises
    ------
    ConfigError
        It names every key that is wrong.
    """
    try:
        return EmbedConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "embed:\n" + "\n".join(f"  - {line}" for line in explain_errors(error, EmbedConfig)),
            mend="every key is described in conf/example.yaml",
        ) from None


def list_sections(value: Any) -> Any:
    """``embed`` as a list of sections: one section may stand alone."""
    if isinstance(value, dict):
        return [value] if value else []
    return value


def find_table(sections: Iterable[EmbedConfig], name: str) -> str:
    """The table with the vectors of the embedding `name`: the samples' own where no section makes it.

    Examples
    --------
    >>> section = EmbedConfig(name="text", texts=TextsConfig(column="caption"), encoder="hf:a/b")
    >>> find_table([section], "text"), find_table([section], "embedding")
    ('embeddings_text', 'samples')
    """
    return next((section.table for section in sections if section.name == name), "samples")


def take_empty_as_none(value: Any) -> Any:
    """An empty section ``score_filter`` is none: a mapping without keys, as an absent one reads."""
    return None if value == {} else value


class ClipScoreConfig(Section):
    """Names of the embeddings whose cosine is the score."""

    image: Name
    text: Name

    @property
    def names(self) -> tuple[str, str]:
        """Of the embedding of images, and of that of texts."""
        return self.image, self.text


class ScoreFilterConfig(Section):
    """Which samples are left by a score, after deduplication and before clustering."""

    expr: str | None = Field(default=None, min_length=1)
    column: ColumnOrSql | None = None
    clip_score: ClipScoreConfig | None = None
    keep_fraction: Real | None = Field(default=None, gt=0, le=1)
    at_least: Real | None = None
    within: ColumnOrSql | None = None

    @model_validator(mode="after")
    def _check(self) -> ScoreFilterConfig:
        given = [name for name in ("expr", "column", "clip_score") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of score_filter.expr, column and clip_score")
        limits = [name for name in ("keep_fraction", "at_least") if getattr(self, name) is not None]
        if self.expr is not None:
            if limits or self.within is not None:
                extra = [*limits, *(["within"] if self.within is not None else [])]
                raise ValueError(f"score_filter.{extra[0]} does not go with expr, which says all by itself")
        elif len(limits) != 1:
            raise ValueError(f"give exactly one of score_filter.keep_fraction and at_least with {given[0]}")
        if self.within is not None and self.keep_fraction is None:
            raise ValueError("score_filter.within goes with keep_fraction: at_least is the same everywhere")
        return self

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the input that it reads; SQL, `expr` too, stands for its own column."""
        return [str(column) for column in (self.expr, self.column, self.within) if column is not None]

    @property
    def score(self) -> str | None:
        """Name of the column of the input that is the score, or says itself which rows pass."""
        return self.expr if self.column is None else str(self.column)

    def count_to_keep(self, n_rows: int) -> int:
        """floor(keep_fraction * n_rows), the fraction taken as the decimal number that the user wrote.

        Examples
        --------
        >>> ScoreFilterConfig(column="score", keep_fraction=0.29).count_to_keep(100)
        29
        """
        return math.floor(Fraction(repr(self.keep_fraction)) * n_rows)


def check_embed(sections: Iterable[EmbedConfig], score_filter: ScoreFilterConfig | None) -> None:
    """Refuse sections that do not go together.

    Raises
    ------
    ValueError
    """
    sections = list(sections)
    names = [section.name for section in sections]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"embed: the name {twice!r} is given twice; each section has a name of its own")
    shards = {tuple(section.images.shards) for section in sections if section.images is not None} - {()}
    if len(shards) > 1:
        raise ValueError("embed: all sections with images.webdataset must name the same shards")
    score = score_filter.clip_score if score_filter is not None else None
    for key, name in (("image", score.image), ("text", score.text)) if score is not None else ():
        if name not in (*names, MAIN):
            raise ValueError(
                f"score_filter.clip_score.{key}: there is no embedding {name!r}; the names of embed are: "
                f"{', '.join(names) or 'none'}"
            )
    if score is not None and score.image == score.text:
        raise ValueError("score_filter.clip_score: image and text must be two embeddings")
