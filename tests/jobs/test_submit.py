"""`s3gen submit`: what travels and what does not, lost connections, exit codes, a real head."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shlex
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
from ray.job_submission import JobStatus

from jobs import head
from jobs import submit as room
from jobs.command import PLAN_COMMAND
from jobs.config.config import load_config
from jobs.errors import InputError, JobError, Unfinished
from jobs.head import connect
from jobs.submit import SubmitOrder, Submitted, local_paths, pack, submit
from tests.jobs.command import cli
from tests.jobs.inputs import write_config

SECRET = "wJalrXUtnFEMI-K7MDENG"


@pytest.fixture(name="job")
def _job(tmp_path: Path) -> Callable[..., Path]:
    def write(**values: Any) -> Path:
        paths = {"manifest": tmp_path / "m.parquet", "voices": tmp_path / "v.parquet", "output": tmp_path / "out"}
        return write_config(tmp_path / "job.yaml", **{key: str(path) for key, path in paths.items()} | values)

    return write


def order(config: Path, **values: Any) -> SubmitOrder:
    return SubmitOrder(config=load_config(config), address="http://127.0.0.1:1", **values)


# --- what travels -----------------------------------------------------------------------------------------------------


def test_cluster_runs_another_configuration_than_the_one_that_was_checked(
    job: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = job(manifest="m.parquet", seed=2**64 - 1, ray_address="10.0.0.1:6379", engine={"prompt_seconds": 2.5})
    folder = tmp_path / "package"
    folder.mkdir()
    sent = order(config)
    pack(sent, folder)
    assert [path.name for path in folder.iterdir()] == ["job.yaml"]
    monkeypatch.chdir("/")
    assert load_config(folder / "job.yaml") == sent.config.model_copy(update={"ray_address": "auto"})


def test_working_directory_loses_files_or_keeps_its_own_configuration(job: Callable[..., Path], tmp_path: Path) -> None:
    code, folder = tmp_path / "code", tmp_path / "package"
    (code / "jobs").mkdir(parents=True)
    (code / "jobs/x.py").write_text("x = 1")
    (code / ".gitignore").write_text("build/\n")
    (code / "job.yaml").write_text("model: another\n")
    folder.mkdir()
    pack(order(job(), working_dir=str(code)), folder)
    assert sorted(path.name for path in folder.iterdir()) == [".gitignore", "job.yaml", "jobs"]
    assert (folder / "jobs/x.py").read_text() == "x = 1"
    assert load_config(folder / "job.yaml").model == "random:tiny"
    assert (code / "job.yaml").read_text() == "model: another\n"


@pytest.mark.parametrize(
    ("values", "given", "named"),
    [
        ({"storage_options": {"secret": SECRET}}, {}, "storage_options"),
        ({}, {"storage_options": "options.yaml"}, "--storage-options"),
    ],
)
def test_credentials_are_sent_or_looked_for_in_the_package(
    job: Callable[..., Path], values: dict[str, Any], given: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named) as caught:
        submit(order(job(**values), **given))
    assert SECRET not in str(caught.value)


def test_local_path_is_a_surprise_on_the_cluster(job: Callable[..., Path]) -> None:
    assert local_paths(load_config(job(output="s3://bucket/out", model="owner/name"))) == ["manifest", "voices"]
    assert local_paths(load_config(job(model="./model"))) == ["model", "manifest", "voices", "output"]


def test_missing_working_directory_gives_a_traceback(job: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--working-dir .*/none: .*No such file"):
        submit(order(job(), working_dir=str(tmp_path / "none")))


class Dashboard:
    """A head that has what is sent to it; what happens while it answers is up to ``then``."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self._then, self.sent = then, dict[str, Any]()

    def submit_job(self, **sent: Any) -> None:
        self.sent = sent
        self._then()

    def get_job_info(self, job_id: str) -> object:
        if job_id != self.sent.get("submission_id"):
            raise RuntimeError("404")
        return object()


