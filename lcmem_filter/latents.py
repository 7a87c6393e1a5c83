"""Images to VAE latents, latents to the canonical form that a head sees, and which latent space a VAE speaks."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .errors import ArtifactNotFoundError, ConfigurationError, LatentSpaceError
from .hub import check_reachable

NORMALISED_STD = 0.5
PROBE_RESOLUTION = 128
OUTLINES = 512
"""Numbers that are kept of an image's outlines, at most."""
MIN_RESOLUTION = 16
"""Pixels a side, below which encoders have nothing left to encode."""
ENCODED_AT_ONCE = 8 * 512 * 512
"""Pixels that an encoder sees at once, all pictures together, or one picture that has more: a full autoencoder's first
layers take some kilobytes of memory for each."""


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """Where an encoder came from: local folder or hub id, revision, class, and a SHA-256 of its weights."""

    path: str
    class_name: str
    sha256: str
    revision: str | None = None
    subfolder: str | None = None
    trust_remote_code: bool = False


class Encoder:
    """A VAE's encoder and where it came from."""

    def __init__(
        self,
        vae: Any,
        path: str,
        revision: str | None = None,
        subfolder: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.vae = vae
        self._origin = (path, revision, subfolder, trust_remote_code)

    @cached_property
    def source(self) -> EncoderSource:
        path, revision, subfolder, trusted = self._origin
        return EncoderSource(
            path, type(self.vae).__name__, weights_sha256(self.vae), revision, subfolder, trusted
        )

    def described(self) -> dict[str, str]:
        """What a card says of it; not the folder that it lay in."""
        return {
            "name": Path(self.source.path).name,
            "class": self.source.class_name,
            "sha256": self.source.sha256,
        }

    def to(self, device: str | torch.device) -> Encoder:
        """Encode on ``device`` from now on."""
        self.vae.to(device)
        return self

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] to float32 latents; see ``encode_pixels``."""
        return encode_pixels(self.vae, pixels)

    @torch.inference_mode()
    def side_at(self, resolution: int) -> int:
        """Shorter side of the latents of a square picture of so many pixels a side.

        Raises:
            ConfigurationError: it encodes no pictures of that size.
        """
        device = next(iter(self.vae.parameters())).device
        try:
            return min(self.encode(torch.zeros(1, 3, resolution, resolution, device=device)).shape[-2:])
        except RuntimeError as error:
            why = str(error).split("\n")[0]
            raise ConfigurationError(
                f"{type(self.vae).__name__} cannot encode pictures of {resolution} px: {why}; give a resolution that "
                "it takes, best a multiple of 64"
            ) from error


def load_encoder(
    path_or_id: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    subfolder: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Load a VAE from a diffusers folder or a hub id, in float32. A whole pipeline's folder gives its ``vae``.

    Args:
        trust_remote_code: Run a custom autoencoder class that lies in the folder.

    Raises:
        ArtifactNotFoundError: no autoencoder can be loaded from ``path_or_id``.
    """
    path = os.fspath(path_or_id)
    if Path(path).exists():  # an index remembers it, and may be used from elsewhere
        path = str(Path(path).resolve())
    if subfolder is None and (Path(path) / "vae" / "config.json").exists():
        subfolder = "vae"
    try:
        check_reachable(path)
        vae = _load_autoencoder(path, revision, subfolder, trust_remote_code)
    except Exception as error:
        here = Path(path).exists() or isinstance(error, FileNotFoundError)  # told
        asked = "" if here else "there is no such folder here, so the hub was asked; "
        raise ArtifactNotFoundError(
            f"no autoencoder could be loaded from {path!r}: {type(error).__name__}: {error}; "
            f"{asked}"
            "give a diffusers VAE folder or a hub id (--trust-remote-code runs a custom class in the folder)"
        ) from error
    return Encoder(vae.to(device).eval().requires_grad_(False), path, revision, subfolder, trust_remote_code)


def _load_autoencoder(path: str, revision: str | None, subfolder: str | None, trust_remote_code: bool) -> Any:
    import diffusers

    options: dict[str, Any] = {"revision": revision, "torch_dtype": torch.float32}
    if subfolder:
        options["subfolder"] = subfolder
    config_file = Path(path) / (subfolder or "") / "config.json"
    if config_file.exists():
        config = json.loads(config_file.read_text(encoding="utf-8"))
        named = getattr(diffusers, config.get("_class_name", ""), None)
        if named is not None and "auto_map" not in config:
            return named.from_pretrained(path, **options)
    return diffusers.AutoModel.from_pretrained(path, trust_remote_code=trust_remote_code, **options)


