"""The training loop: it learns, repeats, resumes bit for bit, stops early, refuses NaN."""

import doctest
import importlib

import numpy as np
import pytest
import torch
from edgeml.errors import DataError, EdgemlError, InputError, TaskError
from edgeml.train import fit
from edgeml.train.batches import ArrayBatches, flip, shift_crop
from edgeml.train.checkpoint import Checkpoint
from edgeml.train.losses import classification_loss
from edgeml.train.metrics import score_classifier, validator
from edgeml.train.settings import TrainSettings, build_settings
from sklearn.datasets import load_digits
from torch import nn

PLAIN = {"optimizer": "sgd", "lr": 0.1, "precision": "fp32", "channels_last": False}


@pytest.fixture(autouse=True)
def one_thread():
    # Networks this small are slower with two, and much slower when the machine has other work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    return x[:1200], y[:1200], x[1200:], y[1200:]


def small_network(seed=0, dropout=0.2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(256, 10),
    )  # fmt: skip


def batches(digits, batch=64, **options):
    return ArrayBatches({"input": digits[0]}, digits[1], batch, **options)


def held_out(digits):
    return ArrayBatches({"input": digits[2]}, digits[3], 256, shuffle=False)


def same_weights(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", ["training_loop", "settings"])
def test_the_examples_in_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(f"edgeml.train.{name}")).failed == 0


def test_a_small_network_learns_digits(digits):
    module = small_network()
    settings = TrainSettings(epochs=5, batch=64, optimizer="sgd", lr=0.1, warmup_epochs=1)
    lines = []
    result = fit(module, batches(digits), settings, log=lines.append)
    scores = score_classifier(module, held_out(digits), classification_loss(settings), 10)
    assert scores.accuracy > 0.9 and not module.training
    assert result.epochs[-1].loss < 0.5 * result.epochs[0].loss
    assert len(lines) == 5 and "samples/s" in lines[0]
    assert "5 epochs in" in result.summary()


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "lr": 0.01},
        {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.01, "clip_norm": 1.0},
        {"optimizer": "sgd", "lr": 0.02, "loss": "mse", "schedule": "constant"},
        {
            "optimizer": "sgd",
            "lr": 0.1,
            "nesterov": True,
            "label_smoothing": 0.1,
            "schedule": "step",
            "lr_drop_epochs": (3,),
        },
        {"optimizer": "sgd", "lr": 0.1, "precision": "bf16", "channels_last": True},
    ],
)
def test_every_optimizer_schedule_and_loss_learns(digits, settings):
    module = small_network(dropout=0)
    fit(module, batches(digits), TrainSettings(epochs=4, batch=64, **settings))
    with torch.no_grad():
        right = module(torch.from_numpy(digits[2])).argmax(1).numpy() == digits[3]
    assert right.mean() > 0.8


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_random_state(digits):
    settings = TrainSettings(epochs=2, batch=64, seed=3, **PLAIN)
    first, second, other = small_network(), small_network(), small_network()
    fit(first, batches(digits), settings)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    fit(second, batches(digits), settings)
    assert torch.equal(state, torch.random.get_rng_state())
    assert same_weights(first, second)
    fit(other, batches(digits), settings.model_copy(update={"seed": 4}))
    assert not same_weights(first, other)


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_killed_run_ends_in_the_same_weights_bit_for_bit(
    digits, tmp_path, optimizer, channels_last
):
    settings = TrainSettings(
        epochs=4, batch=64, lr=0.01, optimizer=optimizer, clip_norm=1.0, patience=4,
        precision="fp32", channels_last=channels_last,
    )  # fmt: skip
    data = batches(digits, augment=shift_crop(1))
    validate = validator(held_out(digits), classification_loss(settings), 10)
    whole = small_network()
    result = fit(whole, data, settings, validate=validate)
    random = np.random.default_rng(0)
    resumed, runs = small_network(), 0
    while runs < 10:
        # Killed after a random step, over and over, each time a new network and a new data object.
        left = int(random.integers(5, 60))

        def kill(*step):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        resumed, runs = small_network(seed=runs), runs + 1
        if runs == 1:
            resumed = small_network()
        checkpoint = Checkpoint(tmp_path / "c.safetensors", {"settings": settings.model_dump()})
        data = batches(digits, augment=shift_crop(1))
        try:
            second = fit(
                resumed, data, settings, validate=validate, checkpoint=checkpoint, on_step=kill
            )
            break
        except Killed:
            # Before the first checkpoint the network's first weights are those of the whole run.
            if not (tmp_path / "c.safetensors").exists():
                runs = 0
    assert runs > 1
    assert same_weights(whole, resumed)
    assert [e.loss for e in second.epochs] == [e.loss for e in result.epochs]
    assert second.resumed_after > 0


