"""The ONNX Runtime route with a release that is too old for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgeml.artifact.recipe import QuantizeStep
from edgeml.compress import quantize_onnxruntime
from edgeml.compress.candidates import quantization_steps
from edgeml.compress.quantize_onnxruntime import QuantizeOnnxRuntime
from edgeml.errors import MissingPart


@pytest.fixture
def old_release(monkeypatch):
    """1.23.2, the last one for Python 3.10; 1.27 is the first that takes stored ranges."""
    monkeypatch.setattr(quantize_onnxruntime, "version", lambda name: "1.23.2")


def test_an_old_release_is_refused_with_what_to_do(old_release):
    with pytest.raises(MissingPart, match=r"onnxruntime 1\.23\.2 .* needs 1\.27 .* pip install -U"):
        QuantizeOnnxRuntime()


def test_beside_other_routes_it_costs_a_row(old_release):
    steps, lacking = quantization_steps(QuantizeStep())
    assert {step.route for step in steps} == {"nncf performance", "nncf mixed"}
    [(route, reason)] = lacking
    assert route == "onnxruntime" and "1.23.2" in reason


def test_asked_for_by_name_it_is_refused(old_release):
    with pytest.raises(MissingPart):
        quantization_steps(QuantizeStep(routes=("onnxruntime",)))


def test_outliers_that_entropy_would_not_end_on_are_refused(small, draw, tmp_path):
    from edgeml.compress.calibration import Calibration
    from edgeml.errors import BuildError

    x = draw(11)
    x[10] *= 500  # the bins are those of the first ten
    images = [{"x": image} for image in x]
    step = QuantizeOnnxRuntime("entropy")
    with pytest.raises(BuildError, match=r"has outliers \(its range grew \d+ × .*percentile"):
        step(Path(small["model"]), Calibration(lambda: iter(images), 11), tmp_path)
    found = QuantizeOnnxRuntime("percentile")(
        Path(small["model"]), Calibration(lambda: iter(images), 11), tmp_path
    )
    assert found.path.is_file()
