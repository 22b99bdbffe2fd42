"""A bundle stays as it is; what is measured of it later is a file in its ``measurements``, by its hash."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..artifact.atomic_file import write_json
from ..artifact.bundle import MEASUREMENTS


def keep_measurement(bundle: Path, kind: str, values: dict[str, Any]) -> Path:
    """Write one measurement of a bundle, named after its kind and the time (UTC).

    Args:
        values: plain; they name the bundle's hash, so that a copy of the file keeps its meaning.

    Raises:
        OSError, DiskFull: the bundle's folder cannot be written.
    """
    folder = Path(bundle) / MEASUREMENTS
    folder.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    names = (f"{kind}-{stamp}{f'-{k}' if k else ''}.json" for k in range(1000))
    file = next(folder / name for name in names if not (folder / name).exists())
    write_json(file, values)
    return file
