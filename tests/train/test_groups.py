"""Groups: who lost more than the limit, told with an error of 5 % over all groups together."""

from __future__ import annotations

import numpy as np
import pytest
from edgeml.errors import InputError
from edgeml.train.evaluate import Evaluation
from edgeml.train.groups import class_groups, holm, judge_groups, read_groups
from edgeml.train.open_task import open_data


class RightOrWrong:
    """Outputs are whether the answer is right."""

    primary, lower_is_better = "accuracy", False

    def score(self, outputs, targets):
        return {"accuracy": float(np.mean(outputs))}

    def per_sample(self, output, target):
        return float(output)

    def answer(self, output):
        return output


class OnlyScore:
    """An error rate of the whole set, without a value a sample."""

    primary, lower_is_better = "error", True

    def score(self, outputs, targets):
        return {"error": 1 - float(np.mean(outputs))}


def evaluated(task, before, after, targets=None):
    outputs = {"ref": list(before), "eng": list(after)}
    return Evaluation(task, len(before), targets or [0] * len(before), outputs, {}, "")


def judged(before, after, groups, limit=None, task=None):
    task = task or RightOrWrong()
    return judge_groups(
        evaluated(task, before, after), task, "ref", "eng", groups, limit_points=limit
    )


def model(rng, n, lost, won):
    """Right answers before and after: `lost` and `won` are shares of all samples."""
    before = rng.random(n) < 0.9
    changed = rng.random(n)
    after = np.where(before, changed >= lost / 0.9, changed < won / 0.1)
    return before.astype(float), after.astype(float)


def test_a_planted_unfair_model_is_flagged_and_refused():
    # 300 of 10,000 lose 10 points, which is 0.3 points of the mean.
    rng = np.random.default_rng(0)
    for _ in range(5):
        groups = ["dark"] * 300 + [f"camera {i}" for i in range(24)] * 400 + ["camera 0"] * 100
        before, after = model(rng, 10_000, 0.005, 0.005)
        inside = rng.permutation(np.flatnonzero(before[:300]))[:30]
        after[:300], after[inside] = before[:300], 0.0
        told = judged(before, after, groups, limit=2.0)
        assert told["verdict"] == "violated" and told["judged"] == 25
        worst = told["rows"][0]
        assert worst["group"] == "dark" and worst["verdict"] == "violated" and worst["stands_out"]
        assert worst["drop_points"]["value"] == pytest.approx(10)
        assert worst["drop_points"]["low"] > 2 and worst["drop_points"]["confidence"] > 0.95
        assert told["overall_points"] < 0.7
        assert [row["group"] for row in told["rows"] if row["stands_out"]] == ["dark"]


def test_of_a_hundred_fair_models_at_most_five_are_flagged():
    rng = np.random.default_rng(1)
    groups = [f"g{i % 25}" for i in range(10_000)]
    violated = apart = 0
    for _ in range(100):
        before, after = model(rng, 10_000, 0.013, 0.010)
        # The hardest limit there is: what every group truly loses.
        told = judged(before, after, groups, limit=0.3)
        violated += told["verdict"] == "violated"
        apart += any(row["stands_out"] for row in told["rows"])
    assert violated <= 5 and apart <= 5


def test_a_group_is_met_or_cannot_be_told_with_the_number_it_would_take():
    rng = np.random.default_rng(2)
    before, after = model(rng, 4100, 0.01, 0.01)
    groups = ["many"] * 4000 + ["few"] * 60 + ["fewer"] * 40
    told = judged(before, after, groups, limit=2.0)
    rows = {row["group"]: row for row in told["rows"]}
    assert rows["many"]["verdict"] == "met"
    assert rows["few"]["verdict"] == "cannot tell" and rows["few"]["needed"] > 60
    assert rows["fewer"]["verdict"] is None and "40" in rows["fewer"]["reason"]
    assert rows["fewer"]["drop_points"]["low"] is None
    assert told["verdict"] == "cannot tell" and told["judged"] == 2
    assert judged(before, after, groups)["verdict"] is None


