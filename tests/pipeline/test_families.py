"""Every family of pipelines, with verdicts that the test decides; see ``families`` for how to add one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lcmem_filter.latents import canonical, encode_pixels
from lcmem_filter.pipeline import MemorizationWarning, detach
from lcmem_filter.pipeline.call import decoder_of
from lcmem_filter.pipeline.rows import PICTURES
from lcmem_filter.pipeline.spaces import latent_channels

from .families import Family, families
from .scripted import always, reject_first_pass, wear

pytestmark = [
    pytest.mark.filterwarnings("ignore:You have passed .* Initial images are now duplicating:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*upcast_vae. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

ROWS = range(4)


@pytest.fixture(scope="module", params=families(), ids=lambda family: family.name)
def made(request: pytest.FixtureRequest) -> tuple[Family, Any]:
    return request.param, request.param.make()


@pytest.fixture
def family(made: tuple[Family, Any]) -> Family:
    return made[0]


@pytest.fixture
def pipe(made: tuple[Family, Any]) -> Iterator[Any]:
    yield made[1]
    detach(made[1])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arguments(family: Family, **changes: Any) -> dict[str, Any]:
    """A call for four images: two of each of two prompts."""
    shared = {
        "num_images_per_prompt": 2,
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": generator(),
    }
    return {**shared, **family.arguments(), **changes}


def alone(family: Family, row: int, seed: int) -> dict[str, Any]:
    """The call for what ``row`` of the four shows, from its own seed."""
    full = arguments(family)
    for name, value in full.items():
        if name in family.per_prompt:
            full[name] = value[row // 2 : row // 2 + 1]
        elif name in family.cycled:
            full[name] = value[row % len(value) : row % len(value) + 1]
    return {**full, "num_images_per_prompt": 1, "generator": [generator(seed)]}


def with_its_second_entry_like_the_first(value: Any) -> Any:
    changed = copy.copy(value) if isinstance(value, list) else value.clone()
    changed[1] = value[0]
    return changed


class Spy:
    """Records what a decoder is given; stands on the instance, below the gate."""

    def __init__(self, decoder: Any) -> None:
        self.given: list[torch.Tensor] = []
        self.inner = decoder.decode
        decoder.decode = self

    def __call__(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.given.append(latents.clone())
        return self.inner(latents, *args, **kwargs)


@pytest.fixture
def decoded(pipe: Any) -> Iterator[list[torch.Tensor]]:
    decoder = decoder_of(pipe)
    yield Spy(decoder).given
    del decoder.__dict__["decode"]


def test_pictures_are_taken_apart_only_in_families_that_are_tested() -> None:
    assert set(PICTURES) <= {family.pipeline for family in families()}


def test_the_declared_component_decodes(family: Family, pipe: Any) -> None:
    assert type(pipe).__name__ == family.pipeline
    assert decoder_of(pipe) is getattr(pipe, family.decoder)


def test_arguments_belong_to_the_rows_that_the_family_says(family: Family, pipe: Any) -> None:
    """The ground on which the tests below stand: each entry matters, to just these rows of the plain pipeline."""
    plain = pipe(**arguments(family))[0]
    full = arguments(family)
    for name in (*family.per_prompt, *family.cycled):
        if name.endswith("embeds_mask"):
            continue  # equal here: diffusers gives row r of Qwen-Image mask r modulo the prompts, not its own prompt's
        changed = {name: with_its_second_entry_like_the_first(full[name])}
        after = pipe(**arguments(family, **changed))[0]
        own = {2, 3} if name in family.per_prompt else {1, 3}
        assert {row for row in ROWS if not np.allclose(plain[row], after[row], atol=1e-5)} == own, name


def test_nothing_rejected_is_bit_identical_to_the_plain_pipeline(family: Family, pipe: Any) -> None:
    plain = pipe(**arguments(family))
    wear(pipe, always)
    out = pipe(**arguments(family))
    assert type(out) is type(plain) and np.array_equal(plain[0], out[0])
    assert [d.accepted for d in out.memorization] == [True] * 4
    assert [d.attempts for d in out.memorization] == [1] * 4


def test_no_rejected_latent_at_the_decoder(family: Family, pipe: Any, decoded: list[torch.Tensor]) -> None:
    plain = pipe(**arguments(family))[0]
    (untouched,) = decoded
    scripted = wear(pipe, reject_first_pass(1, 2), on_memorized="reject")
    with pytest.warns(MemorizationWarning, match="2 of 4"):
        out = pipe(**arguments(family))
    assert len(decoded) == 2 and decoded[1][[1, 2]].count_nonzero() == 0
    assert torch.equal(decoded[1][[0, 3]], untouched[[0, 3]]) and untouched[[1, 2]].count_nonzero() > 0
    assert np.array_equal(out[0][[0, 3]], plain[[0, 3]]) and (out[0][[1, 2]] == 0).all()
    (judged,) = scripted.seen
    assert judged.ndim == 4 and torch.equal(judged, untouched.reshape(judged.shape))


def test_rejected_rows_are_drawn_again_and_the_rest_stays(family: Family, pipe: Any) -> None:
    plain = pipe(**arguments(family))[0]
    scripted = wear(pipe, reject_first_pass(1, 2))
    out = pipe(**arguments(family))
    assert np.array_equal(out[0][[0, 3]], plain[[0, 3]])
    assert [d.attempts for d in out.memorization] == [1, 2, 2, 1]
    assert [len(batch) for batch in scripted.seen] == [4, 2 if family.taken_apart else 4]
    detach(pipe)
    for row in (1, 2):
        assert not np.allclose(out[0][row], plain[row], atol=0.1)
        if family.taken_apart:
            expected = pipe(**alone(family, row, out.memorization[row].seed))[0][0]
        else:
            seeds = {r: out.memorization[r].seed for r in (1, 2)}
            every = [generator(seeds.get(r, seeds[1])) for r in ROWS]
            expected = pipe(**arguments(family, generator=every))[0][row]
        np.testing.assert_allclose(out[0][row], expected, atol=family.tolerance)


def test_several_images_of_one_picture_are_drawn_again(family: Family, pipe: Any) -> None:
    first = {name: value[0] for name, value in arguments(family).items() if isinstance(value, list)}
    lone = {name: one for name, one in first.items() if isinstance(one, Image.Image)}
    if not lone:
        pytest.skip("its call is given no list of pictures")
    prompted = {name: arguments(family)[name][:1] for name in family.per_prompt if name not in lone}
    given = {**prompted, **lone, "num_images_per_prompt": 3}
    plain = pipe(**arguments(family, **given))[0]
    wear(pipe, reject_first_pass(0, 2))
    out = pipe(**arguments(family, **given))
    assert [d.attempts for d in out.memorization] == [2, 1, 2]
    assert np.array_equal(out[0][1], plain[1])
    assert not any(np.allclose(out[0][row], plain[row], atol=0.1) for row in (0, 2))


def test_without_a_dict_it_returns_what_the_plain_pipeline_does(family: Family, pipe: Any) -> None:
    plain = pipe(**arguments(family, return_dict=False))
    scripted = wear(pipe, reject_first_pass(3))
    out = pipe(**arguments(family, return_dict=False))
    assert type(out) is type(plain) and len(out) == len(plain)
    before, after = (given[0] if isinstance(given, tuple) else given for given in (plain, out))
    assert np.array_equal(before[:3], after[:3]) and not np.allclose(before[3], after[3], atol=0.1)
    assert [d.attempts for d in scripted.last_decisions] == [1, 1, 1, 2]


def test_latents_are_judged_as_the_decoder_would_get_them(family: Family, pipe: Any) -> None:
    plain = pipe(**arguments(family, output_type="latent"))[0]
    scripted = wear(pipe, always)
    pipe(**arguments(family))
    passed = pipe(**arguments(family, output_type="latent"))[0]
    at_the_decoder, as_latents = scripted.seen
    assert torch.equal(passed, plain) and at_the_decoder.shape == as_latents.shape
    torch.testing.assert_close(
        canonical(as_latents, 16), canonical(at_the_decoder, 16), atol=family.tolerance, rtol=0
    )
    scripted = wear(pipe, reject_first_pass(2), on_memorized="reject")
    with pytest.warns(MemorizationWarning, match="1 of 4"):
        out = pipe(**arguments(family, output_type="latent"))
    assert out[0][2].count_nonzero() == 0 and torch.equal(out[0][[0, 1, 3]], plain[[0, 1, 3]])
    assert [d.accepted for d in out.memorization] == [True, True, False, True]


def test_rejected_latents_are_drawn_again(family: Family, pipe: Any) -> None:
    plain = pipe(**arguments(family, output_type="latent"))[0]
    wear(pipe, reject_first_pass(2))
    out = pipe(**arguments(family, output_type="latent"))
    assert torch.equal(out[0][[0, 1, 3]], plain[[0, 1, 3]])
    assert out[0][2].count_nonzero() and not torch.allclose(out[0][2], plain[2], atol=0.1)
    assert "prepare_latents" not in pipe.__dict__ and "decode" not in decoder_of(pipe).__dict__


def test_its_encoder_makes_latents_of_the_decoders_space(family: Family, pipe: Any) -> None:
    decoder = decoder_of(pipe)
    latents = encode_pixels(decoder, torch.rand(2, 3, 32, 32) * 2 - 1)
    assert (
        latents.ndim == 4
        and latents.shape[:2] == (2, latent_channels(decoder))
        and latents.dtype == torch.float32
    )


def failure(pipe: Any, **given: Any) -> tuple[type, str]:
    with pytest.raises(Exception) as raised:
        pipe(**given)
    return raised.type, str(raised.value)


def test_the_pipelines_own_errors_survive(family: Family, pipe: Any) -> None:
    wrong = [
        {},
        {**arguments(family), "generator": [generator()] * 3},
        {**arguments(family), "num_inference_steps": "two"},
        {**arguments(family), "callback_on_step_end_tensor_inputs": ["nonsense"]},
        {**arguments(family), "nonsense": 1},
    ]
    wrong = [given for given in wrong if not runs(pipe, given)]
    assert len(wrong) >= 3
    plain = [failure(pipe, **given) for given in wrong]
    wear(pipe, always)
    assert [failure(pipe, **given) for given in wrong] == plain
    assert "decode" not in decoder_of(pipe).__dict__


def runs(pipe: Any, given: dict[str, Any]) -> bool:
    """Whether the plain pipeline takes these arguments after all: some read no such argument."""
    try:
        pipe(**given)
    except Exception:
        return False
    return True
