"""A transformers classifier from its directory to an engine of two inputs that takes a text."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest
import torch
from edgeml.artifact.bundle import open_bundle
from edgeml.artifact.recipe import build_recipe
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.compress.run_recipe import run_recipe

transformers = pytest.importorskip("transformers")
# Python 3.10's last ONNX Runtime is too old to quantize (compress/quantize_onnxruntime.py).
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="its last release is old"),
]
WORDS = {"down": "bad poor sad", "up": "good fine happy"}
# Runs a script where neither edgeml nor transformers can be imported.
BARE = (
    "import sys, runpy; sys.modules['edgeml'] = sys.modules['transformers'] = None; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def save_classifier(folder):
    """A BERT that names a text by its words: the embedding of a word points to its class."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = " ".join(WORDS.values()).split()
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16, id2label={0: "up", 1: "down"},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for word, i in vocabulary.items():
            sign = {"up": 1.0, "down": -1.0}
            model.bert.embeddings.word_embeddings.weight[i, 0] = next(
                (3 * sign[label] for label, own in WORDS.items() if word in own.split()), 0.0
            )
        # What the network makes of one word of each class says where the head must look.
        ids = torch.tensor([[vocabulary["good"]], [vocabulary["bad"]]])
        up, down = model.bert(ids, torch.ones_like(ids)).pooler_output
        model.classifier.weight.copy_(torch.stack([up - down, down - up]))
        middle = (up + down) / 2
        model.classifier.bias.copy_(-model.classifier.weight @ middle)
    model.save_pretrained(folder)


def test_it_is_compressed_from_its_directory_and_answers_a_text(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_classifier(tmp_path / "model")
    random = np.random.default_rng(0)
    rows = [("text", "label")]
    for i in range(240):
        label = sorted(WORDS)[i % 2]
        rows.append((" ".join(random.choice(WORDS[label].split(), random.integers(1, 8))), label))
    with (tmp_path / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    flags = {
        "model": f"hf:{tmp_path / 'model'}",
        "data": f"text-csv:{tmp_path / 'texts.csv'}",
        "precisions": ("int8",),
        "routes": ("onnxruntime",),
        "runtimes": ("onnxruntime",),
        "max_drop": 60.0,
        "calibration_samples": 20,
    }
    out = tmp_path / "out"
    result = run_recipe(build_recipe(recipe_values({}, flags)), out)
    assert result.exit_code == 0
    bundle = open_bundle(out)
    assert set(bundle.manifest.engines[0].input_shapes) == {"input_ids", "attention_mask"}
    assert (out / "classes.txt").read_text().split() == ["up", "down"]
    assert result.table.final["reference"]["metrics"]["accuracy"]["value"] > 0.9
    for label, words in WORDS.items():
        done = subprocess.run(
            [sys.executable, "-c", BARE, str(out / "example.py"), words],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].split()[-1] == label
