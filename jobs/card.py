"""The data-set card: the README.md of an output, which says that its speech is synthetic and how it was made.

Its head is what the Hugging Face hub reads; with it ``datasets.load_dataset(OUTPUT)`` reads the audio and nothing else,
and takes the columns in tars for what they are.
It is meant to be published, so it names no paths. A card that somebody has edited is theirs, and is left alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from jobs.audio.audiofile import ENCODINGS
from jobs.config.config import JobConfig, config_from
from jobs.formats.formats import FORMATS
from jobs.formats.writers import stored_columns
from jobs.ledger.ledger import Ledger
from jobs.ledger.tally import Summary
from jobs.measures.checks import CHECKS
from jobs.report.failures import table_batches
from jobs.report.numbers import Numbers, Voices
from jobs.report.quality import COLUMNS as QUALITY_COLUMNS
from jobs.report.quality import Qualities
from jobs.report.rows import index_frames
from jobs.report.words import count, length, percent, plain, some
from jobs.storage.folders import Folder
from jobs.storage.urls import is_url
from s3gen.card_mark import CARD, is_unedited, marked
from s3gen.constants import SAMPLE_RATE

SHOWN_VOICES = 100
MEASURED_SHARES = (0.05, 0.5, 0.95)  # of the utterances, that are below
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B")

log = logging.getLogger(__name__)


def write_card(ledger: Ledger, summary: Summary) -> None:
    """Writes the card of a job whose tables are there, unless somebody else's is in its place.

    Raises:
        StorageError: a table is gone or damaged, or the card cannot be written.
    """
    if not may_write(ledger.folder):
        log.info("%s is not as s3gen wrote it, and is left as it is", ledger.folder.path(CARD))
        return
    numbers = Numbers()
    for frame in index_frames(ledger.folder, ("voice_id", "samples", "joints", *QUALITY_COLUMNS, "problems")):
        numbers.add(frame)
    columns = ledger.plan.manifest.columns
    text = card(ledger.job, columns, summary, numbers, _made_with_other_seeds(ledger))
    ledger.folder.put(CARD, marked(text.encode("utf-8", "backslashreplace")))


def _made_with_other_seeds(ledger: Ledger) -> int:
    """Rows of the data that were made with another seed than the one they first had."""
    plan = ledger.plan
    reseeded = plan.with_other_seeds
    failed = 0
    if len(reseeded):
        for table in table_batches(ledger.folder, ("manifest", "row")):
            numbers = plan.numbers_of(table["manifest"].to_pylist(), table["row"].to_numpy())
            failed += int(np.isin(numbers, reseeded).sum())
    return len(reseeded) - failed


def may_write(folder: Folder) -> bool:
    """Whether a folder has no card, or one that nobody has edited."""
    try:
        return is_unedited(folder.read(CARD))
    except FileNotFoundError:
        return True


def card(job: Mapping[str, Any], columns: pa.Schema, summary: Summary, numbers: Numbers, reseeded: int = 0) -> str:
    """The text of the card, without the mark.

    Args:
        job: what ``job.json`` holds.
        columns: of the manifest.
        reseeded: rows of the data that were made with another seed, since they had failed with the first.
    """
    config, voices = config_from(job["config"]), numbers.voices
    name = config.output.rstrip("/").rpartition("/")[2]
    head = yaml.safe_dump(_head(config, columns, summary, plain(name)), sort_keys=False, allow_unicode=True)
    parts = (
        f"---\n{head}---\n\n# {_escaped(name)}",
        _synthetic(config, summary, voices),
        _origin(job, config, numbers.joined, reseeded),
        _voices(voices),
        _checks(config, summary),
        *([_measures(numbers.qualities)] if numbers.rows else []),
        _contents(config),
        _left_to_say(),
    )
    return "\n\n".join(parts) + "\n\n"


def _head(config: JobConfig, columns: pa.Schema, summary: Summary, name: str) -> dict[str, Any]:
    shard_format = FORMATS[config.format]
    head: dict[str, Any] = {
        "pretty_name": name,
        "task_categories": ["text-to-speech"],
        "tags": ["audio", "speech", "synthetic", "s3gen"],
        "size_categories": [SIZES[min(max(len(str(summary.rows_done)) - 3, 0), len(SIZES) - 1)]],
    }
    if summary.rows_done:
        data = [{"split": "train", "path": shard_format.pattern}]
        head["configs"] = [{"config_name": "default", "data_files": data}]
        if shard_format.features is not None:
            kept = stored_columns(columns.empty_table(), [], keep_inputs=config.keep_inputs).schema
            features = shard_format.features(kept, config.audio, config.wave.sample_rate)
            head["dataset_info"] = {"features": features}
    return head


def _synthetic(config: JobConfig, summary: Summary, voices: Voices) -> str:
    spoken = (
        "The weights of the model were random, for a trial: this is noise."
        if config.model.startswith("random:")
        else "No person has said what is heard here, though the voices are made after recordings of persons."
    )
    failed = ""
    if summary.rows_failed:
        reasons = ", ".join(f"{_escaped(code)} {count(rows)}" for code, rows in summary.errors.items())
        failed = f" {count(summary.rows_failed)} more rows could not be made ({reasons})."
    more = "more than " if voices.beyond["rows"] else ""
    amounts = f"{count(summary.rows_done)} utterances, {length(summary.samples / SAMPLE_RATE)} of audio"
    return (
        f"**All speech in this data set is synthetic: it was computed by a machine.** {spoken}\n\n"
        f"{amounts}, {more}{count(len(voices.table()))} voices, {config.wave.sample_rate / 1_000:g} kHz, mono, "
        f"{ENCODINGS[config.audio].description} ({config.audio}).{failed}"
    )


def _origin(job: Mapping[str, Any], config: JobConfig, joined: int, reseeded: int) -> str:
    engine, prints = config.engine, job["fingerprints"]
    own = config.model.startswith("/") or is_url(config.model)
    model = config.model.rstrip("/").rpartition("/")[2] if own else config.model
    file = f", file {_escaped(config.model_file)}" if config.model_file else ""
    versions = ", ".join(f"{name} {version}" for name, version in job["versions"].items())
    prompt = "whole prompts" if engine.prompt_seconds is None else f"prompts of {engine.prompt_seconds:g} s at most"
    again = f"; with another one, since they had failed with it: {some(reseeded, 'row')}" if reseeded else ""
    fade = "with a start fade of 40 ms" if config.start_fade else "without a start fade"
    pieces = ""
    if config.on_long == "split":
        which = f"{some(joined, 'utterance')} of more than {config.max_tokens} tokens"
        pieces = f"; {which} made in pieces, cross-faded (column `cuts` of the index)"
    loudness = f", its clips brought to {prints['voices_loudness']}" if "voices_loudness" in prints else ""
    wave = f"- audio: {'; '.join(config.wave.described)}\n" if config.wave.described else ""
    return (
        "## How it was made\n\n"
        "Speech tokens (25 a second) and a voice went into S3Gen, which makes the sound; where the tokens came from, a "
        "language model or recordings, it does not know.\n\n"
        f"- model: {_escaped(model)}{file}; fingerprint `{prints['model']}`\n"
        f"- voice table: fingerprint `{prints['voices']}`{loudness}\n"
        f"- settings: {engine.dtype}, {engine.solved}, {prompt}, {fade}{pieces}\n"
        f"{wave}- noise: decided by the row's seed, or by the seed {config.seed} of the job and the row's id{again}\n"
        f"- plan: digest `{job['plan']}`\n"
        f"- versions: {versions}"
    )


def _voices(voices: Voices) -> str:
    table = voices.table()
    shown = table.head(SHOWN_VOICES)
    rows = [_voice(str(name), row) for name, row in shown.iterrows()]
    left = table.iloc[len(shown) :]
    if len(left) or voices.beyond["rows"]:
        seconds = (int(left["samples"].sum()) + voices.beyond["samples"]) / SAMPLE_RATE
        utterances = int(left["rows"].sum()) + voices.beyond["rows"]
        more = "more than " if voices.beyond["rows"] else ""
        rows.append(f"| {more}{count(len(left))} others | {count(utterances)} | {length(seconds)} |")
    return "## Voices\n\n" + "\n".join(["| voice | utterances | audio |", "|---|--:|--:|", *rows])


def _voice(name: str, row: pd.Series) -> str:
    return f"| {_escaped(name)} | {count(int(row['rows']))} | {length(int(row['samples']) / SAMPLE_RATE)} |"


def _checks(config: JobConfig, summary: Summary) -> str:
    limits = config.checks.model_dump()
    rows = [f"| {name} | {_limit(limits[key])} | {_beyond(name, summary)} |" for name, (_, key) in CHECKS.items()]
    what = (
        "Audio beyond a limit is kept: the column `problems` of `index.parquet` names the checks."
        if config.on_bad_audio == "keep"
        else "Audio beyond a limit was left out."
    )
    trimmed = "" if config.wave.trim_db is None else ", but for the silence that was trimmed"
    return (
        "## Checks\n\n"
        f"Every utterance is finite and has the length that its tokens ask for{trimmed}; levels, silence, clipping, "
        f"offset and clicks were measured, and are in `index.parquet`. {what} Nobody has listened to all of it, and no "
        "check compares what is said with a text.\n\n"
    ) + "\n".join(["| check | limit | rows beyond it |", "|---|--:|--:|", *rows])


def _measures(qualities: Qualities) -> str:
    rows = []
    for quality in qualities.there():
        spread = qualities.spreads[quality.column]
        values = " | ".join(quality.unit(spread.quantile(share)) for share in MEASURED_SHARES)
        rows.append(f"| `{quality.column}` | {quality.axis} | {count(spread.total)} | {values} |")
    shares = " | ".join(f"{share:.0%}" for share in MEASURED_SHARES).replace("50%", "median")
    head = [f"| column of `index.parquet` | | utterances | {shares} |", "|---|---|--:|" + "--:|" * len(MEASURED_SHARES)]
    return (
        "## Measures\n\n"
        "Loudness is that of ITU-R BS.1770-5. The signal-to-noise ratio is estimated (WADA-SNR), and says little above "
        "40 dB. Speaking rates are of the column `text`, pauses included. DNSMOS is what a network expects listeners "
        "to say, and knows nothing of the text.\n\n"
    ) + "\n".join([*head, *rows])


def _limit(value: float | None) -> str:
    return "off" if value is None else f"{value:g}"


def _beyond(name: str, summary: Summary) -> str:
    rows = summary.problems.get(name, 0)
    return f"{count(rows)} ({percent(rows, summary.rows_done)})" if rows else "0"


# How a library of each format reads an output, and which library that is.
READERS = {
    "parquet": 'load_dataset(FOLDER, split="train")  # of the library datasets; the column audio decodes to {rate} kHz',
    "webdataset": 'WebDataset(sorted(glob("FOLDER/audio/*.tar")))  # of the library webdataset',
    "lhotse": 'CutSet.from_shar(in_dir="FOLDER/audio")  # of the library lhotse',
}


def _contents(config: JobConfig) -> str:
    stored = FORMATS[config.format]
    columns = "the utterances" if stored.write_cuts else "the utterances, with the columns of the manifest"
    cuts = "- `audio/cuts.*.jsonl.gz`: what each says, and the columns of the manifest\n" if stored.write_cuts else ""
    return (
        "## Contents\n\n"
        f"- `{stored.pattern}`: {columns}\n{cuts}"
        "- `index.parquet`: where each utterance is, its length, the sha256 of its stored audio and its measures\n\n"
        f"```python\n{READERS[config.format].format(rate=f'{config.wave.sample_rate / 1_000:g}')}\n```\n\n"
        "`job.json`, `failures.parquet`, `report.html` and `ledger/` are the job's own. They name paths of where it "
        "ran, and readers need none of them."
    )


def _left_to_say() -> str:
    return (
        "## What only its maker can say\n\n"
        "The licence, the languages, the source of the tokens, and whose voices these are and that they agreed."
    )


def _escaped(text: str) -> str:
    """For Markdown: every mark of punctuation stands for itself; a hyphen does so anyway."""
    return re.sub(r"([!-,./:-@\[-`{-~])", r"\\\1", plain(text))
