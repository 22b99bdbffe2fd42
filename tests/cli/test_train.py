"""`edgeml train` on the command line: scores on stdout, one line and exit 2 for bad input."""

import json

import pytest
from edgeml.cli import main
from edgeml.train.model_source import open_model

SMALL = "resnet20 --width 4 --blocks 1 --data digits --epochs 2 --batch 64 --lr 0.01 --threads 1"


def run(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", *words.split()])
    printed = capsys.readouterr()
    return caught.value.code, printed.out, printed.err


def test_a_training_prints_its_scores_and_leaves_a_model(tmp_path, capsys):
    code, out, err = run(f"{SMALL} --precision fp32 -o {tmp_path}/run", capsys)
    assert code == 0
    assert "test: accuracy" in out and f"edgeml compress {tmp_path}/run" in out
    assert "epoch 2/2" in err and "epoch" not in out.split("\n")[1]
    assert open_model(f"{tmp_path}/run").module.linear.in_features == 16
    code, out, err = run(f"--resume {tmp_path}/run", capsys)
    assert code == 2 and "it is finished" in err


def test_json_on_stdout_is_json_alone(tmp_path, capsys):
    code, out, _ = run(f"{SMALL} --precision fp32 --json - -o {tmp_path}/run", capsys)
    scores = json.loads(out)
    assert code == 0 and 0 <= scores["test"]["f1"] <= 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("resnet21 --data digits -o OUT", "did you mean"),
        ("resnet20 --data digits --epochs 0 -o OUT", "epochs"),
        ("resnet20 --data digits --optimizer adma -o OUT", "optimizer"),
        ("resnet20 --data digits --option width -o OUT", "no NAME=VALUE"),
        ("resnet20 --data digits --lr-drop-epochs a -o OUT", "--lr-drop-epochs"),
        ("resnet20 --data digits --data-dir x -o OUT", "--data-dir is for"),
        ("resnet20 --data mnist --data-dir OUT -o OUT", "no train-images"),
        ("resnet20 --data digits --batch 5000 -o OUT", "larger than the data"),
        ("resnet20 -o OUT", "--data SOURCE"),
        ("--resume OUT", "no unfinished run"),
        ("--resume OUT --epochs 3", "nothing else beside it"),
        ("rnn --data digits --tokenizer words -o OUT", "kind"),
        ("resnet20 --task none.py:Task -o OUT", "no file none.py"),
        ("resnet20 --data digits --task none.py:Task -o OUT", "one of them"),
        ("resnet20 --data digits --fully-shard -o OUT", "torchrun --nproc-per-node=2"),
        ("hf:./none --data digits -o OUT", "takes texts"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words, expected, tmp_path, capsys):
    code, out, err = run(words.replace("OUT", str(tmp_path / "out")), capsys)
    last = err.strip().splitlines()[-1]
    assert (code, out) == (2, "") and last.startswith("edgeml: ") and expected in last
    assert list(tmp_path.iterdir()) == []
