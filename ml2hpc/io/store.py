"""Trees on disk: `path` is whole at every moment, and the file before it is kept as `<stem>.previous.h5`.

Writing: `path.tmp` is written and forced to the disk, the present file gets the name of the previous one as a second
(hard) link, and one rename puts the new file in its place. A `kill -9` between any two of these leaves a whole file
under `path`.
Reading: the whole file is read and checked before any of it is used.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from ml2hpc.errors import FileError
from ml2hpc.io import seal
from ml2hpc.io.tree import Tree, from_image, to_image

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def write(path: str | Path, tree: Tree, kind: str) -> int:
    """Write a tree atomically, keep the present file as the previous one, and return the bytes written. Not collective.

    Raises
    ------
    FileError
        The disk is full, the folder is not writable, or a file that is not ours has this name. What was there is kept.
    """
    target = Path(os.path.realpath(path))  # a link to another disk stays a link
    temporary = _temporary(target)
    # A damaged present file must not displace a whole previous one. Read before the image exists: one at a time.
    keep = _is_whole(target)
    image = to_image(tree, kind)
    try:
        _refuse_foreign(target)
        try:
            _write_through(temporary, image)
            if keep:
                _keep_previous(target)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except OSError as error:
        raise FileError(_write_message(Path(path), target.parent, len(image), error)) from error
    return len(image)


def read(path: str | Path, kind: str) -> dict[str, Any]:
    """Return the tree that `write` stored. Not collective.

    Raises
    ------
    FileError
        The file is missing, not readable, empty, foreign, truncated, damaged, of a newer format or of another kind.
        If the previous file is whole, the message names it.
    """
    try:
        return from_image(_read_bytes(Path(path)), kind, str(path))
    except FileError as error:
        previous = previous_path(path)
        if _is_whole(previous, kind):
            raise FileError(f"{error}; the file before it is whole: {previous}") from error
        raise


def previous_path(path: str | Path) -> Path:
    """Return the name under which `write` keeps the file before the present one. Not collective."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def check_writable(path: str | Path) -> None:
    """Check that `write` will succeed, before hours of work depend on it. Not collective.

    Parameters
    ----------
    path
        The file to be written, or an existing folder.

    Raises
    ------
    FileError
        The folder is missing or not writable, or a file that is not ours has this name.
    """
    target = Path(os.path.realpath(path))
    folder = target if os.path.isdir(target) else target.parent
    probe = folder / f".ml2hpc.{os.getpid()}.tmp"
    try:
        if target != folder:
            _refuse_foreign(target)
        try:
            _write_through(probe, b"\0" * seal.BLOCK)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(_write_message(Path(path), folder, seal.BLOCK, error)) from error


def _temporary(target: Path) -> Path:
    return target.with_name(target.name + ".tmp")


def _refuse_foreign(target: Path) -> None:
    if target.is_dir():
        raise FileError(f"{target} is a folder; choose another name for the output")
    if target.exists():
        with target.open("rb") as file:
            if seal.is_foreign(file.read(seal.BLOCK)):
                raise FileError(
                    f"{target} is not an ml2hpc file and is not overwritten; choose another name for the output"
                )


def _write_through(path: Path, data: bytes) -> None:
    """Write a file and return when the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _keep_previous(target: Path) -> None:
    previous = previous_path(target)
    link = _temporary(previous)
    link.unlink(missing_ok=True)
    try:
        os.link(target, link)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without hard links `path` is missing until the next rename, but this file and the new one are both whole.
        os.replace(target, previous)
        return
    os.replace(link, previous)
    # A rename between two names of one file does nothing and leaves both: a write was killed at this point before.
    link.unlink(missing_ok=True)


def _is_whole(path: Path, kind: str | None = None) -> bool:
    try:
        seal.check(_read_bytes(path), kind, str(path))
    except FileError:
        return False
    return True


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise FileError(f"{path} is a folder, not a file") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """Force the renames to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot, and do not need to.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _write_message(path: Path, folder: Path, needed: int, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"{path} cannot be written: there is no folder {folder}; create it first"
    message = f"{path} cannot be written: {error.strerror}"
    if error.errno in _FULL:
        message += f"; {needed} bytes are needed, {shutil.disk_usage(folder).free} are free"
        if error.errno != errno.ENOSPC:
            message += ", but a quota or limit is reached"
    if os.path.isfile(path):
        message += "; the last good file is kept"
    return message
