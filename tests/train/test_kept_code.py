"""A user's code in a bundle: what it imports beside it comes along, and nothing lands outside its folder."""

from __future__ import annotations

import sys

import pytest
import torch
from edgeml.errors import BundleError
from edgeml.train.kept_code import neighbours, record_code, run_kept_code
from edgeml.train.model_source import open_model

NET = """from torch import nn
from beside_{n}.block import block
def build():
    return nn.Sequential(block(4, 8), nn.Linear(8, 2))
"""
BLOCK = "from torch import nn\ndef block(i, o): return nn.Sequential(nn.Linear(i, o), nn.ReLU())\n"


@pytest.fixture
def folder(tmp_path):
    """A network whose block lies in a package beside it, of a name that no other test imports."""
    name = f"beside_{abs(hash(tmp_path))}"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("\n")
    (package / "block.py").write_text(BLOCK)
    (tmp_path / "net.py").write_text(NET.replace("beside_{n}", name))
    yield tmp_path
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]


def forget(folder):
    for file in folder.rglob("*.py"):
        file.unlink()


def test_what_the_file_imports_is_kept_and_run_again(folder):
    source = open_model(f"{folder / 'net.py'}:build")
    (package,) = [p.name for p in folder.iterdir() if p.is_dir() and p.name.startswith("beside_")]
    assert set(source.user_code["neighbours"]) == {
        f"{package}/__init__.py",
        f"{package}/block.py",
    }
    forget(folder)
    again = run_kept_code("run", source.user_code, "build")
    assert list(again.state_dict()) == list(source.module.state_dict())


def test_the_text_that_is_kept_runs_not_what_is_loaded(folder):
    code = open_model(f"{folder / 'net.py'}:build").user_code
    (block,) = [name for name in code["neighbours"] if name.endswith("block.py")]
    code["neighbours"][block] = BLOCK.replace("nn.ReLU", "nn.Tanh")
    module = run_kept_code("run", code, "build")
    assert any(isinstance(m, torch.nn.Tanh) for m in module.modules())


def test_a_neighbour_that_changes_changes_both_hashes(folder):
    first = open_model(f"{folder / 'net.py'}:build")
    for file in folder.rglob("block.py"):
        file.write_text(BLOCK + "# another\n")
    second = open_model(f"{folder / 'net.py'}:build")
    assert first.sha256 != second.sha256
    assert first.user_code["sha256"] != second.user_code["sha256"]


def test_a_module_by_its_dotted_name_is_kept_with_its_package(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (package,) = [p for p in folder.iterdir() if p.is_dir() and p.name.startswith("beside_")]
    (package / "net.py").write_text(
        "from torch import nn\nfrom .block import block\ndef build(): return block(4, 2)\n"
    )
    code = open_model(f"{package.name}.net:build").user_code
    assert code["file"] == f"{package.name}/net.py" and code["module"] == f"{package.name}.net"
    forget(folder)
    assert isinstance(run_kept_code("run", code, "build"), torch.nn.Sequential)


def test_the_standard_library_below_the_folder_is_no_neighbour(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "lib"))
    (tmp_path / "lib").mkdir()
    file = tmp_path / "lib" / "made_up_standard.py"
    file.write_text("")
    module = type(sys)("made_up_standard")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "made_up_standard", module)
    (tmp_path / "net.py").write_text("")
    assert neighbours(tmp_path / "net.py") == []
    assert record_code("net.py:f", tmp_path / "net.py", "")["file"] == "net.py"


def test_a_package_beside_the_modules_own_counts_for_its_hash(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (package,) = [p for p in folder.iterdir() if p.is_dir() and p.name.startswith("beside_")]
    other = folder / f"{package.name}_models"
    other.mkdir()
    (other / "__init__.py").write_text("")
    (other / "net.py").write_text(
        f"from {package.name}.block import block\ndef build(): return block(4, 2)\n"
    )
    first = open_model(f"{other.name}.net:build")
    (package / "block.py").write_text(BLOCK + "# another\n")
    assert open_model(f"{other.name}.net:build").sha256 != first.sha256


def test_code_that_something_installed_hides_is_refused(tmp_path):
    code = {"file": "json/tool.py", "text": "def build(): pass", "module": "json.tool"}
    with pytest.raises(BundleError, match=r"json\.tool comes from .*, not from the bundle"):
        run_kept_code("run", code, "build")


@pytest.mark.parametrize(
    "code",
    [
        None,
        "net.py",
        {"file": "net.py"},
        {"file": "../net.py", "text": "def build(): pass"},
        {"file": "/net.py", "text": "def build(): pass"},
        {"file": "net.py", "text": "", "neighbours": {"../../evil.py": "x = 1"}},
        {"file": "net.py", "text": "", "neighbours": ["a.py"]},
        {"file": "net.py", "text": 3},
    ],
)
def test_a_doctored_record_is_one_line_and_writes_nothing_outside(code, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "deep" / "er"))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with pytest.raises(BundleError) as caught:
        run_kept_code("run", code, "build")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.py"))
