"""A bundle from elsewhere runs no code on its own word, whatever names it."""

from __future__ import annotations

import pytest
from edgeml.errors import BundleError, InputError
from edgeml.train.data_source import runs_code
from edgeml.train.raw_images import raw_images
from edgeml.train.trained_bundle import run_defaults


@pytest.fixture
def code(tmp_path):
    """A file that leaves a trace when it runs, as a data source."""
    (tmp_path / "data.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(): return []\n")
    return f"{tmp_path / 'data.py'}:f"


def test_end_to_end_does_not_open_a_bundles_code_for_images(make_bundle, tmp_path, code):
    bundle = make_bundle(tmp_path / "bundle", data={"source": f"cut:60-20-20:{code}"})
    with pytest.raises(InputError, match="names code for its images"):
        raw_images(None, bundle)
    assert not (tmp_path / "ran").exists()


def test_the_data_of_a_training_is_code_only_where_its_maker_is_trusted(
    make_bundle, tmp_path, code
):
    model = {"kind": "torch", "user_code": None, "trained": {"zoo": "cnn"}}
    bundle = str(make_bundle(tmp_path / "run", data={"source": code}, model=model))
    with pytest.raises(BundleError, match="--trust-code runs it"):
        run_defaults(bundle)
    assert run_defaults(bundle, trust_code=True)["data"] == code


def test_only_python_files_are_code():
    assert runs_code("net.py:f") and runs_code("tokens:t.json:net.py:f")
    assert not runs_code("digits") and not runs_code("imagefolder:photos.py")
