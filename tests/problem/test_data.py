"""Data sets: geometry of drawn ones; IDX, CIFAR-10 and LIBSVM files read back, damaged ones refused; splits."""

from __future__ import annotations

import gzip
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml2hpc.errors import FileError, OptionsError, UserError
from ml2hpc.problem.data import DataOptions, DataSet, load
from ml2hpc.problem.data.binary import cifar10, mnist, read_idx
from ml2hpc.problem.data.digits import digits
from ml2hpc.problem.data.libsvm import libsvm
from ml2hpc.problem.data.plane import circles, disk, spirals
from tests.problem.small import alone, everyone


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_mnist(folder: Path, prefix: str, n: int, compress: bool = False) -> tuple[np.ndarray, np.ndarray]:
    x, labels = pixels(n, 4, 5), np.arange(n, dtype=np.uint8) % 10
    for what, array in (("images-idx3", x), ("labels-idx1", labels)):
        data, ending = (gzip.compress(idx(array)), ".gz") if compress else (idx(array), "")
        (folder / f"{prefix}-{what}-ubyte{ending}").write_bytes(data)
    return x, labels


def write_cifar(path: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    x, labels = pixels(n, 3, 32, 32), np.arange(n, dtype=np.uint8) % 10
    path.write_bytes(b"".join(bytes([c]) + image.tobytes() for c, image in zip(labels, x)))
    return x, labels


def loaded(**options: Any) -> DataSet:
    return load(alone(), DataOptions(**options), 0, torch.float64)


# ---- drawn -----------------------------------------------------------------------------------------------------------


def test_circles_have_a_gap_and_are_uniform_in_area() -> None:
    pool = circles(20000, 1)
    r = np.hypot(*pool.x.T)
    assert r[pool.labels == 0].max() < 1 < 2 <= r[pool.labels == 1].min() and r.max() < 3
    assert np.bincount(pool.labels).tolist() == [10000, 10000]
    # Half of each area.
    assert np.mean(r[pool.labels == 0] < 0.5**0.5) == pytest.approx(0.5, abs=0.02)
    assert np.mean(r[pool.labels == 1] < 6.5**0.5) == pytest.approx(0.5, abs=0.02)


def test_disk_has_no_gap() -> None:
    pool = disk(20000, 1)
    r = np.hypot(*pool.x.T)
    assert ((r >= 2) == pool.labels).all() and r.max() < 3
    assert np.mean(r < 2) == pytest.approx(4 / 9, abs=0.02)
    assert np.sum((r > 1.9) & (r < 2.1)) > 1000


def test_spirals_are_one_another_turned_by_half() -> None:
    pool = spirals(2000, 2)
    r, angle = np.hypot(*pool.x.T), np.arctan2(pool.x[:, 1], pool.x[:, 0])
    turned = (angle - np.pi * r - np.pi * pool.labels) / (2 * np.pi)
    assert np.abs(turned - np.round(turned)).max() < 1e-12
    assert 0.29 < r.min() < r.max() <= 3


@pytest.mark.parametrize("turns", [0.5, 3.0])
def test_spirals_have_as_many_turns_as_asked_for(turns: float) -> None:
    data = loaded(set="spirals", turns=turns).parts["train"]
    r, labels = torch.linalg.norm(data.x, dim=1), data.labels
    turned = (torch.atan2(data.x[:, 1], data.x[:, 0]) / torch.pi - labels) / 2 - turns * r / 3
    assert (turned - turned.round()).abs().max() < 1e-12
    assert turns * float(r.max() - r.min()) / 3 == pytest.approx(0.9 * turns, rel=0.01)  # s is in [0.1, 1]


@pytest.mark.parametrize("name", ["circles", "disk", "spirals"])
def test_drawn_sets_are_reproducible(name: Any) -> None:
    a, b, other = (loaded(set=name, seed=seed) for seed in (3, 3, 4))
    assert {k: len(v) for k, v in a.parts.items()} == {"train": 2000, "validation": 1000, "test": 1000}
    for part in a.parts:
        assert torch.equal(a.parts[part].x, b.parts[part].x) and torch.equal(a.parts[part].labels, b.parts[part].labels)
        assert not torch.equal(a.parts[part].x, other.parts[part].x)
    everything = torch.cat([v.x for v in a.parts.values()])
    assert len(torch.unique(everything, dim=0)) == 4000


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_mnist_is_read_back(tmp_path: Path, compress: bool) -> None:
    x, labels = write_mnist(tmp_path, "t10k", 30, compress)
    pool = mnist(tmp_path)
    assert (pool.x[:, 0] == x).all() and (pool.labels == labels).all() and pool.test is None
    more, _ = write_mnist(tmp_path, "train", 50, compress)
    both = mnist(tmp_path)
    assert (both.x[:, 0] == more).all() and both.test is not None and (both.test.x[:, 0] == x).all()


def test_cifar_is_read_back(tmp_path: Path) -> None:
    first, _ = write_cifar(tmp_path / "data_batch_1.bin", 12)
    second, labels = write_cifar(tmp_path / "data_batch_4.bin", 25)
    pool = cifar10(tmp_path)
    assert (pool.x == np.concatenate([first, second])).all() and (pool.labels[12:] == labels).all()
    assert pool.test is None and pool.classes[9] == "truck"
    test, _ = write_cifar(tmp_path / "test_batch.bin", 10)
    assert (cifar10(tmp_path).test.x == test).all()  # type: ignore[union-attr]


def test_libsvm_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "set"
    path.write_text("+1 1:0.5 3:-2e-1\n\n-1 2:7 # a remark\n+1\n3 1:1 2:2 3:3 4:4\n")
    pool = libsvm(path)
    assert pool.x.tolist() == [[0.5, 0, -0.2, 0], [0, 7, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4]]
    assert pool.labels.tolist() == [1, 0, 1, 2] and pool.classes == ("-1", "1", "3")


DAMAGED: list[tuple[bytes, str]] = [
    (b"", "no IDX file of bytes: it begins with nothing"),
    (b"\0\0\x08", "no IDX file"),
    (b"PK\x03\x04 something", "no IDX file of bytes: it begins with 50 4b 03 04"),
    (idx(pixels(3, 4))[:7], "cut off within its head"),
    (idx(pixels(3, 4))[:-1], "holds 11 bytes, and its head says 3 x 4"),
    (idx(pixels(3, 4)) + b"x", "holds 13 bytes"),
    (b"\0\0\x0d" + idx(pixels(3, 4))[3:], "no IDX file of bytes"),
    (gzip.compress(idx(pixels(30, 40)))[:-30], "is damaged"),
    (gzip.compress(idx(pixels(30, 40)))[:60] + b"\xff" * 200, "is damaged"),
]


@pytest.mark.parametrize(("data", "message"), DAMAGED)
def test_damaged_idx_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(FileError, match=message):
        read_idx(tmp_path / "file")


def test_mnist_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds neither train-images"):
        mnist(tmp_path)
    write_mnist(tmp_path, "train", 20)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(19)))
    with pytest.raises(FileError, match=r"\(20, 4, 5\) and .* \(19,\) do not belong together"):
        mnist(tmp_path)
    labels.write_bytes(idx(np.full(20, 11)))
    with pytest.raises(FileError, match="holds the label 11"):
        mnist(tmp_path)
    labels.unlink()
    with pytest.raises(FileError, match="has no labels beside it"):
        mnist(tmp_path)


