"""Readers of digits: every IDX type, every way in which a file or a folder can be wrong, and the splits."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv import nn

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file by its definition: two zeros, type, rank, big-endian sizes, big-endian values."""
    return (bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            + array.astype(array.dtype.newbyteorder(">")).tobytes())


def write_idx(path: Path, array: Any, dtype: str = "uint8") -> None:
    data = idx_bytes(np.asarray(array, dtype))
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


# --- load_idx -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(7,), (2, 3), (3, 4, 5), (2, 1, 3, 2), (0, 28, 28)], ids=str)
def test_idx_of_all_types(dtype: str, shape: tuple[int, ...], suffix: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    want = rng.integers(-100 if dtype != "uint8" else 0, 120, shape).astype(dtype)
    if dtype.startswith("float"):
        want += rng.random(shape).astype(dtype)
    elif dtype in ("int16", "int32"):
        want *= 200  # more than one byte each
    write_idx(tmp_path / f"file{suffix}", want, dtype)
    got = nn.load_idx(tmp_path / f"file{suffix}")
    assert got.dtype == np.dtype(dtype)
    assert got.dtype.isnative
    assert got.flags.writeable
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, want)


def test_idx_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes.fromhex("00000b02 00000002 00000003 0001 0100 ffff 7fff 8000 000a"))
    np.testing.assert_array_equal(nn.load_idx(str(path)), [[1, 256, -1], [32767, -32768, 10]])


def test_gzip_is_seen_from_the_content(tmp_path: Path) -> None:
    data = idx_bytes(np.arange(5, dtype=np.uint8))
    (tmp_path / "plain.gz").write_bytes(data)
    (tmp_path / "zipped").write_bytes(gzip.compress(data))
    for name in ("plain.gz", "zipped"):
        np.testing.assert_array_equal(nn.load_idx(tmp_path / name), np.arange(5))


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))  # 16 bytes of header, 24 of values
ZIPPED = gzip.compress(GOOD * 1, mtime=0)
HUGE = bytes([0, 0, 0x0E, 4]) + b"\xff" * 16 + b"\0" * 100  # announces 2**131 bytes
LARGE = idx_bytes(np.random.default_rng(0).integers(0, 256, 3 << 20).astype(np.uint8))


