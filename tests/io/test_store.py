"""Files on disk: whatever happens, a whole one is left, and every failure has one clear message."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ml2hpc.errors import FileError
from ml2hpc.io import store
from ml2hpc.io.tree import to_image

ROOT = Path(__file__).parents[2]


def tree(k: int) -> dict[str, Any]:
    return {"k": k, "x": np.full(50_000, float(k))}


def in_another_process(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", *map(str, arguments)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def test_the_last_two_are_kept(run: Path) -> None:
    for k in range(4):
        assert store.write(run, tree(k), "run") == run.stat().st_size
    assert store.read(run, "run")["k"] == 3
    assert store.read(store.previous_path(run), "run")["k"] == 2
    assert names(run.parent) == ["run.h5", "run.previous.h5"]


def test_a_write_that_was_killed_between_its_renames_is_made_good(run: Path) -> None:
    store.write(run, tree(0), "run")
    # Both names of the present file, and the link that was to become the second.
    os.link(run, store.previous_path(run))
    os.link(run, run.with_name("run.previous.h5.tmp"))
    run.with_name("run.h5.tmp").write_bytes(b"half a file")
    store.write(run, tree(1), "run")
    assert names(run.parent) == ["run.h5", "run.previous.h5"]
    assert [store.read(path, "run")["k"] for path in (run, store.previous_path(run))] == [1, 0]


def test_without_hard_links_the_last_two_are_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for k in range(3):
        store.write(run, tree(k), "run")
    assert [store.read(path, "run")["k"] for path in (run, store.previous_path(run))] == [2, 1]


def test_a_failed_link_leaves_the_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store.write(run, tree(0), "run")
    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(FileError, match="Input/output error; the last good file is kept"):
        store.write(run, tree(1), "run")
    assert store.read(run, "run")["k"] == 0
    assert names(run.parent) == ["run.h5"]


def test_a_link_to_the_file_stays_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    run.symlink_to("scratch/run.h5")
    for k in range(2):
        store.write(run, tree(k), "run")
    assert run.is_symlink()
    assert names(tmp_path / "scratch") == ["run.h5", "run.previous.h5"]


def test_a_damaged_file_does_not_displace_a_whole_one(run: Path) -> None:
    for k in range(2):
        store.write(run, tree(k), "run")
    run.write_bytes(run.read_bytes()[:-1])
    store.write(run, tree(2), "run")
    assert [store.read(path, "run")["k"] for path in (run, store.previous_path(run))] == [2, 0]


def damage(image: bytes) -> bytes:
    return image[:700] + bytes([image[700] ^ 1]) + image[701:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: b"", "is empty"),
        (lambda image: image[:1000], "is truncated: it should have .* bytes and has 1000"),
        (damage, "is damaged: its contents do not match its checksum"),
        (lambda image: b"\x89HDF\r\n\x1a\n" + image, "is not an ml2hpc file"),
        (lambda image: to_image({}, "network"), "holds a 'network', not a 'run'"),
    ],
)
def test_a_bad_file_is_refused_and_the_whole_previous_one_named(
    run: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    image = to_image(tree(0), "run")
    run.write_bytes(change(image))
    with pytest.raises(FileError, match=f"run.h5 {message}") as caught:
        store.read(run, "run")
    assert "previous" not in str(caught.value)
    store.previous_path(run).write_bytes(damage(image))
    with pytest.raises(FileError) as caught:
        store.read(run, "run")
    assert "previous" not in str(caught.value)
    store.previous_path(run).write_bytes(image)
    with pytest.raises(FileError, match=r"; the file before it is whole: .*run\.previous\.h5$"):
        store.read(run, "run")


def test_what_cannot_be_read_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"run\.h5 does not exist$"):
        store.read(run, "run")
    with pytest.raises(FileError, match="is a folder, not a file"):
        store.read(tmp_path, "run")


def test_a_foreign_file_is_neither_read_nor_overwritten(run: Path) -> None:
    with h5py.File(run, "w") as file:
        file["x"] = 1.0
    before = run.read_bytes()
    with pytest.raises(FileError, match=r"is not an ml2hpc file$"):
        store.read(run, "run")
    for attempt in (lambda: store.write(run, tree(0), "run"), lambda: store.check_writable(run)):
        with pytest.raises(FileError, match="is not an ml2hpc file and is not overwritten"):
            attempt()
    assert run.read_bytes() == before
    assert names(run.parent) == ["run.h5"]


def test_an_empty_file_is_overwritten(run: Path) -> None:
    run.touch()
    store.check_writable(run)
    store.write(run, tree(0), "run")
    assert names(run.parent) == ["run.h5"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for attempt in (store.check_writable, lambda path: store.write(path, tree(0), "run")):
        with pytest.raises(FileError, match=r"there is no folder .*nowhere; create it first"):
            attempt(tmp_path / "nowhere" / "run.h5")
    with pytest.raises(FileError, match="is a folder; choose another name"):
        store.write(tmp_path, tree(0), "run")


def test_a_writable_folder_passes_and_stays_as_it_was(tmp_path: Path, run: Path) -> None:
    store.check_writable(tmp_path)
    store.check_writable(run)
    assert names(tmp_path) == []


UNWRITABLE = """
import os
from ml2hpc.errors import FileError
from ml2hpc.io import store
if os.geteuid() == 0:
    os.setuid(65534)  # permissions do not bind root
for attempt in (store.check_writable, lambda path: store.write(path + "/run.h5", {}, "run")):
    try:
        attempt(sys.argv[1])
    except FileError as error:
        print(error)
"""


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    result = subprocess.run(in_another_process(UNWRITABLE, tmp_path), capture_output=True, text=True, check=True)
    tmp_path.chmod(0o755)
    assert result.stdout.splitlines() == [
        f"{tmp_path} cannot be written: Permission denied",
        f"{tmp_path}/run.h5 cannot be written: Permission denied",
    ]


FULL = """
import resource
from ml2hpc.errors import FileError
from ml2hpc.io import store
import numpy as np
if sys.argv[2]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    store.write(sys.argv[1], {"x": np.zeros(1_000_000)}, "run")
except FileError as error:
    print(error)
"""


def check_full(path: Path, limit: str, message: str) -> None:
    store.write(path, tree(0), "run")
    before = path.read_bytes()
    command = in_another_process(FULL, path, limit)
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert message in result.stdout
    assert str(path) in result.stdout
    assert "bytes are needed" in result.stdout
    assert result.stdout.endswith("the last good file is kept\n")
    assert path.read_bytes() == before
    assert names(path.parent) == ["run.h5"]


def test_a_file_size_limit_leaves_the_old_file(run: Path) -> None:
    check_full(run, "2000000", "a quota or limit is reached")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        check_full(tmp_path / "run.h5", "", "No space left on device")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


LOOP = """
import itertools
from ml2hpc.io import store
import numpy as np
for k in itertools.count():
    store.write(sys.argv[1], {"k": k, "x": np.full(50_000, float(k))}, "run")
"""


def test_a_kill_in_a_write_loop_leaves_a_whole_file(run: Path) -> None:
    previous, last = store.previous_path(run), -1
    for attempt in range(5):
        process = subprocess.Popen(in_another_process(LOOP, run))
        written = run.stat().st_mtime_ns if run.exists() else 0
        deadline = time.monotonic() + 60
        while not previous.exists() or run.stat().st_mtime_ns == written:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05 + 0.0137 * attempt)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        for path in (run, previous):
            found = store.read(path, "run")
            assert (found["x"] == found["k"]).all()
        last = max(last, store.read(run, "run")["k"])
    assert last >= 1
