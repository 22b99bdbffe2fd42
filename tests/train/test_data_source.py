"""Every kind of data: what it reads, how it names classes and splits, and what it refuses."""

import io
import zipfile

import numpy as np
import pytest
from edgeml.errors import DataError
from edgeml.train.data_source import open_source
from PIL import Image


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tree(root, names):
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    return root


def refused(text, classes=None):
    with pytest.raises(DataError) as e:
        open_source(text, classes)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_digits_and_mnist5k_ship_with_dependencies_and_have_all_splits():
    for name, n, kind in (("digits", 1797, "array"), ("mnist5k", 5000, "image")):
        source = open_source(name)
        assert (len(source), source.kind, len(source.classes)) == (n, kind, 10)
        share = {s: source.splits.count(s) / n for s in ("train", "validation", "test")}
        assert share == pytest.approx({"train": 0.6, "validation": 0.2, "test": 0.2}, abs=0.01)
    image = Image.open(io.BytesIO(source.read(4999)))
    assert image.size == (28, 28)


def test_imagefolder_takes_a_class_a_folder_in_sorted_order(tmp_path):
    source = open_source(f"imagefolder:{tree(tmp_path, ['dog/1.png', 'cat/1.png', 'dog/2.PNG'])}")
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 1, 1]
    assert source.splits is None
    assert source.read(0) == png(1)


def test_imagefolder_sorts_numbers_by_value(tmp_path):
    source = open_source(f"imagefolder:{tree(tmp_path, ['10/a.png', '9/a.png', '2/a.png'])}")
    assert source.classes == ["2", "9", "10"]


def test_imagefolder_takes_split_folders(tmp_path):
    names = ["train/a/1.png", "valid/a/2.png", "Test/b/3.png"]
    source = open_source(f"imagefolder:{tree(tmp_path, names)}")
    by_place = dict(zip(source.places, source.splits, strict=True))
    assert by_place == {
        "train/a/1.png": "train",
        "valid/a/2.png": "validation",
        "Test/b/3.png": "test",
    }


def test_imagefolder_reads_a_zip_with_a_folder_around_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for seed, name in enumerate(["set/a/1.png", "set/b/2.png", "__MACOSX/set/a/1.png"]):
            archive.writestr(name, png(seed))
    source = open_source(f"imagefolder:{tmp_path / 'd.zip'}")
    assert (source.classes, len(source)) == (["a", "b"], 2)
    assert source.read(1) == png(1)


def test_classes_given_fix_the_order_and_leave_others_unknown(tmp_path):
    root = tree(tmp_path, ["cat/1.png", "dog/1.png", "eel/1.png"])
    source = open_source(f"imagefolder:{root}", ["dog", "cat"])
    assert source.labels.tolist() == [1, 0, -1]
    assert source.unknown == {2: "eel"}


def test_csv_paths_are_relative_to_it_and_labels_are_numbers_or_names(tmp_path):
    tree(tmp_path, ["pics/1.png", "pics/2.png"])
    (tmp_path / "a.csv").write_text("file,label\npics/1.png,7\npics/2.png,0\n")
    (tmp_path / "b.csv").write_text("label,file,split\ndog,pics/1.png,val\ncat,pics/2.png,test\n")
    numbers = open_source(f"images-csv:{tmp_path / 'a.csv'}")
    assert (numbers.labels.tolist(), numbers.classes) == ([7, 0], None)
    assert numbers.read(0) == png(0)
    names = open_source(f"images-csv:{tmp_path / 'b.csv'}")
    assert (names.labels.tolist(), names.classes) == ([1, 0], ["cat", "dog"])
    assert names.splits == ["validation", "test"]


def test_images_have_no_labels(tmp_path):
    source = open_source(f"images:{tree(tmp_path, ['b/2.png', '1.png', '.hidden/3.png'])}")
    assert source.labels is None
    assert list(source.places) == ["1.png", "b/2.png"]


