"""The device's check becomes a verdict on the host, by the same table of tolerances as here."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.deploy.package import Candidate
from edgeml.deploy.predictions import check_predictions
from edgeml.deploy.results import add_check, new_row
from edgeml.errors import DeviceError
from edgeml.runtime.device.check import Sums
from edgeml.runtime.device.score import score_engine
from edgeml.runtime.device.tensor_file import from_array
from safetensors.numpy import load_file, save_file


def judged(precision: str, outputs: dict[str, tuple[np.ndarray, np.ndarray]]):
    """A row after the check of (expected, got) by output."""
    rows = []
    for name, (want, got) in outputs.items():
        sums = Sums()
        sums.add(from_array(want), from_array(got))
        rows.append({"name": name, **sums.row()})
    candidate = Candidate("e", "tensorrt", precision, "fp16", "m.onnx", ("m.onnx",), "m.onnx")
    row = new_row(candidate, 1)
    add_check(row, {"status": "checked", "n": 32, "outputs": rows})
    return row


@pytest.mark.parametrize(
    ("precision", "wrong", "check"),
    [
        ("fp16", 0, "passed"),
        ("fp16", 1, "passed"),
        ("fp16", 4, "failed"),
        ("bf16", 3, "passed"),
        ("bf16", 4, "failed"),
        ("int8", 8, "passed"),
        ("int8", 9, "far"),
    ],
)
def test_an_argmax_in_the_engine_is_judged_by_the_share_that_is_equal(precision, wrong, check):
    want = np.arange(32) % 10
    got = want.copy()
    got[:wrong] = (got[:wrong] + 1) % 10
    # The float output beside it is fine: it must not hide the other.
    logits = np.random.default_rng(0).random((32, 10), np.float32)
    row = judged(precision, {"y": (logits, logits), "class": (want, got)})
    assert row.check == check
    assert (row.engine.status == "failed") == (check == "failed")
    told = str(row.engine.reason) + "".join(row.engine.warnings)
    if check != "passed":
        assert f"output class: {1 - wrong / 32:.1%} equal" in told


def test_a_float_output_is_judged_in_decibels():
    want = np.random.default_rng(0).random((4, 10), np.float32)
    row = judged("fp16", {"y": (want, want * np.float32(1.1))})
    assert row.check == "failed"
    assert "output y: 20 dB to ONNX Runtime on its own ONNX; fp16 wants 30 dB" in row.engine.reason


@pytest.fixture
def predicted(tmp_path):
    """Three samples, and what the device's own code makes of them with an engine that doubles."""
    samples = {f"{i:03}.input.x": np.full((1, 2), i, np.float32) for i in range(3)}
    save_file(samples, tmp_path / "sent")

    class Doubles:
        def run(self, feed):
            return {"y": from_array(np.frombuffer(feed["x"].data, np.float32)[None] * 2)}

    def send(digest, content):
        (tmp_path / "came").write_bytes(content)

    score_engine(Doubles(), {"hash": str(tmp_path / "sent")}, send)
    return tmp_path / "sent", tmp_path / "came"


def test_predictions_of_the_samples_that_were_sent_are_taken(predicted):
    check_predictions(*predicted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("002.output.y"), "of 1 no prediction came"),
        (lambda t: t.update({"003.output.y": t["002.output.y"]}), "1 that came are of none"),
        (
            lambda t: t.update({"000.sample.sha256": t["001.sample.sha256"]}),
            "prediction 000 is not of the sample",
        ),
        (lambda t: t.pop("001.sample.sha256"), "prediction 001 is not of the sample"),
        (lambda t: t.update({"001.output.y": t["001.output.y"][0]}), "prediction 001 has outputs"),
    ],
)
def test_predictions_of_other_samples_are_refused(predicted, change, message):
    sent, came = predicted
    tensors = load_file(came)
    change(tensors)
    save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, came)
    with pytest.raises(DeviceError, match=message):
        check_predictions(sent, came)
