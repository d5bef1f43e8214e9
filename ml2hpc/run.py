"""One job: options, ranks, output file, restart, budgets and signals around a solver tree. Apps are written on it.

run = Run("pinn", sys.argv[1:])      options of all ranks, the same everywhere
run.read(...), run.solver(...)       an app's options and its solver tree
run.ready()                          -help ends here; an option that nobody read is an error
run.solve(problem, x, ...)           minimise, recording, with checkpoints
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from ml2hpc import __version__, log
from ml2hpc.comm import Communicator, Wait, end_all_on_error
from ml2hpc.errors import DivergedError, FileError, OptionsError, UserError
from ml2hpc.io import store
from ml2hpc.monitor import History, Progress, Viewer
from ml2hpc.options import Database, option
from ml2hpc.problem.adapt import Adaptation
from ml2hpc.problem.interface import Problem, ShardedProblem
from ml2hpc.snes import SNES, After, Point, Reason, create
from ml2hpc.vec import CPU, Layout

_OF_THE_TREE = re.compile(r"(^|_)(snes|dm|petsc)_")

T = TypeVar("T")
Tree = dict[str, Any]

REQUEUE = 85  # exit status after a signal: a checkpoint is written, run again with -restart
_CUMULATIVE = ("seconds", "cpu_seconds", "waiting", "reductions", "bytes")
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Options of one job that the job that goes on from its file does not inherit.
_OF_ONE_JOB = (
    "restart",
    "restart_state",
    "output",
    "help",
    "h",
    "max_time",
    "log_view",
    "options_view",
    "options_left",
)


@dataclass(frozen=True)
class Options:
    """Options of every app."""

    output: str = option("run.h5", "results and checkpoint, *.h5; the file before it is kept as *.previous.h5")
    restart: str | None = option(None, "go on from this file, with its options unless others are given")
    restart_state: Literal["all", "parameters"] = option(
        "all", "go on exactly, or start the solver anew from the file's parameters"
    )
    checkpoint_interval: float = option(60.0, "seconds between two checkpoints", at_least=0.0)
    max_time: float = option(
        float("inf"),
        "seconds that this job may take: it stops where one more iteration, or one more step inside nested iteration, "
        "would take longer",
        above=0.0,
    )
    dtype: Literal["float64", "float32"] = option("float64", "floating-point type")
    seed: int = option(0, "seed of the network's weights and of the points", at_least=0, at_most=2**31 - 1)
    # The CPU is where results have the same bits on any number of ranks and machines.
    device: Literal["cpu", "cuda"] = option(
        "cpu", "where vectors, points and jets are: cuda is the GPU whose number is the rank modulo their number"
    )
    threads: int = option(1, "threads per rank", at_least=1, at_most=1024)
    vec_type: Literal["replicated", "sharded"] = option(
        "replicated", "keep whole vectors on every rank, or split them and the outer quasi-Newton memory over the ranks"
    )
    comm_wait: Wait = option("auto", "a waiting rank spins, or yields its core; auto yields with more ranks than cores")
    options_view: bool = option(False, "print the options in force")
    log_view: str | None = option(None, "print the table of events and evaluations, [ascii][:file]", alone="")


class Run:
    """A job of an app. Collective over all ranks.

    Parameters
    ----------
    app
        Its name, for messages and files.
    argv
        The command line without the program.
    """

    def __init__(self, app: str, argv: list[str]) -> None:
        end_all_on_error()
        self.app = app
        self.command = " ".join([app, *argv])
        self.comm = Communicator.world()
        self.log = self.comm.log
        self.started = time.perf_counter()
        self._cpu_started = time.process_time()
        self.earlier = dict.fromkeys(_CUMULATIVE, 0.0)  # of the runs that this one goes on from
        self.canonical: dict[str, str] = {}  # options as another folder would have to spell them
        self.restored: Tree | None = None
        self.database = self._options(argv)
        self.options = self.read(Options, stem="", title=f"ml2hpc {app}")
        self.comm.wait = self.comm.wait if self.options.comm_wait == "auto" else self.options.comm_wait
        torch.set_num_threads(self.options.threads)
        self.dtype: torch.dtype = getattr(torch, self.options.dtype)
        self.device = self._take_device()
        self.history: dict[str, History] = {}
        self.progress = Progress()
        self._signal = 0
        self._last_checkpoint = time.perf_counter()
        self._asked = self._begun = math.inf  # when it was last asked, and at the end of an iteration or a level
        self._spent = dict(self.earlier)  # then, as the history has it
        self._adaptation: Adaptation | None = None
        self._describe: Callable[[Point, bool], Tree] = lambda point, last: {}
        self._measure: Callable[[SNES, Point], dict[str, float]] = lambda solver, point: {}
        self._reached: Callable[[], bool] = lambda: False

    def _options(self, argv: list[str]) -> Database:
        """Read the options on rank 0 and those of the run that goes on; every rank gets the same."""
        found: Database | None = None
        error: Exception | None = None
        restored: Tree | None = None
        if self.comm.rank == 0:
            try:
                found = Database.from_sources(argv=argv, environment=os.environ)
                peek = found.read(Options, listed=False).restart
                if peek is not None:
                    restored = store.read(peek, "run")
                    found = Database.from_sources(argv=argv, environment=os.environ)
                    given = restored["configuration"]["given"]
                    if found.has("snes_type"):  # another tree: nothing of the old one stays
                        given = {k: v for k, v in given.items() if not _OF_THE_TREE.search(k)}
                    found = found.under(given, f"restart file {peek}")
            except (UserError, KeyError) as caught:
                missing = isinstance(caught, KeyError)
                error = FileError(f"{peek}: holds no configuration {caught}") if missing else caught
        self.comm.agree(error)
        self.restored, database = self.comm.broadcast((restored, found))
        assert isinstance(database, Database)
        return database

    def _take_device(self) -> torch.device:
        """Return this rank's device, made the current one. Collective."""
        if self.options.device == "cpu":
            return CPU
        error: Exception | None = None
        if not torch.backends.cuda.is_built():
            error = OptionsError(
                "-device cuda: this torch was built without CUDA; install one with it, or use -device cpu"
            )
        elif not torch.cuda.is_available():
            error = OptionsError(
                "-device cuda: no GPU is visible here, see nvidia-smi; ask for one, or use -device cpu"
            )
        self.comm.agree(error)
        device = torch.device("cuda", self.comm.rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device

    @property
    def seconds(self) -> float:
        """Seconds since the first start, those of earlier jobs included."""
        return self.earlier["seconds"] + self.log.seconds

    def read(self, schema: type[T], *, stem: str, title: str, defaults: dict[str, Any] | None = None) -> T:
        """Return an app's options. Not collective."""
        return self.database.read(schema, stem=stem, title=title, defaults=defaults)

    def solver(self, tree: dict[str, Any], always: dict[str, Any]) -> SNES:
        """Return the solver tree that the options describe. Not collective.

        Parameters
        ----------
        tree
            The app's default tree, by option name. It stands as a whole: `-snes_type` replaces all of it.
        always
            Defaults of the app for any tree.
        """
        return create(self.database, defaults=always if self.database.has("snes_type") else always | tree)

    def ready(self, solver: SNES) -> None:
        """Answer -help; raise on options that nothing has read; check the files to be written. Collective.

        Raises
        ------
        OptionsError, FileError
            On every rank.
        """
        if self.database.flag("help") or self.database.flag("h"):
            self.print(self.database.help_text())
            self._leave(0)
        for number in _SIGNALS:  # from here on, so that none is lost while data are read
            signal.signal(number, self._caught)
        if self.options.restart is None and self.options.restart_state != "all":
            raise OptionsError(f"-restart_state {self.options.restart_state}: there is no -restart")
        if not self.options.output.endswith(".h5"):
            raise OptionsError(f"-output {self.options.output}: the name must end in .h5")
        warning = self.database.check_unused()
        if warning:
            self.print(f"warning: {warning}")
        if self.options.options_view:
            self.print(self.database.view_text())
        viewers = [
            v for node in nodes(solver) for v in (node.monitor, node.reason_viewer, node.viewer) if v is not None
        ]
        if self.options.log_view is not None:
            viewers.append(Viewer.parse(self.options.log_view, "-log_view"))
        self._on_root(lambda: self._check_files(viewers))
        for viewer in viewers:
            viewer.join()

    def _check_files(self, viewers: Sequence[Viewer]) -> None:
        """See that all files can be written, before hours of work depend on it."""
        target = Path(self.options.output)
        if target.is_dir():
            raise FileError(f"-output {target} is a folder")
        store.check_writable(target)
        for viewer in viewers:
            viewer.check()

    def print(self, text: str) -> None:
        """Print on rank 0. Not collective."""
        if self.comm.rank == 0:
            self.progress.clear()
            print(text, flush=True)

    def solve(
        self,
        solver: SNES,
        problem: Problem,
        x: Tensor,
        *,
        layout: Layout,
        identity: Tree,
        describe: Callable[[Point, bool], Tree],
        measure: Callable[[SNES, Point], dict[str, float]],
        adaptation: Adaptation | None = None,
        reached: Callable[[], bool] = lambda: False,
    ) -> Point:
        """Minimise a problem from x, or go on from -restart, and write the output. Collective.

        Parameters
        ----------
        x
            Start, shape (n,), the whole vector.
        layout
            Names the parameters in the file.
        identity
            What has to agree for a restart: network, points. "network", "dtype" and "frozen" have to for one from the
            parameters alone, too.
        describe
            `describe(point, last)` returns further groups of the output file, complete on rank 0. Collective.
        measure
            Extra columns of the history, the same on every rank. Collective.
        adaptation
            Replaces the problem between iterations; `problem` is its first.
        reached
            Asked after `measure` whether the app's own goal is reached, the same on every rank: the solve ends.

        Raises
        ------
        DivergedError
            If the numbers broke down; the last good state is in the file.
        FileError
            If the checkpoint belongs to another job or a file cannot be written.
        """
        problem = self._stored(problem)
        self._adaptation = adaptation
        self.layout, self.identity, self._describe, self._measure = layout, identity, describe, measure
        self._reached = reached
        with self.log.event("SNESSetUp"):
            solver.set_up(problem)
        start = self._restore(solver, problem)
        self._first_iteration = solver.iteration
        self._watch(solver)
        if isinstance(start, Point):
            self._asked = self._begun = time.perf_counter()
            point = solver.resume(start)
        else:
            point = solver.solve(problem.space.local(start if start is not None else x).clone())
        self.progress.clear()
        self._finish(solver, point)
        return point

    def _stored(self, problem: Problem) -> Problem:
        """Return the problem on vectors stored as -vec_type says. Not collective."""
        return ShardedProblem(problem) if self.options.vec_type == "sharded" else problem

    def _refresh(self, solver: SNES, point: Point) -> Point | None:
        """Replace the problem where that is due; return the iterate on the new one. Collective."""
        adaptation = self._adaptation
        if adaptation is None or not adaptation.due(solver.iteration):
            return None
        before = adaptation.state()
        change = adaptation.refresh(solver.iteration, solver.problem.space.gather(point.x))
        for kind, share in (("objectives", change.objectives), ("gradients", change.gradients)):
            if share > 0:
                solver.work.add(kind, share)
        new = solver.replace(self._stored(change.problem), point)
        if new is None:
            adaptation.load(before)
        else:
            told = f"{self.app}: iteration {solver.iteration}, {change.reason}"
            self.print(f"{told}: objective {point.f:.3e} -> {new.f:.3e}")
        return new

    # Recording. --------------------------------------------------------------------------------------------------

    def _watch(self, solver: SNES) -> None:
        solver.observe = self._observe
        solver.ask = self._ask
        solver.refresh = self._refresh
        self._outermost = solver
        self.history.setdefault("outer", History())
        node = solver.npc
        while node is not None:
            self.history.setdefault(node.prefix, History())
            node.observe = self._record
            node = node.npc

    def _columns(self) -> dict[str, float]:
        """Return what this job and those before it have spent. Not collective."""
        total = self.log.total
        mine = {
            "seconds": self.log.seconds,
            "cpu_seconds": time.process_time() - self._cpu_started,
            "waiting": total.waiting,
            "reductions": total.reductions,
            "bytes": total.bytes,
        }
        return {name: self.earlier[name] + value for name, value in mine.items()}

    def _record(self, solver: SNES, point: Point, norm: float, update: float) -> Reason:
        if solver.prefix:
            extra: dict[str, float] = {"outer": self._outermost.iteration}  # the iteration whose iterate it starts from
        else:
            extra = self._measure(solver, point) | (self._adaptation.columns() if self._adaptation else {})
        self.history[solver.prefix or "outer"].add(
            iteration=solver.iteration,
            objective=point.f,
            gradient_norm=norm,
            update_norm=update,
            **self._columns(),
            **solver.work.columns(),
            **extra,
        )
        return Reason.CONVERGED_ITERATING

    def _observe(self, solver: SNES, point: Point, norm: float, update: float) -> Reason:
        self._record(solver, point, norm, update)
        if not point.finite:
            return Reason.CONVERGED_ITERATING
        goal = self._reached()
        said = self._ask(solver, point, f"objective {point.f:.3e}", "iteration", goal=goal)
        return Reason.CONVERGED_USER if goal and said == Reason.CONVERGED_ITERATING else said

    def _ask(self, solver: SNES, point: Point, told: str, after: After, *, goal: bool = False) -> Reason:
        """Say whether the job goes on from a point, or inside the step from there; write checkpoints. Collective."""
        self._spent = self._columns()
        now = time.perf_counter()
        elapsed = now - self.started
        expected = elapsed + max(now - (self._begun if after == "iteration" else self._asked), 0.0)
        self._asked = now
        if after != "step":
            self._begun = now
        due = now - self._last_checkpoint > self.options.checkpoint_interval
        # One reduction: the same decision on every rank, whoever got the signal or has the slower clock.
        flags = np.array([self._signal, expected > self.options.max_time, due], dtype=np.float64)
        caught, late, due_somewhere = self.comm.largest(flags)
        budget = solver.options.max_it
        first = self._first_iteration
        done = (solver.iteration - first) / (budget - first) if budget > first else 1.0
        part = max(done, elapsed / self.options.max_time)
        if self.comm.rank == 0:
            text = f"{self.app}: iteration {solver.iteration}, {told}"
            self.progress.show(text, elapsed, min(part, 1.0))
        if caught:
            self._signal = int(caught)
            return Reason.DIVERGED_SIGNAL
        if late:
            return Reason.DIVERGED_MAX_TIME
        if due_somewhere and solver.reason == Reason.CONVERGED_ITERATING and not goal:
            self._checkpoint(solver, point, last=False)
        return Reason.CONVERGED_ITERATING

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    # Files. ------------------------------------------------------------------------------------------------------

    def _checkpoint(self, solver: SNES, point: Point, *, last: bool) -> None:
        """Write the output file: configuration, history, state, and what the app describes."""
        with self.log.event("Checkpoint"):
            space = solver.problem.space
            x, g, r = (space.gather(v) for v in (point.x, point.g, point.r))
            state = solver.state()
            described = self._describe(point, last)
            tree: Tree = {
                "configuration": {
                    "version": __version__,
                    "app": self.app,
                    "solver": solver.brief(),
                    "ranks": self.comm.size,
                    "parameters": space.n,
                    "reason": solver.reason.name,
                    "identity": self.identity,
                    "given": self._elsewhere(self.database.given(), _OF_ONE_JOB),
                    "options": self._elsewhere(self.database.effective()),
                    **described.pop("configuration", {}),
                },
                "history": {name: h.table() for name, h in self.history.items() if len(h)},
                "checkpoint": {
                    "parameters": {n: v.cpu().numpy() for n, v in self.layout.views(x).items()},
                    "gradient": g.cpu().numpy(),
                    "residual": r.cpu().numpy(),
                    "objective": point.f,
                    "spent": self._spent,
                    "solver": state,
                    **({"problem": self._adaptation.state()} if self._adaptation else {}),
                },
                **described,
            }
            self._on_root(lambda: store.write(self.options.output, tree, "run"))
        self._last_checkpoint = time.perf_counter()

    def _elsewhere(self, options: dict[str, str], but: Sequence[str] = ()) -> dict[str, str]:
        """Return options as a job in another folder understands them."""
        return {k: self.canonical.get(k, v) for k, v in options.items() if k not in but}

    def _restore(self, solver: SNES, problem: Problem) -> Point | Tensor | None:
        """Return the loaded point, only its parameters, or None without -restart."""
        if self.restored is None:
            return None
        tree, path = self.restored, self.options.restart
        self.restored = None
        try:
            theirs = tree["configuration"]["identity"]
            saved = tree["checkpoint"]
            different = [
                k for k in self.identity if k in ("network", "dtype", "frozen") and theirs.get(k) != self.identity[k]
            ]
            if self.options.restart_state == "all":
                different = [k for k in self.identity if theirs.get(k) != self.identity[k]]
            if different:
                told = "; ".join(f"{k} is {theirs.get(k)!r} there, {self.identity[k]!r} here" for k in different)
                raise FileError(f"{path}: is the checkpoint of another job: {told}")
            views = saved["parameters"]
            x = torch.cat([torch.from_numpy(views[e.name]).reshape(-1) for e in self.layout.entries]).to(self.device)
            if self.options.restart_state == "parameters":
                return x
            mine, other = solver.brief(), tree["configuration"]["solver"]
            if mine != other:
                raise FileError(
                    f"{path}: its solver is {other}, here it is {mine}; use the same options, "
                    f"or -restart_state parameters to start this solver from the network of the file"
                )
            for name, table in tree["history"].items():
                self.history.setdefault(name, History()).load(table)
            self.earlier = {name: float(saved["spent"][name]) for name in _CUMULATIVE}
            if self._adaptation is not None:
                solver.rebind(self._stored(self._adaptation.load(saved["problem"])))
            solver.load(saved["solver"])
            g, r = (torch.from_numpy(saved[k]) for k in ("gradient", "residual"))
            same = torch.equal(g, r)
            local = [problem.space.local(v).to(self.device, copy=True) for v in (x, g, r)]
            return Point(local[0], float(saved["objective"]), local[1], local[1] if same else local[2])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FileError(f"{path}: does not hold the state of this job ({type(error).__name__}: {error})") from error

    def _on_root(self, action: Callable[[], object]) -> None:
        """Do something with files on rank 0; its error is raised on every rank. Collective."""
        error: Exception | None = None
        if self.comm.rank == 0:
            try:
                action()
            except UserError as caught:
                error = caught
        self.comm.agree(error)

    # The end. ----------------------------------------------------------------------------------------------------

    def _finish(self, solver: SNES, point: Point) -> None:
        fresh = solver.iteration == 0 and not point.finite
        if not fresh:
            self._checkpoint(solver, point, last=True)
        for node in nodes(solver):
            if node.viewer is not None:
                adapts = self._adaptation.view() if self._adaptation and node is solver else []
                self._show(node.viewer, "\n".join([node.view(), *(f"  {line}" for line in adapts)]))
        if self.options.log_view is not None:
            logs = self.comm.gather(self.log)
            work = {node.prefix: node.work for node in nodes(solver)}
            if logs is not None:
                self._show(Viewer.parse(self.options.log_view, "-log_view"), log.view(logs, work, self.command))
        why = solver.ending()
        if solver.reason == Reason.DIVERGED_SIGNAL:
            name = signal.Signals(self._signal).name
            self.print(f"{self.app}: {name}: checkpoint written to {self.options.output}, go on with -restart")
            self._leave(REQUEUE)
        if solver.reason == Reason.DIVERGED_MAX_TIME:
            told = f"{self.app}: -max_time is over"
            if solver.failure:
                told += f", inside iteration {solver.iteration + 1}: its network is that before it"
            self.print(f"{told}; go on with -restart {self.options.output}")
        demanded = solver.options.error_if_not_converged and solver.reason < 0
        if solver.reason.is_failure or demanded:
            kept = "nothing was written" if fresh else f"the last good state is in {self.options.output}"
            raise DivergedError(f"the solve ended with {why}; {kept}")

    def _show(self, viewer: Viewer, text: str) -> None:
        if self.comm.rank == 0:
            self.progress.clear()
            viewer.write(text)

    def _leave(self, status: int) -> NoReturn:
        sys.stdout.flush()
        self.comm.agree(None)  # together: a launcher ends the others when the first one leaves with an error status
        sys.exit(status)


def nodes(solver: SNES) -> list[SNES]:
    """Return a solver and all solvers below it, outermost first. Not collective."""
    below = [solver.npc] if solver.npc is not None else []
    below += [child for _, child in solver.method.inner()]
    return [solver, *(node for child in below for node in nodes(child))]