def test_npz_takes_x_and_y_and_split(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1, 1, 0], split=["train", "val", "test", "test"])
    source = open_source(f"npz:{tmp_path / 'a.npz'}")
    assert source.splits == ["train", "validation", "test", "test"]
    assert source.labels.tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal(source.read(2), x[2])
    np.savez(tmp_path / "b.npz", x=x, y=["b", "a", "b", "b"])
    named = open_source(f"npz:{tmp_path / 'b.npz'}")
    assert (named.classes, named.labels.tolist()) == (["a", "b"], [1, 0, 1, 1])


def test_npz_of_python_objects_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], object), allow_pickle=True)
    assert "no .npz archive of plain arrays" in refused(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize(
    "body",
    [
        "return np.ones((4, 2), np.float32), np.array([0, 1, 0, 1])",
        "return [(np.ones(2, np.float32), i % 2) for i in range(4)]",
        "return {'val': (np.ones((2, 2), np.float32), np.arange(2)), 'test': [(np.ones(2), 1)] * 2}",
    ],
)
def test_a_factory_gives_samples_in_three_forms(tmp_path, body):
    file = tmp_path / "data.py"
    file.write_text(f"import numpy as np\ndef make():\n    {body}\n")
    source = open_source(f"{file}:make")
    assert len(source) == 4 and source.labels.tolist().count(1) >= 2
    if "val" in body:
        assert source.splits == ["validation"] * 2 + ["test"] * 2


def test_a_factory_may_give_encoded_images(tmp_path):
    (tmp_path / "one.png").write_bytes(png(0))
    file = tmp_path / "data.py"
    file.write_text(
        "from pathlib import Path\n"
        "def make():\n"
        "    data = Path(__file__).with_name('one.png').read_bytes()\n"
        "    return [(data, 0), (data, 1)]\n"
    )
    source = open_source(f"{file}:make")
    assert source.kind == "image" and source.read(1) == png(0)


def test_the_fingerprint_is_of_content_labels_and_order(tmp_path):
    root = tree(tmp_path, ["a/1.png", "b/2.png"])
    prints = [open_source(f"imagefolder:{root}").fingerprint]
    assert open_source(f"imagefolder:{root}").fingerprint == prints[0]
    prints.append(open_source(f"imagefolder:{root}", ["b", "a"]).fingerprint)
    (root / "a/1.png").write_bytes(png(9))
    prints.append(open_source(f"imagefolder:{root}").fingerprint)
    assert len(set(prints)) == 3


def test_what_is_missing_or_misspelt_is_named(tmp_path):
    assert "did you mean digits?" in refused("digit")
    assert "did you mean imagefolder:?" in refused("imagefoldr:x")
    assert "imagefolder:" in refused("imagefolder:") and "DIR or .zip" in refused("imagefolder:")
    assert "neither a directory nor a .zip" in refused(f"imagefolder:{tmp_path / 'no'}")
    assert f"imagefolder:{tmp_path} (a folder a class)" in refused(str(tmp_path))
    (tmp_path / "a.csv").write_text("path,label\n")
    assert f"images-csv:{tmp_path / 'a.csv'}" in refused(str(tmp_path / "a.csv"))
    assert "no column 'file' (columns: path, label" in refused(f"images-csv:{tmp_path / 'a.csv'}")
    (tmp_path / "b.csv").write_text("file,label\n")
    assert "holds no sample" in refused(f"images-csv:{tmp_path / 'b.csv'}")
    assert "cannot be read: No such file" in refused(f"images-csv:{tmp_path / 'no.csv'}")
    assert "holds no image" in refused(f"images:{tmp_path}")
    assert "no file at" in refused(f"npz:{tmp_path / 'no.npz'}")


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    assert "is no zip, or is cut short" in refused(f"imagefolder:{tmp_path / 'a.zip'}")
    (tmp_path / "a.npz").write_bytes(b"")
    assert "no .npz archive" in refused(f"npz:{tmp_path / 'a.npz'}")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00file")
    assert "no CSV of UTF-8 text" in refused(f"images-csv:{tmp_path / 'a.csv'}")
    tree(tmp_path, ["loose.png"])
    assert "1 images lie in no class folder" in refused(f"imagefolder:{tmp_path}")


def test_arrays_that_do_not_fit_are_named(tmp_path):
    def saved(**arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return refused(f"npz:{tmp_path / 'a.npz'}")

    x = np.zeros((3, 2), np.float32)
    assert "no array x (arrays: y)" in saved(y=[1])
    assert "y has shape (2,) for 3 samples" in saved(x=x, y=[0, 1])
    assert "y[1] is 0.5" in saved(x=x, y=[0, 0.5, 1])
    assert "unknown split 'dev'" in saved(x=x, split=["dev"] * 3)
    assert "x is <U1" in saved(x=np.array([["a"]]))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 3", "gives int; it must give"),
        ("return []", "gives no sample"),
        ("return [(1,)]", "item 0 is no (sample, whole number)"),
        ("return {'dev': []}", "'dev' is no split"),
        ("1 / 0", "data.py:3 raised ZeroDivisionError"),
        ("return np.ones((2, 1)), np.ones(3)", "2 samples and 3 labels"),
        ("return [(np.ones(1), 0), (np.ones(2), 0)]", "samples of different shapes"),
    ],
)
def test_a_factory_that_breaks_the_contract_is_named(tmp_path, body, said):
    file = tmp_path / "data.py"
    file.write_text(f"import numpy as np\ndef make():\n    {body}\n")
    assert said in refused(f"{file}:make")
    assert "has no mak, did you mean make?" in refused(f"{file}:mak")


