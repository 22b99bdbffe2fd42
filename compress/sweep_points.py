"""Bundles of a sweep: where a row's lies, and which are kept in ``points/``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..artifact.atomic_file import disk_errors, write_json
from ..artifact.content_hash import hash_file
from ..artifact.machine import describe_machine
from ..artifact.result_row import EngineRow
from ..artifact.sweep_directory import BUNDLES
from .sweep_table import engine_of, folder_name

MANIFEST = "manifest.json"
POINTS = "points"


def bundle_of(root: Path, row: EngineRow) -> Path:
    """Where a trial, or the work on the original, left the row's bundle."""
    trials = root / "trials"
    original = f"original-t{row.params['threads']}"
    folder = original if row.trial is None else folder_name(row.trial)
    return trials / folder / BUNDLES / engine_of(row)


def keep_point(root: Path, row: EngineRow, measured: Mapping[str, Any]) -> str:
    """Copy a bundle of the front, and what was measured of it by the bundle's hash.

    Returns:
        Its place, relative to `root`.
    """
    place = root / POINTS / row.id
    if not place.is_dir():
        part = root / POINTS / f".part-{row.id}"
        with disk_errors(part):
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(bundle_of(root, row), part)
            os.replace(part, place)
    folder = root / "measurements"
    folder.mkdir(exist_ok=True)
    digest = hash_file(place / MANIFEST)
    kept = {"bundle": digest, "row": row.id, "command": "sweep", "machine": describe_machine()}
    write_json(folder / f"{digest}-together.json", {**kept, "measured": dict(measured)})
    return f"{POINTS}/{row.id}"


def drop_points(root: Path, kept: Collection[str]) -> None:
    """Remove the bundles of rows that are on the front no longer, and copies that a kill cut off."""
    folder = root / POINTS
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
