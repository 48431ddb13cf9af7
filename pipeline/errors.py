"""Errors that are meant for people: one line that says what is wrong, where, and what to do."""


class EquihandError(Exception):
    """Base of all errors whose message is shown to the user without a traceback."""

    exit_code = 1


class SettingsError(EquihandError):
    """A setting is unknown, of the wrong type, or out of range."""

    exit_code = 2


class StorageError(EquihandError):
    """A URI cannot be reached, read or written."""


class MissingError(StorageError):
    """This file is not there; its storage answers, so others may be."""


class RefusedError(StorageError):
    """This file may not be read or written; its storage answers, so others may be."""


class DataError(EquihandError):
    """Input data is missing, damaged, or not what it claims to be."""


class TrainingError(EquihandError):
    """Training cannot go on (for example a loss that is not a number)."""


class UnfinishedError(EquihandError):
    """The time that was given is over; the same command goes on."""

    exit_code = 3
