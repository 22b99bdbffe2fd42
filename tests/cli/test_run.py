"""`edgeml run`: photos, texts and arrays in, the task's answer out; what it cannot take is one line."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
from edgeml.artifact.preprocess import ImagePreprocess
from PIL import Image

CLASSES = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def photos(tmp_path):
    """Three photos of plain colours, one with a name that a shell would take apart."""
    paths = []
    for name, colour in {
        "a.png": (250, 10, 10),
        "b c'$.jpg": (5, 200, 9),
        "d.png": (9, 9, 9),
    }.items():
        paths.append(tmp_path / name)
        Image.new("RGB", (20, 24), colour).save(paths[-1])
    return paths


@pytest.fixture
def bundle(make_bundle, tmp_path):
    how = ImagePreprocess(resize=16, crop=16).model_dump_json().encode()
    names = "".join(f"{name}\n" for name in CLASSES).encode()
    return make_bundle(tmp_path / "made", files={"preprocess.json": how, "classes.txt": names})


def expected(network, x) -> np.ndarray:
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_photos_are_preprocessed_and_named(bundle, photos, conv_onnx, edgeml):
    run = edgeml("run", bundle, *[w for p in photos for w in ("--input", p)], "--json", "-")
    assert run.code == 0 and run.said == []
    how = ImagePreprocess(resize=16, crop=16)
    for photo, answer in zip(photos, json.loads(run.stdout), strict=True):
        row = expected(conv_onnx, how.apply(Image.open(photo))[None])[0]
        assert answer["input"] == str(photo)
        assert [c["class"] for c in answer["top"]] == [CLASSES[i] for i in np.argsort(-row)]
        assert [c["score"] for c in answer["top"]] == pytest.approx(np.sort(row)[::-1], rel=1e-4)
        assert sum(c["probability"] for c in answer["top"]) == pytest.approx(1)


def test_the_text_names_the_five_highest_best_first(bundle, photos, edgeml):
    run = edgeml("run", bundle, "--input", photos[0])
    lines = run.stdout.splitlines()
    assert lines[0] == str(photos[0]) and len(lines) == 5
    shares = [float(line.split("%")[0]) for line in lines[1:]]
    assert shares == sorted(shares, reverse=True)
    assert {line.split()[-1] for line in lines[1:]} == set(CLASSES)


def test_raw_outputs_are_written_for_each_input(bundle, photos, conv_onnx, tmp_path, edgeml):
    args = ("--input", photos[0], "--input", photos[1], "--output", tmp_path / "y.npz")
    assert edgeml("run", bundle, *args).code == 0
    with np.load(tmp_path / "y.npz") as file:
        written = dict(file)
    assert sorted(written) == ["000.y", "001.y"]
    x = ImagePreprocess(resize=16, crop=16).apply(Image.open(photos[1]))[None]
    np.testing.assert_allclose(written["001.y"], expected(conv_onnx, x), rtol=1e-4, atol=1e-4)


def test_arrays_of_many_rows_fill_the_engines_batch(
    make_bundle, images, conv_onnx, tmp_path, edgeml
):
    root = make_bundle(tmp_path / "bundle")  # compiled for one row; five are given
    np.savez(tmp_path / "x.npz", x=images.astype(np.float64))
    np.save(tmp_path / "x.npy", images)
    for name in ("x.npz", "x.npy"):
        args = ("--input", tmp_path / name, "--output", tmp_path / "y.npz")
        assert edgeml("run", root, *args).code == 0
        with np.load(tmp_path / "y.npz") as file:
            found = file["000.y"]
        np.testing.assert_allclose(found, expected(conv_onnx, images), rtol=1e-4, atol=1e-4)


def test_another_task_answers_with_what_its_outputs_are(make_bundle, images, tmp_path, edgeml):
    root = make_bundle(tmp_path / "bundle", recipe={"task": "mine.py:Task"})
    np.save(tmp_path / "x.npy", images[:1])
    run = edgeml("run", root, "--input", tmp_path / "x.npy")
    assert "y  1×4 float32  min " in run.stdout and "%" not in run.stdout


def test_a_text_goes_through_the_stored_tokenizer(make_bundle, save_graph, tmp_path, edgeml):
    onnx, tokenizer = text_network(save_graph, tmp_path)
    from edgeml.artifact.manifest import EngineEntry

    entry = EngineEntry(
        id="t", runtime="onnxruntime", precision="fp32", files=["text.onnx"], threads=1,
        input_shapes={"ids": [1, 4]},
    )  # fmt: skip
    files = {"text.onnx": onnx, "tokenizer.json": tokenizer, "classes.txt": b"money\nsport\n"}
    root = make_bundle(tmp_path / "text", engines=[entry], shipped="t", files=files)
    (tmp_path / "news.txt").write_text("goal match")
    args = ("--input", "the bank's Profit", "--input", tmp_path / "news.txt", "--json", "-")
    answers = json.loads(edgeml("run", root, *args).stdout)
    assert [a["top"][0]["class"] for a in answers] == ["money", "sport"]
    run = edgeml("run", root, "--input", "")
    assert run.code == 2 and "is a text without tokens" in run.said[0]


def text_network(save_graph, tmp_path) -> tuple[bytes, bytes]:
    """Adds two scores a token: words of money (ids 2, 3) against words of sport (4, 5)."""
    import onnx
    from onnx import TensorProto, helper
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    nodes = [
        helper.make_node("Gather", ["scores", "ids"], ["tokens"]),
        helper.make_node("ReduceSum", ["tokens", "axis"], ["y"], keepdims=0),
    ]
    scores = np.array([[0, 0], [0, 0], [2, 0], [2, 0], [0, 2], [0, 2]], np.float32)
    path = save_graph(
        tmp_path / "text.onnx",
        nodes,
        [("ids", ["batch", 4])],
        [("y", ["batch", 2])],
        [("scores", scores), ("axis", np.array([1], np.int64))],
    )
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    words = {"[PAD]": 0, "[UNK]": 1, "bank": 2, "profit": 3, "goal": 4, "match": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(pad_id=0, length=4)
    return model.SerializeToString(), tokenizer.to_str().encode()


REFUSED = {
    "gone --input good.npz": "no engine at gone",
    "net.onnx --input gone.npz": "--input gone.npz cannot be read: No such file",
    "net.onnx --input photo.jpg": "declares no preprocessing; it takes an .npz or .npy file",
    "net.onnx --input net.py": "declares no preprocessing",
    "net.onnx --input gray.npz": "input 'x' has shape",
    "net.onnx --input good.npz --output y.txt": "is written as .npz",
    "net.onnx --input good.npz --output gone/y.npz": "there is no folder gone",
    "BUNDLE --input gone.jpg": "--input gone.jpg cannot be read: No such file",
    "BUNDLE --input net.py": "--input net.py: unreadable image",
    "BUNDLE --input taken": "--input taken cannot be read: Is a directory",
    "BUNDLE --input good.npz --output BUNDLE/y.npz": "lies in the bundle",
    "BUNDLE": "Missing option '--input'",
}


@pytest.mark.parametrize("line", REFUSED)
def test_bad_input_is_one_line(line, bundle, inside, edgeml):
    run = edgeml("run", *(str(w).replace("BUNDLE", str(bundle)) for w in line.split()))
    assert run.code == 2 and len(run.said) == 1 and not run.stdout
    assert REFUSED[line] in run.said[0]
