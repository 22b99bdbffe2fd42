"""MNIST, Fashion-MNIST and CIFAR-10 by name: read as published, checked, damage told."""

import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading

import numpy as np
import pytest
from edgeml.errors import DataError
from edgeml.train.data_source import open_source
from edgeml.train.sources.archive import Archive, fetch
from edgeml.train.sources.cifar10 import FILES, RECORD
from PIL import Image


def write_idx(path, array):
    head = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.fixture
def mnist(tmp_path):
    random = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 6), ("t10k", 4)):
        arrays[split] = random.integers(0, 256, (n, 28, 28))
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", arrays[split])
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", np.arange(n))
    return tmp_path, arrays


@pytest.mark.parametrize("word", ["mnist", "fashion-mnist"])
def test_idx_files_in_a_folder_are_read_pixel_by_pixel(mnist, word):
    folder, arrays = mnist
    source = open_source(f"{word}:{folder}")
    assert len(source) == 10 and source.splits == ["train"] * 6 + ["test"] * 4
    assert source.labels.tolist() == [*range(6), *range(4)]
    pixels = np.asarray(Image.open(io.BytesIO(source.read(7))))
    assert np.array_equal(pixels, arrays["t10k"][1])
    assert len(source.classes) == 10
    assert any("not the published archive" in note for note in source.notes)


def test_damaged_idx_files_are_named(mnist):
    folder, _ = mnist
    path = folder / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:-1]))
    with pytest.raises(DataError, match="cut short"):
        open_source(f"mnist:{folder}")
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="no idx file"):
        open_source(f"mnist:{folder}")
    path.write_bytes(gzip.compress(b"\0\0\x0d\3" + whole[4:]))
    with pytest.raises(DataError, match="magic"):
        open_source(f"mnist:{folder}")
    path.unlink()
    with pytest.raises(DataError, match="no train-images"):
        open_source(f"mnist:{folder}")


def cifar_archive(path, records=2, prefix="cifar-10-batches-bin/"):
    random, everything = np.random.default_rng(0), {}
    with tarfile.open(path, "w:gz") as archive:
        for name in FILES:
            data = random.integers(0, 256, (records, RECORD), dtype=np.uint8)
            data[:, 0] %= 10
            everything[name] = data
            info = tarfile.TarInfo(prefix + name)
            info.size = data.nbytes
            archive.addfile(info, io.BytesIO(data.tobytes()))
    return everything


@pytest.mark.parametrize("prefix", ["cifar-10-batches-bin/", "../../outside/"])
def test_cifar10_is_read_in_place_and_nothing_is_unpacked(tmp_path, prefix):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    data = cifar_archive(folder / "cifar-10-binary.tar.gz", prefix=prefix)
    source = open_source(f"cifar10:{folder}")
    assert len(source) == 12 and source.splits.count("test") == 2
    assert source.labels[-1] == data["test_batch.bin"][1, 0]
    pixels = np.asarray(Image.open(io.BytesIO(source.read(11))))
    assert np.array_equal(pixels.transpose(2, 0, 1).ravel(), data["test_batch.bin"][1, 1:])
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["cifar-10-binary.tar.gz"]


def test_a_damaged_cifar10_is_named(tmp_path):
    with pytest.raises(DataError, match=r"imagefolder"):
        open_source(f"cifar10:{tmp_path}")
    archive = tmp_path / "cifar-10-binary.tar.gz"
    cifar_archive(archive)
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(DataError, match="no archive of CIFAR-10"):
        open_source(f"cifar10:{tmp_path}")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "data.gz").write_bytes(b"the data")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "served"))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_download_is_checked_kept_and_not_repeated(server, tmp_path):
    good = Archive("data.gz", f"{server}/data.gz", hashlib.sha256(b"the data").hexdigest())
    path = fetch(good, tmp_path / "cache", "some")
    assert path.read_bytes() == b"the data"
    (tmp_path / "served" / "data.gz").unlink()
    assert fetch(good, tmp_path / "cache", "some") == path


def test_a_wrong_checksum_says_what_was_expected_and_keeps_the_file_aside(server, tmp_path):
    wrong = Archive("data.gz", f"{server}/data.gz", "0" * 64)
    with pytest.raises(DataError, match=f"expected {'0' * 64}; kept aside") as caught:
        fetch(wrong, tmp_path / "cache", "some")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "cache" / "data.gz.wrong").read_bytes() == b"the data"
    assert not (tmp_path / "cache" / "data.gz").exists()


def test_what_cannot_be_downloaded_points_to_data_dir(server, tmp_path):
    missing = Archive("none.gz", f"{server}/none.gz", "0" * 64)
    with pytest.raises(DataError, match="--data-dir"):
        fetch(missing, tmp_path / "cache", "some")
    assert list((tmp_path / "cache").iterdir()) == []
