"""A head and its loss as one module, so that data-parallel wrappers see one forward pass."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ..head import LCMemHead
from .config import MATCHED_AMONG, TrainingConfig
from .losses import VERIFICATION_WEIGHT, copies_nt_xent, matched, nt_xent, spread, verification


class Objective(nn.Module):
    """Loss of a batch of pairs; with several processes, over the pairs of all of them.

    Every process computes the same loss on the gathered features, and gradients flow back to the process that
    a feature came from; their mean over processes, which data-parallel training takes, is that loss's
    gradient.
    """

    def __init__(self, head: LCMemHead, config: TrainingConfig) -> None:
        super().__init__()
        self.head = head
        self.config = config

    def forward(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        spaces: tuple[str, str],
        identities: torch.Tensor,
        offsets: torch.Tensor,
        copies: torch.Tensor,
    ) -> torch.Tensor:
        """
        Args:
            a, b: (P, C, g, g) canonical latents of this process, of the two ``spaces``.
            identities: (P,) integers.
            offsets: (P,) in [0, 1); picks each row's mismatched partner.
            copies: (P,) booleans: rows that are two views of one image.

        Returns:
            A scalar.
        """
        if spaces[0] == spaces[1]:
            features, tokens = self.head(torch.cat([a, b]), spaces[0])
            first, second = features.split(len(a))
            part_a, part_b = (None, None) if tokens is None else tokens.split(len(a))
        else:
            (first, part_a), (second, part_b) = self.head(a, spaces[0]), self.head(b, spaces[1])
        with torch.autocast(a.device.type, enabled=False):
            identities = _gather(identities)
            total = self._loss(_gather(first.float()), _gather(second.float()), identities, _gather(offsets))
            if part_a is None or part_b is None or not self.config.token_weight:
                return total
            parts = _gather(part_a.float()), _gather(part_b.float())
            local = copies_nt_xent(*parts, identities, _gather(copies), self.config.token_temperature)
            return total + self.config.token_weight * local

    def _loss(
        self, a: torch.Tensor, b: torch.Tensor, identities: torch.Tensor, offsets: torch.Tensor
    ) -> torch.Tensor:
        config = self.config
        contrast = nt_xent(a, b, identities, config.temperature, config.margin)
        total = contrast + config.spread * spread(a, b, identities) if config.spread else contrast
        if config.loss == "nt-xent":
            return total
        verified = verification(a, b, identities, self.head.fc_end, offsets)
        return VERIFICATION_WEIGHT * verified + (1 - VERIFICATION_WEIGHT) * total


class MatchObjective(Objective):
    """Stage 3's loss of a batch of pairs, ``losses.matched``; several processes have groups of their own."""

    def forward(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        spaces: tuple[str, str],
        identities: torch.Tensor,
        offsets: torch.Tensor,
        copies: torch.Tensor,
    ) -> torch.Tensor:
        """Arguments as of ``Objective``; of them ``offsets`` are not used."""
        described = [self._describe(one, space) for one, space in zip((a, b), spaces, strict=True)]
        with torch.autocast(a.device.type, enabled=False):
            parts = (*(one.float() for one in described), identities, copies)
            # one group at a time, so that it stays in a processor's cache; elsewhere all that are whole
            whole = len(a) // MATCHED_AMONG * MATCHED_AMONG
            at_once = max(whole, MATCHED_AMONG) if a.device.type != "cpu" else MATCHED_AMONG
            losses = [
                matched(
                    sample,
                    candidates,
                    who,
                    copied,
                    self.config.match_temperature,
                    min(MATCHED_AMONG, len(sample)),
                    self.config.deformed,
                )
                for candidates, sample, who, copied in zip(
                    *(one.split(at_once) for one in parts), strict=True
                )
            ]
            return torch.cat(losses).mean()

    def _describe(self, latents: torch.Tensor, space: str) -> torch.Tensor:
        with torch.set_grad_enabled(latents.requires_grad):  # the stem itself is frozen
            features = self.head.stems[space](latents, True)
        assert self.head.dense is not None
        return cast(torch.Tensor, self.head.dense(features))


def _gather(values: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in the order of their ranks; differentiable."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    if values.requires_grad:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(cast("tuple[torch.Tensor, ...]", all_gather(values)))
    parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)
