"""The whole way on small networks: what ships, what the bundle holds, and that it runs without us."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.recipe import build_recipe, read_recipe
from edgeml.artifact.result_row import ResultTable
from edgeml.artifact.work_directory import WorkDirectory
from edgeml.compress.build_engines import saturates
from edgeml.compress.candidates import Candidate
from edgeml.compress.node_names import match_nodes
from edgeml.compress.quantize_onnxruntime import QuantizeOnnxRuntime
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.compress.stages import Stages
from edgeml.errors import BuildError, DataError, EdgemlError, InputError
from edgeml.runtime import load
from safetensors.numpy import load_file


def recipe(small, **flags):
    given = {"precisions": ("int8",), "max_drop": 5.0, "calibration_samples": 40, **flags}
    given.setdefault("model", small["model"])
    if "task" not in given:
        given.setdefault("data", small["data"])
    return build_recipe(recipe_values({}, given))


def compress(small, out, cache, **flags):
    lines: list[str] = []
    result = run_recipe(recipe(small, **flags), out, log=lines.append, cache=cache)
    return result, lines


@pytest.fixture(scope="module")
def finished(small, cache, tmp_path_factory):
    """One whole run with the default candidates, looked at by many tests."""
    root = tmp_path_factory.mktemp("run")
    result, lines = compress(small, root / "out", cache)
    return result, lines, root / "out"


def test_every_route_and_runtime_is_a_row(finished):
    table = finished[0].table
    tried = {(r.runtime, r.precision, r.route) for r in table.rows}
    assert {
        ("openvino", "fp32", None),
        ("openvino", "int8", "nncf performance"),
        ("openvino", "int8", "nncf mixed"),
        ("openvino", "int8", "onnxruntime minmax"),
        ("onnxruntime", "int8", "onnxruntime minmax"),
        ("onnxruntime", "fp32", None),
    } <= tried
    assert [r.status for r in table.rows].count("reference") == 1


def test_rows_hold_what_was_measured_and_how(finished):
    for row in finished[0].table.rows:
        if row.status != "measured":
            continue
        assert row.latency_p50_ms.low <= row.latency_p50_ms.value <= row.latency_p50_ms.high
        assert row.drop_points.n == row.metrics["accuracy"].n == 360
        assert row.size_bytes > 0 and row.verdict in ("proven", "plausible", "missed")
        if row.precision == "int8":
            assert row.int8_mac_share.value > 0.9
        assert 0 <= row.flips.value <= 1


def test_the_shipped_engines_layers_are_told_with_the_type_they_ran_in(finished):
    table = finished[0].table
    (shipped,) = [row for row in table.rows if row.shipped]
    work = [layer for layer in table.layers if layer["macs"]]
    assert len(work) == 3 and all(layer["time_ms"] >= 0 for layer in table.layers)
    total = sum(layer["macs"] for layer in work)
    in_int8 = sum(layer["macs"] for layer in work if layer["precision"] == "int8")
    assert in_int8 / total == pytest.approx(shipped.int8_mac_share.value)


def test_only_what_may_ship_ships_and_the_line_says_why(finished):
    result, _, out = finished
    (shipped,) = [r for r in result.table.rows if r.shipped]
    assert shipped.precision == "int8" and result.exit_code == 0
    assert result.table.rows[0] is shipped
    assert result.table.verdict_line.startswith(f"ships {shipped.runtime} int8")
    assert open_bundle(out).manifest.shipped == shipped.id


def test_test_was_read_once_after_the_choice(finished):
    result, _, out = finished
    final = result.table.final
    assert final["reads"] == 1 and final["n"] == 360
    assert final["split_hash"] != result.table.rows[0].metrics["accuracy"].n
    journal = [json.loads(line) for line in (out / "stages.jsonl").read_text().splitlines()]
    reads = [i for i, e in enumerate(journal) if e["event"] == "test read"]
    timed = [i for i, e in enumerate(journal) if e["stage"].startswith("bench:")]
    assert len(reads) == 1 and reads[0] > timed[-1]
    assert open_bundle(out).manifest.data["test_reads"] == 1


def test_the_bundle_runs_as_it_was_measured(finished):
    out = finished[2]
    tensors = load_file(out / "reference.safetensors")
    with load(out) as engine:
        for k in range(3):
            got = engine.run({"x": tensors[f"{k:03}.input.x"]})
            np.testing.assert_array_equal(got["y"], tensors[f"{k:03}.output.y"])


def test_the_example_runs_without_edgeml(finished, tmp_path):
    # A copy elsewhere, with edgeml unimportable, as on a machine that never had it.
    code = (
        "import sys; sys.modules['edgeml'] = None; sys.argv = ['example.py'];"
        f"exec(open({str(finished[2] / 'example.py')!r}).read(), "
        f"{{'__name__': '__main__', '__file__': {str(finished[2] / 'example.py')!r}}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "32 reference inputs, largest difference from the recorded outputs: 0" in done.stdout


def test_the_manifest_tells_where_it_came_from(finished, small):
    manifest = open_bundle(finished[2]).manifest
    assert manifest.recipe["model"] == small["model"]
    hashes = {manifest.data[f"{split}_split_sha256"] for split in ("validation", "test")}
    assert len(hashes) == 2 and None not in hashes
    assert manifest.data["fingerprint"] and manifest.data["splits"]["sizes"]["test"] == 360
    assert {"openvino", "nncf", "onnxruntime", "numpy"} <= set(manifest.tools)
    assert manifest.machine["cpu"] and manifest.engines[0].threads >= 1
    assert manifest.engines[0].input_shapes == {"x": [1, 3, 16, 16]}


def test_results_in_the_bundle_are_the_table(finished):
    stored = ResultTable.model_validate_json((finished[2] / "results.json").read_text())
    assert stored == finished[0].table


def test_a_recipe_repeats_the_run_from_the_cache(finished, small, tmp_path, cache):
    values = read_recipe(finished[2] / "recipe.yaml")
    again = build_recipe(recipe_values(values, {}))
    assert again == recipe(small)
    lines: list[str] = []
    result = run_recipe(again, tmp_path / "again", log=lines.append, cache=cache)
    assert [line for line in lines if line.startswith("quantizing")] == [
        line for line in lines if line.startswith("quantizing") and line.endswith("from the cache")
    ]
    # What was measured by the clock is measured anew.
    assert any(line.startswith("timing") and "cache" not in line for line in lines)
    by_id = {r.id: r for r in finished[0].table.rows}
    for row in result.table.rows:
        # A slow machine may screen out another row, whose change is then that of fewer samples.
        if row.status == by_id[row.id].status:
            assert row.change_points == by_id[row.id].change_points


def test_a_restricted_run_tries_only_that(small, tmp_path, cache):
    result, lines = compress(
        small, tmp_path / "out", cache, routes=("onnxruntime",), runtimes=("onnxruntime",)
    )
    assert {r.runtime for r in result.table.rows} == {"onnxruntime"}
    assert result.table.verdict_line.startswith("ships onnxruntime int8 (onnxruntime minmax)")
    assert not any("nncf" in line for line in lines)


def test_any_precision_may_ship_where_none_is_asked_for(small, tmp_path, cache):
    result, _ = compress(
        small, tmp_path / "out", cache, precisions=(), runtimes=("onnxruntime",), max_drop=0.9
    )
    assert result.exit_code == 0
    # INT8 loses more than that here: the float original is left, and loses nothing.
    shipped = next(r for r in result.table.rows if r.shipped)
    assert (shipped.id, shipped.status) == ("onnxruntime-fp32", "reference")
    assert "it is the original network" in result.table.verdict_line
    assert result.table.final["change_points"] is None
    assert open_bundle(tmp_path / "out").manifest.engines[0].files == ["model.onnx"]


def test_a_missed_budget_keeps_the_nearest_and_is_exit_3(small, tmp_path, cache):
    result, _ = compress(
        small,
        tmp_path / "out",
        cache,
        max_drop=0.0,
        strict=True,
        routes=("nncf",),
        runtimes=("openvino",),
    )
    assert result.exit_code == 3
    assert result.table.verdict_line.startswith("budget missed")
    assert not any(r.shipped for r in result.table.rows)
    assert open_bundle(tmp_path / "out").manifest.shipped == result.table.rows[0].id
    worst, command = result.table.advice
    assert "conv1" in worst and "conv2" in worst
    assert all(5 < float(db) < 60 for db in re.findall(r"(-?[\d.]+) dB", worst))
    # The next command is one that runs as it stands.
    words = shlex.split(command.removeprefix("try: edgeml compress "))
    flags = {words[i]: words[i + 1] for i in range(0, len(words), 2)}
    values = read_recipe(Path(flags["--recipe"]))
    again = build_recipe(
        recipe_values(values, {"nodes_to_exclude": (flags["--nodes-to-exclude"],)})
    )
    assert match_nodes(Path(small["model"]), again.steps[0].nodes_to_exclude)
    # And where that misses too, what is in float already stays in float.
    result = run_recipe(again, tmp_path / "again", cache=cache)
    assert result.exit_code == 3
    assert all(
        f"--nodes-to-exclude {shlex.quote(flags['--nodes-to-exclude'])} " in line
        for line in result.table.advice[1:]
    )


@pytest.mark.parametrize(("strict", "code"), [(False, 0), (True, 3)])
def test_strict_wants_the_proof_on_test_too(small, tmp_path, cache, monkeypatch, strict, code):
    """The choice reads validation: what is proven there may be only plausible on test."""
    from edgeml.compress import run_recipe as way

    def only_plausible(*arguments):
        return {**final_test(*arguments), "verdict": "plausible"}

    final_test = way.final_test
    monkeypatch.setattr(way, "final_test", only_plausible)
    result, _ = compress(
        small,
        tmp_path / "out",
        cache,
        max_drop=20.0,
        strict=strict,
        routes=("nncf",),
        runtimes=("openvino",),
    )
    assert result.exit_code == code


def test_minmax_that_misses_is_followed_by_percentile_and_entropy(
    small, tmp_path, cache, monkeypatch
):
    from edgeml.compress import accuracy_cause

    compared = []
    monkeypatch.setattr(
        accuracy_cause,
        "tell_gain",
        lambda cause, cure, base, cured, stages: compared.append((base.row.route, cured.row.route)),
    )
    result, lines = compress(
        small,
        tmp_path / "out",
        cache,
        max_drop=0.0,
        routes=("onnxruntime",),
        runtimes=("onnxruntime",),
    )
    assert any("trying percentile and entropy" in line for line in lines)
    routes = {r.route for r in result.table.rows}
    slow = {"onnxruntime percentile", "onnxruntime entropy"}
    assert slow <= routes
    assert set(compared) == {("onnxruntime minmax", route) for route in slow}


def test_a_method_that_a_route_lacks_is_a_row_with_that_reason(small, tmp_path, cache):
    result, _ = compress(
        small,
        tmp_path / "out",
        cache,
        calibration_method="percentile",
        max_drop=20.0,
        runtimes=("openvino",),
    )
    lacking = next(r for r in result.table.rows if r.route == "nncf percentile")
    assert lacking.status == "failed" and "no percentile calibration" in lacking.reason


def test_random_calibration_is_marked_everywhere(small, tmp_path, cache):
    result, _ = compress(
        small,
        tmp_path / "out",
        cache,
        data=None,
        allow_random_calibration=True,
        routes=("onnxruntime",),
        runtimes=("onnxruntime",),
    )
    shipped = next(r for r in result.table.rows if r.shipped)
    assert shipped.mark == "random calibration"
    assert shipped.drop_points.how == "not measured"
    assert open_bundle(tmp_path / "out").manifest.random_calibration


def test_labels_in_another_order_are_refused_before_any_quantization(small, tmp_path, cache):
    arrays = np.load(small["data"].removeprefix("npz:"))
    turned = tmp_path / "turned.npz"
    np.savez(turned, x=arrays["x"], y=(arrays["y"] + 1) % 4)
    lines: list[str] = []
    with pytest.raises(DataError, match="in another order than the network's outputs"):
        run_recipe(
            recipe(small, data=f"npz:{turned}"), tmp_path / "out", log=lines.append, cache=cache
        )
    assert not any("quantizing" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_reference_near_chance_is_warned_of_first(small, tmp_path, cache):
    arrays = np.load(small["data"].removeprefix("npz:"))
    noise = tmp_path / "noise.npz"
    np.savez(noise, x=arrays["x"], y=np.random.default_rng(0).integers(0, 4, 900))
    _, lines = compress(
        small,
        tmp_path / "out",
        cache,
        data=f"npz:{noise}",
        routes=("onnxruntime",),
        runtimes=("onnxruntime",),
        max_drop=30.0,
    )
    warned = [i for i, line in enumerate(lines) if "near chance" in line]
    quantized = [i for i, line in enumerate(lines) if line.startswith("quantizing")]
    assert warned and warned[0] < quantized[0]


def test_saturating_kernels_are_warned_of():
    old = {"arch": "x86_64", "isa": ["avx2"]}
    step = QuantizeOnnxRuntime()
    here = Candidate("onnxruntime", "int8", step=step)
    assert "--reduce-range avoids it" in saturates(here, old)
    assert saturates(here, {"arch": "x86_64", "isa": ["avx512_vnni"]}) is None
    assert saturates(here, {"arch": "aarch64", "isa": []}) is None
    assert saturates(Candidate("openvino", "int8", step=step), old) is None
    reduced = QuantizeOnnxRuntime(reduce_range=True)
    assert saturates(Candidate("onnxruntime", "int8", step=reduced), old) is None


def test_samples_left_out_are_reported(small, tmp_path, cache):
    arrays = dict(np.load(small["data"].removeprefix("npz:")))
    arrays["x"][[3, 5]] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    result, _ = compress(
        small,
        tmp_path / "out",
        cache,
        data=f"npz:{tmp_path / 'bad.npz'}",
        on_bad_sample="skip",
        routes=("onnxruntime",),
        runtimes=("onnxruntime",),
        max_drop=20.0,
    )
    counted = open_bundle(tmp_path / "out").manifest.data["bad_samples"]["not finite"]
    assert f"samples left out: {counted} not finite" in " ".join(result.table.warnings)


def test_folded_preprocessing_takes_bytes_and_answers_the_same(tmp_path, cache, small):
    from PIL import Image

    rng = np.random.default_rng(0)
    session_answers = []
    import onnxruntime

    session = onnxruntime.InferenceSession(small["model"], providers=["CPUExecutionProvider"])
    for i in range(120):
        base = rng.integers(0, 256, 3)
        pixels = np.clip(base + rng.normal(0, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
        x = (pixels.astype(np.float32) / 255 - 0.5) / 0.25
        label = int(session.run(None, {"x": x.transpose(2, 0, 1)[None]})[0].argmax())
        session_answers.append(label)
        (tmp_path / "d" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "d" / str(label) / f"{i}.png")
    names = tmp_path / "classes.txt"
    names.write_text("0\n1\n2\n3\n")
    result, _ = compress(
        small,
        tmp_path / "out",
        cache,
        data=f"imagefolder:{tmp_path / 'd'}",
        classes=str(names),
        preprocess={"mean": [0.5], "std": [0.25]},
        fold_preprocess=True,
        max_drop=30.0,
        routes=("nncf",),
        runtimes=("openvino",),
    )
    assert result.table.final["reference"]["metrics"]["accuracy"]["value"] == 1.0
    assert json.loads((tmp_path / "out/preprocess.json").read_text())["folded"] is True
    with load(tmp_path / "out") as engine:
        (spec,) = engine.input_specs
        assert (spec.dtype, spec.shape) == ("uint8", (1, 16, 16, 3))
    # Its example takes a photo's bytes as they are.
    photo = next((tmp_path / "d").rglob("*.png"))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "out/example.py"), str(photo)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


def test_images_without_labels_are_judged_by_agreement(tmp_path, cache, small):
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(90):
        pixels = np.clip(rng.integers(0, 256, 3) + rng.normal(0, 30, (16, 16, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
    result, _ = compress(
        small,
        tmp_path / "out",
        cache,
        data=f"images:{tmp_path}",
        max_drop=40.0,
        preprocess={"mean": [0.5], "std": [0.25]},
        routes=("onnxruntime",),
        runtimes=("onnxruntime",),
    )
    table = result.table
    assert table.primary == "agreement"
    shipped = next(r for r in table.rows if r.shipped)
    assert shipped.mark == "agreement only"
    reference = next(r for r in table.rows if r.status == "reference")
    assert reference.metrics["agreement"].value == 1.0
    assert shipped.drop_points.value == pytest.approx(
        100 * (1 - shipped.metrics["agreement"].value)
    )


TASK = """
import numpy as np

