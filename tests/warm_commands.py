"""`s3gen` for shell scripts, run by the process of the tests: to start Python, torch and Ray anew takes seconds.

A program of that name on the script's path hands its arguments to this process, and prints what the command printed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from jobs.cli import main

PROGRAM = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    server.sendall(json.dumps([sys.argv[1:], os.getcwd()]).encode() + b"\\n")
    answer = json.loads(server.makefile("rb").readline())
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
sys.exit(answer["code"])
"""


def run_script(code: str, folder: Path, place: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs a bash script in a folder; the commands of this environment come after the warm one.

    Args:
        place: a folder of the test's for the program, the socket and the output; its path is short.
        timeout: seconds, of the script without the command in hand.
    """
    address, program, log = place / "socket", place / "s3gen", place / "log"
    program.write_text(PROGRAM.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)
    path = os.pathsep.join([str(place), str(Path(sys.executable).parent), os.environ["PATH"]])
    with socket.socket(socket.AF_UNIX) as server, log.open("w") as output:
        server.bind(str(address))
        server.listen()
        server.settimeout(0.05)
        script = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=folder, env=os.environ | {"PATH": path}, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + timeout
        while script.poll() is None and time.monotonic() < until:
            _serve_one(server)
    address.unlink()
    if script.poll() is None:
        script.kill()
    return subprocess.CompletedProcess(code, script.wait(), log.read_text())


def _serve_one(server: socket.socket) -> None:
    try:
        connection, _ = server.accept()
    except TimeoutError:
        return
    with connection:
        connection.settimeout(None)
        arguments, folder = json.loads(connection.makefile("rb").readline())
        connection.sendall(json.dumps(_result(arguments, folder)).encode() + b"\n")


def _result(arguments: list[str], folder: str) -> dict[str, Any]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(main, arguments)
    finally:
        os.chdir(before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        traceback.print_exception(result.exception)
    return {"out": result.stdout, "err": result.stderr, "code": result.exit_code}
