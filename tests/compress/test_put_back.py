"""Which layers go back into float, and how many are tried, on rankings that were made up."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace

import pytest
from edgeml.compress import mixed_precision, sensitivity
from edgeml.compress.candidates import Candidate
from edgeml.compress.quantize_nncf import QuantizeNncf
from edgeml.compress.sensitivity import LayerLoss


@pytest.fixture
def search(monkeypatch):
    """`_put_back` over `layers` made-up ones, where the first `enough` in float keep the budget.

    Returns:
        How many were in float in each try, in order.
    """
    monkeypatch.setattr(mixed_precision, "engines_key", lambda job, trials: {})
    monkeypatch.setattr(mixed_precision, "executable_precisions", lambda runtime: ("int8",))

    def run(layers: int, enough: int) -> list[int]:
        ranked = [asdict(LayerLoss(f"n{i}", "Conv", 1.0, 1.0, False)) for i in range(layers)]
        stages = SimpleNamespace(
            values=lambda *_: ranked, log=lambda line: None, out_of_time=lambda: False, run_id="r"
        )
        candidate = Candidate("openvino", "int8", step=QuantizeNncf())
        base = SimpleNamespace(candidate=candidate, row=SimpleNamespace(id="b", runtime="openvino"))
        tries: list[int] = []

        def attempt(candidates):
            (one,) = candidates
            tries.append(one.step.nodes_to_exclude[-1].count("n"))
            row = SimpleNamespace(id="t", put_back=[], warnings=[], status="measured", reason=None)
            return [SimpleNamespace(row=row)]

        def keeps(trials):
            return len(trials[0].row.put_back) >= enough

        job = SimpleNamespace(onnx_key="k")
        mixed_precision._put_back(job, base, [], stages, attempt, keeps)
        return tries

    return run


def test_the_number_doubles_until_the_budget_is_kept_then_shrinks(search):
    assert search(20, enough=5) == [1, 2, 4, 8, 6, 5]


def test_all_layers_are_never_tried_but_what_lies_below_is(search):
    assert search(6, enough=5) == [1, 2, 4, 5]
    assert 6 not in search(6, enough=99)
    assert search(1, enough=1) == [] == search(0, enough=0)


def test_layers_without_noise_of_their_own_are_ranked_last(monkeypatch, conv_onnx):
    noise = [("conv", 3.0)]
    monkeypatch.setattr(sensitivity, "quantized_model", lambda job, step, stages: (conv_onnx, []))
    monkeypatch.setattr(sensitivity, "worst_layers_onnx", lambda *args: noise)
    job = SimpleNamespace(calibration=lambda: iter([]), onnx=conv_onnx)
    base = SimpleNamespace(candidate=SimpleNamespace(step=None))
    ranked = sensitivity.rank_layers(job, base, None, None)
    assert [(layer.node, layer.snr_db) for layer in ranked] == [("conv", 3.0), ("fc", None)]
