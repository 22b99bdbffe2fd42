"""Where a frame's time goes, stage by stage."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.artifact.tensor_spec import TensorSpec
from edgeml.errors import InputError
from edgeml.runtime.end_to_end import STAGES, bench_end_to_end
from edgeml.runtime.null_engine import NullEngine


@pytest.fixture
def engine():
    return NullEngine([TensorSpec("x", (1, 2), "float32")], [TensorSpec("y", (1, 3), "float32")])


def test_every_stage_of_every_frame_is_timed(engine):
    seen = []

    def decode(data):
        seen.append(data)
        return np.frombuffer(data, np.uint8)

    found = bench_end_to_end(
        engine,
        [b"ab", b"cd"],
        decode=decode,
        preprocess=lambda image: {"x": image.astype(np.float32)[None]},
        postprocess=lambda outputs: outputs["y"].argmax(),
        duration_s=0.01,
    )
    names = [n + suffix for n in (*STAGES, "total") for suffix in ("", "_p99")]
    assert list(found) == [*names, "frames_per_s"]
    frames = found["total"].n
    assert frames >= 1 and {m.n for m in found.values()} == {frames}
    assert len(seen) == frames + 2  # the warm-up takes each image once
    assert seen[:4] == [b"ab", b"cd", b"ab", b"cd"]
    assert {found[n].unit for n in names} == {"ms"} and found["frames_per_s"].unit == "1/s"
    assert all(found[n].value <= found[f"{n}_p99"].value for n in (*STAGES, "total"))
    assert all(found["total"].value >= found[n].value for n in STAGES)
    if frames > 10:
        assert found["total"].low <= found["total"].value <= found["total"].high


def test_at_least_one_frame_is_timed(engine):
    found = bench_end_to_end(
        engine,
        [b"ab"],
        decode=lambda data: None,
        preprocess=lambda image: {"x": np.zeros((1, 2), np.float32)},
        postprocess=lambda outputs: None,
        duration_s=0,
    )
    assert found["total"].n == 1
    assert found["total"].low is None is found["total"].high  # one frame shows no spread


def test_without_images_it_says_so(engine):
    with pytest.raises(InputError, match="no image to time"):
        bench_end_to_end(engine, [], decode=None, preprocess=None, postprocess=None)
