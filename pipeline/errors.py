"""Errors and warnings that are meant for people: one line that says what is wrong, where, and what to do.

An error that is raised `from` a library's says less than that one does: the whole of it goes to the job's log.
"""

import logging
from collections.abc import Iterator
from functools import lru_cache

from pipeline.masking import masked, printable


class EquihandError(Exception):
    """Base of all errors whose message is shown to the user without a traceback.

    Whatever went into it, it shows no password and no signature, and steers no terminal (masking.py).
    """

    exit_code = 1

    def __init__(self, *lines: object) -> None:
        """lines: of the message; one, but for errors that list several things."""
        super().__init__(*(printable(masked(str(line))) for line in lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class SettingsError(EquihandError):
    """A setting is unknown, of the wrong type, or out of range."""

    exit_code = 2


class StorageError(EquihandError):
    """A URI cannot be reached, read or written."""


class BadUriError(StorageError):
    """A URI is wrong as it is written, whatever there may be in the storage."""

    exit_code = 2


class MissingError(StorageError):
    """This file is not there; its storage answers, so others may be."""


class RefusedError(StorageError):
    """This file may not be read or written; its storage answers, so others may be."""


class CredentialsError(StorageError):
    """The storage refuses whoever asks: the credentials are wrong, or have expired and may be renewed."""


class FullError(StorageError):
    """The disk is full, or the quota is used up. Beginning anew does not help; going on after somebody has made room does."""


class DataError(EquihandError):
    """Input data is missing, damaged, or not what it claims to be."""


class DamagedError(DataError, StorageError):
    """This file is missing, cut off or changed; an earlier one of its kind may do."""


class TrainingError(EquihandError):
    """Training cannot go on (for example a loss that is not a number)."""


class UnfinishedError(EquihandError):
    """The time that was given is over; the same command goes on."""

    exit_code = 3


class LeftError(EquihandError):
    """The work was asked to end (SIGTERM) and has kept where it is: nothing is lost, and the same command goes on."""

    exit_code = 143


class UntrackedError(EquihandError):
    """The work is done and its results are written, but MLflow does not have all of them, and does not get them by itself."""

    exit_code = 4


@lru_cache(maxsize=1000)
def warn(text: str) -> None:
    """Say what was wrong where work goes on all the same; the same words once a process.

    It goes to the logger "equihand": without further ado to stderr, in a job to its terminal.
    """
    logging.getLogger("equihand").warning("%s", printable(masked(text)))


def one_line(error: object, length: int = 300) -> str:
    """A library's error in one line: its text without secrets (masking.py), or its class where it has none."""
    text = printable(" ".join(masked(str(error)).split()))
    return (text or type(error).__name__)[:length]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first; of an error on a Ray worker also what happened there."""
    while error is not None:
        yield error
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__