def test_trial_on_a_cluster_ends_with_the_name_of_the_packed_file(
    job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard, config = Dashboard(), job(manifest="another.parquet")
    monkeypatch.setattr(room, "connect", lambda address: dashboard)
    secret = f"storage_options={{secret: {SECRET}}}"
    earlier = [f"--set=output=s3://{SECRET}@b/c", "--set=workers=2", "--set=output=my speech"]
    given = [*earlier, f"--set={secret}", f"--set= {secret}", "--storage-options=/etc/options", "--manifest=m.parquet"]
    sent = ["submit", config, "--address", "http://h:8265", "--no-wait", *given]
    assert cli(*sent, "--limit", "2").exit_code == 0
    plan = dashboard.sent["runtime_env"]["env_vars"][PLAN_COMMAND]
    options = ["--set", "output=my speech", "--set", "workers=2", "--manifest", "m.parquet"]
    options += ["--storage-options", "FILE"]  # one of this machine's, in place of what --set says
    assert shlex.split(plan) == ["s3gen", "plan", str(config), *options]
    assert SECRET not in json.dumps(dashboard.sent)
    assert cli(*sent).exit_code == 0
    assert PLAN_COMMAND not in dashboard.sent["runtime_env"]["env_vars"]


# --- the head ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", "http://", "http://h:x", "http://u:p4ssw@h:8265"]
)
def test_address_of_another_kind_hangs_or_is_shown_with_its_password(address: str) -> None:
    with pytest.raises(InputError, match=r"http://HEAD:8265") as caught:
        connect(address)
    assert "p4ssw" not in str(caught.value)


def test_dead_head_is_tried_for_minutes(job: Callable[..., Path]) -> None:
    result = cli("submit", job(), "--address", "http://127.0.0.1:1")
    assert result.exit_code == 2
    assert "no Ray dashboard answers there" in result.output
    assert "ssh -L" in result.output


class Guarded(BaseHTTPRequestHandler):
    """A dashboard that asks who one is."""

    def do_GET(self) -> None:
        if self.headers.get("X-Pass") != SECRET:
            self.send_error(401, "Missing authentication token")
            return
        body = b'{"ray_version": "2.60.0"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(name="guarded")
def _guarded() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_cluster_that_asks_for_a_token_gives_a_traceback(guarded: str) -> None:
    with pytest.raises(InputError, match="asks for its token; set RAY_AUTH_MODE=token"):
        connect(guarded)


