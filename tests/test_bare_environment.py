"""What works without the heavy libraries: simulated here, and in real fresh environments (slow)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

ROOT = Path(__file__).parents[1]

# Any import of a blocked module fails, as if it were not installed.
BLOCKED = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
from edgeml.cli import main
from edgeml.compress import search
from edgeml.runtime import latency
search.SCREEN_SECONDS = search.BENCH_SECONDS = 0.1  # what is tested here is not speed
latency.BLOCK_S = 0.006
main({arguments!r})
"""


def without(blocked: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process in which some libraries cannot be imported."""
    script = BLOCKED.format(blocked=blocked, arguments=[str(a) for a in arguments])
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def only_error(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of stderr, which is the only one that is not progress."""
    *progress, error = done.stderr.splitlines()
    assert [line for line in progress if not line.startswith("[")] == []
    return error


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    """A convolution and a classifier of four, with weights that give every class some inputs."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (8, 3, 3, 3), "classes": (8 * 16 * 16, 4)}
    weights = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "conv"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Flatten", ["r"], ["f"]),
            helper.make_node("MatMul", ["f", "classes"], ["y"]),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    opsets = [helper.make_opsetid("", 20)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture(scope="session")
def samples(tmp_path_factory, network) -> Path:
    """Sixty inputs of `network` with its own answers as labels, so that it is right on all."""
    x = np.random.default_rng(2).standard_normal((60, 3, 16, 16)).astype(np.float32)
    [scores] = ReferenceEvaluator(str(network)).run(None, {"x": x})
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, x=x, y=scores.argmax(1))
    return path


# ---- what an import brings in ----

IMPORTED = """
import sys
before = set(sys.modules)
from edgeml.cli import main
try:
    main({arguments!r})
finally:
    added = {{name.split(".")[0] for name in set(sys.modules) - before}}
    print(*sorted(added - set(sys.stdlib_module_names)), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["--version"]])
def test_help_imports_click_and_nothing_else(arguments):
    script = IMPORTED.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == ["click", "edgeml"]


@pytest.mark.parametrize(
    "package", ["artifact", "runtime", "train", "export", "compress", "report", "cli"]
)
def test_importing_a_folder_imports_no_heavy_library(package):
    heavy = ["torch", "openvino", "onnxruntime", "nncf", "sklearn", "scipy", "pandas", "mlxtend"]
    script = f"import sys, edgeml.{package}; print(*set(sys.modules) & set({heavy}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


# ---- libraries that are missing, simulated ----


def test_an_onnx_file_is_compressed_without_torch(network, samples, tmp_path):
    out = tmp_path / "out"
    arguments = ("compress", network, "--data", f"npz:{samples}", "--int8", "--max-drop", 50)
    only = ("--runtime", "openvino", "--route", "nncf")
    done = without(["torch", "onnxscript", "torchvision"], *arguments, *only, "-o", out)
    assert done.returncode == 0, done.stderr
    assert "← shipped" in done.stdout
    shipped = [r for r in json.loads((out / "results.json").read_text())["rows"] if r["shipped"]]
    assert [row["precision"] for row in shipped] == ["int8"]
    ran = without(["torch"], "bench", out, "--iterations", 20)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("blocked", "extra"),
    [(["openvino", "nncf", "onnxruntime"], "openvino"), (["torch"], "train")],
)
def test_a_missing_extra_is_named_in_one_line(blocked, extra, network, samples, tmp_path):
    model = network
    if blocked == ["torch"]:
        model = tmp_path / "net.py"
        model.write_text("import torch\n\n\ndef build():\n    return torch.nn.Linear(2, 2)\n")
        model = f"{model}:build"
    out = tmp_path / "out"
    done = without(blocked, "compress", model, "--data", f"npz:{samples}", "--int8", "-o", out)
    assert done.returncode == 2
    assert f"edgeml-toolchain[{extra}]" in only_error(done)
    assert [path.name for path in tmp_path.iterdir() if path.name != "net.py"] == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="its last release for 3.10 is too old")
def test_onnxruntime_alone_compresses(network, samples, tmp_path):
    out = tmp_path / "out"
    arguments = ("compress", network, "--data", f"npz:{samples}", "--int8", "--max-drop", 50)
    done = without(["torch", "openvino", "nncf"], *arguments, "-o", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert {row["runtime"] for row in rows if row["status"] != "failed"} == {"onnxruntime"}


def test_doctor_names_what_is_missing_and_goes_on():
    done = without(["torch", "openvino"], "doctor", "--json", "-")
    assert done.returncode == 0, done.stderr
    works = {part["name"]: part["works"] for part in json.loads(done.stdout)["parts"]}
    assert works["onnxruntime"] and not works["torch"] and not works["openvino"]


# ---- fresh environments (slow) ----


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of what git holds, to install from."""
    root = tmp_path_factory.mktemp("checkout") / "edgeml"
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    return root


def environment(folder: Path, checkout: Path, extras: str) -> Path:
    """A virtual environment with edgeml and only what `extras` bring; its bin folder."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    done = subprocess.run(
        [*install, "-c", "constraints.txt", f".{extras}"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def run(bin_folder: Path, *command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    words = [str(word) for word in (bin_folder / str(command[0]), *command[1:])]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=clean)


@pytest.fixture(scope="module")
def core(tmp_path_factory, checkout) -> Path:
    return environment(tmp_path_factory.mktemp("core") / "venv", checkout, "")


@pytest.fixture(scope="module")
def compressor(tmp_path_factory, checkout) -> Path:
    return environment(tmp_path_factory.mktemp("compressor") / "venv", checkout, "[compress]")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["compress", "--help"], ["bench", "--help"], ["doctor"]]
)
def test_the_core_alone_helps_and_examines(core, arguments, tmp_path):
    done = run(core, "edgeml", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout and not done.stderr


@pytest.mark.slow
def test_the_core_alone_says_what_is_missing(core, network, samples, tmp_path):
    compress = ["compress", network, "--data", f"npz:{samples}", "--int8"]
    for command in ([*compress, "-o", "out"], ["bench", network]):
        done = run(core, "edgeml", *command, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "is not installed: pip install 'edgeml-toolchain[o" in only_error(done)
    plan = run(core, "edgeml", *compress, "--plan", cwd=tmp_path)
    assert "nncf is not installed: pip install 'edgeml-toolchain[compress]'" in plan.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_compress_needs_no_torch_in_an_environment_of_its_own(
    compressor, network, samples, tmp_path
):
    assert run(compressor, "python", "-c", "import torch", cwd=tmp_path).returncode == 1
    options = ("--data", f"npz:{samples}", "--int8", "--max-drop", 50)
    done = run(compressor, "edgeml", "compress", network, *options, "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert {row["runtime"] for row in rows if row["status"] != "failed"} >= {
        "openvino",
        "onnxruntime",
    }
    assert [row["precision"] for row in rows if row["shipped"]] == ["int8"]
    bench = run(compressor, "edgeml", "bench", "out", "--iterations", 20, cwd=tmp_path)
    assert bench.returncode == 0, bench.stderr
    example = run(compressor, "python", "out/example.py", cwd=tmp_path)
    assert example.returncode == 0, example.stderr
    difference = float(example.stdout.split()[-1])
    assert "reference inputs" in example.stdout and difference < 1e-3
