"""One pass, every engine on every sample, all paired; a broken engine does not stop the others."""

from __future__ import annotations

import doctest
import math
from importlib import import_module

import numpy as np
import pytest
from edgeml.artifact.result_row import EngineRow
from edgeml.artifact.tensor_spec import TensorSpec, check_inputs
from edgeml.errors import DataError, EdgemlError, InputError, ModelError, TaskError
from edgeml.runtime.engine import Engine, EngineOptions
from edgeml.train.evaluate import evaluate, near_chance, score_rows

CLASSES = 4


class LinearEngine(Engine):
    """An engine in numpy: logits = x · weights, of any batch."""

    runtime, version, options = "numpy", "0", EngineOptions()

    def __init__(self, weights: np.ndarray, batch: int | None = 1) -> None:
        self.weights, self.batches = weights.astype(np.float32), []
        self.input_specs = [TensorSpec("x", (batch, CLASSES), "float32")]
        self.output_specs = [TensorSpec("logits", (batch, CLASSES), "float32")]

    def run(self, inputs):
        check_inputs(inputs, self.input_specs)
        self.batches.append(len(inputs["x"]))
        return {"logits": inputs["x"] @ self.weights}

    def profile(self, inputs):
        return []


class BreakingEngine(LinearEngine):
    """Works until sample `at`."""

    def __init__(self, at: int, with_nan: bool = False) -> None:
        super().__init__(np.eye(CLASSES))
        self.at, self.with_nan = at, with_nan

    def run(self, inputs):
        outputs = super().run(inputs)
        if len(self.batches) > self.at:
            if self.with_nan:
                return {"logits": outputs["logits"] * np.float32("nan")}
            raise RuntimeError("kernel fault\nsecond line")
        return outputs


class Digits:
    """One-hot inputs with a little noise; the target is the hot one."""

    primary, lower_is_better = "accuracy", False
    classes = ("ant", "bee", "cat", "dog")

    def __init__(self, n: int = 40, noise: float = 0.0) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(n) % CLASSES
        self.x = np.eye(CLASSES, dtype=np.float32)[self.labels]
        self.x += noise * rng.standard_normal(self.x.shape).astype(np.float32)
        self.made = 0

    def samples(self, split):
        if split == "validation":
            for x, label in zip(self.x, self.labels, strict=True):
                self.made += 1
                yield {"x": x}, int(label)

    def score(self, outputs, targets):
        right = [self.per_sample(o, t) for o, t in zip(outputs, targets, strict=True)]
        return {"accuracy": float(np.mean(right))}

    def per_sample(self, output, target):
        return float(output["logits"].argmax() == target)

    def answer(self, output):
        return int(output["logits"].argmax())


class OnlyScore:
    """A task with nothing but the contract: an error over the whole set."""

    primary, lower_is_better, points_per_unit = "rmse", True, 1.0

    def samples(self, split):
        for i in range(30):
            yield {"x": np.full(CLASSES, i, np.float32)}, float(i)

    def score(self, outputs, targets):
        errors = [o["logits"][0] - t for o, t in zip(outputs, targets, strict=True)]
        return {"rmse": float(np.sqrt(np.mean(np.square(errors)))), "bias": float(np.mean(errors))}


IDENTITY = np.eye(CLASSES)
# Class 3 is taken for class 0.
CONFUSED = np.eye(CLASSES) + np.array([[0] * 4] * 3 + [[2, 0, 0, 0]])


def test_docstring_examples():
    assert doctest.testmod(import_module("edgeml.train.evaluate")).failed == 0


# ── one pass ─────────────────────────────────────────────────────────────────────────────────────


def test_each_sample_is_made_once_for_all_engines():
    task = Digits(10)
    found = evaluate({"a": LinearEngine(IDENTITY), "b": LinearEngine(CONFUSED)}, task, "validation")
    assert task.made == found.n == 10
    assert len(found.outputs["a"]) == len(found.outputs["b"]) == 10
    assert found.outputs["a"][0]["logits"].shape == (CLASSES,)


