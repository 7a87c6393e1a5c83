"""What a training run is made of."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ..branches import POOLINGS
from ..errors import ConfigurationError
from ..head import SIZES
from ..latents import MIN_RESOLUTION

Loss = Literal["nt-xent", "verification"]
MixedPrecision = Literal["no", "fp16", "bf16"]
Stage = Literal[1, 2, 3]

SIZE = "small"
"""Of a head, where none is named and there is none to go on from."""

MATCHED_AMONG = 24
"""Images, neighbours of each other, among which stage 3 has to find each one's copy."""


OF_STAGES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("size", "loss", "temperature", "margin", "spread"), (1, 2)),
    **dict.fromkeys(("token_weight", "token_temperature"), (1, 2)),
    **dict.fromkeys(("augment", "elastic", "same_labels", "keep_spaces"), (1, 2)),
    **dict.fromkeys(("mild_views", "strong_views", "half_formed", "hard_negatives"), (2, 3)),
    **dict.fromkeys(("upside_down_views", "match_dim", "match_width", "match_temperature", "deformed"), (3,)),
}
"""Settings that not every stage goes by, and the stages that do."""


def check_numbers(recipe: Any) -> None:
    """Whether the numbers of a recipe are whole where they count something, and finite, and its seed one of 64 bits.

    Raises:
        ConfigurationError: one is not.
    """
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.type == "int" and type(value) is not int:
            raise ConfigurationError(f"{field.name} must be a whole number, got {value!r}")
        if field.type == "float" and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ConfigurationError(f"{field.name} must be a finite number, got {value!r}")
    if not -(2**63) <= recipe.seed < 2**64:  # what PyTorch takes
        raise ConfigurationError(f"seed must be a number of 64 bits, got {recipe.seed}")


def check_positive(recipe: Any, *names: str) -> None:
    """Whether values of a recipe are above 0.

    Raises:
        ConfigurationError: one is not.
    """
    for name in names:
        if not getattr(recipe, name) > 0:
            raise ConfigurationError(f"{name} must be positive, got {getattr(recipe, name)}")


def check_fractions(recipe: Any, *names: str) -> None:
    """Whether values of a recipe lie between 0 and 1.

    Raises:
        ConfigurationError: one does not.
    """
    for name in names:
        if not 0 < getattr(recipe, name) < 1:
            raise ConfigurationError(f"{name} must be in (0, 1), got {getattr(recipe, name)}")


