"""`bench` of bundles and engine files: a row each, and a verdict where there are two."""

from __future__ import annotations

import io
import json
import shutil
import time

import numpy as np
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.manifest import EngineEntry
from edgeml.errors import BundleError, EdgemlError, InputError, MissingPart, ModelError
from edgeml.runtime.bench_bundles import bench_bundles, reference_inputs
from edgeml.runtime.engine import EngineOptions, load_file
from PIL import Image
from safetensors.numpy import save

QUICK = {"duration_s": 0.05, "iterations": 20, "warmup": 2}


@pytest.fixture
def bundle(make_bundle, tmp_path):
    return make_bundle(tmp_path / "out")


@pytest.fixture
def no_child(monkeypatch):
    """Leave out the processes of their own; test_memory.py has them."""
    from edgeml.errors import EdgemlError
    from edgeml.runtime import bench_bundles as module

    def refuse(path, *args, **options):
        raise EdgemlError(f"{path.name} died in its own process (exit -9): no message")

    monkeypatch.setattr(module, "measure_in_own_process", refuse)


def test_one_bundle_gives_a_row_of_everything(bundle):
    lines = []
    table = bench_bundles([bundle], log=lines.append, percentiles=(50, 99.9), **QUICK)
    (row,) = table.rows
    assert (row.id, row.runtime, row.precision) == (str(bundle), "onnxruntime", "fp32")
    assert row.latency_p50_ms.n == 20
    assert row.latency_p50_ms.value <= row.latency_p90_ms.value <= row.latency_p99_ms.value
    assert row.throughput_per_s.value > 0 and row.peak_memory_bytes.value > 2**20
    assert row.load_ms.value > 0 and row.first_inference_ms.value > 0
    assert row.size_bytes == (bundle / "model.onnx").stat().st_size
    assert row.speedup.value == 1 and row.warnings == []
    assert table.verdict_line is None
    assert table.settings["threads"] == [1] and table.settings["batch"] == [1]
    assert list(table.settings["percentiles"][row.id]) == ["p50", "p99.9"]
    assert table.machine["cpu"]
    assert lines[0] == f"loading {bundle}" and "timing 1 engine, " in lines[1]
    json.dumps(table.model_dump(mode="json"), allow_nan=False)


def test_two_paths_give_a_verdict(bundle, conv_xml, no_child):
    table = bench_bundles([bundle, conv_xml], **QUICK)
    assert {row.runtime for row in table.rows} == {"onnxruntime", "openvino"}
    p50 = [row.latency_p50_ms.value for row in table.rows]
    assert p50 == sorted(p50)
    (other,) = table.settings["comparisons"]
    comparison = table.settings["comparisons"][other]
    assert other == str(conv_xml) and comparison["against"] == str(bundle)
    assert comparison["verdict"] in ("faster", "slower", "no difference shown")
    assert comparison["ratio"]["low"] <= comparison["ratio"]["value"]
    assert str(conv_xml) in table.verdict_line and str(bundle) in table.verdict_line
    assert table.settings["bundles"] == {str(bundle): open_bundle(bundle).hash}


def test_the_same_path_may_come_three_times(conv_onnx, no_child):
    table = bench_bundles([conv_onnx] * 3, **QUICK)
    assert sorted(row.id for row in table.rows) == [f"{conv_onnx}{s}" for s in ("", "#2", "#3")]
    assert len(table.settings["comparisons"]) == 2


def test_an_xml_counts_its_bin(conv_xml, no_child):
    (row,) = bench_bundles([conv_xml], **QUICK).rows
    sizes = [conv_xml.with_suffix(s).stat().st_size for s in (".xml", ".bin")]
    assert row.size_bytes == sum(sizes)


def test_what_a_process_of_its_own_could_not_measure_is_said(bundle, no_child):
    (row,) = bench_bundles([bundle], **QUICK).rows
    assert row.peak_memory_bytes.how == "not measured"
    assert row.warnings == ["model.onnx died in its own process (exit -9): no message"]
    assert row.latency_p50_ms.value > 0


def test_batch_and_threads_replace_what_they_name(bundle, conv_onnx, no_child):
    table = bench_bundles([bundle, conv_onnx], batch=3, threads=2, **QUICK)
    assert table.settings["batch"] == [3, 3] and table.settings["threads"] == [2, 2]
    table = bench_bundles([bundle, conv_onnx], batch=3, **QUICK)
    assert table.settings["threads"][0] == 1  # as the bundle was measured


def test_a_batch_that_a_graph_does_not_take_is_told(tmp_path, save_graph):
    from onnx import helper

    path = save_graph(
        tmp_path / "fixed.onnx", [helper.make_node("Relu", ["x"], ["y"])], [("x", [1, 3])], [("y", [1, 3])]
    )  # fmt: skip
    with pytest.raises(InputError, match=r"is fixed to input x 1×3 float32; --batch 4 needs"):
        bench_bundles([path], batch=4, **QUICK)


