"""Checkpoints that are damaged, that lie, or that want to run code: refused by name, at no great cost."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from s3gen import HiFTNetConfig, HiFTNetModel, S3GenConfig, S3GenModel, checkpoint

MISSED = "mel2wav.conv_pre.bias"


@pytest.fixture(scope="module")
def weights(tiny_model):
    return checkpoint.published_weights(tiny_model)


def write(folder: Path, weights, config, name="s3gen.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".pt"):
        torch.save(weights, folder / name)
    else:
        metadata = {"s3gen_config": json.dumps(config)} if config is not None else None
        safetensors.torch.save_file({k: v.contiguous() for k, v in weights.items()}, folder / name, metadata=metadata)
    return folder


# --- code -------------------------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, call, *arguments) -> None:
        self._call, self._arguments = call, arguments

    def __reduce__(self):
        return (self._call, self._arguments)


def evils(canary: Path):
    yield Evil(os.system, f"touch {canary}")
    yield Evil(eval, f"open({str(canary)!r}, 'w').close()")
    yield Evil(exec, f"open({str(canary)!r}, 'w').close()")
    yield Evil(open, str(canary), "w")
    yield Evil(__import__("subprocess").check_call, ["touch", str(canary)])
    yield Evil(getattr, Evil(__import__, "os"), "getcwd")
    yield Evil(torch.load, str(canary))


@pytest.mark.parametrize("name", ["s3gen.pt", "weights.bin", "weights.pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_run(tmp_path, name, zipped):
    canary = tmp_path / "canary"
    for number, evil in enumerate(evils(canary)):
        for state in ({"flow.weight": torch.zeros(1), "evil": evil}, evil, [evil], {evil: torch.zeros(1)}):
            path = tmp_path / f"{number}" / name
            path.parent.mkdir(exist_ok=True)
            torch.save(state, path, _use_new_zipfile_serialization=zipped)
            with pytest.raises(ValueError, match=r"cannot be read as plain weights .* pickled code are refused"):
                S3GenModel.from_pretrained(path)
        (path.parent / name).write_bytes(pickle.dumps(evil))
        with pytest.raises(ValueError, match="cannot be read as plain weights"):
            HiFTNetModel.from_pretrained(path)
    assert not canary.exists()


def test_code_in_a_pickle_is_run_when_it_comes_from_a_url(tmp_path):
    import fsspec

    data = io.BytesIO()
    torch.save({"evil": Evil(os.system, f"touch {tmp_path / 'canary'}")}, data)
    fsspec.filesystem("memory").pipe_file("/hostile/s3gen.pt", data.getvalue())
    with pytest.raises(ValueError, match=r"memory://hostile/s3gen\.pt cannot be read as plain weights"):
        S3GenModel.from_pretrained("memory://hostile")
    assert not (tmp_path / "canary").exists()


def test_a_store_that_does_not_answer_has_no_checkpoint(monkeypatch):
    """It is throttled, or refuses the key: to be waited for or mended, not a wrong name."""
    import fsspec

    def busy(self, path, **kwargs):
        raise PermissionError("503 SlowDown")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", busy)
    with pytest.raises(PermissionError, match="SlowDown"):
        S3GenModel.from_pretrained("memory://busy/model")


# --- .pt files --------------------------------------------------------------------------------------------------------


def test_a_tensor_that_repeats_one_value_takes_all_memory(tmp_path):
    """Two bytes on disk that claim to be a terabyte."""
    huge = torch.zeros(1, dtype=torch.float16).expand(1 << 20, 1 << 19)
    write(tmp_path, {MISSED: huge}, None, "s3gen.pt")
    with pytest.raises(ValueError, match=r"1 entries that are no plain tensors with all their values: mel2wav"):
        S3GenModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (1 << 30, 1 << 30)),
        torch.zeros(1 << 40, device="meta"),
        torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "meta", "quantised"],
)
def test_a_tensor_of_another_make_is_taken_for_a_plain_one(tmp_path, value):
    write(tmp_path, {MISSED: value}, None, "s3gen.pt")
    with pytest.raises(ValueError, match=r"s3gen\.pt"):
        S3GenModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "state", [[torch.zeros(1)], torch.zeros(1), {"a": 1}, {"a": {"b": torch.zeros(1)}}, {7: torch.zeros(1)}, 5, "x"]
)
def test_what_is_no_state_dictionary_is_taken_for_one(tmp_path, state):
    write(tmp_path, state, None, "s3gen.pt")
    with pytest.raises(ValueError, match=r"s3gen\.pt (is not a state dictionary|holds 1 entries)"):
        S3GenModel.from_pretrained(tmp_path)


def test_a_pt_file_cut_or_flipped_anywhere_ends_in_another_way_than_an_error(tmp_path):
    file = io.BytesIO()
    torch.save({MISSED: torch.zeros(64)}, file)
    whole = file.getvalue()
    path = tmp_path / "s3gen.pt"
    for at in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[at] ^= 0xFF
        for data in (whole[:at], bytes(flipped)):
            path.write_bytes(data)
            with pytest.raises(ValueError, match=r"s3gen\.pt"):
                S3GenModel.from_pretrained(path)


def test_a_zip_that_claims_terabytes_is_believed(tmp_path):
    file = io.BytesIO()
    torch.save({MISSED: torch.zeros(1024)}, file)
    data = bytearray(file.getvalue())
    at = data.index(b"PK\x01\x02", data.rindex(b"data/0") - 100)
    for offset in (20, 24):  # both sizes of an entry of the directory
        data[at + offset : at + offset + 4] = b"\xfe\xff\xff\xff"
    (tmp_path / "s3gen.pt").write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"s3gen\.pt"):
        S3GenModel.from_pretrained(tmp_path)


def test_a_zip_of_zeros_takes_all_memory(tmp_path):
    file = io.BytesIO()
    torch.save({MISSED: torch.zeros(4)}, file)
    source = zipfile.ZipFile(file)
    with zipfile.ZipFile(tmp_path / "s3gen.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in source.namelist():
            packed.writestr(name, bytes(1 << 24) if name.endswith("data/0") else source.read(name))
    with pytest.raises(ValueError, match=r"s3gen\.pt cannot be read as plain weights \(its entry .*is compressed"):
        S3GenModel.from_pretrained(tmp_path)


# --- safetensors ------------------------------------------------------------------------------------------------------


def safetensors_file(header, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(start: int, stop: int, shape=None, dtype: str = "F32"):
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


FORGED = {
    "a header beyond the file": safetensors_file({"a": entry(0, 4)}, bytes(4), length=2**40),
    "a header of all numbers": safetensors_file({"a": entry(0, 4)}, bytes(4), length=2**64 - 1),
    "values beyond the file": safetensors_file({"a": entry(0, 2**40)}, bytes(4)),
    "a shape beyond its values": safetensors_file({"a": entry(0, 4, [2**40])}, bytes(4)),
    "a shape beyond all numbers": safetensors_file({"a": entry(0, 4, [2**33, 2**33])}, bytes(4)),
    "offsets that overlap": safetensors_file({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "offsets that go back": safetensors_file({"a": entry(8, 4)}, bytes(12)),
    "offsets below the file": safetensors_file({"a": entry(-4, 0)}, bytes(4)),
    "a hole": safetensors_file({"a": entry(4, 8)}, bytes(8)),
    "a type that is none": safetensors_file({"a": entry(0, 4, dtype="PICKLE")}, bytes(4)),
    "a header that is a list": safetensors_file([1, 2]),
    "a header that is no JSON": safetensors_file(b"{" * 50),
    "a header as deep as a well": safetensors_file(b"[" * 100_000),
    "a name twice": safetensors_file(b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 4)).encode(),) * 2), bytes(4)),
    "metadata that is no text": safetensors_file({"__metadata__": {"s3gen_config": 5}, "a": entry(0, 4)}, bytes(4)),
}


@pytest.mark.parametrize("remote", [False, True], ids=["file", "url"])
@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_header_is_believed(tmp_path, forgery, remote):
    if remote:
        import fsspec

        fsspec.filesystem("memory").pipe_file("/forged/s3gen.safetensors", FORGED[forgery])
    (tmp_path / "s3gen.safetensors").write_bytes(FORGED[forgery])
    with pytest.raises(ValueError, match=r"s3gen\.safetensors"):
        S3GenModel.from_pretrained("memory://forged" if remote else tmp_path)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s3gen.safetensors", "s3gen.pt"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_make_a_job_of_failures(tiny_model, weights, tmp_path, name, value):
    broken = {**weights, MISSED: weights[MISSED].clone()}
    broken[MISSED][3] = value
    if name.endswith(".pt"):
        folder = write(tmp_path, broken, None, name)
        # A file without a configuration is of the full size: the tiny one's weights are refused for their shapes, too.
        message = r"s3gen\.pt do not fit"
    else:
        folder = write(tmp_path, broken, tiny_model.config.to_dict(), name)
        message = rf"1 with values that are not finite: {MISSED}"
    with pytest.raises(ValueError, match=message):
        S3GenModel.from_pretrained(folder)


def test_halves_too_large_for_their_type_are_not_finite(tiny_model, weights, tmp_path):
    broken = {**weights, MISSED: torch.full_like(weights[MISSED], 1e300, dtype=torch.float64)}
    with pytest.raises(ValueError, match=rf"not finite: {MISSED}"):
        S3GenModel.from_pretrained(write(tmp_path, broken, tiny_model.config.to_dict()))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_type_are_refused_by_name(tiny_model, weights, tmp_path, dtype):
    broken = {**weights, MISSED: weights[MISSED].to(dtype)}
    with pytest.raises(ValueError, match=rf"1 of another type: {MISSED} is {dtype}"):
        S3GenModel.from_pretrained(write(tmp_path, broken, tiny_model.config.to_dict()))


def test_a_magnitude_that_fits_no_direction_unfolds_to_terabytes(tiny_model, weights, tmp_path):
    broken = dict(weights)
    stem = "mel2wav.conv_pre"
    del broken[f"{stem}.weight"]
    broken[f"{stem}.weight_g"], broken[f"{stem}.weight_v"] = torch.ones(1 << 20, 1, 1), torch.ones(1, 1, 1 << 20)
    with pytest.raises(ValueError, match=r"the magnitude of mel2wav\.conv_pre\.weight_v is \(1048576, 1, 1\)"):
        S3GenModel.from_pretrained(write(tmp_path, broken, tiny_model.config.to_dict()))


def test_a_weight_under_two_names_is_whichever_comes_last(tiny_model, weights, tmp_path):
    name = next(name for name in weights if name.startswith("tokenizer."))
    doubled = {**weights, name.replace("tokenizer.", "tokenizer.s3_model.", 1): weights[name] + 1}
    with pytest.raises(ValueError, match="is there twice"):
        S3GenModel.from_pretrained(write(tmp_path, doubled, tiny_model.config.to_dict()))


def test_onnx_alone_is_no_checkpoint(tmp_path):
    (tmp_path / "speech_tokenizer_v2.onnx").write_bytes(b"onnx")
    with pytest.raises(FileNotFoundError, match=r"expected one of .*there are: speech_tokenizer_v2\.onnx"):
        S3GenModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected \.safetensors or \.pt"):
        S3GenModel.from_pretrained(tmp_path / "speech_tokenizer_v2.onnx")


# --- configurations ---------------------------------------------------------------------------------------------------

BOMBS = {
    "as deep as a well": "[" * 200_000,
    "deep objects": '{"a":' * 200_000,
    "a number of a million digits": '{"encoder_num_blocks": ' + "9" * 1_000_000 + "}",
    "larger than any": " " * (2 << 20) + "{}",
    "a list": "[]",
    "nothing": "",
    "no text": "\x00\x01",
    "blocks by the billion": '{"encoder_num_blocks": 1000000000}',
    "layers by the billion": '{"tokenizer_layers": 1000000000}',
    "a width by the billion": '{"encoder_linear_units": 1000000000}',
    "blocks by the list": json.dumps({"speaker_blocks": [24] * 10_000}),
    "blocks below none": '{"decoder_num_mid_blocks": -1}',
    "no heads": '{"encoder_attention_heads": 0}',
    "heads of text": '{"encoder_attention_heads": "8"}',
    "half a head": '{"encoder_attention_heads": 8.5}',
    "true heads": '{"encoder_attention_heads": true}',
    "a channel that is no list": '{"decoder_channels": 256}',
    "a null": '{"decoder_channels": null}',
    "a list in a list": '{"decoder_channels": [[256]]}',
    "not a number": '{"cfm_inference_cfg_rate": NaN}',
    "infinity": '{"cfm_inference_cfg_rate": 1e999}',
    "a text for a truth": '{"meanflow": "no"}',
    "a key of a megabyte": json.dumps({"x" * 900_000: 1}),
    "a value of a megabyte": json.dumps({"unknown": "x" * 900_000}),
    "a type of a megabyte": json.dumps({"model_type": "x" * 900_000}),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("embedded", [False, True], ids=["config.json", "in the weights"])
def test_a_configuration_takes_all_memory_or_ends_in_a_traceback(tmp_path, bomb, embedded):
    text = BOMBS[bomb]
    metadata = {"s3gen_config": text} if embedded else None
    safetensors.torch.save_file({MISSED: torch.zeros(1)}, tmp_path / "model.safetensors", metadata=metadata)
    if not embedded:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        S3GenModel.from_pretrained(tmp_path)
    assert len(str(caught.value)) < 1_000


def test_the_largest_configuration_that_is_let_in_takes_minutes_to_build(tmp_path):
    config = {"encoder_num_blocks": 64, "encoder_num_up_blocks": 64, "tokenizer_layers": 64, "decoder_n_blocks": 64}
    config |= {"decoder_num_mid_blocks": 2, "encoder_output_size": 2**16, "speaker_blocks": [64, 64, 64]}
    safetensors.torch.save_file({MISSED: torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="do not fit this model"):
        S3GenModel.from_pretrained(tmp_path)


def test_a_vocoders_configuration_is_checked_like_the_whole(tmp_path):
    for values in ({"upsample_rates": []}, {"istft_n_fft": 10**9}, {"upsample_rates": [8] * 100}, {"nsf_alpha": "x"}):
        with pytest.raises(ValueError, match=next(iter(values))):
            HiFTNetConfig.from_dict(values)
    assert S3GenConfig.from_dict({"decoder_channels": [256]}).decoder_channels == (256,)
    assert collections.Counter(S3GenConfig.tiny().speaker_blocks) == {2: 3}