@pytest.mark.parametrize(
    ("engine_batch", "ran"), [(1, [1] * 10), (4, [4, 4, 4]), (None, [3, 3, 3, 1])]
)
def test_engines_take_their_own_batch_and_the_last_one_is_padded(engine_batch, ran):
    engine, task = LinearEngine(CONFUSED, engine_batch), Digits(10)
    found = evaluate({"a": engine}, task, "validation", batch=3)
    assert engine.batches == ran
    alone = evaluate({"a": LinearEngine(CONFUSED)}, task, "validation")
    for one, other in zip(found.outputs["a"], alone.outputs["a"], strict=True):
        np.testing.assert_array_equal(one["logits"], other["logits"])


def test_outputs_are_copies_that_no_engine_can_change_afterwards():
    buffer = np.zeros((1, CLASSES), np.float32)

    class Reusing(LinearEngine):
        def run(self, inputs):
            buffer[:] = inputs["x"]
            return {"logits": buffer}

    found = evaluate({"a": Reusing(IDENTITY)}, Digits(3), "validation")
    assert [int(o["logits"].argmax()) for o in found.outputs["a"]] == [0, 1, 2]


class Named(Digits):
    """Keeps the name of the class in place of its scores."""

    def decode(self, output):
        return self.classes[output["logits"].argmax()]

    def per_sample(self, name, target):
        return float(name == self.classes[target])

    def answer(self, name):
        return name


@pytest.mark.parametrize("batch", [1, 3])
def test_what_a_task_decodes_stands_in_place_of_the_outputs(batch):
    engines = {"ref": LinearEngine(IDENTITY, batch), "int8": LinearEngine(CONFUSED, batch)}
    found = evaluate(engines, Named(8), "validation")
    assert found.outputs["ref"] == [*Named.classes, *Named.classes]
    rows = score_rows(found, Named(8), "ref")
    plain = score_rows(evaluate(engines, Digits(8), "validation"), Digits(8), "ref")
    assert rows["int8"] == plain["int8"] and rows["int8"].flips.value == 0.25


def test_a_decode_that_raises_is_the_tasks_fault():
    task = Named(8)
    task.classes = ()
    with pytest.raises(TaskError, match="the task's decode raises IndexError"):
        evaluate({"ref": LinearEngine(IDENTITY)}, task, "validation", reference_id="ref")


def test_a_limit_stops_early_and_progress_counts():
    seen, task, engines = [], Digits(10), {"a": LinearEngine(IDENTITY)}
    found = evaluate(engines, task, "validation", limit=3, progress=seen.append)
    assert found.n == task.made == 3
    assert seen == [1, 2, 3]


def test_the_hash_of_a_split_knows_inputs_targets_and_their_order():
    def hash_of(task):
        return evaluate({"a": LinearEngine(IDENTITY)}, task, "validation").split_hash

    other_input, other_target = Digits(8), Digits(8)
    other_input.x[5, 0] += 1e-6
    other_target.labels = other_target.labels[::-1]
    assert hash_of(Digits(8)) == hash_of(Digits(8))
    assert len({hash_of(Digits(8)), hash_of(other_input), hash_of(other_target)}) == 3


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────


def test_an_engine_that_raises_is_recorded_and_the_others_go_on():
    engines = {"good": LinearEngine(IDENTITY), "bad": BreakingEngine(at=3)}
    found = evaluate(engines, Digits(10), "validation")
    assert found.failed == {"bad": "RuntimeError: kernel fault"}
    assert list(found.outputs) == ["good"]
    assert list(score_rows(found, Digits(10), "good")) == ["good"]
    with pytest.raises(EdgemlError, match="bad was not scored"):
        found.metrics("bad")


def test_nan_outputs_fail_an_engine_and_name_the_sample():
    engines = {"good": LinearEngine(IDENTITY), "bad": BreakingEngine(at=3, with_nan=True)}
    found = evaluate(engines, Digits(10), "validation")
    assert found.failed == {"bad": "outputs NaN at sample 3 (output 'logits')"}


