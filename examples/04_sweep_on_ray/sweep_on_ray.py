"""Students are trained wherever Ray has a core; their engines are timed on this machine alone."""

import copy
import os
import sys

import numpy as np
import torch
from edgeml.compress import distillation_loss, prune
from edgeml.compress.prune_model import apply_history
from edgeml.export import to_onnx, to_openvino
from edgeml.runtime import bench, load
from edgeml.train import fit
from edgeml.train.batches import ArrayBatches
from edgeml.train.settings import TrainSettings
from edgeml.train.zoo.resnet import resnet


def train(teacher, history, x, y):
    """On any machine: the weights of a pruned structure, with the original as teacher."""
    student = apply_history(copy.deepcopy(teacher), None, history)
    data = ArrayBatches({"x": x}, y, batch=64)
    fit(student, data, TrainSettings(epochs=2), loss=distillation_loss(teacher))
    return student.state_dict()


def sweep(train_all, teacher, x, y, folder, ratios=(0.25, 0.5)):
    """p50 in ms of the original and of a student a ratio, in interleaved blocks of one process."""
    pruned = [prune(teacher, torch.tensor(x[:1]), ratio=r, round_to=8) for r in ratios]
    for (student, _), weights in zip(
        pruned, train_all([(teacher, history, x, y) for _, history in pruned]), strict=True
    ):
        student.load_state_dict(weights)
    engines = {}
    for name, network in zip(
        ("original", *ratios), (teacher, *(s for s, _ in pruned)), strict=True
    ):
        to_onnx(network, {"x": x[:1]}, folder / f"{name}.onnx")
        engines[str(name)] = load(to_openvino(folder / f"{name}.onnx", folder, str(name)))
    timed = bench(engines, {"x": x[:1]}).timings
    return {name: timing.p50_ms.value for name, timing in timed.items()}


def on_ray(jobs):
    """Each job on a core of the cluster. Ray sends pickles and runs them: trusted networks only."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    # "local" starts Ray here, also where one runs already. A cluster's dashboard is its own affair.
    ray.init(sys.argv[1]) if len(sys.argv) > 1 else ray.init("local", include_dashboard=False)
    try:
        return ray.get([ray.remote(train).remote(*job) for job in jobs])
    finally:
        ray.shutdown()


if __name__ == "__main__":
    from pathlib import Path

    rng = np.random.default_rng(0)
    images = rng.standard_normal((512, 3, 32, 32)).astype(np.float32)
    print(sweep(on_ray, resnet(8).eval(), images, rng.integers(0, 10, 512), Path()))
