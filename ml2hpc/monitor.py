"""What a run shows while it works: monitor lines in PETSc's formats, a progress line, the history table."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ml2hpc.errors import FileError, OptionsError

_FORMATS = ("", "ascii_info", "ascii_info_detail")
_LAUNCHERS = ("mpirun", "mpiexec", "hydra", "orted", "prted", "srun", "slurmstepd")
_MODES = {"": "w", "write": "w", "append": "a"}
_begun: set[Path] = set()  # files that this job has written to; viewers of several solvers may share one


@dataclass(frozen=True)
class Viewer:
    """PETSc's viewer argument `type:file:format:mode`; all parts may be empty, only the type ascii is known."""

    file: str
    detail: bool
    mode: str

    @classmethod
    def parse(cls, text: str, name: str) -> Viewer:
        """Read the argument of option `name`.

        Raises
        ------
        OptionsError
            If a part is unknown.

        Examples
        --------
        >>> Viewer.parse("ascii:hist.txt:ascii_info_detail", "-snes_monitor")
        Viewer(file='hist.txt', detail=True, mode='w')
        """
        kind, file, form, mode = (text.split(":") + [""] * 4)[:4]
        if kind not in ("", "ascii") or form not in _FORMATS or mode not in _MODES or text.count(":") > 3:
            raise OptionsError(
                f"{name} {text}: expected [ascii][:file[:format[:mode]]] with the formats ascii_info, "
                f"ascii_info_detail and the modes write, append"
            )
        return cls(file, form == "ascii_info_detail", _MODES[mode])

    def check(self) -> None:
        """Begin the file, if there is one, as `write` would. Not collective.

        Raises
        ------
        FileError
            If it cannot be written.
        """
        if self.file:
            self._append("")

    def join(self) -> None:
        """Take the file as begun by another rank: add to it. Not collective."""
        if self.file:
            _begun.add(Path(self.file).resolve())

    def write(self, text: str) -> None:
        """Write lines to the file or to standard output. Not collective.

        Mode write empties a file at the job's first write to it, whichever solver makes it: an inner solver starts
        its iterations again many times.

        Raises
        ------
        FileError
            If the file cannot be written.
        """
        if not self.file:
            print(text, flush=True)
            return
        self._append(text + "\n")

    def _append(self, text: str) -> None:
        path = Path(self.file).resolve()
        try:
            with path.open("a" if path in _begun else self.mode, encoding="utf-8") as stream:
                stream.write(text)
        except OSError as error:
            raise FileError(f"{self.file}: cannot be written: {error.strerror}") from error
        _begun.add(path)


def norm_line(level: int, iteration: int, norm: float, detail: tuple[float, float] | None) -> str:
    """Return a monitor line; `detail` holds the update norm and the objective. Not collective.

    >>> norm_line(1, 3, 2.5, None)
    '    3 SNES Function norm 2.500000000000e+00'
    """
    line = f"{'  ' * level}{iteration:3d} SNES Function norm {norm:14.12e}"
    if detail is None:
        return line
    update, objective = detail
    return f"{line}, Update norm {update:14.12e}, Objective {objective:14.12e}"


def reason_line(level: int, prefix: str, reason: str, iterations: int) -> str:
    """Return the sentence of -snes_converged_reason. Not collective.

    >>> reason_line(0, "", "CONVERGED_FNORM_RELATIVE", 3)
    '  Nonlinear solve converged due to CONVERGED_FNORM_RELATIVE iterations 3'
    """
    verb = "converged" if reason.startswith("CONVERGED") else "did not converge"
    whose = f"{prefix} " if prefix else ""
    return f"{'  ' * (level + 1)}Nonlinear {whose}solve {verb} due to {reason} iterations {iterations}"


class History:
    """A table with one row per iteration; columns are fixed by the first row. Not collective."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, ...]] = []
        self.columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, **row: float) -> None:
        """Append a row; the columns are those of the first."""
        if not self._rows:
            self.columns = tuple(row)
        assert row.keys() == set(self.columns), "a history has one set of columns"
        self._rows.append(tuple(row[name] for name in self.columns))

    def table(self) -> dict[str, NDArray[np.float64]]:
        """Return the columns as arrays of shape (rows,)."""
        data = np.array(self._rows, dtype=np.float64).reshape(len(self._rows), len(self.columns))
        return {name: data[:, k].copy() for k, name in enumerate(self.columns)}

    def load(self, table: dict[str, NDArray[np.float64]]) -> None:
        """Take over a saved table."""
        self.columns = tuple(table)
        self._rows = [tuple(map(float, row)) for row in zip(*table.values(), strict=True)]


def duration(seconds: float) -> str:
    """Return a time as a person reads it. Not collective.

    >>> duration(42.4), duration(3725)
    ('42s', '1h02m')
    """
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, seconds_left = divmod(whole, 60)
    return f"{minutes}m{seconds_left:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def _launched_from_terminal() -> bool:
    """Return whether an MPI launcher above this process writes its standard error to a terminal.

    Launchers give ranks a pipe and pass on what they write.
    """
    pid = os.getppid()
    while pid > 1:
        try:
            name, rest = Path(f"/proc/{pid}/stat").read_text().split("(", 1)[1].rsplit(")", 1)
            terminal = os.readlink(f"/proc/{pid}/fd/2").startswith(("/dev/pts/", "/dev/tty"))
        except OSError:
            return False
        if not any(word in name for word in _LAUNCHERS):
            return False
        if terminal:
            return True
        pid = int(rest.split()[1])
    return False


class Progress:
    """One line that rewrites itself on a terminal, with elapsed time and estimated remainder; silent elsewhere."""

    def __init__(self, stream: IO[str] | None = None, interval: float = 0.2) -> None:
        self._stream = stream or sys.stderr
        self._shown = self._stream.isatty() or (stream is None and _launched_from_terminal())
        self._interval = interval
        self._last = -math.inf
        self._length = 0

    def show(self, text: str, elapsed: float, fraction: float) -> None:
        """Show how far a run is; `fraction` of it is done. Not collective."""
        now = time.monotonic()
        if not self._shown or now - self._last < self._interval:
            return
        self._last = now
        left = elapsed * (1 - fraction) / fraction if fraction > 0 else math.inf
        line = f"{text}  {duration(elapsed)} elapsed, about {duration(left)} left"
        # A line that wraps cannot be written over.
        line = line[: shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + line.ljust(self._length))
        self._stream.flush()
        self._length = len(line)

    def clear(self) -> None:
        """Wipe the line, before anything else is printed. Not collective."""
        if self._length:
            self._stream.write("\r" + " " * self._length + "\r")
            self._stream.flush()
            self._length = 0
