"""How much storage a job's output will need, for each format and encoding."""

from __future__ import annotations

WAV_HEADER, WAV_SAMPLE = 44, 2  # bytes
# FLAC's share of the same audio as WAV, where it is not measured: clips of recorded speech took 0.33 to 0.58.
SPEECH_FLAC_SHARE = 0.5
# What Parquet and the index keep of a row besides: its id, lengths, digest and measures, compressed.
ROW_BYTES = 200
# A tar file has a header of 512 bytes for each of a row's two members, and fills each up to a multiple of that: audio
# by half of it, the columns, which are short, by most of it.
TAR_ROW_BYTES = 2 * 512 + 256 + 512


def wav_bytes(rows: int, samples: int) -> int:
    """Of so many WAV files with so many samples together."""
    return WAV_HEADER * rows + WAV_SAMPLE * samples


def disk_bytes(rows: int, samples: int, column_bytes: float, flac_share: float) -> dict[str, dict[str, int]]:
    """By format, then by encoding; WAV audio is exact, what lies around it is estimated.

    Args:
        samples: of all rows together.
        column_bytes: of the manifest's columns that the output keeps, per row.
        flac_share: bytes of FLAC for a byte of WAV.
    """
    audio = {"flac": flac_share * wav_bytes(rows, samples), "wav": wav_bytes(rows, samples)}
    around = {"parquet": column_bytes + ROW_BYTES, "webdataset": column_bytes + ROW_BYTES + TAR_ROW_BYTES}
    return {
        shards: {encoding: round(size + rows * each) for encoding, size in audio.items()}
        for shards, each in around.items()
    }