def test_damaged_cifar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    with pytest.raises(FileError, match=r"holds no data_batch_1\.bin"):
        cifar10(tmp_path)
    write_cifar(path, 3)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileError, match="holds 9218 bytes, no whole number of 3073"):
        cifar10(tmp_path)
    path.write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(FileError, match="holds the class 10"):
        cifar10(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 1:2\nx 1:2\n", "set:2: expected 'label index:value ...', could not convert"),
        ("1 0:2\n", "set:1: .*'0:2' is no pair with an index above 0"),
        ("1 2:1 2:3\n", "'2:3' is no pair with an index above 2"),
        ("1 2\n", "'2' is no pair"),
        ("1 1:nan\n", "nan is no finite number"),
        ("\n", "holds no samples"),
        ("1\n2\n", "holds labels and no features"),
        ("1 1:2\n1 1:3\n", "holds one class, 1"),
        ("1 1000000000000000:2\n2 1:3\n", "has a feature 1000000000000000: 2 samples of so many do not fit memory"),
        ("1 1:2\n0.5 1:3\n", "set:2: .*0.5 is no class"),
    ],
)
def test_damaged_libsvm_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "set").write_text(text)
    with pytest.raises(FileError, match=message):
        libsvm(tmp_path / "set")


def test_libsvm_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_bytes(b"\x93NUMPY")
    with pytest.raises(FileError, match="byte 0 is no text"):
        libsvm(tmp_path / "set")
    with pytest.raises(FileError, match="is a folder"):
        libsvm(tmp_path)
    with pytest.raises(FileError, match="cannot be read: No such file"):
        libsvm(tmp_path / "nothing")


def test_digits_come_from_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", missing)
        with pytest.raises(UserError, match="digits needs scikit-learn"):
            digits()
    pytest.importorskip("sklearn")
    pool = digits()
    assert pool.x.shape == (1797, 1, 8, 8) and pool.x.max() == 16 and np.bincount(pool.labels).min() > 170


