"""What a store does not give out, and one that does not answer: the exit code is the same whichever key leads there."""

from __future__ import annotations

import errno
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import Result

from jobs import making
from jobs.errors import Denied, InputError, JobError, StorageError, StorageUnknown
from jobs.ledger.ledger import Ledger
from jobs.storage.faults import as_input, translated
from jobs.storage.folders import Folder
from jobs.storage.patience import PATIENT
from tests.jobs.command import cli
from tests.jobs.inputs import good_rows, write_clips, write_config, write_manifest
from tests.jobs.object_stores import Endpoint
from tests.jobs.ray_session import local_ray

__all__ = ["local_ray"]

FORBIDDEN = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
URL = "s3://a-bucket/x.parquet"
# By the key that the message begins with: a command that meets the URL there. JOB is a configuration that is good.
COMMANDS = [
    ("manifest", "synth JOB --manifest URL"),
    ("voices", "synth JOB --set voices=URL"),
    ("model", "synth JOB --set model=URL"),
    ("output", "synth JOB --set output=URL"),
    ("manifest", "plan JOB --manifest URL"),
    ("voices", "plan JOB --set voices=URL"),
    ("output", "resume URL"),
    ("output", "status URL"),
    ("output", "verify URL"),
    ("output", "report URL"),
    ("INPUT", "tokenize URL --out FOLDER/t.parquet --model random:tiny"),
    ("output", "tokenize CLIPS --out URL --model random:tiny"),
    ("INPUT", "voices URL --out FOLDER/v.parquet --model random:tiny"),
    ("model", "voices CLIPS --out FOLDER/v.parquet --model URL"),
    ("--out", "voices CLIPS --out URL --model random:tiny"),
    ("model", "convert URL FOLDER/converted"),
    ("DEST", "convert random:tiny URL"),
]
IDS = [line.partition(" --model random")[0] for _, line in COMMANDS]


class _Forbidding(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", str(len(FORBIDDEN)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(FORBIDDEN)

    do_HEAD = do_PUT = do_DELETE = do_GET

    def log_message(self, *words: object) -> None:
        """Says nothing."""


@pytest.fixture
def forbidding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A store that refuses everything; the standard variables lead to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Forbidding)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}")
    endpoint.use(monkeypatch)
    yield endpoint
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def job(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    manifest = write_manifest(folder / "manifest.parquet", good_rows(4))
    write_clips(folder / "clips")
    values = {"manifest": str(manifest), "voices": str(table), "output": str(folder / "out"), "workers": 1}
    return write_config(folder / "job.yaml", **values)


def _given(line: str, job: Path, folder: Path, url: str = URL) -> Result:
    words = line.replace("URL", url).replace("JOB", str(job)).replace("FOLDER", str(folder))
    return cli(*words.replace("CLIPS", str(job.parent / "clips")).split())


def _is_bad_input(result: Result, key: str, way_out: str, folder: Path) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith(f"error: {key}: "), result.stderr
    assert way_out in result.stderr
    assert result.stderr.count(f"{key}: ") == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("key", "line"), COMMANDS, ids=IDS)
def test_a_supervisor_repeats_for_ever_what_lacks_a_secret(
    key: str, line: str, job: Path, forbidding: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    result = _given(line, job, tmp_path)
    _is_bad_input(result, key, "Unable to locate credentials; give some: storage_options, or AWS_ACC", tmp_path)


@pytest.mark.parametrize(("key", "line"), COMMANDS, ids=IDS)
def test_a_supervisor_repeats_for_ever_what_lacks_rights(
    key: str, line: str, job: Path, forbidding: Endpoint, tmp_path: Path
) -> None:
    _is_bad_input(_given(line, job, tmp_path), key, "; check the credentials (storage_options, or", tmp_path)


@pytest.mark.parametrize(("key", "line"), COMMANDS, ids=IDS)
def test_a_store_that_is_away_for_a_moment_is_called_bad_input(
    key: str, line: str, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Endpoint("http://127.0.0.1:9").use(monkeypatch)
    before = PATIENT.stranger
    object.__setattr__(PATIENT, "stranger", 0.0)
    try:
        result = _given(line, job, tmp_path, "s3://a-bucket-that-never-answered/x.parquet")
    finally:
        object.__setattr__(PATIENT, "stranger", before)
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[-1].startswith(f"error: {key}: "), result.stderr
    assert "check the address (endpoint_url, AWS_ENDPOINT_URL) and the network" in result.stderr


@pytest.mark.parametrize(
    ("key", "line"),
    [(key, line) for key, line in COMMANDS if key != "DEST" and "--set output" not in line and "--out URL" not in line],
)
@pytest.mark.parametrize("url", [URL, "s3://a-bucket/clips"])
def test_a_mistyped_bucket_is_an_internal_error(
    key: str, line: str, url: str, job: Path, s3: str, tmp_path: Path
) -> None:
    result = _given(line, job, tmp_path, url)
    _is_bad_input(result, key, url, tmp_path)
    assert "Error:" not in result.stderr


def test_a_mistyped_bucket_of_an_output_is_to_be_tried_again(s3: str) -> None:
    with pytest.raises(InputError, match=r"output: cannot list s3://a-bucket/out/.*; check the bucket, the path"):
        Ledger.start(Folder("s3://a-bucket/out"), {"config": {}}, None)  # type: ignore[arg-type]


def test_a_job_that_is_refused_under_way_is_not_finished(
    job: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its credentials have expired: with new ones the same command goes on."""

    def denied(*words: object) -> None:
        raise Denied("cannot write x: Access Denied", "check the credentials")

    monkeypatch.setattr(making, "_to_the_end", denied)
    result = cli("synth", job, "--set", f"output={tmp_path / 'out'}")
    assert result.exit_code == 1, result.output
    assert "error: cannot write x: Access Denied\n" in result.stderr


def test_a_resume_that_may_not_write_the_lease_is_to_be_tried_again(
    job: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's job: it can be read."""
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(making, "_to_the_end", lambda *words: (_ for _ in ()).throw(JobError("enough")))
        assert cli("synth", job, "--set", f"output={output}").exit_code == 1
    monkeypatch.setattr("jobs.storage.stores.LocalStore.create", _not_mine)
    monkeypatch.setattr("jobs.storage.stores.LocalStore.put", _not_mine)
    result = cli("resume", output)
    assert result.exit_code == 2, result.output
    assert f"error: output: cannot write {output}/" in result.stderr
    assert "Permission denied; give this user the right, or give another place" in result.stderr


def _not_mine(*words: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    ("error", "is_denied"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.EIO, "Input/output error"), False),
        (TimeoutError(), False),
        (ConnectionResetError(), False),
    ],
)
def test_what_somebody_has_to_mend_passes_for_what_time_mends(error: Exception, is_denied: bool) -> None:
    found = translated("cannot write x", error, [], uncertain=False)
    assert isinstance(found, Denied) == is_denied
    with pytest.raises(InputError if is_denied else StorageError, match="key: cannot write x"), as_input("key"):
        raise found
    assert type(found).exit_code == 1


def test_a_write_that_may_have_landed_is_called_bad_input() -> None:
    with pytest.raises(StorageUnknown, match="output: cannot write"), as_input("output"):
        raise translated("cannot write s3://b/x", TimeoutError(), [], uncertain=True)


def test_an_error_of_a_worker_loses_its_way_out_between_processes() -> None:
    error = pickle.loads(pickle.dumps(Denied("cannot", "do")))
    assert (str(error), error.way_out) == ("cannot", "do")
