"""Classification and agreement over real samples; bad samples are refused or counted, never lost."""

import io

import numpy as np
import pytest
from edgeml.artifact.tensor_spec import TensorSpec
from edgeml.errors import DataError
from edgeml.train.open_task import assumed_preprocess, open_data
from PIL import Image

SPEC = TensorSpec("x", (None, 3, 8, 8), "float32")


def folder(root, per_class=6, classes=("cat", "dog")):
    for seed, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            rng = np.random.default_rng(100 * seed + i)
            pixels = rng.integers(0, 256, (9, 9, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            (root / name / f"{i}.png").write_bytes(buffer.getvalue())
    return f"imagefolder:{root}"


def arrays(path, x, y):
    np.savez(path, x=x, y=y)
    return f"npz:{path}"


def refused(data, spec=SPEC, **settings):
    with pytest.raises(DataError) as e:
        opened = open_data(data, spec, **settings)
        for split in ("calibration", "validation", "test"):
            list(opened.task.samples(split))
    assert "\n" not in str(e.value)
    return str(e.value)


def test_samples_are_preprocessed_typed_and_named(tmp_path):
    opened = open_data(folder(tmp_path / "d"), SPEC, outputs=2)
    seen = [opened.task.samples(split) for split in ("validation", "test")]
    samples = [sample for part in seen for sample in part]
    assert len(samples) + len(list(opened.calibration())) == 12
    inputs, label = samples[0]
    assert list(inputs) == ["x"] and inputs["x"].shape == (3, 8, 8)
    assert inputs["x"].dtype == np.float32 and label in (0, 1)
    assert "preprocessing was not declared" in opened.notes[0]


def test_the_order_is_the_same_every_time(tmp_path):
    opened = open_data(folder(tmp_path / "d"), SPEC, outputs=2)
    first, second = (list(opened.task.samples("test")) for _ in range(2))
    for (a, label_a), (b, label_b) in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        assert label_a == label_b


def test_scores_by_the_largest_output(tmp_path):
    task = open_data(folder(tmp_path / "d"), SPEC, outputs=2).task
    outputs = [{"y": np.array(v, np.float32)} for v in ([1, 2], [3, 2], [0, 5], [0, 1])]
    assert task.score(outputs, [1, 0, 0, 1]) == {"accuracy": 0.75}
    assert [task.per_sample(o, t) for o, t in zip(outputs, [1, 0, 0, 1], strict=True)] == [
        1,
        1,
        0,
        1,
    ]
    assert task.answer(outputs[2]) == 1


def test_top5_is_told_from_twenty_classes_on(tmp_path):
    x = np.zeros((40, 4), np.float32) + np.arange(40)[:, None]
    data = arrays(tmp_path / "a.npz", x, np.arange(40) % 25)
    task = open_data(data, TensorSpec("x", (None, 4), "float32"), outputs=25).task
    ranked = {"y": np.arange(25, dtype=np.float32)}  # the five largest are 20 … 24
    assert task.score([ranked, ranked], [20, 3]) == {"accuracy": 0.0, "top5": 0.5}


def test_calibration_data_that_is_also_scored_is_left_out(tmp_path):
    data = folder(tmp_path / "d")
    with pytest.raises(DataError, match="is also scored: nothing to calibrate on"):
        copy = tmp_path / "e"
        folder(copy)
        open_data(data, SPEC, calibration_data=f"imagefolder:{copy}", outputs=2)
    other = folder(tmp_path / "f", per_class=9)  # six of each class are those of `data`
    opened = open_data(data, SPEC, calibration_data=other, outputs=2)
    assert len(list(opened.calibration())) == 6
    # So the same calibration source stands for other samples beside other data.
    beside = open_data(folder(tmp_path / "g", per_class=5), SPEC, calibration_data=other, outputs=2)
    assert len(list(beside.calibration())) == 8
    assert beside.calibration_fingerprint != opened.calibration_fingerprint


def test_without_labels_the_target_is_the_reference(tmp_path):
    folder(tmp_path / "d")
    opened = open_data(f"images:{tmp_path / 'd'}", SPEC, outputs=3)
    task = opened.task
    assert task.targets_from_reference and task.primary == "agreement"
    assert "has no labels" in opened.notes[-1]
    reference = [{"y": np.array([0.0, 1, 0])}, {"y": np.array([2.0, 1, 0])}]
    engine = [{"y": np.array([0.0, 2, 0])}, {"y": np.array([1.0, 2, 0])}]
    found = task.score(engine, reference)
    assert found["agreement"] == 0.5
    assert found["cosine"] == pytest.approx((1 + 4 / 5) / 2)
    assert task.score(reference, reference) == pytest.approx({"agreement": 1.0, "cosine": 1.0})


def test_networks_without_classes_agree_by_cosine(tmp_path):
    folder(tmp_path / "d")
    task = open_data(f"images:{tmp_path / 'd'}", SPEC, outputs=None).task
    assert task.primary == "cosine" and not hasattr(task, "answer")


def test_labels_that_the_network_has_not_are_refused_or_counted(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    y = np.arange(40) % 4
    y[7] = 9
    data = arrays(tmp_path / "a.npz", x, y)
    said = refused(data, outputs=4)
    assert "x[7]: label '9' names no class, the network has 4 (0 to 3)" in said
    assert "--on-bad-sample skip" in said
    opened = open_data(data, SPEC, outputs=4, on_bad_sample="skip")
    yielded = [t for s in ("validation", "test") for _, t in opened.task.samples(s)]
    assert max(yielded) == 3
    assert opened.task.report() == {"unknown label": 1}


def test_unreadable_images_are_refused_or_counted(tmp_path):
    data = folder(tmp_path / "d", per_class=10)
    for name in ("cat/3.png", "dog/5.png"):
        file = tmp_path / "d" / name
        file.write_bytes(file.read_bytes()[:60])
    assert "unreadable image" in (said := refused(data, outputs=2))
    assert "cat/3.png" in said or "dog/5.png" in said
    opened = open_data(data, SPEC, outputs=2, on_bad_sample="skip")
    total = sum(len(list(opened.task.samples(s))) for s in ("validation", "test", "calibration"))
    assert total == 18
    assert opened.task.report() == {"unreadable": 2}


def test_nan_is_refused_or_counted(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    x[11, 0, 0, 0] = np.nan
    data = arrays(tmp_path / "a.npz", x, np.arange(40) % 4)
    assert "x[11]: holds NaN or infinite values" in refused(data, outputs=4)
    opened = open_data(data, SPEC, outputs=4, on_bad_sample="skip")
    for split in ("validation", "test", "calibration"):
        list(opened.task.samples(split))
    assert opened.task.report() == {"not finite": 1}


def test_classes_must_be_the_networks(tmp_path):
    data = folder(tmp_path / "d")
    said = refused(data, outputs=10)
    assert "has 2 classes, the network 10 outputs; --classes FILE" in said
    assert "one output, which names no class" in refused(data, outputs=1)
    assert "one class only" in refused(folder(tmp_path / "e", classes=("cat",)), outputs=None)


def test_bytes_are_not_fed_to_a_float_network(tmp_path):
    data = arrays(tmp_path / "a.npz", np.zeros((9, 3, 8, 8), np.uint8), np.arange(9) % 3)
    assert "is uint8, the network takes float32" in refused(data, outputs=3)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((None, 3, 20, 30), "float32", {"layout": "NCHW", "crop": (20, 30), "color": "RGB"}),
        ((None, 20, 30, 3), "float32", {"layout": "NHWC", "crop": (20, 30), "folded": False}),
        ((1, 1, 28, 28), "float32", {"layout": "NCHW", "color": "L", "resize": 28}),
        ((None, 20, 30, 3), "uint8", {"layout": "NHWC", "folded": True}),
    ],
)
def test_undeclared_preprocessing_is_read_off_the_input(shape, dtype, expected):
    found = assumed_preprocess(TensorSpec("x", shape, dtype))
    assert {name: getattr(found, name) for name in expected} == expected
    # Whatever the image, it comes out in the input's size.
    for size in ((50, 31), (9, 80), (30, 20)):
        got = found.apply(Image.new("RGB", size))
        assert got.shape == tuple(n for n in shape[1:])


def test_inputs_that_are_no_image_are_told():
    with pytest.raises(DataError, match="no N×C×H×W"):
        assumed_preprocess(TensorSpec("x", (None, 64), "float32"))
    with pytest.raises(DataError, match="give --resize and --crop"):
        assumed_preprocess(TensorSpec("x", (None, 3, None, None), "float32"))


def one_hot(answers, classes):
    return [{"y": np.eye(classes, dtype=np.float32)[a]} for a in answers]


def test_labels_in_another_order_are_found_out(tmp_path):
    x = np.random.default_rng(0).standard_normal((200, 3, 8, 8)).astype(np.float32)
    targets = [int(t) for t in np.random.default_rng(1).integers(0, 5, 200)]
    task = open_data(arrays(tmp_path / "a.npz", x, targets), SPEC, outputs=5).task
    turned = [(t + 2) % 5 for t in targets]
    turned[:20] = [0] * 20  # the network errs now and then
    assert "in another order than the network's outputs" in task.order_suspicion(
        one_hot(turned, 5), targets
    )
    noise = np.random.default_rng(2).integers(0, 5, 200).tolist()
    collapsed = [3] * 200
    for answers in (targets, noise, collapsed):
        assert task.order_suspicion(one_hot(answers, 5), targets) is None
    # A sample a class proves nothing: any answer could be its meaning.
    assert task.order_suspicion(one_hot(turned[:30], 5), list(range(30))) is None
