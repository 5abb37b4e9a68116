"""Makes ``tests/golden``: ``python -m parity.make_goldens --reference-python PYTHON``.

Each file holds the inputs of one part and what the reference made of them, on weights by formula (`s3gen.weights`):
the reference's parts exist at full size only, so the weights themselves would be far too large to keep.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from parity import cases
from parity.cosyvoice import SCRIPT
from parity.cosyvoice import weights as cosyvoice_weights
from parity.exchange import Answer, Plan, formula_weights, write_weights
from parity.signals import babble
from s3gen import S3GenConfig, S3GenModel
from s3gen.constants import FRAMES_PER_TOKEN, MEL_BINS, MEL_HOP, SAMPLE_RATE, SPEAKER_DIM, TOKENIZER_RATE

FOLDER = Path(__file__).parent.parent / "tests" / "golden"
MAX_BYTES = 100_000
_PCM_SCALE = 32_768
_VOICE_RATE = 44_100
_PROMPT_TOKENS = 6
_VOICE_SEED = 7


def main() -> int:
    """Ask the reference and write the files."""
    parser = argparse.ArgumentParser(prog="python -m parity.make_goldens", description="Goldens from the reference.")
    parser.add_argument("--reference-python", type=Path, required=True, help="Python of the reference's environment")
    parser.add_argument("--cosyvoice-source", type=Path, help="checkout of FunAudioLLM/CosyVoice: CosyVoice2's, too")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="goldens-") as folder:
        for meanflow in (False, True):
            plan = Plan(folder=Path(folder) / str(meanflow), weights=Path(folder) / "weights", meanflow=meanflow)
            with torch.device("meta"):
                model = S3GenModel(S3GenConfig(meanflow=meanflow))
            write_weights(formula_weights(model), plan.weights)
            (_add_meanflow if meanflow else _add_base)(plan)
            answer = plan.run(options.reference_python, threads=1)
            _save(plan, answer)
        if options.cosyvoice_source:
            place = Path(folder) / "cosyvoice"
            plan = Plan(folder=place, weights=Path(folder) / "weights", script=SCRIPT, source=options.cosyvoice_source)
            write_weights(cosyvoice_weights(), plan.weights)
            _add_cosyvoice(plan)
            _save(plan, plan.run(options.reference_python, threads=1))
    print(", ".join(f"{name} {version}" for name, version in answer.versions.items()))
    print(f"voice seed {_VOICE_SEED}; tokens and noise: seeds are sha256 of the file's name; weights: of each tensor's")
    return 0


def _add_base(plan: Plan) -> None:
    plan.add("tokenizer", "tokenize", {"wav": _pcm(0.8, TOKENIZER_RATE)})
    plan.add("speaker", "speaker", {"wav": _pcm(0.7, TOKENIZER_RATE)})
    plan.add("prompt_mel", "prompt_mel", {"wav": _pcm(0.5, SAMPLE_RATE)})
    plan.add("voice", "embed", {"wav": _pcm(0.55, _VOICE_RATE)}, rate=_VOICE_RATE)
    plan.add("encoder", "encode", {"tokens": cases.random_tokens("encoder", 12)})
    plan.add("estimator", "velocity", _estimator_inputs("estimator"))
    plan.add("mel", "mel", _mel_inputs("mel", 3), steps=3, finalize=True)
    plan.add("mel_held_back", "mel", _mel_inputs("mel_held_back", 5), steps=2, finalize=False)
    plan.add("f0", "f0", {"mel": _log_mel("f0", 40)})
    f0 = torch.tensor([187.3, 0.0, 9.9, 10.1, 60.0, 240.5, 239.0])
    plan.add("source", "source", {"f0": f0, **_half(cases.source_noise("source", len(f0)))})
    source = torch.tanh(0.3 * cases.normal("wave", 16 * MEL_HOP))
    plan.add("wave", "decode", {"mel": _log_mel("wave", 16), "source": source})
    plan.add("vocoder", "vocode", {"mel": _log_mel("vocoder", 5), **_half(cases.source_noise("vocoder", 5))})


def _add_meanflow(plan: Plan) -> None:
    given = _estimator_inputs("meanflow_estimator")
    plan.add("meanflow_estimator", "velocity", {**given, "end": torch.tensor([0.75])})
    plan.add("meanflow_mel", "mel", _mel_inputs("meanflow_mel", 4), steps=2, finalize=True)


def _add_cosyvoice(plan: Plan) -> None:
    plan.add("cosyvoice_mel", "mel", _mel_inputs("cosyvoice_mel", 3), steps=3, finalize=True)
    given = _mel_inputs("cosyvoice_mel_held_back", 5)
    plan.add("cosyvoice_mel_held_back", "mel", given, steps=2, finalize=False)
    f0 = torch.tensor([187.3, 0.0, 9.9, 10.1, 60.0, 240.5, 239.0])
    plan.add("cosyvoice_source", "source", {"f0": f0, **_noise_alone("cosyvoice_source", len(f0))}, exact=False)
    mel = _log_mel("cosyvoice_vocoder", 5)
    plan.add("cosyvoice_vocoder", "vocode", {"mel": mel, **_noise_alone("cosyvoice_vocoder", 5)})


def _noise_alone(name: str, frames: int) -> dict[str, Tensor]:
    return {"noise": _half(cases.source_noise(name, frames))["noise"]}


def _pcm(seconds: float, rate: int) -> Tensor:
    """Speech-like audio as 16-bit integers, half the size of float32."""
    return (babble(seconds, rate, pitch=130, seed=_VOICE_SEED) * (_PCM_SCALE - 1)).round().to(torch.int16)


def _estimator_inputs(name: str, frames: int = 18) -> dict[str, Tensor]:
    return {
        "x": cases.normal(f"{name}, x", frames, MEL_BINS),
        "mu": cases.normal(f"{name}, mu", frames, MEL_BINS),
        "speaker": cases.normal(f"{name}, speaker", MEL_BINS),
        "prompt": _log_mel(f"{name}, prompt", frames).T,
        "time": torch.tensor([0.3]),
    }


def _mel_inputs(name: str, tokens: int) -> dict[str, Tensor]:
    return {
        "tokens": cases.random_tokens(name, tokens),
        "prompt_token": cases.random_tokens(f"{name}, prompt", _PROMPT_TOKENS),
        "prompt_feat": _log_mel(f"{name}, prompt", FRAMES_PER_TOKEN * _PROMPT_TOKENS).T,
        "embedding": cases.normal(f"{name}, embedding", SPEAKER_DIM),
        "noise": cases.normal(name, MEL_BINS, FRAMES_PER_TOKEN * (_PROMPT_TOKENS + tokens)),
    }


def _log_mel(name: str, frames: int) -> Tensor:
    """Values of the size that log-mels have, (80, T)."""
    return 2.0 * cases.normal(f"{name}, mel", MEL_BINS, frames) - 5.0


def _half(noise: dict[str, Tensor]) -> dict[str, Tensor]:
    """The long noise in float16, which both sides widen: a golden has to stay small."""
    return {**noise, "noise": noise["noise"].half()}


def _save(plan: Plan, answer: Answer) -> None:
    for call in plan.calls:
        case = call["case"]
        tensors = {f"in.{name}": value for name, value in plan.inputs[case].items()}
        tensors |= {f"out.{name}": value for name, value in answer.outputs[case].items()}
        metadata = {**answer.versions, "call": call["call"], **{k: str(v) for k, v in call["options"].items()}}
        path = FOLDER / f"{case}.safetensors"
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=metadata)
        size = path.stat().st_size
        print(f"{path.name}: {size} bytes")
        if size > MAX_BYTES:
            raise ValueError(f"{path.name} has {size} bytes, more than {MAX_BYTES}")


if __name__ == "__main__":
    sys.exit(main())
