"""Running the very commands that an example's README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def rapidocr() -> None:
    """The package whose models the examples compress; the Makefile installs it."""
    if find_spec("rapidocr_onnxruntime") is None:
        pytest.skip("rapidocr-onnxruntime is not installed (make test installs it)")


@pytest.fixture(scope="session")
def run_block():
    """A function that runs the README's n-th ``sh`` block in `folder`, where ``examples/`` is linked.

    Returns:
        The finished process with its text, and the directory.
    """

    def run(example: str, number: int, folder: Path, **environment: str):
        readme = (ROOT / "examples" / example / "README.md").read_text(encoding="utf-8")
        block = re.findall(r"^```sh\n(.*?)^```$", readme, flags=re.M | re.S)[number]
        (folder / "examples").symlink_to(ROOT / "examples")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-e", "-c", block],
            cwd=folder,
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run
