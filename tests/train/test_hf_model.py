"""`hf:`: a transformers text classifier with its own tokenizer, and no pickle, no code, no network."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from edgeml.artifact.bundle import open_bundle
from edgeml.errors import DataError, InputError, ModelError
from edgeml.export.onnx_graph import to_onnx
from edgeml.runtime.engine import EngineOptions, load_file
from edgeml.train.data_source import open_source
from edgeml.train.hf_model import hf_tokenizer, open_hf
from edgeml.train.model_source import open_model
from edgeml.train.settings import TrainSettings
from edgeml.train.tokenizer import TokenizerSettings
from edgeml.train.trained_bundle import run_defaults
from edgeml.train.training_run import TrainingRequest, run_training
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

pytest.importorskip("transformers")
WORDS = {"sport": "goal match team player cup", "money": "bank market share price profit"}
LENGTH = 12


@pytest.fixture(autouse=True)
def own_cache_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT of random weights without a head, as `save_pretrained` writes it, and its tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("models") / "encoder"
    words = " ".join(WORDS.values()).split() + [f"word{k}" for k in range(30)]
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special, model_max_length=64
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(encoder, tmp_path):
    """To be spoilt."""
    return shutil.copytree(encoder, tmp_path / "model")


def changed(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def news(path, n=300):
    random = np.random.default_rng(0)
    rows = [("text", "label")]
    for i in range(n):
        label = ("sport", "money")[i % 2]
        others = [f"word{k}" for k in random.integers(0, 30, random.integers(1, 6))]
        words = [*random.choice(WORDS[label].split(), 3), *others]
        rows.append((" ".join(random.permutation(words)), label))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return f"text-csv:{path}"


def request(model, data, length=LENGTH, **values):
    settings = {"epochs": 3, "batch": 16, "lr": 0.01, "threads": 1, "precision": "fp32"}
    settings |= values.pop("settings", {})
    return TrainingRequest(
        model=f"hf:{model}",
        data=data,
        tokenizer=TokenizerSettings(max_length=length),
        settings=TrainSettings(**settings),
        **values,
    )


def quiet(line):
    return None


def test_an_encoder_gets_a_head_and_the_run_opens_without_the_library_files(copied, tmp_path):
    data, lines = news(tmp_path / "news.csv"), []
    out = tmp_path / "run"
    result = run_training(request(copied, data), out, log=lines.append)
    assert result.scores["test"].accuracy > 0.9
    assert any("no classification head" in line for line in lines)
    # Neither the model's directory nor the cache is needed any more.
    shutil.rmtree(copied)
    shutil.rmtree(tmp_path / "cache")
    bundle = open_bundle(out)
    assert {"config.json", "weights.safetensors", "tokenizer.json"} <= set(bundle.manifest.files)
    assert [spec["name"] for spec in bundle.manifest.inputs] == ["input_ids", "attention_mask"]
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "money", "1": "sport"}
    source = open_model(str(out))
    assert source.classes == ["money", "sport"] and source.tokenizer == out / "tokenizer.json"
    found = open_source(run_defaults(str(out))["data"])
    sample = found.read(0)
    assert sample["input_ids"].shape == (LENGTH,) and sample["attention_mask"][-1] == 0
    test = [i for i, split in enumerate(found.splits) if split == "test"]
    feed = {
        n: torch.from_numpy(np.stack([found.read(i)[n] for i in test]))
        for n in ("input_ids", "attention_mask")
    }
    with torch.no_grad():
        answers = source.module(**feed).argmax(1).numpy()
    assert (answers == found.labels[test]).mean() == pytest.approx(
        result.scores["test"].accuracy, abs=0.02
    )


@pytest.fixture(scope="module")
def classifier(encoder, tmp_path_factory):
    """With a head whose classes are in an order of their own."""
    import transformers

    folder = shutil.copytree(encoder, tmp_path_factory.mktemp("models") / "classifier")
    names = {0: "sport", 1: "money"}
    config = transformers.AutoConfig.from_pretrained(folder, id2label=names)
    torch.manual_seed(1)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_mixed_lengths_answer_as_alone_in_torch_onnx_and_openvino(classifier, tmp_path):
    source = open_model(f"hf:{classifier}")
    with torch.no_grad():  # an untrained network says the same of every text
        source.module.model.classifier.weight.mul_(100)
    found = open_source(
        f"tokens:{hf_tokenizer(str(classifier), LENGTH)}:{news(tmp_path / 'n.csv')}"
    )
    rows = [found.read(i) for i in range(6)]
    feed = {n: np.stack([row[n] for row in rows]) for n in ("input_ids", "attention_mask")}
    lengths = feed["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 2
    with torch.no_grad():
        expected = source.module(**{n: torch.from_numpy(a) for n, a in feed.items()}).numpy()
        for row, n in enumerate(lengths):
            alone = {k: torch.from_numpy(a[row : row + 1, :n]) for k, a in feed.items()}
            np.testing.assert_allclose(source.module(**alone)[0], expected[row], atol=1e-4)
    assert np.ptp(expected) > 0.1
    to_onnx(source.module, {n: a[:2] for n, a in feed.items()}, tmp_path / "m.onnx")
    shapes = tuple((n, a.shape) for n, a in feed.items())
    for runtime in ("onnxruntime", "openvino"):
        options = EngineOptions(threads=1, batch=len(rows), input_shapes=shapes)
        with load_file(tmp_path / "m.onnx", runtime, options) as engine:
            np.testing.assert_allclose(engine.run(feed)["output"], expected, atol=1e-4)


def test_a_head_that_is_there_keeps_its_order_of_classes(classifier, tmp_path):
    out, lines = tmp_path / "run", []
    asked = request(classifier, news(tmp_path / "n.csv"), settings={"epochs": 1})
    run_training(asked, out, log=lines.append)
    assert (out / "classes.txt").read_text().split() == ["sport", "money"]
    assert not any("no classification head" in line for line in lines)
    assert open_model(f"hf:{classifier}").classes == ["sport", "money"]


def test_the_first_head_follows_the_seed(encoder):
    def head(seed):
        torch.manual_seed(seed)
        return open_hf(str(encoder), 2).module.model.classifier.weight

    assert torch.equal(head(1), head(1)) and not torch.equal(head(1), head(2))


def test_pickled_weights_and_code_of_others_are_refused(copied, tmp_path):
    def refused():
        with pytest.raises(ModelError) as caught:
            open_hf(str(copied), 2)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    weights = copied / "model.safetensors"
    tensors = load_tensors(weights)
    save_file({k: v for k, v in tensors.items() if "value" not in k}, weights, {"format": "pt"})
    assert "its weights lack bert.encoder" in refused()
    weights.rename(copied / "pytorch_model.bin")
    assert "edgeml reads no pickle" in refused()
    changed(copied, model_type="mine", auto_map={"AutoConfig": "code.MyConfig"})
    (copied / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "code of its repository" in refused()
    assert not (tmp_path / "ran").exists()


def test_what_does_not_fit_is_refused_with_one_line(encoder, classifier, tmp_path):
    data = news(tmp_path / "n.csv", 60)

    def refused(kind, model=encoder, data=data, **values):
        with pytest.raises(kind) as caught:
            run_training(request(model, data, **values), tmp_path / "out", log=quiet)
        assert "\n" not in str(caught.value) and not (tmp_path / "out.part").exists()
        return str(caught.value)

    assert "takes 64 tokens at most" in refused(DataError, length=65)
    assert "takes texts" in refused(DataError, data="digits")
    assert "no such directory" in refused(ModelError, model="./none")
    assert "cannot be used" in refused(ModelError, model=tmp_path)
    assert "not for hf: models" in refused(InputError, weights="w.safetensors")
    three = tmp_path / "three.csv"
    three.write_text((tmp_path / "n.csv").read_text() + "goal,art\nteam,art\ncup,art\nmatch,art\n")
    assert "has 3 classes" in refused(DataError, model=classifier, data=f"text-csv:{three}")
    with pytest.raises(ModelError, match="gives it one"):
        open_model(f"hf:{encoder}")
    with pytest.raises(ModelError, match="takes no --weights"):
        open_model(f"hf:{encoder}", tmp_path / "w.safetensors")
