"""When a job should stop by itself: a model that mostly copies, a disk that is spoken for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import DataError
from ..report import Rate, rate_of
from .rows import Row

STOP_REJECTION_RATE = 0.5


@dataclass
class Tally:
    """What was drawn so far.

    Attributes:
        drawn: Images of which a batch is done.
        hit: Those whose first draw matched a training image.
        withheld: Those that were not delivered.
        redrawn: Those that were delivered after having been drawn again.
        bytes: Of the delivered files.
    """

    drawn: int = 0
    hit: int = 0
    withheld: int = 0
    redrawn: int = 0
    bytes: int = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Count more rows."""
        for row in rows:
            self.drawn += 1
            self.hit += row.attempts > 1 or row.accepted is False
            self.withheld += not row.delivered
            self.redrawn += row.delivered and row.attempts > 1
            self.bytes += row.bytes

    @property
    def rejection(self) -> Rate:
        """Share of first draws that matched, with its 95 % interval."""
        return rate_of(self.hit, self.drawn)

    def shares(self) -> dict[str, str]:
        """For the progress bar."""
        of = max(self.drawn, 1)
        return {
            "accepted": f"{1 - self.hit / of:.1%}",
            "rejected": f"{self.hit / of:.1%}",
            "drawn again": f"{self.redrawn / of:.1%}",
        }


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Attributes:
        rejection_rate: Stop once the share of first draws that match is surely (lower end of its 95 % interval)
            above this, in (0, 1]; 1 never stops.
        disk_budget: Bytes that the delivered images may take; ``None`` for no limit.
        processes: Among which the budget is divided.

    Raises:
        DataError: a limit that is none.
    """

    rejection_rate: float = STOP_REJECTION_RATE
    disk_budget: int | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.rejection_rate <= 1:
            raise DataError(f"a rejection rate to stop at lies in (0, 1], got {self.rejection_rate}")
        if self.disk_budget is not None and self.disk_budget < 1:
            raise DataError(f"a disk budget is at least 1 byte, got {self.disk_budget}")

    def reason_to_stop(self, tally: Tally, next_images: int) -> str | None:
        """Why a process that has drawn ``tally`` should not draw its next batch; ``None`` where it should."""
        if (
            tally.hit > self.rejection_rate * tally.drawn
            and (found := tally.rejection).low > self.rejection_rate
        ):
            return (
                f"{found.count} of {found.of} first draws match training images ({100 * found.share:.3g}%, surely more "
                f"than {100 * self.rejection_rate:.3g}%): the model copies, or the index is calibrated wrongly; see "
                "report/report.html, or go on with a higher --stop-rejection-rate"
            )
        delivered = tally.drawn - tally.withheld
        if self.disk_budget is not None and delivered:
            expected = tally.bytes * (1 + next_images / delivered)
            if expected * self.processes > self.disk_budget:
                share = (
                    "the" if self.processes == 1 else f"one process's share, 1 of {self.processes}, of the"
                )
                return (
                    f"{delivered} images take {tally.bytes:,} bytes, and the next batch would exceed {share} disk "
                    f"budget of {self.disk_budget:,}; go on with a higher --disk-budget"
                )
        return None
