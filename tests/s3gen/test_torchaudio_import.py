"""torchaudio's Python parts must be there whatever torch stands beside its wheel. Each test is a fresh process."""

import json
import subprocess
import sys

import pytest

USE_BOTH = """
assert _torchaudio.fbank(torch.zeros(1, 400), num_mel_bins=80).shape == (1, 80)
assert _torchaudio.Resample(8000, 16000)(torch.ones(100)).shape == (200,)
"""

REFUSE = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def __init__(self, module, error):
        self.module, self.error = module, error
    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            raise self.error
sys.meta_path.insert(0, Refuse({module!r}, {error}))
"""


# Imports torch, which takes seconds, and no more; each case then runs in a fork of its own.
FORKS = """
import json, os, signal, sys, traceback
import torch
for line in sys.stdin:
    code, log = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(120)
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        status = 1
        try:
            exec(code, {})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forks():
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run_fresh(forks, tmp_path):
    def run(code):
        log = tmp_path / "said"
        forks.stdin.write(json.dumps([code, str(log)]) + "\n")
        status, said = forks.stdout.readline().strip(), log.read_text()
        assert status == "0", said
        return said

    return run


def test_the_installed_wheel_beside_the_installed_torch(run_fresh):
    run_fresh("import sys, torch\nfrom s3gen import _torchaudio\n" + USE_BOTH + "assert 'soundfile' not in sys.modules")


@pytest.mark.parametrize(
    "error",
    [
        "OSError('Could not load this library: _torchaudio.so')",
        "RuntimeError('PyTorch and TorchAudio were compiled with different CUDA versions')",
        "ImportError('Failed to load libtorchaudio')",
    ],
)
def test_an_extension_that_refuses_to_load(run_fresh, error):
    code = REFUSE.format(module="torchaudio._extension", error=error)
    run_fresh(code + "import torch\nfrom s3gen import _torchaudio\n" + USE_BOTH)


def test_an_imported_torchaudio_is_not_imported_again(run_fresh):
    run_fresh(
        "import sys\nfrom s3gen import _torchaudio\nfirst = sys.modules['torchaudio']\n"
        "del sys.modules['s3gen._torchaudio']\nfrom importlib import import_module\n"
        "again = import_module('s3gen._torchaudio')\n"
        "assert again is not _torchaudio and sys.modules['torchaudio'] is first\n"
        "assert again.Resample is _torchaudio.Resample"
    )


def test_a_missing_torchaudio_is_called_missing(run_fresh):
    code = REFUSE.format(
        module="torchaudio", error="ModuleNotFoundError(\"No module named 'torchaudio'\", name='torchaudio')"
    )
    out = run_fresh(
        code + "try:\n    from s3gen import _torchaudio\nexcept ModuleNotFoundError as error:\n    print(error)\n"
        "assert not [name for name in sys.modules if name.startswith('torchaudio')]"
    )
    assert "No module named 'torchaudio'" in out


def test_an_import_under_a_device_context_leaves_no_constant_there(run_fresh):
    run_fresh("import torch\nwith torch.device('meta'):\n    from s3gen import _torchaudio\n" + USE_BOTH)