def test_open_axes_are_told(tmp_path, save_graph):
    from onnx import helper

    path = save_graph(
        tmp_path / "open.onnx", [helper.make_node("Relu", ["x"], ["y"])], [("x", ["n", "w"])], [("y", ["n", "w"])]
    )  # fmt: skip
    with pytest.raises(InputError, match=r"open\.onnx: input x 1×\? float32 has open axes"):
        bench_bundles([path], **QUICK)


def test_what_is_no_engine_is_told(bundle, tmp_path):
    with pytest.raises(ModelError, match="no engine at"):
        bench_bundles([bundle, tmp_path / "none"], **QUICK)
    (bundle / "model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="does not match its hash"):
        bench_bundles([bundle], **QUICK)


def test_a_bundle_is_timed_on_its_own_reference_input(make_bundle, tmp_path, images, conv_onnx):
    stored = save({"000.input.x": images[:1], "000.output.y": np.zeros((1, 4), np.float32)})
    bundle = make_bundle(tmp_path / "out", files={"reference.safetensors": stored})
    for batch in (1, 3):
        with load_file(conv_onnx, "onnxruntime", EngineOptions(batch=batch)) as engine:
            found = reference_inputs(bundle, engine)["x"]
            np.testing.assert_array_equal(found, np.repeat(images[:1], batch, 0))
            assert not reference_inputs(conv_onnx, engine)["x"].any()


# ── end to end ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(3):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(data, "PNG")
        found.append(data.getvalue())
    return found


def test_a_frames_stages_are_timed_as_the_bundle_declares_them(
    make_bundle, tmp_path, photos, no_child
):
    declared = json.dumps({"resize": [16, 16]}).encode()
    bundle = make_bundle(tmp_path / "out", files={"preprocess.json": declared})
    table = bench_bundles([bundle], raw_images=photos, **QUICK)
    stages = table.settings["end_to_end"][str(bundle)]
    assert {"decode", "preprocess", "infer", "postprocess", "total", "frames_per_s"} <= set(stages)
    assert all(stage["value"] >= 0 and stage["n"] >= 1 for stage in stages.values())
    with pytest.raises(InputError, match="one frame at a time; leave out --batch"):
        bench_bundles([bundle], raw_images=photos, batch=2, **QUICK)


def test_without_declared_preprocessing_it_says_so(bundle, conv_onnx, photos, no_child):
    for path in (bundle, conv_onnx):
        with pytest.raises(InputError, match="declares no preprocessing; --end-to-end needs"):
            bench_bundles([path], raw_images=photos, **QUICK)


def test_an_openvino_bundle_loads_its_xml(make_bundle, conv_xml, tmp_path, no_child):
    files = {name: conv_xml.with_name(name).read_bytes() for name in ("model.xml", "model.bin")}
    entry = EngineEntry(
        id="ov", runtime="openvino", precision="int8", route="nncf mixed", files=sorted(files)[::-1]
    )
    bundle = make_bundle(tmp_path / "a", engines=[entry], shipped="ov", files=files)
    moved = shutil.move(bundle, tmp_path / "elsewhere")
    (row,) = bench_bundles([moved], **QUICK).rows
    assert (row.runtime, row.precision, row.route) == ("openvino", "int8", "nncf mixed")


def test_a_bare_file_is_called_what_its_graph_is(conv_onnx, conv_xml, int8_onnx, no_child):
    table = bench_bundles([conv_onnx, conv_xml, int8_onnx], batch=1, **QUICK)
    found = {row.id: row.precision for row in table.rows}
    assert found == {str(conv_onnx): "fp32", str(conv_xml): "fp32", str(int8_onnx): "int8"}


# ── several batches, energy, GPUs, what is kept ──────────────────────────────────────────────────


def test_several_batches_are_rows_of_one_comparison(conv_onnx, no_child):
    table = bench_bundles([conv_onnx], batch=[1, 4], **QUICK)
    assert {row.id for row in table.rows} == {f"{conv_onnx} (batch {b})" for b in (1, 4)}
    assert table.settings["batch"] == [1, 4] and len(table.settings["comparisons"]) == 1


def test_a_measurement_is_kept_in_the_bundle_which_stays_whole(bundle, conv_onnx, no_child):
    lines = []
    table = bench_bundles([bundle, bundle, conv_onnx], log=lines.append, **QUICK)
    (kept,) = (bundle / "measurements").iterdir()
    assert kept.name.startswith("bench-") and lines[-1] == f"kept as {kept}"
    stored = json.loads(kept.read_text())
    assert stored["settings"]["bundles"][str(bundle)] == open_bundle(bundle).hash
    assert stored == table.model_dump(mode="json")
    bench_bundles([bundle], **QUICK)
    assert len(list((bundle / "measurements").iterdir())) == 2


def test_a_bundle_that_cannot_be_written_is_measured_all_the_same(bundle, no_child, monkeypatch):
    from edgeml.runtime import bench_bundles as module

    def refuse(*args):
        raise OSError(30, "Read-only file system", "measurements")

    monkeypatch.setattr(module, "keep_measurement", refuse)
    lines = []
    assert bench_bundles([bundle], log=lines.append, **QUICK).rows
    assert lines[-1] == f"not kept in {bundle}: Read-only file system: measurements"


def test_no_meter_is_told_once_and_in_every_row(conv_onnx, no_child, monkeypatch):
    from edgeml.runtime import bench_energy
    from edgeml.runtime.energy.none import NoMeter

    monkeypatch.setattr(bench_energy, "find_meter", lambda device: NoMeter("rapl: none here"))
    table = bench_bundles([conv_onnx] * 2, energy=True, **QUICK)
    for row in table.rows:
        assert row.energy_gross_mj.how == row.energy_net_mj.how == "not measured"
        assert row.energy_gross_mj.note == row.energy["reason"] == "rapl: none here"
    assert table.warnings.count("energy not measured: rapl: none here") == 1
    with pytest.raises(MissingPart, match="no energy meter here: rapl: none here"):
        bench_energy.require_meter()


def test_joules_come_with_their_labels(conv_onnx, no_child, monkeypatch):
    from edgeml.runtime import bench_energy
    from edgeml.runtime.energy import method
    from edgeml.runtime.energy.meter import Meter, Window

    class TenWatts(Meter):
        name, how, scope = "made", "counter", "cpu-package"
        rails = total_rails = ("package-0",)

        def start(self):
            self.begin = time.monotonic()

        def stop(self):
            seconds = time.monotonic() - self.begin
            return Window(seconds, 1e4 * seconds, {"package-0": 1e4 * seconds})

    for constant in ("IDLE_S", "WARMUP_S", "WINDOW_S"):
        monkeypatch.setattr(method, constant, 0.02)
    monkeypatch.setattr(bench_energy, "find_meter", lambda device: TenWatts())
    (row,) = bench_bundles([conv_onnx], batch=2, energy=True, **QUICK).rows
    assert row.energy["mean_w"] == pytest.approx(10) == row.energy["idle_w"]
    per_s = row.energy["inferences_per_s"]
    assert row.energy_gross_mj.value == pytest.approx(1e4 / per_s, rel=0.3)
    assert row.energy_net_mj.value == pytest.approx(0, abs=1e-6)
    assert row.energy_gross_mj.n == 5 and row.energy_gross_mj.note == "made, counter, cpu-package"


def test_the_batch_that_fits_is_told():
    from edgeml.runtime.bench_gpu import fit_or_say
    from edgeml.runtime.device.cuda_runtime import OutOfGpuMemory
    from edgeml.runtime.null_engine import NullEngine

    def make(limit):
        def load(batch):
            if batch > limit:
                raise OutOfGpuMemory("out of GPU memory: cudaMalloc 9 bytes")
            return NullEngine([], [])

        return load

    assert isinstance(fit_or_say(make(8), 8), NullEngine)
    with pytest.raises(EdgemlError, match=r"cudaMalloc 9 bytes at batch 32; batch 13 fits") as told:
        fit_or_say(make(13), 32)
    assert told.value.exit_code == 1
    with pytest.raises(EdgemlError, match="not even batch 1 fits"):
        fit_or_say(make(0), 4)


def test_a_gpu_has_parts_by_events_beside_the_hosts_clock(no_child):
    from edgeml.artifact.tensor_spec import TensorSpec
    from edgeml.runtime.bench_gpu import gpu_state, gpu_times
    from edgeml.runtime.null_engine import NullEngine

    class OnGpu(NullEngine):
        device = "cuda"

        def gpu_times_ms(self, inputs):
            return {"host_to_device": 0.1, "compute": 0.5, "device_to_host": 0.2, "host": 0.9}

    spec = TensorSpec("x", (1, 3), "float32")
    x = {"x": np.zeros((1, 3), np.float32)}
    found = gpu_times(OnGpu([spec], [spec]), x, 0.01)
    assert found["compute"].value == 0.5 and found["host_p99"].value == 0.9
    assert found["compute"].unit == "ms" and found["compute"].n >= 3
    assert gpu_times(NullEngine([spec], [spec]), x, 0.01) == {}
    assert gpu_state()  # the GPU's, or why it cannot be read