def test_outputs_without_a_batch_axis_fail_an_engine():
    class Flat(LinearEngine):
        def run(self, inputs):
            return {"logits": super().run(inputs)["logits"].reshape(-1)}

    engines = {"good": LinearEngine(IDENTITY), "flat": Flat(IDENTITY)}
    found = evaluate(engines, Digits(4), "validation")
    assert found.failed["flat"] == "output 'logits' is 4, without batch axis 1"


def test_the_references_failure_is_raised_as_bad_input_when_it_gives_nan():
    engines = {"ref": BreakingEngine(at=0, with_nan=True), "other": LinearEngine(IDENTITY)}
    with pytest.raises(ModelError, match="the reference ref cannot be scored: outputs NaN"):
        evaluate(engines, Digits(4), "validation", reference_id="ref")
    found = evaluate(engines, Digits(4), "validation")
    with pytest.raises(ModelError, match="the reference ref cannot be scored"):
        score_rows(found, Digits(4), "ref")


def test_samples_that_no_engine_takes_are_bad_input():
    class Wide(Digits):
        def samples(self, split):
            yield {"x": np.zeros(7, np.float32)}, 0

    with pytest.raises(InputError, match="no engine can be scored; a: input 'x' has shape 1×7"):
        evaluate({"a": LinearEngine(IDENTITY)}, Wide(), "validation")


def test_samples_of_different_shapes_do_not_stack():
    class Ragged(Digits):
        def samples(self, split):
            for n in (3, 4, 5):
                yield {"x": np.zeros(n, np.float32)}, 0

    with pytest.raises(DataError, match="use --batch 1"):
        evaluate({"a": LinearEngine(IDENTITY, None)}, Ragged(), "validation", batch=2)


def test_a_split_without_samples_is_told():
    with pytest.raises(DataError, match="yields no test samples"):
        evaluate({"a": LinearEngine(IDENTITY)}, Digits(), "test")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (lambda: iter([np.zeros(3)]), "not .inputs, target."),
        (lambda: iter([({"x": [1, 2]}, 0)]), "not numpy arrays by name"),
        (lambda: iter([(np.zeros(4), 0)]), "not numpy arrays by name"),
        (lambda: (1 / 0 for _ in range(2)), "fails at sample 0: ZeroDivisionError"),
    ],
)
def test_samples_that_break_the_contract_are_the_tasks_fault(samples, message):
    task = Digits()
    task.samples = lambda split: samples()
    with pytest.raises(TaskError, match=message):
        evaluate({"a": LinearEngine(IDENTITY)}, task, "validation")


def test_bad_data_is_raised_as_it_is():
    def samples(split):
        yield {"x": np.zeros(CLASSES, np.float32)}, 0
        raise DataError("photo.jpg is truncated")

    task = Digits()
    task.samples = samples
    with pytest.raises(DataError, match=r"photo.jpg is truncated"):
        evaluate({"a": LinearEngine(IDENTITY)}, task, "validation")


# ── scores ───────────────────────────────────────────────────────────────────────────────────────


def scored_rows(task, **engines):
    found = evaluate(engines, task, "validation")
    return found, score_rows(found, task, "ref")


def test_rows_hold_metrics_change_drop_and_flips():
    task = Digits(400)
    _, rows = scored_rows(task, ref=LinearEngine(IDENTITY), worse=LinearEngine(CONFUSED))
    assert rows["ref"].metrics["accuracy"].value == 1.0
    assert rows["ref"].change_points is None and rows["ref"].flips is None
    worse = rows["worse"]
    assert worse.metrics["accuracy"].value == 0.75
    assert worse.metrics["accuracy"].low < 0.75 < worse.metrics["accuracy"].high
    assert worse.metrics["accuracy"].method == "wilson"
    assert worse.change_points.value == pytest.approx(-25)
    assert worse.drop_points.value == pytest.approx(25)
    assert worse.flips.value == 0.25 and worse.flips.low < 0.25 < worse.flips.high