@torch.no_grad()
def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Encode as diffusers does: the mode of the posterior, unscaled; a large batch portion by portion.

    Args:
        vae: A diffusers autoencoder (KL, tiny, VQ, DC, one for video that takes single frames, or custom with an
            ``encode``); it may be offloaded.
        pixels: (B, 3, H, W) in [-1, 1].

    Returns:
        Latents (B, C, h, w), float32, on the device of ``pixels``.

    Raises:
        LatentSpaceError: what the encoder returns is not (B, C, h, w), nor that with one frame.
    """
    given = pixels[:, :, None] if _encodes_video(vae) else pixels
    some = max(1, ENCODED_AT_ONCE // math.prod(pixels.shape[-2:]))
    with _precise_enough(vae) as dtype:
        device = _input_device(vae, pixels.device)
        parts = [_latents_of(vae.encode(part.to(device=device, dtype=dtype))) for part in given.split(some)]
    return torch.cat(parts).to(device=pixels.device, dtype=torch.float32)


def _latents_of(output: Any) -> torch.Tensor:
    """The latents (B, C, h, w) in what an autoencoder's ``encode`` returns."""
    if hasattr(output, "latent_dist"):
        return single_frame(output.latent_dist.mode())
    return single_frame(output if isinstance(output, torch.Tensor) else output[0])


def single_frame(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w), or (B, C, 1, h, w) of an autoencoder for video, as (B, C, h, w).

    Raises:
        LatentSpaceError: another shape, more than one frame among them.
    """
    if latents.ndim == 5 and latents.shape[2] == 1:
        return latents[:, :, 0]
    if latents.ndim != 4:
        raise LatentSpaceError(
            f"latents of a picture are (batch, channels, height, width), or that with one frame, got "
            f"{tuple(latents.shape)}; videos cannot be filtered"
        )
    return latents


def _encodes_video(vae: Any) -> bool:
    encoder = getattr(vae, "encoder", vae)
    return any(isinstance(module, torch.nn.Conv3d) for module in encoder.modules())


def _input_device(vae: Any, otherwise: torch.device) -> torch.device:
    """Where the inputs of ``vae`` must lie: not where its weights are while it is offloaded."""
    for module in vae.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
        registry = getattr(module, "_diffusers_hook", None)
        group = registry.get_hook("group_offloading") if registry is not None else None
        if group is not None:
            return torch.device(group.group.onload_device)
    parameter = next(iter(vae.parameters()), None)
    return otherwise if parameter is None or parameter.device.type == "meta" else parameter.device


@contextmanager
def _precise_enough(vae: Any) -> Iterator[torch.dtype]:
    """The dtype to encode in: the weights' own, but float32 where an autoencoder is known to overflow in float16."""
    parameter = next(iter(vae.parameters()), None)
    # weights may be stored in another dtype than they compute in, which `dtype` tells
    dtype = torch.float32 if parameter is None else getattr(vae, "dtype", parameter.dtype)
    overflows = dtype == torch.float16 and getattr(getattr(vae, "config", None), "force_upcast", False)
    if not overflows or parameter is None or parameter.device.type == "meta":
        yield dtype
        return
    vae.to(dtype=torch.float32)
    try:
        yield torch.float32
    finally:
        vae.to(dtype=dtype)


def to_grid(latents: torch.Tensor, grid: int) -> torch.Tensor:
    """Latents (B, C, h, w) resized to (B, C, grid, grid), the whole picture squashed.

    Larger ones are averaged over areas, which leaves them most like the latents of a smaller picture: antialiased
    bilinear, which is used where a side is smaller, reaches across twice the area.
    """
    if latents.shape[-2:] == (grid, grid):
        return latents
    if min(latents.shape[-2:]) >= grid:
        return F.adaptive_avg_pool2d(latents, grid)
    return F.interpolate(latents, (grid, grid), mode="bilinear", antialias=True, align_corners=False)


def normalise(latents: torch.Tensor) -> torch.Tensor:
    """Each sample's each channel to mean 0 and standard deviation 0.5 (unbiased, clamped at 1e-8), in float32.

    This cancels every affine map of a channel with positive scale, so scaled, shifted and standardised pipeline
    latents agree (LCMem, arXiv 2512.14421, normalises so before its network).
    """
    latents = latents.float()
    mean = latents.mean(dim=(-2, -1), keepdim=True)
    std = latents.std(dim=(-2, -1), keepdim=True).clamp_min(1e-8)
    return (latents - mean) / std * NORMALISED_STD


