"""Reading a line of text: a CTC recogniser's task, judged by its character error rate."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
from drawn_lines import drawn_lines
from edit_distance import edits

PACKAGE = importlib.util.find_spec("rapidocr_onnxruntime")  # not imported: that would take OpenCV
if PACKAGE is None:
    raise SystemExit("rapidocr-onnxruntime is missing: README.md says how to install it")
MODEL = Path(PACKAGE.origin).parent / "models" / "ch_PP-OCRv4_rec_infer.onnx"
CHARACTERS = ["", *onnx.load(MODEL).metadata_props[0].value.splitlines(), " "]  # "" is CTC's blank


class Task:
    primary, lower_is_better = "CER", True

    def samples(self, split):
        for gray, text in drawn_lines(split):
            yield {"x": np.stack([gray / 127.5 - 1] * 3).astype(np.float32)}, text

    def decode(self, outputs):  # [steps, 6625] probabilities → text; a class repeated counts once
        best = next(iter(outputs.values())).argmax(axis=1).tolist()
        pairs = zip(best, [0, *best], strict=False)
        return "".join(CHARACTERS[c] for c, before in pairs if c != before).strip()

    def score(self, texts, targets):
        return {"CER": sum(map(edits, texts, targets)) / sum(map(len, targets))}

    def answer(self, text):  # the share of answers that changed is the column "flips"
        return text


if __name__ == "__main__":
    print(MODEL)
