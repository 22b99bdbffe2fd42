"""What `edgeml report` is given on disk: a bundle or a sweep, with what was measured of it later."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact.bundle import MANIFEST, MEASUREMENTS, open_bundle
from ..artifact.sweep_directory import RESULTS, TRIALS
from ..errors import BundleError, InputError, one_line
from .page_data import Shown
from .write import from_json


def shown_of(path: Path) -> Shown:
    """The result of a bundle or a sweep, with where it came from.

    Raises:
        InputError: it is neither, is damaged, or holds no result.
    """
    path = Path(path)
    if is_sweep(path):
        return _sweep(path)
    try:
        return _bundle(path, str(path))
    except BundleError as e:
        if path.is_dir() and not (path / MANIFEST).exists():
            raise BundleError(f"{e}, and it is no sweep: it has no {RESULTS}") from e
        raise


def is_sweep(path: Path) -> bool:
    """Whether a directory is what ``edgeml sweep -o`` writes."""
    return (path / RESULTS).is_file() and not (path / MANIFEST).exists()


def _bundle(path: Path, name: str) -> Shown:
    bundle = open_bundle(path)
    results = bundle.file(RESULTS)
    manifest = bundle.manifest
    about = {
        "bundle (sha256 of its manifest)": bundle.hash,
        "made": manifest.created,
        "edgeml": manifest.edgeml_version,
        "data": manifest.data.get("source"),
        "data fingerprint": manifest.data.get("fingerprint"),
        "splits": manifest.data.get("splits"),
        "seed": manifest.seed,
        "recipe": dict(manifest.recipe) or None,
    }
    repeat = None
    if "recipe.yaml" in manifest.files:
        recipe, again = (shlex.quote(str(p)) for p in (path / "recipe.yaml", f"{path}-again"))
        repeat = f"edgeml compress --recipe {recipe} -o {again}"
    return Shown(
        name=name,
        table=from_json(results.read_bytes(), str(results)),
        root=path,
        recipe=manifest.recipe,
        about=about,
        repeat=repeat,
        hash=bundle.hash,
        devices=_kept(path, "deploy", bundle.hash),
        benches=_kept(path, "bench", bundle.hash),
    )


def _sweep(path: Path) -> Shown:
    results = path / RESULTS
    table = from_json(results.read_bytes(), str(results))
    settings = table.settings
    model, data = settings.get("model"), settings.get("data")
    repeat = None
    if model:
        words = ["edgeml", "sweep", str(model), *(["--data", str(data)] if data else [])]
        if objectives := settings.get("objectives"):
            words += ["--objectives", ",".join(map(str, objectives))]
        if settings.get("trials"):
            words += ["--trials", str(settings["trials"])]
        elif settings.get("time_s"):
            words += ["--time", f"{settings['time_s']:g}s"]
        repeat = shlex.join([*words, "-o", f"{path}-again"])
    points = []
    for row in table.rows:
        if row.bundle:
            folder = inside(path, row.bundle)
            points.append(_bundle(folder, f"{path.name}/{row.bundle}"))
    return Shown(
        name=str(path),
        table=table,
        root=path,
        repeat=repeat,
        points=tuple(points),
        trials=tuple(_trials(path / TRIALS)),
    )


def inside(root: Path, name: str) -> Path:
    """A folder below `root` by the name that a file gives.

    Raises:
        InputError: it points elsewhere or is not there.
    """
    folder = (root / name).resolve()
    if not folder.is_relative_to(root.resolve()) or folder == root.resolve():
        raise InputError(f"{root / RESULTS} names the bundle {name!r}, which lies outside; refused")
    if not folder.is_dir():
        raise InputError(f"{root / RESULTS} names the bundle {name!r}, which is missing")
    return root / name


def _trials(file: Path) -> list[dict[str, Any]]:
    """The sweep's journal, a line a finished trial; a line that was cut off is left out."""
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            found.append(values)
    return found


def _kept(bundle: Path, kind: str, digest: str) -> tuple[Mapping[str, Any], ...]:
    """Later measurements of one kind that name this bundle's hash, the oldest first.

    Raises:
        InputError: a file of that kind is no JSON.
    """
    found = []
    for file in sorted((bundle / MEASUREMENTS).glob(f"{kind}-*.json")):
        try:
            values = json.loads(file.read_bytes())
        except (OSError, ValueError) as e:
            raise InputError(f"{file} cannot be read: {one_line(e)}; move it away") from e
        if isinstance(values, dict) and digest in _named(values):
            found.append(values)
    return tuple(found)


def _named(values: Mapping[str, Any]) -> list[Any]:
    """Hashes of the bundles that a measurement speaks of."""
    settings = values.get("settings")
    of_bench = settings.get("bundles") if isinstance(settings, dict) else None
    return [values.get("bundle"), *(of_bench.values() if isinstance(of_bench, dict) else [])]
