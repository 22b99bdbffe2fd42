"""Serves what `edgeml deploy --emit` wrote: checks its hashes, builds its plan at the first start, listens.

The folder holds ``engine.json`` and the model's files; the plan goes to the cache, keyed by this device's TensorRT,
so that an update of JetPack builds anew.
"""

from __future__ import annotations

import json
import os
import sys

from ...errors import BundleError
from .build_on_device import build_engine, hash_file
from .load_runner import load_runner
from .serve import serve

BUILD_TIMEOUT_S = 3600.0


def serve_folder(folder: str, socket_path: str, sha256: str | None, cache: str) -> None:
    """Serve until the process ends.

    Args:
        sha256: what ``engine.json`` must hash to; it names the hashes of all other files, so that one hash
            pins the whole.

    Raises:
        BundleError: a file is missing, or is not what was pinned.
        EdgemlError: the engine cannot be built or loaded here.
    """
    path = os.path.join(folder, "engine.json")
    try:
        found = hash_file(path)
        if sha256 is not None and found != sha256:
            raise BundleError(
                f"{path} is not the one that was pinned (sha256 {found[:12]}…, pinned {sha256[:12]}…): emit it again"
            )
        with open(path, encoding="utf-8") as file:
            spec = json.load(file)
        for name, digest in spec["files"].items():
            if os.path.isabs(name) or ".." in name.split("/"):
                raise BundleError(f"{name!r} points outside {folder}")
            if hash_file(os.path.join(folder, name)) != digest:
                raise BundleError(f"{folder}: {name} does not match its hash: copy it again")
    except OSError as e:
        raise BundleError(f"{e.filename}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise BundleError(f"{path} is damaged: {e}") from e

    def log(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    engine = build_engine(spec, folder, cache, BUILD_TIMEOUT_S, log)
    runner = load_runner(engine)
    folder_of_socket = os.path.dirname(os.path.abspath(socket_path))
    os.makedirs(folder_of_socket, mode=0o700, exist_ok=True)
    serve(runner, socket_path, lambda: log(f"listening at {socket_path}"))
