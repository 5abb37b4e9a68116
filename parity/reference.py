"""Runs the reference implementation on given inputs: ``python -P reference.py FOLDER``, in the reference's environment.

It knows nothing of this project; what goes in and out are files in FOLDER:

| file | holds |
|---|---|
| plan.json | ``weights`` (path), ``meanflow``, ``threads``, ``calls``: a list of ``case``, ``call``, ``options`` |
| inputs.safetensors | ``case/name``; int16 is audio with full scale at 32768, float16 is widened |
| outputs.safetensors | ``case/name``, whatever the call returned |
| report.json | versions, and what the reference said where it failed |
| s3gen.safetensors, s3gen.pt, old_names.safetensors | its own state dict, when ``checkpoints`` is set in the plan |

``weights`` are plain, by published name; weight-normed layers get a magnitude and a direction that make the same.

Shape letters: N samples, L tokens, P prompt tokens, T mel frames, S samples at 24 kHz.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import types

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

PACKAGES = ("torch", "torchaudio", "chatterbox-tts", "s3tokenizer", "librosa", "diffusers", "numpy")
QUANTISER_SCALE = 0.9990000128746033  # of s3tokenizer's FSQCodebook
MAGNITUDE, DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"


def load_reference():
    """The module ``chatterbox.models.s3gen.s3gen``; the packages above it would import far more than is installed."""
    root = pathlib.Path(importlib.util.find_spec("s3tokenizer").origin).parent.parent / "chatterbox"
    for name, path in (("chatterbox", root), ("chatterbox.models", root / "models")):
        stub = types.ModuleType(name)
        stub.__path__ = [str(path)]
        sys.modules[name] = stub
    return importlib.import_module("chatterbox.models.s3gen.s3gen")


def build(reference, weights, *, meanflow):
    """The reference's model with the given plain weights, every one of them and nothing left over."""
    model = reference.S3Token2Wav(meanflow=meanflow).eval()
    fill(model, weights)
    return model


def fill(model, weights):
    """Give a module plain weights by the names that it has without weight norm."""
    state, used = {}, set()
    for name, value in model.state_dict().items():
        plain = name.replace(MAGNITUDE, ".weight").replace(DIRECTION, ".weight")
        state[name] = _part(name, weights[plain]) if plain in weights else value
        used.add(plain)
    left_over = weights.keys() - used
    if left_over:
        raise ValueError(f"the reference has no {sorted(left_over)[:5]}")
    model.load_state_dict(state, strict=True)


def _part(name, weight):
    if name.endswith(MAGNITUDE):
        return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
    if name.endswith(DIRECTION):  # its length must be divided out by whoever reads it, so it is not the magnitude
        lengths = torch.linspace(0.5, 2.0, len(weight)).view(-1, *[1] * (weight.dim() - 1))
        return weight * lengths
    return weight