def test_a_csv_with_spaces_in_its_head_or_a_label_beyond_64_bits_is_read(tmp_path):
    tree(tmp_path, ["1.png", "2.png"])
    (tmp_path / "d.csv").write_text("file, label\n1.png,3\n2.png,99999999999999999999\n")
    source = open_source(f"images-csv:{tmp_path / 'd.csv'}")
    assert source.labels[0] == 3 and source.unknown == {1: "99999999999999999999"}


def test_damaged_compressed_data_is_a_bad_sample_or_a_refused_file(tmp_path):
    def damage(path, at):
        data = bytearray(path.read_bytes())
        data[at : at + 10] = b"\xff" * 10
        path.write_bytes(data)

    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", png(1) + bytes(5000))
        archive.writestr("b/1.png", png(2))
    damage(tmp_path / "d.zip", 30 + len("a/1.png") + 5)
    (reason,) = open_source(f"imagefolder:{tmp_path / 'd.zip'}").faults.values()
    assert "a/1.png cannot be read" in reason[1]
    np.savez_compressed(tmp_path / "d.npz", x=np.arange(40.0).reshape(8, 5))
    damage(tmp_path / "d.npz", 60)
    assert "no .npz archive of plain arrays" in refused(f"npz:{tmp_path / 'd.npz'}")


def test_a_zip_member_that_claims_to_be_enormous_is_not_unpacked(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", png(1))
        archive.writestr("b/1.png", bytes(100_000))
        archive.writestr("a/._1.png", b"macOS")
    monkeypatch.setattr("edgeml.train.sources.imagefolder.LARGEST_IMAGE", 50_000)
    source = open_source(f"imagefolder:{tmp_path / 'd.zip'}")
    assert len(source) == 2  # without the system's own
    assert "unpacks to 100,000 bytes" in source.faults[1][1]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return {}", "gives no sample"),
        ("return np.zeros((2, 3)), np.array(['a', 'b'])", "item 0 is no (sample, whole number)"),
        ("return np.zeros((2, 3)), np.array([1, 0.5])", "item 1 is no (sample, whole number)"),
        ("yield np.zeros(3), 1; raise OSError('gone')", "d.py:3 raised OSError: gone"),
    ],
)
def test_a_factory_that_gives_something_else_is_told_in_one_line(tmp_path, body, told):
    (tmp_path / "d.py").write_text(f"import numpy as np\ndef f():\n    {body}\n")
    assert told in refused(f"{tmp_path / 'd.py'}:f")
