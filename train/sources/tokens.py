"""``tokens:TOKENIZER.json:SOURCE``: a source of texts as what a text network takes, int64 [length].

A sample holds ``input_ids``, ``attention_mask`` (0 is padding) and ``token_type_ids``, the names that
BERT and its kin have; a network of one input gets the ids.

Vocabulary, normalisation, truncation and padding are all in the file, which `tokenizers` reads in
any language it has bindings for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ...artifact.token_inputs import INPUTS, token_inputs
from ...errors import DataError, MissingPart, one_line
from ..data_source import DataSource, open_source


def tokens(text: str, classes: list[str] | None = None) -> DataSource:
    """Texts of another source as ids of a tokenizer that truncates and pads.

    Raises:
        DataError: the file is no tokenizer of fixed length, or SOURCE gives no texts.
        MissingPart: tokenizers is not installed.
    """
    file, found, inner = text.partition(".json:")
    if not found:
        raise DataError(f"tokens:{text} names no FILE.json:SOURCE")
    tokenizer = _read_tokenizer(Path(f"{file}.json"))
    source = open_source(inner, classes)
    if source.kind != "text":
        raise DataError(f"{inner} gives no texts; tokens: is for text-csv:")

    def read(index: int) -> dict[str, np.ndarray]:
        arrays = token_inputs(tokenizer, source.read(index))
        if not arrays["attention_mask"].any():
            raise DataError("is a text without tokens")
        return arrays

    return replace(source, kind="array", read=read, inputs=INPUTS, text=source.read)


def tokenizer_file(data: str | None) -> Path | None:
    """The tokenizer that ``tokens:FILE.json:SOURCE`` names; None of any other words."""
    scheme, _, text = (data or "").partition(":")
    file, found, _ = text.partition(".json:")
    return Path(f"{file}.json") if scheme == "tokens" and found else None


def _read_tokenizer(path: Path) -> object:
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise MissingPart(
            f"texts need tokenizers ({one_line(e)}): pip install 'edgeml-toolchain[text]'"
        ) from e
    if not path.is_file():
        raise DataError(f"no tokenizer at {path}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # tokenizers raises plain Exception
        raise DataError(f"{path} is no tokenizer: {one_line(e)}") from e
    if not tokenizer.padding or not tokenizer.padding.get("length") or not tokenizer.truncation:
        raise DataError(f"{path} neither cuts nor pads to a fixed length")
    return tokenizer
