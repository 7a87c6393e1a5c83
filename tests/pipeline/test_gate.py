"""The gate alone, before a decoder of one layer."""

from __future__ import annotations

import threading

import pytest
import torch

from lcmem_filter.errors import FilterFailedError
from lcmem_filter.pipeline.gate import Gate, gated, turn

from .scripted import decision


class Decoder(torch.nn.Module):
    """Doubles latents and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def decode(self, z: torch.Tensor, return_dict: bool = True):
        self.seen.append(z.clone())
        return {"sample": 2 * z} if return_dict else (2 * z,)


def gate(*accepted: bool, withhold: bool = True) -> Gate:
    return Gate(lambda latents: [decision(a) for a in accepted], withhold=withhold)


LATENTS = torch.arange(1.0, 49.0).reshape(3, 1, 4, 4)


def test_accepted_batch_passes_through_untouched() -> None:
    vae, g = Decoder(), gate(True, True, True)
    with gated(vae, g):
        (decoded,) = vae.decode(LATENTS, return_dict=False)
    assert torch.equal(decoded, 2 * LATENTS) and torch.equal(vae.seen[0], LATENTS)
    assert [d.accepted for d in g.decisions or []] == [True, True, True]


@pytest.mark.parametrize("return_dict", [True, False])
def test_rejected_row_never_reaches_the_decoder(return_dict: bool) -> None:
    vae = Decoder()
    with gated(vae, gate(True, False, True)):
        decoded = vae.decode(z=LATENTS, return_dict=return_dict)
    images = decoded["sample"] if return_dict else decoded[0]
    assert torch.equal(vae.seen[0][1], torch.zeros(1, 4, 4))
    assert torch.equal(images[1], -torch.ones(1, 4, 4))
    assert torch.equal(images[[0, 2]], 2 * LATENTS[[0, 2]])


def test_a_row_that_was_not_checked_is_withheld() -> None:
    vae = Decoder()
    unchecked = Gate(lambda latents: [decision(True), decision(None), decision(True)])  # type: ignore[arg-type]
    with gated(vae, unchecked):
        images = vae.decode(LATENTS, return_dict=False)[0]
    assert (images[1] == -1).all()


def test_flagging_decodes_rejected_rows() -> None:
    vae = Decoder()
    with gated(vae, gate(True, False, True, withhold=False)):
        assert torch.equal(vae.decode(LATENTS, return_dict=False)[0], 2 * LATENTS)


@pytest.mark.parametrize("answers", [(True, True), (True,) * 4, ()])
def test_other_than_one_decision_a_row_raises_before_decoding(answers: tuple[bool, ...]) -> None:
    vae = Decoder()
    with gated(vae, gate(*answers)), pytest.raises(FilterFailedError, match="3 latents"):
        vae.decode(LATENTS)
    assert not vae.seen


def test_decoding_twice_in_one_call_raises() -> None:
    vae = Decoder()
    with gated(vae, gate(True, True, True)):
        vae.decode(LATENTS)
        with pytest.raises(FilterFailedError, match="more than once"):
            vae.decode(LATENTS)
    assert len(vae.seen) == 1


def test_the_decoder_is_put_back_after_an_error() -> None:
    vae = Decoder()

    def broken(latents: torch.Tensor):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError), gated(vae, Gate(broken)):
        vae.decode(LATENTS)
    assert "decode" not in vae.__dict__ and not vae.seen


def test_a_decoder_that_was_cast_to_decode_gets_its_dtype_back_after_an_error() -> None:
    class Cast(Decoder):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float16))

        @property
        def dtype(self) -> torch.dtype:
            return self.weight.dtype

    vae = Cast()
    with pytest.raises(FilterFailedError), gated(vae, gate(True)):
        vae.float().decode(LATENTS)
    assert vae.dtype == torch.float16


def test_an_instance_decode_is_called_and_put_back() -> None:
    vae = Decoder()
    compiled = lambda z, return_dict=True: (3 * z,)  # noqa: E731
    vae.decode = compiled
    with gated(vae, gate(True, True, False)):
        images = vae.decode(LATENTS)[0]
    assert torch.equal(images[:2], 3 * LATENTS[:2]) and (images[2] == -1).all()
    assert vae.__dict__["decode"] is compiled


def test_a_call_inside_a_call_is_refused() -> None:
    vae = Decoder()
    with turn(vae), gated(vae, gate(True, True, True)):
        with pytest.raises(FilterFailedError, match="from within"), turn(vae):
            pass
        vae.decode(LATENTS)
    assert "decode" not in vae.__dict__


def test_between_two_draws_a_call_of_ones_own_may_stand() -> None:
    vae = Decoder()
    with turn(vae):
        for accepted in (True, False):
            with turn(vae), gated(vae, gate(*[accepted] * 3)):
                decoded = vae.decode(LATENTS)["sample"]
            assert torch.equal(decoded, 2 * LATENTS) is accepted


def test_threads_on_one_vae_take_turns_and_plain_callers_pass() -> None:
    vae, entered, order = Decoder(), threading.Event(), []

    def second() -> None:
        entered.wait(5)
        assert torch.equal(vae.decode(LATENTS, return_dict=False)[0], 2 * LATENTS)  # not this thread's gate
        order.append("waiting")
        with turn(vae), gated(vae, gate(False, False, False)):
            order.append("second in")
            assert (vae.decode(LATENTS, return_dict=False)[0] == -1).all()

    thread = threading.Thread(target=second)
    thread.start()
    first = gate(True, True, True)
    with turn(vae), gated(vae, first):
        entered.set()
        while "waiting" not in order:
            threading.Event().wait(0.001)
        assert first.decisions is None
        assert torch.equal(vae.decode(LATENTS, return_dict=False)[0], 2 * LATENTS)
        order.append("first out")
    thread.join(5)
    assert order == ["waiting", "first out", "second in"] and "decode" not in vae.__dict__


def test_a_decoder_that_changes_the_number_of_rows_is_refused() -> None:
    vae = Decoder()
    vae.decode = lambda z: (z[:1],)
    with gated(vae, gate(True, False, True)), pytest.raises(FilterFailedError, match="1 rows of 3"):
        vae.decode(LATENTS)


def test_a_compiled_module_is_gated_and_put_back() -> None:
    vae = Decoder()
    compiled = torch.compile(vae, backend="eager")
    with gated(compiled, gate(True, True, False)):
        images = compiled.decode(LATENTS, return_dict=False)[0]
    assert torch.equal(images[:2], 2 * LATENTS[:2]) and (images[2] == -1).all()
    assert "decode" not in vae.__dict__
    assert torch.equal(compiled.decode(LATENTS, return_dict=False)[0], 2 * LATENTS)
