"""Which TensorRT plans this machine built: a plan is executable code, so others are refused.

A note per plan, named by its sha256, in the cache's ``built-plans``. Whoever can write there can run code as
this user already.
"""

from __future__ import annotations

import os
from pathlib import Path


def note_plan(sha256: str) -> None:
    """Remember a plan that was built here."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / sha256).touch()


def built_here(sha256: str) -> bool:
    """Whether this machine's edgeml built the plan of that hash."""
    return (_folder() / sha256).is_file()


def _folder() -> Path:
    root = os.environ.get("EDGEML_CACHE") or Path.home() / ".cache" / "edgeml"
    return Path(root) / "built-plans"
