"""The errors that end a run, each with the exit code of the command line."""

from typing import Any


def one_line(message: object, max_length: int = 200) -> str:
    """Return the text of an object on one line that is safe for a terminal.

    Args:
        message: Any object, such as an exception. Characters that cannot be printed are escaped.
        max_length: Number of characters after which the text is cut off.

    Returns:
        The text, with ` ..` at its end if it was cut off.
    """
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(str(message).split()))
    return line if len(line) <= max_length else f"{line[:max_length]} .."


class UserError(ValueError):
    """An input of the user cannot be used. The message is one line and says how to fix it."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration that is not valid."""


class ModelError(UserError):
    """A model that cannot be traced, pruned or loaded."""


class DataError(UserError):
    """Data on disk that cannot be used."""


class HostError(UserError):
    """A problem that all ranks of a host find before they can communicate; one of them prints it.

    Args:
        message: The message for the user.
        local_rank: Number of this rank on its host, counted from 0.
    """

    def __init__(self, message: str, local_rank: int) -> None:
        super().__init__(message)
        self.is_of_one_rank = local_rank == 0


class SampleError(DataError):
    """A sample that cannot be read. Only the rank that needs it finds this, so that rank prints it."""

    is_of_one_rank = True


class CheckpointError(UserError):
    """A checkpoint that cannot be read or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are not as they were written."""


class CheckpointWriteError(RuntimeError):
    """Checkpoints could not be written several times in a row; the last complete one is not damaged."""

    exit_code = 6


class StoppedError(RuntimeError):
    """The run has stopped because it was asked to, after writing a checkpoint."""

    exit_code = 143


class DisagreementError(RuntimeError):
    """The ranks do not have the same state, so they would train different models."""

    exit_code = 3


class CertificateError(RuntimeError):
    """The slim model differs from the trained one by more than the tolerance; it was not written."""

    exit_code = 4


class NonFiniteError(RuntimeError):
    """The loss or a gradient was not finite for too many steps in a row."""

    exit_code = 5


class StalledError(RuntimeError):
    """No step was completed for too long."""

    exit_code = 7


class RankLostError(RuntimeError):
    """Another rank has ended, so collectives can no longer complete."""

    exit_code = 8


class TargetMissedError(RuntimeError):
    """A run ended above its target; asked for by `--strict`, since the slim model is written all the same."""

    exit_code = 9


class BrokenModelError(RuntimeError):
    """A run ended with a model that guesses or has lost most of its accuracy; asked for by `--strict`."""

    exit_code = 10


def describe_error(error: Exception) -> dict[str, Any]:
    """Describe an error, so that `error_from` can create it again in another process.

    Args:
        error: The error. A subclass of a class of this module is described as that class.

    Returns:
        JSON values: `class` (None if the class is not of this module), `message` and `exit_code`.
    """
    # The nearest of our classes: another process may not know a subclass of it.
    known = next((kind.__name__ for kind in type(error).__mro__ if globals().get(kind.__name__) is kind), None)
    return {"class": known, "message": str(error), "exit_code": getattr(error, "exit_code", 1)}


def error_from(description: dict[str, Any]) -> Exception:
    """Create the error of another process from its description.

    Args:
        description: What `describe_error` returned.

    Returns:
        An error of the same class if it is one of this module, otherwise a RuntimeError, with the same exit code. Its
        `is_of_one_rank` is False, since the process that raised it reports it.
    """
    kind = globals()[description["class"]] if description["class"] else RuntimeError
    # Not by `__init__`, which may take more than the message.
    error: Exception = kind.__new__(kind, description["message"])
    # The process where it was raised is the one that reports it.
    vars(error).update(exit_code=description["exit_code"], is_of_one_rank=False)
    return error
