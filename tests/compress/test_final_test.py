"""What the last line says where test says less than validation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from edgeml.artifact.result_row import EngineRow
from edgeml.compress.budget import Budget, Choice
from edgeml.compress.final_test import on_test
from edgeml.compress.search import unprovable


def clause(verdict, chosen="proven", exit_code=0, limit=1.0):
    row = EngineRow(id="a", runtime="openvino", precision="int8", verdict=chosen)
    final = {"verdict": verdict, "n": 1300, "drop_points": {"value": 1.204, "high": 1.506}}
    return on_test(final, Choice(row, "", exit_code), Budget(limit))


def test_what_holds_on_test_adds_nothing():
    assert clause("proven") == clause("plausible", chosen="plausible") == ""
    assert clause("missed", exit_code=3) == clause(None, limit=None) == ""
    assert on_test(None, Choice(None, ""), Budget(1.0)) == ""


def test_a_proof_that_test_does_not_repeat_is_told():
    assert clause("plausible") == "; NOT PROVEN on test (n = 1,300), drop at most 1.51 points"
    told = "; MISSED on test: drop 1.20 points (n = 1,300), the budget is 1.0"
    assert clause("missed") == told


@pytest.mark.parametrize("answers", [True, False])
def test_only_right_or_wrong_answers_are_known_to_be_too_few(answers):
    task = SimpleNamespace(indices=lambda split: np.arange(100))
    if answers:
        task.answer = lambda output: 0
    told = unprovable(SimpleNamespace(opened=SimpleNamespace(task=task)), Budget(0.5))
    assert (told is not None) == answers
