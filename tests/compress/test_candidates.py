"""Which engines are tried, from words to candidates; and `--plan`, which only tells."""

from __future__ import annotations

import pytest
from edgeml.artifact.recipe import QuantizeStep, build_recipe
from edgeml.compress.candidates import (
    float_candidates,
    int8_candidates,
    quantization_steps,
    require_candidates,
)
from edgeml.compress.plan import plan_lines
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.errors import InputError
from edgeml.runtime.openvino_engine import executable_precisions


def made(**flags):
    return build_recipe(recipe_values({}, {"model": "m.onnx", "data": "digits", **flags}))


def test_by_default_two_presets_of_nncf_and_minmax_of_onnxruntime():
    steps, lacking = quantization_steps(QuantizeStep())
    assert [s.route for s in steps] == ["nncf performance", "nncf mixed", "onnxruntime minmax"]
    assert lacking == []


def test_each_quantized_model_runs_in_every_runtime_that_takes_it():
    recipe = made()
    steps, _ = quantization_steps(recipe.steps[0])
    ids = [c.id for c in int8_candidates(recipe, steps)]
    floats = executable_precisions()
    expected = ["openvino-int8-nncf-performance", "openvino-int8-onnxruntime-minmax"]
    if "bf16" in floats:
        expected += [f"{name}-bf16" for name in expected]
    assert {*expected, "onnxruntime-int8-onnxruntime-minmax"} <= set(ids)
    assert not any(i.startswith("onnxruntime-int8-nncf") for i in ids)
    assert len(set(ids)) == len(ids)


def test_float_engines_are_measured_too_so_that_int8_is_seen_to_pay():
    ids = {c.id for c in float_candidates(made(precisions=("int8",)))}
    assert {"openvino-fp32", "onnxruntime-fp32"} <= ids
    assert ("openvino-bf16" in ids) == ("bf16" in executable_precisions())


def test_second_round_adds_the_slow_methods_only_to_auto():
    steps, _ = quantization_steps(QuantizeStep(), second_round=True)
    assert [s.route for s in steps] == ["onnxruntime percentile", "onnxruntime entropy"]
    assert quantization_steps(QuantizeStep(calibration_method="minmax"), second_round=True)[0] == []


def test_flags_win_over_a_recipe_and_keep_the_rest():
    base = made(max_drop=2.0, nodes_to_exclude=("a",)).model_dump(mode="json")
    values = recipe_values(base, {"max_drop": 0.5, "calibration_samples": 7, "runtimes": ()})
    recipe = build_recipe(values)
    assert recipe.max_drop_points == 0.5
    assert recipe.steps[0].calibration_samples == 7
    assert recipe.steps[0].nodes_to_exclude == ("a",)


def test_without_int8_there_is_no_quantization_step():
    assert made(precisions=("bf16",)).steps == ()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model": None}, "no model: give"),
        ({"data": None}, "no data: --data SOURCE or --task"),
        ({"task": "t.py:T"}, "--data and --task both give samples"),
        ({"allow_random_calibration": True}, "is for runs without data"),
        ({"runtimes": ("openvno",)}, "unknown runtime 'openvno', did you mean openvino"),
        ({"precisions": ("int9",)}, "unknown precision 'int9', did you mean int8"),
        ({"target": "gpu"}, "unknown target 'gpu'"),
        ({"routes": ("ncf",)}, "unknown route 'ncf', did you mean nncf"),
        ({"calibration_method": "minmx"}, "did you mean minmax"),
        ({"max_drop": -1.0}, "--max-drop -1.0 is no budget"),
    ],
)
def test_wrong_words_are_refused_with_the_nearest(flags, said):
    with pytest.raises(InputError, match=said):
        made(**flags)


def test_the_plan_names_every_stage_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("raise SystemExit('the plan ran the code')")
    (tmp_path / "c").mkdir()
    lines = plan_lines(made(model="net.py:build", calibration_data="images:c", max_drop=0.5))
    text = "\n".join(lines)
    assert (
        "torch → ONNX" in text
        and "quantize    nncf performance, 300 calibration samples of images:c" in text
    )
    assert "engine      openvino int8 (nncf mixed, fp32)" in text
    assert "≤ 0.5 points (proven, else plausible)" in text
    assert lines[-1] == "MISSING     nothing"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "net.py"]


def test_the_plan_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = plan_lines(made(model="no.onnx", data="npz:no.npz", calibration_data="images:c"))
    assert [line for line in lines if line.startswith("MISSING")] == [
        "MISSING     model: no file at no.onnx",
        "MISSING     data: nothing at no.npz",
        "MISSING     calibration data: nothing at c",
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"runtimes": ("onnxruntime",), "precisions": ("bf16",)}, "onnxruntime here has none in"),
        (
            {"runtimes": ("onnxruntime",), "routes": ("nncf",), "precisions": ("int8",)},
            "nncf mixed makes engines of openvino",
        ),
        (
            {"routes": ("nncf",), "calibration_method": "entropy", "precisions": ("int8",)},
            "NNCF's OpenVINO route has no entropy calibration",
        ),
    ],
)
def test_a_recipe_of_which_nothing_can_ship_is_refused_before_any_work(flags, said):
    with pytest.raises(InputError, match=said):
        require_candidates(made(**flags))
    assert any(said in line for line in plan_lines(made(**flags)) if line.startswith("MISSING"))
