"""Progress on stderr: what is being done, and how long it took."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any


class Progress:
    """Callable with a line of text; prints it with the seconds since the start.

    A line is printed when its work begins, so that a long step is seen to be running.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        # stdout is for results: what users' code and libraries print meanwhile goes to stderr.
        self._stdout = contextlib.redirect_stdout(sys.stderr)
        self._stdout.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stdout.__exit__(*exc)

    def __call__(self, line: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {line}", file=sys.stderr, flush=True)
