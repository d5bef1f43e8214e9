"""What goes wrong, by whose fault: the user's input (one clear message, no traceback) or the program's own."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. Raised on every rank together; rank 0 prints the message, every rank exits with status 1."""


class OptionsError(UserError):
    """An option is unknown, misspelt, out of range or cannot be combined with the others."""


class FileError(UserError):
    """A file is missing, damaged, foreign, of another job, or cannot be written."""


class UnsupportedError(UserError):
    """A combination of problem and solver that the mathematics or the code does not allow."""


class DivergedError(UserError):
    """The job ended with a DIVERGED_* reason that leaves nothing to continue from (NaN or infinity)."""
