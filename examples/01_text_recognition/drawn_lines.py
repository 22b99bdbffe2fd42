"""The data set: images of one line of text each, drawn by Pillow, so their text is known."""

import os
import random
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SPLITS = ("train", "validation", "test")
SAMPLES = int(os.environ.get("EXAMPLE_SAMPLES", "300"))  # in each split; the tests take few
HEIGHT, WIDTH = 48, 320
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # without I, O and Q, which this font draws like 1 and 0
NOISE = 25  # standard deviation, of 255


def drawn_lines(split: str) -> Iterator[tuple[np.ndarray, str]]:
    """Gray images [48, 320] of 0 to 255 and their text, the same ones every time.

    A sample's number is its seed and part of its text, so no text is in two splits, nor twice.
    """
    first = SPLITS.index(split) * SAMPLES
    for number in range(first, first + SAMPLES):
        rng = random.Random(number)
        text = f"{''.join(rng.choices(LETTERS, k=rng.randint(4, 10)))}{number:04}"
        image = Image.new("L", (WIDTH, HEIGHT), 255)
        place = (rng.randint(2, 10), HEIGHT // 2 + rng.randint(-4, 4))
        font = ImageFont.load_default(rng.randint(20, 30))
        ImageDraw.Draw(image).text(place, text, rng.randint(0, 120), font, anchor="lm")
        noise = np.random.default_rng(number).normal(0, NOISE, (HEIGHT, WIDTH))
        yield np.clip(np.asarray(image) + noise, 0, 255), text
