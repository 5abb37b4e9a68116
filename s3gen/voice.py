"""A reference voice: what `embed_ref` finds in a clip, checked and cut to the shape that the flow needs.

Shape letters: B batch, P prompt tokens, F prompt frames (2 x P), M mel bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3gen.constants import FRAMES_PER_TOKEN, MEL_BINS, TOKEN_RATE
from s3gen.tokens import check_tokens, integers

RefDict = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """One voice.

    Attributes:
        prompt_token: (P,) int64, 0 .. 6560.
        prompt_feat: (2 x P, 80) float, the log-mel of the same audio at 24 kHz.
        embedding: (192,) float, the speaker vector, not normalised.
    """

    prompt_token: Tensor
    prompt_feat: Tensor
    embedding: Tensor

    @classmethod
    def from_ref(cls, ref: RefDict | Voice) -> Voice:
        """The only voice of a reference of batch 1; arguments and errors as for `from_refs`."""
        if isinstance(ref, Voice):
            return ref
        voices = cls.from_refs(ref)
        if len(voices) != 1:
            raise ValueError(f"the reference holds {len(voices)} voices where one is needed")
        return voices[0]

    @classmethod
    def from_refs(cls, ref: RefDict) -> list[Voice]:
        """The voices of a reference dictionary, which is left as it is.

        Args:
            ref: `prompt_token` (B, P) or (P,) integers, `prompt_token_len` (B,), `prompt_feat` (B, F, 80) or (F, 80),
                `prompt_feat_len` (B,) or None, `embedding` (B, 192) or (192,); tensors or numpy arrays. Tokens and
                frames are cut to the longest F = 2 x P that both have: the reference implementation keeps one odd
                frame for half of all clip lengths and then returns a frame too few.

        Raises:
            ValueError: a missing entry, a wrong shape or dtype, ids out of range, values that are not finite.
        """
        if not isinstance(ref, Mapping):
            raise ValueError(f"a reference must be a Voice or what embed_ref returned, not {type(ref).__name__}")
        missing = [name for name in ("prompt_token", "prompt_feat", "embedding") if ref.get(name) is None]
        if missing:
            raise ValueError(f"the reference lacks {', '.join(missing)}; it has {', '.join(sorted(ref))}")
        tokens = _tensor(ref["prompt_token"], "prompt_token", dims=2)
        feats = _tensor(ref["prompt_feat"], "prompt_feat", dims=3)
        embeddings = _tensor(ref["embedding"], "embedding", dims=2)
        if not len(tokens) == len(feats) == len(embeddings):
            raise ValueError(
                f"the reference's batch sizes differ: prompt_token {len(tokens)}, prompt_feat {len(feats)}, "
                f"embedding {len(embeddings)}"
            )
        token_lens = _lengths(ref.get("prompt_token_len"), "prompt_token_len", tokens)
        feat_lens = _lengths(ref.get("prompt_feat_len"), "prompt_feat_len", feats)
        rows = zip(tokens, token_lens, feats, feat_lens, embeddings, strict=True)
        return [_cut(token[:p], feat[:f], embedding) for token, p, feat, f, embedding in rows]

    def to_ref(self) -> dict[str, Tensor]:
        """The voice as a reference dictionary of batch 1."""
        return {
            "prompt_token": self.prompt_token[None],
            "prompt_token_len": torch.tensor([len(self.prompt_token)]),
            "prompt_feat": self.prompt_feat[None],
            "prompt_feat_len": torch.tensor([len(self.prompt_feat)]),
            "embedding": self.embedding[None],
        }

    def cut(self, seconds: float) -> Voice:
        """The same voice with at most the first `seconds` of its prompt (at least one token); its vector stays."""
        tokens = max(1, int(seconds * TOKEN_RATE))
        return replace(
            self, prompt_token=self.prompt_token[:tokens], prompt_feat=self.prompt_feat[: tokens * FRAMES_PER_TOKEN]
        )


def _cut(token: Tensor, feat: Tensor, embedding: Tensor) -> Voice:
    length = min(len(token), len(feat) // FRAMES_PER_TOKEN)
    if length == 0:
        raise ValueError(f"the reference is too short: {len(token)} prompt tokens, {len(feat)} prompt frames")
    if feat.shape[1] != MEL_BINS:
        raise ValueError(f"prompt_feat has {feat.shape[1]} mel bins, not {MEL_BINS}: its shape is (B, frames, bins)")
    for name, value in (("prompt_feat", feat), ("embedding", embedding)):
        if not value.is_floating_point():
            raise ValueError(f"{name} must be floating point, not {value.dtype}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds values that are not finite")
    return Voice(
        # Clones, since the rows are views of what the user may go on writing to.
        prompt_token=check_tokens(token[:length]).clone(),
        prompt_feat=feat[: length * FRAMES_PER_TOKEN].clone(),
        embedding=embedding.clone(),
    )


def _tensor(value: Any, name: str, dims: int) -> Tensor:
    tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor or a numpy array, not {type(value).__name__}")
    tensor = tensor.detach()
    if tensor.dim() == dims - 1:
        tensor = tensor[None]
    if tensor.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimensions (or {dims - 1} for one voice), not {tuple(tensor.shape)}")
    return tensor


def _lengths(value: Any, name: str, padded: Tensor) -> list[int]:
    if value is None:
        return [padded.shape[1]] * len(padded)
    lengths = integers(value, name).reshape(-1).tolist()
    if len(lengths) != len(padded) or not all(0 < length <= padded.shape[1] for length in lengths):
        raise ValueError(f"{name} is {lengths}, which does not fit a batch of shape {tuple(padded.shape)}")
    return lengths
