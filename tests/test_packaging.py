"""What is installed, under which names, and that every extra can be installed."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
NOT_INSTALLED = ("tests", "benchmarks", "examples", "docs")


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows or would take, relative to the root."""
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z", "--", *patterns]
    found = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in found.split("\0") if name and (ROOT / name).is_file()]


MODULES = [path for path in tracked("*.py") if path.parts[0] not in NOT_INSTALLED]


def test_packages_are_the_folders_that_hold_an_init():
    folders = {path.parent for path in MODULES if path.name == "__init__.py"}
    assert set(PACKAGES) == {".".join(("edgeml", *folder.parts)) for folder in folders}


def test_every_module_lies_in_a_package():
    names = {".".join(("edgeml", *path.parent.parts)) for path in MODULES}
    assert names <= set(PACKAGES)


def test_the_extras_are_the_documented_ones():
    assert set(EXTRAS) == {
        *("text", "train", "compress", "openvino", "onnxruntime", "tensorrt", "tensorrt-rtx"),
        *("modelopt", "hf", "prune", "energy", "deploy", "sweep", "report", "dev", "all"),
    }


def test_all_holds_what_users_install():
    """`[all]` is every extra except the developers' and the one that needs a GPU to install."""
    [inner] = re.findall(r"\[(.*)\]", EXTRAS["all"][0])
    reached = set(inner.split(","))
    assert reached | {"openvino", "onnxruntime"} == set(EXTRAS) - {"dev", "tensorrt", "all"}


def test_the_version_is_said_once():
    import edgeml

    assert edgeml.__version__ == PROJECT["project"]["version"]


def constraints() -> list[Requirement]:
    """The lines of constraints.txt that hold for this Python."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]


def test_each_library_is_pinned_once_and_the_pins_are_what_is_installed():
    pins = {pin.name: pin for pin in constraints()}
    assert len(pins) == len(constraints())
    for name in {"torch", "onnx", "numpy"}:
        assert version(name).split("+")[0] in pins[name].specifier


def library_names() -> set[str]:
    """Names that an import of the standard library or of a dependency could mean."""
    required = [
        *PROJECT["project"]["dependencies"],
        *(r for group in EXTRAS.values() for r in group),
    ]
    distributions = {re.match(r"[\w.-]+", r)[0].replace("-", "_").lower() for r in required}
    installed = {
        n for n, owners in packages_distributions().items() if "edgeml-toolchain" not in owners
    }
    others = {"tensorrt_rtx", "modelopt", "torch_pruning", "torchvision", "timm", "transformers"}
    return set(sys.stdlib_module_names) | distributions | installed | others


def test_no_file_is_named_like_a_library():
    """With an export/onnx.py, a script run in that folder would import it for `import onnx`."""
    libraries = library_names()
    assert {"onnx", "torch", "openvino", "onnxruntime", "nncf", "json", "PIL"} <= libraries
    files = [path for path in tracked("*.py") if not path.stem.startswith("__")]
    assert [str(path) for path in files if path.stem in libraries] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_whenever_it_is_asked_for(package):
    """Twice: a module of the same name would take the name's place after the first import."""
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        assert callable(getattr(module, name)), name
        assert getattr(module, name) is getattr(module, name), name


# What users' programs call. A name or a leading argument that goes from here breaks them: CHANGELOG.
PUBLIC = {
    "edgeml.train.fit": ["module", "data", "settings"],
    "edgeml.runtime.load": ["path", "options"],
    "edgeml.runtime.bench": ["engines", "inputs"],
    "edgeml.compress.compress": ["recipe", "output"],
    "edgeml.compress.quantize": ["model", "directory"],
    "edgeml.export.to_onnx": ["module", "example_inputs", "path"],
    "edgeml.export.to_openvino": ["onnx_path", "out_dir"],
    "edgeml.report.write": ["table", "destination"],
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_keep_their_names_and_first_arguments(name):
    package, function = name.rsplit(".", 1)
    module = importlib.import_module(package)
    assert function in module.__all__
    arguments = list(inspect.signature(getattr(module, function)).parameters)
    assert arguments[: len(PUBLIC[name])] == PUBLIC[name]
    assert getattr(module, function).__doc__


# ---- slow: what needs pip ----


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what git holds, so that pip and build leave nothing in the checkout."""
    root = tmp_path_factory.mktemp("source") / "edgeml"
    for path in tracked():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, root / path)
    return root


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_each_extra_resolves_against_the_constraints(extra, source):
    if extra == "tensorrt":
        pytest.skip("tensorrt is not installable here: its libraries come for machines with a GPU")
    report = run(
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"),
        *("--report", "-", "-c", "constraints.txt", f".[{extra}]"),
        cwd=source,
    )
    chosen = {
        entry["metadata"]["name"].lower(): entry["metadata"]["version"]
        for entry in json.loads(report)["install"]
    }
    pins = {pin.name: str(pin.specifier).removeprefix("==") for pin in constraints()}
    assert chosen["edgeml-toolchain"] == PROJECT["project"]["version"]
    for name in pins.keys() & chosen.keys():
        assert chosen[name].split("+")[0] == pins[name], name
    # The same build as here, not only the same number: 2.13.0+cpu is not to become one with CUDA.
    assert ("torch" in chosen) == (extra in {"train", "modelopt", "dev", "all"})
    assert chosen.get("torch", version("torch")) == version("torch")


@pytest.fixture(scope="module")
def wheel(source) -> Path:
    run(sys.executable, "-m", "build", "--outdir", source.parent / "dist", cwd=source)
    [built] = (source.parent / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_modules_and_nothing_else(wheel):
    info = f"edgeml_toolchain-{PROJECT['project']['version']}.dist-info"
    about = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert held == {
        *(f"edgeml/{path.as_posix()}" for path in MODULES),
        "edgeml/py.typed",
        "edgeml/report/page.css",
        "edgeml/report/page.js",
        "edgeml/report/page_details.js",
        "edgeml/report/page_trade_off.js",
        *(f"{info}/{name}" for name in about),
    }


@pytest.mark.slow
def test_the_wheel_installs_into_a_fresh_environment(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    where = run(
        python, "-c", "import edgeml; print(edgeml.__version__, edgeml.__file__)", cwd=tmp_path
    )
    said, file = where.split()
    assert said == PROJECT["project"]["version"]
    assert Path(file).is_relative_to(tmp_path / "venv")
    assert (tmp_path / "venv" / "bin" / "edgeml").is_file()