def save_checkpoints(model, folder, name):
    """The state dict as the reference would publish it, and in the two older ways of storing it."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    save_file(state, folder / f"{name}.safetensors")
    torch.save(state, folder / f"{name}.pt")
    old = {key.replace(MAGNITUDE, ".weight_g").replace(DIRECTION, ".weight_v"): v for key, v in state.items()}
    save_file(old, folder / "old_names.safetensors")


@contextlib.contextmanager
def given_noise(*tensors):
    """Within it, ``torch.randn_like`` gives these, in order; None stands for noise that nobody reads."""
    queue = list(tensors)

    def randn_like(like, **_):
        noise = queue.pop(0)
        if noise is None:
            return torch.zeros_like(like)
        if noise.shape != like.shape:
            raise ValueError(f"noise of shape {tuple(noise.shape)} was prepared, {tuple(like.shape)} is asked for")
        return noise.to(like.dtype).clone()

    original, torch.randn_like = torch.randn_like, randn_like
    try:
        yield
    finally:
        torch.randn_like = original
    if queue:
        raise ValueError(f"{len(queue)} prepared noises were not asked for")


@contextlib.contextmanager
def given_phase(reference, phase):
    """Within it, the harmonic source starts at this phase (1, H, 1)."""
    uniform = sys.modules[reference.HiFTGenerator.__module__].Uniform
    original = uniform.sample
    uniform.sample = lambda self, sample_shape: phase.reshape(sample_shape).clone()
    try:
        yield
    finally:
        uniform.sample = original


@contextlib.contextmanager
def token_margins(tokenizer):
    """Within it, a list that gets (L,) per call of the tokenizer: how far each token is from being another by rounding.

    A token is eight numbers in -1 .. 1, rounded; -0.5 and 0.5 are the edges. Windows of a long clip are joined as the
    reference joins their tokens.
    """
    utils = importlib.import_module("s3tokenizer.utils")
    margins, lengths = [], []

    def keep_lengths(_module, _inputs, output):
        lengths[:] = output[1].tolist()

    def keep_margins(_module, _inputs, output):
        distance = ((QUANTISER_SCALE * output.tanh()).abs() - 0.5).abs().amin(dim=-1).view(len(lengths), -1)
        windows = [row[:length].tolist() for row, length in zip(distance, lengths, strict=True)]
        joined = windows[0] if len(windows) == 1 else utils.merge_tokenized_segments(windows, 4, 25)
        margins.append(torch.tensor(joined))

    hooks = [
        tokenizer.encoder.register_forward_hook(keep_lengths),
        tokenizer.quantizer._codebook.project_down.register_forward_hook(keep_margins),
    ]
    try:
        yield margins
    finally:
        for hook in hooks:
            hook.remove()


class Calls:
    """What a plan may ask for. Each takes tensors by name and returns tensors by name."""

    def __init__(self, reference, model):
        self.reference = reference
        self.model = model
        self.notes = {}

    def embed(self, wav, rate):
        """Audio (N,) to a reference voice, its frames not cut."""
        with token_margins(self.model.tokenizer) as margins:
            found = self.model.embed_ref(wav, rate)
        voice = {name: found[name] for name in ("prompt_token", "prompt_feat", "embedding")}
        return {**voice, "margin": margins[0][: voice["prompt_token"].shape[1]]}

    def tokenize(self, wav):
        """16 kHz audio (N,) to tokens (L,), and the log-mel (T, 128) that they are made from."""
        with token_margins(self.model.tokenizer) as margins:
            tokens, lengths = self.model.tokenizer([wav])
        mel = self.model.tokenizer.log_mel_spectrogram(wav[None])
        return {"tokens": tokens[0, : int(lengths[0])], "mel": mel[0].T, "margin": margins[0]}

    def speaker(self, wav):
        """16 kHz audio (N,) to filter bank features (T, 80) and the vector (192,)."""
        xvector = sys.modules[self.reference.CAMPPlus.__module__]
        features, _, _ = xvector.extract_feature(wav[None])
        return {"features": features[0], "embedding": self.model.speaker_encoder.inference(wav[None])[0]}

    def prompt_mel(self, wav):
        """24 kHz audio (N,) to log-mel (T, 80)."""
        return {"mel": self.model.mel_extractor(wav)[0].T}

    def encode(self, tokens):
        """Tokens (L,) to mu (2 L, 80)."""
        return {"mu": self._mu(tokens[None])[0]}

    def velocity(self, x, mu, speaker, prompt, time, end=None):
        """One call of the estimator: x, mu, prompt (T, 80), speaker (80,), times (1,) to the velocity (T, 80)."""
        estimator = self.model.flow.decoder.estimator
        mask = torch.ones(1, 1, len(x))
        velocity = estimator(x.T[None], mask, mu.T[None], time, speaker[None], prompt.T[None], r=end)
        return {"velocity": velocity[0].T}

    def mel(self, tokens, prompt_token, prompt_feat, embedding, noise, steps, finalize):
        """Tokens (L,), a voice and noise (80, 2 (P + L)) to log-mel (80, T)."""
        made = noise[None, :, len(prompt_feat) :] if self.model.meanflow else None
        voice = {
            "prompt_token": prompt_token[None],
            "prompt_token_len": torch.tensor([len(prompt_token)]),
            "prompt_feat": prompt_feat[None],
            "prompt_feat_len": None,
            "embedding": embedding[None],
        }
        if not finalize:
            return {"mel": self._mel_held_back(tokens, voice, noise, made, steps)[0]}
        with given_noise(noise[None]):
            mel = self._forward(tokens, voice, steps, made)
        return {"mel": mel[0]}

    def mel_from_audio(self, tokens, wav, noise, rate, steps):
        """The same from reference audio (N,)."""
        with given_noise(noise[None]):
            mel = self._forward(tokens, None, steps, None, wav=wav, rate=rate)
        return {"mel": mel[0]}

    def _forward(self, tokens, voice, steps, made, *, finalize=True, wav=None, rate=None):
        voice = dict(voice) if voice else None  # the reference casts what it finds in it to floats, ids too
        return self.reference.S3Token2Mel.forward(
            self.model, tokens[None], wav, rate, voice, n_cfm_timesteps=steps, finalize=finalize, noised_mels=made
        )

    def _mu(self, tokens):
        flow = self.model.flow
        hidden, _ = flow.encoder(flow.input_embedding(tokens), torch.tensor([tokens.shape[1]]))
        return flow.encoder_proj(hidden)

    def _mel_held_back(self, tokens, voice, noise, made, steps):
        """``finalize=False`` by the reference's own modules.

        Its own call fails, which is tried and noted: it cuts the look-ahead's frames but not the mask over them.
        """
        flow = self.model.flow
        held = flow.pre_lookahead_len * flow.token_mel_ratio
        try:
            with given_noise(noise[None, :, :-held]):
                self._forward(tokens, voice, steps, None if made is None else made[:, :, :-held], finalize=False)
            self.notes["finalize=False"] = "runs"
        except RuntimeError as error:
            self.notes["finalize=False"] = f"{type(error).__name__}: {error}".splitlines()[0]
        mu = self._mu(torch.cat((voice["prompt_token"], tokens[None]), dim=1))[:, :-held]
        prompt = torch.zeros_like(mu)
        frames = voice["prompt_feat"].shape[1]
        prompt[:, :frames] = voice["prompt_feat"]
        with given_noise(noise[None, :, :-held]):
            mel, _ = flow.decoder(
                mu=mu.transpose(1, 2).contiguous(),
                mask=torch.ones(1, 1, mu.shape[1]),
                spks=flow.spk_embed_affine_layer(F.normalize(voice["embedding"], dim=1)),
                cond=prompt.transpose(1, 2),
                n_timesteps=steps,
                noised_mels=None if made is None else made[:, :, :-held],
                meanflow=self.model.meanflow,
            )
        return mel[:, :, frames:]

    def vocode(self, mel, phase, noise):
        """Log-mel (80, T), phases (H, 1) and noise (H, S) to F0 (T,), source (S,) and wave (S,)."""
        with given_phase(self.reference, phase), given_noise(noise[None], None):
            wave, source = self.model.mel2wav.inference(speech_feat=mel[None])
        return {"f0": self.model.mel2wav.f0_predictor(mel[None])[0], "source": source[0, 0], "wave": wave[0]}

    def f0(self, mel):
        """Log-mel (80, T) to F0 (T,) in Hz."""
        return {"f0": self.model.mel2wav.f0_predictor(mel[None])[0]}

    def source(self, f0, phase, noise):
        """F0 (T,) in Hz, phases (H, 1) and noise (H, S) to the source (S,)."""
        vocoder = self.model.mel2wav
        with given_phase(self.reference, phase), given_noise(noise[None], None):
            source, _, _ = vocoder.m_source(vocoder.f0_upsamp(f0[None, None]).transpose(1, 2))
        return {"source": source[0, :, 0]}

    def decode(self, mel, source):
        """Log-mel (80, T) and source (S,) to the wave (S,)."""
        return {"wave": self.model.mel2wav.decode(x=mel[None], s=source[None, None])[0]}

    def speak(self, tokens, prompt_token, prompt_feat, embedding, noise, phase, source_noise, steps):
        """`mel`, then `vocode`."""
        mel = self.mel(tokens, prompt_token, prompt_feat, embedding, noise, steps, True)["mel"]
        return {"mel": mel, **self.vocode(mel, phase, source_noise)}

    def fade(self):
        """The fade (960,) that `inference` lays over the start."""
        return {"fade": self.model.trim_fade}


def widen(tensor):
    if tensor.dtype == torch.int16:
        return tensor.float() / 32768
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def run(folder):
    """Carry out the plan in `folder`."""
    plan = json.loads((folder / "plan.json").read_text())
    torch.set_num_threads(plan["threads"])
    reference = load_reference()
    model = build(reference, load_file(plan["weights"]), meanflow=plan["meanflow"])
    if plan["checkpoints"]:
        save_checkpoints(model, folder, plan["checkpoints"])
    carry_out(plan, folder, Calls(reference, model))


def carry_out(plan, folder, calls):
    """Make the calls of a plan on an object that has them, and write what they return."""
    inputs, outputs = load_file(folder / "inputs.safetensors"), {}
    for step in plan["calls"]:
        case = step["case"] + "/"
        given = {name.removeprefix(case): widen(value) for name, value in inputs.items() if name.startswith(case)}
        with torch.inference_mode(), contextlib.redirect_stdout(sys.stderr):
            made = getattr(calls, step["call"])(**given, **step["options"])
        outputs |= {case + name: value.clone().contiguous() for name, value in made.items()}
    save_file(outputs, folder / "outputs.safetensors")
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    (folder / "report.json").write_text(json.dumps({"versions": versions, "notes": calls.notes}))


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]))
