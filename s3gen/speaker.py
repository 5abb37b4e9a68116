"""The speaker encoder: clips' voices as vectors, in exact batches of any lengths (the network: `s3gen.campplus`).

Shape letters: B clips, N samples, T filter bank frames, M mel bins, E width of the vector.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from s3gen.audio import SpeakerFeatures, batch_frames, check_wav
from s3gen.campplus import Head, XVector
from s3gen.config import SpeakerConfig
from s3gen.constants import TOKENIZER_RATE
from s3gen.derived import state_of
from s3gen.folded import FoldedCAMPPlus
from s3gen.precision import strict_float32
from s3gen.ragged import plan_batches

# Three filter bank frames (25 ms long, 10 ms apart) are two after the time-delay layer, the fewest with a deviation.
SPEAKER_MIN_SAMPLES = 720

# On a CPU; the head's layers are large, and their weights are small. Elsewhere as much as the tokenizer takes.
_CPU_BATCH_FRAMES = 2_400


class SpeakerEncoder(nn.Module):
    """A clip's voice as a vector.

    It computes with folded copies of its weights, made at the first call and again when these were changed through
    torch (`s3gen.derived`).

    Args:
        config: dimensions; `mels` a multiple of 8, three `blocks`.
    """

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.features = SpeakerFeatures(config.mels)
        self.head = Head(config.head_channels)
        self.xvector = XVector(config)
        self._folded: tuple[Hashable, FoldedCAMPPlus] | None = None

    @torch.no_grad()
    def forward(self, wavs: Sequence[Tensor]) -> Tensor:
        """Vectors of clips, not normalised; a clip's vector does not depend on the others.

        Args:
            wavs: B clips (N,) at 16 kHz, in the module's dtype, full scale at 1.0.

        Returns:
            (B, E) in that dtype.

        Raises:
            ValueError: no clips, or one that is not 1-D, not of the module's dtype, not finite, or under 720 samples.
        """
        if len(wavs) == 0:
            raise ValueError("there are no clips to encode: wavs is empty")
        weight = self.head.conv1.weight
        for row, wav in enumerate(wavs):
            check_wav(wav, f"wavs[{row}]", rate=TOKENIZER_RATE, minimum=SPEAKER_MIN_SAMPLES, dtype=weight.dtype)
        with strict_float32(weight.device):
            return self.encode([wav.to(weight.device) for wav in wavs])

    def encode(self, wavs: Sequence[Tensor]) -> Tensor:
        """`forward` of clips that are known to be good and lie on the module's device, without waiting for it."""
        features = self.features(wavs)
        folded = self.folded()
        vectors: dict[int, Tensor] = {}
        device = self.head.conv1.weight.device
        frames = _CPU_BATCH_FRAMES if device.type == "cpu" else batch_frames(device)
        for batch in plan_batches([len(rows) for rows in features], frames):
            found = folded.embed([features[row] for row in batch])
            vectors.update(zip(batch, found, strict=True))
        return torch.stack([vectors[row] for row in range(len(wavs))])

    def prepare(self) -> None:
        """Drop the folded copies: they may be of other weights by now."""
        self._folded = None

    def folded(self) -> FoldedCAMPPlus:
        """The network as `encode` uses it."""
        state = state_of(self.head, self.xvector)
        if self._folded is None or self._folded[0] != state:
            self._folded = (state, FoldedCAMPPlus(self.head, self.xvector))
        return self._folded[1]

    def embed(self, features: Tensor) -> Tensor:
        """The same from filter bank features (B, T, M), T at least 3 and the same for all, layer by layer: (B, E)."""
        vectors: Tensor = self.xvector(self.head(features.transpose(1, 2)))
        return vectors
