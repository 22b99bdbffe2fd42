"""A tokenizer learnt from the training texts, with its length, padding and truncation in its file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..artifact.atomic_file import disk_errors, write_text
from ..artifact.content_hash import hash_json
from ..errors import DataError, InputError, MissingPart, one_line

PADDING, UNKNOWN = "[PAD]", "[UNK]"  # ids 0 and 1


class TokenizerSettings(BaseModel):
    """How texts become ids.

    Attributes:
        kind: ``word`` (white space and punctuation part words) or ``bpe`` (byte pairs).
        vocabulary: at most so many ids, padding and unknown included.
        max_length: tokens; longer texts are cut, shorter ones padded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["word", "bpe"] = "word"
    vocabulary: int = Field(default=10_000, ge=3)
    max_length: int = Field(default=128, ge=1)


def learn_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> tuple[Path, int]:
    """Learn a tokenizer, or take it from the cache when the same texts were seen before.

    Returns:
        Its file, named by the content of texts and settings, and the number of its ids.

    Raises:
        DataError: the texts hold no token.
        MissingPart: tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    except ImportError as e:
        raise MissingPart(
            f"texts need tokenizers ({one_line(e)}): pip install 'edgeml-toolchain[text]'"
        ) from e
    texts = list(texts)
    path = _cached(hash_json({"texts": texts, **settings.model_dump()}))
    if not path.is_file():
        special = {"special_tokens": [PADDING, UNKNOWN], "vocab_size": settings.vocabulary}
        if settings.kind == "word":
            tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            trainer = trainers.WordLevelTrainer(show_progress=False, **special)
        else:
            tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
            trainer = trainers.BpeTrainer(show_progress=False, **special)
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.train_from_iterator(texts, trainer)
        if tokenizer.get_vocab_size() <= 2:
            raise DataError("the training texts hold no token")
        tokenizer.enable_truncation(settings.max_length)
        tokenizer.enable_padding(pad_id=0, pad_token=PADDING, length=settings.max_length)
        _write(path, tokenizer)
    vocabulary = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    return path, len(vocabulary)


def keep_tokenizer(tokenizer: Any) -> Path:
    """A ``tokenizers.Tokenizer`` as a file in the cache, named by its content."""
    path = _cached(hash_json(tokenizer.to_str()))
    if not path.is_file():
        _write(path, tokenizer)
    return path


def _cached(name: str) -> Path:
    cache = Path(os.environ.get("EDGEML_CACHE") or Path.home() / ".cache" / "edgeml")
    return cache / "tokenizers" / f"{name[:32]}.json"


def _write(path: Path, tokenizer: Any) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, tokenizer.to_str())


def build_tokenizer_settings(values: dict[str, Any]) -> TokenizerSettings:
    """From plain values, None where not given.

    Raises:
        InputError: an unknown kind, or a number that is too small.
    """
    try:
        return TokenizerSettings(**{k: v for k, v in values.items() if v is not None})
    except ValidationError as e:
        first = e.errors()[0]
        raise InputError(
            f"tokenizer {first['loc'][0]}: {first['msg']}, got {first['input']!r}"
        ) from e
