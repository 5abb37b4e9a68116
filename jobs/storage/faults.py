"""What went wrong in a store: whether it will pass, whether a write may have landed all the same, and how to say it.

Before anything is begun, what does not pass is bad input (`as_input`). While a job is under way it is not: what is
committed stays, and the same command goes on once the rights are back.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.errors import Denied, InputError, JobError, Refused, StorageError, StorageUnknown
from jobs.storage.credentials import scrubbed

PASSING_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# Some stores say these with status 400 or 403: the request was too slow, or came over damaged.
PASSING_CODES = frozenset(
    {"SlowDown", "RequestTimeout", "RequestTimeoutException", "Throttling", "ThrottlingException", "TooManyRequests"}
    | {"RequestLimitExceeded", "BandwidthLimitExceeded", "InternalError", "ServiceUnavailable", "OperationAborted"}
    | {"IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
)
UNDECIDED_STATUS = frozenset({408, 409, 429})  # of the 4xx, those that do not say that nothing happened
PASSING_ERRNO = frozenset(
    {errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE, errno.ETIMEDOUT}
    | {errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EHOSTDOWN}
)
GONE_STATUS = frozenset({404, 410})
# Of a path on a disk: there is something in the way that is of no use, or no right to read it.
OWN_ERRNO = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.EINVAL}
)


# Likewise, of the place.
NO_PLACE_ERRNO = frozenset({errno.ENOENT, errno.EROFS})


class Doubtful(OSError):
    """A write that failed in the end, after a try of which nobody knows whether it landed."""


def translated(what: str, error: Exception, hidden: list[str], *, uncertain: bool) -> JobError:
    """The error that the user reads.

    Args:
        what: what failed, with the URL: "cannot write s3://bucket/name".
        hidden: texts to leave out.
        uncertain: whether a write may have landed although it raised an error.
    """
    reason = scrubbed(described(error), hidden)
    if isinstance(error, TypeError):  # s3fs looks at its options only when it connects
        return InputError(f"{what}: a storage option is not accepted: {reason}")
    if uncertain and not surely_failed(error):
        return StorageUnknown(f"{what}: {reason} (it may have been written all the same)")
    if not denied(error):
        return StorageError(f"{what}: {reason}")
    kind = Refused if not uncertain and refused(error) else Denied
    return kind(f"{what}: {reason}", _way_out(error))


@contextlib.contextmanager
def as_input(key: str) -> Iterator[None]:
    """What a store says of a key before anything is begun, with the key before it.

    Raises:
        InputError: bad input, or what trying again does not mend, with the way out.
        StorageError, StorageUnknown: what may pass; the same command goes on.
    """
    name = f"{key}: "
    try:
        yield
    except (InputError, StorageError, StorageUnknown) as error:
        text = str(error) if str(error).startswith(name) else f"{name}{error}"
        if isinstance(error, Denied):
            raise InputError("; ".join(filter(None, (text, error.way_out)))) from error
        raise type(error)(text) from error


def described(error: BaseException) -> str:
    """The error in one line, with the notes that were added to it; not yet without credentials."""
    lines = [str(error) or type(error).__name__, *getattr(error, "__notes__", [])]
    return "; ".join(" ".join(line.split()) for line in lines)


def passes(error: Exception) -> bool:
    """Whether the same request may well succeed later: throttling, overload, lost connections, time-outs."""
    from aiohttp import ClientConnectionError, ClientPayloadError
    from botocore.exceptions import ConnectionError as Unconnected
    from botocore.exceptions import HTTPClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import IncompleteRead

    status = status_of(error)
    if status is not None:
        return status in PASSING_STATUS or code_of(error) in PASSING_CODES
    # A parser error is an answer that was cut off, or a proxy's page in place of one.
    of_s3 = HTTPClientError | Unconnected | ResponseParserError | IncompleteRead
    of_http = ClientConnectionError | ClientPayloadError | http.client.HTTPException
    if isinstance(error, of_s3 | of_http | ConnectionError | TimeoutError | socket.gaierror):
        return True
    return isinstance(error, OSError) and error.errno in PASSING_ERRNO


def refused(error: Exception) -> bool:
    """Whether what was asked for is at fault alone, and not the store, or the rights that all its files need."""
    from aiohttp import ClientResponseError
    from botocore.exceptions import ParamValidationError

    status = status_of(error)
    if status is not None:
        # A list of links holds some that lead nowhere any more, whereas a bucket refuses all of its objects.
        return isinstance(error, ClientResponseError) and 400 <= status < 500 and not passes(error)
    return isinstance(error, ValueError | ParamValidationError) or (
        isinstance(error, OSError) and error.errno in OWN_ERRNO
    )


def denied(error: Exception) -> bool:
    """Whether the same request will fail again, until somebody gives credentials, rights or another name."""
    status = status_of(error)
    if status is not None:
        return 300 <= status < 500 and not passes(error)  # 3xx: the bucket is elsewhere
    if isinstance(error, OSError) and error.errno in NO_PLACE_ERRNO:
        return True
    named = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError)
    return named or without_credentials(error) or refused(error)


def without_credentials(error: Exception) -> bool:
    """Whether nothing was asked of a store, since there are no credentials, or none that can be read."""
    from botocore.exceptions import (
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
        SSOError,
        TokenRetrievalError,
    )

    return isinstance(
        error, NoCredentialsError | PartialCredentialsError | ProfileNotFound | SSOError | TokenRetrievalError
    )


def _way_out(error: Exception) -> str:
    """Of what is denied."""
    status = status_of(error)
    if without_credentials(error):
        return "give some: storage_options, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if status in (401, 403) or (status is not None and isinstance(error, PermissionError)):  # 400: an expired token
        return "check the credentials (storage_options, or AWS_ACCESS_KEY_ID and the like) and their rights"
    if status is not None:
        return "check the bucket, the path and the address (endpoint_url, region_name)"
    if isinstance(error, PermissionError):
        return "give this user the right, or give another place"
    return ""


def surely_failed(error: Exception) -> bool:
    """Whether a write that raised ``error`` can be known to have left nothing."""
    from botocore.exceptions import ParamValidationError

    if isinstance(error, Doubtful):
        return False
    status = status_of(error)
    if status is not None:
        return 400 <= status < 500 and status not in UNDECIDED_STATUS
    if unreached(error) or without_credentials(error) or isinstance(error, ParamValidationError):
        return True
    if isinstance(
        error, PermissionError | FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError
    ):
        return True
    return isinstance(error, ValueError | TypeError | NotImplementedError)


def unreached(error: Exception) -> bool:
    """Whether no connection to the store came about, so that nothing was asked of it."""
    from aiohttp import ClientConnectorError
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError

    if isinstance(error, ConnectTimeoutError):
        return True
    # botocore's error for a connection that cannot be made also stands for one that broke when the request was sent.
    below = error.kwargs.get("error") if isinstance(error, EndpointConnectionError) else error
    return isinstance(below, ClientConnectorError | socket.gaierror | ConnectionRefusedError)


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of fsspec."""
    answer = _answer_of(error)
    if answer is not None:
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "status_code", "code"):  # aiohttp, Azure, Google
        status = getattr(error, name, None)
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None


def code_of(error: BaseException) -> str | None:
    """S3's name of an error, such as "NoSuchBucket"."""
    return (_answer_of(error) or {}).get("Error", {}).get("Code")


def _answer_of(error: BaseException | None) -> Mapping[str, Any] | None:
    """The store's answer, which botocore's error has; s3fs keeps that one as the cause of its own."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            return response
        error = error.__cause__
    return None


def unsupported(error: Exception) -> bool:
    """Whether the store says that it cannot do what was asked."""
    known = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
    refused = isinstance(error, OSError) and error.errno in known
    return isinstance(error, NotImplementedError) or refused or status_of(error) == 501