class Task:
    primary, lower_is_better, points_per_unit = "distance", True, 1
    def samples(self, split):
        rng = np.random.default_rng({"train": 0, "validation": 1, "test": 2}[split])
        for _ in range(40):
            x = (rng.standard_normal((3, 16, 16)) + 2 * rng.standard_normal((3, 1, 1)))
            yield {"x": x.astype(np.float32)}, float(x.mean())
    def score(self, outputs, targets):
        return {"distance": float(np.mean([np.abs(o["y"]).mean() for o in outputs]))}
"""


def test_any_task_with_its_own_metric(tmp_path, cache, small):
    (tmp_path / "task.py").write_text(TASK)
    result, _ = compress(
        small,
        tmp_path / "out",
        cache,
        task=f"{tmp_path / 'task.py'}:Task",
        max_drop=1.0,
        routes=("onnxruntime",),
        runtimes=("onnxruntime",),
    )
    table = result.table
    assert (table.primary, table.lower_is_better, table.points_per_unit) == ("distance", True, 1)
    shipped = next(r for r in table.rows if r.shipped)
    assert "bootstrap" in shipped.change_points.method and shipped.flips is None
    reference = next(r for r in table.rows if r.status == "reference")
    difference = shipped.metrics["distance"].value - reference.metrics["distance"].value
    assert shipped.drop_points.value == pytest.approx(difference)


NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3),
            nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10),
        )
    def forward(self, image):
        return self.body(image)

def build():
    return Net()
"""


