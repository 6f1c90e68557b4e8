"""Images of handwritten digits: readers of the IDX files of MNIST and its like, and scikit-learn's small digits."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ._extras import require
from .layers import Array, Seed

__all__ = ["Dataset", "load_digits", "load_idx", "load_mnist"]

PathLike = str | os.PathLike[str]


class Dataset(NamedTuple):
    """Images (N, C, H, W) with values of 0 to 1, and labels (N,) of 0 to `classes` - 1, to train and to test on.

    Where it was asked for, images are (N, C*H*W), have the values of the file, or labels are one-hot, (N, classes).
    """

    x_train: Array
    t_train: Array
    x_test: Array
    t_test: Array

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        if self.t_train.ndim == 2:
            return int(self.t_train.shape[1])
        return int(max(self.t_train.max(), self.t_test.max())) + 1

    @property
    def pairs(self) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """``(x_train, t_train), (x_test, t_test)``, as the book's `load_mnist` returns them."""
        return (self.x_train, self.t_train), (self.x_test, self.t_test)


# --- IDX files ------------------------------------------------------------------------------------------------------

#: Third byte of an IDX file: how its values are stored, always big-endian.
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_CHUNK = 1 << 20
_LARGEST_RANK = 32  # of an array in every NumPy that fastconv runs on


class _Reader:
    """Reads an IDX file, gzipped or not, and knows how far it came."""

    def __init__(self, path: Path, file: IO[bytes], unit: str) -> None:
        self.path, self.position = path, 0
        self._file, self._unit = file, unit

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.path}: {what}")

    def _read_some(self, count: int) -> bytes:
        try:
            data = self._file.read(count)
        except (gzip.BadGzipFile, zlib.error) as error:
            raise self.error(f"damaged gzip data after {self.position:,} unpacked bytes ({error})") from error
        except EOFError:
            raise self.error(f"the gzip data break off after {self.position:,} unpacked bytes (an incomplete "
                             "download?)") from None
        self.position += len(data)
        return data

    def read(self, count: int, what: str) -> bytes:
        """Return the next `count` bytes. In chunks: a damaged header must not make us ask for terabytes of memory."""
        parts, missing = [], count
        while missing:
            part = self._read_some(min(missing, _CHUNK))
            if not part:
                raise self.error(f"truncated in {what}: {count:,} bytes announced, only {count - missing:,} are there "
                                 f"(the file ends at {self._unit} {self.position:,})")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def expect_end(self) -> None:
        """Raise where anything follows. For gzip this also is what checks the checksum, which is at the end."""
        end = self.position
        if self._read_some(1):
            raise self.error(f"trailing bytes: the values end at {self._unit} {end:,}, the file goes on")


def load_idx(path: PathLike) -> Array:
    """Read a file in the IDX format, which MNIST and Fashion-MNIST come in, gzipped or not.

    Parameters
    ----------
    path : path
        The file. That it is gzipped is seen from its content, not its name.

    Returns
    -------
    ndarray
        In the shape and the dtype that the file announces: uint8, int8, int16, int32, float32 or float64, in the
        machine's byte order, writable.

    Raises
    ------
    OSError
        Where the file is missing or cannot be read.
    ValueError
        Where it is no IDX file or a damaged one; the message has the file, and what is wrong in which place.
    """
    path = Path(path)
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open(path, "rb"))
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if zipped:
            unpacking = stack.enter_context(gzip.GzipFile(fileobj=file))
            file = cast("IO[bytes]", unpacking)
        reader = _Reader(path, file, "unpacked byte" if zipped else "byte")

        magic = reader.read(4, "the magic number")
        code, rank = magic[2], magic[3]
        if magic[:2] != b"\0\0":
            raise reader.error(f"not an IDX file: it must begin with two zero bytes, got 0x{magic.hex()}")
        if code not in IDX_DTYPES:
            known = ", ".join(f"0x{c:02x} ({np.dtype(d).name})" for c, d in IDX_DTYPES.items())
            raise reader.error(f"unknown IDX type 0x{code:02x} in the magic number 0x{magic.hex()}; known are {known}")
        if not 1 <= rank <= _LARGEST_RANK:
            raise reader.error(f"the magic number 0x{magic.hex()} announces {rank} axes; 1 to {_LARGEST_RANK} are "
                               "possible")
        shape = tuple(int(n) for n in np.frombuffer(reader.read(4 * rank, "the sizes of the axes"), ">u4"))
        stored = np.dtype(IDX_DTYPES[code])
        values = reader.read(math.prod(shape) * stored.itemsize, f"the values of shape {shape}")
        reader.expect_end()
    return np.frombuffer(values, stored).reshape(shape).astype(stored.newbyteorder("="))


# --- MNIST ----------------------------------------------------------------------------------------------------------


def _find(folder: Path, part: str, kind: str, rank: int) -> Path | None:
    """Return the IDX file of ``train`` or ``t10k``, ``images`` or ``labels``, under any of the names in use."""
    for mark in ("-", "."):
        for suffix in ("", ".gz"):
            path = folder / f"{part}-{kind}{mark}idx{rank}-ubyte{suffix}"
            if path.exists():
                return path
    return None


