"""Pretrained encoders: images and texts become unit vectors.

Imports numpy and pyarrow; torch and others inside functions.

`encode_stream` is what the stage calls on workers, `identify_encoder` and `probe_encoder` what the driver
asks first.
"""

from spark_dbp.encoders.bad_items import REASONS, BadItemError
from spark_dbp.encoders.identity import identify_encoder
from spark_dbp.encoders.images import decode_image
from spark_dbp.encoders.open import open_encoder
from spark_dbp.encoders.probe import probe_encoder
from spark_dbp.encoders.process import forget_encoders, get_encoder
from spark_dbp.encoders.protocol import Encoder
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.encoders.stream import encode_stream

__all__ = [
    "REASONS",
    "BadItemError",
    "Encoder",
    "EncoderSettings",
    "decode_image",
    "encode_stream",
    "forget_encoders",
    "get_encoder",
    "identify_encoder",
    "open_encoder",
    "probe_encoder",
]
