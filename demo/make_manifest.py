"""Makes the demonstration's manifest: what the clips of a voice folder say, as speech tokens, in every voice.

Whole sentences (each clip in each voice) and seeded pieces of them, so that lengths vary. With real weights the result
is the sentences spoken by the other voices; with random weights the tokens, like the audio, are noise.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from s3gen import S3GenModel
from s3gen.constants import TOKEN_RATE

PIECES = 16
PIECE_TOKENS = (5, 60)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("voice_id", pa.string()),
        pa.field("tokens", pa.list_(pa.int16())),
        # Columns of our own: they come out unchanged beside the audio.
        pa.field("text", pa.string()),  # null for a piece
        pa.field("language", pa.string()),
        pa.field("spoken_by", pa.string()),  # the clip that the tokens are from
    ]
)


@click.command()
@click.argument("clips", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sentences", type=click.Path(exists=True, path_type=Path), required=True, help="What each clip says.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The manifest, a Parquet file.")
@click.option("--model", default="random:tiny", show_default=True, help="Whose tokenizer to use.")
@click.option("--seed", default=0, show_default=True, help="Of the choice of pieces.")
def main(clips: Path, sentences: Path, out: Path, model: str, seed: int) -> None:
    """Write a manifest from the folder CLIPS."""
    with sentences.open(encoding="utf-8", newline="") as file:
        spoken = {row["voice_id"]: row for row in csv.DictReader(file, delimiter="\t")}
    tokens = tokenize(S3GenModel.from_pretrained(model), clips, spoken)
    rows = [*whole(tokens, spoken), *pieces(tokens, spoken, np.random.default_rng(seed))]
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out)
    total = sum(len(row["tokens"]) for row in rows)
    click.echo(f"{out}: {len(rows)} rows, {total} speech tokens, {total / TOKEN_RATE:.1f} s of audio to make")


def tokenize(model: S3GenModel, clips: Path, names: dict[str, Any]) -> dict[str, list[int]]:
    found = {}
    for name in names:
        samples, rate = soundfile.read(clips / f"{name}.wav", dtype="float32")
        found[name] = model.tokenize(samples, rate)[0][0].tolist()
    return found


def whole(tokens: dict[str, list[int]], spoken: dict[str, dict[str, str]]) -> Iterator[dict[str, Any]]:
    for clip, voice in itertools.product(tokens, tokens):
        about = {"text": spoken[clip]["text"], "language": spoken[clip]["language"], "spoken_by": clip}
        yield {"id": f"{clip}/as/{voice}", "voice_id": voice, "tokens": tokens[clip], **about}


def pieces(
    tokens: dict[str, list[int]], spoken: dict[str, dict[str, str]], rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    names = list(tokens)
    for number in range(PIECES):
        clip, voice = rng.choice(names, 2)
        length = int(rng.integers(*PIECE_TOKENS, endpoint=True))
        start = int(rng.integers(0, len(tokens[clip]) - length, endpoint=True))
        about = {"text": None, "language": spoken[clip]["language"], "spoken_by": str(clip)}
        yield {
            "id": f"piece-{number:02d}",
            "voice_id": str(voice),
            "tokens": tokens[clip][start : start + length],
            **about,
        }


if __name__ == "__main__":
    main()