def test_ray_that_knows_of_no_tokens_cannot_be_used(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray.exceptions, "AuthenticationError")
    spec = importlib.util.spec_from_file_location("head_on_an_older_ray", head.__file__)
    assert spec is not None
    assert spec.loader is not None
    older = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(older)
    with pytest.raises(InputError, match="what answers there takes no jobs"):
        older.connect(guarded)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_job_is_sent_by_a_command_that_was_interrupted_and_nobody_knows_its_name(
    number: signal.Signals, job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard = Dashboard(lambda: os.kill(os.getpid(), number))
    monkeypatch.setattr(room, "connect", lambda address: dashboard)
    result = cli("submit", job(), "--address", "http://h:8265")
    assert result.exit_code == 1
    assert f"ray job stop --address http://h:8265 {dashboard.sent['submission_id']}" in result.output


def _lose_the_answer() -> None:
    raise ConnectionError("reset by peer")


def test_job_whose_answer_was_lost_passes_for_one_that_was_refused(
    job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard = Dashboard(_lose_the_answer)
    monkeypatch.setattr(room, "connect", lambda address: dashboard)
    assert submit(order(job())).id == dashboard.sent["submission_id"]
    monkeypatch.setattr(Dashboard, "submit_job", lambda self, **sent: _lose_the_answer())
    with pytest.raises(InputError, match="did not take the job: reset by peer"):
        submit(order(job()))


def test_proxy_before_a_head_cannot_be_passed(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_HEADERS", json.dumps({"X-Pass": SECRET}))
    assert connect(guarded).get_address() == guarded


@pytest.mark.parametrize("text", [SECRET, f'["{SECRET}"]', f'{{"X-Pass": ["{SECRET}"]}}'])
def test_headers_that_are_none_are_shown_in_a_traceback(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_HEADERS", text)
    with pytest.raises(InputError, match="RAY_JOB_HEADERS: give a JSON object") as caught:
        connect("http://127.0.0.1:1")
    assert SECRET not in str(caught.value)


# --- following --------------------------------------------------------------------------------------------------------


@dataclass
class Info:
    status: JobStatus
    driver_exit_code: int | None
    message: str | None = None


@dataclass
class FakeClient:
    """A head that loses the connection after so many characters of the log, once for each number."""

    end: Info
    log: str = "one\ntwo\nthree\n"
    cuts: list[int] = field(default_factory=list)
    lost_for: int = 0  # requests that fail after a cut
    runs_for: int = 0  # requests that find it running

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        stop = self.cuts.pop(0) if self.cuts else None
        for letter in self.log[:stop]:
            yield letter
        if stop is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job_id: str) -> Info:
        if self.lost_for:
            self.lost_for -= 1
            raise ConnectionError("no route")
        if self.runs_for:
            self.runs_for -= 1
            return Info(JobStatus.RUNNING, None)
        return self.end

    def get_job_logs(self, job_id: str) -> str:
        return self.log


def followed(client: FakeClient) -> tuple[int, str]:
    shown: list[str] = []
    code = Submitted(client, "s3gen-1", "http://h:8265", "s3://bucket/out").follow(shown.append)  # type: ignore[arg-type]
    return code, "".join(shown)


@pytest.fixture(name="hurried")
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_exit_code_becomes_another(code: int) -> None:
    status = JobStatus.FAILED if code else JobStatus.SUCCEEDED
    assert followed(FakeClient(Info(status, code))) == (code, "one\ntwo\nthree\n")


def test_lost_connection_ends_the_command_or_shows_lines_twice(hurried: None) -> None:
    client = FakeClient(Info(JobStatus.SUCCEEDED, 0), cuts=[5, 2, 8], lost_for=1, runs_for=3)
    assert followed(client) == (0, "one\ntwo\nthree\n")
    assert not client.cuts


def test_where_web_sockets_do_not_pass_nothing_is_seen_of_a_job(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(FakeClient):
        asked = 0

        def get_job_logs(self, job_id: str) -> str:
            self.asked += 1
            return self.log[: 3 * self.asked] if self.runs_for else self.log

    monkeypatch.setattr(room, "PATIENCE_SECONDS", -1.0)
    client, shown = Plain(Info(JobStatus.FAILED, 3), cuts=[0] * 10, runs_for=4), list[str]()
    assert Submitted(client, "s3gen-1", "http://h:8265", "s3://bucket/out").follow(shown.append) == 3  # type: ignore[arg-type]
    assert shown == ["one", "\ntw", "o\nt", "hree\n"]


def test_log_that_is_gone_with_its_machine_keeps_the_end_of_a_job_from_view(hurried: None) -> None:
    class Gone(FakeClient):
        def get_job_logs(self, job_id: str) -> str:
            raise RuntimeError("no agent")

    shown = "one\ntwo\nthe rest of the log cannot be read: no agent\n"
    assert followed(Gone(Info(JobStatus.FAILED, 1), cuts=[8, 0], runs_for=1)) == (1, shown)


def test_end_of_the_log_is_missing_when_the_job_ends_first() -> None:
    class Early(FakeClient):
        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            yield self.log[:4]

    assert followed(Early(Info(JobStatus.SUCCEEDED, 0)))[1] == "one\ntwo\nthree\n"


def test_head_that_is_gone_is_waited_for_without_end(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PATIENCE_SECONDS", 0.05)
    with pytest.raises(Unfinished, match="ray job logs --address http://h:8265 --follow s3gen-1"):
        followed(FakeClient(Info(JobStatus.SUCCEEDED, 0), cuts=[1] * 10**6, lost_for=10**6))


def test_silent_head_is_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(FakeClient):
        asked = 0

        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            yield "one\n"
            await asyncio.Event().wait()

        def get_job_status(self, job_id: str) -> JobStatus:
            self.asked += 1
            return JobStatus.RUNNING if self.asked < 3 else JobStatus.SUCCEEDED

    monkeypatch.setattr(room, "QUIET_SECONDS", 0.01)
    client = Silent(Info(JobStatus.SUCCEEDED, 0))
    assert followed(client) == (0, client.log)
    assert client.asked == 3


@pytest.mark.parametrize(
    ("info", "error", "said"),
    [
        (Info(JobStatus.STOPPED, None), JobError, "was stopped"),
        (Info(JobStatus.FAILED, None, "no such runtime_env"), JobError, "no such runtime_env"),
        (Info(JobStatus.FAILED, 127), InputError, "no command s3gen"),
        (Info(JobStatus.FAILED, -9), JobError, "ended from outside, with exit code -9"),
    ],
)
def test_end_that_is_none_of_synths_passes_for_one(info: Info, error: type[JobError], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        followed(FakeClient(info))
    assert caught.value.exit_code == error.exit_code


@pytest.mark.parametrize("end", [KeyboardInterrupt, BrokenPipeError])
def test_end_of_the_command_is_not_said_to_leave_the_job_running(end: type[BaseException]) -> None:
    def write(text: str) -> None:
        raise end

    client = FakeClient(Info(JobStatus.SUCCEEDED, 0))
    said = r"goes on without this command\n.*s3gen status s3://bucket/out\n.*--follow s3gen-1\n.*ray job stop"
    with pytest.raises(Unfinished, match=said):
        Submitted(client, "s3gen-1", "http://h:8265", "s3://bucket/out").follow(write)  # type: ignore[arg-type]
