"""A user's task file is held to the contract before any work, each breach with its own line."""

import numpy as np
import pytest
from edgeml.artifact.tensor_spec import TensorSpec
from edgeml.errors import TaskError
from edgeml.train.load_task import load_task, safe_score
from edgeml.train.open_task import open_user_task

SPECS = [TensorSpec("x", (None, 3), "float32")]
GOOD = """
import numpy as np

class Task:
    primary = "error"
    lower_is_better = True

    def samples(self, split):
        for i in range({"train": 2, "validation": 3, "test": 3}[split]):
            yield {"x": np.full(3, i, np.float32)}, i

    def score(self, outputs, targets):
        print("a print that must not reach stdout")
        return {"error": float(np.mean([abs(o["y"][0] - t) for o, t in zip(outputs, targets)]))}
"""


def written(tmp_path, text=GOOD, **changes):
    for old, new in changes.items():
        old = old.replace("_", " ")
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "task.py"
    file.write_text(text)
    return f"{file}:Task"


def test_a_class_a_function_and_an_object_all_do(tmp_path):
    for tail, name in (
        ("", "Task"),
        ("\ndef make():\n    return Task()\n", "make"),
        ("\nt = Task()\n", "t"),
    ):
        reference = written(tmp_path, GOOD + tail).replace(":Task", f":{name}")
        assert load_task(reference).primary == "error"


def test_the_train_split_calibrates(tmp_path):
    opened = open_user_task(written(tmp_path), SPECS)
    assert [inputs["x"][0] for inputs in opened.calibration()] == [0, 1]


def test_splits_that_begin_with_the_same_sample_are_told(tmp_path):
    apart = GOOD.replace("np.full(3, i", "np.full(3, i + 10 * len(split)")
    for text, told in ((GOOD, 3), (apart, 0)):
        file = tmp_path / f"t{told}.py"
        file.write_text(text)
        notes = open_user_task(f"{file}:Task", SPECS).notes
        assert len(notes) == told and all("begin with the same sample" in n for n in notes)


def test_the_score_is_checked_and_prints_nothing_to_stdout(tmp_path, capsys):
    task = load_task(written(tmp_path))
    assert safe_score(task, [{"y": np.array([2.0])}], [0]) == {"error": 2.0}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("def samples", "def sample", "has no method samples"),
        ("def score", "def scores", "has no method score"),
        ('primary = "error"', "", "has no primary"),
        ("lower_is_better = True", "", "has no lower_is_better"),
        (
            "lower_is_better = True",
            "lower_is_better = True; points_per_unit = 0",
            "points_per_unit",
        ),
        ("class Task", "class Tusk", "has no Task, did you mean Tusk?"),
        ("import numpy as np\n", "import numpie as np\n", "task.py:2 raised ModuleNotFoundError"),
        ("    def samples", "    def __init__(self): 1 / 0\n    def samples", "ZeroDivisionError"),
        ("class Task:", "class Task", "raised SyntaxError"),
        ('"x": np.full', '"z": np.full', "gives inputs z; the network takes x"),
        ("np.float32", "np.float64", "is float64, the network takes float32"),
        ("np.full(3,", "np.full((1, 3),", "has shape 1×3, the network takes 3"),
        ('"test": 3', '"test": 0', "yields no test samples"),
        ("np.full(3, i", "np.full(3, 1 / 0", "samples('validation') fails at sample 0"),
    ],
)
def test_a_breach_is_named(tmp_path, old, new, said):
    assert old in GOOD
    file = tmp_path / "task.py"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(TaskError) as e:
        open_user_task(f"{file}:Task", SPECS)
    assert said in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0", "score raises ZeroDivisionError"),
        ("return 0.5", "gives float, not {metric: value}"),
        ("return {}", "gives nothing, but not its primary metric 'error'"),
        ("return {'error': float('nan')}", "gives error = nan"),
        ("return {'error': 'good'}", "gives error = 'good', which is no number"),
    ],
)
def test_a_score_that_breaks_the_contract_is_named(tmp_path, body, said):
    head, _, _ = GOOD.partition('        print("a')
    file = tmp_path / "task.py"
    file.write_text(f"{head}        {body}\n")
    with pytest.raises(TaskError, match=said.replace("{", r"\{")):
        safe_score(load_task(f"{file}:Task"), [{}], [0])


def test_other_metrics_may_be_undefined(tmp_path):
    head, _, _ = GOOD.partition('        print("a')
    file = tmp_path / "task.py"
    file.write_text(f"{head}        return {{'error': 1, 'rare': float('nan')}}\n")
    assert safe_score(load_task(f"{file}:Task"), [{}], [0]) == {"error": 1.0}
