"""The linters see what they are there for, on a copy into which a fault is planted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture
def copy(tmp_path) -> Path:
    """What git holds, in a folder named as the package is."""
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    root = tmp_path / "edgeml"
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    return root


def lint_imports(copy: Path) -> subprocess.CompletedProcess[str]:
    """From the folder above, where `edgeml` means the copy and not what is installed."""
    shutil.copy2(copy / "pyproject.toml", copy.parent)
    command = [BIN / "lint-imports", "--no-cache"]
    return subprocess.run(command, cwd=copy.parent, capture_output=True, text=True)


def test_the_imports_go_one_way(copy):
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        ("artifact/bundle.py", "from ..compress import step", "imports go one way"),
        ("export/parity.py", "from ..cli import options", "imports go one way"),
        ("runtime/latency.py", "import torch", "stands without the training stack"),
        ("artifact/measurement.py", "import openvino", "no heavy library"),
    ],
)
def test_a_planted_import_is_found_and_named(copy, file, planted, broken):
    with (copy / file).open("a", encoding="utf-8") as module:
        module.write(f"\n{planted}\n")
    done = lint_imports(copy)
    assert done.returncode == 1
    module = "edgeml." + file.removesuffix(".py").replace("/", ".")
    assert any(broken in line and " BROKEN" in line for line in done.stdout.splitlines())
    assert f"{module} -> " in done.stdout


def test_a_new_folder_has_to_say_where_it_stands(copy):
    (copy / "gadgets").mkdir()
    (copy / "gadgets" / "__init__.py").write_text("")
    done = lint_imports(copy)
    assert done.returncode == 1
    assert "gadgets" in done.stdout


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("import pickle", "TID251"),
        ("import os, sys", "E401"),
        ("import pathlib\nx = open('f')", "PTH123"),
    ],
)
def test_ruff_refuses_what_the_style_forbids(copy, line, rule):
    (copy / "artifact" / "planted.py").write_text(f"{line}\n")
    command = [
        BIN / "ruff",
        "check",
        "--no-cache",
        "--output-format",
        "concise",
        "artifact/planted.py",
    ]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 1
    assert rule in done.stdout


@pytest.mark.slow
def test_the_pre_commit_hooks_run(copy):
    (copy / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
    (copy / "artifact" / "planted.py").write_text("x = [1,2 ]\n")
    for command in (
        ["git", "init", "--quiet"],
        ["git", "add", "artifact", ".pre-commit-config.yaml"],
    ):
        subprocess.run(command, cwd=copy, check=True)
    run = [BIN / "pre-commit", "run", "--all-files"]
    first = subprocess.run(run, cwd=copy, capture_output=True, text=True)
    assert first.returncode == 1, first.stdout
    assert (copy / "artifact" / "planted.py").read_text() == "x = [1, 2]\n"
    second = subprocess.run(run, cwd=copy, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("Passed") == 3
