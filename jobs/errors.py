"""The errors of a job. Each message is complete: it shows the value and says what to do."""


class JobError(Exception):
    """Something that ends a command. ``str(error)`` is what the user reads."""

    exit_code = 1


class InputError(JobError):
    """Bad input or configuration, a refused change, or no such output: nothing was started or written."""

    exit_code = 2


class LeaseHeld(JobError):
    """Another run is alive on this output, or has taken it over from this one."""


class Unfinished(JobError):
    """The job stopped before its end; the message says what is left and how to go on."""


class StorageError(JobError):
    """A storage operation that surely failed: a write left nothing behind, so its own files may be deleted."""


class Denied(StorageError):
    """What trying again does not mend: no credentials, no rights, no such bucket.

    Attributes:
        way_out: what to do, for a message; empty where the error says all.
    """

    def __init__(self, message: str, way_out: str = "") -> None:
        super().__init__(message)
        self.way_out = way_out


class Refused(Denied):
    """A file that is there and is not given out, or cannot be a file at all: its store is well, and asking again is
    of no use."""


class StorageUnknown(JobError):
    """A write whose outcome is not known (a time-out, a lost connection): it may still have landed.

    Never delete after it; read again what is there.
    """
