"""ONNX Runtime: profile, FP8, external data, telemetry."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from edgeml.errors import MissingPart, ModelError
from edgeml.runtime.engine import EngineOptions, load_file
from edgeml.runtime.onnxruntime_engine import import_onnxruntime
from onnx import TensorProto, helper, numpy_helper

CONV_MACS, FC_MACS = 16 * 16 * 16 * 3 * 3 * 3, 16 * 4


@pytest.mark.parametrize("batch", [1, 2, None])
def test_the_profile_counts_the_work_of_each_layer(conv_onnx, images, batch):
    n = batch or 3
    with load_file(conv_onnx, "onnxruntime", EngineOptions(batch=batch)) as engine:
        layers = engine.profile({"x": images[:n]})
    busy = [layer for layer in layers if layer.macs]
    assert [layer.macs for layer in busy] == [n * CONV_MACS, n * FC_MACS]
    assert {layer.precision for layer in busy} == {"fp32"}
    assert all(layer.time_ms >= 0 for layer in layers)
    assert len({layer.name for layer in layers}) == len(layers)


def test_the_profile_counts_int8_kernels_whose_weights_are_packed(int8_onnx, images):
    with load_file(int8_onnx, "onnxruntime", EngineOptions()) as engine:
        busy = [layer for layer in engine.profile({"x": images[:1]}) if layer.macs]
    assert [layer.macs for layer in busy] == [CONV_MACS, FC_MACS]
    assert [layer.kind for layer in busy] == ["QLinearConv", "QLinearMatMul"]
    assert {layer.precision for layer in busy} == {"int8"}


@pytest.mark.parametrize("transposed", [0, 1])
def test_the_profile_counts_products_either_way_round(tmp_path, save_graph, transposed):
    weights = np.ones((5, 7) if transposed else (7, 5), np.float32)
    path = save_graph(
        tmp_path / "gemm.onnx",
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=transposed)],  # without a name
        [("x", ["n", 7])],
        [("y", ["n", 5])],
        [("w", weights)],
    )
    with load_file(path, "onnxruntime", EngineOptions(batch=3)) as engine:
        layers = engine.profile({"x": np.ones((3, 7), np.float32)})
    assert sum(layer.macs for layer in layers) == 3 * 7 * 5


def test_the_profile_bears_inputs_that_are_left_out(tmp_path, save_graph):
    path = save_graph(
        tmp_path / "clip.onnx",
        [helper.make_node("Clip", ["x", "", "six"], ["y"])],
        [("x", ["n", 7])],
        [("y", ["n", 7])],
        [("six", np.array(6, np.float32))],
    )
    with load_file(path, "onnxruntime", EngineOptions()) as engine:
        (layer,) = engine.profile({"x": np.ones((1, 7), np.float32)})
    assert layer.kind == "Clip" and (layer.macs, layer.precision) == (0, None)


def test_profiling_leaves_no_file_behind(conv_onnx, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with load_file(conv_onnx, "onnxruntime", EngineOptions()) as engine:
        engine.profile({"x": images[:1]})
    assert list(tmp_path.iterdir()) == []


# ── FP8: silently wrong above BASIC (FACTS §8) ───────────────────────────────────────────────────


def fp8_product(path: Path, with_zero_point: bool) -> Path:
    """A product of FP8 weights and activations, whose type stands in a zero point or an attribute."""
    e4m3 = TensorProto.FLOAT8E4M3FN
    zero = TensorProto(name="zero", data_type=e4m3, raw_data=b"\0")
    scale = ["scale", "zero"] if with_zero_point else ["scale"]
    typed = {} if with_zero_point else {"output_dtype": e4m3}
    nodes = []
    for name in ("x", "w"):
        nodes.append(helper.make_node("QuantizeLinear", [name, *scale], [f"{name}.q"], **typed))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", *scale], [f"{name}.d"]))
    nodes.append(helper.make_node("MatMul", ["x.d", "w.d"], ["y"]))
    weights = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    initializers = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.float32(0.05), "scale"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        initializers + [zero] * with_zero_point,
    )
    opsets = [helper.make_opsetid("", 21)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def level_of(engine):
    return engine._session.get_session_options().graph_optimization_level


@pytest.mark.parametrize("with_zero_point", [True, False])
def test_an_fp8_graph_runs_at_basic_and_is_right(tmp_path, with_zero_point):
    path = fp8_product(tmp_path / "fp8.onnx", with_zero_point)
    x = np.random.default_rng(1).standard_normal((1, 16)).astype(np.float32)
    weights = numpy_helper.to_array(onnx.load_model(path).graph.initializer[0])
    with load_file(path, "onnxruntime", EngineOptions()) as engine:
        assert level_of(engine) == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        # Three bits of mantissa: 6 % an element at most.
        np.testing.assert_allclose(engine.run({"x": x})["y"], x @ weights, rtol=0.1, atol=0.5)


def test_other_graphs_run_with_all_optimizations(conv_onnx, int8_onnx):
    for path in (conv_onnx, int8_onnx):
        with load_file(path, "onnxruntime", EngineOptions()) as engine:
            assert level_of(engine) == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_external_data_inside_runs_and_outside_is_refused(tmp_path, conv_onnx, images):
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "m.onnx"
    onnx.save_model(
        onnx.load_model(conv_onnx),
        path,
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    with (
        load_file(path, "onnxruntime", EngineOptions()) as engine,
        load_file(conv_onnx, "onnxruntime", EngineOptions()) as whole,
    ):
        np.testing.assert_array_equal(
            engine.run({"x": images[:1]})["y"], whole.run({"x": images[:1]})["y"]
        )
    model = onnx.load_model(path, load_external_data=False)
    (tmp_path / "deep" / "w.bin").rename(tmp_path / "w.bin")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../w.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder; refused"):
        load_file(path, "onnxruntime", EngineOptions())


def test_an_operator_that_the_runtime_lacks_is_named(tmp_path, save_graph):
    path = save_graph(
        tmp_path / "odd.onnx",
        [helper.make_node("Imagine", ["x"], ["y"], domain="no.such")],
        [("x", ["n", 7])],
        [("y", ["n", 7])],
    )
    with pytest.raises(
        ModelError, match=r"cannot load .*odd\.onnx: .*(no\.such|Imagine)"
    ) as caught:
        load_file(path, "onnxruntime", EngineOptions())
    assert "\n" not in str(caught.value)


# ── the library ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="the last release for 3.10 has no such variable"
)
def test_telemetry_is_off_before_the_library_loads(monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    # The variable is one that the library reads.
    libraries = Path(onnxruntime.__file__).parent.glob("capi/*.so*")
    assert any(b"ORT_DISABLE_TELEMETRY" in library.read_bytes() for library in libraries)


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPart, match=r"pip install 'edgeml-toolchain\[onnxruntime\]'"):
        import_onnxruntime()
