"""Limits as a user writes them: ``60%``, ``5ms``, ``400KB``, ``12mJ``; parsed once, kept as text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# Factors to the project's unit of each quantity (ms, bytes, mJ). KB is 1000 bytes, KiB 1024.
_UNITS = {
    "ms": {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3},
    "bytes": {
        "b": 1.0,
        "kb": 1e3,
        "mb": 1e6,
        "gb": 1e9,
        "kib": 2.0**10,
        "mib": 2.0**20,
        "gib": 2.0**30,
    },
    "mj": {"uj": 1e-3, "µj": 1e-3, "mj": 1.0, "j": 1e3},
}
_EXAMPLES = {"ms": "5ms", "bytes": "400KB", "mj": "12mJ"}
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(\S*)\s*", re.IGNORECASE)

# Budget part → the unit it is judged in.
PARTS = {"latency": "ms", "latency_p99": "ms", "max_size": "bytes", "max_energy": "mj"}


@dataclass(frozen=True)
class Limit:
    """An upper limit.

    Attributes:
        value: in `unit`, or a fraction where `relative`.
        unit: ms, bytes or mj.
        relative: a fraction of what the plain INT8 engine of the same run needs.
        text: as the user wrote it.
    """

    value: float
    unit: str
    relative: bool
    text: str

    def absolute(self, baseline: float) -> float:
        """The limit in `unit`, given what the plain INT8 engine needs.

        >>> parse_limit("latency", "60%").absolute(0.5)
        0.3
        """
        return self.value * baseline if self.relative else self.value


def parse_limit(part: str, text: object) -> Limit:
    """A limit of one of `PARTS`.

    Raises:
        ValueError: no number, no unit, not above 0, or above 100 %; the text says what to give.

    >>> parse_limit("max_size", "400KB").value
    400000.0
    >>> parse_limit("latency", "60%").relative
    True
    """
    unit = PARTS[part]
    flag, example = f"--{part.replace('_', '-')}", _EXAMPLES[unit]
    hint = f"give a limit with its unit, as in {flag} {example} or {flag} 60%"
    found = _NUMBER.fullmatch(str(text)) if not isinstance(text, bool) else None
    if found is None:
        raise ValueError(f"{flag} {text!s} is no limit; {hint}")
    number, word = float(found[1]), found[2].lower()
    if not word:
        raise ValueError(f"{flag} {text} has no unit; {hint}")
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{flag} {text} is no limit above 0; {hint}")
    if word == "%":
        if number > 100:
            raise ValueError(
                f"{flag} {text}: a percentage is of the plain INT8 engine and at most 100%; {hint}"
            )
        return Limit(number / 100, unit, True, str(text).strip())
    if word not in _UNITS[unit]:
        raise ValueError(
            f"{flag} {text}: unknown unit {found[2]!r}, known: %, {', '.join(_UNITS[unit])}"
        )
    return Limit(number * _UNITS[unit][word], unit, False, str(text).strip())
