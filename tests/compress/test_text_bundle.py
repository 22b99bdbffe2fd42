"""A text classifier from CSV to an engine: the bundle keeps the tokenizer and runs without edgeml."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.recipe import build_recipe
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.train.settings import TrainSettings
from edgeml.train.tokenizer import TokenizerSettings
from edgeml.train.training_run import TrainingRequest, run_training

# Python 3.10's last ONNX Runtime is too old to quantize (compress/quantize_onnxruntime.py).
pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="its last release is old")
WORDS = {"money": ["bank", "shares", "profit"], "sport": ["match", "goal", "team"]}
# Runs a script where edgeml cannot be imported.
BARE = (
    "import sys, runpy; sys.modules['edgeml'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def write_news(path, n=300):
    random = np.random.default_rng(0)
    rows = [("text", "label")]
    for i in range(n):
        label = sorted(WORDS)[i % 2]
        others = [f"word{k}" for k in random.integers(0, 30, random.integers(2, 8))]
        words = [*random.choice(WORDS[label], 3), *others]
        rows.append((" ".join(random.permutation(words)), label))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.slow
def test_a_compressed_text_classifier_takes_a_text(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "cache"))
    write_news(tmp_path / "news.csv")
    settings = TrainSettings(epochs=4, batch=32, lr=0.02, threads=1, precision="fp32")
    request = TrainingRequest(
        model="rnn",
        options={"hidden": 16, "embedding": 16, "bidirectional": False},
        data=f"text-csv:{tmp_path / 'news.csv'}",
        tokenizer=TokenizerSettings(max_length=12),
        settings=settings,
    )
    run_training(request, tmp_path / "run", log=lambda line: None)
    flags = {
        "model": str(tmp_path / "run"),
        "precisions": ("int8",),
        "routes": ("onnxruntime dynamic",),
        "runtimes": ("onnxruntime",),
        "max_drop": 60.0,
    }
    out = tmp_path / "out"
    result = run_recipe(build_recipe(recipe_values({}, flags)), out)
    assert result.exit_code == 0
    assert open_bundle(out).manifest.shipped == "onnxruntime-int8-onnxruntime-dynamic"
    kept = (tmp_path / "run" / "tokenizer.json").read_bytes()
    assert (out / "tokenizer.json").read_bytes() == kept
    for label, words in WORDS.items():
        done = subprocess.run(
            [sys.executable, "-c", BARE, str(out / "example.py"), " ".join(words)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].split()[-1] == label
