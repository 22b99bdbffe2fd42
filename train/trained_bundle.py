"""What `edgeml train` leaves behind, opened again: a bundle of weights and the words that build them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..artifact.bundle import MANIFEST, Bundle
from ..errors import BundleError
from .data_source import runs_code
from .kept_code import run_kept_code

WEIGHTS, TOKENIZER, CONFIG = "weights.safetensors", "tokenizer.json", "config.json"
HISTORY = "prune_history.json"  # see prune_history.py


def is_trained(bundle: Bundle) -> bool:
    """Whether the bundle is a training's, without an ONNX file or engines yet."""
    return "trained" in bundle.manifest.model


def build_trained(bundle: Bundle) -> Any:
    """The module of a training's bundle, in eval mode, with its weights.

    A zoo or timm network is built by its name, one of transformers from the bundle's config.json
    (no network is asked, no code of others runs). A user's factory is run from the text that the bundle keeps:
    open the bundle with `trust_code` only where its maker is trusted.

    Raises:
        BundleError: the manifest does not say how to build it.
        ModelError: the code raises, or the weights do not fit.
    """
    from .weights import load_weights

    trained = bundle.manifest.model["trained"]
    known = {"zoo", "factory", "hf", "timm"}
    if not isinstance(trained, dict) or not known & trained.keys():
        raise BundleError(f"{bundle.root}: its manifest does not say how to build the network")
    if "zoo" in trained:
        from .zoo.catalogue import build_zoo

        module = build_zoo(trained["zoo"], trained.get("options"))
    elif "hf" in trained:
        from .hf_model import build_hf

        module = build_hf(bundle.file(CONFIG))
    elif "timm" in trained:
        from .timm_model import build_timm

        module = build_timm(trained["timm"], trained.get("options"))
    else:
        code = bundle.manifest.model.get("user_code")
        module = run_kept_code(str(bundle.root), code, str(trained["factory"]))
    if HISTORY in bundle.manifest.files:  # pruned since: the weights are of what is left
        from .prune_history import read_history, replay

        replay(module, read_history(bundle.file(HISTORY)))
    load_weights(module, bundle.file(WEIGHTS))
    return module.eval()


def run_defaults(model: str, trust_code: bool = False, data: str | None = None) -> dict[str, Any]:
    """Recipe values that a training's bundle gives: its data, preprocessing and classes.

    Args:
        model: a recipe's model; anything but such a directory gives {}.
        trust_code: its data may be code that runs.
        data: what the user gave. The words that the training was given mean the run's own (``cut:…``): the
            source itself would be cut anew, and trained samples scored. Of other data only the
            preprocessing follows from the run.

    Raises:
        BundleError: its data is code, and not trusted.
    """
    root = Path(model)
    if not (root / MANIFEST).is_file():
        return {}
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        if "trained" not in manifest["model"]:
            return {}
        words = "task" if manifest["recipe"].get("task") else "data"
        found: dict[str, Any] = {words: manifest["data"]["source"]}
        scheme, colon, inner = found[words].partition(f"/{TOKENIZER}:")
        if colon and scheme.startswith("tokens:"):  # the run may have been moved since
            found["data"] = f"tokens:{root}/{TOKENIZER}:{inner}"
        same = data is None or f":{found[words]}".endswith(f":{data}")
        if not same:
            found = {}
        preprocess = root / "preprocess.json"
        if preprocess.is_file():
            found["preprocess"] = json.loads(preprocess.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # opening the bundle says what is wrong with it
    if not same:
        return found
    if data is None and runs_code(str(found[words])) and not trust_code:
        raise BundleError(
            f"{model} names user code for its {words} ({found[words]}); --trust-code runs it, if you "
            f"trust its maker, and --{words} gives another"
        )
    if (root / "classes.txt").is_file():
        found["classes"] = str(root / "classes.txt")
    return found