def canonical(latents: torch.Tensor, grid: int) -> torch.Tensor:
    """Latents (B, C, h, w) as a head sees them: resized to (B, C, grid, grid), then normalised; float32."""
    return normalise(to_grid(latents.float(), grid))


def outlines(latents: torch.Tensor) -> torch.Tensor:
    """Canonical latents (B, C, g, g) shrunk to ``OUTLINES`` numbers or fewer, or to a side of 2, of unit norm, (B, D).

    What a model returns of a picture that it only half remembers has lost its detail, but kept these.
    """
    channels, grid = latents.shape[1], latents.shape[-1]
    side = next((side for side in (8, 4) if channels * side**2 <= OUTLINES), 2)
    return F.normalize(F.adaptive_avg_pool2d(latents, min(side, grid)).flatten(1), dim=1)


def probe_images(resolution: int = PROBE_RESOLUTION) -> torch.Tensor:
    """Twelve procedural pictures (12, 3, resolution, resolution) in [-1, 1] with a natural fall-off of frequencies."""
    draw = np.random.Generator(np.random.PCG64(20_512))
    pictures = []
    for i in range(12):
        total = torch.zeros(1, 3, resolution, resolution, dtype=torch.float32, device="cpu")
        for octave in range(2, 8):
            size = min(2**octave, resolution)
            noise = torch.from_numpy(draw.standard_normal((1, 3, size, size))).float()
            shared = noise.mean(1, keepdim=True) * 1.5
            layer = F.interpolate(
                noise * 0.5 + shared, (resolution, resolution), mode="bicubic", align_corners=False
            )
            total += layer * 0.75**octave
        total = _with_shape(total[0], i, draw)
        pictures.append(torch.tanh(total / total.std() * 0.7))
    return torch.stack(pictures)


def _with_shape(picture: torch.Tensor, i: int, draw: np.random.Generator) -> torch.Tensor:
    """Add a hard-edged disc, box or bar: encoders treat edges and textures differently."""
    size = picture.shape[-1]
    place = torch.linspace(-1, 1, size, dtype=picture.dtype, device=picture.device)
    y, x = torch.meshgrid(place, place, indexing="ij")
    cx, cy, radius = (float(v) for v in draw.uniform((-0.5, -0.5, 0.2), (0.5, 0.5, 0.6)))
    inside = [
        (x - cx) ** 2 + (y - cy) ** 2 < radius**2,
        (x - cx).abs().maximum((y - cy).abs()) < radius,
        (x + (y - cy) * cx).abs() < radius / 3,
    ][i % 3]
    colour = torch.from_numpy(draw.standard_normal(3)).float()[:, None, None]
    return picture + inside * colour * picture.std()


@torch.no_grad()
def probe_latents(vae: Any, grid: int) -> torch.Tensor:
    """Canonical latents (12, C, grid, grid) of the probe images, on the CPU."""
    return canonical(encode_pixels(vae, probe_images()), grid)


def channel_agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    """Signed Pearson correlation of two sets of probe latents (P, C, h, w), per channel, averaged, in [-1, 1].

    Latents of other shapes than each other's agree by -1.
    """
    if a.shape != b.shape:
        return -1.0
    a, b = (t.double().transpose(0, 1).flatten(1) for t in (a, b))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)).mean())


def check_latents(latents: torch.Tensor, channels: int, space: str) -> None:
    """
    Raises:
        LatentSpaceError: not (B, ``channels``, H, W).
    """
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise LatentSpaceError(
            f"latents of space {space!r} are (batch, {channels}, height, width), got {tuple(latents.shape)}; "
            "unpack them, or attach an index of the pipeline's own latent space"
        )


def weights_sha256(model: torch.nn.Module, prefix: bytes = b"", but: tuple[str, ...] = ()) -> str:
    """SHA-256 over the names and float32 values of a model's weights, independent of device and file format.

    Args:
        but: Weights of these names, or below them, are left out.
    """
    digest = hashlib.sha256(prefix)
    for name, value in sorted(model.state_dict().items()):
        if any(name == one or name.startswith(f"{one}.") for one in but):
            continue
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