def test_a_checkpoint_of_another_training_names_what_changed(digits, tmp_path):
    def start(settings, code):
        identity = {"settings": settings.model_dump(), "code": code}
        checkpoint = Checkpoint(tmp_path / "c.safetensors", identity)
        fit(small_network(), batches(digits), settings, checkpoint=checkpoint)

    settings = TrainSettings(epochs=1, batch=64, **PLAIN)
    start(settings, "a")
    with pytest.raises(InputError, match="other code or first weights;"):
        start(settings, "b")
    with pytest.raises(InputError, match=r"settings \(lr 0.1, now 0.2\)"):
        start(settings.model_copy(update={"lr": 0.2}), "a")
    (tmp_path / "c.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="cannot be read"):
        start(settings, "a")


def test_a_full_disk_keeps_the_checkpoint_before(digits, tmp_path, monkeypatch):
    import safetensors.torch
    from safetensors import SafetensorError

    settings = TrainSettings(epochs=3, batch=64, **PLAIN)
    write, calls = safetensors.torch.save_file, []

    def full_at_the_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            # As safetensors 0.8 tells it: no OSError.
            raise SafetensorError("Error while serializing: I/O error: No space … (os error 28)")
        return write(*arguments)

    monkeypatch.setattr(safetensors.torch, "save_file", full_at_the_second)
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    with pytest.raises(EdgemlError, match="no space left"):
        fit(small_network(), batches(digits), settings, checkpoint=checkpoint)
    assert len(checkpoint.load()[0].epochs) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_nan_stops_with_the_place_and_keeps_the_last_good_epoch(digits, tmp_path):
    module, calls = small_network(), []
    settings = TrainSettings(epochs=3, batch=64, **PLAIN)
    plain = classification_loss(settings)

    def breaks(module, inputs, targets):
        calls.append(1)
        value = plain(module, inputs, targets)
        return value * float("nan") if len(calls) == 19 + 5 else value

    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    with pytest.raises(InputError, match=r"nan in epoch 2, step 5 .*epoch 1 is kept") as caught:
        fit(module, batches(digits), settings, loss=breaks, checkpoint=checkpoint)
    assert "\n" not in str(caught.value)
    assert len(checkpoint.load()[0].epochs) == 1


def test_early_stopping_keeps_the_best_weights(digits):
    module, seen = small_network(), []

    def validate(module):
        seen.append({k: v.clone() for k, v in module.state_dict().items()})
        return {"loss": [3.0, 1.0, 2.0, 2.0, 0.0][len(seen) - 1]}

    settings = TrainSettings(epochs=5, batch=64, patience=2, **PLAIN)
    result = fit(module, batches(digits), settings, validate=validate)
    assert len(result.epochs) == 4 and result.best_epoch == 2
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in seen[1].items())
    with pytest.raises(InputError, match="needs validation"):
        fit(module, batches(digits), settings)


