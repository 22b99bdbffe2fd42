"""``hf:DIR_OR_ID``: a transformers text classifier and its tokenizer, without pickle and remote code.

Weights are read from safetensors only, and code that a repository brings is never run
(``trust_remote_code=False``). A model without a classification head (a sentence encoder, a masked
language model) gets a new one for the data's classes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, MissingPart, ModelError, one_line
from .tokenizer import TokenizerSettings, keep_tokenizer
from .weights import check_finite

INPUTS = ("input_ids", "attention_mask")
_HEAD = "ForSequenceClassification"


class HfClassifier(nn.Module):
    """A sequence classification model of transformers that gives its logits alone.

    input_ids, attention_mask int64 [N, T] -> [N, classes] logits.
    """

    input_dtype = "int64"  # what `edgeml compress` feeds; a signature does not say it

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


@dataclass(frozen=True)
class HfModel:
    """What `open_hf` found.

    Attributes:
        classes: names of the outputs, where the model gives them names of their own.
        new_head: the classification head holds fresh weights.
    """

    module: HfClassifier
    classes: list[str] | None
    new_head: bool


def open_hf(name: str, classes: int | list[str] | None = None) -> HfModel:
    """The classifier of a directory, or of the hub by its id (through transformers' own cache).

    A new head's weights are drawn from torch's current random state.

    Args:
        name: without the ``hf:``.
        classes: the data's number of classes, or their names: of a new head.

    Raises:
        ModelError: it is not there, is no text model, has no safetensors weights, some of them are
            missing or not finite; or it has no classification head and `classes` is None.
        MissingPart: transformers is not installed.
    """
    library = _transformers(name)
    config = _read_config(library, name)
    has_head = any(found.endswith(_HEAD) for found in config.architectures or [])
    if not has_head:
        if classes is None:
            raise ModelError(
                f"hf:{name} has no classification head ({_architecture(config)}); "
                f"edgeml train hf:{name} --data text-csv:FILE -o RUN gives it one"
            )
        names = classes if isinstance(classes, list) else [f"LABEL_{i}" for i in range(classes)]
        config.id2label = dict(enumerate(names))
        config.label2id = {label: i for i, label in enumerate(names)}
    if config.pad_token_id is None:  # decoders look for the last token that is no padding
        config.pad_token_id = _pad_token(_read_tokenizer(library, name))[0]
    with _library_errors(name, "weights"):
        model, info = library.AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    _check_loaded(name, model, info, has_head)
    check_finite(model, f"hf:{name}")
    return HfModel(HfClassifier(model.eval()), _class_names(config), not has_head)


def head_classes(name: str) -> list[str] | None:
    """Names of the outputs of the head that the model has, if they are names and it has one."""
    config = _read_config(_transformers(name), name)
    has_head = any(found.endswith(_HEAD) for found in config.architectures or [])
    return _class_names(config) if has_head else None


def hf_tokenizer(name: str, max_length: int | None = None) -> Path:
    """The model's own tokenizer, cutting and padding to `max_length` tokens, as a file in the cache.

    Args:
        max_length: None: as `edgeml train` has it, or as many as the model takes.

    Raises:
        ModelError: there is none, or it has no `tokenizers` form.
        DataError: the model takes fewer tokens.
    """
    library = _transformers(name)
    config = _read_config(library, name)
    found = _read_tokenizer(library, name)
    most = min(found.model_max_length, getattr(config, "max_position_embeddings", None) or 10**9)
    if max_length is None:
        max_length = min(TokenizerSettings().max_length, most)
    if max_length > most:
        raise DataError(f"--max-length {max_length}: hf:{name} takes {most} tokens at most")
    # A copy: what is set here would stay in the library's own object.
    tokenizer = type(found.backend_tokenizer).from_str(found.backend_tokenizer.to_str())
    pad_id, pad_token = _pad_token(found)
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(
        pad_id=pad_id, pad_token=pad_token, length=max_length, direction="right"
    )
    return keep_tokenizer(tokenizer)


def config_text(module: nn.Module) -> str:
    """``config.json`` of a classifier: with it and its weights `build_hf` makes it again."""
    return module.model.config.to_json_string()


def build_hf(config: Path) -> HfClassifier:
    """The classifier that a ``config.json`` describes, with fresh weights; nothing else is read.

    Raises:
        ModelError: the file describes no text classifier that this transformers knows.
    """
    library = _transformers(str(config))
    with _library_errors(str(config), "config.json"):
        values = json.loads(config.read_text(encoding="utf-8"))
        values.pop("auto_map", None)  # where a repository's own code would be looked for
        config_of = library.AutoConfig.for_model(values.pop("model_type"), **values)
        model = library.AutoModelForSequenceClassification.from_config(config_of)
    return HfClassifier(model.float())


def _transformers(name: str) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # It would ask the hub to convert a repository's pickled weights, behind the user's back.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        import transformers
    except ImportError as e:
        raise MissingPart(
            f"hf:{name} needs transformers, which does not import here ({one_line(e)}); install it "
            "under the constraints: pip install -c constraints.txt 'edgeml-toolchain[hf]'"
        ) from e
    return transformers


def _read_config(library: Any, name: str) -> Any:
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise ModelError(f"hf:{name}: there is no such directory")
    with _library_errors(name, "config.json"):
        return library.AutoConfig.from_pretrained(name, trust_remote_code=False)


def _read_tokenizer(library: Any, name: str) -> Any:
    with _library_errors(name, "tokenizer"):
        found = library.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not getattr(found, "is_fast", False):
        raise ModelError(
            f"hf:{name}: its tokenizer has no tokenizer.json form, which edgeml keeps in bundles"
        )
    return found


def _pad_token(tokenizer: Any) -> tuple[int, str]:
    """Id and text; models without one are padded by their last token, which the mask hides."""
    token = tokenizer.pad_token or tokenizer.eos_token
    if token is None:
        raise ModelError("the model's tokenizer has no padding token")
    return tokenizer.convert_tokens_to_ids(token), str(token)


def _architecture(config: Any) -> str:
    return ", ".join(config.architectures or [config.model_type])


def _class_names(config: Any) -> list[str] | None:
    names = [str(config.id2label[i]) for i in sorted(config.id2label)]
    return None if names == [f"LABEL_{i}" for i in range(len(names))] else names


def _check_loaded(name: str, model: nn.Module, info: dict[str, Any], has_head: bool) -> None:
    """Whatever was missing now holds random numbers: only a new head may."""
    body = f"{model.base_model_prefix}."
    missing = sorted(
        key
        for key in info["missing_keys"]
        # A pooler stands between body and head, and belongs to the head where it is missing.
        if has_head or (key.startswith(body) and ".pooler." not in key)
    )
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(f"hf:{name}: its weights lack {', '.join(missing[:3])}{more}")


@contextlib.contextmanager
def _library_errors(name: str, part: str) -> Iterator[None]:
    """transformers raises half a page, and reports to stderr; both become one line of ours."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as e:
        if "safetensors" in str(e) or "torch.load" in str(e):
            raise ModelError(
                f"hf:{name} has no readable safetensors weights, and edgeml reads no pickle; where "
                f"you trust it, save_pretrained() writes them ({one_line(e, 120)})"
            ) from e
        if "trust_remote_code" in str(e):
            raise ModelError(
                f"hf:{name} needs code of its repository, which edgeml does not run; load it in a "
                "file.py:factory of your own"
            ) from e
        raise ModelError(f"hf:{name}: its {part} cannot be used: {one_line(e)}") from e
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
