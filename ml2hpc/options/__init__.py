"""The options database: one text for everything a run can be told.

An option is `-name value`, where the name is the prefix of a solver, the stem of its type and a field of its frozen
`Options` dataclass. Option files, the environment variable ML2HPC_OPTIONS and the command line are merged in this
order, the later wins. What nobody has read by the end of the set-up is an error that names the closest valid option.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Options:
...     m: int = option(10, "number of stored secant pairs", at_least=1)
>>> db = Database.from_string("-npc_snes_qn_m 4")
>>> db.read(Options, prefix="npc_", stem="snes_qn_", title="Quasi-Newton (qn)")
Options(m=4)
>>> print(db.help_text())
Quasi-Newton (qn) options:
  -npc_snes_qn_m <now 4 : formerly 10>: number of stored secant pairs (at least 1)
"""

from __future__ import annotations

from ml2hpc.options.database import Database
from ml2hpc.options.schema import option

__all__ = ["Database", "option"]
