"""What the page says, as texts that are ready to be laid out; the template knows no numbers and this no HTML."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml

from jobs.audio.audiofile import ENCODINGS
from jobs.config.config import EngineConfig, WaveConfig, config_from
from jobs.measures.checks import CHECKS
from jobs.reasons import REASONS
from jobs.report.charts import Chart, histogram
from jobs.report.failures import Example, Failures
from jobs.report.numbers import Numbers
from jobs.report.players import Player
from jobs.report.quality import Quality
from jobs.report.run import Run
from jobs.report.view import Card, CheckRow, FailureRow, Note, Page, Tile, VoiceRow
from jobs.report.words import MINUS, SHOWN_MESSAGE, count, decibels, length, moment, number, percent, plain, size, some
from jobs.status import Status
from s3gen.constants import SAMPLE_RATE

VOICE_ROWS = 20  # of the table, at once
MORE_VOICE_ROWS = 180  # folded away
DIGEST_DIGITS = 16

MEASURED = {
    "silence": "share of its frames of 20 ms that are below −60 dB",
    "clipping": "share of its samples at 0.99 of full scale or more",
    "dc": "mean of its samples",
    "click_start": "largest step between two samples in its first 5 ms",
    "click_end": "largest step between two samples in its last 5 ms",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """All that was read of an output.

    Attributes:
        shards: whose rows are in ``numbers``: all that are done, or a sample.
        records: shards that ``run`` and ``stored_bytes`` are of, likewise.
        stored_bytes: of all shards that are done.
        reading_at: unix time.
    """

    url: str
    job: dict[str, Any]
    files: int  # of the manifest
    rounds: int  # in which rows that had failed were tried again
    tried_again: int  # these rows, each once, however often
    status: Status
    duplicates: int
    numbers: Numbers
    shards: int
    records: int
    failures: Failures
    run: Run | None
    stored_bytes: float
    samples: Sequence[Player]
    suspects: Sequence[Player]
    extremes: Sequence[Player]
    reading_at: float

    @property
    def config(self) -> dict[str, Any]:
        """Of the job, with every key."""
        return config_from(self.job["config"]).frozen()

    @property
    def partial(self) -> bool:
        """Whether the rows counted are a sample of those that are there."""
        return self.shards < self.status.shards_done


def page_of(material: Material) -> Page:
    """The page of a job."""
    page = Page(
        name=plain(material.url.rstrip("/").rpartition("/")[2] or material.url),
        model=plain(str(material.config["model"])),
        state=material.status.state,
        when=_when(material),
        notes=_notes(material),
        tiles=_tiles(material),
        sections=[("failures", "Failures"), ("made", "Made from")],
        failures_lead=_failures_lead(material),
        failures=_failure_rows(material.failures, material.url),
        made=_made(material),
        config=yaml.safe_dump(material.config, sort_keys=False, allow_unicode=True),
        foot=f"Written on {moment(material.reading_at)} by s3gen report, from the output alone: {plain(material.url)}",
    )
    if material.numbers.rows:
        page.sections = [("voices", "Voices"), ("checks", "Checks"), ("distribution", "Distribution"), *page.sections]
        _add_voices(page, material)
        _add_checks(page, material)
        page.histograms = _histograms(material.numbers)
    if material.run is not None:
        page.sections = [*page.sections[:-1], ("run", "Run"), page.sections[-1]]
        _add_run(page, material, material.run)
    return page


# --- the head ---------------------------------------------------------------------------------------------------------


def _when(material: Material) -> str:
    run = material.run
    if run is None:
        return ""
    return f", from {moment(run.began)} to {moment(run.ended)}"


def _notes(material: Material) -> list[Note]:
    status, notes = material.status, []
    if status.state != "finished":
        what = (
            f"{count(status.shards_done)} of {count(status.shards_total)} shards are done, and all below is of those."
        )
        if status.state == "running":
            notes.append(Note(f"The job is running: {what}"))
        else:
            notes.append(
                Note(f"The job is not finished: {what} Go on with", f"s3gen resume {shlex.quote(material.url)}")
            )
    if material.partial:
        sample, done = count(material.shards), count(status.shards_done)
        notes.append(Note(f"Voices, checks, distribution and failures are those of {sample} of the {done} shards."))
    if str(material.config["model"]).startswith("random:"):
        notes.append(Note("The weights of this model are random: what is heard is noise, not speech."))
    if material.duplicates:
        rows = some(material.duplicates, "row")
        notes.append(Note(f"Ids that an earlier shard has, too: {rows}, listed in duplicates.parquet."))
    return notes


def _tiles(material: Material) -> list[Tile]:
    status, numbers, run = material.status, material.numbers, material.run
    about = "about " if status.estimated else ""
    voices = len(numbers.voices.table())
    more = "more than " if numbers.voices.beyond["rows"] else ""
    rows = f"of {count(status.rows_total)}"
    mean = length(status.audio_seconds / max(status.rows_done, 1))
    each = numbers.samples / SAMPLE_RATE / max(voices, 1)
    attempted = status.rows_done + status.rows_failed
    if not attempted:
        return [Tile("Rows made", "0", rows)]
    return [
        Tile("Audio", about + length(status.audio_seconds), f"{mean} a row"),
        Tile("Rows made", about + count(status.rows_done), rows),
        Tile("Voices", more + count(voices), f"{length(each)} each"),
        Tile(
            "Failed rows", about + count(status.rows_failed), percent(status.rows_failed, attempted),
            "bad" if status.rows_failed else "",
        ),
        Tile(
            "Beyond a check", count(numbers.suspect), percent(numbers.suspect, numbers.rows),
            "warn" if numbers.suspect else "",
        ),
        Tile("Speed", f"{number(status.speed)} ×", f"real time, in {length(run.seconds if run else 0.0)}"),
    ]  # fmt: skip


# --- voices -----------------------------------------------------------------------------------------------------------


def _add_voices(page: Page, material: Material) -> None:
    table, beyond = material.numbers.voices.table(), material.numbers.voices.beyond
    qualities = material.numbers.qualities.there()
    longest = float(table["samples"].max()) / SAMPLE_RATE
    page.voice_unit, unit = next(
        (name, each) for name, each, most in (("s", 1, 100), ("min", 60, 6_000), ("h", 3_600, None))
        if most is None or longest < most
    )  # fmt: skip
    shown = [
        _voice_row(str(name), row, longest, unit, qualities)
        for name, row in table.head(VOICE_ROWS + MORE_VOICE_ROWS).iterrows()
    ]
    page.voice_qualities = [quality.name for quality in qualities]
    page.voices, page.more_voices = shown[:VOICE_ROWS], shown[VOICE_ROWS:]
    rest = table.iloc[len(shown) :]
    others = len(rest)
    if others or beyond["rows"]:
        rows = int(rest["rows"].sum()) + beyond["rows"]
        seconds = (int(rest["samples"].sum()) + beyond["samples"]) / SAMPLE_RATE
        more = "more than " if beyond["rows"] else ""
        further = some(others, "further voice")
        page.other_voices = f"And {more}{further}: {some(rows, 'row')}, {length(seconds)} of audio."
    page.samples = [_card(player, plain(player.pick.voice_id), "") for player in _by_audio(material.samples, table)]
    drawn = (
        "One row of each voice" if len(table) <= len(page.samples) else f"One row of each of {len(page.samples)} voices"
    )
    page.voices_lead = (
        f"{drawn}, drawn at random. The players hold the stored samples without loss; the pictures show time to the "
        f"right and pitch up to {material.config['wave']['sample_rate'] / 2_000:g} kHz, on a mel scale."
    )


def _by_audio(samples: Sequence[Player], table: pd.DataFrame) -> list[Player]:
    place = {voice: at for at, voice in enumerate(table.index)}
    return sorted(samples, key=lambda player: (place.get(player.pick.voice_id, len(place)), player.pick.voice_id))


def _voice_row(name: str, row: Any, longest: float, unit: int, qualities: Sequence[Quality]) -> VoiceRow:
    seconds = float(row["samples"]) / SAMPLE_RATE
    return VoiceRow(
        name=plain(name),
        rows=count(int(row["rows"])),
        audio=f"{seconds / unit:,.{2 if longest / unit < 10 else 1}f}",
        width=100 * seconds / longest,
        qualities=[_mean(float(row[quality.column]), quality) for quality in qualities],
        suspect=count(int(row["suspect"])),
    )


def _mean(value: float, quality: Quality) -> str:
    """The heading has the unit."""
    return "" if math.isnan(value) else f"{value:.{quality.digits}f}".replace("-", MINUS)


def _card(player: Player, heading: str, beyond: str, *, with_voice: bool = False) -> Card:
    pick = player.pick
    seconds = length(pick.samples / SAMPLE_RATE)
    heard = f"the first {length(player.seconds)}" if player.cut else f"all {seconds}"
    cut = f" (its first {length(player.seconds)} are here)" if player.cut else ""
    return Card(
        heading=heading,
        beyond=beyond,
        id=plain(pick.id),
        voice=plain(pick.voice_id) if with_voice else "",
        sound=player.sound,
        picture=player.picture,
        heard=heard,
        trouble=player.trouble,
        facts=f"{seconds}{cut} · {decibels(pick.rms_db)} · peak {pick.peak:.2f}",
    )


# --- checks -----------------------------------------------------------------------------------------------------------


def _add_checks(page: Page, material: Material) -> None:
    numbers, limits = material.numbers, material.config["checks"]
    if material.config["on_bad_audio"] == "fail_row":
        page.checks_lead = (
            "Audio beyond a limit is not stored (on_bad_audio: fail_row): its rows are among the failures as bad_audio."
        )
    elif numbers.suspect:
        rows, share = some(numbers.suspect, "row"), percent(numbers.suspect, numbers.rows)
        page.checks_lead = (
            f"Beyond a limit: {rows}, {share}, stored all the same (on_bad_audio: keep); the index names the checks "
            "in its column problems. A check is a hint where to listen, not a verdict."
        )
    else:
        page.checks_lead = "Every row passes every check. That says nothing about what is spoken."
    page.checks = [
        CheckRow(name, MEASURED[name], _limit(limits[key]), count(numbers.problems[name]))
        for name, (_, key) in CHECKS.items()
    ]
    page.suspects = [_suspect_card(player, limits) for player in material.suspects]
    page.extremes = [_card(player, f"the {player.pick.reason}", "", with_voice=True) for player in material.extremes]


def _suspect_card(player: Player, limits: dict[str, Any]) -> Card:
    pick = player.pick
    limit = _limit(limits[CHECKS[pick.reason][1]])
    others = [name for name in pick.problems.split(",") if name != pick.reason]
    beyond = f"{number(pick.value)}, the limit is {limit}" + (f"; also {', '.join(others)}" if others else "")
    return _card(player, pick.reason, plain(beyond), with_voice=True)


def _limit(value: float | None) -> str:
    return "off" if value is None else f"{value:g}"


def _histograms(numbers: Numbers) -> list[Chart]:
    lengths = histogram(
        numbers.lengths, title="Duration", axis="seconds", unit=lambda value: f"{value:.2f} s", what="row"
    )
    return ([] if lengths is None else [lengths]) + numbers.qualities.histograms()


# --- failures ---------------------------------------------------------------------------------------------------------


def _failures_lead(material: Material) -> str:
    if not material.failures.rows:
        made = "Every row was made." if material.status.state == "finished" else "No row has failed so far."
        return made if not material.duplicates else f"{made} Some ids occur more than once."
    holds = "holds" if material.status.state == "finished" else "will hold, when the job is finished,"
    return (
        f"failures.parquet {holds} these rows with their columns and the reason of each; it is itself a manifest, once "
        "the cause is mended."
    )


def _failure_rows(failures: Failures, url: str) -> list[FailureRow]:
    most = max(failures.rows.values(), default=1)
    return [_failure_row(code, rows, most, failures.examples[code], url) for code, rows in failures.by_rows()]


def _failure_row(code: str, rows: int, most: int, examples: Sequence[Example], url: str) -> FailureRow:
    reason = REASONS.get(code)
    return FailureRow(
        code=plain(code),
        rows=count(rows),
        width=100 * rows / most,
        meaning="" if reason is None else reason.meaning,
        way_out="" if reason is None else reason.way_out,
        command="" if reason is None else reason.command.replace("OUTPUT", shlex.quote(url)),
        examples=[(plain(row_id), plain(voice), plain(message, SHOWN_MESSAGE)) for row_id, voice, message in examples],
    )


# --- the run, and what it was made from -------------------------------------------------------------------------------


def _add_run(page: Page, material: Material, run: Run) -> None:
    page.run = run
    workers = some(run.workers, "worker")
    shown = f" ({len(run.lanes)} are shown)" if len(run.lanes) < run.workers else ""
    again = (
        f"{some(run.again, 'shard')} took more than one try." if run.again else "Every shard was made at the first try."
    )
    sample = " A sample of the shards is drawn." if material.records < material.status.shards_done else ""
    padding = percent(material.status.padding, 1)
    page.run_lead = (
        f"By {workers}{shown}, in {length(run.seconds)} at work; {padding} of what the vocoder computed was padding. "
        f"{again}{sample}"
    )
    page.pauses = ", ".join(pause.label for pause in run.pauses)


def _made(material: Material) -> list[tuple[str, str]]:
    job, config = material.job, material.config
    engine, prints = config["engine"], job["fingerprints"]
    model = config["model"] + (f", file {config['model_file']}" if config["model_file"] else "")
    solved = EngineConfig.model_validate(engine).solved
    prompt = "whole" if engine["prompt_seconds"] is None else f"the first {engine['prompt_seconds']:g} s"
    limit = f", the first {count(job['limit'])} rows of it" if job["limit"] else ""
    fade = "" if config["start_fade"] else ", no start fade"
    rows = f"{some(material.files, 'file')}, {some(material.status.rows_total, 'row')}{limit}"
    wave = WaveConfig.model_validate(config["wave"])
    audio = f"{config['audio']} in {config['format']}, {wave.sample_rate / 1_000:g} kHz, mono"
    stored = "; ".join([f"{audio}, {ENCODINGS[config['audio']].description}", *wave.described])
    pieces = f"{some(material.numbers.joined, 'row')} of more than {count(config['max_tokens'])} tokens, cross-faded"
    values = [
        ("model", f"{model}  (fingerprint {_digest(prints['model'])})"),
        ("voices", f"{config['voices']}  (fingerprint {_digest(prints['voices'])})"),
        ("manifest", f"{config['manifest']}  ({rows})"),
        ("plan", f"{some(material.status.shards_total, 'shard')}  (digest {_digest(job['plan'])})"),
        ("stored as", f"{stored}; {size(material.stored_bytes)}"),
        ("engine", f"{engine['dtype']}, {solved}, prompt: {prompt}{fade}"),
        ("made in pieces", pieces),
        ("seed", f"{config['seed']}, with each row's id, where the manifest has no seeds"),
        ("versions", ", ".join(f"{name} {version}" for name, version in job["versions"].items())),
        ("tried again", f"{some(material.tried_again, 'failed row')} in {some(material.rounds, 'round')}"),
        ("begun", moment(job["created_at"])),
        ("output", material.url),
    ]
    hidden = {"tried again": not material.rounds, "made in pieces": config["on_long"] != "split"}
    return [(name, plain(value, SHOWN_MESSAGE)) for name, value in values if not hidden.get(name)]


def _digest(text: str) -> str:
    return text[:DIGEST_DIGITS]
