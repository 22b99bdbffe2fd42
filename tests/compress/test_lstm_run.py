"""`edgeml compress RUN --int8` of a trained LSTM: dynamic quantization is found and ships by itself."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.recipe import build_recipe
from edgeml.compress import search
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe
from edgeml.train.settings import TrainSettings
from edgeml.train.tokenizer import TokenizerSettings
from edgeml.train.training_run import TrainingRequest, run_training

# Python 3.10's last ONNX Runtime is too old to quantize (compress/quantize_onnxruntime.py).
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="its last release is old"),
]
DYNAMIC = "onnxruntime-int8-onnxruntime-dynamic"


def write_news(path, n=300):
    random = np.random.default_rng(0)
    words = {"money": ["bank", "shares", "profit"], "sport": ["match", "goal", "team"]}
    rows = [("text", "label")]
    for i in range(n):
        label = sorted(words)[i % 2]
        others = [f"word{k}" for k in random.integers(0, 30, random.integers(2, 30))]
        rows.append(
            (" ".join(random.permutation([*random.choice(words[label], 3), *others])), label)
        )
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def test_dynamic_int8_ships_by_itself_where_it_is_the_fastest(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(search, "BENCH_SECONDS", 2.0)  # here its speed is what is asserted
    write_news(tmp_path / "news.csv")
    request = TrainingRequest(
        model="rnn",
        # Wide enough for its eight-bit weights to be what the time goes into.
        options={"hidden": 128, "embedding": 32},
        data=f"text-csv:{tmp_path / 'news.csv'}",
        tokenizer=TokenizerSettings(max_length=64),
        settings=TrainSettings(epochs=2, batch=32, lr=0.01, threads=1, precision="fp32"),
    )
    run_training(request, tmp_path / "run", log=lambda line: None)
    # `--int8 --threads 1`, and no word of a route or a runtime.
    flags = {
        "model": str(tmp_path / "run"),
        "precisions": ("int8",),
        "threads": 1,
        "max_drop": 30.0,
    }
    result = run_recipe(build_recipe(recipe_values({}, flags)), tmp_path / "out")
    rows = {row.id: row for row in result.table.rows}
    dynamic, whole = rows[DYNAMIC], rows["onnxruntime-fp32"]
    assert dynamic.status == "measured" and dynamic.int8_mac_share.value > 0.9
    assert dynamic.latency_p50_ms.value < whole.latency_p50_ms.value / 1.5
    assert open_bundle(tmp_path / "out").manifest.shipped == DYNAMIC
    assert result.exit_code == 0
