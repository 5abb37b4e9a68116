"""Voice tables and clips that are damaged, that lie, or that are of something else."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from jobs.audio import audiofile
from jobs.audio.audiofile import UnreadableAudio, read_audio
from jobs.errors import InputError
from jobs.storage.folders import Folder
from jobs.voices.build import BuildReport, VoiceBuild
from jobs.voices.parts import VoiceMaker
from jobs.voices.sources import MAX_VOICE_ID_BYTES, find_sources
from jobs.voices.table import METADATA_KEY, SCHEMA, VoiceTable
from s3gen import S3GenModel
from tests.conftest import speech_like

Rows = list[dict[str, Any]]


# --- tables -----------------------------------------------------------------------------------------------------------


def rewritten(
    table: Path, to: Path, change: Callable[[Rows], object], *, settings: Any = None, group: int = 16, **options: Any
) -> Path:
    """The table with its rows or its settings changed, as somebody would do it by hand."""
    source = pq.ParquetFile(table)
    rows = source.read().to_pylist()
    change(rows)
    text = json.dumps(settings).encode() if settings is not None else source.schema_arrow.metadata[METADATA_KEY]
    schema = SCHEMA.with_metadata({METADATA_KEY: text})
    with pq.ParquetWriter(to, schema, **options) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=group)
        writer.add_key_value_metadata({"s3gen_voices_digest": "0" * 64})
    return to


def nothing(rows: Rows) -> None:
    pass


def test_a_table_as_it_is_has_its_voices(table: Path, tmp_path: Path) -> None:
    """What the other tests change; unchanged, it is read."""
    again = VoiceTable.open(str(rewritten(table, tmp_path / "v.parquet", nothing)))
    assert set(again.get_many(["anna", "bert", "de/carl.2", "other"])) == {"anna", "bert", "de/carl.2"}


def put(name: str, value: Any) -> Callable[[Rows], object]:
    return lambda rows: rows[0].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("prompt_token", [6561]), "speech token 6561"),
        (put("prompt_token", [-1, 5]), "speech token -1"),
        (put("prompt_token", []), "too short"),
        (put("prompt_token", None), "is damaged"),
        (put("prompt_token", [None, 1]), "is damaged"),
        (put("prompt_feat", [0.5] * 79), "is damaged"),
        (put("prompt_feat", [float("nan")] * 160), "not finite"),
        (put("prompt_feat", None), "is damaged"),
        (put("embedding", [float("inf")] * 192), "not finite"),
        (put("embedding", [1.0] * 191), "191 numbers, not 192"),
        (put("embedding", []), "0 numbers, not 192"),
    ],
)
def test_a_damaged_voice_is_used(table: Path, tmp_path: Path, change: Callable[[Rows], object], message: str) -> None:
    changed = VoiceTable.open(str(rewritten(table, tmp_path / "v.parquet", change)))
    assert changed.get("bert") is not None
    with pytest.raises(InputError, match=r"voices: .*v\.parquet: the voice 'anna' is damaged") as caught:
        changed.get("anna")
    assert message in str(caught.value)


def test_an_unsorted_table_hides_its_voices(table: Path, tmp_path: Path) -> None:
    turned = rewritten(table, tmp_path / "v.parquet", lambda rows: rows.reverse(), group=1)
    with pytest.raises(InputError, match=r"v\.parquet is not sorted by voice_id, or has one twice"):
        VoiceTable.open(str(turned))


@pytest.mark.parametrize("group", [1, 16])
def test_a_voice_that_is_there_twice_is_either_of_them(table: Path, tmp_path: Path, group: int) -> None:
    doubled = rewritten(table, tmp_path / "v.parquet", lambda rows: rows.insert(0, dict(rows[0])), group=group)
    with pytest.raises(InputError, match=r"v\.parquet is (not sorted by voice_id, or has|damaged).* twice"):
        VoiceTable.open(str(doubled)).get("anna")


def test_tables_without_what_makes_them_one_are_refused(table: Path, tmp_path: Path) -> None:
    good = json.loads(pq.ParquetFile(table).schema_arrow.metadata[METADATA_KEY])
    broken: list[Any] = [
        *([], "text", 5, {}, {"format_version": 99}, {**good, "format_version": "1"}),
        *({**good, "voice_fingerprint": None}, {**good, "max_seconds": "ten"}),
    ]
    for number, settings in enumerate(broken):
        path = rewritten(table, tmp_path / f"{number}.parquet", nothing, settings=settings)
        with pytest.raises(InputError, match=rf"voices: .*{number}\.parquet (has format version|does not say)"):
            VoiceTable.open(str(path))
    without = rewritten(table, tmp_path / "w.parquet", nothing, write_statistics=False)
    with pytest.raises(InputError, match="lost its row group statistics"):
        VoiceTable.open(str(without))
    renamed = pq.ParquetFile(table).read().rename_columns([*SCHEMA.names[:-1], "other"])
    pq.write_table(renamed, tmp_path / "r.parquet")
    for path in (tmp_path / "r.parquet", tmp_path / "absent.parquet", tmp_path):
        with pytest.raises(InputError, match="voices: "):
            VoiceTable.open(str(path))


def test_a_table_of_other_types_is_taken_for_one(table: Path, tmp_path: Path) -> None:
    whole = pq.ParquetFile(table).read()
    for name, kind in (("voice_id", pa.binary()), ("prompt_token", pa.list_(pa.float64())), ("embedding", pa.binary())):
        field = pa.field(name, kind)
        changed = whole.set_column(whole.schema.get_field_index(name), field, pa.nulls(len(whole), kind))
        pq.write_table(changed.replace_schema_metadata(whole.schema.metadata), tmp_path / "v.parquet")
        with pytest.raises(InputError, match="is a Parquet file, but not a voice table"):
            VoiceTable.open(str(tmp_path / "v.parquet"))


def test_a_table_cut_or_flipped_anywhere_ends_in_another_way_than_bad_input(table: Path, tmp_path: Path) -> None:
    """In a child, since such a file has ended processes before."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from jobs.errors import InputError\n"
        "from jobs.voices.table import VoiceTable\n"
        "whole, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])\n"
        "for at in range(0, len(whole), len(whole) // 120):\n"
        "    for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1:]):\n"
        "        path.write_bytes(data)\n"
        "        try:\n"
        "            VoiceTable.open(str(path)).get_many(['anna', 'bert', 'de/carl.2'])\n"
        "        except InputError as error:\n"
        "            assert 'voices: ' in str(error), error\n"
        "    print(at)\n"
    )
    command = [sys.executable, "-c", script, str(table), str(tmp_path / "v.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"after byte {done.stdout.split()[-1:]}: {done.stderr[-2000:]}"


# --- lists of clips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.jsonl", b"[" * 100_000),
        ("v.jsonl", b'{"voice_id": ' + b"9" * 10_000 + b', "path": "x"}'),
        ("v.jsonl", b'{"voice_id": "a"}'),
        ("v.jsonl", b"[1]\n"),
        ("v.jsonl", b"\xff\xfe"),
        ("v.csv", b"voice_id,path\n" + b"x" * 200_000 + b",b\n"),
        ("v.csv", b"id,file\na,b\n"),
        ("v.csv", b""),
        ("v.parquet", b""),
        ("v.parquet", b"PAR1" * 10),
    ],
)
def test_a_list_that_is_none_ends_in_a_traceback(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}"):
        find_sources(str(tmp_path / name))


