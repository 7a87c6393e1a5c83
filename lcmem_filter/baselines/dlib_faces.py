"""dlib's face descriptor, from the packages that ship it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import MissingExtraError
from .common import Euclidean
from .registry import Sees

CHIP = 150
DETECTED_AT = 256


class DlibFaces(Euclidean):
    """Negative mean squared difference of dlib's 128 face features, trained on about 3 million faces (King, 2017).

    The largest face that dlib finds is turned upright by five landmarks; where it finds none the whole picture is
    taken for the face. It is pretrained on the very kind of image that it is compared on: a bar, not a peer.

    Raises:
        MissingExtraError: the packages are not installed.
    """

    sees: Sees = "pixel"

    def __init__(self) -> None:
        try:
            import dlib
        except ImportError as error:
            raise MissingExtraError(_MISSING.format(error)) from error
        spec = find_spec(
            "face_recognition_models"
        )  # importing it needs pkg_resources, which setuptools dropped
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(_MISSING.format("No module named 'face_recognition_models'"))
        folder = Path(spec.submodule_search_locations[0]) / "models"
        self._dlib: Any = dlib
        self._network = dlib.face_recognition_model_v1(
            str(folder / "dlib_face_recognition_resnet_model_v1.dat")
        )
        self._landmarks = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        self._find = dlib.get_frontal_face_detector()

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        chips = [self._chip(picture) for picture in _bytes(images, DETECTED_AT)]
        features = self._network.compute_face_descriptor(chips)
        return torch.from_numpy(np.array(features, dtype=np.float32))

    def _chip(self, picture: np.ndarray) -> np.ndarray:
        faces = self._find(picture, 0)
        if not faces:
            return np.asarray(self._dlib.resize_image(picture, CHIP, CHIP))
        largest = max(faces, key=lambda face: face.area())
        return np.asarray(self._dlib.get_face_chip(picture, self._landmarks(picture, largest), size=CHIP))


_MISSING = "the dlib_faces baseline needs dlib and its models ({}); run: pip install 'lcmem-filter[bench]'"


def _bytes(images: torch.Tensor, side: int) -> np.ndarray:
    """Pictures (B, 3, H, W) in [-1, 1] as contiguous uint8 (B, side, side, 3)."""
    given = torch.nn.functional.interpolate(
        images.float().cpu(), (side, side), mode="bicubic", antialias=True, align_corners=False
    )
    pixels = ((given / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
