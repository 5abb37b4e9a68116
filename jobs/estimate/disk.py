"""How much storage a job's output will need, for each format and encoding."""

from __future__ import annotations

from s3gen.constants import SAMPLE_RATE

WAV_HEADER, WAV_SAMPLE = 44, 2  # bytes
# FLAC's share of the same audio as WAV, where it is not measured: clips of recorded speech took 0.33 to 0.58.
SPEECH_FLAC_SHARE = 0.5
# Bytes of a file, and of a second of recorded speech in it.
LOSSY = {"ogg": (940, 4_500), "mp3": (760, 8_900)}
# What Parquet and the index keep of a row besides: its id, lengths, digest and measures, compressed.
ROW_BYTES = 200
# A tar file has a header of 512 bytes for each of a row's two members, and fills each up to a multiple of that: audio
# by half of it, the columns, which are short, by most of it.
TAR_ROW_BYTES = 2 * 512 + 256 + 512
CUT_BYTES = 100  # of a line in lhotse's list of cuts, compressed, without the columns


def wav_bytes(rows: int, samples: int) -> int:
    """Of so many WAV files with so many samples together."""
    return WAV_HEADER * rows + WAV_SAMPLE * samples


def disk_bytes(
    rows: int, samples: int, column_bytes: float, flac_share: float, rate: int = SAMPLE_RATE
) -> dict[str, dict[str, int]]:
    """By format, then by encoding; WAV audio is exact, what lies around it is estimated.

    Args:
        samples: of all rows together.
        column_bytes: of the manifest's columns that the output keeps, per row.
        flac_share: bytes of FLAC for a byte of WAV.
        rate: of the samples, Hz.
    """
    audio = {"flac": flac_share * wav_bytes(rows, samples), "wav": wav_bytes(rows, samples)}
    audio |= {name: head * rows + second * samples / rate for name, (head, second) in LOSSY.items()}
    own = {"parquet": 0, "webdataset": TAR_ROW_BYTES, "lhotse": TAR_ROW_BYTES + CUT_BYTES}
    return {
        shards: {encoding: round(size + rows * (column_bytes + ROW_BYTES + each)) for encoding, size in audio.items()}
        for shards, each in own.items()
    }