def test_ids_and_paths_of_every_kind_are_sources_or_failures(tmp_path: Path) -> None:
    entries = [
        {"voice_id": "../../etc/passwd", "path": "../a.wav"},
        {"voice_id": "/abs", "path": "/etc/passwd"},
        {"voice_id": "C:\\con\x00", "path": "nul\x00.wav"},
        {"voice_id": "x" * 10_000, "path": "a.wav"},
        {"voice_id": "x" * MAX_VOICE_ID_BYTES, "path": "a.wav"},
        {"voice_id": "\ud800", "path": "a.wav"},
        {"voice_id": ["a"], "path": {"b": 1}},
        {"voice_id": "a", "path": "a.wav"},
        {"voice_id": "a", "path": "b.wav"},
    ]
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, entries)))
    sources, failures = find_sources(str(tmp_path / "v.jsonl"))
    assert len(sources) + len(failures) == len(entries)
    assert sorted(failure.error for failure in failures) == [
        *("duplicate_voice_id", "long_voice_id", "null_voice_id", "null_voice_id"),
    ]


# --- clips ------------------------------------------------------------------------------------------------------------


def wav(
    samples: bytes, *, channels: int = 1, rate: int = 24_000, data: int | None = None, riff: int | None = None
) -> bytes:
    """A 16-bit file; ``data`` and ``riff`` are the sizes that its header claims."""
    size = len(samples) if data is None else data
    block = min(channels * 2, 65_535)
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", (36 + size if riff is None else riff) & 0xFFFFFFFF, b"WAVE", b"fmt ",
                       16, 1, channels, rate, min(rate * block, 2**32 - 1), block, 16)  # fmt: skip
    return head + struct.pack("<4sI", b"data", size) + samples


