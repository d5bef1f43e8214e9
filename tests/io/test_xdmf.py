"""XDMF read back by its own rules: every value lands on the point that it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from ml2hpc.errors import FileError
from ml2hpc.io import store, xdmf

CASES = ["x", "x t", "x y", "x y z", "x y t", "t x y", "x y z t", "a b c d"]


def u(*coordinates: Any) -> Any:
    """Differ at every point and along every axis."""
    return sum(10.0**i * c + np.sin((i + 1) * c) for i, c in enumerate(coordinates))


def sizes(item: Xml.Element) -> list[int]:
    return [int(size) for size in item.attrib["Dimensions"].split()]


def text(item: Xml.Element) -> str:
    assert item.text is not None
    return item.text


def child(item: Xml.Element, tag: str) -> Xml.Element:
    found = item.find(tag)
    assert found is not None
    return found


def load(item: Xml.Element, folder: Path) -> NDArray[Any]:
    """Return the array of a DataItem in its declared sizes."""
    if item.get("ItemType") == "HyperSlab":
        corner, source = item
        start, stride, count = np.array(text(corner).split(), int).reshape(sizes(corner))
        cut = tuple(slice(a, a + s * n, s) for a, s, n in zip(start, stride, count))
        return load(source, folder)[cut].reshape(sizes(item))
    if item.get("Format") == "XML":
        return np.array(text(item).split(), float).reshape(sizes(item))
    name, path = text(item).split(":")
    assert (item.get("NumberType"), item.get("Precision")) == ("Float", "8")
    with h5py.File(folder / name) as file:
        assert file[path].dtype == np.float64
        # The sizes in the file, but for axes of one point in front.
        assert [n for n in sizes(item) if n > 1] == [n for n in file[path].shape if n > 1]
        return np.asarray(file[path]).reshape(sizes(item))


def grid_points(grid: Xml.Element, folder: Path) -> NDArray[Any]:
    """Return the points (n, 3) in the order of the values: dimensions slowest first, the viewer's x the fastest."""
    topology, geometry = child(grid, "Topology"), child(grid, "Geometry")
    if topology.get("TopologyType") == "3DSMesh":
        assert geometry.get("GeometryType") == "XYZ"
        [item] = geometry
        return load(item, folder).reshape(-1, 3)
    assert (topology.get("TopologyType"), geometry.get("GeometryType")) == ("3DRectMesh", "VXVYVZ")
    x, y, z = (load(item, folder) for item in geometry)
    assert sizes(topology) == [len(z), len(y), len(x)]
    zs, ys, xs = np.meshgrid(z, y, x, indexing="ij")
    return np.stack([xs.ravel(), ys.ravel(), zs.ravel()], axis=-1)


@pytest.mark.parametrize("with_points", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_values_land_on_their_points(tmp_path: Path, case: str, with_points: bool) -> None:
    names = case.split()
    axes = {name: np.linspace(i, i + 1, 3 + i) ** 2 for i, name in enumerate(names)}
    solution = {**axes, "u": u(*np.meshgrid(*axes.values(), indexing="ij"))}
    if with_points:
        solution["points"] = xdmf.points(axes)
    store.write(tmp_path / "run.h5", {"solution": solution}, "run")
    path = xdmf.write(tmp_path / "run.h5", axes, ["u"], points="points" if with_points else None)
    assert path == tmp_path / "run.xdmf"

    time = xdmf.time_axis(names)
    grids = Xml.parse(path).findall(".//Grid[@GridType='Uniform']")
    assert len(grids) == (len(axes[time]) if time else 1)
    space = [name for name in names if name != time]
    seen = 0
    for k, grid in enumerate(grids):
        points = grid_points(grid, tmp_path)
        # Without stored points the last axis is the viewer's x, with them the first is.
        column = {name: i if with_points else len(space) - 1 - i for i, name in enumerate(space)}
        where = {name: points[:, i] for name, i in column.items()}
        if time:
            assert float(child(grid, "Time").attrib["Value"]) == axes[time][k]
            where[time] = np.full(len(points), axes[time][k])
        attribute = child(grid, "Attribute")
        assert (attribute.get("Name"), attribute.get("Center")) == ("u", "Node")
        values = load(attribute[0], tmp_path)
        assert list(values.shape) == sizes(child(grid, "Topology"))
        assert np.array_equal(values.ravel(), u(*(where[name] for name in names)))
        seen += values.size
    assert seen == solution["u"].size


def test_which_axis_is_time() -> None:
    assert [xdmf.time_axis(case.split()) for case in CASES] == [None, None, None, None, "t", "t", "t", "d"]


def test_another_group_and_several_fields(tmp_path: Path) -> None:
    path = xdmf.write(tmp_path / "a.b.h5", {"x": np.arange(3.0)}, ["u0", "error0"], group="/fine/")
    assert path.name == "a.b.xdmf"
    assert {i.text for i in Xml.parse(path).iter("DataItem") if i.get("Format") == "HDF"} == {
        "a.b.h5:/fine/x",
        "a.b.h5:/fine/u0",
        "a.b.h5:/fine/error0",
    }


def test_bad_input_is_refused(tmp_path: Path) -> None:
    axis = np.arange(2.0)
    with pytest.raises(ValueError, match="1 to 4 axes, not 5"):
        xdmf.write(tmp_path / "run.h5", dict.fromkeys("abcde", axis), ["u"])
    with pytest.raises(FileError, match=r"run\.xdmf cannot be written: No such file"):
        xdmf.write(tmp_path / "nowhere" / "run.h5", {"x": axis}, ["u"])
    assert list(tmp_path.iterdir()) == []
