"""The directory that every stage reads and writes; opening one checks all of it.

A bundle from elsewhere is hostile: its names may point outside, its files may be links, its ONNX may
name external data anywhere. Hashes show damage, not forgery.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from ..errors import BundleError, EdgemlError, InputError, nearest, one_line
from .atomic_file import write_json
from .content_hash import hash_bytes, hash_file
from .manifest import MANIFEST_VERSION, EngineEntry, FileRecord, Manifest

MANIFEST = "manifest.json"
# Later measurements are files of their own that name the bundle's hash.
MEASUREMENTS = "measurements"
_MANIFEST_LIMIT = 64 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        root: its directory.
        manifest: what it says of itself.
        hash: sha256 of the manifest, and so of every file.
    """

    root: Path
    manifest: Manifest
    hash: str

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists.

        Raises:
            BundleError: it lists none of that name.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.root} holds no {name}, {nearest(name, self.manifest.files)}")
        return self.root / name

    def engine(self, engine_id: str | None = None) -> EngineEntry:
        """The shipped engine, or the one of that id.

        Raises:
            BundleError: there is none.
        """
        wanted = engine_id or self.manifest.shipped
        for entry in self.manifest.engines:
            if entry.id == wanted:
                return entry
        known = [entry.id for entry in self.manifest.engines]
        if wanted is None or not known:
            raise BundleError(f"{self.root} ships no engine")
        raise BundleError(f"{self.root} holds no engine {wanted!r}, {nearest(wanted, known)}")


def write_manifest(root: Path, manifest: Manifest) -> Manifest:
    """Hash every file under `root` into the manifest and write it, last."""
    files = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = path.relative_to(root).as_posix()
        if name != MANIFEST:
            files[name] = FileRecord(sha256=hash_file(path), size_bytes=path.stat().st_size)
    manifest = manifest.model_copy(update={"files": files})
    write_json(root / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def open_bundle(path: str | Path, trust_code: bool = False) -> Bundle:
    """Open a bundle and check every file in it.

    Args:
        trust_code: open it although it names user code, which whoever uses it may run.

    Raises:
        BundleError: it is no bundle, is damaged or doctored, too new, or names user code that is
            not trusted.
    """
    root = Path(path)
    try:
        manifest, digest = _read_manifest(root)
    except OSError as e:
        raise BundleError(f"{root} cannot be read: {e.strerror}") from e
    if manifest.model.get("user_code") and not trust_code:
        code = manifest.model["user_code"]
        name = code.get("file") if isinstance(code, dict) else repr(code)
        raise BundleError(
            f"{root} names user code ({name}); --trust-code runs it, if you trust its maker"
        )
    for name, record in manifest.files.items():
        _check_file(root, name, record)
    _refuse_unlisted(root, manifest)
    for entry in manifest.engines:
        for name in entry.files:
            if name not in manifest.files:
                raise BundleError(
                    f"{root}: engine {entry.id} names {name!r}, which the bundle does not list"
                )
        if not entry.files:
            raise BundleError(f"{root}: engine {entry.id} has no files")
        # Any other name would pass by the check of external data below.
        if not entry.files[0].endswith((".xml", ".onnx")):
            raise BundleError(
                f"{root}: engine {entry.id} runs {entry.files[0]!r}, which is no .xml or .onnx file"
            )
    for name in manifest.files:
        if name.endswith(".onnx"):
            _check_external_data(root, name, manifest)
    return Bundle(root, manifest, digest)


def bundle_around(path: Path) -> Path | None:
    """The bundle in whose folder `path` would lie, or None: one more file, which its manifest does
    not list, would make it refused. (``measurements/`` is for such files.)"""
    path = Path(path).absolute()
    for folder in path.parents:
        manifest = folder / MANIFEST
        if manifest.is_file() and b'"edgeml_version"' in manifest.read_bytes():
            return None if path.is_relative_to(folder / MEASUREMENTS) else folder
    return None


def refuse_place(out: Path) -> None:
    """Refuse an output that could not be made where it is asked for.

    Raises:
        InputError: it lies in a bundle, or neither its folder nor that one's exists: ``-o runs/mnist``
            makes ``runs``, a mistyped path makes nothing.
    """
    if around := bundle_around(out):
        raise InputError(
            f"{out} lies in the bundle {around}, which stays as it is; choose another -o"
        )
    one_missing = not out.parent.exists() and out.parent.parent.is_dir()
    if not (out.parent.is_dir() or one_missing):
        raise InputError(f"the folder {out.parent} does not exist; make it or choose another -o")


def _read_manifest(root: Path) -> tuple[Manifest, str]:
    file = root / MANIFEST
    if not root.is_dir():
        raise BundleError(f"{root} is no bundle: there is no such directory")
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"{root} is no bundle: it has no {MANIFEST}")
    try:
        if file.stat().st_size > _MANIFEST_LIMIT:
            raise BundleError(f"{file} is larger than any manifest ({file.stat().st_size:,} bytes)")
        data = file.read_bytes()
        values = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{file} is damaged: {one_line(e)}") from e
    if not isinstance(values, dict):
        raise BundleError(f"{file} is damaged: no mapping")
    version = values.get("version")
    if isinstance(version, int) and version > MANIFEST_VERSION:
        raise BundleError(
            f"{root} was written by a newer edgeml (manifest {version}, this one reads {MANIFEST_VERSION}): upgrade"
        )
    if version != MANIFEST_VERSION:
        raise BundleError(f"{file} is damaged: manifest version {version!r}")
    try:
        manifest = Manifest.model_validate(values)
    except (ValidationError, RecursionError) as e:
        place = (
            ".".join(str(part) for part in e.errors()[0]["loc"])
            if isinstance(e, ValidationError)
            else ""
        )
        raise BundleError(f"{file} is damaged at {place or 'its top'}") from e
    return manifest, hash_bytes(data)


