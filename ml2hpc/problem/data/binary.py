"""Images in files of bytes: IDX (MNIST and its like), and the binary version of CIFAR-10."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ml2hpc.errors import FileError
from ml2hpc.problem.data.pool import Array, Pool

_GZIP = b"\x1f\x8b"  # what every such file begins with
_BYTES = 0x08  # the type of an IDX file's numbers
_CIFAR = (3, 32, 32)
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def content(path: Path) -> bytes:
    """Return a file's bytes, decompressed if they are gzip's. Not collective.

    Raises
    ------
    FileError
        If it is missing, cannot be read, or its compression is damaged.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(_GZIP) else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(f"{path} is damaged ({error}); fetch it again") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error


def read_idx(path: Path) -> Array:
    """Return the array of an IDX file of unsigned bytes, .gz or not. Not collective.

    Its head: two zero bytes, the type (8), the number of dimensions, then each size as four bytes, highest first.

    Raises
    ------
    FileError
        If it is no such file, or shorter or longer than its head says.
    """
    data = content(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _BYTES or not data[3]:
        raise FileError(
            f"{path} is no IDX file of bytes: it begins with {data[:4].hex(' ') or 'nothing'}, not 00 00 08"
        )
    head = 4 + 4 * data[3]
    if len(data) < head:
        raise FileError(f"{path} is cut off within its head; fetch it again")
    sizes = [int(k) for k in np.frombuffer(data, ">u4", data[3], 4)]
    if len(data) != head + math.prod(sizes):
        shape = " x ".join(map(str, sizes))
        raise FileError(f"{path} holds {len(data) - head} bytes, and its head says {shape}; fetch it again")
    return np.frombuffer(data, np.uint8, offset=head).reshape(sizes)


def mnist(path: Path) -> Pool:
    """Return the digits of a folder with MNIST's files: train-* and t10k-*, or one of the pairs. Not collective.

    Raises
    ------
    FileError
        If there is neither pair, or images and labels, or the two pairs, do not belong together.
    """
    pairs = [found for prefix in ("train", "t10k") if (found := _mnist_pair(path, prefix)) is not None]
    if not pairs:
        raise FileError(
            f"-data_path {path}: holds neither train-images-idx3-ubyte nor t10k-images-idx3-ubyte, .gz or not"
        )
    pools = [_images(x[:, None], labels, tuple("0123456789")) for x, labels in pairs]
    shapes = [pool.x.shape[1:] for pool in pools]
    if len(set(shapes)) > 1:
        raise FileError(f"{path}: train-* holds images of shape {shapes[0]}, t10k-* of {shapes[1]}; keep one of both")
    return pools[0] if len(pools) == 1 else _with_test(*pools)


def _mnist_pair(folder: Path, prefix: str) -> tuple[Array, Array] | None:
    images, labels = (
        next((p for ending in ("", ".gz") if (p := folder / f"{prefix}-{what}-ubyte{ending}").exists()), None)
        for what in ("images-idx3", "labels-idx1")
    )
    if images is None:
        return None
    if labels is None:
        raise FileError(f"{images} has no labels beside it: {prefix}-labels-idx1-ubyte is missing")
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or y.shape != x.shape[:1]:
        raise FileError(f"{images} of shape {x.shape} and {labels} of shape {y.shape} do not belong together")
    if y.size and y.max() > 9:
        raise FileError(f"{labels} holds the label {y.max()}; digits are 0 to 9")
    return x, y


def cifar10(path: Path) -> Pool:
    """Return the images of a folder with CIFAR-10's binary files, some or all of data_batch_1 to 5, test_batch.

    A record is a byte with the class and 3 x 32 x 32 bytes, red, green, blue. Not collective.

    Raises
    ------
    FileError
        If there is none of the files, or one has no whole number of records, or classes above 9.
    """
    batches = [p for k in range(1, 6) if (p := path / f"data_batch_{k}.bin").exists()]
    if not batches:
        raise FileError(
            f"-data_path {path}: holds no data_batch_1.bin to data_batch_5.bin of CIFAR-10's binary version"
        )
    parts = [_cifar_records(p) for p in batches]
    x, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
    pool = _images(x, labels, _CIFAR_CLASSES)
    test = path / "test_batch.bin"
    return _with_test(pool, _images(*_cifar_records(test), _CIFAR_CLASSES)) if test.exists() else pool


def _cifar_records(path: Path) -> tuple[Array, Array]:
    data, record = content(path), 1 + math.prod(_CIFAR)
    if not data or len(data) % record:
        raise FileError(f"{path} holds {len(data)} bytes, no whole number of {record} a record; fetch it again")
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    if rows[:, 0].max() > 9:
        raise FileError(f"{path} holds the class {rows[:, 0].max()}; CIFAR-10 has 0 to 9")
    return rows[:, 1:].reshape(-1, *_CIFAR), rows[:, 0]


def _images(x: Array, labels: Array, classes: tuple[str, ...]) -> Pool:
    return Pool(x, labels.astype(np.int64), classes, scale=255.0, normalization="center")


def _with_test(pool: Pool, test: Pool) -> Pool:
    return Pool(pool.x, pool.labels, pool.classes, pool.scale, pool.normalization, test)
