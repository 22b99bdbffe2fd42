"""The latency table of a device: one network a batch of shapes, read by layer, bounded and resumed."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from edgeml.artifact.stage_cache import StageCache
from edgeml.artifact.work_directory import WorkDirectory
from edgeml.compress import device_layer_times
from edgeml.compress.device_layer_network import read_layers, write_layers
from edgeml.compress.device_layer_times import (
    PER_NETWORK,
    coarse_first,
    measure_on_device,
    open_device_table,
)
from edgeml.compress.latency_table import Prunable
from edgeml.compress.layer_times import LayerShape
from edgeml.compress.stages import Stages
from edgeml.errors import DeviceError, InputError
from edgeml.runtime.remote_bench import RemoteBench, RemoteProfile

CONV = LayerShape("conv", 32, 64, (8, 8), (3, 3))
LAYERS = {
    "a": CONV,
    "b": LayerShape("conv", 64, 64, (8, 8), (3, 3)),
    "d": LayerShape("conv", 64, 64, (8, 8), (3, 3), depthwise=True),
    "fc": LayerShape("linear", 64, 10, (1, 1)),
}
GROUPS = {
    "a": Prunable("a", "channels", 64, (("a", "out", 1), ("b", "in", 1))),
    "b": Prunable(
        "b", "channels", 64, (("b", "out", 1), ("d", "in", 1), ("d", "out", 1), ("fc", "in", 1))
    ),
}


class Device:
    """A layer takes 1 ms a million multiply-accumulates there; reads the shapes from the network it is given."""

    def __init__(self):
        self.networks, self.version = 0, "10.3"

    def state(self):
        return {"device": "orin1", "tensorrt": self.version}

    def layer_times(self, models, inputs, *, iterations):
        self.networks += 1
        model = onnx.load(models["layers"].files[0])
        values = onnx.shape_inference.infer_shapes(model).graph.value_info
        sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        dims = {c.name: list(c.dims) for c in model.graph.initializer}
        rows = []
        for node in model.graph.node:
            if node.op_type in ("Conv", "MatMul"):
                weights = np.prod(dims[node.input[1].removesuffix("_d")])
                pixels = np.prod(sizes[node.output[0]][2:]) if node.op_type == "Conv" else 1
                # As TensorRT names what it fused.
                rows.append((f"{node.name} + {node.name}relu", float(weights * pixels) / 1e6))
        rows.append(("Reformatting CopyNode for Input Tensor 0", 1.0))
        return RemoteProfile({"layers": rows}, ["orin1: throttled: oc1"])

    def bench(self, models, inputs, **options):
        from types import SimpleNamespace

        measured = SimpleNamespace(p50_ms=SimpleNamespace(value=0.05))
        return RemoteBench({"nothing": measured}, [])


@pytest.fixture
def stages(tmp_path):
    told = []
    with WorkDirectory(tmp_path / "out", "recipe") as work:
        made = Stages(StageCache(tmp_path / "cache"), work, told.append, None)
        made.told = told
        yield made


def test_the_table_predicts_what_the_device_takes(stages):
    device = Device()
    table = open_device_table(LAYERS, GROUPS, device, "tensorrt", stages)
    kept = {"a": 32, "b": 64}
    true = sum(shape.macs for shape in table.shapes(kept).values()) / 1e6
    assert table.predict(kept) == pytest.approx(0.05 + true, rel=1e-6)
    # What two groups make together was measured by nobody.
    kept = {"a": 24, "b": 40}
    true = sum(shape.macs for shape in table.shapes(kept).values()) / 1e6
    assert table.predict(kept) == pytest.approx(0.05 + true, rel=0.01)
    assert device.networks == -(-len(table.times) // PER_NETWORK)
    assert table.coverage == (len(table.times), len(table.times))
    assert table.notes == ["orin1: throttled: oc1"]
    again = open_device_table(LAYERS, GROUPS, device, "tensorrt", stages)
    assert again.times == table.times
    assert device.networks == -(-len(table.times) // PER_NETWORK)  # resumed: none was built again
    device.version = "10.16"
    open_device_table(LAYERS, GROUPS, device, "tensorrt", stages)
    assert device.networks == 2 * -(-len(table.times) // PER_NETWORK)


def test_a_bound_leaves_a_coarse_table_and_says_so(stages, monkeypatch):
    monkeypatch.setattr(device_layer_times, "PER_NETWORK", 4)
    table = open_device_table(LAYERS, GROUPS, Device(), "tensorrt", stages, table_time_s=0.0)
    assert set(table.times) == {shape.key for shape in LAYERS.values()}
    assert "4 of " in next(line for line in stages.told if line.startswith("note: "))
    wanted = len({shape.key for shape in table.wanted()})
    assert table.coverage == (4, wanted)
    # A later round asks for its own shapes alone; the count is of all that its network could become.
    again = open_device_table(
        LAYERS, GROUPS, Device(), "tensorrt", stages, table_time_s=0.0, times=table.times
    )
    assert again.coverage == (4, wanted)
    # By work, from the nearest: here exact, because the device is so.
    kept = {"a": 32, "b": 64}
    true = sum(shape.macs for shape in table.shapes(kept).values()) / 1e6
    assert table.predict(kept) == pytest.approx(0.05 + true, rel=1e-6)


def test_the_coarse_grid_comes_first():
    shapes = [LayerShape("conv", 8, 8 * n, (8, 8)) for n in range(1, 9)]
    assert [shape.outputs // 8 for shape in coarse_first(shapes)] == [1, 5, 3, 7, 2, 4, 6, 8]


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
def test_the_networks_run_and_every_layer_is_quantized(runtime, tmp_path):
    shapes = [*LAYERS.values(), LayerShape("conv", 16, 32, (8, 8), (3, 3), (2, 2), groups=4)]
    feeds = write_layers(shapes, runtime, tmp_path / "layers.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "layers.onnx")
    (y,) = session.run(None, feeds)
    assert y.shape == (1, sum(shape.outputs for shape in shapes))
    assert np.isfinite(y).all() and len(np.unique(y)) > 50


def test_the_networks_build_for_a_jetsons_gpu(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from edgeml.export.tensorrt_plan import build_engine

    shapes = [*LAYERS.values(), LayerShape("conv", 16, 32, (8, 8), (3, 3), (2, 2), groups=4)]
    write_layers(shapes, "tensorrt", tmp_path / "layers.onnx")
    build_engine(tmp_path / "layers.onnx", None, "tensorrt_rtx", {}, compute_capability="SM86")


def test_layers_that_the_profile_does_not_tell_apart_are_refused():
    with pytest.raises(DeviceError, match="no layer_0001"):
        read_layers([CONV, LAYERS["fc"]], [("layer_0000_", 1.0)])
    with pytest.raises(DeviceError, match="one layer of several"):
        read_layers([CONV, LAYERS["b"]], [("layer_0000_ || layer_0001_", 1.0)])


def test_a_layer_that_the_profile_does_not_name_is_estimated_from_its_family():
    """As a builder that folds what follows into a kernel takes its node's name from some."""
    profile = [("layer_0000_ + layer_0000_relu", 1.0), ("__myl_FcMulAdd_myl0_25", 2.0)]
    assert read_layers([CONV, LAYERS["b"]], profile) == {CONV.key: 1.0}
    # One that was measured before serves as well.
    assert read_layers([LAYERS["b"]], [("myl", 1.0)], {CONV.family}) == {}


