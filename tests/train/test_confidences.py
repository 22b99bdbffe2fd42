"""Calibration of confidences: what ECE says of made predictions whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.artifact.tensor_spec import TensorSpec
from edgeml.train.confidences import BINS, confidences, reliability, softmax
from edgeml.train.evaluate import Evaluation
from edgeml.train.open_task import open_data


def test_perfect_confidences_are_within_chance_and_sharpened_ones_are_not():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 4000)
    right = rng.random(4000) < confidence
    honest = reliability(confidence, right)
    assert honest["ece"]["value"] <= honest["by_chance"] < 0.04
    assert len(honest["bins"]) == BINS and sum(b["n"] for b in honest["bins"]) == 4000
    assert max(b["n"] for b in honest["bins"]) - min(b["n"] for b in honest["bins"]) <= 1
    # Overconfident by about 10 points.
    sharp = reliability(np.minimum(confidence + 0.1, 1.0), right)
    assert sharp["ece"]["low"] > sharp["by_chance"]
    assert sharp["ece"]["low"] <= 0.095 <= sharp["ece"]["high"]
    for b in sharp["bins"]:
        assert b["low"] <= b["accuracy"] <= b["high"]


def test_equal_confidences_share_a_bin():
    told = reliability(np.ones(100), np.arange(100) < 80)
    assert [b["n"] for b in told["bins"]] == [100]
    assert told["ece"]["value"] == pytest.approx(0.2)


def classification(tmp_path, n=300):
    rng = np.random.default_rng(1)
    file = tmp_path / "d.npz"
    np.savez(file, x=rng.standard_normal((n, 4)).astype(np.float32), y=np.arange(n) % 3)
    return open_data(f"npz:{file}", TensorSpec("x", (None, 4), "float32")).task


def test_logits_and_probabilities_give_the_same(tmp_path):
    task = classification(tmp_path)
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((200, 3)) * 2
    targets = [int(t) for t in rng.integers(0, 3, 200)]

    def told(array):
        outputs = [{"y": row.astype(np.float32)} for row in array]
        evaluation = Evaluation(task, 200, targets, {"r": outputs, "e": outputs}, {}, "")
        return confidences(evaluation, task, "r", "e")

    by_logits, by_probabilities = told(logits), told(softmax(logits))
    assert by_logits["outputs"] == "logits" and by_probabilities["outputs"] == "probabilities"
    for who in ("reference", "engine"):
        assert by_logits[who]["ece"]["value"] == pytest.approx(
            by_probabilities[who]["ece"]["value"], abs=1e-6
        )


def test_other_tasks_have_no_confidences():
    class Own:
        primary, lower_is_better = "score", False

    evaluation = Evaluation(Own(), 1, [0], {"r": [{}], "e": [{}]}, {}, "")
    assert confidences(evaluation, Own(), "r", "e") is None
