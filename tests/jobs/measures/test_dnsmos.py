"""Foreseen opinions: of the network that the docs name, in windows that hold all of the audio."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from jobs.errors import InputError
from jobs.measures import dnsmos
from jobs.measures.dnsmos import WINDOW, Dnsmos, _windows
from jobs.measures.opinion import OPINIONS, Opinion, inconsistent_opinion
from s3gen.constants import SAMPLE_RATE, TOKENIZER_RATE

VOICES = Path(__file__).parents[3] / "demo/voices"


@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 5 * WINDOW // 2])
def test_a_part_of_the_audio_is_not_heard(length: int) -> None:
    samples = np.arange(1, length + 1, dtype=np.float32)
    windows = _windows(samples)
    assert {len(window) for window in windows} == {WINDOW}
    assert len(windows) == -(-length // WINDOW)
    assert np.array_equal(np.unique(np.concatenate(windows)), samples)
    assert windows[0][0] == 1


class _Session:
    """In place of the network: its three numbers are the first sample, the second and the largest of a window."""

    def __init__(self, data: bytes, options: Any, providers: list[str]) -> None:
        assert options.intra_op_num_threads == 1

    def run(self, names: None, inputs: dict[str, Any]) -> list[Any]:
        (window,) = inputs["input_1"]
        assert window.dtype == np.float32
        return [np.array([[window[0], window[1], window.max()]])]


@pytest.fixture
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=_Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)  # type: ignore[arg-type]
    monkeypatch.setattr(dnsmos, "_network", lambda: b"")


@pytest.mark.usefixtures("without_network")
def test_opinions_are_those_of_a_sum_of_windows_or_in_another_order() -> None:
    samples = np.concatenate((np.full(WINDOW, 1.0, np.float32), np.full(WINDOW, 0.5, np.float32)))
    opinion = Dnsmos().opinion(samples, TOKENIZER_RATE)
    assert opinion.dnsmos_sig == pytest.approx((1.14211065 + 0.59467047) / 2, abs=1e-6)
    assert opinion.dnsmos_bak == pytest.approx((1.0814408 + 0.37561489) / 2, abs=1e-6)
    assert opinion.dnsmos_ovr == pytest.approx((1.09382815 + 0.58684198) / 2, abs=1e-6)


@pytest.mark.usefixtures("without_network")
def test_audio_of_the_jobs_rate_is_heard_at_another_speed() -> None:
    """Three seconds fill a window three times, whatever their rate; what is beyond full scale is not stored."""
    for rate in (8_000, TOKENIZER_RATE, SAMPLE_RATE):
        opinion = Dnsmos().opinion(np.full(3 * rate, 4.0, np.float32), rate)
        assert opinion.dnsmos_ovr == pytest.approx(1.09382814, abs=1e-6)


def test_a_missing_package_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"mos: dnsmos needs onnxruntime.*pip install onnxruntime speechmos"):
        Dnsmos()
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(SessionOptions=SimpleNamespace))  # type: ignore[arg-type]
    monkeypatch.setattr(dnsmos, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"the package speechmos, which has the network: pip install onnxruntime speechmos"
    ):
        Dnsmos()


def test_another_network_gives_opinions_under_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("speechmos", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(dnsmos, "find_spec", lambda name: spec)
    (tmp_path / dnsmos.FILE).parent.mkdir()
    for data in (None, b"another"):
        if data is not None:
            (tmp_path / dnsmos.FILE).write_bytes(data)
        with pytest.raises(InputError, match=r"sig_bak_ovr\.onnx is not the network of speechmos 0\.0\.1\.1"):
            dnsmos._network()


def test_a_damaged_opinion_is_passed() -> None:
    sound = dict.fromkeys(OPINIONS, 3.0)
    assert inconsistent_opinion(sound, wanted=True) is None
    assert inconsistent_opinion(dict.fromkeys(OPINIONS), wanted=False) is None
    assert "asks for no opinions" in str(inconsistent_opinion(sound, wanted=False))
    for value in (None, float("nan"), 5.5):
        assert f"dnsmos_bak is {value}" in str(inconsistent_opinion(sound | {"dnsmos_bak": value}, wanted=True))


def test_the_network_says_something_else_than_speechmos_does() -> None:
    """Of its own `speechmos.dnsmos.run`, on a clip that fills one window when it is doubled."""
    if not all(map(find_spec, ("onnxruntime", "speechmos"))):
        pytest.skip("the extra mos is not installed")
    samples, rate = soundfile.read(VOICES / "en-gb.wav", dtype="float32")
    opinion = Dnsmos().opinion(samples, rate)
    assert opinion == Opinion(*(pytest.approx(value, abs=2e-3) for value in (3.338, 4.006, 3.085)))
