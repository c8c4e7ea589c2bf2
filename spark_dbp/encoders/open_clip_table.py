"""Look up what open_clip knows of its pretrained weights.

Imports `errors`; open_clip in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

from spark_dbp.encoders.libraries import find_versions
from spark_dbp.errors import ConfigError

# Importing open_clip imports torch, which a driver that only identifies an encoder can do without.
_CODE = """
import json, sys, open_clip
model, tag = sys.argv[1:]
known = open_clip.get_pretrained_cfg(model, tag) if hasattr(open_clip, "get_pretrained_cfg") else None
if known is None:
    from open_clip.pretrained import get_pretrained_cfg
    known = get_pretrained_cfg(model, tag)
print(json.dumps({"known": known, "models": open_clip.list_models(),
                  "tags": open_clip.list_pretrained_tags_by_model(model)}))
"""


@cache
def read_tag(model: str, tag: str) -> dict[str, Any]:
    """Repository, mean, std and so on of ``MODEL/TAG``.

    Raises
    ------
    ConfigError
    """
    find_versions("open_clip")
    done = subprocess.run(
        [sys.executable, "-c", _CODE, model, tag], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ConfigError(
            f"embed.encoder: open_clip cannot be imported: {done.stderr.strip()[-300:]}",
            mend="pip install 'spark-dbp[encoders]'",
        )
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["known"]:
        known = ", ".join(found["tags"]) or f"none; models are {', '.join(found['models'][:8])} ..."
        raise ConfigError(
            f"embed.encoder: open_clip has no weights {tag!r} for a model {model!r}",
            mend=f"write open_clip:MODEL/TAG; the tags of {model} are: {known}",
        )
    facts: dict[str, Any] = found["known"]
    if not facts.get("hf_hub"):
        raise ConfigError(
            f"embed.encoder: open_clip keeps {model}/{tag} at {facts.get('url')}, not on the Hugging Face "
            "hub",
            mend=f"download that file, and set embed.encoder: open_clip:{model} and embed.weights to it",
        )
    return facts
