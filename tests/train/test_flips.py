"""Samples that flipped: told by index, shown only where asked for."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from edgeml.artifact.tensor_spec import TensorSpec
from edgeml.train.data_source import open_source
from edgeml.train.evaluate import Evaluation
from edgeml.train.flips import MOST_SHOWN, flipped, thumbnail
from edgeml.train.open_task import open_data
from PIL import Image


@pytest.fixture
def task(tmp_path):
    rng = np.random.default_rng(0)
    file = tmp_path / "d.npz"
    x = rng.standard_normal((400, 3, 8, 8)).astype(np.float32)
    np.savez(file, x=x, y=np.arange(400) % 4)
    return open_data(f"npz:{file}", TensorSpec("x", (None, 3, 8, 8), "float32")).task


def evaluated(task, lost, won):
    """The reference is wrong on `won`, the engine on `lost` (places in the test split)."""
    targets = [target for _, target in task.samples("test")]

    def outputs(wrong):
        answers = [(t + (i in wrong)) % 4 for i, t in enumerate(targets)]
        return [{"y": np.eye(4, dtype=np.float32)[a]} for a in answers]

    both = {"r": outputs(set(won)), "e": outputs(set(lost))}
    return Evaluation(task, len(targets), targets, both, {}, "")


def test_indices_are_those_of_the_source(task):
    kept = task.stream.kept("test")
    told = flipped(evaluated(task, [3, 5, 7], [2]), task, "r", "e")
    assert told == {"lost": [kept[3], kept[5], kept[7]], "won": [kept[2]], "samples": []}


def test_shown_samples_are_small_pictures_and_at_most_24(task):
    told = flipped(evaluated(task, range(30), range(40, 60)), task, "r", "e", show=True)
    shown = told["samples"]
    assert len(shown) == MOST_SHOWN
    assert [s["kind"] for s in shown].count("won") == MOST_SHOWN // 2
    labels = task.stream.source.labels
    for sample in shown:
        assert sample["target"] == str(labels[sample["index"]])
        assert (sample["reference"] == sample["target"]) == (sample["kind"] == "lost")
        assert (sample["engine"] == sample["target"]) == (sample["kind"] == "won")
        data = base64.b64decode(sample["image"].removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(data)).size == (8, 8)
        assert sample["text"] is None and len(sample["image"]) < 2000
    few = flipped(evaluated(task, range(30), [40]), task, "r", "e", show=True)["samples"]
    assert [s["kind"] for s in few].count("lost") == 23


def test_texts_are_shown_as_texts(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("text,label\n" + "\n".join(f"word{i} <b>,{i % 2}" for i in range(40)))
    tokenizer = tmp_path / "tokenizer.json"
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(
        models.WordLevel({"[UNK]": 0} | {f"word{i}": 1 + i for i in range(40)}, "[UNK]")
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_padding(length=4, pad_id=0)
    made.enable_truncation(4)
    made.save(str(tokenizer))
    words = f"tokens:{tokenizer}:text-csv:{file}"
    assert open_source(words).text(3) == "word3 <b>"
    task = open_data(words, TensorSpec("input_ids", (None, 4), "int64")).task
    targets = [target for _, target in task.samples("test")]
    right = [{"y": np.eye(2, dtype=np.float32)[t]} for t in targets]
    wrong = [{"y": np.eye(2, dtype=np.float32)[1 - t]} for t in targets]
    evaluation = Evaluation(task, len(targets), targets, {"r": right, "e": wrong}, {}, "")
    shown = flipped(evaluation, task, "r", "e", show=True)["samples"]
    assert shown[0]["text"] == f"word{shown[0]['index']} <b>" and shown[0]["image"] is None


def test_what_is_no_picture_has_no_thumbnail():
    assert thumbnail(np.zeros(17)) is None
    assert thumbnail(np.zeros((5, 8, 8))) is None
    assert thumbnail(np.zeros((1, 3))) is None
    assert thumbnail(np.zeros((200, 100))).startswith("data:image/png;base64,")


def test_a_metric_of_floats_flips_nothing():
    class Own:
        primary, lower_is_better = "score", False

        def per_sample(self, output, target):
            return 0.5

    evaluation = Evaluation(Own(), 1, [0], {"r": [{}], "e": [{}]}, {}, "")
    assert flipped(evaluation, Own(), "r", "e") is None
