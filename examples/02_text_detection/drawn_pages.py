"""The data set: pages with lines of text, drawn by Pillow, so where each line lies is known."""

import os
import random
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SPLITS = ("train", "validation", "test")
SAMPLES = int(os.environ.get("EXAMPLE_SAMPLES", "200"))  # in each split; the tests take few
SIDE = int(os.environ.get("EXAMPLE_SIDE", "320"))  # pixels, a multiple of 32
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZabcdefghkmnpqrstuvwxyz23456789"
NOISE = 20  # standard deviation, of 255


def drawn_pages(split: str) -> Iterator[tuple[np.ndarray, list[tuple[float, ...]]]]:
    """RGB images [side, side, 3] of 0 to 255 and a box (left, top, right, bottom) a line of text.

    A page's number is its seed and its first word, so no page is in two splits, nor twice.
    """
    first = SPLITS.index(split) * SAMPLES
    for number in range(first, first + SAMPLES):
        rng = random.Random(number)
        page = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(180, 255) for _ in "RGB"))
        draw, boxes, words, y = ImageDraw.Draw(page), [], [f"{number:04}"], rng.randint(4, 20)
        while True:
            text = words.pop() if words else "".join(rng.choices(LETTERS, k=rng.randint(4, 10)))
            font = ImageFont.load_default(rng.randint(14, 28))
            x, ink = rng.randint(4, SIDE // 3), tuple(rng.randint(0, 90) for _ in "RGB")
            right, bottom = x + font.getlength(text), y + sum(font.getmetrics())
            if bottom > SIDE - 4:
                break
            if right < SIDE - 4:
                draw.text((x, y), text, ink, font)
                boxes.append((x, y, right, bottom))
            y = bottom + rng.randint(4, 40)
        noise = np.random.default_rng(number).normal(0, NOISE, (SIDE, SIDE, 3))
        yield np.clip(np.asarray(page) + noise, 0, 255), boxes
