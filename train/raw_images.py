"""Encoded images for end-to-end timing."""

from __future__ import annotations

from pathlib import Path

from ..artifact.bundle import open_bundle
from ..artifact.preprocess import image_fault
from ..errors import DataError, InputError
from .data_source import open_source, runs_code


def raw_images(data: str | None, bundle: Path, limit: int = 64) -> list[bytes]:
    """Up to `limit` encoded images of `data`, or of the source that the bundle names.

    Raises:
        InputError: there is no source, or it holds arrays, which nothing decodes.
    """
    if data is None and bundle.is_dir():
        data = open_bundle(bundle).manifest.data.get("source")
        if data is not None and runs_code(str(data)):
            raise InputError(
                f"{bundle} names code for its images, which would run: give --data {data} if you "
                "trust it, or other images"
            )
    if data is None:
        raise InputError("--end-to-end needs images; give --data imagefolder:DIR")
    source = open_source(data)
    if source.kind != "image":
        raise InputError(
            f"--end-to-end needs images, {data} holds arrays; give --data imagefolder:DIR"
        )
    found = []
    for index in range(0, len(source), max(1, len(source) // limit))[:limit]:
        found.append(source.read(index))
        if reason := image_fault(found[-1]):
            raise DataError(f"{data}: {source.places[index]}: {reason}")
    return found
