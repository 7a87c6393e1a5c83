"""The weights of a run: another head's that it starts from, and which of them decay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch

from ..branches import DenseBranch
from ..errors import ArtifactError
from ..head import LCMemHead, Size
from ..latents import Encoder
from .config import SIZE, TrainingConfig
from .shapes import OF_THE_TRUNK, TRAINED_FOR, check_known, other_trunk, shape_of

EMBEDDINGS_COUNT_NO_MORE = (
    "embeddings no longer count where pictures are laid over each other: how much they should depends on what is "
    "trained; give embedding_weight again"
)


def head_to_train(
    config: TrainingConfig,
    channels: Mapping[str, int],
    initial: LCMemHead | None,
    encoders: Mapping[str, Encoder],
) -> tuple[LCMemHead, list[str]]:
    """The head that a stage starts from, of which what it trains is trainable.

    Args:
        channels: Of the latents of each space that is trained on.
        initial: What is gone on from.
        encoders: Of the same spaces.

    Returns:
        The head, and what somebody should know of what is lost of ``initial``.

    Raises:
        ArtifactError: ``initial`` has another shape, or stage 3 lacks a space.
    """
    if config.stage == 3 and initial is not None:
        head = with_descriptors(initial, tuple(channels), config)
        return head, _lost_descriptors(initial, head)
    told: list[str] = []
    if config.keep_spaces and initial is not None:
        head = with_trunk_to_train(initial, config)
    else:
        head = drawn_head(config, channels, initial)
        if initial is not None and (left := take_weights(head, initial)):
            told.append(f"left behind, since training the trunk would spoil them: {', '.join(left)}")
        for space, encoder in encoders.items():
            head.add_probes(space, encoder.vae)
    head.fc_end.requires_grad_(config.loss == "verification")
    if head.local is not None:
        head.local.requires_grad_(bool(config.token_weight))
    return head.train(), told


def lost_with_the_trunk(config: TrainingConfig, initial: LCMemHead | None) -> list[str]:
    """What becomes of the trunk of ``initial``, and of what depends on it, where that alone is trained."""
    if initial is None or not config.keep_spaces or config.stage == 3:
        return []
    told = []
    if other_trunk(initial, config.size):
        told.append("the trunk is drawn anew: that of the head to go on from is of another shape")
    if initial.config.embedding_weight:
        told.append(EMBEDDINGS_COUNT_NO_MORE)
    return told


def _lost_descriptors(initial: LCMemHead, head: LCMemHead) -> list[str]:
    """What becomes of the descriptors of ``initial`` where others are trained."""
    if initial.dense is None:
        return []
    told = []
    if head.dense is None or not _times_as_wide(head.dense, initial.dense):
        told.append(
            "descriptors are drawn anew: those of the head to go on from are of another length or width"
        )
    if lost := [space for space in initial.config.match_spaces if space not in head.config.match_spaces]:
        told.append(
            f"these spaces have no descriptors any more, since others' are trained: {', '.join(lost)}"
        )
    if initial.config.match_deformed and not head.config.match_deformed:
        told.append("pictures are no longer deformed: give deformed to go on as the head did")
    if initial.config.same_identity and not head.config.same_identity:
        told.append(
            "identities that an index does not name are no longer concluded: from which likeness on they would be "
            "depends on the descriptors"
        )
    if initial.config.embedding_weight:
        told.append(EMBEDDINGS_COUNT_NO_MORE)
    return told


def _times_as_wide(branch: DenseBranch, than: DenseBranch) -> int:
    """1 for the same width; 0 where ``branch`` cannot be made of ``than``: its width is no multiple, or its descriptors
    are of another length."""
    times, rest = divmod(branch.lateral.out_channels, than.lateral.out_channels)
    return 0 if rest or branch.descriptors.out_channels != than.descriptors.out_channels else times


@torch.no_grad()
def widened(branch: DenseBranch, times: int) -> dict[str, torch.Tensor]:
    """Weights of a branch so many times as wide that describes as ``branch`` does (Net2WiderNet; Chen et al., arXiv
    1511.05641). Every channel is there ``times`` times over; what a layer takes of it is divided among its copies, each
    time in other shares, so that training tells them apart."""

    def divided(weight: torch.Tensor) -> torch.Tensor:
        shares = 0.5 + torch.rand(times, *weight.shape[:2], 1, 1)
        return torch.cat(list(weight * shares / shares.sum(0)), 1)

    wide = {}
    for name, value in branch.state_dict().items():
        last = name.split(".")[0] in ("descriptors", "weight")
        if value.ndim == 1 or name.startswith("lateral"):
            wide[name] = value if last else torch.cat([value] * times)
        else:
            wide[name] = divided(value) if last else torch.cat([divided(value) for _ in range(times)])
    return wide


def drawn_head(
    config: TrainingConfig, channels: Mapping[str, int], initial: LCMemHead | None = None
) -> LCMemHead:
    """An untrained head, drawn by the recipe's seed; those of its spaces that ``initial`` halves have a network for
    that, which is not trained on, and its samples ask as those of ``initial`` do."""
    halved = initial.halvings if initial is not None else ()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = LCMemHead.create(
            cast(Size, config.size or SIZE),
            channels,
            **TRAINED_FOR[config.loss],
            pooling=config.pooling,
            halved_spaces=[space for space in channels if space in halved],
            middles=initial is not None and initial.config.middles,
        )
    head.halvings.requires_grad_(False)
    return head


def take_weights(head: LCMemHead, initial: LCMemHead) -> list[str]:
    """Start from ``initial``; what it lacks, a space or a branch, or descriptors of that shape, stays as it was drawn.

    Returns:
        What ``initial`` has and ``head`` has not: its other spaces, and ``"descriptors"``. To train the trunk would
            spoil them.

    Raises:
        ArtifactError: it has another shape.
    """
    state = initial.state_dict()
    if head.dense is not None and initial.dense is not None:
        times = _times_as_wide(head.dense, initial.dense)
        if times != 1:
            state = {name: value for name, value in state.items() if not name.startswith("dense.")}
        if times > 1:
            state |= {f"dense.{name}": value for name, value in widened(initial.dense, times).items()}
    try:
        lacking, foreign = head.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ArtifactError(
            f"the head to go on from has another shape than this recipe's ({error}); give its size"
        ) from error
    parts = ("local", "dense", "stems", "probes", "halvings")
    if wrong := [key for key in (*lacking, *foreign) if key.split(".")[0] not in parts]:
        raise ArtifactError(
            f"the head to go on from has another shape than this recipe's ({', '.join(wrong[:3])} do not match); "
            "give its size"
        )
    left = [space for space in initial.spaces if space not in head.spaces]
    return [*left, "descriptors"] if initial.dense is not None and head.dense is None else left


def extended(initial: LCMemHead, seed: int, **changes: Any) -> LCMemHead:
    """``initial``, frozen, with what ``changes`` of its configuration add, untrained and drawn by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = LCMemHead(**{**_config_of(initial), **changes})
        take_weights(head, initial)
    return head.requires_grad_(False).eval()