@pytest.mark.parametrize(("data", "message"), [
    (b"", "truncated in the magic number: 4 bytes announced, only 0 are there .the file ends at byte 0"),
    (GOOD[:3], "truncated in the magic number: 4 bytes announced, only 3"),
    (b"\x89PNG" + GOOD, "not an IDX file: it must begin with two zero bytes, got 0x89504e47"),
    (b"\0\x01\x08\x03" + GOOD[4:], "not an IDX file: .* got 0x00010803"),
    (b"\0\0\x07\x03" + GOOD[4:], "unknown IDX type 0x07 in the magic number 0x00000703; known are 0x08 .uint8., .*"
                                 "0x0e .float64."),
    (b"\0\0\x08\0" + GOOD[4:], "the magic number 0x00000800 announces 0 axes; 1 to 32 are possible"),
    (b"\0\0\x08\x21" + b"\0\0\0\1" * 33 + b"\0", "announces 33 axes"),
    (GOOD[:11], "truncated in the sizes of the axes: 12 bytes announced, only 7 are there .the file ends at byte 11"),
    (GOOD[:16], r"truncated in the values of shape \(2, 3, 4\): 24 bytes announced, only 0 are there"),
    (GOOD[:-1], r"truncated in the values of shape \(2, 3, 4\): 24 bytes announced, only 23 are there .the file ends "
                "at byte 39"),
    (GOOD + b"\0", "trailing bytes: the values end at byte 40, the file goes on"),
    (HUGE, r"truncated in the values of shape \(4294967295, .*only 100 are there"),
    (LARGE[:-5], "3,145,728 bytes announced, only 3,145,723 are there .the file ends at byte 3,145,731"),
    (gzip.compress(GOOD[:-1]), "only 23 are there .the file ends at unpacked byte 39"),
    (gzip.compress(GOOD + b"\0"), "trailing bytes: the values end at unpacked byte 40"),
    (gzip.compress(HUGE), "only 100 are there"),
    (gzip.compress(b"\x89PNG"), "not an IDX file"),
    (ZIPPED[:-4], "the gzip data break off after 40 unpacked bytes"),
    (ZIPPED[:12], "the gzip data break off after 0 unpacked bytes"),
    (gzip.compress(LARGE)[:-500_000], r"the gzip data break off after [\d,]{7,} unpacked bytes"),
    (ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:], "damaged gzip data after 40 unpacked bytes .CRC check failed"),
    (ZIPPED[:-4] + b"\0\0\0\0", "damaged gzip data after 40 unpacked bytes .Incorrect length"),
    (ZIPPED[:10] + b"\xff" * 20 + ZIPPED[30:], "damaged gzip data after 0 unpacked bytes"),
    (ZIPPED + b"garbage", "damaged gzip data after 40 unpacked bytes"),
    (b"\x1f\x8b\x07" + ZIPPED[3:], "damaged gzip data after 0 unpacked bytes"),
    (b"\x1f\x8b", "the gzip data break off after 0 unpacked bytes"),
])
def test_a_broken_idx_file(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "some-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        nn.load_idx(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        nn.load_idx(tmp_path / "none")
    with pytest.raises(OSError, match=str(tmp_path)):
        nn.load_idx(tmp_path)


# --- load_mnist -----------------------------------------------------------------------------------------------------

NAMES = {("train", "images"): "train-images-idx3-ubyte", ("train", "labels"): "train-labels-idx1-ubyte",
         ("t10k", "images"): "t10k-images-idx3-ubyte", ("t10k", "labels"): "t10k-labels-idx1-ubyte"}


def write_part(folder: Path, part: str, n: int, suffix: str = "", size: tuple[int, int] = (4, 5)) -> Any:
    """Write images whose pixels all have the image's number, and labels that are that number modulo 10."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, *size))
    write_idx(folder / (NAMES[part, "images"] + suffix), images)
    write_idx(folder / (NAMES[part, "labels"] + suffix), np.arange(n) % 10)
    return images


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_in_four_files(suffix: str, tmp_path: Path) -> None:
    write_part(tmp_path, "train", 30, suffix)
    write_part(tmp_path, "t10k", 20, suffix)
    data = nn.load_mnist(str(tmp_path))
    assert (data.x_train.shape, data.x_test.shape) == ((30, 1, 4, 5), (20, 1, 4, 5))
    assert data.x_train.dtype == np.float32
    assert data.t_train.dtype == np.int64
    assert data.classes == 10
    np.testing.assert_array_equal(data.x_train[:, 0, 0, 0], (np.arange(30) / 255).astype(np.float32))
    np.testing.assert_array_equal(data.t_train, np.arange(30) % 10)
    np.testing.assert_array_equal(data.t_test, np.arange(20) % 10)
    assert nn.load_mnist(tmp_path, dtype=np.float64).x_test.dtype == np.float64
    with pytest.raises(TypeError, match="dtype must be a floating-point type, got uint8"):
        nn.load_mnist(tmp_path, dtype=np.uint8)


def test_the_books_arguments(tmp_path: Path) -> None:
    write_part(tmp_path, "train", 30)
    write_part(tmp_path, "t10k", 20)
    plain = nn.load_mnist(path=tmp_path)
    (x_train, t_train), (x_test, t_test) = nn.load_mnist(tmp_path, False, True, True).pairs
    assert x_train.dtype == x_test.dtype == np.uint8
    np.testing.assert_array_equal(x_train, (plain.x_train * 255).round().reshape(30, 20))
    np.testing.assert_array_equal(x_test, (plain.x_test * 255).round().reshape(20, 20))
    np.testing.assert_array_equal(t_train, np.eye(10)[plain.t_train])
    np.testing.assert_array_equal(t_test, np.eye(10)[plain.t_test])
    rows = nn.load_mnist(tmp_path, normalize=True, flatten=True, one_hot_label=True)
    assert rows.classes == 10
    np.testing.assert_array_equal(rows.x_train, plain.x_train.reshape(30, 20))
    assert nn.load_mnist(tmp_path, normalize=False).x_test.shape == (20, 1, 4, 5)


def test_pixels_are_from_0_to_1(tmp_path: Path) -> None:
    write_part(tmp_path, "train", 5)
    write_idx(tmp_path / NAMES["train", "images"], np.array([0, 255, 51, 102, 204])[:, None, None])
    data = nn.load_mnist(tmp_path)
    np.testing.assert_array_equal(np.sort(np.append(data.x_train.ravel(), data.x_test.ravel())),
                                  np.float32([0, 0.2, 0.4, 0.8, 1]))


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_one_pair_of_files_is_split(part: str, tmp_path: Path) -> None:
    write_part(tmp_path, part, 50)
    data = nn.load_mnist(tmp_path, seed=3)
    assert (data.x_train.shape, data.x_test.shape) == ((40, 1, 4, 5), (10, 1, 4, 5))
    numbers = [np.round(x[:, 0, 0, 0] * 255).astype(int) for x in (data.x_train, data.x_test)]
    np.testing.assert_array_equal(np.sort(np.concatenate(numbers)), np.arange(50))  # each image in one of the two
    for number, labels in zip(numbers, (data.t_train, data.t_test), strict=True):
        np.testing.assert_array_equal(labels, number % 10)  # with its own label
    assert not np.array_equal(np.sort(numbers[1]), np.arange(10))
    again, other = nn.load_mnist(tmp_path, seed=3), nn.load_mnist(tmp_path, seed=4)
    np.testing.assert_array_equal(again.x_test, data.x_test)
    assert not np.array_equal(other.x_test, data.x_test)


def test_other_names_of_the_files(tmp_path: Path) -> None:
    write_part(tmp_path, "t10k", 10)
    (tmp_path / NAMES["t10k", "images"]).rename(tmp_path / "t10k-images.idx3-ubyte")
    (tmp_path / "README").write_text("something else")
    assert len(nn.load_mnist(tmp_path).x_train) == 8


def missing_labels(folder: Path) -> None:
    write_part(folder, "train", 10)
    write_part(folder, "t10k", 10)
    (folder / NAMES["train", "labels"]).unlink()


def missing_images(folder: Path) -> None:
    write_part(folder, "t10k", 10)
    (folder / NAMES["t10k", "images"]).unlink()


def too_few_labels(folder: Path) -> None:
    write_part(folder, "t10k", 10)
    write_idx(folder / NAMES["t10k", "labels"], np.zeros(9))


def swapped(folder: Path) -> None:
    write_part(folder, "t10k", 10)
    write_idx(folder / NAMES["t10k", "images"], np.zeros(10))


def labels_with_axes(folder: Path) -> None:
    write_part(folder, "t10k", 10)
    write_idx(folder / NAMES["t10k", "labels"], np.zeros((10, 10)))


def float_pixels(folder: Path) -> None:
    write_part(folder, "t10k", 10)
    write_idx(folder / NAMES["t10k", "images"], np.zeros((10, 4, 4)), "float32")


def other_size(folder: Path) -> None:
    write_part(folder, "train", 10)
    write_part(folder, "t10k", 10, size=(5, 5))


def no_images(folder: Path) -> None:
    write_part(folder, "t10k", 0)


def one_image(folder: Path) -> None:
    write_part(folder, "train", 1)


def broken(folder: Path) -> None:
    write_part(folder, "t10k", 10, ".gz")
    path = folder / (NAMES["t10k", "labels"] + ".gz")
    path.write_bytes(path.read_bytes()[:-3])


def nothing(folder: Path) -> None:
    (folder / "a").touch()
    (folder / "b").touch()


@pytest.mark.parametrize(("prepare", "error", "message"), [
    (nothing, FileNotFoundError, "{folder} has no MNIST files: looked for train-images-idx3-ubyte.* among its 2 entr"),
    (missing_labels, FileNotFoundError, "{folder}/train-images-idx3-ubyte is there, but not the labels that belong to "
                                        "it: train-labels-idx1-ubyte"),
    (missing_images, FileNotFoundError, "{folder}/t10k-labels-idx1-ubyte is there, but not the images that belong to "
                                        "it: t10k-images-idx3-ubyte"),
    (too_few_labels, ValueError, "{folder}/t10k-images-idx3-ubyte has 10 images, but {folder}/t10k-labels-idx1-ubyte "
                                 "has 9 labels"),
    (swapped, ValueError, r"t10k-images-idx3-ubyte: must have unsigned bytes of the shape \(N, H, W\), got uint8 of "
                          r"the shape \(10,\)"),
    (labels_with_axes, ValueError, r"t10k-labels-idx1-ubyte: must have unsigned bytes of the shape \(N,\)"),
    (float_pixels, ValueError, "t10k-images-idx3-ubyte: must have unsigned bytes .* got float32"),
    (other_size, ValueError, r"train-images-idx3-ubyte has images of \(4, 5\) pixels, but .*t10k-images-idx3-ubyte of "
                             r"\(5, 5\)"),
    (no_images, ValueError, r"t10k-images-idx3-ubyte: has no pixels, its shape is \(0, 4, 5\)"),
    (one_image, ValueError, "train-images-idx3-ubyte: must have at least 2 images to be split, got 1"),
    (broken, ValueError, "{folder}/t10k-labels-idx1-ubyte.gz: the gzip data break off after 18 unpacked bytes"),
])
def test_a_folder_that_is_wrong(prepare: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(error, match=message.replace("{folder}", str(tmp_path))):
        nn.load_mnist(tmp_path)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        nn.load_mnist(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        nn.load_mnist(tmp_path / "file")

    def refuse(path: Any) -> Any:  # what the system does, to all but root
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError):
        nn.load_mnist(tmp_path)


# --- scikit-learn's digits ------------------------------------------------------------------------------------------


def test_digits() -> None:
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    data = nn.load_digits()
    assert (data.x_train.shape, data.x_test.shape) == ((1438, 1, 8, 8), (359, 1, 8, 8))
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert data.classes == 10

    def rows(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
        whole = np.concatenate([images.reshape(len(images), -1) * 16, labels[:, None]], axis=1)
        return sorted(row.tobytes() for row in whole.astype(np.uint8))

    got = rows(np.concatenate([data.x_train, data.x_test]), np.concatenate([data.t_train, data.t_test]))
    assert got == rows(bundled.images / 16, bundled.target)
    np.testing.assert_array_equal(nn.load_digits(seed=0).t_test, data.t_test)
    assert not np.array_equal(nn.load_digits(seed=1).t_test, data.t_test)
    assert nn.load_digits(dtype=np.float64).x_test.dtype == np.float64


def test_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"^the bundled set of digits needs scikit-learn: pip install .*\[demo\]$"):
        nn.load_digits()
