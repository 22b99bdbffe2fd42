"""`hf:NAME` data: read by the library datasets where it is, one line where it is not."""

import csv
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
from edgeml.errors import DataError, MissingPart
from edgeml.train.data_source import open_source
from edgeml.train.sources import hf_dataset

HERE = importlib.util.find_spec("datasets") is not None


@pytest.mark.skipif(HERE, reason="datasets is installed")
def test_without_the_library_it_says_what_to_install_and_what_needs_none():
    with pytest.raises(MissingPart) as caught:
        open_source("hf:news")
    assert "pip install -c constraints.txt datasets" in str(caught.value)
    assert "text-csv:DIR" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not HERE, reason="datasets is not installed")
def test_a_folder_of_csv_files_gives_texts_labels_and_splits(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split, rows in (("train", [("a b", "x"), ("c", "y")]), ("test", [("d", "x")])):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    source = open_source(f"hf:{tmp_path}")
    assert source.kind == "text" and source.splits == ["train", "train", "test"]
    assert source.classes == ["x", "y"] and source.labels.tolist() == [0, 1, 0]
    assert source.read(0) == "a b"
    with pytest.raises(DataError, match="cannot be read"):
        open_source(f"hf:{tmp_path / 'none'}")


def test_a_library_that_could_run_a_repositorys_code_is_refused(monkeypatch):
    old = ModuleType("datasets")
    old.__version__ = "3.6.0"
    monkeypatch.setitem(sys.modules, "datasets", old)
    with pytest.raises(MissingPart, match=r"datasets 3\.6\.0 can run code"):
        open_source("hf:news")


def test_a_missing_label_names_no_class():
    class Part(dict):
        features = {"label": SimpleNamespace(names=["x", "y"])}  # noqa: RUF012

    assert hf_dataset._words(Part(label=[1, None, -1]), "label") == ["y", "", "-1"]
