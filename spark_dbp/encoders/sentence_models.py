"""Directories of sentence-transformers, for texts.

Imports `errors`; torch and sentence_transformers inside functions.

Texts that are longer than the model's ``max_seq_length`` are truncated. Option: ``prompt``, written before
each text.
"""

from __future__ import annotations

from typing import Any

from spark_dbp.encoders.devices import default_batch_size, use_dtype
from spark_dbp.encoders.hugging_face import hide_bars
from spark_dbp.encoders.libraries import load_library
from spark_dbp.encoders.locate import Located
from spark_dbp.encoders.protocol import FloatArray, check_options
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.errors import ConfigError


class SentenceModel:
    """A model of sentence-transformers, with the pooling and the layers that it names."""

    def __init__(self, settings: EncoderSettings, located: Located, device: str, dtype: str) -> None:
        check_options(settings.encoder, settings.options, ("prompt",))
        if settings.kind != "texts":
            raise ConfigError(
                f"embed.encoder {settings.encoder} takes texts, not images",
                mend="use embed.texts, or another encoder",
            )
        self.name, self.device, self.dtype = settings.encoder, device, dtype
        self.batch_size = default_batch_size("texts", device)
        self._prompt = str(settings.options.get("prompt", ""))
        self._torch = load_library("torch")
        library = load_library("sentence_transformers")
        try:
            with hide_bars(load_library("transformers")):
                self._model: Any = library.SentenceTransformer(
                    str(located.root), device=device, trust_remote_code=False, local_files_only=True
                ).eval()
        except Exception as error:  # of three libraries
            raise ConfigError(
                f"embed.encoder {settings.encoder}: sentence-transformers cannot load {located.root}: "
                f"{error}",
                mend="check that sentence_transformers.SentenceTransformer(DIR) loads it",
            ) from error

    def prepare(self, item: str) -> str:
        """The text, after the prompt."""
        return self._prompt + item

    def encode(self, batch: list[str]) -> FloatArray:
        """Embeddings of texts, float32, shape (n, dim); what is too long is truncated."""
        with self._torch.inference_mode(), use_dtype(self.device, self.dtype):
            found = self._model.encode(
                batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False, prompt=""
            )
        embeddings: FloatArray = found.float().cpu().numpy()
        return embeddings