def noise(seconds: float = 1.0) -> bytes:
    return (speech_like(seconds, 24_000).numpy() * 30_000).astype("<i2").tobytes()


def encoded(samples: np.ndarray[Any, Any], rate: int = 24_000, **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


HOSTILE_CLIPS: dict[str, tuple[Callable[[], bytes], str | None]] = {  # what it is reported as; None: a voice
    "cut.wav": (lambda: wav(noise())[:40], "unreadable"),
    "longer-than-it-says.wav": (lambda: wav(noise(), data=len(noise()) // 2 - 4_000), "too_short"),
    "shorter-than-it-says.wav": (lambda: wav(noise(), data=2**31), None),
    "endless.wav": (lambda: wav(noise(), data=2**32 - 1, riff=2**32 - 1), None),
    "no-channels.wav": (lambda: wav(noise(), channels=0), "unreadable"),
    "a-thousand-channels.wav": (
        lambda: wav(np.tile(np.frombuffer(noise(), "<i2")[:, None], 1_000).tobytes(), channels=1_000),
        None,
    ),
    "more-channels-than-any.wav": (lambda: wav(noise(), channels=65_535), "unreadable"),
    "no-rate.wav": (lambda: wav(noise(), rate=0), "unreadable"),
    "a-rate-of-gigahertz.wav": (lambda: wav(noise(), rate=2**31 - 1), "unreadable"),
    "a-rate-of-one.wav": (lambda: wav(noise(), rate=1), "unreadable"),
    "high-rate.wav": (lambda: encoded(speech_like(1.0, 192_000).numpy(), 192_000, format="WAV"), None),
    "no-samples.wav": (lambda: wav(b""), "too_short"),
    "none.flac": (lambda: encoded(np.zeros(0), format="FLAC"), "unreadable"),
    "nan.wav": (lambda: encoded(np.full(24_000, np.nan), format="WAV", subtype="FLOAT"), "not_finite"),
    "one-infinity.wav": (
        lambda: encoded(np.where(np.arange(24_000) == 9, np.inf, 0.1), format="WAV", subtype="DOUBLE"),
        "not_finite",
    ),
    "beyond-float32.wav": (lambda: encoded(np.full(24_000, 1e300), format="WAV", subtype="DOUBLE"), "not_finite"),
    "loud.wav": (
        lambda: encoded(speech_like(1.0, 24_000).numpy() * 1e35, format="WAV", subtype="FLOAT"),
        "too_loud",
    ),
    "sixteen-bits-as-floats.wav": (
        lambda: encoded(speech_like(1.0, 24_000).numpy() * 32_768, format="WAV", subtype="FLOAT"),
        None,
    ),
    "an-hour-of-silence.flac": (lambda: encoded(np.zeros(3_600 * 8_000, np.int16), 8_000, format="FLAC"), "silent"),
    "flac-that-claims-days.flac": (lambda: claimed_flac(2**36 - 1), "unreadable"),
    "text.mp3": (lambda: b"<html>404</html>" * 100, "unreadable"),
    "nothing.ogg": (lambda: b"", "unreadable"),
    "zeros.mp3": (lambda: bytes(100_000), "unreadable"),
}


def claimed_flac(samples: int) -> bytes:
    """A good file of a second whose header claims so many samples."""
    data = bytearray(encoded(speech_like(1.0, 24_000).numpy(), format="FLAC"))
    place = 8 + 10  # after "fLaC", a block's head, and what comes before rate, channels, width and length
    packed = int.from_bytes(data[place : place + 8], "big")
    data[place : place + 8] = (packed >> 36 << 36 | samples).to_bytes(8, "big")
    return bytes(data)


@pytest.fixture(scope="module")
def built(tiny_model: S3GenModel, tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    """One table of all of them, beside a good clip."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "in").mkdir()
    (folder / "in" / "good.wav").write_bytes(wav(noise()))
    for name, (build, _) in HOSTILE_CLIPS.items():
        (folder / "in" / name).write_bytes(build())
    return build_voices(tiny_model, folder / "in", folder / "v.parquet")


def build_voices(model: S3GenModel, clips: Path, out: Path) -> BuildReport:
    sources, failures = find_sources(str(clips))
    build = VoiceBuild(str(out), None, voice_fingerprint=model.voice_fingerprint(), max_seconds=None, append=False)
    maker = VoiceMaker(model, Folder(build.parts_url), max_seconds=build.max_seconds)
    return build.finish([maker.run(part) for part in build.parts(sources)], failures)


@pytest.mark.parametrize("name", HOSTILE_CLIPS)
def test_a_hostile_clip_is_a_voice_or_a_reported_failure(built: BuildReport, name: str) -> None:
    stem = name.rpartition(".")[0]
    found = {failure.source.rpartition("/")[2]: failure for failure in built.failures if failure.source is not None}
    code = HOSTILE_CLIPS[name][1]
    assert (found[name].error if name in found else None) == code, found.get(name)
    voice = VoiceTable.open(built.url).get(stem)
    assert (voice is None) == (code is not None)
    if voice is not None:
        assert bool(torch.isfinite(voice.prompt_feat).all() and torch.isfinite(voice.embedding).all())


def test_a_hostile_clip_spoils_its_neighbours(built: BuildReport, tiny_model: S3GenModel, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.wav").write_bytes(wav(noise()))
    alone = VoiceTable.open(build_voices(tiny_model, tmp_path / "in", tmp_path / "v.parquet").url).get("good")
    among = VoiceTable.open(built.url).get("good")
    assert alone is not None
    assert among is not None
    assert torch.equal(alone.prompt_token, among.prompt_token)
    assert torch.allclose(alone.prompt_feat, among.prompt_feat, atol=1e-4)
    assert torch.allclose(alone.embedding, among.embedding, atol=1e-4)


def test_a_long_clip_of_many_channels_is_held_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audiofile, "READ_SAMPLES", 1 << 16)
    data = encoded(np.zeros((20 * 8_000, 32), np.int16), 8_000, format="WAV")
    tracemalloc.start()
    samples, rate = read_audio(io.BytesIO(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(samples), rate) == (160_000, 8_000)
    assert peak < 6 * samples.nbytes  # all channels at once would be 32 times as much


def test_blocks_change_what_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    data = encoded(rng.uniform(-1, 1, (9_999, 3)), 8_000, format="WAV", subtype="FLOAT")
    whole, _ = read_audio(io.BytesIO(data))
    monkeypatch.setattr(audiofile, "READ_SAMPLES", 1_000)
    pieces, _ = read_audio(io.BytesIO(data))
    cut, _ = read_audio(io.BytesIO(data), 0.5)
    assert np.array_equal(whole, pieces)
    assert np.array_equal(whole[:4_000], cut)


def test_a_rate_that_no_microphone_has_decides_how_much_memory_is_asked_for() -> None:
    for rate in (1, 999, 768_001, 2**31 - 1):
        with pytest.raises(UnreadableAudio, match=f"it claims a rate of {rate} Hz"):
            read_audio(io.BytesIO(wav(noise(), rate=rate)), 10.0)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e300, 601.0, 0.1, -1.0])
def test_max_seconds_beyond_reason_are_refused(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(InputError, match="--max-seconds"):
        VoiceBuild(str(tmp_path / "v.parquet"), None, voice_fingerprint="f", max_seconds=seconds, append=False)
