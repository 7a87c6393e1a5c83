"""Which latent space a pipeline works in, and from the latents that it hands out to those that its decoder is given."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import LatentSpaceError, LcmemFilterError, UnsupportedPipelineError
from ..filter import MemorizationFilter
from ..index import MemorizationIndex
from ..latents import single_frame

ASK_FOR_IMAGES = "ask for images instead: output_type='pil', 'np' or 'pt'"

Size = tuple[int, int]
Weights = frozenset[tuple[int, int]]
"""The parameters of a module, by identity and version."""


def identify_space(pipe: Any, vae: Any, index: MemorizationIndex) -> str:
    """The latent space of ``vae``, by its behaviour on the probe images of the head of ``index``.

    Where models are offloaded, what was brought to the device for that leaves it again.

    Raises:
        LatentSpaceError: none that the head knows.
        UnsupportedPipelineError: ``vae`` does not encode pictures.
    """
    try:
        return index.head.identify_space(vae).told()
    except LatentSpaceError as error:
        raise LatentSpaceError(
            f"{error}. Index {index.path} was built with {index.encoder_source.path}: is it of this pipeline's "
            "training set?"
        ) from error
    except LcmemFilterError:
        raise
    except Exception as error:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__}: its {type(vae).__name__} could not encode the probe images "
            f"({type(error).__name__}: {error}), so its latent space is unknown; only image pipelines can be filtered"
        ) from error
    finally:
        if hasattr(pipe, "maybe_free_model_hooks"):  # modular pipelines have another way of offloading
            pipe.maybe_free_model_hooks()


class KnownDecoders:
    """Decoders that were found to work in a filter's latent space, with the weights that they had then.

    Pickled ones are forgotten: what is loaded has decoders of its own.
    """

    def __init__(self) -> None:
        self._weights: weakref.WeakKeyDictionary[Any, Weights] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[KnownDecoders], tuple[()]]:
        return KnownDecoders, ()

    def remember(self, vae: Any) -> None:
        """Take ``vae`` for a decoder of the filter's space."""
        module = uncompiled(vae)
        self._weights[module] = weights_of(module)

    def check(self, pipe: Any, vae: Any, judge: MemorizationFilter) -> None:
        """Identify the space of ``vae`` where it, or its weights, are not those that were remembered.

        Raises:
            LatentSpaceError: it is not that of ``judge``.
        """
        module = uncompiled(vae)
        if module in self._weights and self._weights[module] == weights_of(module):
            return
        space = identify_space(pipe, vae, judge.index)
        if space != judge.space:
            raise LatentSpaceError(
                f"the filter was attached for latents of {judge.space!r}, but the pipeline's {type(module).__name__} "
                f"has been replaced by one of {space!r}; attach the filter again"
            )
        self.remember(vae)


def weights_of(vae: Any) -> Weights:
    """What changes where weights of ``vae`` are replaced or overwritten, and not where they move to another device.
    Those that are offloaded layer by layer are new ones after every use, so they are left out."""
    return frozenset(
        (id(one), 0 if one.is_inference() else one._version)
        for one in uncompiled(vae).parameters()
        if one.device.type != "meta"
    )


def uncompiled(vae: Any) -> Any:
    """``torch.compile`` wraps a module and forwards attributes to it."""
    return getattr(vae, "_orig_mod", vae)


def picture_latents(latents: Any) -> torch.Tensor:
    """Latents in the decoder's space as (B, C, H, W); one frame (B, C, 1, H, W) is squeezed.

    Raises:
        UnsupportedPipelineError: anything else, videos among them.
    """
    if not isinstance(latents, torch.Tensor):
        raise UnsupportedPipelineError(
            f"the decoder was given {type(latents).__name__}, not a tensor of latents; this pipeline cannot be filtered"
        )
    try:
        return single_frame(latents)
    except LatentSpaceError as error:
        raise UnsupportedPipelineError(str(error)) from error


