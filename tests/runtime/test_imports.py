"""A device installs what runs bundles without the training stack."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORBIDDEN = {"torch", "nncf", "modelopt", "edgeml.train", "edgeml.export", "edgeml.compress"}
HEAVY = {"openvino", "onnxruntime", "onnx", "pydantic"}


def imported_by(code: str) -> set[str]:
    """The modules there after `code`, in a process of its own."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        """if True:
            import importlib, pkgutil, edgeml.artifact, edgeml.report, edgeml.runtime
            for package in (edgeml.artifact, edgeml.report, edgeml.runtime):
                for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
                    if module.name != "edgeml.runtime.torch_engine":
                        importlib.import_module(module.name)
        """,
        "from edgeml.runtime import bench, load",
    ],
)
def test_running_and_reporting_need_no_training_stack(code):
    assert imported_by(code) & FORBIDDEN == set()


def test_running_an_engine_needs_none_either(conv_onnx, conv_xml):
    found = imported_by(f"""if True:
        import numpy as np
        from edgeml.runtime import load
        for path in ({str(conv_onnx)!r}, {str(conv_xml)!r}):
            with load(path) as engine:
                engine.run({{"x": np.zeros((1, 3, 16, 16), np.float32)}})
    """)
    assert found & FORBIDDEN == set()
    assert {"openvino", "onnxruntime"} <= found


def test_importing_the_runtime_loads_no_runtime():
    assert imported_by("import edgeml.runtime") & (FORBIDDEN | HEAVY) == set()


def test_help_imports_nothing_heavy():
    found = imported_by("""if True:
        from edgeml.cli import main
        try:
            main(["--help"])
        except SystemExit:
            pass
    """)
    assert found & (FORBIDDEN | HEAVY | {"numpy"}) == set()
