"""Dynamic INT8: what quantizes a recurrent network, found by itself where there is an LSTM."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from edgeml.artifact.recipe import QuantizeStep, build_recipe
from edgeml.compress import quantize
from edgeml.compress.calibration import Calibration
from edgeml.compress.candidates import int8_candidates, quantization_steps
from edgeml.compress.quantize_dynamic import QuantizeDynamic
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.compress.step import apply
from edgeml.errors import BuildError
from edgeml.export.onnx_graph import to_onnx
from edgeml.runtime.engine import EngineOptions, load_file
from edgeml.runtime.int8_share import float_layers, int8_share
from edgeml.train.zoo.rnn import rnn

# Python 3.10's last ONNX Runtime is too old to quantize (compress/quantize_onnxruntime.py).
pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="its last release is old")
TOKENS, HIDDEN, EMBEDDING = 40, 32, 16
SHAPES = EngineOptions(threads=1, input_shapes=(("tokens", (1, TOKENS)),))
# Two directions of four gates over embedding and state, and the dense layer.
LSTM_MACS = TOKENS * 4 * HIDDEN * (EMBEDDING + HIDDEN)
DENSE_MACS = 2 * HIDDEN * 3
NO_SAMPLES = Calibration(lambda: iter(()), 0)


def tokens(n, seed=1):
    """Ids of texts of mixed lengths, padded by 0."""
    random = np.random.default_rng(seed)
    ids = random.integers(1, 100, (n, TOKENS))
    ids[np.arange(TOKENS)[None] >= random.integers(3, TOKENS, (n, 1))] = 0
    return ids


def exported(folder, cell="lstm"):
    sizes = {"vocabulary": 100, "classes": 3, "embedding": EMBEDDING, "hidden": HIDDEN}
    torch.manual_seed(0)
    module = rnn(**sizes, cell=cell, pool="last").eval()
    with torch.no_grad():
        module.embedding.weight.mul_(10)  # an untrained network says the same of every text
    to_onnx(module, {"tokens": tokens(2)}, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def lstm(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("lstm"))


def test_an_lstm_runs_in_int8_and_answers_as_before(lstm, tmp_path):
    result = apply(QuantizeDynamic(), lstm, NO_SAMPLES, tmp_path)
    assert result.path.stat().st_size < 0.5 * lstm.stat().st_size
    with (
        load_file(lstm, "onnxruntime", SHAPES) as whole,
        load_file(result.path, "onnxruntime", SHAPES) as engine,
    ):
        profile = engine.profile({"tokens": tokens(1)})
        assert sum(layer.kind == "DynamicQuantizeLSTM" for layer in profile) == 2
        for ids in tokens(8, seed=2):
            expected, got = (e.run({"tokens": ids[None]})["output"] for e in (whole, engine))
            assert not np.array_equal(expected, got)
            np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())
    assert int8_share(profile) == 1 and float_layers(profile) == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_profile_counts_the_work_of_a_recurrent_layer(lstm, runtime):
    with load_file(lstm, runtime, SHAPES) as engine:
        busy = [layer for layer in engine.profile({"tokens": tokens(1)}) if layer.macs]
    assert [layer.macs for layer in busy[:2]] == [LSTM_MACS, LSTM_MACS]
    assert sum(layer.macs for layer in busy) <= 2 * LSTM_MACS + DENSE_MACS
    assert {layer.precision for layer in busy} == {"fp32"}


def test_excluded_nodes_stay_in_float(lstm, tmp_path):
    apply(QuantizeDynamic(("LSTM|lstm",)), lstm, NO_SAMPLES, tmp_path)
    with load_file(tmp_path / "model.int8.onnx", "onnxruntime", SHAPES) as engine:
        profile = engine.profile({"tokens": tokens(1)})
    assert 0 < int8_share(profile) < 0.1 and len(float_layers(profile)) == 2


def test_a_network_without_what_it_knows_is_told(save_graph, tmp_path):
    from onnx import helper

    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    relu = save_graph(tmp_path / "relu.onnx", nodes, [("x", ["n", 4])], [("y", ["n", 4])])
    with pytest.raises(BuildError, match="onnxruntime dynamic inserted no quantizer"):
        apply(QuantizeDynamic(), relu, NO_SAMPLES, tmp_path)


def test_it_is_tried_where_an_lstm_is_and_a_gru_is_a_row_with_the_reason():
    def routes(operators, **settings):
        steps, lacking = quantization_steps(QuantizeStep(**settings), operators)
        return [step.route for step in steps], [route for route, _ in lacking]

    dynamic = QuantizeDynamic.route
    assert dynamic not in routes({"Conv": 3})[0]
    assert dynamic in routes({"LSTM": 1, "GRU": 1})[0]
    found, lacking = routes({"GRU": 1})
    assert dynamic not in found and lacking == [dynamic]
    assert dynamic not in routes({"LSTM": 1}, routes=("nncf",))[0]
    # By its own name it is tried on anything.
    assert routes({"MatMul": 1}, routes=(dynamic,)) == ([dynamic], [])


def test_it_runs_in_onnxruntime_alone():
    recipe = build_recipe(recipe_values({}, {"model": "m.onnx", "data": "digits"}))
    candidates = int8_candidates(recipe, [QuantizeDynamic()])
    assert [c.id for c in candidates] == ["onnxruntime-int8-onnxruntime-dynamic"]


def test_the_library_call_needs_no_data(lstm, tmp_path):
    assert list(quantize(lstm, tmp_path / "q", route="onnxruntime dynamic")) == ["model.int8.onnx"]


def test_compress_finds_it_for_an_lstm(lstm, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "cache"))
    ids = tokens(240, seed=3)
    with load_file(lstm, "onnxruntime", SHAPES) as engine:
        y = [int(engine.run({"tokens": row[None]})["output"].argmax()) for row in ids]
    np.savez(tmp_path / "d.npz", x=ids, y=np.array(y))
    flags = {
        "model": str(lstm),
        "data": f"npz:{tmp_path / 'd.npz'}",
        "routes": ("onnxruntime",),
        "runtimes": ("onnxruntime",),
        "max_drop": 60.0,
        "calibration_samples": 20,
    }
    result = run_recipe(build_recipe(recipe_values({}, flags)), tmp_path / "out")
    rows = {row.id: row for row in result.table.rows}
    row = rows["onnxruntime-int8-onnxruntime-dynamic"]
    assert row.status == "measured" and row.int8_mac_share.value == 1 and row.mark is None