def decoder_space(
    pipe: Any, vae: Any, latents: Any, size: Size | None, *, instead: str = ASK_FOR_IMAGES
) -> torch.Tensor:
    """Bring the latents that ``pipe`` returns for ``output_type="latent"`` to the space of ``vae``.

    What is one scale and shift a channel is left as it is: judging does not depend on it. Undone are packing into
    tokens (FLUX.1, Qwen-Image and their kin) and, for FLUX.2, the batch norm over patches, which is another scale
    within each patch.

    Args:
        latents: As returned: (B, C, H, W), or packed (B, tokens, channels).
        size: Height and width in pixels that the pipeline drew at, where known.
        instead: What the error says to do.

    Returns:
        (B, C, H, W), C the latent channels of ``vae``.

    Raises:
        UnsupportedPipelineError: a layout that is not known.
    """
    channels = latent_channels(vae)
    if not isinstance(latents, torch.Tensor):
        raise _unknown_layout(pipe, type(latents).__name__, instead)
    if latents.ndim == 3:
        found = _unpacked(pipe, vae, latents, size, instead)
    elif latents.ndim == 4 and _patched(vae, latents.shape[1], channels):
        found = _without_batch_norm(pipe, vae, latents)
    elif hasattr(vae, "bn") and not hasattr(pipe, "_unpack_latents_with_ids"):
        # may be normalised within each patch, as Bria's are, or not: the shape does not tell
        raise _unknown_layout(pipe, tuple(latents.shape), instead)
    else:
        found = latents
    if found.ndim == 5 and found.shape[2] == 1:
        found = found[:, :, 0]
    if found.ndim != 4 or (channels is not None and found.shape[1] != channels):
        raise _unknown_layout(pipe, tuple(latents.shape), instead)
    return found


def latent_channels(vae: Any) -> int | None:
    """How many channels the latents of ``vae`` have, where its configuration tells."""
    config = getattr(vae, "config", None)
    for name in ("latent_channels", "z_dim"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


@contextmanager
def drawn_size(pipe: Any) -> Iterator[list[Size]]:
    """Collect the height and width that ``pipe`` prepares its latents for, which may not be those asked for."""
    sizes: list[Size] = []
    prepare = getattr(pipe, "prepare_latents", None)
    if prepare is None or not {"height", "width"} <= set(inspect.signature(prepare).parameters):
        yield sizes
        return
    before = pipe.__dict__.get("prepare_latents")
    signature = inspect.signature(prepare)

    @functools.wraps(prepare)
    def watched(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        sizes.append((int(given["height"]), int(given["width"])))
        return prepare(*args, **kwargs)

    pipe.__dict__["prepare_latents"] = watched
    try:
        yield sizes
    finally:
        if before is None:
            del pipe.__dict__["prepare_latents"]
        else:
            pipe.__dict__["prepare_latents"] = before


def _patched(vae: Any, found: int, channels: int | None) -> bool:
    return hasattr(vae, "bn") and channels is not None and found == 4 * channels


def _unpacked(pipe: Any, vae: Any, latents: torch.Tensor, size: Size | None, instead: str) -> torch.Tensor:
    """Packed latents (B, tokens, channels) by the pipeline's own methods."""
    factor = getattr(pipe, "vae_scale_factor", None)
    if size is None or factor is None:
        raise _unknown_layout(pipe, tuple(latents.shape), instead)
    height, width = (side // (2 * factor) for side in size)
    if height * width != latents.shape[1]:
        raise _unknown_layout(pipe, tuple(latents.shape), instead)
    if hasattr(pipe, "_unpack_latents_with_ids") and hasattr(vae, "bn"):
        grid = latents.transpose(1, 2).unflatten(2, (height, width))
        return _without_batch_norm(pipe, vae, grid)
    unpack = getattr(pipe, "_unpack_latents", None)
    if unpack is None or list(inspect.signature(unpack).parameters) != [
        "latents",
        "height",
        "width",
        "vae_scale_factor",
    ]:
        raise _unknown_layout(pipe, tuple(latents.shape), instead)
    unpacked: torch.Tensor = unpack(latents, *size, factor)
    return unpacked


def _without_batch_norm(pipe: Any, vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Patched latents (B, 4 C, h, w) with the autoencoder's batch norm undone, as (B, C, 2 h, 2 w)."""
    mean, variance = (s.view(1, -1, 1, 1).to(latents) for s in (vae.bn.running_mean, vae.bn.running_var))
    patches = latents * torch.sqrt(variance + getattr(vae.config, "batch_norm_eps", vae.bn.eps)) + mean
    unpatch = getattr(pipe, "_unpatchify_latents", None) or (lambda given: F.pixel_shuffle(given, 2))
    unpatched: torch.Tensor = unpatch(patches)
    return unpatched


def _unknown_layout(pipe: Any, found: object, instead: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(
        f"{type(pipe).__name__} returns latents in a layout that cannot be judged ({found}); {instead}"
    )