def test_equal_engines_have_zero_flips_and_no_zero_interval():
    _, rows = scored_rows(Digits(100), ref=LinearEngine(IDENTITY), same=LinearEngine(IDENTITY))
    same = rows["same"]
    assert same.flips.value == same.change_points.value == 0
    assert same.flips.high > 0.03
    assert same.change_points.low < 0 < same.change_points.high


def test_scores_fit_an_engine_row():
    _, rows = scored_rows(Digits(20), ref=LinearEngine(IDENTITY), a=LinearEngine(CONFUSED))
    fields = rows["a"].model_dump(mode="json")
    row = EngineRow.model_validate({"id": "a", "runtime": "-", "precision": "int8", **fields})
    assert row.drop_points == rows["a"].drop_points


def test_a_task_of_score_alone_is_resampled_and_lower_can_be_better():
    _, rows = scored_rows(
        OnlyScore(), ref=LinearEngine(IDENTITY * 1.1), better=LinearEngine(IDENTITY * 1.05)
    )
    better = rows["better"]
    assert better.change_points.value > 0 > better.drop_points.value
    assert better.change_points.low > 0  # paired: the same samples are hard for both
    assert "paired bootstrap" in better.change_points.method
    assert better.metrics["rmse"].unit == "metric" and better.metrics["rmse"].low is not None
    assert better.metrics["bias"].low is None
    assert better.flips is None


def test_per_sample_floats_get_a_closed_form_interval():
    class Squared(OnlyScore):
        primary = "mse"

        def per_sample(self, output, target):
            return float((output["logits"][0] - target) ** 2)

        def score(self, outputs, targets):
            errors = [self.per_sample(o, t) for o, t in zip(outputs, targets, strict=True)]
            return {"mse": float(np.mean(errors))}

    _, rows = scored_rows(
        Squared(), ref=LinearEngine(IDENTITY * 1.1), worse=LinearEngine(IDENTITY * 1.2)
    )
    change = rows["worse"].change_points
    assert change.method == "paired t, skewness-corrected"
    assert change.low < change.value < change.high < 0


def test_a_per_sample_that_is_not_the_metric_is_told_and_not_used():
    class Odd(Digits):
        def per_sample(self, output, target):
            return 0.0

        def score(self, outputs, targets):
            return {"accuracy": 0.5}

    _, rows = scored_rows(Odd(20), ref=LinearEngine(IDENTITY), a=LinearEngine(CONFUSED))
    assert "is not the metric" in rows["a"].drop_points.note


def test_an_answer_that_raises_is_the_tasks_fault():
    task = Digits(8)
    task.answer = lambda output: output["nothing"]
    with pytest.raises(TaskError, match="answer fails: KeyError"):
        scored_rows(task, ref=LinearEngine(IDENTITY), a=LinearEngine(CONFUSED))


def test_the_change_by_class_shows_the_one_that_suffers():
    task = Digits(80)
    found, _ = scored_rows(task, ref=LinearEngine(IDENTITY), a=LinearEngine(CONFUSED))
    worst, *others = found.by_class(task, "ref", "a")
    assert worst["class"] == "dog" and worst["n"] == 20 and worst["significant"]
    assert worst["change_points"]["value"] == pytest.approx(-100)
    assert len(others) == 3
    assert all(o["change_points"]["value"] == 0 and not o["significant"] for o in others)


def test_tasks_without_classes_have_no_change_by_class():
    found, _ = scored_rows(OnlyScore(), ref=LinearEngine(IDENTITY), a=LinearEngine(CONFUSED))
    assert found.by_class(OnlyScore(), "ref", "a") == []


# ── chance level ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("metric", "classes", "n", "near"),
    [
        (0.001, 1000, 1300, True),  # a wrong preprocessing
        (0.03, 1000, 5000, True),  # above chance by any test, and still useless
        (0.70, 1000, 650, False),
        (0.55, 2, 50, True),
        (0.95, 2, 50, False),
        (0.0, 10, 100, True),  # below chance: classes in another order
        (0.5, 1, 100, False),  # nothing to guess among
        (math.nextafter(1.0, 2.0), 10, 10, False),
    ],
)
def test_near_chance(metric, classes, n, near):
    assert near_chance(metric, classes, n) is near
