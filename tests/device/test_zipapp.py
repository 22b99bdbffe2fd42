"""The file that travels: standard library, numpy and itself, the same bytes each time, on Python 3.8."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from edgeml.runtime.device.zipapp_build import ROOT, build_agent, device_files

# Looked for where they are installed, never needed to start.
OPTIONAL = {"numpy", "onnxruntime", "PIL", "tensorrt", "pynvml"}


def test_the_same_bytes_wherever_it_is_made(tmp_path):
    first = build_agent(tmp_path / "a.pyz")
    assert build_agent(tmp_path / "sub" / "b.pyz") == first
    assert (tmp_path / "a.pyz").read_bytes() == (tmp_path / "sub/b.pyz").read_bytes()


def test_every_file_runs_on_python_3_8_by_vermin():
    """Its syntax, its modules and their members; a real 3.8 is tried below where one is found."""
    vermin = Path(sys.executable).with_name("vermin")
    files = [str(ROOT / name) for name in device_files()]
    words = [vermin, "-t=3.8-", "--no-tips", "--violations"]
    done = subprocess.run([*words, *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def imports_of(path: Path) -> set[str]:
    """Absolute imports by their first name; relative ones as ``edgeml.…``."""
    package = ("edgeml", *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            module = ".".join((*base, *filter(None, [node.module])))
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", device_files())
def test_nothing_but_the_standard_library_numpy_and_itself_is_imported(name):
    travels = {"edgeml." + f.removesuffix(".py").replace("/", ".") for f in device_files()}
    for module in imports_of(ROOT / name):
        if module.startswith("edgeml."):
            inside = module in travels or module.rpartition(".")[0] in travels
            assert inside, f"{name} imports {module}, which does not travel"
        else:
            known = module in sys.stdlib_module_names or module in OPTIONAL
            assert known, f"{name} imports {module}"


def test_what_is_optional_is_never_imported_at_the_top():
    """numpy at the top is allowed to the runners alone, which need it in any case."""
    for name in device_files():
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        top = {
            alias.name.split(".")[0]
            for node in tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
            if isinstance(node, ast.Import)
        }
        if name.startswith("runtime/device/tensorrt_") or name == "runtime/device/client.py":
            top.discard("numpy")
        assert not top & OPTIONAL, f"{name}: {top & OPTIONAL}"


def test_it_holds_nothing_else(agent_file):
    with zipfile.ZipFile(agent_file) as archive:
        names = set(archive.namelist())
    travels = {"edgeml/" + name for name in device_files()}
    packages = {f"edgeml/{p}__init__.py" for p in ("", "artifact/", "runtime/")}
    assert names == {"__main__.py", *travels, *packages}
    assert agent_file.stat().st_size < 500_000


@pytest.fixture
def python38() -> str:
    """A real Python 3.8 without numpy."""
    found = sorted(Path.home().glob(".pyenv/versions/3.8.*/bin/python"))
    if not found:
        pytest.skip("no Python 3.8 here")
    return str(found[-1])


def test_python_38_probes_without_numpy(agent_file, python38):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python38, "-W", "error", "-S", agent_file, "probe"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["python"].startswith("3.8.") and found["numpy"] is None
    assert {row["part"] for row in found["missing"]} >= {"numpy", "bindings"}


def test_python_38_compiles_every_file(agent_file, python38, tmp_path):
    with zipfile.ZipFile(agent_file) as archive:
        archive.extractall(tmp_path)
    subprocess.run([python38, "-m", "compileall", "-q", tmp_path], check=True)
    # Importing is what evaluates defaults and annotations.
    needs_numpy = ("runtime/device/tensorrt_", "runtime/device/client", "runtime/device/bindings_")
    modules = [
        "edgeml." + name.removesuffix(".py").replace("/", ".")
        for name in device_files()
        if not name.startswith(needs_numpy) and not name.endswith("__init__.py")
    ]
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    subprocess.run([python38, "-S", "-c", code], check=True, cwd=tmp_path)


def test_python_38_checks_an_engine_by_trtexec_without_numpy(
    agent_file, python38, start, tmp_path, conv_onnx, reference
):
    """A board without numpy and bindings: the agent in 3.8, trtexec (the stand-in) for the engines."""
    folder = tmp_path / "tensorrt"
    folder.mkdir()
    (folder / "version").write_text("8.5.2\n")
    body = (Path(__file__).parent / "trtexec_stand_in.py").read_text()
    (folder / "trtexec").write_text(f"#!{sys.executable}\n{body}")
    (folder / "trtexec").chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    host = start(python=python38, env={"PATH": path})
    spec = {
        "id": "trt",
        "runtime": "tensorrt",
        "precision": "fp16",
        "files": {"model.onnx": host.put(conv_onnx.read_bytes())},
        "model": "model.onnx",
        "shapes": {"x": [1, 3, 16, 16]},
    }
    (row,) = host.ask("build", engines=[spec], timeout_s=60)["engines"]
    assert (row["status"], row["how"], row["version"]) == ("built", "trtexec", "8.5.2"), row
    assert any("[I] Engine built" in line["text"] for line in host.progress)
    digest = host.put(reference)
    (row,) = host.ask("check", engines=[{"id": "trt", "reference": digest}])["engines"]
    assert (row["status"], row["n"], row["how"]) == ("checked", 5, "trtexec"), row
    assert row["outputs"][0]["max_rel"] < 1e-5
    (row,) = host.ask("bench", engines=["trt"], reference=digest, duration_s=0.1)["engines"]
    assert row["how"] == "trtexec" and len(row["rounds_ms"]) == 1
    (row,) = host.ask("build", engines=[spec])["engines"]
    assert row["status"] == "cached"
    plan = next((host.cache / "plans").glob("*.plan"))
    plan.write_bytes(b"damaged")
    (row,) = host.ask("build", engines=[spec])["engines"]
    assert row["status"] == "built"
    assert host.ask("fetch", hash=row["hash"])["event"] == "result"
