"""Where no route keeps the budget, ModelOpt's layers are left in float one by one until it holds."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.recipe import build_recipe
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe

pytest.importorskip("onnxconverter_common", reason="onnxconverter-common is not installed")
pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11) or importlib.util.find_spec("modelopt") is None,
    reason="nvidia-modelopt is not installed",
)

# The second layer reads one channel a thousand times the others, and weighs it a thousandth: INT8 of its input
# is useless, INT8 of the first layer harmless.
NETWORK = """
import torch


def build():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    with torch.no_grad():
        net[0].weight[0] *= 1000
        net[0].bias[0] = 3000
        net[2].weight[:, 0] /= 1000
    return net
"""


def test_the_layer_that_loses_too_much_stays_in_float_and_is_named(tmp_path, cache):
    import torch

    (tmp_path / "net.py").write_text(NETWORK)
    scope: dict = {}
    exec(NETWORK, scope)
    x = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    with torch.no_grad():
        y = scope["build"]()(torch.from_numpy(x)).argmax(1).numpy()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    flags = {
        "model": f"{tmp_path / 'net.py'}:build",
        "data": f"npz:{tmp_path / 'data.npz'}",
        "target": "jetson-orin-nano",
        "precisions": ("int8",),
        "routes": ("modelopt",),
        "calibration_method": "minmax",  # no slower methods in between
        "calibration_samples": 20,
        "max_drop": 2.0,
    }
    done = run_recipe(build_recipe(recipe_values({}, flags)), tmp_path / "out", cache=cache)
    rows = {row.route: row for row in done.table.rows}
    assert rows["modelopt max"].verdict == "missed"
    auto = rows["modelopt auto max"]
    assert auto.shipped and auto.verdict in ("proven", "plausible")
    assert any("stays in float, which the budget asks for" in line for line in auto.warnings)
    assert done.exit_code == 0
    [shipped, *_] = open_bundle(done.bundle).manifest.engines
    assert shipped.route == "modelopt auto max"