@pytest.mark.skipif("ML2HPC_DATA" not in os.environ, reason="ML2HPC_DATA names no folder with mnist/ and libsvm/")
def test_published_files() -> None:
    folder = Path(os.environ["ML2HPC_DATA"])
    digits = mnist(folder / "mnist")
    assert digits.x.shape[1:] == (1, 28, 28) and len(digits.classes) == 10
    australian = libsvm(folder / "libsvm" / "australian")
    assert australian.x.shape == (690, 14) and np.bincount(australian.labels).tolist() == [383, 307]


# ---- splits and normalisation ----------------------------------------------------------------------------------------


def test_parts_are_disjoint_and_drawn_by_the_seed(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("".join(f"{k % 2} 1:{k}\n" for k in range(50)))
    data = loaded(set="libsvm", path=str(tmp_path / "set"), normalize="none")
    assert {k: len(v) for k, v in data.parts.items()} == {"train": 30, "validation": 10, "test": 10}
    values = torch.cat([v.x for v in data.parts.values()]).flatten().long()
    assert sorted(values.tolist()) == list(range(50)) and values.tolist() != list(range(50))
    for part in data.parts.values():
        assert (part.x.flatten().long() % 2 == part.labels).all()
    assert data.checksum == loaded(set="libsvm", path=str(tmp_path / "set"), normalize="none", train=3).checksum
    assert len(data.checksum) == 8 and loaded(train=3, validation=0, test=0).checksum == ""
    smaller = loaded(set="libsvm", path=str(tmp_path / "set"), normalize="none", train=5, validation=0, test=3)
    assert {k: len(v) for k, v in smaller.parts.items()} == {"train": 5, "test": 3}


def test_the_sets_own_test_samples_are_kept_apart(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", 50)
    test, _ = write_mnist(tmp_path, "t10k", 10)
    data = loaded(set="mnist", path=str(tmp_path), normalize="none")
    assert {k: len(v) for k, v in data.parts.items()} == {"train": 40, "validation": 10, "test": 10}
    found = (data.parts["test"].x * 255).round().byte().numpy()[:, 0]
    assert {i.tobytes() for i in found} == {i.tobytes() for i in test}


def test_normalisation_takes_the_training_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    lines = [f"{k % 2} 1:{rng.normal(5, 3)} 2:7" for k in range(100)]
    (tmp_path / "set").write_text("\n".join(lines))
    plain, centred, standard = (
        loaded(set="libsvm", path=str(tmp_path / "set"), normalize=how) for how in ("none", "center", "default")
    )
    x = plain.parts["train"].x
    assert torch.allclose(centred.parts["test"].x, plain.parts["test"].x - x.mean(0), atol=1e-14)
    scaled = standard.parts["train"].x
    assert abs(float(scaled[:, 0].mean())) < 1e-14 and float(scaled[:, 0].std(correction=0)) == pytest.approx(1)
    assert not scaled[:, 1].any()  # a constant feature is centred and left
    images = write_mnist(tmp_path, "train", 40)[0]
    of_images = loaded(set="mnist", path=str(tmp_path), train=40, validation=0, test=0)
    mean = torch.from_numpy(images / 255).mean(0)
    assert torch.allclose(of_images.parts["train"].x.mean((0, 1)), torch.zeros_like(mean), atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"set": "mnist"}, "-data_set mnist needs -data_path"),
        ({"set": "circles", "path": "x"}, "-data_set circles is not read from -data_path x"),
        ({"set": "digits", "path": "x"}, "-data_set digits is not read"),
        ({"set": "libsvm", "path": "nowhere"}, "nowhere cannot be read"),
    ],
)
def test_options_that_do_not_go_together(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded(**options)


def test_more_samples_than_there_are(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("1 1:1\n0 1:2\n")
    with pytest.raises(OptionsError, match="2 train \\+ 0 validation \\+ 1 test samples are more than the 2"):
        loaded(set="libsvm", path=str(tmp_path / "set"), train=2, test=1)


@pytest.mark.parallel(2, 3)
def test_rank_0_reads_for_all(comm: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Other ranks get what rank 0 read, or its error."""
    folder = tmp_path_factory.mktemp(f"rank{comm.rank}")
    if comm.rank == 0:
        write_mnist(folder, "train", 30)
    options = DataOptions(set="mnist", path=str(folder))
    data = load(everyone(comm), options, 0, torch.float64)
    sums = comm.allgather(float(data.parts["train"].x.square().sum()))
    assert len(set(sums)) == 1 and len(data.parts["train"]) == 18
    if comm.rank == 0:
        (folder / "train-images-idx3-ubyte").write_bytes(b"no")
    with pytest.raises(FileError, match="no IDX file"):
        load(everyone(comm), options, 0, torch.float64)
