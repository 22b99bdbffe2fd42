"""Why INT8 loses is told by its name where a cure gained, or where what went back is known for it."""

from __future__ import annotations

import pytest
from edgeml.artifact.result_row import EngineRow, Measurement
from edgeml.compress.accuracy_cause import cause_of_layers, tell_outliers
from edgeml.compress.budget import Budget
from edgeml.compress.build_engines import Trial
from edgeml.compress.candidates import Candidate
from edgeml.compress.search import network_misses
from edgeml.compress.sensitivity import LayerLoss


def layers(*what: str) -> list[LayerLoss]:
    return [LayerLoss(f"n{i}", w, 3.0, 1.0, False) for i, w in enumerate(what)]


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        (["Conv, first layer"], "the first layer"),
        (["MatMul, last layer", "Softmax"], "the last layer, Softmax"),
        (["Pow", "Pow", "Add"], "LayerNorm's squares (Pow), residual sums (Add)"),
        (["Pow", "Conv"], None),
        (["Conv"], None),
        ([], None),
    ],
)
def test_known_layers_are_a_cause_and_others_are_none(what, cause):
    assert cause_of_layers(layers(*what)) == cause


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


def engine(route: str, drop: float, *, half: float = 1.0, execution: str = "fp32") -> Trial:
    points = Measurement(value=drop, low=drop - half, high=drop + half, n=500, unit="points")
    row = EngineRow(
        id=route.replace(" ", "-"),
        runtime="openvino",
        precision="int8",
        route=route,
        drop_points=points,
    )
    return Trial(row, Candidate("openvino", "int8", execution), engine=object())


def test_the_best_method_that_left_its_twins_interval_is_told():
    base, other = engine("onnxruntime minmax", 9.0), engine("tensorrt-form minmax", 30.0)
    slow = [
        engine("onnxruntime percentile", 2.0),
        engine("onnxruntime entropy", 1.5),
        engine("tensorrt-form entropy", 29.5),
    ]
    told = Lines()
    tell_outliers([base, other], slow, told)
    assert told.lines == [
        "cause: outliers in activations; by entropy, onnxruntime-minmax loses 1.5 points instead of 9.0"
    ]
    assert slow[1].row.warnings == told.lines and not slow[0].row.warnings


def test_a_gain_within_chance_or_over_another_engine_is_no_cause():
    told = Lines()
    tell_outliers([engine("onnxruntime minmax", 2.0)], [engine("onnxruntime entropy", 1.5)], told)
    bf16 = [engine("onnxruntime minmax", 9.0, execution="bf16")]
    tell_outliers(bf16, [engine("onnxruntime entropy", 1.5)], told)
    near = [engine("onnxruntime entropy", 6.5, half=2.0)]  # its own interval reaches the base's
    tell_outliers([engine("onnxruntime minmax", 9.0)], near, told)
    screened = engine("onnxruntime minmax", 9.0)
    screened.row.status = "screened"
    tell_outliers([screened], [engine("onnxruntime entropy", 1.5)], told)
    failed = engine("onnxruntime entropy", 1.5)
    failed.engine = None
    tell_outliers([engine("onnxruntime minmax", 9.0)], [failed], told)
    assert told.lines == []


def test_a_student_that_loses_in_float_is_not_mended_by_quantization():
    def floats(drop: float, **fields) -> Trial:
        trial = engine("-", drop)
        trial.row = trial.row.model_copy(update={"precision": "fp32", "route": None, **fields})
        return trial

    def misses(*trials: Trial) -> list[str]:
        told = Lines()
        found = network_misses([engine("-", 0.0), *trials], Budget(0.5), told)
        assert found == bool(told.lines)
        return told.lines

    assert misses(floats(0.9), floats(1.1), engine("nncf performance", 0.4)) == [
        "the network loses 0.9 points in float already: INT8 is not what misses the budget"
    ]
    assert not misses(floats(0.5)) and not misses(floats(0.9), floats(0.1)) and not misses()
    assert misses(floats(0.9, precision="fp16", execution="fp16"))
    assert not misses(floats(0.9, status="failed"))
    original = floats(0.9)
    original.stays = True
    assert not misses(original)
