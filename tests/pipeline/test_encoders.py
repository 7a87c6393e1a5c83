"""Each kind of autoencoder is recognised by its latents of the probe images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lcmem_filter.errors import LatentSpaceError
from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import encode_pixels

from .families.kandinsky import cascade, movq
from .families.packed import flux2, qwen_image
from .families.transformers import deep_compression_vae, eightfold_vae

AUTOENCODERS: dict[str, Callable[[], Any]] = {
    "AutoencoderKL": eightfold_vae,
    "AutoencoderKLFlux2": lambda: flux2().vae,
    "AutoencoderKLQwenImage": lambda: qwen_image().vae,
    "AutoencoderDC": deep_compression_vae,
    "VQModel": movq,
    "PaellaVQModel": lambda: cascade().vqgan,
}


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_it_is_recognised(kind: str) -> None:
    autoencoder = AUTOENCODERS[kind]()
    assert type(autoencoder).__name__ == kind
    channels = encode_pixels(autoencoder, torch.zeros(1, 3, 32, 32)).shape[1]
    head = LCMemHead.create("micro", spaces={"its": channels, "another": channels})
    head.add_probes("its", autoencoder)
    head.probes["another"].copy_(torch.randn(head.probes["another"].shape))
    match = head.identify_space(autoencoder)
    assert match.space == "its" and match.agreement > 0.99 and match.agreements["another"] < 0.5


def test_a_film_is_no_picture() -> None:
    class Filming(torch.nn.Module):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.stack([pixels, pixels], 2)

    with pytest.raises(LatentSpaceError, match="videos cannot be filtered"):
        encode_pixels(Filming(), torch.zeros(1, 3, 32, 32))


def test_an_autoencoder_that_overflows_in_float16_encodes_in_float32() -> None:
    autoencoder = eightfold_vae()
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    exact = encode_pixels(autoencoder.half().float(), pixels)
    autoencoder.half().register_to_config(force_upcast=True)
    assert torch.equal(encode_pixels(autoencoder, pixels), exact) and autoencoder.dtype == torch.float16
    autoencoder.register_to_config(force_upcast=False)
    assert not torch.equal(encode_pixels(autoencoder, pixels), exact)


def test_an_autoencoder_that_stores_its_weights_otherwise_encodes_in_what_it_computes_in() -> None:
    autoencoder = eightfold_vae()
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    exact = encode_pixels(autoencoder, pixels)
    autoencoder.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert next(autoencoder.parameters()).dtype == torch.bfloat16
    torch.testing.assert_close(encode_pixels(autoencoder, pixels), exact, rtol=0.1, atol=0.1)
