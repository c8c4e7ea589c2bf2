"""Make torchvision importable beside a torch that its compiled part was not built for (the CPU build on PyPI's mirror).

timm and open_clip import torchvision for its transforms, which need no compiled operator. Where torchvision's
library does not load, its import fails at ``torchvision::nms does not exist`` all the same. This script declares
such operators in the installed ``torchvision/extension.py``. It changes nothing where the import works, or fails
for another reason.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
# What an operator takes does not matter: nothing calls it.
DECLARATION = """
# Added by mend_torchvision.py: the compiled operators are missing, and nothing here calls them.
import torch.library

torch.library.define("torchvision::{}", "(Tensor x) -> Tensor")
"""


def try_import() -> str | None:
    """What ``import torchvision`` fails with in a process of its own; None where it works."""
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr


def mend() -> None:
    mended: set[str] = set()
    while (error := try_import()) is not None:
        found = MISSING.search(error)
        if found is None or found[1] in mended:
            sys.exit(error)
        mended.add(found[1])
        spec = importlib.util.find_spec("torchvision")
        assert spec is not None and spec.origin is not None
        extension = Path(spec.origin).with_name("extension.py")
        extension.write_text(extension.read_text() + DECLARATION.format(found[1]))
        print(f"declared torchvision::{found[1]} in {extension}")


if __name__ == "__main__":
    mend()
