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

# The command line with short benches: what is tested here is not speed.
EDGEML = f"""#!{sys.executable}
from edgeml.compress import search
from edgeml.runtime import latency
search.SCREEN_SECONDS, search.BENCH_SECONDS, latency.BLOCK_S = 0.1, 0.2, 0.01
from edgeml.cli import main
main()
"""


@pytest.fixture(scope="session")
def rapidocr() -> None:
    """The package whose models the examples compress; the Makefile installs it."""
    if find_spec("rapidocr_onnxruntime") is None:
        pytest.skip("rapidocr-onnxruntime is not installed (make test installs it)")


@pytest.fixture(scope="session")
def run_block(tmp_path_factory):
    """A function that runs the README's n-th ``sh`` block in `folder`, where ``examples/`` is linked.

    Returns:
        The finished process with its text, and the directory.
    """

    command = tmp_path_factory.mktemp("bin") / "edgeml"
    command.write_text(EDGEML)
    command.chmod(0o755)

    def run(example: str, number: int, folder: Path, **environment: str):
        readme = (ROOT / "examples" / example / "README.md").read_text(encoding="utf-8")
        block = re.findall(r"^```sh\n(.*?)^```$", readme, flags=re.M | re.S)[number]
        (folder / "examples").symlink_to(ROOT / "examples")
        path = os.pathsep.join(
            [str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        return subprocess.run(
            ["bash", "-e", "-c", block],
            cwd=folder,
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run