def test_execution_is_chosen_once_and_does_not_change_the_module(digits, tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    result = fit(small_network(), batches(digits), TrainSettings(epochs=1, batch=64))
    assert result.execution.precision in ("fp32", "bf16")
    forced = TrainSettings(epochs=1, batch=64, precision="bf16", channels_last=True, threads=1)
    fit(small_network(), batches(digits), forced, checkpoint=checkpoint)
    # A resumed run takes what is stored, whatever would be measured now.
    again = fit(
        small_network(), batches(digits), TrainSettings(epochs=2, batch=64), checkpoint=checkpoint
    )
    assert (again.execution.precision, again.execution.channels_last) == ("bf16", True)
    assert again.execution.threads == 1 and again.resumed_after == 1


def test_settings_are_checked_with_one_line():
    with pytest.raises(InputError, match="did you mean epochs"):
        build_settings({"epoch": 3})
    for wrong in ({"epochs": 0}, {"lr": -1}, {"optimizer": "sgdd"}, {"lr": float("nan")}):
        with pytest.raises(InputError) as caught:
            build_settings(wrong)
        assert next(iter(wrong)) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"schedule": "step"}, "never drops"),
        ({"lr_drop_epochs": (2,)}, "--schedule step"),
        ({"schedule": "step", "lr_drop_epochs": (0, 2)}, "counted from 1"),
        ({"nesterov": True}, "nesterov is of sgd"),
        ({"optimizer": "sgd", "nesterov": True, "momentum": 0.0}, "needs a momentum"),
        ({"loss": "mse", "label_smoothing": 0.1}, "of cross-entropy"),
        ({"clip_norm": float("inf")}, "clip_norm"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(given, told):
    with pytest.raises(InputError, match=told):
        build_settings(given)


def test_a_validation_that_is_no_number_stops_and_keeps_the_last_good_epoch(digits, tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    losses = iter([1.0, float("nan")])
    settings = TrainSettings(epochs=3, batch=64, **PLAIN)
    with pytest.raises(InputError, match=r"validation loss became nan in epoch 2.*epoch 1 is kept"):
        fit(
            small_network(), batches(digits), settings,
            validate=lambda module: {"loss": next(losses)}, checkpoint=checkpoint,
        )  # fmt: skip
    assert len(checkpoint.load()[0].epochs) == 1


def test_a_lone_last_sample_does_not_stop_a_network_with_batch_norm():
    x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    data = ArrayBatches({"input": x}, np.arange(9) % 2, 4)
    assert [len(y) for _, y in data.epoch(0)] == [4, 4] and len(data) == 2
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert len(fit(network, data, TrainSettings(epochs=2, batch=4, **PLAIN)).epochs) == 2
    scored = ArrayBatches({"input": x}, np.arange(9) % 2, 4, shuffle=False)
    assert [len(y) for _, y in scored.epoch(0)] == [4, 4, 1]  # what is scored is whole


def test_batches_cover_every_sample_once_and_refuse_what_does_not_fit():
    x = np.arange(10, dtype=np.float32)[:, None]
    data = ArrayBatches({"x": x}, np.arange(10), 4)
    seen = [int(v) for inputs, _ in data.epoch(1) for v in inputs["x"]]
    assert sorted(seen) == list(range(10)) and seen != list(range(10)) and len(data) == 3
    assert seen == [int(v) for _, targets in data.epoch(1) for v in targets]
    with pytest.raises(DataError, match="larger than the data"):
        ArrayBatches({"x": x}, np.arange(10), 11)
    with pytest.raises(DataError, match="no samples"):
        ArrayBatches({"x": x[:0]}, np.arange(0), 1)
    with pytest.raises(DataError, match="10 samples, targets 9"):
        ArrayBatches({"x": x}, np.arange(9), 1)


def test_augmentation_moves_and_mirrors_pixels_and_nothing_else():
    random = torch.Generator().manual_seed(0)
    image = torch.zeros(50, 2, 8, 8)
    image[:, 1, 4, 4] = 1.0
    moved = shift_crop(2)(image, random)
    assert moved.shape == image.shape and torch.equal(moved.sum((1, 2, 3)), torch.ones(50))
    assert moved[:, 0].sum() == 0
    rows = moved[:, 1].amax(2).argmax(1)
    assert set(rows.tolist()) == {2, 3, 4, 5, 6}
    ramp = torch.arange(8.0).expand(50, 1, 4, 8)
    mirrored = flip(ramp, random)
    changed = (mirrored != ramp).any(3).any(2)[:, 0]
    assert 10 < changed.sum() < 40
    assert torch.equal(mirrored[changed], ramp[changed].flip(-1))


def test_scores_agree_with_scikit_learn():
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    random = np.random.default_rng(0)
    logits = random.normal(size=(200, 4)).astype(np.float32)
    targets = random.integers(0, 4, 200)
    data = ArrayBatches({"input": logits}, targets, 64, shuffle=False)
    scores = score_classifier(nn.Identity(), data, classification_loss(TrainSettings()), 4)
    answers = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(targets, answers, average="macro")
    assert scores.n == 200
    assert np.allclose([scores.precision, scores.recall, scores.f1], [precision, recall, f1])
    assert scores.accuracy == pytest.approx((answers == targets).mean())
    assert scores.confusion == confusion_matrix(targets, answers).tolist()


def test_weights_that_the_last_step_made_infinite_are_no_checkpoint(tmp_path):
    x = np.full((8, 1), 1e6, np.float32)
    data = ArrayBatches({"input": x}, np.arange(8) % 2, 8)  # half of them wrong: a steep loss
    settings = TrainSettings(epochs=1, schedule="constant", **{**PLAIN, "lr": 3e38})
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    with pytest.raises(InputError, match="weight became NaN or infinite in epoch 1; use a lower"):
        fit(nn.Linear(1, 2), data, settings, checkpoint=checkpoint)
    assert not checkpoint.path.exists()


def test_a_loss_without_a_bf16_form_trains_in_fp32(digits):
    def loss(module, inputs, targets):
        if torch.is_autocast_enabled("cpu"):
            raise TaskError("the task's loss raises RuntimeError: not implemented for BFloat16")
        return nn.functional.cross_entropy(module(**inputs), targets)

    settings = TrainSettings(epochs=1, threads=1, channels_last=False)
    assert fit(small_network(), batches(digits), settings, loss=loss).execution.precision == "fp32"


def test_batchnorm_with_a_single_row_is_told_in_one_line():
    x = np.zeros((8, 4), np.float32)
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    data = ArrayBatches({"input": x}, np.zeros(8, np.int64), batch=1)
    with pytest.raises(InputError, match=r"BatchNorm was given a single row.*use a larger --batch"):
        fit(module, data, TrainSettings(epochs=1, batch=1))