def with_trunk_to_train(initial: LCMemHead, config: TrainingConfig) -> LCMemHead:
    """``initial``, of which the trunk and what makes a vector of its cells is trainable: nothing that a space has to
    itself. A trunk of another shape than the recipe's is replaced by one that is drawn."""
    other = config.size if other_trunk(initial, config.size) else None
    shape = {name: shape_of(other)[name] for name in (*OF_THE_TRUNK, "layer_scale")} if other else {}
    head = (_with_drawn_trunk if other else extended)(initial, config.seed, embedding_weight=0.0, **shape)
    for part in (head.trunk, head.pool, head.projection):
        part.requires_grad_(True)
    return head


def _with_drawn_trunk(initial: LCMemHead, seed: int, **changes: Any) -> LCMemHead:
    """``initial``, frozen, on whose stems, descriptors and halving networks another trunk stands, drawn by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = LCMemHead(**{**_config_of(initial), **changes})
    kept = ("stems", "probes", "halvings", "dense")
    state = {name: value for name, value in initial.state_dict().items() if name.split(".")[0] in kept}
    head.load_state_dict(state, strict=False)
    return head.requires_grad_(False).eval()


def _config_of(head: LCMemHead) -> dict[str, Any]:
    return {key: value for key, value in dict(head.config).items() if not key.startswith("_")}


def with_descriptors(initial: LCMemHead, spaces: tuple[str, ...], config: TrainingConfig) -> LCMemHead:
    """``initial`` with a dense branch for ``spaces``, which alone is trainable: its own, widened where the recipe says
    so, or, where it has none of that length and a width that goes, an untrained one.

    Raises:
        ArtifactError: ``initial`` lacks one of the spaces.
    """
    check_known(initial, spaces)
    head = extended(
        initial,
        config.seed,
        match_dim=config.match_dim,
        match_width=config.match_width or initial.config.match_width,
        match_deformed=config.deformed,
        match_spaces=list(spaces),
        same_identity=0.0,  # other descriptors, another likeness
        embedding_weight=0.0,
    )
    assert head.dense is not None
    head.dense.requires_grad_(True)
    return head


@torch.no_grad()
def averaged(head: LCMemHead, initial: LCMemHead, share: float) -> LCMemHead:
    """``head`` with its weights moved by ``share`` of the way back to those of ``initial``, where that has them: what
    fine-tuning gained and what it lost are balanced (Wortsman et al., arXiv 2109.01903)."""
    before = initial.state_dict()
    mixed = {
        name: value.lerp(before[name].to(value), share)
        for name, value in head.state_dict().items()
        if name in before
        and before[name].shape == value.shape  # another, where a branch was widened
        and value.is_floating_point()
        and not torch.equal(value, before[name].to(value))
    }
    head.load_state_dict(mixed, strict=False)
    return head


def decay_groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: of what is trained, matrices and kernels decay, vectors do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
