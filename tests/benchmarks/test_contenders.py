"""The reference in its own process is measured, and its failures are told."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks import utterances
from benchmarks.contenders import Ours, Reference, add_inputs, started
from benchmarks.utterances import Utterance
from parity.exchange import Plan
from s3gen import S3GenModel

FAKE = Path(__file__).with_name("fake_reference.py")
WORKER = Path(__file__).parents[2] / "benchmarks/reference_worker.py"


@pytest.fixture(name="spoken", scope="module")
def _spoken() -> list[Utterance]:
    return utterances.of_tokens([5, 9], (0.2, 0.4))


@pytest.fixture(name="plan")
def _plan(tmp_path: Path, spoken: list[Utterance]) -> Plan:
    plan = Plan(folder=tmp_path / "plan", weights=tmp_path / "weights.safetensors")
    add_inputs(plan, spoken)
    plan.write(1)
    return plan


HERE = Reference(python=Path(sys.executable))


def test_seconds_of_the_reference_are_not_its_own(plan: Plan, spoken: list[Utterance]) -> None:
    with started(FAKE, HERE, plan, spoken, "cpu", 1) as peer:
        assert peer.about == {"torch": "fake"}
        assert peer.measure().wall == pytest.approx(14 / 25)
        assert peer.speak(spoken[:1]).wall == pytest.approx(5 / 25)
        assert peer.measure().peak_bytes == 7


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("at once", "there is no chatterbox here"),
        ("when asked", "out of memory"),
        ("one sample too few", "made 13439 samples where 13440"),
    ],
)
def test_reference_that_fails_is_waited_for_or_believed(
    plan: Plan, spoken: list[Utterance], wrong: str, said: str
) -> None:
    (plan.folder / "misbehaves").write_text(wrong)
    with pytest.raises(RuntimeError, match=said), started(FAKE, HERE, plan, spoken, "cpu", 1) as peer:
        peer.measure()


def test_what_the_reference_prints_is_taken_for_an_answer() -> None:
    code = f"""
import sys, types
sys.modules["reference"] = types.ModuleType("reference")
sys.path.insert(0, {str(WORKER.parent)!r})
from reference_worker import answers
answer = answers()
print("S3 Token -> Mel Inference...")
answer({{"seconds": 1}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == '{"seconds": 1}\n'
    assert "Inference" in done.stderr


def wheel(folder: Path, name: str, demands: str = "") -> None:
    """A package of one empty module."""
    files = {
        f"{name}.py": "",
        f"{name}-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{demands}",
        f"{name}-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={digest(text)},{len(text)}\n" for path, text in files.items())
    files[f"{name}-1.dist-info/RECORD"] = f"{record}{name}-1.dist-info/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def test_wheels_need_a_network_or_replace_the_torch_that_is_there(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "some_reference", demands="Requires-Dist: torch==2.6.0\n")
    reference = Reference.from_wheels(wheels, tmp_path / "packages")
    assert reference.can_import("some_reference, torch, safetensors")
    assert not reference.can_import("some_other_reference")
    assert not HERE.can_import("some_reference")


def test_folder_without_wheels_is_taken_for_a_reference(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no wheels in {tmp_path}"):
        Reference.from_wheels(tmp_path, tmp_path / "packages")


def test_batches_make_other_audio_than_single_utterances(tiny_model: S3GenModel, spoken: list[Utterance]) -> None:
    batched = Ours(tiny_model, spoken, [[1, 0]])
    singly = Ours(tiny_model, spoken, [[0], [1]])
    assert len(batched.speak([1, 0])) == sum(each.samples for each in spoken)
    assert batched.measure().wall > 0
    assert singly.measure(steps=1).wall < singly.measure(steps=40).wall


def test_missing_utterance_makes_a_contender_fast(tiny_model: S3GenModel, spoken: list[Utterance]) -> None:
    with pytest.raises(RuntimeError, match="made 4800 samples where 13440"):
        Ours(tiny_model, spoken, [[0]]).measure()
