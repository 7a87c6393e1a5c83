"""Results to a report: one self-contained HTML page, and a JSON file with every number; and what set a threshold, to
look at. Knows values only."""

from .pairs import write_pairs
from .pictures import Pictures, thumbnails
from .results import (
    AllowEntry,
    Certificate,
    DuplicateGroup,
    Measured,
    Rate,
    Results,
    Run,
    RungRow,
    Sample,
)
from .salting import salted_id
from .statistics import rate_of
from .summarise import results_of
from .write import ReportFiles, check_output, write_report

__all__ = [
    "AllowEntry",
    "Certificate",
    "DuplicateGroup",
    "Measured",
    "Pictures",
    "Rate",
    "ReportFiles",
    "Results",
    "Run",
    "RungRow",
    "Sample",
    "check_output",
    "rate_of",
    "results_of",
    "salted_id",
    "thumbnails",
    "write_pairs",
    "write_report",
]
