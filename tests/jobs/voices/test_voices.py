"""Voice tables, made from real audio files by the tiny model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from jobs.errors import InputError
from jobs.measures.loudness import integrated_loudness
from jobs.storage.folders import Folder
from jobs.voices import parts as voice_parts
from jobs.voices.build import BuildReport, VoiceBuild
from jobs.voices.parts import VoiceMaker
from jobs.voices.sources import find_sources
from jobs.voices.table import ROW_GROUP_VOICES, VoiceTable
from s3gen import S3GenModel, Voice
from tests.conftest import relative_error, speech_like

ROUNDING = 1e-5  # float32; a log-mel's weakest bins are differences of large numbers


class CountingModel:
    """The real model, with a count of the clips it has heard."""

    def __init__(self, model: S3GenModel) -> None:
        self._model = model
        self.device = model.device
        self.heard = 0

    def voice_fingerprint(self) -> str:
        return self._model.voice_fingerprint()

    def embed_refs(self, wavs: Sequence[np.ndarray], rates: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        self.heard += len(wavs)
        return self._model.embed_refs(wavs, rates)


class SmallModel(CountingModel):
    """One with memory for so many seconds, and a dislike of one rate."""

    def __init__(self, model: S3GenModel, error: Exception, *, seconds: float = 1e9, refused: int = 0) -> None:
        super().__init__(model)
        self.calls: list[int] = []
        self._error, self._seconds, self._refused = error, seconds, refused

    def embed_refs(self, wavs: Sequence[np.ndarray], rates: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        self.calls.append(len(wavs))
        if self._refused in rates:
            raise ValueError(f"{self._refused} Hz is too much")
        if sum(len(wav) / rate for wav, rate in zip(wavs, rates, strict=True)) > self._seconds:
            raise self._error
        return super().embed_refs(wavs, rates)


def _clip(path: Path, seconds: float = 0.6, rate: int = 16_000, seed: int = 0, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech_like(seconds, rate, seed=seed).numpy(), rate, **options)
    return path


def _build(
    model: S3GenModel | CountingModel,
    clips: Path,
    out: Path,
    *,
    append: bool = False,
    max_seconds: float | None = None,
    loudness: float | None = None,
    parts: int | None = None,
) -> BuildReport | None:
    """One build; with `parts` it stops, as if killed, after so many of them."""
    sources, failures = find_sources(str(clips))
    build = VoiceBuild(
        str(out),
        None,
        voice_fingerprint=model.voice_fingerprint(),
        max_seconds=max_seconds,
        loudness=loudness,
        append=append,
    )
    folder = Folder(build.parts_url)
    maker = VoiceMaker(
        model,  # type: ignore[arg-type]
        folder,
        max_seconds=build.max_seconds,
        loudness=build.loudness,
    )
    reports = [maker.run(part) for part in build.parts(sources)[:parts]]
    return build.finish(reports, failures) if parts is None else None


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    for seed, name in enumerate(["b", "a", "sub/c.d", "ä"]):
        _clip(folder / f"{name}.wav", seed=seed)
    return folder


def test_a_voice_from_the_table_is_the_voice_of_its_clip(tiny_model: S3GenModel, clips: Path, tmp_path: Path) -> None:
    report = _build(tiny_model, clips, tmp_path / "v.parquet")
    assert report is not None
    assert (report.voices, report.total, report.failures) == (4, 4, [])
    table = VoiceTable.open(str(tmp_path / "v.parquet"))
    table.check_model(tiny_model.voice_fingerprint())
    for name in ["a", "sub/c.d", "ä"]:
        wav, rate = soundfile.read(clips / f"{name}.wav", dtype="float32")
        want, got = Voice.from_ref(tiny_model.embed_ref(torch.from_numpy(wav), rate)), table.get(name)
        assert got is not None
        assert torch.equal(got.prompt_token, want.prompt_token)
        # The table's was in company.
        assert relative_error(got.prompt_feat, want.prompt_feat) < ROUNDING
        assert relative_error(got.embedding, want.embedding) < ROUNDING
    assert [table.get(name) for name in ("", "aa", "zz", "A")] == [None] * 4


def test_bad_clips_are_reported_with_their_reason_and_the_others_proceed(
    tiny_model: S3GenModel, clips: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 24_000)
    broken = noise.copy()
    broken[12_000] = np.nan
    soundfile.write(clips / "nan.wav", broken, 24_000, subtype="FLOAT")
    soundfile.write(clips / "silent.flac", noise * 1e-4, 24_000)
    soundfile.write(clips / "short.ogg", noise[:11_999], 24_000)
    (clips / "text.wav").write_text("not audio")
    soundfile.write(clips / "long.flac", np.tile(noise[:, None], (3, 2)), 8_000, subtype="PCM_24")
    report = _build(tiny_model, clips, tmp_path / "v.parquet", max_seconds=2.0)
    assert report is not None
    found = {failure.voice_id: failure.error for failure in report.failures}
    assert found == {"nan": "not_finite", "silent": "silent", "short": "too_short", "text": "unreadable"}
    assert pq.read_table(report.failures_url).column("voice_id").to_pylist() == sorted(found)
    rows = {row["voice_id"]: row for row in pq.read_table(tmp_path / "v.parquet").to_pylist()}
    assert list(rows) == ["a", "b", "long", "sub/c.d", "ä"]
    assert (rows["long"]["duration"], rows["long"]["sample_rate"]) == (2.0, 8_000)
    assert rows["long"]["frames"] == 2 * rows["long"]["tokens"] == 100
    assert not (tmp_path / "v.parquet.parts").exists()


def test_a_build_that_was_killed_does_not_hear_the_same_clips_again(
    tiny_model: S3GenModel, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.voices.build.PART_VOICES", 2)
    out, undisturbed = tmp_path / "v.parquet", tmp_path / "w.parquet"
    model = CountingModel(tiny_model)
    _build(model, clips, out, parts=1)
    assert model.heard == 2
    assert not out.exists()
    _build(model, clips, out)
    assert model.heard == 4
    _build(tiny_model, clips, undisturbed)
    assert out.read_bytes() == undisturbed.read_bytes()


def test_a_clip_that_changed_since_the_kill_is_heard_again(
    tiny_model: S3GenModel, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.voices.build.PART_VOICES", 2)
    model = CountingModel(tiny_model)
    _build(model, clips, tmp_path / "v.parquet", parts=1)
    _clip(clips / "a.wav", seed=99)
    _build(model, clips, tmp_path / "v.parquet")
    assert model.heard == 2 + 4


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no memory")],
)
def test_out_of_memory_loses_a_part(tiny_model: S3GenModel, clips: Path, tmp_path: Path, error: Exception) -> None:
    model = SmallModel(tiny_model, error, seconds=1.3)
    report = _build(model, clips, tmp_path / "v.parquet")
    assert report is not None
    assert model.calls == [4, 2, 2]
    assert (report.voices, report.failures) == (4, [])
    assert pq.read_table(tmp_path / "v.parquet").column("voice_id").to_pylist() == ["a", "b", "sub/c.d", "ä"]


@pytest.mark.parametrize(("error", "seconds"), [(MemoryError("none left"), 0.1), (RuntimeError("a bug"), 1.3)])
def test_an_error_that_no_smaller_group_mends_is_hidden(
    tiny_model: S3GenModel, clips: Path, tmp_path: Path, error: Exception, seconds: float
) -> None:
    with pytest.raises(type(error), match=str(error)):
        _build(SmallModel(tiny_model, error, seconds=seconds), clips, tmp_path / "v.parquet")
    assert not (tmp_path / "v.parquet").exists()


def test_a_clip_that_the_model_refuses_takes_its_group_with_it(
    tiny_model: S3GenModel, clips: Path, tmp_path: Path
) -> None:
    _clip(clips / "c.wav", rate=12_000, seed=4)
    report = _build(SmallModel(tiny_model, ValueError(), refused=12_000), clips, tmp_path / "v.parquet")
    assert report is not None
    assert [(f.voice_id, f.error, f.message) for f in report.failures] == [
        ("c", "not_embedded", "12000 Hz is too much")
    ]
    assert report.voices == 4


def test_a_rate_that_cannot_be_resampled_takes_its_group_with_it(
    tiny_model: S3GenModel, clips: Path, tmp_path: Path
) -> None:
    _clip(clips / "c.wav", rate=44_101, seed=4)
    report = _build(tiny_model, clips, tmp_path / "v.parquet")
    assert report is not None
    (failure,) = report.failures
    assert (failure.voice_id, failure.error) == ("c", "not_embedded")
    assert "44101" in failure.message
    assert report.voices == 4


def test_groups_and_threads_change_order_or_bytes(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    names = [f"v{number:02d}" for number in range(23)]
    for seed, name in enumerate(names):
        _clip(
            tmp_path / "clips" / f"{name}.wav", float(rng.uniform(0.5, 1.2)), rate=(16_000, 24_000)[seed % 2], seed=seed
        )
    monkeypatch.setattr("jobs.voices.parts.GROUP_VOICES", 5)
    first = tmp_path / "first.parquet"
    for out in (first, tmp_path / "second.parquet"):
        _build(tiny_model, tmp_path / "clips", out)
    assert first.read_bytes() == (tmp_path / "second.parquet").read_bytes()
    table = pq.read_table(first)
    assert table.column("voice_id").to_pylist() == names
    for name, digest in zip(names, table.column("source_digest").to_pylist(), strict=True):
        assert digest == hashlib.sha256((tmp_path / "clips" / f"{name}.wav").read_bytes()).hexdigest()
    monkeypatch.setattr("jobs.voices.parts.GROUP_VOICES", 64)
    _build(tiny_model, tmp_path / "clips", tmp_path / "third.parquet")
    other = pq.read_table(tmp_path / "third.parquet")
    assert other.column("prompt_token").to_pylist() == table.column("prompt_token").to_pylist()


def test_clips_are_read_far_ahead_of_the_model(
    tiny_model: S3GenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(12):
        _clip(tmp_path / "clips" / f"{seed:02d}.wav", seed=seed)
    monkeypatch.setattr("jobs.voices.parts.GROUP_VOICES", 2)
    read = voice_parts._read_clip
    begun: list[str] = []
    monkeypatch.setattr(voice_parts, "_read_clip", lambda url, *rest: begun.append(url) or read(url, *rest))

    class Watching(CountingModel):
        def embed_refs(self, wavs: Sequence[np.ndarray], rates: Sequence[int]) -> list[dict[str, torch.Tensor]]:
            assert len(begun) <= self.heard + 2 * len(wavs)
            return super().embed_refs(wavs, rates)

    model = Watching(tiny_model)
    _build(model, tmp_path / "clips", tmp_path / "v.parquet")
    assert model.heard == len(begun) == 12


def test_longer_clips_come_in_as_large_groups(
    tiny_model: S3GenModel, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SmallModel(tiny_model, ValueError())
    _build(model, clips, tmp_path / "v.parquet", max_seconds=voice_parts.GROUP_SECONDS / 2)
    assert model.calls == [2, 2]


def test_append_adds_and_skips_and_never_replaces(tiny_model: S3GenModel, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.parquet"
    _build(tiny_model, clips, out, max_seconds=5.0)
    before = VoiceTable.open(str(out))
    old = before.get("a")
    _clip(clips / "aa.wav", seed=7)
    _clip(clips / "a.wav", seed=8)
    model = CountingModel(tiny_model)
    report = _build(model, clips, out, append=True)
    assert report is not None
    assert model.heard == 1
    assert (report.voices, report.kept, report.total) == (1, 3, 5)
    assert [(f.voice_id, f.error) for f in report.failures] == [("a", "voice_exists")]
    after = VoiceTable.open(str(out))
    assert after.max_seconds == 5.0
    assert after.digest != before.digest
    assert pq.read_table(out).column("voice_id").to_pylist() == ["a", "aa", "b", "sub/c.d", "ä"]
    got = after.get("a")
    assert got is not None
    assert old is not None
    assert torch.equal(got.prompt_feat, old.prompt_feat)


def test_a_forgotten_append_costs_the_voices_that_a_table_has(
    tiny_model: S3GenModel, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.parquet"
    _build(tiny_model, clips, out)
    before = out.read_bytes()
    _clip(tmp_path / "other/a.wav", seed=9)
    _clip(tmp_path / "other/new.wav", seed=10)
    with pytest.raises(InputError, match=r"v\.parquet is there already.*lacks 3 of its voices, such as 'b'.*--append"):
        _build(tiny_model, tmp_path / "other", out)
    assert out.read_bytes() == before
    assert not (tmp_path / "v.parquet.parts").exists()
    # The same once more, or more than these, costs none.
    _build(tiny_model, clips, out)
    assert out.read_bytes() == before
    _clip(clips / "new.wav", seed=10)
    _build(tiny_model, clips, out)
    assert VoiceTable.open(str(out)).voices == 5
    out.write_bytes(b"somebody's table of something else")
    with pytest.raises(InputError, match=r"v\.parquet is there already and is not replaced.*or delete it"):
        _build(tiny_model, clips, out)


def test_a_quiet_and_a_loud_recording_of_one_voice_are_two_voices(tiny_model: S3GenModel, tmp_path: Path) -> None:
    """At one loudness they are the same, but for rounding; its number is that of the clip at 24 kHz."""
    clips, out = tmp_path / "clips", tmp_path / "v.parquet"
    clips.mkdir()
    wave = speech_like(2.0, 24_000, seed=1).numpy()
    for name, gain in (("loud", 1.0), ("quiet", 0.05)):
        soundfile.write(clips / f"{name}.wav", wave * gain, 24_000, subtype="FLOAT")
    _build(tiny_model, clips, out, loudness=-27.0)
    table = VoiceTable.open(str(out))
    assert table.loudness == -27
    loud, quiet = table.get_many(["loud", "quiet"]).values()
    assert torch.equal(loud.prompt_token, quiet.prompt_token)
    assert relative_error(loud.prompt_feat, quiet.prompt_feat) < 1e-4
    gain = 10 ** ((-27 - integrated_loudness(wave, 24_000)) / 20)
    by_hand = Voice.from_ref(tiny_model.embed_ref(torch.from_numpy(wave * np.float32(gain)), 24_000))
    assert relative_error(loud.prompt_feat, by_hand.prompt_feat) < ROUNDING
    _build(tiny_model, clips, tmp_path / "plain.parquet")
    plain = VoiceTable.open(str(tmp_path / "plain.parquet"))
    assert plain.loudness is None
    assert plain.digest != table.digest
    assert relative_error(plain.get_many(["loud"])["loud"].prompt_feat, by_hand.prompt_feat) > 0.01


def test_append_brings_voices_of_another_loudness_into_a_table(
    tiny_model: S3GenModel, clips: Path, tmp_path: Path
) -> None:
    out, plain = tmp_path / "v.parquet", tmp_path / "plain.parquet"
    _build(tiny_model, clips, out, loudness=-27.0)
    _build(tiny_model, clips, plain)
    with pytest.raises(InputError, match=r"--loudness -23: the clips of .* were brought to -27 LUFS; leave the"):
        _build(tiny_model, clips, out, loudness=-23.0, append=True)
    with pytest.raises(InputError, match=r"--loudness -27: the clips of .* were taken as loud as they are; leave the"):
        _build(tiny_model, clips, plain, loudness=-27.0, append=True)
    _build(tiny_model, clips, out, append=True)
    assert VoiceTable.open(str(out)).loudness == -27


@pytest.mark.parametrize("loudness", [3.0, -61.0, float("nan"), float("-inf")])
def test_a_loudness_that_no_voice_has_is_refused(tiny_model: S3GenModel, tmp_path: Path, loudness: float) -> None:
    with pytest.raises(InputError, match=r"--loudness .*: give -60 to 0 LUFS; Chatterbox Turbo has -27"):
        VoiceBuild(
            str(tmp_path / "v.parquet"), None, voice_fingerprint="f", max_seconds=None, loudness=loudness, append=False
        )


def test_a_clip_without_a_loudness_is_made_loud_noise(tiny_model: S3GenModel, tmp_path: Path) -> None:
    clips, out = tmp_path / "clips", tmp_path / "v.parquet"
    _clip(clips / "good.wav")
    faint = np.zeros(24_000, np.float32)
    faint[::6_000] = 0.002  # loud enough not to be silence
    soundfile.write(clips / "faint.wav", faint, 24_000, subtype="FLOAT")
    report = _build(tiny_model, clips, out, loudness=-27.0)
    assert report is not None
    assert report.voices == 1
    assert [(failure.voice_id, failure.error) for failure in report.failures] == [("faint", "silent")]
    assert "-70 LUFS or less" in str(report.failures[0].message)


def test_append_to_the_table_of_another_model_is_refused(tiny_model: S3GenModel, clips: Path, tmp_path: Path) -> None:
    _build(tiny_model, clips, tmp_path / "v.parquet")
    with pytest.raises(InputError, match="another tokenizer"):
        VoiceBuild(str(tmp_path / "v.parquet"), None, voice_fingerprint="other", max_seconds=None, append=True)
    with pytest.raises(InputError, match="cut at 10 s"):
        VoiceBuild(
            str(tmp_path / "v.parquet"),
            None,
            voice_fingerprint=tiny_model.voice_fingerprint(),
            max_seconds=3,
            append=True,
        )


def test_a_job_refuses_the_table_of_another_model(tiny_model: S3GenModel, clips: Path, tmp_path: Path) -> None:
    _build(tiny_model, clips, tmp_path / "v.parquet")
    with pytest.raises(InputError, match="make the table anew"):
        VoiceTable.open(str(tmp_path / "v.parquet")).check_model("0" * 64)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but not really PAR1", "parquet"])
def test_what_is_no_voice_table_is_refused_by_name(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "v.parquet"
    if content == "parquet":
        pq.write_table(pa.table({"voice_id": ["a"]}), path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"v\.parquet.*s3gen voices"):
        VoiceTable.open(str(path))


@pytest.fixture
def large(tiny_model: S3GenModel, tmp_path: Path) -> Path:
    """A table of 200 voices, all of one clip."""
    clip = _clip(tmp_path / "clip.wav")
    names = [f"v{number:03d}" for number in range(0, 400, 2)]
    lines = ["voice_id,path", *(f"{name},{clip}" for name in names)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    ref = tiny_model.embed_ref(*_heard(clip))

    class Once(CountingModel):
        def embed_refs(self, wavs: Sequence[np.ndarray], rates: Sequence[int]) -> list[dict[str, torch.Tensor]]:
            return [ref] * len(wavs)

    _build(Once(tiny_model), tmp_path / "list.csv", tmp_path / "large.parquet")
    return tmp_path / "large.parquet"


def _heard(clip: Path) -> tuple[torch.Tensor, int]:
    wav, rate = soundfile.read(clip, dtype="float32")
    return torch.from_numpy(wav), rate


def test_every_voice_of_a_large_table_is_found_and_no_other(large: Path) -> None:
    table = VoiceTable.open(str(large))
    assert table.voices == 200
    found = table.get_many(f"v{number:03d}" for number in range(-2, 403))
    assert sorted(found) == [f"v{number:03d}" for number in range(0, 400, 2)]


def test_a_few_voices_of_a_large_table_cost_a_few_row_groups(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = VoiceTable.open(str(large), cached_voices=3)
    read: list[int] = []
    original = table._read

    def counting(group: int, wanted: list[str]) -> dict[str, Voice]:
        read.append(group)
        return original(group, wanted)

    monkeypatch.setattr(table, "_read", counting)
    table.get_many(["v000", "v002", "v398", "v030", "nobody"])
    assert read == [0, 200 // ROW_GROUP_VOICES]
    assert len(table._cache) == 3
    table.get("v398")
    assert len(read) == 2
    table.get("v000")
    assert len(read) == 3