class Unnamed(Device):
    """Does not name a network's second layer."""

    def layer_times(self, models, inputs, *, iterations):
        layers = super().layer_times(models, inputs, iterations=iterations).layers["layers"]
        return RemoteProfile(
            {"layers": [(n.replace("layer_0001_", "myl"), ms) for n, ms in layers]}
        )


def test_what_is_not_named_is_told_as_not_measured_and_later_rounds_go_on(stages):
    table = open_device_table(LAYERS, GROUPS, Unnamed(), "tensorrt", stages)
    measured, wanted = table.coverage
    assert 0 < measured < wanted
    assert table.predict({}) > 0
    again = open_device_table(
        LAYERS, GROUPS, Unnamed(), "tensorrt", stages, table_time_s=0.0, times=table.times
    )
    assert again.coverage[0] >= measured


def test_products_for_tensorrt_write_float_and_all_else_int8(tmp_path):
    after = {}
    for runtime in ("tensorrt", "onnxruntime"):
        write_layers([CONV, LAYERS["fc"]], runtime, tmp_path / "layers.onnx")
        nodes = onnx.load(tmp_path / "layers.onnx").graph.node
        made = {name: node.op_type for node in nodes for name in node.input}
        after[runtime] = made["layer_0000_relu"], made["layer_0001_"]
    assert after["tensorrt"] == ("QuantizeLinear", "Slice")
    assert after["onnxruntime"] == ("QuantizeLinear", "QuantizeLinear")


def test_a_recurrent_layer_has_no_place_in_it(stages):
    layers = {"rnn": LayerShape("lstm", 8, 8, (1, 5))}
    with pytest.raises(InputError, match="layer rnn is recurrent"):
        open_device_table(layers, {}, Device(), "tensorrt", stages)


def test_nothing_is_asked_twice(stages):
    device = Device()
    found = measure_on_device([CONV], [CONV, CONV], device, "tensorrt", stages)
    assert (found.asked, device.networks) == (1, 1)
