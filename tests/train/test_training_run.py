"""`edgeml train` as a function: a run's directory, resumed after a kill, opened and refused."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from edgeml.artifact.bundle import open_bundle
from edgeml.compress.recipe_from_flags import recipe_values
from edgeml.errors import BundleError, DataError, InputError, MissingPart, ModelError
from edgeml.train.model_source import open_model
from edgeml.train.settings import TrainSettings
from edgeml.train.trained_bundle import run_defaults
from edgeml.train.training_data import open_training_data
from edgeml.train.training_run import TrainingRequest, read_request, run_training
from PIL import Image
from sklearn.datasets import load_digits

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


DIGITS28 = {"model": "cnn", "data": "mnist5k"}


def request(**values):
    settings = {
        "epochs": 2,
        "batch": 64,
        "lr": 0.003,
        "precision": "fp32",
        "threads": 1,
        "channels_last": False,
    }
    settings.update(values.pop("settings", {}))
    small = {"model": "resnet20", "options": {"width": 4, "blocks": 1}, "data": "digits"}
    values = {**({} if "model" in values else small), **values}
    values.setdefault("data", "digits")
    return TrainingRequest(settings=TrainSettings(**settings), **values)


def quiet(line):
    return None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "mnist"
    lines = []
    return out, run_training(request(**DIGITS28), out, log=lines.append), lines


def test_a_run_holds_weights_curves_scores_and_says_what_it_was(run):
    out, result, lines = run
    bundle = open_bundle(out)
    assert bundle.manifest.model["trained"]["zoo"] == "cnn"
    assert bundle.manifest.data["source"] == "mnist5k"
    assert result.scores["test"].accuracy > 0.85 and result.scores["test"].n > 900
    curves = json.loads((out / "curves.json").read_text())
    assert [epoch["number"] for epoch in curves] == [1, 2]
    assert curves[1]["validation"]["accuracy"] == pytest.approx(
        json.loads((out / "scores.json").read_text())["validation"]["accuracy"]
    )
    with Image.open(out / "curves.png") as picture:
        assert picture.size[0] > 500
    assert not out.with_name("mnist.part").exists()
    assert any("MB decoded" in line for line in lines)


def test_a_run_is_a_model_that_gives_the_scores_it_claims(run):
    out, result, _ = run
    source = open_model(str(out))
    assert source.kind == "torch" and source.user_code is None
    assert source.sha256 == open_model(str(out)).sha256
    defaults = run_defaults(str(out))
    again = open_training_data(
        request(model="cnn", data=defaults["data"], preprocess=defaults["preprocess"]), None
    )
    inputs, targets = next(iter(again.batches("test", 1000).epoch(0)))
    with torch.no_grad():
        right = (source.module(inputs["x"]).argmax(1) == targets).float().mean()
    assert float(right) == pytest.approx(result.scores["test"].accuracy)


def test_batches_are_prepared_as_the_declared_preprocessing_does(tmp_path):
    from edgeml.artifact.preprocess import ImagePreprocess, decode
    from edgeml.train.data_source import open_source

    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 24, 22), np.uint8)):
        (tmp_path / f"c{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"c{i % 2}" / f"{i}.png")
    photos = f"imagefolder:{tmp_path}"
    values = {"resize": [20, 20], "mean": [0.2, 0.3, 0.1], "std": [0.5, 0.6, 0.7], "color": "RGB"}
    data = open_training_data(request(model="cnn", data=photos, preprocess=values), None)
    inputs = data.sample()["x"]
    declared, source = ImagePreprocess.from_values(values), open_source(photos)
    candidates = [declared.apply(decode(source.read(i))) for i in range(len(source))]
    far = sorted(np.abs(inputs - candidate).max() for candidate in candidates)
    assert far[0] < 1e-6 < 0.1 < far[1]


def shifted_digits(folder):
    x, y = load_digits(return_X_y=True)
    np.savez(folder / "d.npz", x=(x / 16).astype(np.float32).reshape(-1, 1, 8, 8), y=y)
    return f"npz:{folder / 'd.npz'}"


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    out, steps = tmp_path / "again", []
    run_training(request(), tmp_path / "whole", log=quiet)

    def kill(*step):
        steps.append(step)
        if len(steps) == 25:
            raise Killed

    with pytest.raises(Killed):
        run_training(request(), out, log=quiet, on_step=kill)
    assert not out.exists() and out.with_name("again.part").is_dir()
    # Other settings, data or code are refused, and what differs is told.
    with pytest.raises(InputError, match=r"settings \(lr 0.003, now 0.1\)"):
        run_training(request(settings={"lr": 0.1}), out, log=quiet)
    with pytest.raises(InputError, match="other data"):
        run_training(request(data=shifted_digits(tmp_path)), out, log=quiet)
    assert read_request(out) == request()
    result = run_training(read_request(out), out, log=quiet)
    assert result.fit.resumed_after == 1
    first, second = open_model(str(tmp_path / "whole")).module, open_model(str(out)).module
    weights = second.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first.state_dict().items())
    with pytest.raises(InputError, match="it is finished"):
        read_request(out)
    with pytest.raises(InputError, match="exists; remove it"):
        run_training(request(), out, log=quiet)


def test_fine_tuning_a_network_of_ones_own_keeps_its_code(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    out = tmp_path / "mine"
    x, y = load_digits(return_X_y=True)
    np.savez(tmp_path / "digits.npz", x=(x / 16).astype(np.float32), y=y)
    data = f"npz:{tmp_path / 'digits.npz'}"  # one set: cut, and the same way when compressed
    asked = request(model=f"{tmp_path / 'net.py'}:build", data=data, settings={"lr": 0.01})
    first = run_training(asked, out, log=quiet)
    assert first.scores["test"].accuracy > 0.4 and first.user_code
    with pytest.raises(BundleError, match="--trust-code"):
        open_model(str(out))
    assert run_defaults(str(out))["data"] == f"cut:60-20-20:{data}"
    # The same words again must not cut the source anew: trained samples would be scored.
    assert recipe_values({}, {"model": str(out), "data": data})["data"] == f"cut:60-20-20:{data}"
    assert recipe_values({}, {"model": str(out), "data": "digits"})["data"] == "digits"
    with pytest.raises(InputError, match="whose scored samples must not"):
        recipe_values({}, {"model": str(out), "calibration_data": data})
    (tmp_path / "net.py").unlink()
    source = open_model(str(out), trust_code=True)
    assert source.user_code["text"] == NET
    weights = out / "weights.safetensors"
    (tmp_path / "net.py").write_text(NET)
    longer = asked.model_copy(update={"weights": str(weights)})
    second = run_training(longer, tmp_path / "more", log=quiet)
    assert second.fit.epochs[0].loss < first.fit.epochs[-1].loss


def refused(kind, tmp_path, **values):
    with pytest.raises(kind) as caught:
        run_training(request(**values), tmp_path / "out", log=quiet)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()
    return str(caught.value)


def test_what_cannot_be_trained_is_refused_with_one_line(tmp_path):
    assert "did you mean cnn" in refused(ModelError, tmp_path, model="cnnn")
    assert "did you mean digits" in refused(DataError, tmp_path, data="digit")
    (tmp_path / "net.py").write_text(NET.replace("10)", "7)"))
    own = {"model": f"{tmp_path / 'net.py'}:build", "data": "digits"}
    assert "has 10 classes" in refused(DataError, tmp_path, **own)
    (tmp_path / "net.py").write_text(NET.replace("64", "63"))
    assert "does not take a sample" in refused(DataError, tmp_path, **own)
    assert "larger than the data" in refused(DataError, tmp_path, settings={"batch": 100_000})
    assert "did you mean width" in refused(ModelError, tmp_path, options={"widht": 28})
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert "no labels" in refused(DataError, tmp_path, data=f"images:{tmp_path}")
    assert "cannot be read" in refused(InputError, tmp_path, classes="none.txt")
    assert "three percentages" in refused(DataError, tmp_path, data="cut:50-50:digits")
    if find_spec("timm") is None:
        assert "needs timm" in refused(MissingPart, tmp_path, model="timm:resnet18")
    assert "at least 18 pixels" in refused(InputError, tmp_path, model="cnn")


def test_nan_in_the_loss_keeps_the_last_good_epoch(tmp_path):
    hot = request(settings={"optimizer": "sgd", "lr": 1e30})
    with pytest.raises(InputError, match="the loss became"):
        run_training(hot, tmp_path / "out", log=quiet)
    assert not (tmp_path / "out").exists()


def test_a_factorys_first_weights_follow_the_seed_and_another_seed_is_told(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    own = {"model": f"{tmp_path / 'net.py'}:build", "data": "digits"}
    still = {"lr": 1e-30, "epochs": 1}

    def first_weights(seed, name):
        run_training(request(**own, settings={**still, "seed": seed}), tmp_path / name, log=quiet)
        return open_model(str(tmp_path / name), trust_code=True).module[1].weight

    zero = first_weights(0, "a")
    assert torch.equal(zero, first_weights(0, "b"))
    assert not torch.equal(zero, first_weights(1, "c"))

    def kill(epoch, *step):
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        run_training(request(**own), tmp_path / "d", log=quiet, on_step=kill)
    with pytest.raises(InputError, match=r"settings \(seed 0, now 1\), code or first weights;"):
        run_training(request(**own, settings={"seed": 1}), tmp_path / "d", log=quiet)
