"""S3Gen whole: speech tokens and a reference voice to 24 kHz audio.

Published interface: huggingface/transformers at 194d53c1, ``models/s3gen/modeling_s3gen.py``.
Reference behaviour: chatterbox-tts 0.1.7, ``models/s3gen/s3gen.py``.

Shape letters: B rows, N prompt and speech tokens joined, T frames of a row's prompt and speech, S samples.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3gen import checkpoint, fingerprint, saving
from s3gen import noise as noises
from s3gen.compiled import Compiler
from s3gen.config import RANDOM_MODELS, HiFTNetConfig, S3GenConfig
from s3gen.constants import FRAMES_PER_TOKEN, SAMPLE_RATE
from s3gen.flow import Flow
from s3gen.hearing import Hearing
from s3gen.model_card import model_card
from s3gen.precision import check_dtype
from s3gen.ragged import pad_rows
from s3gen.solver import Solver, chosen
from s3gen.splitting import Splitting
from s3gen.stream import CHUNK_TOKENS, LEFT_SECONDS, Stream
from s3gen.synthesis import Synthesis, Utterance, checked_starts
from s3gen.tokens import TokenRow, check_tokens, split_tokens
from s3gen.vocoder import HiFTNetModel
from s3gen.voice import RefDict, Voice
from s3gen.warmup import warm_up
from s3gen.weights import random_weights

_FADE_SAMPLES = SAMPLE_RATE // 50  # 20 ms of silence, then 20 ms of raised cosine


class S3GenModel(Hearing):
    """Tokenizer, speaker encoder, flow and vocoder. Inference only: no call builds an autograd graph.

    Attributes:
        origin: what the weights were read from, in words; None when they were not.
    """

    start_fade: Tensor
    origin: str | None = None

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__(config)
        self.config = config
        self.flow = Flow(config.flow)
        self.mel2wav = HiFTNetModel(config.vocoder)
        ramp = torch.linspace(math.pi, 0, _FADE_SAMPLES, dtype=torch.float32, device="cpu")
        fade = torch.cat((torch.zeros_like(ramp), (ramp.cos() + 1) / 2))
        self.register_buffer("start_fade", fade, persistent=False)

    @property
    def synthesis(self) -> Synthesis:
        """The parts that speak tokens."""
        return Synthesis(self.flow, self.mel2wav, self.start_fade)

    @classmethod
    def from_pretrained(
        cls,
        where: str | os.PathLike[str],
        *,
        file: str | None = None,
        device: str | torch.device = "cpu",
        storage_options: Mapping[str, Any] | None = None,
    ) -> S3GenModel:
        """Load a model, in float32.

        Args:
            where: a hub id (``ResembleAI/chatterbox``), a folder, a file, an fsspec URL, or ``random:tiny`` /
                ``random:full`` for seeded random weights. Formats: see `s3gen.checkpoint`.
            file: which checkpoint, when the folder holds several.
            device: where the model goes.
            storage_options: fsspec's options for a URL.

        Raises:
            FileNotFoundError: nothing readable is there.
            ImportError: CosyVoice2's folder, and onnx is not installed; or a URL, and fsspec is not.
            ValueError: several checkpoints, an unknown format, a vocoder alone, or weights that do not fit, listed.
        """
        if os.fspath(where) in RANDOM_MODELS:
            model = cls._random(RANDOM_MODELS[os.fspath(where)]())
            model.origin = f"`{where}`: the weights are random, and what they make is noise"
            return model.to(device)
        found = checkpoint.read(where, file=file, storage_options=storage_options)
        model = _on_meta(_config(found))
        checkpoint.assign(model, found.weights, source=found.source)
        model.origin = found.origin
        return model.to(device)

    @classmethod
    def _random(cls, config: S3GenConfig) -> S3GenModel:
        model = _on_meta(config)
        weights = random_weights(checkpoint.published_shapes(model))
        checkpoint.assign(model, weights, source="random weights")
        return model

    def save_pretrained(self, folder: str | os.PathLike[str], *, format: str = "huggingface") -> None:
        """Write a checkpoint, and a model card unless there is an edited one; a folder is made if needed.

        Reading makes float32 of any type, so that fingerprints outlast a model that is in float32 when it is saved.

        Args:
            folder: a local one. It holds the whole checkpoint afterwards, or, cut short, none.
            format: ``huggingface`` (``config.json``, ``model.safetensors``) or ``chatterbox`` (``s3gen.safetensors``;
                ``s3gen_meanflow.safetensors``), the form that Chatterbox's own code loads.

        Raises:
            ValueError: `folder` is a file or holds a checkpoint of another name, or the format cannot say this model.
        """
        weights, config = checkpoint.published_weights(self), self.config.to_dict()
        file, stored = saving.layout(format, weights, self.config, self.tokenizer.mel)
        saving.save(folder, stored, config, card=model_card(weights, config, file=file, origin=self.origin), file=file)

    def prepare(self, *, dtype: str = "float32", compile: bool = False) -> S3GenModel:
        """Choose how the flow computes; the weights themselves, and what is saved of them, stay as they are.

        What was derived from the weights is dropped, and made again when it is needed: torch does not count what is
        written through ``.data`` or numpy, or to a model that was made in inference mode.

        Args:
            dtype: one of `s3gen.precision.DTYPES`.
            compile: torch.compile and, on CUDA, graphs; eager, with one warning, where that fails.

        Returns:
            The model itself.

        Raises:
            ValueError: an unknown dtype.
        """
        self.flow.prepare(dtype=check_dtype(dtype), compiler=Compiler() if compile else None)
        self.speaker_encoder.prepare()
        self.mel2wav.prepare(tf32=dtype != "float32", compiler=self.flow.compiler)
        return self

    @torch.no_grad()
    def warm_up(self, max_frames: int, *, solver: Solver | None = None) -> None:
        """Do what the first batches would otherwise wait for: kernels, memory and, if asked for, compilation.

        A batch of one row and one of the whole budget; nothing where there is nothing to wait for.

        Args:
            max_frames: the frame budget of the batches to come.
            solver: of the flow in those.
        """
        if self.device.type == "cpu" and self.flow.compiler is None:
            return
        warm_up(functools.partial(self.synthesize, solver=solver), self.config.speaker_embed_dim, max_frames)

    def fingerprint(self) -> str:
        """Hex sha256 over the configuration and every weight."""
        return fingerprint.fingerprint(checkpoint.published_weights(self), self.config.to_dict())

    def voice_fingerprint(self) -> str:
        """The same over what `embed_ref` uses: models that share it share their voices."""
        return fingerprint.voice_fingerprint(checkpoint.published_weights(self), self.config.to_dict())

    @torch.no_grad()
    def forward(
        self,
        speech_tokens: TokenRow,
        ref_wav: Tensor | np.ndarray | None = None,
        ref_sr: int | None = None,
        ref_dict: RefDict | Voice | None = None,
        finalize: bool = False,
        *,
        speech_token_lens: Tensor | Sequence[int] | None = None,
        n_cfm_timesteps: int | None = None,
        solver: Solver | None = None,
        noise: Tensor | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Tensor:
        """Speech tokens to log-mel.

        Args:
            speech_tokens: (T,) or (B, T) integers 0 .. 6560.
            ref_wav: reference audio, (L,) or (1 or B, L); either this with `ref_sr`, or `ref_dict`.
            ref_sr: its rate in Hz.
            ref_dict: what `embed_ref` returned (also as numpy arrays), of batch 1 or B; or a `Voice`. Left as it is.
            finalize: whether these are the last tokens; if not, the last 3 are held back as look-ahead.
            speech_token_lens: (B,) tokens that count in each row; all when None.
            n_cfm_timesteps: the solver's steps; 10, or 2 for a mean-flow model, when None.
            solver: method, steps and guidance; Euler's and the model's own when None.
            noise: (B, 80, prompt + generated frames) initial noise, right-padded; drawn from `seed` when None.
            seed: one for all rows, or one each.

        Returns:
            (B, 80, frames), two frames per token; shorter rows are followed by zeros.

        Raises:
            ValueError: tokens, reference, lengths, noise or a solver that cannot be used; the message shows the value.
        """
        solver, rows = self._solver(n_cfm_timesteps, solver), split_tokens(speech_tokens, speech_token_lens)
        voices = self._voices(len(rows), ref_wav, ref_sr, ref_dict)
        utterances = self._utterances(rows, voices, seed)
        mels = self.synthesis.mels(utterances, finalize=finalize, solver=solver, noise=noise)
        return pad_rows(mels).transpose(1, 2)

    @torch.no_grad()
    def inference(
        self,
        speech_tokens: TokenRow,
        ref_wav: Tensor | np.ndarray | None = None,
        ref_sr: int | None = None,
        ref_dict: RefDict | Voice | None = None,
        cache_source: Tensor | None = None,
        finalize: bool = True,
        *,
        speech_token_lens: Tensor | Sequence[int] | None = None,
        n_cfm_timesteps: int | None = None,
        solver: Solver | None = None,
        noise: Tensor | None = None,
        seed: int | Sequence[int] = 0,
        start_fade: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Speech tokens to audio: `forward`, then the vocoder with the same seed.

        Args:
            cache_source: (1 or B, 1, s) source samples that replace the first s, of a shorter row all of its own.
            start_fade: the reference's 20 ms of silence and 20 ms fade-in, which hide what the prompt spills over.
            speech_tokens, ref_wav, ref_sr, ref_dict, finalize, speech_token_lens, n_cfm_timesteps, solver, noise,
                seed: as for `forward`.

        Returns:
            The waveform (B, S) at 24 kHz, 960 samples per token, and the source (B, 1, S); zeros after short rows.

        Raises:
            ValueError: as `forward`.
        """
        solver, rows = self._solver(n_cfm_timesteps, solver), split_tokens(speech_tokens, speech_token_lens)
        voices = self._voices(len(rows), ref_wav, ref_sr, ref_dict)
        utterances = self._utterances(rows, voices, seed)
        mels = self.synthesis.mels(utterances, finalize=finalize, solver=solver, noise=noise)
        made = self.synthesis.waves(mels, utterances, cache_source=cache_source, start_fade=start_fade)
        waves, sources = zip(*made, strict=True)
        return pad_rows(waves), pad_rows(sources)[:, None, :]

    @torch.no_grad()
    def synthesize(
        self,
        tokens: Sequence[TokenRow],
        refs: Sequence[RefDict | Voice],
        seeds: Sequence[int] | None = None,
        *,
        n_cfm_timesteps: int | None = None,
        solver: Solver | None = None,
        start_fade: bool = True,
        splitting: Splitting | None = None,
        starts: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """A ragged batch: any mix of lengths and voices in one pass.

        An utterance's audio depends on its own tokens, voice and seed alone, to rounding.

        Args:
            tokens: B rows of 1-D integers 0 .. 6560.
            refs: B voices, of `embed_ref` or `Voice.from_ref`.
            seeds: B seeds; all 0 when None.
            n_cfm_timesteps, solver, start_fade: as for `inference`.
            splitting: which rows are made in pieces; None: none, however long.
            starts: for rows that are pieces of an utterance themselves, how many of its tokens come before each (B,).
                Such a row has the noise of the utterance's frames from there on, and no start fade; all 0 when None.

        Returns:
            B waveforms at 24 kHz, 1-D, 960 samples per token, on the model's device.

        Raises:
            ValueError: as `forward`; or lists of different lengths.
        """
        seeds = [0] * len(tokens) if seeds is None else list(seeds)
        if not len(tokens) == len(refs) == len(seeds):
            raise ValueError(f"{len(tokens)} token rows, {len(refs)} references and {len(seeds)} seeds do not match")
        if not len(tokens):
            return []
        solver, rows = self._solver(n_cfm_timesteps, solver), [check_tokens(row) for row in tokens]
        utterances = self._utterances(rows, [Voice.from_ref(ref) for ref in refs], seeds, starts)
        return self.synthesis.speak(utterances, solver=solver, start_fade=start_fade, splitting=splitting)

    def stream(
        self,
        tokens: Iterable[int | TokenRow],
        ref_dict: RefDict | Voice | None = None,
        ref_wav: Tensor | np.ndarray | None = None,
        ref_sr: int | None = None,
        *,
        chunk_tokens: int = CHUNK_TOKENS,
        left_seconds: float = LEFT_SECONDS,
        seed: int = 0,
        n_cfm_timesteps: int | None = None,
        solver: Solver | None = None,
        start_fade: bool = True,
    ) -> Iterator[Tensor]:
        """One utterance while its tokens are still being made: audio leaves before the last of them has come.

        The first audio leaves when `chunk_tokens` + 3 tokens have been read, and no wave waits for more tokens than it
        needs. What a second costs does not grow with the length of the stream. `s3gen.stream.Stream` is the same for
        callers that push tokens.

        Args:
            tokens: any iterable of integers 0 .. 6560, one by one or in rows (n,) of any sizes.
            ref_dict, ref_wav, ref_sr: the voice, as for `forward`, of batch 1.
            chunk_tokens: tokens that are made into sound at a time, at least 1.
            left_seconds: of what came before that is solved again with each chunk, so that it goes on from there.
            seed: of all noise.
            n_cfm_timesteps, solver, start_fade: as for `inference`.

        Returns:
            Waves at 24 kHz, 1-D, on the model's device; 960 samples per token in all.

        Raises:
            ValueError: at once, an argument that cannot be used; while it runs, tokens that cannot, before they are
                computed with; or no tokens at all.
        """
        solver, shape = self._solver(n_cfm_timesteps, solver), tuple(getattr(tokens, "shape", ()))
        if len(shape) > 2 or (len(shape) == 2 and shape[0] != 1):
            raise ValueError(f"a stream speaks one utterance, but tokens have the shape {shape}")
        (voice,) = self._voices(1, ref_wav, ref_sr, ref_dict)
        stream = Stream(
            self.synthesis,
            voice,
            seed=seed,
            solver=solver,
            chunk_tokens=chunk_tokens,
            left_seconds=left_seconds,
            start_fade=start_fade,
        )
        return stream.over(tokens)

    def _utterances(
        self,
        rows: Sequence[Tensor],
        voices: Sequence[Voice],
        seed: int | Sequence[int],
        starts: Sequence[int] | None = None,
    ) -> list[Utterance]:
        self.synthesis.check_voices(voices)
        seeds = noises.per_row(seed, len(rows))
        frames = [FRAMES_PER_TOKEN * start for start in checked_starts(starts, len(rows))]
        return [Utterance(*parts) for parts in zip(rows, voices, seeds, frames, strict=True)]

    def _solver(self, steps: int | None, solver: Solver | None) -> Solver:
        """What `n_cfm_timesteps` and `solver` say, found possible for this model."""
        found = chosen(solver, steps)
        self.flow.course(found)
        return found

    def _voices(
        self, rows: int, ref_wav: Tensor | np.ndarray | None, ref_sr: int | None, ref_dict: RefDict | Voice | None
    ) -> list[Voice]:
        if (ref_wav is None) == (ref_dict is None):
            raise ValueError("give exactly one of ref_wav (with ref_sr) and ref_dict")
        if ref_wav is not None:
            if ref_sr is None:
                raise ValueError("ref_wav needs ref_sr, its sample rate in Hz")
            ref_dict = self.embed_ref(ref_wav, ref_sr)
        voices = [ref_dict] if isinstance(ref_dict, Voice) else Voice.from_refs(ref_dict)  # type: ignore[arg-type]
        if len(voices) not in (1, rows):
            wanted = "1" if rows == 1 else f"1 or {rows}"
            hint = "" if ref_wav is None else ", and one channel of each clip, such as ref_wav.mean(0) of stereo"
            raise ValueError(f"the reference holds {len(voices)} voices for {rows} token row(s); give {wanted}{hint}")
        return voices * rows if len(voices) == 1 else voices


def _on_meta(config: S3GenConfig) -> S3GenModel:
    """The model without memory for its weights, which are assigned next; only derived buffers are real."""
    with torch.device("meta"):
        return S3GenModel(config)


def _config(found: checkpoint.Checkpoint) -> S3GenConfig:
    if found.config is not None:
        if found.config.get("model_type") == HiFTNetConfig.model_type:
            raise ValueError(
                f"{found.source} holds a vocoder alone: load it with HiFTNetModel.from_pretrained, or give a whole "
                "model's checkpoint"
            )
        return S3GenConfig.from_dict(found.config)
    # Single published files describe themselves by this one weight; all else has the published size.
    return S3GenConfig(meanflow="flow.decoder.estimator.time_embed_mixer.weight" in found.weights)