def _check_file(root: Path, name: str, record: FileRecord) -> None:
    parts = PurePosixPath(name).parts
    if (
        not name
        or "\\" in name
        or "\0" in name
        or ".." in parts
        or PurePosixPath(name).is_absolute()
    ):
        raise BundleError(f"{root}: {name!r} points outside the bundle; refused")
    at = root
    try:
        for part in parts:
            at = at / part
            if at.is_symlink():
                raise BundleError(f"{root}: {name!r} is a link; refused")
        if not at.is_file():
            raise BundleError(f"{root}: {name} is missing; copy the bundle again")
        if at.stat().st_size != record.size_bytes or hash_file(at) != record.sha256:
            raise BundleError(
                f"{root}: {name} does not match its hash: damaged or changed; copy the bundle again"
            )
    except OSError as e:
        raise BundleError(f"{root}: {name!r} cannot be read: {one_line(e)}") from e


def _refuse_unlisted(root: Path, manifest: Manifest) -> None:
    for folder, folders, files in os.walk(root):
        links = [f for f in folders if Path(folder, f).is_symlink()]
        if Path(folder) == root and MEASUREMENTS in folders and MEASUREMENTS not in links:
            folders.remove(MEASUREMENTS)
        for name in [*files, *links]:
            relative = Path(folder, name).relative_to(root).as_posix()
            if relative != MANIFEST and relative not in manifest.files:
                raise BundleError(f"{root}: {relative} is not listed in its manifest; remove it")


def _check_external_data(root: Path, name: str, manifest: Manifest) -> None:
    from .onnx_file import external_files
    from .onnx_skeleton import read_skeleton

    try:
        files = external_files(read_skeleton(root / name), root / name)
    except EdgemlError as e:
        raise BundleError(str(e)) from e
    for file in files:
        if file.relative_to(root).as_posix() not in manifest.files:
            raise BundleError(f"{root}: {name} uses {file.name}, which the bundle does not list")
