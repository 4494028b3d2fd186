"""What each part of a benchmark hands over."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Part:
    """What was seen, for the result's `raw`, and the ratios that came of it."""

    raw: dict[str, Any]
    ratios: dict[str, float] = field(default_factory=dict)