def test_a_torch_network_is_exported_verified_and_compressed(tmp_path, cache, small):
    (tmp_path / "net.py").write_text(NET)
    result, lines = compress(
        small,
        tmp_path / "out",
        cache,
        model=f"{tmp_path / 'net.py'}:build",
        data="digits",
        max_drop=50.0,
        routes=("nncf",),
        runtimes=("openvino",),
    )
    assert "verifying the ONNX export against the torch module" in lines
    reference = next(r for r in result.table.rows if r.status == "reference")
    assert (reference.id, reference.runtime) == ("torch-fp32", "torch")
    graph = onnx.load(tmp_path / "out/model.onnx")
    assert [i.name for i in graph.graph.input] == ["image"]
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.model["user_code"] is None and manifest.model["code_sha256"]


def test_two_inputs_need_a_task(tmp_path, cache, small, save_graph):
    node = onnx.helper.make_node("Add", ["a", "b"], ["y"], name="add")
    path = save_graph(
        tmp_path / "two.onnx", [node], [("a", ["n", 4]), ("b", ["n", 4])], [("y", ["n", 4])]
    )
    with pytest.raises(DataError, match="networks of one input; this one has a, b; write a --task"):
        compress(small, tmp_path / "out", cache, model=str(path))


def test_a_network_nothing_can_quantize_is_told(tmp_path, cache, small, save_graph):
    nodes = [onnx.helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=0)]
    path = save_graph(
        tmp_path / "n.onnx",
        nodes,
        [("x", ["n", 3, 16, 16])],
        [("y", ["n", 3])],
        [("axes", np.array([2, 3]))],
    )
    arrays = np.load(small["data"].removeprefix("npz:"))
    y = arrays["x"].mean((2, 3)).argmax(1)
    np.savez(tmp_path / "d.npz", x=arrays["x"], y=y)
    with pytest.raises(EdgemlError, match=r"inserted no quantizer|no engine that may ship"):
        compress(
            small,
            tmp_path / "out",
            cache,
            model=str(path),
            data=f"npz:{tmp_path / 'd.npz'}",
            runtimes=("onnxruntime",),
            routes=("onnxruntime",),
        )
    assert not (tmp_path / "out").exists()


