"""What went wrong in a store: what an error of fsspec or botocore says of a request, in words without credentials."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from jobs.credentials import scrubbed
from jobs.errors import InputError, JobError, StorageError, StorageUnknown


def translated(what: str, error: Exception, hidden: list[str], *, uncertain: bool) -> JobError:
    reason = scrubbed(str(error) or type(error).__name__, hidden)
    if isinstance(error, TypeError):  # s3fs looks at its options only when it connects
        return InputError(f"{what}: a storage option is not accepted: {reason}")
    if not uncertain or surely_failed(error):
        return StorageError(f"{what}: {reason}")
    return StorageUnknown(f"{what}: {reason} (it may have been written all the same)")


def surely_failed(error: Exception) -> bool:
    """Whether a write that raised ``error`` can be known to have left nothing."""
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ParamValidationError

    status = status_of(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 409, 429)
    if isinstance(error, EndpointConnectionError | NoCredentialsError | ParamValidationError):
        return True
    if isinstance(
        error, PermissionError | FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError
    ):
        return True
    return isinstance(error, ValueError | TypeError | NotImplementedError)


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of s3fs, which keeps botocore's answer as the cause."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return int(status) if status else None
        error = error.__cause__
    return None


def unsupported(error: Exception) -> bool:
    known = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
    refused = isinstance(error, OSError) and error.errno in known
    return isinstance(error, NotImplementedError) or refused or status_of(error) == 501