def check_resolutions(recipe: Any, *names: str) -> None:
    """Whether values of a recipe are sides in pixels that can be encoded.

    Raises:
        ConfigurationError: one is not.
    """
    for name in names:
        if getattr(recipe, name) < MIN_RESOLUTION:
            raise ConfigurationError(f"{name} must be at least {MIN_RESOLUTION}, got {getattr(recipe, name)}")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Recipe of a training run.

    Stage 1 is identity consistency on cached latents, lightly augmented. Stage 2 goes on from its head with one
    side of each pair strongly augmented as a picture, before it is encoded, so that copies are found however they
    were transformed (LCMem, arXiv 2512.14421, section 3). Stage 3, which is not the paper's, trains the dense branch
    alone, so that a copy is told from its image's neighbours by what ``matching`` finds when it lays them over it.

    Attributes:
        size: Named size of the head (``head.SIZES``); by default that of the head that is gone on from, else ``SIZE``.
        pooling: How the head makes one vector of its cells (``branches.POOLINGS``).
        loss: ``"nt-xent"`` trains for the cosine score. ``"verification"`` is the paper's objective: 0.8
            binary cross-entropy of ``fc_end`` on matched and mismatched pairs and 0.2 NT-Xent (arXiv
            2512.14421).
        temperature: Of NT-Xent.
        margin: By which a partner's cosine has to exceed those of others for NT-Xent to call them equal, as in the
            losses of face recognition (CosFace, arXiv 1801.09414); 0 for none.
        spread: Weight of the term that pushes each embedding from its nearest other identity (KoLeo).
        token_weight: Weight of NT-Xent between copies by the similarity of their tokens (``branches.Description``).
        token_temperature: Of that.
        resolution: Side in pixels that images are squashed to before they are encoded.
        further_resolutions: Sides in pixels that sets are encoded at too whose first image is at least so large; what
            such an encoding is on the head's grid is a view of the image like another.
        steps: Optimiser steps.
        batch_pairs: Pairs of one optimiser step, over all processes and accumulated batches together.
        sets_per_batch: A batch is drawn from so many of the data sets, so that negatives are of one kind.
        hard_negatives: In stage 2, share of the groups that are neighbours of one image, where the head sees them at
            the last validation.
        same_labels: Share of the other groups whose identities have labels in common (a column ``labels``, several
            with ``|`` between them), so that a patient is told from others with the same disease.
        learning_rate: Peak of a cosine decay after ``warmup_steps``.
        weight_decay: AdamW's, on matrices and kernels only.
        same_image: Share of pairs that are two views of one image although the identity has another image.
        augment: Latent-space augmentation of the pairs.
        elastic: In stages 1 and 2, share of side b that is warped as soft tissue moves from visit to visit
            (``views.warp_elastically``).
        adversarial: Side b is moved against the head by one step of the fast gradient method (Goodfellow et al., arXiv
            1412.6572), whose size, root mean square in canonical latents (of standard deviation 0.5), is drawn up to
            this. 0 for none; twice the time.
        image_views: Lightly augmented views of each image that are encoded and cached beside the clean one.
        visit_views: Views of each image as another visit might have given it (``views.augment_as_visit``) that are
            encoded and cached.
        stage: 1, 2 or 3.
        mild_views: From stage 2 on, views of each image as a memorising model returns it that are encoded and cached.
        strong_views: From stage 2 on, strongly augmented views of each image that are encoded and cached.
        upside_down_views: In stage 3, strongly augmented views of each image upside down that are encoded and cached.
        fresh_views: Views are not cached: those of a batch are drawn anew, augmented and encoded on the device that
            trains, a GPU best; each kind as often as there are views of it. All pictures lie there, 3 bytes a pixel.
        device_views: The same, but each image's views are drawn once, before training, and lie there in float16: what
            a step takes no longer depends on them.
        keep_spaces: In stages 1 and 2, stems, descriptors and halving networks of the head that is gone on from stay as
            they are, and so all its latent spaces; the trunk alone is trained.
        first_space: Share of the sides of pairs that are of the first of several spaces; the others, and the rest, are
            of any.
        half_formed: From stage 2 on, share of side b that is made to look as if a model had got no further than its
            outlines (``views.half_formed``).
        stage2_steps: Optimiser steps of stage 2, in place of ``steps``.
        stage2_learning_rate: Peak of stage 2, in place of ``learning_rate``.
        stage2_same_image: Stage 2's ``same_image``.
        stage3_steps: Optimiser steps of stage 3.
        stage3_learning_rate: Peak of stage 3.
        stage3_batch_pairs: Pairs of a step of stage 3, in groups of ``MATCHED_AMONG`` neighbours.
        stage3_same_image: Stage 3's ``same_image``.
        stage3_half_formed: Stage 3's ``half_formed``.
        keep_initial: How far the best head's weights go back towards those that it started from, 0 to 1; a stage that
            only adds a branch has none of that branch to go back to.
        match_dim: Length of the descriptors that stage 3 trains.
        match_width: Width of the branch that makes them. A multiple of that of the head that is gone on from widens it,
            at first without a change of what it says. 0 for the width that it has, or that of the trunk's first stage.
        deformed: Stage 3's pictures are deformed when they are laid over each other (``matching.alike_deformed``),
            while it trains and by the head that comes of it.
        match_temperature: Of their likeness in stage 3's loss.
        gradient_accumulation: Batches that one optimiser step is divided into; negatives stay within a batch.
        mixed_precision: For the trunk, and with ``"bf16"`` for encoding fresh views; losses and the finished head are
            in float32.
        validation_fraction: Share of identities held out where no validation data is given.
        identity_share: Share of the other identities that is trained on: less than all, for a learning curve.
        false_rejection_rate: Of unseen identities, at which recall on validation is measured.
        evaluate_every: Steps between validations; also between checkpoints.
        patience: Validations without improvement after which training stops.
        seed: Of everything that is drawn, but for the cached views, which runs of other seeds share.
    """

    size: str | None = None
    pooling: str = "mean"
    loss: Loss = "nt-xent"
    temperature: float = 0.07
    margin: float = 0.0
    spread: float = 0.1
    token_weight: float = 1.0
    token_temperature: float = 0.05
    resolution: int = 128
    further_resolutions: tuple[int, ...] = ()
    steps: int = 4000
    batch_pairs: int = 128
    sets_per_batch: int = 2
    hard_negatives: float = 0.5
    same_labels: float = 0.0
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    same_image: float = 0.3
    augment: bool = True
    elastic: float = 0.0
    adversarial: float = 0.0
    image_views: int = 1
    visit_views: int = 0
    stage: Stage = 1
    mild_views: int = 1
    strong_views: int = 2
    upside_down_views: int = 1
    fresh_views: bool = False
    device_views: bool = False
    keep_spaces: bool = False
    first_space: float = 0.0
    half_formed: float = 0.3
    stage2_steps: int = 1500
    stage2_learning_rate: float = 3e-4
    stage2_same_image: float = 0.7
    stage3_steps: int = 2400
    stage3_learning_rate: float = 1e-3
    stage3_batch_pairs: int = 3 * MATCHED_AMONG
    stage3_same_image: float = 0.6
    stage3_half_formed: float = 0.15
    keep_initial: float = 0.0
    match_dim: int = 32
    match_width: int = 0
    deformed: bool = False
    match_temperature: float = 0.05
    gradient_accumulation: int = 1
    mixed_precision: MixedPrecision = "no"
    validation_fraction: float = 0.1
    identity_share: float = 1.0
    false_rejection_rate: float = 0.01
    evaluate_every: int = 250
    patience: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)
        for name, known in (
            ("size", (*SIZES, None)),
            ("pooling", POOLINGS),
            ("loss", get_args(Loss)),
            ("mixed_precision", get_args(MixedPrecision)),
        ):
            if getattr(self, name) not in known:
                raise ConfigurationError(
                    f"{name} must be one of {', '.join(filter(None, known))}, got {getattr(self, name)!r}"
                )
        counts = ("steps", "batch_pairs", "sets_per_batch", "evaluate_every", "patience")
        later = ("stage2_steps", "stage3_steps", "stage3_batch_pairs", "match_dim", "strong_views")
        for name in (*counts, *later, "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if any(side < MIN_RESOLUTION for side in (self.resolution, *self.further_resolutions)):
            raise ConfigurationError(
                f"resolutions must be at least {MIN_RESOLUTION}, got {self.resolution} {self.further_resolutions}"
            )
        check_fractions(self, "validation_fraction", "false_rejection_rate")
        if not 0 < self.identity_share <= 1:
            raise ConfigurationError(f"identity_share must be in (0, 1], got {self.identity_share}")
        for name in (
            "same_image",
            "hard_negatives",
            "same_labels",
            "elastic",
            "half_formed",
            "stage3_half_formed",
            "keep_initial",
            "first_space",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        views = ("image_views", "visit_views", "mild_views", "upside_down_views")
        weights = ("weight_decay", "margin", "spread", "token_weight")
        for name in (*views, *weights, "adversarial", "match_width", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.fresh_views and self.device_views:
            raise ConfigurationError(
                "fresh_views are drawn for every batch and device_views once; leave one out"
            )
        name = "fresh_views" if self.fresh_views else "device_views"
        if self.views_on_device and self.resolution % 16:
            raise ConfigurationError(
                f"{name} need a resolution that is a multiple of 16, got {self.resolution}"
            )
        if self.views_on_device and self.further_resolutions:
            raise ConfigurationError(
                f"{name} are of one resolution, got further_resolutions {self.further_resolutions}; leave one out"
            )
        rates = ("learning_rate", "stage2_learning_rate", "stage3_learning_rate")
        check_positive(self, "temperature", "token_temperature", "match_temperature", *rates)

    @property
    def views_on_device(self) -> bool:
        """Whether views are augmented and encoded where the head is trained."""
        return self.fresh_views or self.device_views

    def check_batch(self, processes: int) -> None:
        """Whether a batch can be divided, and in stage 3 without breaking groups of ``MATCHED_AMONG`` apart.

        Raises:
            ConfigurationError: it cannot.
        """
        portion = processes * self.gradient_accumulation
        name = "stage3_batch_pairs" if self.stage == 3 else "batch_pairs"
        whole = portion * MATCHED_AMONG
        if self.batch_pairs < 2 * portion:
            raise ConfigurationError(
                f"{name} must be at least 2 x processes x gradient_accumulation ({2 * portion}), got "
                f"{self.batch_pairs}: a pair alone has nothing to be told from"
            )
        if self.batch_pairs % portion:
            raise ConfigurationError(
                f"{name} must be a multiple of processes x gradient_accumulation ({portion}), "
                f"got {self.batch_pairs}"
            )
        if self.stage == 3 and self.batch_pairs % whole and (portion > 1 or self.batch_pairs > MATCHED_AMONG):
            raise ConfigurationError(
                f"stage3_batch_pairs must be a multiple of {MATCHED_AMONG} x processes x gradient_accumulation "
                f"({whole}), got {self.batch_pairs}; give {whole * max(round(self.batch_pairs / whole), 1)}"
            )

    def for_stage(self, stage: Stage) -> TrainingConfig:
        """The recipe of one stage of a run of several."""
        if stage == 1:
            return replace(self, stage=1)
        if stage == 2:
            return replace(
                self,
                stage=2,
                steps=self.stage2_steps,
                learning_rate=self.stage2_learning_rate,
                same_image=self.stage2_same_image,
            )
        return replace(
            self,
            stage=3,
            steps=self.stage3_steps,
            learning_rate=self.stage3_learning_rate,
            batch_pairs=self.stage3_batch_pairs,
            sets_per_batch=-(-self.stage3_batch_pairs // MATCHED_AMONG),
            hard_negatives=1.0,
            same_image=self.stage3_same_image,
            half_formed=self.stage3_half_formed,
        )

    def kinds_of_views(self) -> tuple[str, ...]:
        """What the stage's views of an image are, beside the clean one: kinds of ``cache.AUGMENTATIONS``."""
        counts = {"light": self.image_views, "visit": self.visit_views}
        if self.stage > 1:
            counts |= {"mild": self.mild_views, "strong": self.strong_views}
        if self.stage == 3:
            counts["upside-down"] = self.upside_down_views
        return tuple(kind for kind, count in counts.items() for _ in range(count))

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {**asdict(self), "further_resolutions": list(self.further_resolutions)}