def test_the_search_is_bounded_by_time(small, tmp_path, cache):
    with pytest.raises(EdgemlError, match="were used up"):
        compress(small, tmp_path / "out", cache, time_s=1e-6)


def test_a_short_time_shortens_the_timing_too(tmp_path, cache):
    with WorkDirectory(tmp_path / "out", "r") as work:
        assert Stages(cache, work, print, None).seconds_each(2.0, 10) == 2.0
        assert Stages(cache, work, print, 1000.0).seconds_each(2.0, 10) == 2.0
        assert 0.9 < Stages(cache, work, print, 20.0).seconds_each(2.0, 10) <= 1.0
        assert Stages(cache, work, print, 1e-6).seconds_each(2.0, 10) == 0.1


def test_an_output_that_exists_is_never_touched(small, tmp_path, cache):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists; remove it or choose another"):
        compress(small, tmp_path / "out", cache)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert not (tmp_path / "out.part").exists()


def test_a_failed_export_parity_stops_the_run(small, tmp_path, cache):
    """A module whose second call differs from its first: the export cannot equal it."""
    (tmp_path / "net.py").write_text(
        NET.replace("return self.body(image)", "return self.body(image) + self.extra(image)")
        + "\nimport itertools\ncount = itertools.count()\n"
        "Net.extra = lambda self, image: 0.0 if torch.compiler.is_exporting() else 5.0\n"
    )
    with pytest.raises(EdgemlError, match="does not compute what the torch module does"):
        compress(
            small,
            tmp_path / "out",
            cache,
            model=f"{tmp_path / 'net.py'}:build",
            data="digits",
            runtimes=("openvino",),
        )
    assert not (tmp_path / "out").exists()


def test_library_errors_are_not_swallowed(small, tmp_path, fresh_cache, monkeypatch):
    from edgeml.compress import quantize_nncf

    def broken(self, *_):
        raise RuntimeError("a library's own trouble\nwith a second line")

    monkeypatch.setattr(quantize_nncf.QuantizeNncf, "__call__", broken)
    result, _ = compress(small, tmp_path / "out", fresh_cache, runtimes=("openvino",))
    failed = [r for r in result.table.rows if r.status == "failed" and r.route]
    assert {r.route for r in failed} == {"nncf performance", "nncf mixed"}
    assert all("a library's own trouble" in r.reason for r in failed)
    assert isinstance(BuildError("x"), EdgemlError) and result.bundle == Path(tmp_path / "out")
