"""Which importance keeps the most accuracy, and how near Taylor's estimate is to what removing costs.

    EDGEML_DATA=… python benchmarks/pruning_importance.py [resnet20|resnet56]

Published CIFAR-10 ResNets, JPEG images, no fine-tuning. Importances are read from 512 training images;
accuracy is that of 2,000 other training images (the test split is not touched). Nothing is timed.
Writes benchmarks/results/pruning_importance.NETWORK.json and .md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from resnet_cifar_scores import PREPROCESS, RESULTS, data_root
from torch.nn import functional as F

IMPORTANCE_IMAGES, JUDGED_IMAGES, SINGLE_UNITS = 512, 2000, 60
RATIOS = (0.125, 0.25, 0.5)


def images(root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """[2512, 3, 32, 32] and classes, a seeded choice of the training images."""
    from edgeml.artifact.preprocess import ImagePreprocess
    from edgeml.train.classification import Classification
    from edgeml.train.data_source import open_source
    from edgeml.train.sample_stream import SampleStream
    from edgeml.train.splits import Splits

    source = open_source(f"imagefolder:{root / 'cifar10/cifar10.zip'}")
    train = np.array([i for i, split in enumerate(source.splits) if split == "train"])
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(train, IMPORTANCE_IMAGES + JUDGED_IMAGES, replace=False))
    splits = Splits({"test": chosen}, 0, 0, "a choice of the training images")
    stream = SampleStream(source, splits, ImagePreprocess.from_values(PREPROCESS), {"x": "float32"})
    samples = list(Classification(stream, 10).samples("test"))
    order = torch.from_numpy(rng.permutation(len(samples)))
    x = torch.from_numpy(np.stack([np.asarray(inputs["x"]) for inputs, _ in samples]))
    return x[order], torch.tensor([int(target) for _, target in samples])[order]


def loss(module, inputs, targets):
    return F.cross_entropy(module(**inputs), targets)


@torch.no_grad()
def judge(net, x, y) -> tuple[float, float]:
    """Accuracy in per cent and mean loss."""
    logits = torch.cat([net(part) for part in x.split(200)])
    return 100 * float((logits.argmax(1) == y).float().mean()), float(F.cross_entropy(logits, y))


def main() -> None:
    from edgeml.artifact.machine import describe_machine
    from edgeml.compress.prune_groups import find_groups
    from edgeml.compress.prune_model import prune
    from edgeml.train.model_source import open_model
    from scipy.stats import spearmanr

    name = sys.argv[1] if len(sys.argv) > 1 else "resnet20"
    root = data_root()
    weights = root / f"models/cifar10-resnet/{name}.safetensors"
    net = open_model(f"zoo:{name}", weights).module
    x, y = images(root)
    few, few_y, x, y = (
        x[:IMPORTANCE_IMAGES],
        y[:IMPORTANCE_IMAGES],
        x[IMPORTANCE_IMAGES:],
        y[IMPORTANCE_IMAGES:],
    )
    batches = [({"x": a}, b) for a, b in zip(few.split(64), few_y.split(64), strict=True)]
    whole, whole_loss = judge(net, x, y)
    result = {"network": name, "images": len(x), "whole": whole, "rows": []}
    groups = {}
    for importance in ("magnitude", "bn_scale", "taylor"):
        found = find_groups(net, few[:2], importance=importance, loss=loss, batches=batches)
        groups[importance] = [g for g in found if g.kind != "block" or importance == "taylor"]
    rng = np.random.default_rng(0)
    for scope in ("inner channels", "all channels"):
        for ratio in RATIOS:
            row = {"scope": scope, "ratio": ratio}
            for importance, found in groups.items():
                keep = {
                    g.name: g.best(round(g.size * (1 - ratio)))
                    for g in found
                    if g.kind == "channels" and (scope == "all channels" or len(g.members) == 3)
                }
                pruned, _ = prune(net, few[:2], keep=keep, groups=found)
                row[importance] = judge(pruned, x, y)[0]
            at_random = {
                g: sorted(rng.choice(len_of(found, g), len(k), replace=False).tolist())
                for g, k in keep.items()
            }
            pruned, _ = prune(net, few[:2], keep=at_random, groups=found)
            row["random"] = judge(pruned, x, y)[0]
            result["rows"].append(row)
            print(row, flush=True)
    found = groups["taylor"]
    units = [(g, u) for g in found if g.kind == "channels" for u in range(g.size)]
    estimates, changes = [], []
    for index in rng.choice(len(units), SINGLE_UNITS, replace=False):
        group, unit = units[index]
        others = [u for u in range(group.size) if u != unit]
        pruned, _ = prune(net, few[:2], keep={group.name: others}, groups=found)
        estimates.append(float(group.importance[unit]))
        changes.append(judge(pruned, x, y)[1] - whole_loss)
    result["taylor_rank_correlation"] = float(spearmanr(estimates, changes).statistic)
    blocks = [g for g in found if g.kind == "block"]
    rises = [
        judge(prune(net, few[:2], keep={g.name: 0}, groups=found)[0], x, y)[1] - whole_loss
        for g in blocks
    ]
    worth = [float(g.importance[0]) for g in blocks]
    result["block_rank_correlation"] = float(spearmanr(worth, rises).statistic)
    result["machine"] = describe_machine()
    write(name, result)


def len_of(groups, name: str) -> int:
    return next(g.size for g in groups if g.name == name)


def write(name: str, result: dict) -> None:
    stem = RESULTS / f"pruning_importance.{name}"
    stem.with_name(stem.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
    columns = ("magnitude", "bn_scale", "taylor", "random")
    lines = [
        f"# Importance: {name}, top-1 in % after pruning without fine-tuning",
        "",
        f"{result['images']:,} training images that no importance was read from; whole network "
        f"{result['whole']:.2f} %. `python benchmarks/pruning_importance.py {name}`",
        "",
        "| cut | share | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
        *(
            f"| {r['scope']} | {r['ratio']:.1%} | "
            + " | ".join(f"{r[c]:.2f}" for c in columns)
            + " |"
            for r in result["rows"]
        ),
        "",
        f"One unit removed ({SINGLE_UNITS} of them, drawn at random): rank correlation of Taylor's estimate with "
        f"the measured rise of the loss {result['taylor_rank_correlation']:.2f}; one block skipped: "
        f"{result['block_rank_correlation']:.2f} (same score on other images).",
    ]
    stem.with_name(stem.name + ".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
