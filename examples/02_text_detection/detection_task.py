"""Finding lines of text on a page: a detector's task, judged by the overlap (IoU) of its boxes."""

import importlib.util
from pathlib import Path

import numpy as np
from drawn_pages import drawn_pages
from text_boxes import boxes_of, page_score

PACKAGE = importlib.util.find_spec("rapidocr_onnxruntime")  # not imported: that would take OpenCV
if PACKAGE is None:
    raise SystemExit("rapidocr-onnxruntime is missing: README.md says how to install it")
MODEL = Path(PACKAGE.origin).parent / "models" / "ch_PP-OCRv4_det_infer.onnx"


class Task:
    primary, lower_is_better = "IoU", False

    def samples(self, split):
        for page, boxes in drawn_pages(split):
            yield {"x": (page / 127.5 - 1).transpose(2, 0, 1).astype(np.float32)}, boxes

    def decode(self, outputs):  # a map [1, height, width] of probabilities → boxes
        return boxes_of(next(iter(outputs.values()))[0])

    def per_sample(self, found, truth):  # its mean over the pages is the metric: tighter intervals
        return page_score(found, truth)

    def score(self, pages, truths):
        every = [page_score(found, truth) for found, truth in zip(pages, truths, strict=True)]
        return {"IoU": np.mean(every), "pages below 0.5": np.mean(np.less(every, 0.5))}


if __name__ == "__main__":
    print(MODEL)
