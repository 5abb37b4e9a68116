"""Runs CosyVoice2's published modules on given inputs: ``python -P cosyvoice_reference.py FOLDER``.

As `reference.py`, beside which it lies and whose environment it needs; besides, ``source`` in the plan names a checkout
of FunAudioLLM/CosyVoice with its submodule Matcha-TTS. Speaker encoder and tokenizer are published as ONNX graphs
alone: here they are exported from the modules that `reference.py` runs.

When ``checkpoints`` is set in the plan, FOLDER gets flow.pt, hift.pt, campplus.onnx and speech_tokenizer_v2.onnx.

Shape letters: N samples, L tokens, P prompt tokens, T mel frames, H harmonics, S samples at 24 kHz.
"""

import contextlib
import importlib.util
import json
import logging
import pathlib
import sys
import types
import warnings

import torch
from safetensors.torch import load_file

_HERE = pathlib.Path(__file__)
_TOKENIZER_MELS = 128


def load_sibling():
    """`reference.py` as a module; this folder is not on the import path."""
    spec = importlib.util.spec_from_file_location("reference", _HERE.with_name("reference.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def put_on_path(source):
    """Make ``cosyvoice`` and ``matcha`` importable, without what they import for training and for ONNX sessions."""
    matcha = source / "third_party" / "Matcha-TTS"
    if not (matcha / "matcha").is_dir():
        raise FileNotFoundError(f"{matcha} holds no matcha: run git submodule update --init in {source}")
    sys.path[:0] = [str(source), str(matcha)]
    utils = types.ModuleType("matcha.utils")
    utils.__path__ = [str(matcha / "matcha" / "utils")]
    logger = types.ModuleType("matcha.utils.pylogger")
    logger.get_pylogger = logging.getLogger
    sessions = types.ModuleType("cosyvoice.utils.onnx")
    sessions.SpeechTokenExtractor, sessions.online_feature, sessions.onnx_path = None, False, ""
    sys.modules |= {"matcha.utils": utils, "matcha.utils.pylogger": logger, "cosyvoice.utils.onnx": sessions}


def build_flow():
    """The flow as examples/libritts/cosyvoice2/conf/cosyvoice2.yaml builds it."""
    from cosyvoice.flow.decoder import CausalConditionalDecoder
    from cosyvoice.flow.flow import CausalMaskedDiffWithXvec
    from cosyvoice.flow.flow_matching import CausalConditionalCFM
    from cosyvoice.transformer.upsample_encoder import UpsampleConformerEncoder
    from omegaconf import DictConfig

    encoder = UpsampleConformerEncoder(
        output_size=512, attention_heads=8, linear_units=2048, num_blocks=6, dropout_rate=0.1,
        positional_dropout_rate=0.1, attention_dropout_rate=0.1, normalize_before=True, input_layer="linear",
        pos_enc_layer_type="rel_pos_espnet", selfattention_layer_type="rel_selfattn", input_size=512,
        use_cnn_module=False, macaron_style=False, static_chunk_size=25,
    )  # fmt: skip
    estimator = CausalConditionalDecoder(
        in_channels=320, out_channels=80, channels=[256], dropout=0.0, attention_head_dim=64, n_blocks=4,
        num_mid_blocks=12, num_heads=8, act_fn="gelu", static_chunk_size=50, num_decoding_left_chunks=-1,
    )  # fmt: skip
    solver = {
        "sigma_min": 1e-06, "solver": "euler", "t_scheduler": "cosine", "training_cfg_rate": 0.2,
        "inference_cfg_rate": 0.7, "reg_loss_type": "l1",
    }  # fmt: skip
    decoder = CausalConditionalCFM(
        in_channels=240, n_spks=1, spk_emb_dim=80, cfm_params=DictConfig(solver), estimator=estimator
    )
    return CausalMaskedDiffWithXvec(
        input_size=512, output_size=80, spk_embed_dim=192, output_type="mel", vocab_size=6561, input_frame_rate=25,
        only_mask_loss=True, token_mel_ratio=2, pre_lookahead_len=3, encoder=encoder, decoder=decoder,
    )  # fmt: skip


def build_vocoder():
    """The vocoder of the same file."""
    from cosyvoice.hifigan.f0_predictor import ConvRNNF0Predictor
    from cosyvoice.hifigan.generator import HiFTGenerator

    return HiFTGenerator(
        in_channels=80, base_channels=512, nb_harmonics=8, sampling_rate=24000, nsf_alpha=0.1, nsf_sigma=0.003,
        nsf_voiced_threshold=10, upsample_rates=[8, 5, 3], upsample_kernel_sizes=[16, 11, 7],
        istft_params={"n_fft": 16, "hop_len": 4}, resblock_kernel_sizes=[3, 7, 11],
        resblock_dilation_sizes=[[1, 3, 5]] * 3, source_resblock_kernel_sizes=[7, 7, 11],
        source_resblock_dilation_sizes=[[1, 3, 5]] * 3, lrelu_slope=0.1, audio_limit=0.99,
        f0_predictor=ConvRNNF0Predictor(num_class=1, in_channels=80, cond_channels=512),
    )  # fmt: skip


class Graph(torch.nn.Module):
    """The tokenizer's encoder and quantiser as its graph has them: log-mel (1, 128, T) and T to tokens (1, L)."""

    def __init__(self, tokenizer):
        super().__init__()
        self.encoder, self.quantizer = tokenizer.encoder, tokenizer.quantizer

    def forward(self, mel, length):
        hidden, _ = self.encoder(mel, length)
        return self.quantizer.encode(hidden)


@contextlib.contextmanager
def real_rotations(encoder):
    """Within it, the tokenizer's rotations are pairs of real numbers: the exporter knows no complex ones."""
    original, rotations = torch.view_as_real, encoder.freqs_cis
    torch.view_as_real, encoder.freqs_cis = (lambda pairs: pairs), torch.view_as_real(rotations)
    try:
        yield
    finally:
        torch.view_as_real, encoder.freqs_cis = original, rotations


def export(module, inputs, path, opset):
    """By the exporter that the published graphs' names are of."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), inputs, path, dynamo=False, opset_version=opset)


def save_folder(flow, vocoder, voices, folder):
    """The four files, as published."""
    torch.save(flow.state_dict(), folder / "flow.pt")
    torch.save({"generator." + name: value for name, value in vocoder.state_dict().items()}, folder / "hift.pt")
    export(voices.speaker_encoder, (torch.randn(1, 200, 80),), folder / "campplus.onnx", 11)
    mel, length = torch.randn(1, _TOKENIZER_MELS, 100), torch.tensor([100], dtype=torch.int32)
    with real_rotations(voices.tokenizer.encoder):
        export(Graph(voices.tokenizer), (mel, length), folder / "speech_tokenizer_v2.onnx", 17)


class Calls:
    """What a plan may ask for. Each takes tensors by name and returns tensors by name."""

    def __init__(self, sibling, flow, vocoder, voices):
        self.sibling, self.flow, self.vocoder, self.voices = sibling, flow, vocoder, voices
        self.notes = {}

    def embed(self, wav, rate):
        """Audio (N,) at 16 or 24 kHz to prompt tokens (P,), prompt mel (T, 80) and vector (192,), by its front end."""
        import torchaudio
        import torchaudio.compliance.kaldi as kaldi
        from matcha.utils.audio import mel_spectrogram

        wav16, wav24 = (torchaudio.functional.resample(wav[None], rate, to) for to in (16000, 24000))
        features = kaldi.fbank(wav16, num_mel_bins=80, dither=0, sample_frequency=16000)
        features = features - features.mean(dim=0, keepdim=True)
        settings = {"n_fft": 1920, "num_mels": 80, "hop_size": 480, "win_size": 1920, "fmin": 0, "fmax": 8000}
        mel = mel_spectrogram(wav24, sampling_rate=24000, center=False, **settings)
        with self.sibling.token_margins(self.voices.tokenizer) as margins:
            tokens, lengths = self.voices.tokenizer([wav16[0]])
        return {
            "prompt_token": tokens[0, : int(lengths[0])],
            "margin": margins[0],
            "prompt_feat": mel[0].T,
            "embedding": self.voices.speaker_encoder(features[None])[0],
        }

    def mel(self, tokens, prompt_token, prompt_feat, embedding, noise, steps, finalize):
        """Tokens (L,), a voice and noise (80, 2 (P + L)) to log-mel (80, T)."""
        decoder, forward = self.flow.decoder, self.flow.decoder.forward
        decoder.rand_noise = noise[None]
        decoder.forward = lambda *args, n_timesteps, **named: forward(*args, n_timesteps=steps, **named)
        try:
            mel, _ = self.flow.inference(
                token=tokens[None], token_len=torch.tensor([len(tokens)]),
                prompt_token=prompt_token[None], prompt_token_len=torch.tensor([len(prompt_token)]),
                prompt_feat=prompt_feat[None], prompt_feat_len=torch.tensor([len(prompt_feat)]),
                embedding=embedding[None], streaming=False, finalize=finalize,
            )  # fmt: skip
        finally:
            del decoder.forward
        return {"mel": mel[0]}

    def vocode(self, mel, noise):
        """Log-mel (80, T) and noise (H, S) to F0 (T,), source (S,) and wave (S,).

        Besides, source and wave as they are when its phase is summed in float64.
        """
        with self.sibling.given_noise(noise.T[None], None):
            wave, source = self.vocoder.inference(speech_feat=mel[None])
        f0 = self.vocoder.f0_predictor(mel[None])[0]
        exact = self.source(f0, noise, True)["source"]
        made = {"exact_source": exact, "exact_wave": self.vocoder.decode(x=mel[None], s=exact[None, None])[0]}
        return {"f0": f0, "source": source[0, 0], "wave": wave[0], **made}

    def source(self, f0, noise, exact):
        """F0 (T,) in Hz and noise (H, S) to the source (S,); computed in float64 when `exact`.

        The starting phases are whatever is drawn: they have no effect.
        """
        kind = torch.float64 if exact else torch.float32
        with self.sibling.given_noise(noise.T[None], None):
            upsampled = self.vocoder.f0_upsamp(f0.to(kind)[None, None]).transpose(1, 2)
            source, _, _ = self.vocoder.m_source.to(kind)(upsampled)
        self.vocoder.m_source.float()
        return {"source": source[0, :, 0].float()}

    def speak(self, tokens, prompt_token, prompt_feat, embedding, noise, phase, source_noise, steps):
        """`mel`, then `vocode`; the phases (H, 1) that cases bring with them are not used, see `source`."""
        mel = self.mel(tokens, prompt_token, prompt_feat, embedding, noise, steps, True)["mel"]
        return {"mel": mel, **self.vocode(mel, source_noise)}


def run(folder):
    """Carry out the plan in `folder`."""
    plan = json.loads((folder / "plan.json").read_text())
    torch.set_num_threads(plan["threads"])
    sibling, weights = load_sibling(), load_file(plan["weights"])
    voices = sibling.build(sibling.load_reference(), weights, meanflow=False)
    put_on_path(pathlib.Path(plan["source"]))
    flow, vocoder = build_flow().eval(), build_vocoder().eval()
    for module, prefix in ((flow, "flow."), (vocoder, "mel2wav.")):
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        sibling.fill(module, own)
    if plan["checkpoints"]:
        save_folder(flow, vocoder, voices, folder)
    sibling.carry_out(plan, folder, Calls(sibling, flow, vocoder, voices))


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]))
