"""What is refused before a byte of a plan is loaded, and that an engine behaves as every other."""

from __future__ import annotations

import hashlib
import json
import platform
import re

import numpy as np
import pytest
from edgeml.errors import BundleError, EdgemlError, InputError, MissingPart, ModelError
from edgeml.runtime import load
from edgeml.runtime.built_plans import built_here, note_plan
from edgeml.runtime.device.cuda_runtime import CudaRuntime
from edgeml.runtime.engine import EngineOptions, load_file
from edgeml.runtime.tensorrt_engine import TensorRTEngine

PLAN = b"a plan, made up"
HASH = hashlib.sha256(PLAN).hexdigest()
NAME = "model.int8.trt10.3-sm87.plan"
X = np.arange(3, dtype=np.float32)[None]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def export(tmp_path):
    """A function: what `edgeml export --to tensorrt` writes, with fields of its record changed."""

    def make(**changed):
        folder = tmp_path / "out-trt"
        folder.mkdir(exist_ok=True)
        (folder / NAME).write_bytes(PLAN)
        (folder / "model.onnx").write_bytes(b"")
        engine = {
            "file": NAME,
            "sha256": HASH,
            "library": "tensorrt",
            "version": "10.3.0",
            "compute_capability": "SM87",
            "os": platform.system(),
            "arch": platform.machine(),
            **changed,
        }
        record = {"schema_version": 1, "engine": engine}
        (folder / "engine.json").write_text(json.dumps(record))
        return folder

    return make


@pytest.fixture
def open_engine(cudart, make_tensorrt):
    opened = []

    def make(path, trust=None, options=None, **engine):
        parts = {"module": make_tensorrt(**engine), "cuda": CudaRuntime(cudart)}
        engine = TensorRTEngine(path, options or EngineOptions(), trust, **parts)
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        engine.close()


def test_a_plan_that_was_built_here_runs(export, open_engine):
    note_plan(HASH)
    engine = open_engine(export())
    first = engine.run({"x": X})["y"]
    second = engine.run({"x": X + 1})["y"]
    np.testing.assert_array_equal(first, 2 * X)  # its own memory, though the runner's is reused
    np.testing.assert_array_equal(second, 2 * (X + 1))
    assert (engine.runtime, engine.device, engine.version) == ("tensorrt", "cuda", "10.3.0")
    assert str(engine.input_specs[0]) == "x 1×3 float32"
    assert engine.gpu_memory_bytes() == 24
    assert set(engine.gpu_times_ms({"x": X})) == {
        "host_to_device",
        "compute",
        "device_to_host",
        "host",
    }
    [layer] = engine.profile({"x": X})
    assert (layer.name, layer.kind, layer.precision, layer.macs) == ("double", "conv", "int8", 0)
    engine.close()
    with pytest.raises(InputError, match="was closed"):
        engine.run({"x": X})


def test_a_plan_of_elsewhere_is_refused_unless_it_is_trusted(export, open_engine):
    with pytest.raises(
        BundleError, match=f"not built on this machine.*--trust-plan {HASH}"
    ) as told:
        open_engine(export())
    assert "edgeml export" in str(told.value) and "\n" not in str(told.value)
    open_engine(export(), trust=HASH.upper())
    with pytest.raises(InputError, match="is not the sha256 of"):
        open_engine(export(), trust="0" * 64)


REFUSED = {
    "damaged": ({"sha256": "1" * 64}, BundleError, "does not match its hash"),
    "other os": ({"os": "Windows"}, InputError, "is for Windows on"),
    "other arch": ({"arch": "aarch64x"}, InputError, "on aarch64x, this is"),
    "other version": ({"version": "8.6.2"}, InputError, "built by tensorrt 8.6.2, here is 10.3.0"),
    "other gpu": ({"compute_capability": "SM90"}, InputError, "is for SM90, this GPU is SM87"),
    "outside": ({"file": "../x.plan"}, BundleError, "points outside"),
    "gone": ({"file": "gone.plan"}, BundleError, "cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_loading(case, export, open_engine, cudart):
    changed, error, said = REFUSED[case]
    note_plan(HASH)
    with pytest.raises(error, match=re.escape(said)) as told:
        open_engine(export(**changed))
    assert "\n" not in str(told.value)
    assert "malloc-device" not in cudart.names()


def test_a_graph_without_engine_and_a_damaged_record(export, tmp_path):
    folder = export()
    (folder / "engine.json").write_text('{"engine": null}')
    with pytest.raises(ModelError, match="a graph and no engine; build it"):
        load(folder)
    for text in ("[]", '{"engine": {}}', "{"):
        (folder / "engine.json").write_text(text)
        with pytest.raises(BundleError, match="is damaged; export again"):
            load(folder)


def test_load_takes_an_export_and_a_plan(export, tmp_path):
    with pytest.raises(BundleError, match="not built on this machine"):
        load(export())
    with pytest.raises(BundleError, match="not built on this machine"):
        load(export() / NAME)


def test_a_graph_for_tensorrt_is_not_run_as_it_is(tmp_path):
    with pytest.raises(ModelError, match="builds it where it runs: edgeml export"):
        load_file(tmp_path / "model.onnx", "tensorrt", EngineOptions())


def test_without_the_library_it_says_what_still_works(export):
    note_plan(HASH)
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(MissingPart, match=r"python3-libnvinfer.*ONNX Runtime work here"):
            load(export())


def test_a_dynamic_engine_takes_the_batch_that_was_asked_for(export, open_engine):
    note_plan(HASH)
    engine = open_engine(export(), options=EngineOptions(batch=4), low=1, high=8)
    assert engine.input_specs[0].shape == engine.output_specs[0].shape == (4, 3)
    with pytest.raises(InputError, match="the engine takes 1×3 to 8×3"):
        open_engine(export(), options=EngineOptions(batch=9), low=1, high=8)


def test_what_exports_builds_is_known_here(conv_onnx, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from edgeml.compress.export_tensorrt import export_tensorrt

    done = export_tensorrt(conv_onnx, tmp_path / "out", "tensorrt-rtx")
    assert built_here(done.record["engine"]["sha256"])
    with pytest.raises(EdgemlError) as told:  # no GPU, or one of another architecture
        load(tmp_path / "out")
    assert "cannot run" in str(told.value) or "this GPU is" in str(told.value)
