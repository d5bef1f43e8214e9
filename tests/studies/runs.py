"""What the studies share: runs of an app, each made once within its budget; tables of what they found."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml2hpc.io import store

Table = dict[str, NDArray[np.float64]]
OPTIONS = Path(__file__).parents[2] / "apps" / "options"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
LATEST = 20.0  # seconds on the clock for one of processor time, should nobody be left to watch


@dataclass(frozen=True)
class Job:
    """One run of an app, which ends by its options or when its time is over.

    Parameters
    ----------
    app
        What is behind `ml2hpc.apps.`.
    name
        What its files in the folder are called. A result is known by it: for other options take another folder.
    options
        Its options. Files are written once, at the end.
    seconds
        Of processor time, start-up included, on one rank; of the clock on several, where the launcher's children
        cannot be watched.
    """

    app: str
    name: str
    options: str
    seconds: float
    folder: Path
    ranks: int = 1

    @property
    def result(self) -> Path:
        """The history of a finished run."""
        return self.folder / f"{self.name}.npz"

    def done(self) -> bool:
        """Tell whether there is a result that was given as much time. A result is whole: it is renamed into place."""
        if not self.result.exists():
            return False
        with np.load(self.result) as found:
            return float(found["budget"]) >= self.seconds

    def command(self, output: Path) -> list[str]:
        """Return the command line."""
        launcher = ["mpirun", "-n", str(self.ranks)] if self.ranks > 1 else []
        limit = self.seconds if self.ranks > 1 else LATEST * self.seconds
        words = f"{self.options} -checkpoint_interval 1e9 -options_left no -max_time {limit:g} -output {output}"
        return [*launcher, sys.executable, "-m", f"ml2hpc.apps.{self.app}", *shlex.split(words)]

    def run(self) -> str:
        """Run it unless it is done, keep its history, return what went wrong."""
        if self.done():
            return ""
        output, told = self.folder / f"{self.name}.h5", self.folder / f"{self.name}.log"
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._clean()
        with told.open("w") as log:
            process = subprocess.Popen(
                self.command(output), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )
            try:
                while process.poll() is None:
                    time.sleep(0.1)
                    if self.ranks == 1 and processor_time(process.pid) > self.seconds:
                        break
            finally:
                process.terminate()  # the app ends with the iteration and writes its file
                process.wait()
        if not output.exists():
            last = told.read_text().strip().splitlines()
            return last[-1] if last else f"exit status {process.returncode}"
        whole = self.folder / f"{self.name}.part.npz"
        np.savez(whole, budget=self.seconds, **store.read(output, "run")["history"]["outer"])
        whole.rename(self.result)
        self._clean()
        return ""

    def _clean(self) -> None:
        """Remove the app's files: a dense inverse makes them large, and what is there is taken for the result."""
        for leftover in self.folder.glob(f"{self.name}.*"):
            if leftover.suffix in {".h5", ".xdmf"}:
                leftover.unlink()

    def table(self) -> Table:
        """Return the history of a finished run, one array per column."""
        with np.load(self.result) as found:
            return {name: found[name] for name in found.files if name != "budget"}


def processor_time(pid: int) -> float:
    """Return the processor seconds that a running process has used, 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (float(fields[11]) + float(fields[12])) / os.sysconf("SC_CLK_TCK")


def style(k: int) -> dict[str, Any]:
    """Return colour and dash of the k-th line of a figure."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": DASHES[k // len(COLOURS) % len(DASHES)]}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table whose first row is the heading."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, " | ".join("-" * w for w in widths))
    return "\n".join(f"| {line} |" for line in lines)
