"""A text beside an HDF5 file that tells ParaView and VisIt what the arrays in it are: a grid with values at its points.

XDMF names dimensions slowest first, and the fastest one is always the viewer's x. An array u[x, y] in C order has y
fastest, so a rectilinear mesh can only show it with y along the viewer's x. With the point coordinates stored too
(`points`), the mesh is a structured one and the first axis is the viewer's x. Both are written as three-dimensional
meshes in which a missing axis has one point: ParaView reads two-dimensional ones poorly.
Of three or more axes, the one named t (of four, else the last) becomes time: one grid per instant, cut from the arrays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
from numpy.typing import NDArray

from ml2hpc.errors import FileError

_SPACE = 3  # dimensions of a mesh


def points(
    axes: Mapping[str, NDArray[Any]],  # each (n_i,)
) -> NDArray[np.float64]:  # (n_0, ..., 3) without the time axis
    """Return the coordinates of the grid points, to be stored in the group that `write` describes. Not collective."""
    space = [axes[name] for name in axes if name != time_axis(list(axes))]
    grid = list(np.meshgrid(*space, indexing="ij"))
    grid += [np.zeros_like(grid[0])] * (_SPACE - len(grid))
    return np.stack(grid, axis=-1).astype(np.float64)


def time_axis(names: Sequence[str]) -> str | None:
    """Return the axis that becomes time, if any. Not collective."""
    if len(names) > _SPACE:
        return "t" if "t" in names else names[-1]
    return "t" if len(names) == _SPACE and "t" in names else None


def write(
    path: str | Path,
    axes: Mapping[str, NDArray[Any]],  # in the order of the fields' axes, each (n_i,) float64
    fields: Sequence[str],  # each (n_0, n_1, ...) float64
    group: str = "/solution",
    points: str | None = None,
) -> Path:
    """Describe the grid in an HDF5 file, in a file of its name that ends in ``.xdmf``; return its path. Not collective.

    Parameters
    ----------
    path
        The HDF5 file; it is not opened. The XDMF file names it without its folder: the two move together.
    axes
        1 to 4 coordinate axes; they are in the HDF5 file as `<group>/<name>`.
    fields
        Names of arrays in the group with one value per grid point.
    points
        Name of the array of `points` in the group, if it is stored.

    Raises
    ------
    FileError
        The file cannot be written.
    """
    if not 1 <= len(axes) <= _SPACE + 1:
        raise ValueError(f"XDMF describes 1 to {_SPACE + 1} axes, not {len(axes)}")
    path = Path(path)
    root = Xml.Element("Xdmf", Version="2.0")
    domain = Xml.SubElement(root, "Domain")
    source = f"{path.name}:{group.rstrip('/')}"
    time = time_axis(list(axes))
    if time is None:
        _add_grid(domain, source, axes, fields, points, None)
    else:
        series = Xml.SubElement(domain, "Grid", Name="series", GridType="Collection", CollectionType="Temporal")
        for k, value in enumerate(axes[time]):
            grid = _add_grid(series, source, axes, fields, points, (time, k))
            Xml.SubElement(grid, "Time", Value=repr(float(value)))
    Xml.indent(root)
    return _write_text(path.with_suffix(".xdmf"), Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n")


def _add_grid(
    parent: Xml.Element,
    source: str,
    axes: Mapping[str, NDArray[Any]],
    fields: Sequence[str],
    points: str | None,
    instant: tuple[str, int] | None,
) -> Xml.Element:
    """Add one mesh with its fields: all of the arrays, or what they hold at one instant (axis, index)."""
    sizes = [len(axes[name]) for name in axes]
    space = [name for name in axes if instant is None or name != instant[0]]
    # Readers compare the sizes of mesh and field one by one, so both count a missing axis as one point, the slowest.
    padded = [1] * (_SPACE - len(space)) + [len(axes[name]) for name in space]
    grid = Xml.SubElement(parent, "Grid", Name="grid", GridType="Uniform")
    Xml.SubElement(grid, "Topology", TopologyType="3DSMesh" if points else "3DRectMesh", Dimensions=_text(padded))
    if points:
        geometry = Xml.SubElement(grid, "Geometry", GeometryType="XYZ")
        _add_array(geometry, f"{source}/{points}", [*padded, _SPACE])
    else:
        geometry = Xml.SubElement(grid, "Geometry", GeometryType="VXVYVZ")
        for name in reversed(space):
            _add_array(geometry, f"{source}/{name}", [len(axes[name])])
        for _ in range(_SPACE - len(space)):
            Xml.SubElement(geometry, "DataItem", Dimensions="1", NumberType="Float", Format="XML").text = "0"
    for field in fields:
        attribute = Xml.SubElement(grid, "Attribute", Name=field, AttributeType="Scalar", Center="Node")
        if instant is None:
            _add_array(attribute, f"{source}/{field}", padded)
        else:
            _add_slice(attribute, f"{source}/{field}", sizes, padded, list(axes).index(instant[0]), instant[1])
    return grid


def _add_array(parent: Xml.Element, source: str, sizes: Sequence[int]) -> None:
    item = Xml.SubElement(parent, "DataItem", Dimensions=_text(sizes), NumberType="Float", Precision="8", Format="HDF")
    item.text = source


def _add_slice(
    parent: Xml.Element, source: str, sizes: Sequence[int], mesh: Sequence[int], axis: int, index: int
) -> None:
    """Add the part of an array where the index along one axis is fixed, in the sizes of the mesh."""
    start = [index if i == axis else 0 for i in range(len(sizes))]
    count = [1 if i == axis else size for i, size in enumerate(sizes)]
    item = Xml.SubElement(parent, "DataItem", ItemType="HyperSlab", Dimensions=_text(mesh))
    corner = Xml.SubElement(item, "DataItem", Dimensions=f"3 {len(sizes)}", NumberType="Int", Format="XML")
    corner.text = "  ".join(_text(row) for row in (start, [1] * len(sizes), count))  # start, stride, count
    _add_array(item, source, sizes)


def _text(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _write_text(path: Path, text: str) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    try:
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror}") from error
    return path
