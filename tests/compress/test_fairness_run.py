"""Groups, flips, confidences and drift of a whole run, and what refuses it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from edgeml.artifact.recipe import build_recipe
from edgeml.compress.fairness import check_groups, group_warnings, on_groups, unfair
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.errors import EdgemlError, InputError


def compress(small, out, cache, **flags):
    given = {
        "model": small["model"],
        "data": small["data"],
        "precisions": ("int8",),
        "routes": ("onnxruntime",),
        "runtimes": ("onnxruntime",),
        "max_drop": 20.0,
        "calibration_samples": 40,
        **flags,
    }
    recipe = build_recipe(recipe_values({}, given))
    return run_recipe(recipe, out, cache=cache)


def test_a_run_holds_groups_flips_confidences_and_drift(small, cache, tmp_path):
    meta = tmp_path / "meta.csv"
    meta.write_text("index,camera\n" + "\n".join(f"{i},cam{i % 3}" for i in range(900)))
    flags = {"groups": f"{meta}:camera", "max_drop_worst": 30.0, "samples": True, "drift": 4}
    result = compress(small, tmp_path / "out", cache, **flags)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    final = stored["final"]
    assert final == result.table.final
    told = final["fairness"]
    assert told["by"] == f"{meta}:camera" and told["limit_points"] == 30.0
    assert sum(row["n"] for row in told["rows"]) == final["n"] and told["unmatched"] == 0
    assert told["verdict"] == "met" and result.exit_code == 0
    flipped = final["flipped"]
    change = (len(flipped["won"]) - len(flipped["lost"])) / final["n"] * 100
    assert change == pytest.approx(final["change_points"]["value"])
    assert len(flipped["samples"]) == min(24, len(flipped["lost"]) + len(flipped["won"]))
    assert all(s["image"].startswith("data:image/png;base64,") for s in flipped["samples"])
    ece = final["confidences"]
    assert ece["outputs"] == "logits" and ece["reference"]["accuracy"] == 1.0
    assert ece["engine"]["accuracy"] == final["engine"]["metrics"]["accuracy"]["value"]
    drift = final["drift"]
    assert drift["reason"] is None and drift["samples"] == 4 and drift["features"] == 64
    # The reference and the engine, and the reference on a second runtime: 65 calls a sample each.
    assert drift["calls"] == 4 * (3 * 65 + 1)
    # A cell of noise moves this network's pooled output by less than INT8 rounds: no high correlation.
    assert drift["floor"]["value"] > 0.99 and -1 <= drift["correlation"]["value"] <= 1
    assert all(row["index"] is not None for row in drift["rows"])
    assert "onnxruntime and openvino" in drift["floor"]["note"]


def test_without_a_column_the_classes_are_the_groups(small, cache, tmp_path):
    result = compress(small, tmp_path / "out", cache, max_drop_worst=0.0, strict=False)
    told = result.table.final["fairness"]
    assert told["by"] == "class" and told["verdict"] in ("cannot tell", "violated")
    assert result.table.final["flipped"]["samples"] == []  # data may be private
    assert result.table.final["drift"] is None
    if told["verdict"] == "cannot tell":
        assert result.exit_code == 0
        assert "cannot be told of" in result.table.warnings[0]
    again = compress(small, tmp_path / "strict", cache, max_drop_worst=0.0, strict=True)
    assert again.exit_code == 3


def row(name, value, low, high, verdict, **more):
    drop = {"value": value, "unit": "points", "n": 300, "low": low, "high": high}
    return {
        "group": name,
        "n": 300,
        "drop_points": drop,
        "verdict": verdict,
        "stands_out": False,
        "needed": None,
        "reason": None,
        **more,
    }


def test_the_worst_violated_group_is_told_first_and_refuses():
    rows = [
        row("dark", 10.0, 6.5, 14.2, "violated", stands_out=True),
        row("dusk", 1.0, -1.0, 4.0, "cannot tell", needed=900),
    ]
    fairness = {"by": "meta.csv:camera", "limit_points": 2.0, "least_n": 50, "judged": 2}
    fairness |= {"unmatched": 3, "overall_points": 0.3, "verdict": "violated", "rows": rows}
    final = {"fairness": fairness}
    first, second, third = group_warnings(final)
    assert first == (
        "group dark lost 10.00 points (6.50 to 14.20, n = 300): --max-drop-worst 2.0 is VIOLATED"
    )
    assert "about 900 samples of it would tell" in second and third.startswith("3 test samples")
    assert "MISSED for a group: dark lost 10.00" in on_groups(final)
    assert unfair(final, strict=False)
    final["fairness"]["verdict"] = "cannot tell"
    assert not unfair(final, strict=False) and unfair(final, strict=True)
    # Without a limit nothing is refused, and what stands out is still told.
    rows[0]["verdict"] = rows[1]["verdict"] = final["fairness"]["verdict"] = None
    final["fairness"]["limit_points"] = None
    assert "where all samples together lost 0.30" in group_warnings(final)[0]
    assert not unfair(final, strict=True) and on_groups(final) == ""
    assert group_warnings(None) == [] and not unfair(None, strict=True)


def test_bad_input_is_said_before_any_work(small, draw, cache, tmp_path):
    meta = tmp_path / "meta.csv"
    meta.write_text("index,camera\n" + "\n".join(f"{i},a" for i in range(10)))
    for flags, said in (
        ({"groups": f"{meta}:lens"}, "has no column 'lens'"),
        ({"groups": f"{meta}:camera"}, "test samples have no row in it"),
        ({"groups": f"{tmp_path / 'none.csv'}:camera"}, "cannot be read"),
        ({"max_drop_worst": -1.0}, "--max-drop-worst -1.0 is no budget"),
    ):
        with pytest.raises(InputError, match=r"groups|max-drop-worst") as caught:
            compress(small, tmp_path / "out", cache, **flags)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    unlabelled = tmp_path / "x.npz"
    np.savez(unlabelled, x=draw(90))
    with pytest.raises(EdgemlError, match="so there are no groups"):
        compress(small, tmp_path / "out", cache, data=f"npz:{unlabelled}", max_drop_worst=1.0)


class Own:
    """A user's task: 120 test samples, right or wrong."""

    primary, lower_is_better = "accuracy", False

    def samples(self, split):
        for i in range(120):
            yield {"x": np.zeros(2, np.float32)}, i % 2

    def answer(self, output):
        return int(output["y"].argmax())


def test_a_users_task_is_counted_before_any_work(tmp_path):
    meta = tmp_path / "meta.csv"
    meta.write_text("index,site\n" + "\n".join(f"{i},a" for i in range(100)))
    recipe = build_recipe({"model": "m.onnx", "task": "t.py:Own", "groups": f"{meta}:site"})
    with pytest.raises(InputError, match=r"20 of 120 test samples have no row"):
        check_groups(recipe, Own())
    check_groups(build_recipe({"model": "m.onnx", "max_drop_worst_points": 1.0}), Own())
    with pytest.raises(InputError, match="--samples looks at test samples"):
        check_groups(build_recipe({"model": "m.onnx", "samples": True}), None)
