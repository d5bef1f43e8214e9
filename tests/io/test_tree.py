"""Trees as bytes: what comes back is what went in, bit for bit, and no damage passes unseen."""

from __future__ import annotations

import io
import struct
from typing import Any

import h5py
import numpy as np
import pytest

from ml2hpc.errors import FileError
from ml2hpc.io import seal
from ml2hpc.io.tree import from_image, to_image

NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_DEAD_BEEF))[0]  # a NaN with a payload
LEAVES: dict[str, Any] = {
    "float64": np.array([1.0, -0.0, np.inf, 5e-324, NAN]),
    "float32": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    "int64": np.array([-(2**63), 2**63 - 1]),
    "int32": np.arange(4, dtype=np.int32),
    "uint8": np.arange(256, dtype=np.uint8),
    "bool": np.array([[True, False], [False, True]]),
    "big_endian": np.arange(3, dtype=">f8"),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "every_second": np.arange(10.0)[::2],
    "no_rows": np.zeros((0, 3)),
    "zero_dim": np.array(2.5),
    "int": -7,
    "large": 2**64 - 1,
    "float": 0.1,
    "minus_zero": -0.0,
    "not_a_number": NAN,
    "true": True,
    "false": False,
    "text": "Allen–Cahn, u_t = ε² u_xx\n",
    "empty_text": "",
    "none": None,
    "texts": ["layers.0.weight", "", "β"],
    "no_texts": [],
}
SMALL: dict[str, Any] = {"state": {"x": np.arange(3.0), "k": 4}, "solver": "qn"}


def bits(value: object) -> object:
    if isinstance(value, np.ndarray):
        return "array", value.dtype.str, value.shape, value.tobytes()
    return type(value), struct.pack("<d", value) if isinstance(value, float) else value


@pytest.mark.parametrize("name", LEAVES)
def test_every_leaf_comes_back_bitwise(name: str) -> None:
    tree = from_image(to_image({"group": {name: LEAVES[name]}}, "run"), "run")
    assert bits(tree["group"][name]) == bits(LEAVES[name])


def test_order_nesting_and_empty_groups_survive() -> None:
    tree: dict[str, Any] = {"z": {"b": 1, "a": {"deep": {}}}, "a": 2, "m": {}}
    back = from_image(to_image(tree, "run"), "run")
    assert back == tree
    assert list(back) == ["z", "a", "m"]
    assert list(back["z"]) == ["b", "a"]


def test_the_same_tree_gives_the_same_bytes() -> None:
    assert to_image(LEAVES, "run") == to_image(LEAVES, "run")


def test_plain_h5py_reads_it() -> None:
    with h5py.File(io.BytesIO(to_image({"a": {"x": np.arange(3.0), "s": "tree", "k": 3, "b": True}}, "run"))) as file:
        assert file.userblock_size == seal.BLOCK
        assert file["a/x"].chunks is None
        assert file["a/x"][1] == 1.0
        assert file["a/s"].asstr()[()] == "tree"
        assert file["a/k"][()] == 3
        assert file["a/b"][()]


def test_the_first_lines_are_readable() -> None:
    image = to_image(SMALL, "run")
    lines = image[: seal.BLOCK].decode("ascii").split("\n")
    assert lines[:4] == ["ml2hpc file", "format 1", "kind run", f"bytes {len(image)}"]


def test_every_flipped_bit_is_detected() -> None:
    image = bytearray(to_image(SMALL, "run"))
    for i in range(8 * len(image)):
        image[i // 8] ^= 1 << i % 8
        with pytest.raises(FileError, match=r"not an ml2hpc file|damaged|truncated"):
            from_image(bytes(image), "run")
        image[i // 8] ^= 1 << i % 8
    assert from_image(bytes(image), "run")["solver"] == "qn"


def test_every_truncation_is_detected() -> None:
    image = to_image(SMALL, "run")
    for length in [*range(1, seal.BLOCK + 20), *range(seal.BLOCK, len(image), 97), len(image) - 1]:
        with pytest.raises(FileError, match="truncated"):
            from_image(image[:length], "run")
    with pytest.raises(FileError, match=f"should have {len(image)} bytes and has 600"):
        from_image(image[:600], "run")
    with pytest.raises(FileError, match="damaged"):
        from_image(image + b"\0", "run")
    with pytest.raises(FileError, match=r"run\.h5 is empty"):
        from_image(b"", "run", "run.h5")


def test_another_kind_and_a_newer_format_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="holds a 'run', not a 'network'"):
        from_image(to_image(SMALL, "run"), "network")
    monkeypatch.setattr(seal, "FORMAT", 2)
    newer = to_image(SMALL, "run")
    monkeypatch.undo()
    with pytest.raises(FileError, match="format 2, written by a newer program; this one reads up to 1"):
        from_image(newer, "run")


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a": {"b": 1j}}, TypeError, "/a/b: .* not a complex"),
        ({"a": np.array(["x"])}, TypeError, "/a: an array"),
        ({"a": np.array([1j])}, TypeError, "/a: an array"),
        ({"a": [1, 2]}, TypeError, "/a: .* not a list"),
        ({"a": np.float32(1)}, TypeError, "/a: .* not a float32"),
        ({1: 2}, TypeError, "a name in a tree is a str"),
        ({"a": {"b/c": 2}}, ValueError, "a name in a tree"),
        ({"": 2}, ValueError, "a name in a tree"),
        ({".": 2}, ValueError, "a name in a tree"),
        ({"a": 2**64}, ValueError, "/a: .* 64 bits"),
        ({"a": "x\0y"}, ValueError, "/a: .* NUL"),
        ({"a": ["\ud800"]}, ValueError, "/a: .* Unicode"),
    ],
)
def test_what_a_tree_cannot_hold_is_refused(tree: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        to_image(tree, "run")


@pytest.mark.parametrize("kind", ["", "Run", "two words", "k" * 33])
def test_a_kind_is_one_short_word(kind: str) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        to_image({}, kind)


def test_content_of_an_unknown_type_is_refused() -> None:
    file = io.BytesIO()
    with h5py.File(file, "w", userblock_size=seal.BLOCK) as root:
        root["z"] = np.array([1j])
    data = bytearray(file.getvalue())
    data[: seal.BLOCK] = seal.header("run", memoryview(data)[seal.BLOCK :])
    with pytest.raises(FileError, match="/z is of a type"):
        from_image(bytes(data), "run")
