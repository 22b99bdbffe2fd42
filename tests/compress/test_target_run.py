"""`edgeml compress --target`: graphs, accuracy and build lines for a device that is not here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.recipe import build_recipe
from edgeml.artifact.target import find_target
from edgeml.compress.plan import plan_lines
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.compress.target_candidates import target_candidates
from edgeml.compress.target_run import _memory_note
from edgeml.errors import InputError, MissingPart, ModelError
from edgeml.export.qdq_lint import lint
from edgeml.runtime import load

pytest.importorskip("onnxconverter_common", reason="onnxconverter-common is not installed")
pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="onnxruntime is too old to quantize there"
)
HAS_RTX = bool(importlib.util.find_spec("tensorrt_rtx") and importlib.util.find_spec("polygraphy"))


def recipe(small, **flags):
    values = {"model": small["model"], "data": small["data"], "max_drop": 5.0, **flags}
    return build_recipe(recipe_values({}, {"calibration_samples": 60, **values}))


@pytest.fixture(scope="module")
def orin(small, cache, tmp_path_factory):
    """The result of INT8 for a Jetson Orin Nano, by the route that needs no NVIDIA package."""
    out = tmp_path_factory.mktemp("orin") / "out"
    flags = {"precisions": ("int8",), "routes": ("tensorrt-form",), "target": "jetson-orin-nano"}
    return run_recipe(recipe(small, **flags), out, cache=cache)


def test_int8_ships_with_fp16_beside_it(orin):
    assert orin.exit_code == 0
    bundle = open_bundle(orin.bundle)
    shipped, other = bundle.manifest.engines
    assert (shipped.precision, shipped.execution, shipped.runtime) == ("int8", "fp16", "tensorrt")
    assert other.precision == "fp16"
    assert bundle.manifest.target["compute_capability"] == "SM87"
    assert (
        "fp16 beside it; numerics by onnxruntime, latency not measured" in orin.table.verdict_line
    )


def test_the_graphs_are_typed_fp16_outside_qdq_and_lint_clean(orin):
    for entry in open_bundle(orin.bundle).manifest.engines:
        path = orin.bundle / entry.files[0]
        assert not lint(path, "10.3", shapes=("x",)).errors
        graph = onnx.load(path).graph
        stored = {t.name: t.data_type for t in graph.initializer}
        floats = [kind for kind in stored.values() if kind == onnx.TensorProto.FLOAT]
        assert not floats, entry.id
        kinds = [node.op_type for node in graph.node]
        assert ("QuantizeLinear" in kinds) == (entry.precision == "int8")


def test_every_engine_says_how_the_device_builds_it(orin):
    for entry in open_bundle(orin.bundle).manifest.engines:
        build = entry.build
        assert (build.tensorrt, build.form, build.flags) == ("10.3", "typed", ["--stronglyTyped"])
        assert build.needs == "SM75"
        assert build.plan == f"model.{entry.precision}.trt10.3-sm87.plan"
        assert build.profiles == {"x": ([1, 3, 16, 16],) * 3}
        assert f"--onnx={entry.files[0]}" in build.command
        assert f"--saveEngine=../engines/{build.plan}" in build.command
        assert build.state == ("legal" if HAS_RTX else "written")
        assert (build.stand_in is not None) == HAS_RTX
    script = (orin.bundle / "build.sh").read_text()
    assert script.count("/usr/src/tensorrt/bin/trtexec --onnx=model.") == 2
    assert subprocess.run(["sh", "-n", orin.bundle / "build.sh"]).returncode == 0


def test_what_was_measured_here_and_what_was_not_stand_apart(orin):
    rows = {row.id: row for row in orin.table.rows}
    reference = rows.pop("onnxruntime-fp32")
    assert {m.how for m in reference.metrics.values()} == {"measured"}
    for row in rows.values():
        assert {m.how for m in row.metrics.values()} == {"emulated"}
        assert row.drop_points.how == "emulated"
        assert row.latency_p50_ms.value is None and row.latency_p50_ms.how == "not measured"
        assert "jetson-orin-nano" in row.latency_p50_ms.note
        assert "numerics by onnxruntime" in row.mark


def test_each_engine_has_the_outputs_that_the_device_is_checked_by(orin):
    from safetensors.numpy import load_file

    bundle = open_bundle(orin.bundle)
    shipped, other = bundle.manifest.engines
    assert shipped.reference is None and other.reference == "reference.fp16.safetensors"
    int8 = load_file(bundle.file("reference.safetensors"))
    fp16 = load_file(bundle.file(other.reference))
    assert int8.keys() == fp16.keys()
    assert np.array_equal(int8["000.input.x"], fp16["000.input.x"])
    assert not np.array_equal(int8["000.output.y"], fp16["000.output.y"])


def test_example_runs_the_graph_as_it_was_scored(orin):
    done = subprocess.run(
        [sys.executable, orin.bundle / "example.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "32 reference inputs, largest difference" in done.stdout


def test_a_tensorrt_bundle_is_not_run_here(orin):
    with pytest.raises(ModelError, match="a graph for TensorRT, which builds it where it runs"):
        load(orin.bundle)


def test_for_tensorrt_8_the_graph_is_fp32_at_opset_17_and_flags_choose(small, cache, tmp_path):
    flags = {"precisions": ("int8",), "routes": ("tensorrt-form",), "target": "jetson-orin-nano"}
    done = run_recipe(recipe(small, **flags, tensorrt="8.6"), tmp_path / "out", cache=cache)
    manifest = open_bundle(done.bundle).manifest
    for entry, flags in zip(manifest.engines, (["--fp16", "--int8"], ["--fp16"]), strict=True):
        assert (entry.build.tensorrt, entry.build.form) == ("8.6.2", "flags")
        assert entry.build.flags == flags
        model = onnx.load(done.bundle / entry.files[0])
        assert model.opset_import[0].version == 17
        assert not any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)


def test_fp16_alone_for_another_board(small, cache, tmp_path):
    flags = {"precisions": ("fp16",), "target": "jetson-agx-orin"}
    done = run_recipe(recipe(small, **flags), tmp_path / "out", cache=cache)
    [entry] = open_bundle(done.bundle).manifest.engines
    assert (done.exit_code, entry.id) == (0, "tensorrt-fp16")


def test_a_missed_budget_is_exit_3_and_names_the_next_command(small, cache, tmp_path):
    flags = {"precisions": ("int8",), "routes": ("tensorrt-form",), "target": "jetson-orin-nano"}
    wanted = recipe(small, **flags, max_drop=0.0, nodes_to_exclude=("conv1",))
    done = run_recipe(wanted, tmp_path / "out", cache=cache)
    assert done.exit_code == 3
    assert done.table.verdict_line.startswith("budget missed: none of 3 for jetson-orin-nano")
    assert any(line.startswith("try: edgeml compress --recipe") for line in done.table.advice)


def test_arm64_runs_onnxruntime_only_its_latency_unknown(small, cache, tmp_path):
    done = run_recipe(recipe(small, target="arm64", max_drop=20.0), tmp_path / "out", cache=cache)
    assert {row.runtime for row in done.table.rows} == {"onnxruntime"}
    manifest = open_bundle(done.bundle).manifest
    assert [e.precision for e in manifest.engines] == ["int8", "fp32"]
    assert all(e.build is None for e in manifest.engines)
    assert "latency not measured" in done.table.verdict_line
    assert all(e.threads is None for e in manifest.engines)  # this machine's number is not its
    with load(done.bundle) as engine:  # ONNX Runtime is here too
        assert engine.runtime == "onnxruntime"
    example = [sys.executable, done.bundle / "example.py"]
    assert subprocess.run(example, capture_output=True).returncode == 0


def test_without_tensorrt_rtx_the_graph_is_written_not_legal(
    small, fresh_cache, tmp_path, monkeypatch
):
    import edgeml.compress.target_search as search

    def lacking(name):
        if name == "tensorrt-rtx-cu13":
            raise ModuleNotFoundError(name)
        return "1"

    monkeypatch.setattr(search, "installed", lacking)
    flags = {"precisions": ("fp16",), "target": "jetson-orin-nano"}
    done = run_recipe(recipe(small, **flags), tmp_path / "out", cache=fresh_cache)
    [entry] = open_bundle(done.bundle).manifest.engines
    assert (entry.build.state, entry.build.stand_in) == ("written", None)
    assert any("linted, not parsed" in line for row in done.table.rows for line in row.warnings)


def test_a_yaml_target_is_used_and_kept_in_the_bundle(small, cache, tmp_path):
    file = tmp_path / "box.yaml"
    file.write_text(
        "name: my-box\nruntimes: [tensorrt]\nprecisions: [fp32, fp16, int8]\n"
        "compute_capability: SM86\ntensorrt: ['10.16', '10.3']\n"
    )
    flags = {"precisions": ("fp16",), "target": str(file)}
    done = run_recipe(recipe(small, **flags), tmp_path / "out", cache=cache)
    manifest = open_bundle(done.bundle).manifest
    assert manifest.target["name"] == "my-box"
    assert manifest.engines[0].build.plan == "model.fp16.trt10.16-sm86.plan"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"precisions": ("fp8",), "target": "jetson-orin-nano"}, "SM87.*fp8 needs SM89 or later"),
        ({"precisions": ("bf16",), "target": "jetson-thor"}, "writes no bf16 graph for TensorRT"),
        ({"precisions": ("fp16",), "target": "arm64"}, "arm64 does not execute it"),
        ({"precisions": ("fp8",)}, "cpu does not execute it"),
        ({"target": "jetson-orin-nano", "tensorrt": "10.99"}, r"known: 8\.5\.2, 8\.6\.2, 10\.3"),
        ({"target": "jetson-orin-nano", "tensorrt": "7.1"}, "too old: JetPack 4"),
        ({"target": "jetson-thor", "tensorrt": "10.3"}, r"jetson-thor runs TensorRT 10\.13"),
        ({"tensorrt": "10.3"}, "for targets that run TensorRT; cpu does not"),
        ({"target": "jetson-orin-nano", "runtimes": ("openvino",)}, "are TensorRT's; leave it out"),
        ({"target": "arm64", "runtimes": ("openvino",)}, "arm64 runs onnxruntime"),
        ({"precisions": ("int8",), "target": "rtx"}, r"not for convolutions: give --fp16.*fp8"),
        (
            {"precisions": ("int8",), "routes": ("nncf",), "target": "jetson-orin-nano"},
            "no route of --route makes int8 engines",
        ),
        ({"precisions": ("fp8",), "target": "jetson-thor"}, "FP8 is made of the torch module"),
    ],
)
def test_what_a_target_cannot_do_is_one_line(small, cache, tmp_path, flags, said):
    with pytest.raises(InputError, match=said):
        run_recipe(recipe(small, **flags), tmp_path / "out", cache=cache)
    assert not (tmp_path / "out").exists()


def test_without_modelopt_the_other_route_is_offered(small, cache, tmp_path, monkeypatch):
    import edgeml.compress.quantize_modelopt_onnx as route

    def lacking(name):
        from importlib.metadata import PackageNotFoundError

        raise PackageNotFoundError(name)

    monkeypatch.setattr(route, "version", lacking)
    flags = {"precisions": ("int8",), "target": "jetson-orin-nano"}
    with pytest.raises(MissingPart, match="take the route tensorrt-form"):
        run_recipe(recipe(small, **flags, routes=("modelopt",)), tmp_path / "a", cache=cache)
    done = run_recipe(recipe(small, **flags), tmp_path / "b", cache=cache)
    assert done.exit_code == 0
    [row] = [row for row in done.table.rows if row.status == "failed"]
    assert "take the route tensorrt-form" in row.reason


def test_results_are_the_documented_json(orin):
    values = json.loads(Path(orin.bundle, "results.json").read_text())
    assert values["settings"]["target"] == "jetson-orin-nano"
    assert values["settings"]["tensorrt"] == "10.3"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            {"target": "jetson-orin-nano"},
            [
                "engine      tensorrt fp16: types in the graph",
                "engine      tensorrt int8 (tensorrt-form minmax): types in the graph, FP16 outside",
                "lint        against TensorRT 10.3",
                "--stronglyTyped --skipInference (build.sh)",
                "choose      the fewest bits that loses",
            ],
        ),
        (
            {"target": "jetson-orin-nano", "tensorrt": "8.5.2"},
            [
                "4 or 8 GB by module, believed",
                "the builder chooses",
                "--fp16 --int8 --buildOnly (build.sh)",
            ],
        ),
        (
            {"target": "arm64"},
            [
                "engine      onnxruntime int8 (onnxruntime minmax, fp32)",
                "the runtimes of arm64, here",
            ],
        ),
        ({"target": "rtx", "precisions": ("fp16",)}, ["edgeml export OUT --to tensorrt-rtx"]),
        (
            {"target": "jetson-orin-nano", "runtimes": ("openvino",)},
            ["MISSING     engine: --runtime openvino: engines for jetson-orin-nano are TensorRT's"],
        ),
    ],
)
def test_the_plan_of_a_target_names_its_graphs_and_what_is_not_measured(small, flags, told):
    lines = plan_lines(recipe(small, **flags))
    text = "\n".join(lines)
    for line in told:
        assert line in text
    measured = "latency     not measured here: edgeml deploy OUT times them on" in text
    assert measured == ("MISSING     nothing" in text)


def test_fp16_is_always_beside_int8(small):
    from edgeml.artifact.target import TARGETS

    for target in TARGETS.values():
        if target.by_tensorrt:
            found = target_candidates(recipe(small, target=target.name), target)
            precisions = [c.precision for c in found.engines]
            assert precisions[0] == "fp16" and "int8" in precisions


def test_without_data_open_sides_are_the_targets(tmp_path, fresh_cache):
    """A fully convolutional network: noise calibrates, nothing is scored."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.ones((4, 3, 3, 3), np.float32)
    shape = ["batch", 3, "h", "w"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, "a", "b"])],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    (tmp_path / "small.yaml").write_text(
        "name: small\nruntimes: [tensorrt]\nprecisions: [fp16, int8]\ntensorrt: ['10.3']\n"
        "input_shape: [3, 24, 32]\n"
    )
    flags = {"model": str(tmp_path / "m.onnx"), "target": str(tmp_path / "small.yaml")}
    random = {
        "allow_random_calibration": True,
        "calibration_samples": 8,
        "routes": ("tensorrt-form",),
    }
    done = run_recipe(
        build_recipe(recipe_values({}, {**flags, **random})), tmp_path / "out", cache=fresh_cache
    )
    manifest = open_bundle(done.bundle).manifest
    assert manifest.engines[0].build.profiles == {"x": ([1, 3, 24, 32],) * 3}
    assert manifest.random_calibration
    assert all("random calibration" in row.mark for row in done.table.rows if row.route)


def test_a_network_too_large_for_the_smallest_module_is_told():
    """Believed, as all that is known of a board without one; deploy asks the device."""
    trial = SimpleNamespace(row=SimpleNamespace(id="tensorrt-int8", size_bytes=2_000_000_000))
    (note,) = _memory_note(find_target("jetson-orin-nano"), trial)
    assert note.startswith("building tensorrt-int8 takes about 6.3 GB of free memory; the smallest")
    assert _memory_note(find_target("jetson-agx-orin"), trial) == []
    assert _memory_note(find_target("arm64"), trial) == []
