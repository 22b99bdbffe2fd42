"""Texts: read from CSVs, cut into tokens, trained on, opened again as the same ids."""

import csv

import numpy as np
import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.errors import DataError, InputError, ModelError
from edgeml.train.data_source import open_source
from edgeml.train.model_source import open_model
from edgeml.train.settings import TrainSettings
from edgeml.train.tokenizer import TokenizerSettings, build_tokenizer_settings, learn_tokenizer
from edgeml.train.trained_bundle import run_defaults
from edgeml.train.training_run import TrainingRequest, run_training
from edgeml.train.zoo.catalogue import zoo_options

WORDS = {"sport": "goal match team player cup", "money": "bank market share price profit"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "cache"))


def write(path, rows, columns=("text", "label")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return f"text-csv:{path}"


def news(n, seed=0):
    random = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        label = ("sport", "money")[i % 2]
        own, other = WORDS[label].split(), [f"word{k}" for k in range(30)]
        words = [*random.choice(own, 3), *random.choice(other, random.integers(2, 12))]
        rows.append((" ".join(random.permutation(words)), label))
    return rows


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_ids_are_cut_padded_and_repeatable(tmp_path, kind):
    texts = ["the cat sat", "the dog sat on the mat"] * 5
    settings = TokenizerSettings(kind=kind, vocabulary=60, max_length=4)
    path, size = learn_tokenizer(texts, settings)
    assert 2 < size <= 60 and learn_tokenizer(texts, settings) == (path, size)
    data = write(tmp_path / "d.csv", [("the cat sat on the mat", "a"), ("CAT", "b")])
    source = open_source(f"tokens:{path}:{data}")
    long, short = (source.read(i)["input_ids"] for i in range(2))
    assert long.dtype == np.int64 and long.shape == short.shape == (4,)
    assert (long > 0).all() and short[0] in long and short[-1] == 0


def test_words_that_training_never_saw_are_unknown_and_empty_texts_are_bad(tmp_path):
    path, _ = learn_tokenizer(["a b c"], TokenizerSettings(max_length=3))
    data = write(tmp_path / "d.csv", [("zzz a", "x"), ("  ", "y")])
    source = open_source(f"tokens:{path}:{data}")
    ids = source.read(0)["input_ids"]
    assert ids[0] == 1 and ids[1] > 1
    with pytest.raises(DataError, match="empty text"):
        source.read(1)
    with pytest.raises(DataError, match="no token"):
        learn_tokenizer([" ", ""], TokenizerSettings())


def test_splits_come_from_a_column_or_from_the_names_of_files(tmp_path):
    rows = [("a", "x", "train"), ("b", "y", "val"), ("c", "x", "test")]
    source = open_source(write(tmp_path / "d.csv", rows, ("text", "label", "split")))
    assert source.splits == ["train", "validation", "test"] and source.classes == ["x", "y"]
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "train.csv", [("a", "x")])
    write(folder / "test.csv", [("b", "y")])
    source = open_source(f"text-csv:{folder}")
    assert sorted(source.splits) == ["test", "train"]
    assert [source.read(i) for i in range(2)] == ["b", "a"]


@pytest.mark.parametrize("model", ["rnn", "transformer"])
def test_a_text_classifier_learns_and_its_run_opens_with_the_same_tokens(tmp_path, model):
    data = write(tmp_path / "news.csv", news(400))
    request = TrainingRequest(
        model=model,
        data=data,
        tokenizer=TokenizerSettings(max_length=16),
        settings=TrainSettings(epochs=3, batch=32, lr=0.01, threads=1, precision="fp32"),
    )
    out = tmp_path / "run"
    result = run_training(request, out, log=lambda line: None)
    assert result.scores["test"].accuracy > 0.9
    kept = open_bundle(out).manifest.model["trained"]["options"]
    assert set(kept) == set(zoo_options(model))  # a default that changes later changes no run
    # The cache may go: the run keeps its tokenizer, wherever it is moved.
    for file in (tmp_path / "cache").rglob("*.json"):
        file.unlink()
    moved = out.rename(tmp_path / "moved")
    source = open_source(run_defaults(str(moved))["data"])
    assert source.read(0)["input_ids"].shape == (16,) and set(source.splits) == {
        "train",
        "validation",
        "test",
    }
    assert open_model(str(moved)).module.input_dtype == "int64"


def test_what_is_no_text_data_is_refused_with_one_line(tmp_path):
    good = write(tmp_path / "d.csv", news(60))

    def refused(kind, data=good, model="rnn"):
        request = TrainingRequest(model=model, data=data, settings=TrainSettings(batch=2))
        with pytest.raises(kind) as caught:
            run_training(request, tmp_path / "out", log=lambda line: None)
        assert "\n" not in str(caught.value) and not (tmp_path / "out.part").exists()
        return str(caught.value)

    bad = write(tmp_path / "b.csv", [("a", "b")], ("words", "label"))
    assert "no column 'text'" in refused(DataError, bad)
    assert "takes texts" in refused(DataError, "digits")
    assert "takes images" in refused(DataError, model="cnn")
    assert "cannot be read" in refused(DataError, f"text-csv:{tmp_path / 'none.csv'}")
    assert "did you mean rnn" in refused(ModelError, model="rnnn")
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(DataError, match="is no tokenizer"):
        open_source(f"tokens:{tmp_path / 't.json'}:{good}")
    with pytest.raises(InputError, match="max_length"):
        build_tokenizer_settings({"max_length": 0, "kind": None})
