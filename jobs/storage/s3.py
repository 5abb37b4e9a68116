"""Objects in S3's own protocol, one request for each operation and none besides.

Writes are one request (or one multipart upload, which appears when it is completed, and is aborted when that fails).
``create`` sends ``If-None-Match: *``; what a store that ignores it does, a probe finds out (see ``folders``).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar

from jobs.storage.faults import Doubtful, code_of, status_of
from jobs.storage.stores import RemoteStore

log = logging.getLogger(__name__)

PART_BYTES = 16 << 20  # of a multipart upload; S3 wants 5 MiB at least, for all parts but the last
MOST_PARTS = 9_000  # S3 allows 10,000
WHOLE_BYTES = 2 * PART_BYTES  # up to here an object goes in one request
PARTS_AT_ONCE = 4
ABORT_SECONDS = 10.0  # of trying to clear a failed upload away: somebody may wait for the process to end

Parts = list[dict[str, Any]]
Content = Callable[[int, int], bytes]  # the bytes from a position on, so many


class S3Store(RemoteStore):
    """A prefix in a bucket."""

    _read_settings: ClassVar = {"max_concurrency": 1}  # with more at once s3fs would ask for the size first

    def put(self, name: str, data: bytes) -> None:
        self._write(name, len(data), lambda start, size: data[start : start + size])

    def upload(self, name: str, local_path: str) -> None:
        with open(local_path, "rb") as file:
            handle = file.fileno()
            self._write(name, os.fstat(handle).st_size, lambda start, size: os.pread(handle, size, start))

    def create(self, name: str, data: bytes) -> None:
        try:
            self._call("write", name, "put_object", Body=data, IfNoneMatch="*", writing=True)
        except OSError as error:
            # s3fs knows AWS's wording of "there is one"; other stores say it by the status alone.
            if status_of(error) == 412:
                raise FileExistsError(name) from error
            raise

    def size(self, name: str) -> int:
        return int(self._call("look at", name, "head_object")["ContentLength"])

    def delete(self, name: str) -> None:
        self._call("delete", name, "delete_object")

    def list(self, prefix: str) -> Iterator[str]:
        bucket, root = self._place("")
        start: dict[str, Any] = {}
        while True:
            page = self._page(self._url(prefix), Bucket=bucket, Prefix=root + prefix, **start)
            for entry in page.get("Contents", []):
                name = entry["Key"].removeprefix(root)
                if name and not name.endswith("/"):
                    yield name
            if not page.get("IsTruncated"):
                return
            start = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, url: str, **parameters: Any) -> Any:
        try:
            return self._request("list", url, "list_objects_v2", **parameters)
        except FileNotFoundError as error:
            if code_of(error) == "NoSuchBucket":
                raise OSError(str(error)) from error
            if "ContinuationToken" in parameters:
                raise OSError(f"a listing broke off: {error}") from error
            return {}  # some stores say so of a prefix without objects

    def _write(self, name: str, size: int, content: Content) -> None:
        if size <= WHOLE_BYTES:
            self._call("write", name, "put_object", Body=_exactly(content, 0, size), writing=True)
        else:
            self._write_parts(name, size, content)

    def _write_parts(self, name: str, size: int, content: Content) -> None:
        upload = self._call("write", name, "create_multipart_upload")["UploadId"]
        try:
            parts = self._send_parts(name, upload, size, content)
            self._complete(name, upload, parts, size)
        except BaseException:
            self._abort(name, upload)
            raise

    def _send_parts(self, name: str, upload: str, size: int, content: Content) -> Parts:
        step = part_bytes(size)

        def send(start: int) -> dict[str, Any]:
            number, body = 1 + start // step, _exactly(content, start, min(step, size - start))
            sent = self._call("write", name, "upload_part", PartNumber=number, UploadId=upload, Body=body)
            return {"PartNumber": number, "ETag": sent["ETag"]}

        # Leaving the block waits for the parts under way: one that came after the abort would stay for ever.
        with ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="upload") as pool:
            try:
                return [*pool.map(send, range(0, size, step))]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _complete(self, name: str, upload: str, parts: Parts, size: int) -> None:
        done = {"Parts": parts}
        try:
            self._call("write", name, "complete_multipart_upload", UploadId=upload, MultipartUpload=done, writing=True)
        except Doubtful:
            # "No such upload" is what a store says of one that was completed, when only its answer was lost.
            with contextlib.suppress(OSError):
                if self.size(name) == size:
                    return
            raise

    def _abort(self, name: str, upload: str) -> None:
        patience = self._filesystem.patience
        hasty = self.with_patience(replace(patience, total=min(patience.total, ABORT_SECONDS)))
        try:
            hasty._call("abort", name, "abort_multipart_upload", UploadId=upload)
        except FileNotFoundError:
            return
        except Exception as error:
            log.warning(
                "%s: parts of a failed upload may be left in the store: %s", self._url(name), type(error).__name__
            )

    def _call(self, verb: str, name: str, method: str, *, writing: bool = False, **parameters: Any) -> Any:
        bucket, key = self._place(name)
        return self._request(verb, self._url(name), method, Bucket=bucket, Key=key, writing=writing, **parameters)

    def _request(self, verb: str, url: str, method: str, *, writing: bool = False, **parameters: Any) -> Any:
        return self._filesystem.ask(verb, url, "call_s3", method, writing=writing, **parameters)

    def _place(self, name: str) -> tuple[str, str]:
        """Bucket and key; of the empty name the key with which all names begin."""
        bucket, key, _ = self._filesystem.fs.split_path(f"{self._filesystem.path}/{name}")
        return bucket, key


def part_bytes(size: int) -> int:
    """Bytes of each part but the last of an object of ``size`` bytes; some stores (R2) want them to be equal."""
    return max(PART_BYTES, math.ceil(size / MOST_PARTS))


def _exactly(content: Content, start: int, size: int) -> bytes:
    data = content(start, size)
    if len(data) != size:
        raise ValueError(f"the file changed while it was uploaded: {len(data)} bytes at {start}, not {size}")
    return data
