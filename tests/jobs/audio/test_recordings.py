"""Recordings that cannot be read: which are at fault themselves, and which are only out of reach for a while."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.audio import recordings
from jobs.audio.audiofile import read_audio
from jobs.audio.recordings import Rejected, opened
from jobs.errors import StorageError
from jobs.storage import inputs
from jobs.storage.filesystems import FileSystem
from jobs.storage.patience import Patience
from jobs.tokenize.worker import TokenizeWorker
from s3gen import S3GenModel
from tests.jobs.inputs import build_table, write_clips
from tests.jobs.recorded import audio_file, write_folder
from tests.jobs.tokenize.test_worker import begin

BODY = audio_file()
IMPATIENT = Patience(total=0.0, sleep=lambda seconds: None)


class _Site(BaseHTTPRequestHandler):
    """Answers every request with the status that the URL ends with, and 200 with a recording."""

    def do_GET(self) -> None:
        status = int(self.path.rpartition("/")[2])
        body = BODY if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_now(url: str, options: Any = None) -> Any:
        return inputs.open_input(url, options, patience=IMPATIENT)

    monkeypatch.setattr(recordings, "open_input", open_now)


def _sick(url: str, options: Any = None) -> Any:
    raise StorageError(f"cannot read {url}: SlowDown")


@pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (410, "not_found"), (403, "unreadable")])
def test_a_dead_link_holds_up_its_shard_for_ever(site: str, status: int, code: str) -> None:
    with pytest.raises(Rejected) as rejected, opened(f"{site}/{status}", None):
        pass
    assert rejected.value.code == code


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_has_no_such_file(site: str, status: int) -> None:
    with pytest.raises(StorageError, match=str(status)), opened(f"{site}/{status}", None):
        pass


def test_a_server_that_is_down_has_no_such_file() -> None:
    with pytest.raises(StorageError, match="cannot read"), opened("http://127.0.0.1:9/x.wav", None):
        pass


def test_a_server_that_is_well_is_not_read(site: str) -> None:
    with opened(f"{site}/200", None) as file:
        assert read_audio(file)[1] == 16_000


@pytest.mark.parametrize("name", ["folder", "a.wav/x", "n" * 300, "nul\0.wav"])
def test_a_path_that_is_no_file_holds_up_its_shard_for_ever(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.wav").write_bytes(audio_file())
    with pytest.raises(Rejected), opened(f"{tmp_path}/{name}", None):
        pass


def test_a_recording_ends_where_its_store_fell_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile takes an error in a read for the end of the file."""
    (tmp_path / "a.wav").write_bytes(audio_file(3.0))
    kept = open

    class Failing:
        def __init__(self, path: str) -> None:
            self._file, self._reads = kept(path, "rb"), 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> Failing:
            return self

        def __exit__(self, *args: Any) -> None:
            self._file.close()

        def read(self, size: int = -1) -> bytes:
            self._reads += 1
            if self._reads > 3:
                raise OSError(5, "Input/output error")
            return self._file.read(size)

    monkeypatch.setattr(recordings, "open_input", lambda url, options=None: Failing(url))
    with pytest.raises(StorageError, match="Input/output error"), opened(str(tmp_path / "a.wav"), None) as file:
        read_audio(file)


def test_a_store_in_trouble_fails_rows_for_good(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = begin(write_folder(tmp_path / "in", ["a.wav", "b.wav"]), tmp_path)
    worker = TokenizeWorker(ledger, tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr(recordings, "open_input", _sick)
        with pytest.raises(StorageError, match="SlowDown"):
            worker.run(0)
    assert ledger.committed() == set()
    assert worker.run(0).rows_done == 2


def test_a_store_in_trouble_fails_voices_for_good(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clips(tmp_path / "clips")
    with monkeypatch.context() as patch:
        patch.setattr(recordings, "open_input", _sick)
        with pytest.raises(StorageError, match="SlowDown"):
            build_table(tiny_model, tmp_path / "clips", tmp_path / "voices.parquet")
    assert build_table(tiny_model, tmp_path / "clips", tmp_path / "voices.parquet").exists()


def test_http_hides_what_it_met(site: str) -> None:
    url = f"{site}/503"
    files = FileSystem(url, None, IMPATIENT)
    with pytest.raises(Exception, match="503"):
        files.ask("look at", url, "info", files.path)


def test_far_recordings_are_waited_for_one_after_the_other(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4, timeout=10)

    class Far(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() == 0 and not hasattr(self, "here"):
                together.wait()
                self.here = True
            return super().read(size)

    ledger = begin(write_folder(tmp_path / "in", [f"{name}.wav" for name in "abcd"]), tmp_path)
    monkeypatch.setattr(recordings, "open_input", lambda url, options=None: Far(Path(url).read_bytes()))
    assert TokenizeWorker(ledger, tiny_model).run(0).rows_done == 4
