"""The errors that end a run, each with the exit code that the command line returns for it."""

from typing import Any


def one_line(message: object, max_length: int = 200) -> str:
    """The text of anything, an exception too, in one line that a terminal can show; cut to a length to be read."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(str(message).split()))
    return line if len(line) <= max_length else f"{line[:max_length]} .."


class UserError(ValueError):
    """Something the user gave cannot be used; the message is one line that says how to fix it."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration that is refused."""


class ModelError(UserError):
    """A model that cannot be traced, pruned or loaded."""


class DataError(UserError):
    """Data on disk that cannot be used."""


class HostError(UserError):
    """Something that all ranks of one host find, before there is word between the ranks; one of them says it."""

    def __init__(self, message: str, local_rank: int) -> None:
        super().__init__(message)
        self.is_of_one_rank = local_rank == 0


class SampleError(DataError):
    """One sample that cannot be read. Only the rank that needs it knows, so that rank says it."""

    is_of_one_rank = True


class CheckpointError(UserError):
    """A checkpoint that cannot be read or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are not as they were written."""


class CheckpointWriteError(RuntimeError):
    """A checkpoint that could not be written, several times in a row; the one before it is whole."""

    exit_code = 6


class StoppedError(RuntimeError):
    """The run was asked to stop, and has: its checkpoint is written."""

    exit_code = 143


class DisagreementError(RuntimeError):
    """The ranks do not hold the same state; going on would train different models."""

    exit_code = 3


class CertificateError(RuntimeError):
    """The slim model differs from the trained one by more than the tolerance; it was not written."""

    exit_code = 4


class NonFiniteError(RuntimeError):
    """Too many steps in a row gave a loss or gradient that is not finite."""

    exit_code = 5


class StalledError(RuntimeError):
    """No step was made for too long."""

    exit_code = 7


class RankLostError(RuntimeError):
    """Another rank is gone, and no collective can be finished without it."""

    exit_code = 8


def describe_error(error: Exception) -> dict[str, Any]:
    """What `error_from` needs to raise the same error in another process, as JSON values."""
    # The nearest of our classes: another process may not know a subclass of it.
    known = next((kind.__name__ for kind in type(error).__mro__ if globals().get(kind.__name__) is kind), None)
    return {"class": known, "message": str(error), "exit_code": getattr(error, "exit_code", 1)}


def error_from(description: dict[str, Any]) -> Exception:
    """The error of another process, of the same class if it is one of this module, otherwise a RuntimeError."""
    kind = globals()[description["class"]] if description["class"] else RuntimeError
    # Not by `__init__`, which may take more than the message.
    error: Exception = kind.__new__(kind, description["message"])
    # The process where it was raised is the one that reports it.
    vars(error).update(exit_code=description["exit_code"], is_of_one_rank=False)
    return error