def _load_part(folder: Path, part: str) -> tuple[Array, Array, Path] | None:
    """Return images, labels and the images' file of one part of the set, or None where it has neither file."""
    found = {"images": _find(folder, part, "images", 3), "labels": _find(folder, part, "labels", 1)}
    images_path, labels_path = found["images"], found["labels"]
    if images_path is None and labels_path is None:
        return None
    if images_path is None or labels_path is None:
        there, missing = ("labels", "images") if images_path is None else ("images", "labels")
        raise FileNotFoundError(f"{found[there]} is there, but not the {missing} that belong to it: "
                                f"{part}-{missing}-idx{3 if missing == 'images' else 1}-ubyte[.gz]")
    images, labels = load_idx(images_path), load_idx(labels_path)
    for path, array, rank, axes in ((images_path, images, 3, "(N, H, W)"), (labels_path, labels, 1, "(N,)")):
        if array.ndim != rank or array.dtype != np.uint8:
            raise ValueError(f"{path}: must have unsigned bytes of the shape {axes}, got {array.dtype} of the shape "
                             f"{array.shape}")
    if len(images) != len(labels):
        raise ValueError(f"{images_path} has {len(images):,} images, but {labels_path} has {len(labels):,} labels")
    if images.size == 0:
        raise ValueError(f"{images_path}: has no pixels, its shape is {images.shape}")
    return images, labels, images_path


def load_mnist(path: PathLike, normalize: bool = True, flatten: bool = False, one_hot_label: bool = False, *,
               seed: Seed = 0, dtype: npt.DTypeLike = np.float32) -> Dataset:
    """Read MNIST, Fashion-MNIST or another set of the same form from a folder.

    Parameters
    ----------
    path : path
        The folder.
        It has ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, each with ``.gz`` or without (``images.idx3`` for ``images-idx3`` is known too).
        Where it has only one of the two pairs, four fifths of that one are to train on and one fifth to test on.
    normalize : bool
        Divide the pixels by 255. Otherwise they are the file's bytes.
    flatten : bool
        Images as rows, (N, H*W).
    one_hot_label : bool
        Labels as rows (N, classes) with a single 1, in `dtype`.
    seed : int, numpy.random.Generator or None
        Where the choice of that fifth comes from.
    dtype : dtype
        Floating-point type of the images.

    Returns
    -------
    Dataset
        Images (N, 1, H, W), and labels (N,), unless other ones were asked for. In the book's form it is
        ``(x_train, t_train), (x_test, t_test) = load_mnist(path).pairs``.

    Raises
    ------
    OSError
        Where the folder or a file is missing or cannot be read.
    ValueError
        Where a file is damaged, or the files do not fit together.
    """
    data = _load_mnist(Path(path), seed)
    real = _checked_real(dtype)

    def prepared(x: Array, t: Array) -> tuple[Array, Array]:
        images = x[:, None] if not normalize else _as_input(x, 255, real)
        if flatten:
            images = images.reshape(len(images), -1)
        return images, np.eye(data.classes, dtype=real)[t] if one_hot_label else t

    return Dataset(*prepared(data.x_train, data.t_train), *prepared(data.x_test, data.t_test))


def _load_mnist(folder: Path, seed: Seed) -> Dataset:
    """The bytes (N, H, W) and labels of the folder."""
    # Opening it tells apart: not there, not a folder, not to be read.
    names = os.listdir(folder)
    parts = {part: _load_part(folder, part) for part in ("train", "t10k")}
    train, test = parts["train"], parts["t10k"]
    if train is None and test is None:
        raise FileNotFoundError(f"{folder} has no MNIST files: looked for train-images-idx3-ubyte[.gz] and "
                                f"t10k-images-idx3-ubyte[.gz] among its {len(names)} entries")
    if train is not None and test is not None:
        if train[0].shape[1:] != test[0].shape[1:]:
            raise ValueError(f"{train[2]} has images of {train[0].shape[1:]} pixels, but {test[2]} of "
                             f"{test[0].shape[1:]}")
        return Dataset(train[0], train[1].astype(np.int64), test[0], test[1].astype(np.int64))
    images, labels, path = train or test  # type: ignore[misc]  # one of them is there
    if len(images) < 2:
        raise ValueError(f"{path}: must have at least 2 images to be split, got {len(images)}")
    return _split(images, labels.astype(np.int64), seed)


def load_digits(*, seed: Seed = 0, dtype: npt.DTypeLike = np.float32) -> Dataset:
    """Return the 1,797 handwritten digits of 8x8 pixels that scikit-learn brings along; needs scikit-learn.

    Parameters
    ----------
    seed : int, numpy.random.Generator or None
        Where the choice of the fifth that is to test on comes from.
    dtype : dtype
        Floating-point type of the images.

    Returns
    -------
    Dataset
        Images (N, 1, 8, 8), pixels divided by 16.
    """
    digits = require("sklearn.datasets", "the bundled set of digits").load_digits()
    return _split(_as_input(digits.images, 16, dtype), digits.target.astype(np.int64), seed)


def _as_input(images: Array, largest: int, dtype: npt.DTypeLike) -> Array:
    """(N, H, W) of 0 to `largest` -> (N, 1, H, W) of 0 to 1."""
    scaled: Any = images.astype(_checked_real(dtype))[:, None]
    scaled /= largest
    return np.asarray(scaled)


def _checked_real(dtype: npt.DTypeLike) -> np.dtype[Any]:
    real = np.dtype(dtype)
    if not np.issubdtype(real, np.floating):
        raise TypeError(f"dtype must be a floating-point type, got {real}")
    return real


def _split(x: Array, t: Array, seed: Seed) -> Dataset:
    """Four fifths to train on, one fifth (and at least one image) to test on, chosen at random."""
    order = np.random.default_rng(seed).permutation(len(x))
    tested = max(len(x) // 5, 1)
    test, train = order[:tested], order[tested:]
    return Dataset(x[train], t[train], x[test], t[test])
