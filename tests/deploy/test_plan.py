"""What is built on which device, decided from its probe alone."""

from __future__ import annotations

import doctest
import importlib.util
import json
from importlib import import_module
from pathlib import Path

import pytest
from edgeml.artifact.bundle import open_bundle, write_manifest
from edgeml.artifact.manifest import EngineEntry, Manifest
from edgeml.artifact.measurement import Measurement
from edgeml.artifact.result_row import EngineRow
from edgeml.deploy.choose import choose
from edgeml.deploy.clean import clean_devices
from edgeml.deploy.package import Candidate, Package, pack
from edgeml.deploy.plan import DeployOptions, make_plan, options_for
from edgeml.deploy.probe import DeviceFacts
from edgeml.deploy.record import DeviceRow
from edgeml.errors import BundleError, InputError
from safetensors.numpy import save


@pytest.fixture(scope="module")
def probed() -> dict:
    path = Path(__file__).with_name("stand_in_agent.py")
    spec = importlib.util.spec_from_file_location("stand_in_agent", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.probe_answer()


def _package(bundle, *candidates: Candidate) -> Package:
    package = Package(bundle, list(candidates), {"x": [1, 3, 16, 16]})
    package.references = {c.id: "0" * 64 for c in candidates}
    return package


def _candidate(precision: str, model: str = "model.int8.onnx", **values) -> Candidate:
    return Candidate(
        f"tensorrt-{precision}", "tensorrt", precision, "fp16", model, (model,), model, **values
    )


def _plan(probed, package, options=None, power_mode=None, **changes):
    facts = DeviceFacts({**probed, **changes})
    return make_plan("orin1", facts, package, options or DeployOptions(), power_mode)


def test_doctests() -> None:
    for name in ("probe", "plan", "package", "choose", "base_image", "emit"):
        assert doctest.testmod(import_module(f"edgeml.deploy.{name}")).failed == 0


def test_fp8_alone_is_refused_on_an_orin_with_what_it_executes(probed, device_bundle) -> None:
    with pytest.raises(BundleError) as error:
        _plan(probed, _package(device_bundle, _candidate("fp8")))
    assert "fp8 is not executed by Jetson Orin Nano" in str(error.value)
    assert "int8" in str(error.value)


def test_fp8_is_left_out_beside_int8(probed, device_bundle) -> None:
    plan = _plan(probed, _package(device_bundle, _candidate("fp8"), _candidate("int8")))
    assert [c.id for c in plan.builds] == ["tensorrt-int8"]
    assert plan.skipped[0][0] == "tensorrt-fp8"


@pytest.mark.parametrize("version", ["10.3.0", "11.4.1"])  # 10.3 is built strongly typed as well
def test_an_fp32_graph_is_no_fp16_engine_where_types_come_from_the_graph_alone(
    probed, device_bundle, version
) -> None:
    package = _package(device_bundle, _candidate("int8"), _candidate("fp16", "model.onnx"))
    tensorrt = {"version": version, "bindings": version, "why": None}
    plan = _plan(probed, package, tensorrt=tensorrt)
    assert [c.precision for c in plan.builds] == ["int8"]
    assert "takes types from the graph alone" in plan.skipped[0][1]
    assert len(_plan(probed, package).builds) == 2  # 8.6 takes flags


def test_trtexec_alone_builds(probed, device_bundle) -> None:
    tensorrt = {"version": "10.3.0", "bindings": None, "why": "no module named tensorrt"}
    plan = _plan(probed, _package(device_bundle, _candidate("int8")), tensorrt=tensorrt, numpy=None)
    assert plan.runtime == "tensorrt"


def test_other_users_of_the_gpu_are_told(probed, device_bundle) -> None:
    plan = _plan(
        probed,
        _package(device_bundle, _candidate("int8")),
        gpu_users=[{"pid": 7, "name": "deepstream-app"}],
    )
    assert "deepstream-app" in plan.warnings[0]


def test_the_facts_name_what_is_missing_with_its_package(probed) -> None:
    missing = [{"part": "numpy", "package": "python3-numpy", "why": "no module named numpy"}]
    lines = DeviceFacts({**probed, "numpy": None, "missing": missing, "dla": 2}).lines()
    assert any("sudo apt install python3-numpy" in line for line in lines)
    assert any("2 deep-learning accelerators, unused" in line for line in lines)


def test_the_budget_is_the_recipes_unless_told(device_bundle) -> None:
    recipe = {"max_drop_points": 0.5, "latency": "5ms"}
    bundle = _with_recipe(device_bundle, recipe)
    assert options_for(bundle, {}).max_drop_points == 0.5
    assert options_for(bundle, {}).latency_ms == 5.0
    assert options_for(bundle, {"max_drop_points": 2.0, "latency_ms": 3.0}).latency_ms == 3.0
    relative = _with_recipe(device_bundle, {"latency": "60%"})
    assert options_for(relative, {}).latency_ms is None
    with pytest.raises(InputError):
        options_for(bundle, {"max_drop_points": -1.0})


def _with_recipe(bundle, recipe):
    from dataclasses import replace

    return replace(bundle, manifest=bundle.manifest.model_copy(update={"recipe": recipe}))


def test_nothing_to_choose_from_is_said(device_bundle) -> None:
    row, held, line = choose([], None, None)
    assert (row, held) == (None, False)
    assert "nothing ships" in line


def _row(precision: str, p50_ms: float, drop: float | None = None, check: str = "passed"):
    made = {
        "latency_p50_ms": Measurement(value=p50_ms, unit="ms", low=p50_ms - 0.1, high=p50_ms + 0.1)
    }
    if drop is not None:
        made["drop_points"] = Measurement(value=drop, unit="points", n=360)
    engine = EngineRow(
        id=precision, runtime="tensorrt", precision=precision, execution="fp16", **made
    )
    return DeviceRow(engine=engine, check=check)


def test_an_int8_engine_far_from_its_onnx_ships_only_where_a_budget_holds() -> None:
    far, good = _row("int8", 1.0, drop=60.0, check="far"), _row("fp16", 2.0, drop=0.0)
    assert choose([far, good], None, None)[0] is good  # scored, and nothing says that 60 will do
    assert choose([far], None, None)[:2] == (None, False)
    held = _row("int8", 1.0, drop=0.2, check="far")
    assert choose([held, good], 0.5, None)[0] is held


def test_a_deadline_decides_between_equally_fast_engines() -> None:
    fast, accurate = _row("int8", 4.95, drop=0.4), _row("fp16", 5.05, drop=0.0)
    assert choose([fast, accurate], 0.5, None)[0] is accurate
    chosen, held, line = choose([fast, accurate], 0.5, 5.0)
    assert (chosen, held) == (fast, True)
    assert line.endswith("--latency 5 ms: plausible (one build)")


def test_a_drop_of_just_the_budget_is_judged_as_compress_does() -> None:
    assert choose([_row("int8", 1.0, drop=100 * (0.3 - 0.1 * 2))], 10.0, None)[1]
    row = _row("int8", 1.0, drop=10.000000000000002)
    assert choose([row], 10.0, None)[:2] == (row, True)


def test_a_cache_that_is_no_whole_path_is_refused_by_clean_as_by_deploy(device_bundle) -> None:
    for act in (
        lambda: options_for(device_bundle, {"cache": "work"}),
        lambda: clean_devices([], "work"),
    ):
        with pytest.raises(InputError, match="--cache work: give a folder"):
            act()


def test_a_bundle_without_onnx_is_refused_in_one_line(make_bundle, tmp_path) -> None:
    entry = EngineEntry(
        id="openvino-int8", runtime="openvino", precision="int8", files=["model.xml", "model.bin"]
    )
    root = make_bundle(
        tmp_path / "for a cpu",
        engines=[entry],
        shipped=entry.id,
        files={"model.xml": b"<net/>", "model.bin": b"0", "reference.safetensors": save({})},
        reference_files=["reference.safetensors"],
    )
    (root / "model.onnx").unlink()
    write_manifest(root, Manifest(**json.loads((root / "manifest.json").read_text())))
    with pytest.raises(BundleError) as error:
        pack(open_bundle(root))
    assert "has no ONNX to build an engine from (openvino-int8 is an openvino" in str(error.value)
    assert "\n" not in str(error.value)