def test_a_task_with_only_a_score_is_resampled():
    rng = np.random.default_rng(3)
    before, after = model(rng, 1000, 0.005, 0.005)
    after[:200] = np.where(rng.random(200) < 0.4, 0.0, before[:200])
    groups = ["hurt"] * 200 + ["fine"] * 800
    told = judged(before, after, groups, 5.0, OnlyScore())
    assert [(row["group"], row["verdict"]) for row in told["rows"]] == [
        ("hurt", "violated"),
        ("fine", "met"),
    ]
    assert "bootstrap" in told["rows"][0]["drop_points"]["method"]


def test_holm_tests_what_is_left_at_a_larger_level():
    levels = []

    def clear(tail):
        return 5.0, 6.0

    def unclear(tail):
        levels.append(round(2 * tail, 6))
        return -1.0, 1.0

    found = holm([clear, unclear, clear], against=0.0)
    assert levels == [round(0.05 / 3, 6), 0.05]
    assert [round(level, 6) for level, _, _ in found] == [0.016667, 0.05, 0.016667]


def test_classes_are_groups_where_targets_name_them():
    task = RightOrWrong()
    assert class_groups(task, [1, 0, 1]) == ["1", "0", "1"]
    assert class_groups(task, [np.zeros(2)]) is None
    assert class_groups(OnlyScore(), [1, 0]) is None


@pytest.fixture
def photos(tmp_path):
    """An image source of 200 files in two classes, and its task."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(200):
        file = tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(file)
    from edgeml.artifact.tensor_spec import TensorSpec

    spec = TensorSpec("x", (None, 3, 8, 8), "float32")
    return open_data(f"imagefolder:{tmp_path / 'photos'}", spec).task


def test_groups_are_joined_by_file_or_index(photos, tmp_path):
    source = photos.stream.source
    by_file = tmp_path / "meta.csv"
    lines = [f"{place},cam{i % 3}" for i, place in enumerate(source.places)]
    by_file.write_text("file,camera\n" + "\n".join(lines))
    by_index = tmp_path / "index.csv"
    by_index.write_text("index,camera\n" + "\n".join(f"{i},cam{i % 3}" for i in range(200)))
    expected = [f"cam{i % 3}" for i in photos.stream.kept("test")]
    assert read_groups(f"{by_file}:camera").of_samples(photos, "test") == expected
    assert read_groups(f"{by_index}:camera").of_samples(photos, "test") == expected
    # A task of a user's own: the place in its test split.
    assert read_groups(f"{by_index}:camera").of_samples(RightOrWrong(), "test", 3) == [
        "cam0",
        "cam1",
        "cam2",
    ]
    with pytest.raises(InputError, match="a task's samples have none"):
        read_groups(f"{by_file}:camera").of_samples(RightOrWrong(), "test", 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,camera\na,x\n", "has no column 'camra', did you mean camera?"),
        ("name,camra\na,x\n", "neither a column file nor index"),
        ("file,camra\na,x\na,y\n", "line 3: file 'a' is in two groups, 'x' and 'y'"),
        ("index,camra\n-1,x\n", "index '-1' is no whole number"),
        ("", "has no column 'camra'"),
        (b"\xff\xfe\x00file", "is no CSV of UTF-8 text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_bad_file_of_groups_is_one_line(tmp_path, text, said):
    file = tmp_path / "meta.csv"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        read_groups(f"{file}:camra")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("--groups ")


def test_more_than_one_percent_without_a_row_is_refused(tmp_path):
    file = tmp_path / "meta.csv"
    file.write_text("index,camera\n" + "\n".join(f"{i},a" for i in range(98)))
    with pytest.raises(InputError, match=r"2 of 100 test samples have no row .* index '98'"):
        read_groups(f"{file}:camera").of_samples(RightOrWrong(), "test", 100)
    found = read_groups(f"{file}:camera").of_samples(RightOrWrong(), "test", 98)
    assert found == ["a"] * 98
    file.write_text("index,camera\n" + "\n".join(f"{i},a" for i in range(199)))
    assert read_groups(f"{file}:camera").of_samples(RightOrWrong(), "test", 200)[-1] is None
    with pytest.raises(InputError, match=r"is not FILE\.csv:COLUMN"):
        read_groups("meta.csv")
