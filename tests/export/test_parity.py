"""Two engines compared: tolerances by precision, NaN, names and shapes."""

import math

import numpy as np
import onnx
import pytest
from edgeml.errors import InputError
from edgeml.export.parity import TOLERANCES, RunningDifference, compare
from edgeml.runtime.engine import PRECISIONS, EngineOptions, load_file
from onnx import TensorProto, helper, numpy_helper

FEEDS = [{"x": np.random.default_rng(i).normal(size=(2, 4)).astype(np.float32)} for i in range(3)]


@pytest.fixture
def engine(tmp_path):
    """engine(op, …): ONNX Runtime on a graph of one node, x [batch, 4] → y."""

    def make(op, *constants, y="y", shape=("batch", 4), dtype=TensorProto.FLOAT, **attributes):
        weights = [numpy_helper.from_array(np.asarray(c), f"c{i}") for i, c in enumerate(constants)]
        graph = helper.make_graph(
            [helper.make_node(op, ["x", *(w.name for w in weights)], [y], **attributes)],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info(y, dtype, shape)],
            weights,
        )
        path = tmp_path / f"{op}{len(list(tmp_path.iterdir()))}.onnx"
        opset = [helper.make_opsetid("", 20)]
        onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
        return load_file(path, "onnxruntime", EngineOptions(batch=None))

    return make


def scaled(engine, factor):
    return engine("Mul", np.float32(factor))


def test_equal_engines_pass_with_infinite_signal_to_noise(engine):
    report = compare(scaled(engine, 1), engine("Identity"), FEEDS, "fp32")
    assert report.passed and report.max_abs == 0 and report.sqnr_db == math.inf
    assert (report.n, report.worst_output) == (6, "y")
    assert "parity fp32 holds" in report.line


@pytest.mark.parametrize(
    ("precision", "inside", "outside"),
    [("fp32", 1.0005, 1.002), ("fp16", 1.02, 1.05), ("bf16", 1.1, 1.3)],
)
def test_each_precision_has_its_tolerance(engine, precision, inside, outside):
    reference = scaled(engine, 1)
    assert compare(reference, scaled(engine, inside), FEEDS, precision).passed
    failed = compare(reference, scaled(engine, outside), FEEDS, precision)
    assert not failed.passed and "fails: output y" in failed.line and "\n" not in failed.line


def test_the_figures_are_what_they_say(engine):
    report = compare(scaled(engine, 1), scaled(engine, 0.9), FEEDS, "fp32")
    largest = max(np.abs(feed["x"]).max() for feed in FEEDS)
    assert report.max_abs == pytest.approx(0.1 * largest, rel=1e-5)
    assert report.max_rel == pytest.approx(0.1, rel=1e-5)
    assert report.sqnr_db == pytest.approx(20, abs=1e-4)
    assert report.cosine == pytest.approx(1)


def test_a_poor_int8_engine_is_a_warning_because_accuracy_is_scored(engine):
    report = compare(scaled(engine, 1), scaled(engine, 3), FEEDS, "int8")
    assert report.passed and "look at the accuracy" in report.warning
    assert compare(scaled(engine, 1), scaled(engine, 0.9), FEEDS, "int8").warning is None


def test_nan_and_infinity_fail_whatever_the_precision(engine):
    report = compare(scaled(engine, 1), engine("Log"), FEEDS, "int8")
    assert not report.passed and "values are NaN" in report.line
    report = compare(engine("Log"), engine("Log"), FEEDS, "fp32")
    assert not report.passed and "the reference itself gives" in report.line
    infinite = engine("Div", np.float32(0))
    assert "infinite on one side" in compare(scaled(engine, 1), infinite, FEEDS, "int8").line


def test_the_same_infinity_in_the_same_place_is_right(engine):
    mask = np.float32([0, -np.inf, 0, 0])
    report = compare(engine("Add", mask), engine("Add", mask), FEEDS, "fp32")
    assert report.passed and report.max_abs == 0


def test_other_names_and_other_shapes_fail(engine):
    report = compare(engine("Identity"), engine("Identity", y="z"), FEEDS, "fp32")
    assert not report.passed and "gives z; the reference gives y" in report.line
    turned = engine("Transpose", shape=(4, "batch"), perm=[1, 0])
    report = compare(engine("Identity"), turned, FEEDS, "fp32")
    assert not report.passed and "shape 4×2 instead of 2×4" in report.line


def test_integer_outputs_are_judged_by_the_share_that_differs():
    def differing(unequal):
        sums = RunningDifference("class")
        got = np.zeros(1000, np.int64)
        got[:unequal] = 7
        sums.add(np.zeros(1000, np.int64), got)
        return sums.difference()

    assert differing(5).differing == 0.005
    assert differing(5).within(TOLERANCES["fp32"])
    assert not differing(50).within(TOLERANCES["fp32"])
    assert differing(50).within(TOLERANCES["bf16"])


def test_a_reference_of_zeros_does_not_divide_by_zero():
    sums = RunningDifference("y")
    sums.add(np.zeros((1, 3)), np.ones((1, 3)))
    found = sums.difference()
    assert (found.max_rel, found.sqnr_db, found.cosine) == (math.inf, -math.inf, 0.0)


def test_every_precision_has_a_tolerance_with_its_origin():
    assert set(TOLERANCES) == set(PRECISIONS)
    assert all(tolerance.origin for tolerance in TOLERANCES.values())


def test_no_inputs_and_unknown_precisions_are_refused(engine):
    with pytest.raises(InputError, match="at least one input"):
        compare(engine("Identity"), engine("Identity"), [], "fp32")
    with pytest.raises(InputError, match="did you mean int8"):
        compare(engine("Identity"), engine("Identity"), FEEDS, "int9")
