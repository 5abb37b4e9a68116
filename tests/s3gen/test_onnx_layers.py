"""ONNX graphs in the forms that exporters give them, and files that are damaged or lie: by PyTorch's own exporter."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from s3gen import cosyvoice
from s3gen.campplus import SEGMENT
from s3gen.checkpoint import published_weights
from s3gen.onnx_layers import Layers, read_layers
from s3gen.speaker import SpeakerEncoder
from tests.conftest import relative_error, speech_like
from tests.s3gen.cosyvoice_folder import TINY, PlainSpeaker, PlainTokenizer, export, tiny_model

onnx = pytest.importorskip("onnx")

SPEAKER, TOKENIZER = "speaker_encoder.", "tokenizer."


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def graphs(model, tmp_path_factory):
    """The two files, read once: what follows changes copies."""
    folder = tmp_path_factory.mktemp("graphs")
    export(PlainSpeaker(model.speaker_encoder), torch.randn(1, 210, 80), folder / "speaker.onnx", opset=13)
    export(PlainTokenizer(model.tokenizer), torch.randn(1, 128, 60), folder / "tokenizer.onnx")
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


def nothing(name: str) -> bytes:
    raise FileNotFoundError(name)


def read(data, beside=nothing):
    return read_layers(data, source="a.onnx", beside=beside)


def changed(data, change):
    """The file after a change of its graph."""
    made = onnx.load_model_from_string(data)
    change(made.graph)
    return made.SerializeToString()


def loaded_speaker(weights):
    encoder = SpeakerEncoder(TINY.speaker)
    encoder.load_state_dict({name.removeprefix(SPEAKER): value for name, value in weights.items()})
    return encoder.requires_grad_(False)


def assert_same_speaker(model, data):
    found = loaded_speaker(cosyvoice.speaker_weights(read(data), "a.onnx"))
    features = torch.randn(2, 2 * SEGMENT + 37, 80, generator=torch.Generator().manual_seed(0))
    assert relative_error(found.embed(features), model.speaker_encoder.embed(features)) < 1e-6


def assert_same_tokenizer(model, data):
    found = cosyvoice.tokenizer_weights(read(data), "a.onnx")
    expected = {name: value for name, value in published_weights(model).items() if name.startswith(TOKENIZER)}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# --- forms of one graph -----------------------------------------------------------------------------------------------


def test_a_tokenizer_is_read_differently_by_the_exporters_version(model, graphs, tmp_path):
    """Before opset 17 a layer norm is ten nodes."""
    assert_same_tokenizer(model, graphs["tokenizer"])
    export(PlainTokenizer(model.tokenizer), torch.randn(1, 128, 60), tmp_path / "old.onnx", opset=11)
    assert "LayerNormalization" not in {n.op_type for n in onnx.load(tmp_path / "old.onnx").graph.node}
    assert_same_tokenizer(model, (tmp_path / "old.onnx").read_bytes())


def test_batch_norms_that_were_not_folded_are_looked_for_in_vain(model, graphs, tmp_path):
    def norms(data):
        return sum(node.op_type == "BatchNormalization" for node in onnx.load_model_from_string(data).graph.node)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            PlainSpeaker(model.speaker_encoder).eval(),
            (torch.randn(1, 210, 80),),
            tmp_path / "whole.onnx",
            dynamo=False,
            opset_version=13,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    whole = (tmp_path / "whole.onnx").read_bytes()
    assert norms(whole) > norms(graphs["speaker"]) > 0
    assert_same_speaker(model, whole)
    assert_same_speaker(model, graphs["speaker"])


def test_a_weight_is_found_by_its_name_only(model, graphs):
    """Exporters number what they fold or transpose; nodes may lose their names, too."""

    def anonymous(graph):
        numbers = {tensor.name: f"w{place}" for place, tensor in enumerate(graph.initializer)}
        for tensor in graph.initializer:
            tensor.name = numbers[tensor.name]
        for node in graph.node:
            node.name = ""
            for place, name in enumerate(node.input):
                node.input[place] = numbers.get(name, name)

    assert_same_tokenizer(model, changed(graphs["tokenizer"], anonymous))
    assert_same_speaker(model, changed(graphs["speaker"], anonymous))


def test_a_weight_behind_identity_cast_or_transpose_is_lost(model, graphs):
    """As exporters leave them that do not compute constants ahead."""

    def unfolded(graph):
        nodes = list(graph.node)
        weights = {tensor.name: tensor for tensor in graph.initializer}
        made = []
        for node in nodes:
            if node.op_type == "MatMul" and node.input[1] in weights:
                tensor = weights[node.input[1]]
                stored = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).T.copy(), tensor.name)
                tensor.CopyFrom(stored)
                turned = f"{tensor.name}/turned"
                made.append(onnx.helper.make_node("Identity", [tensor.name], [f"{turned}/same"]))
                made.append(onnx.helper.make_node("Cast", [f"{turned}/same"], [f"{turned}/cast"], to=1))
                made.append(onnx.helper.make_node("Transpose", [f"{turned}/cast"], [turned], perm=[1, 0]))
                node.input[1] = turned
            made.append(node)
        del graph.node[:]
        graph.node.extend(made)

    assert_same_tokenizer(model, changed(graphs["tokenizer"], unfolded))


def test_a_bias_on_the_left_of_its_sum_is_lost(model, graphs):
    def mirrored(graph):
        for node in graph.node:
            if node.op_type == "Add":
                node.input[0], node.input[1] = node.input[1], node.input[0]

    assert_same_tokenizer(model, changed(graphs["tokenizer"], mirrored))


def test_weights_beside_the_file_are_lost(model, graphs, tmp_path):
    made = onnx.load_model_from_string(graphs["tokenizer"])
    onnx.save(made, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    data = (tmp_path / "a.onnx").read_bytes()
    assert len(data) < len(graphs["tokenizer"]) / 2
    asked = []

    def beside(name):
        asked.append(name)
        return (tmp_path / name).read_bytes()

    found = cosyvoice.tokenizer_weights(read(data, beside), "a.onnx")
    assert asked == ["a.data"]  # which has them all, and may be half a gigabyte behind a URL
    expected = published_weights(model)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_graph_hears_other_tokens_than_the_model_that_is_read_from_it(model):
    clip = speech_like(0.9, 16_000)
    tokens = PlainTokenizer(model.tokenizer)(model.tokenizer.mel(clip).T[None])
    assert torch.equal(tokens, model.tokenizer([clip])[0].int())


# --- files that lie ---------------------------------------------------------------------------------------------------


def elsewhere(location="a.data", **entries):
    """The first weight is kept in another file."""

    def change(graph):
        tensor = graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))

    return change


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/a.data", "..", ".", "", "..\\secret", "a/../b"])
def test_weights_are_read_from_outside_the_folder(graphs, location):
    asked = []
    with pytest.raises(ValueError, match="weights must lie in a file of the same folder"):
        read(changed(graphs["tokenizer"], elsewhere(location)), asked.append)
    assert asked == []


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": 90}, "are damaged"),  # ten bytes are left, which are no weight
        ({"offset": 90, "length": 11}, r"at 90 \.\. 101, but that has 100 bytes"),
        ({"offset": -1, "length": 4}, r"at -1 \.\. 3"),
        ({"length": 10**18}, "but that has 100 bytes"),
        ({"offset": "many"}, "unreadable: invalid literal"),
        ({"length": 96}, "are damaged"),
    ],
)
def test_weights_beside_the_file_end_early(graphs, entries, message):
    with pytest.raises(ValueError, match=message):
        read(changed(graphs["tokenizer"], elsewhere(**entries)), lambda name: bytes(100))


def test_a_file_that_is_not_there_is_a_riddle(graphs):
    with pytest.raises(ValueError, match=r"keeps '.*' in 'a\.data', unreadable: a\.data"):
        read(changed(graphs["tokenizer"], elsewhere()))


def short(graph):
    graph.initializer[0].raw_data = graph.initializer[0].raw_data[:-4]


def huge(graph):
    graph.initializer[0].dims[0] = 2**40


def negative(graph):
    graph.initializer[0].dims[0] *= -1


def twisted(graph):
    node = onnx.helper.make_node("Transpose", [graph.initializer[0].name], ["t"], perm=[0, 0, 0])
    graph.node.insert(0, node)


def coarse(graph):
    norm = next(node for node in graph.node if node.op_type == "BatchNormalization")
    next(a for a in norm.attribute if a.name == "epsilon").f = 1e-2


def odd_bias(graph):
    conv = next(node for node in graph.node if node.op_type == "Conv" and len(node.input) > 2)
    tensor = next(tensor for tensor in graph.initializer if tensor.name == conv.input[2])
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[:-1].copy(), tensor.name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (short, "are damaged"),
        (huge, "are damaged"),
        (negative, "are damaged"),
        (twisted, r"permutes 1 axes by \(0, 0, 0\)"),
        (coarse, r"adds 0\.01, not 1e-05"),
        (odd_bias, r"the bias of '.*' is \(7,\), not \(8,\)"),
    ],
)
def test_a_damaged_graph_becomes_a_model(graphs, change, message):
    with pytest.raises(ValueError, match=message):
        read(changed(graphs["speaker"], change))


def product(weight, place):
    return [onnx.helper.make_node("MatMul", ["x", weight], [f"y{place}"])]


def turned_product(weight, place):
    turn = onnx.helper.make_node("Transpose", [weight], [f"turned{place}"], perm=[1, 0])
    return [turn, *product(f"turned{place}", place)]


def turned(weight, place):
    return turned_product(weight, place)[:1]


@pytest.mark.parametrize("nodes", [product, turned_product, turned])
@pytest.mark.parametrize("outside", [False, True])
def test_one_weight_in_thousands_of_nodes_takes_all_memory(nodes, outside):
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), dtype=np.float16), "w")
    values = weight.raw_data

    def used(times):
        there = [node for place in range(times) for node in nodes("w", place)]
        graph = onnx.helper.make_graph(there, "g", [], [], [weight])
        if outside:
            elsewhere()(graph)
        return onnx.helper.make_model(graph).SerializeToString()

    assert all(layer.weight.shape == (64, 64) for layer in read(used(2), lambda name: values))
    with pytest.raises(ValueError, match=r"a\.onnx uses its weights over and over: \d+ bytes unfold"):
        read(used(500), lambda name: values)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x08\xff", bytes(1000), b"\x3a\xff\xff\xff\xff\x0f"])
def test_something_else_is_taken_for_a_graph(data):
    with pytest.raises(ValueError, match=r"a\.onnx is n"):
        cosyvoice.speaker_weights(read(data), "a.onnx")


def test_half_a_file_is_read_as_a_smaller_model(graphs):
    data = graphs["speaker"]
    for part in (0.2, 0.5, 0.9, 0.999):
        with pytest.raises(ValueError, match=r"a\.onnx is no"):
            cosyvoice.speaker_weights(read(data[: int(part * len(data))]), "a.onnx")


def without(kind, place=0):
    def change(graph):
        del graph.node[[at for at, node in enumerate(graph.node) if node.op_type == kind][place]]

    return change


def dilated(graph):
    conv = [node for node in graph.node if node.op_type == "Conv"][-4]
    next(a for a in conv.attribute if a.name == "dilations").ints[0] = 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("Conv"), "is not built as expected"),
        (without("Conv", -1), "is not built as expected: there is batch_norm"),
        (without("BatchNormalization"), "is not built as expected"),
        (without("BatchNormalization", -1), "the graph ends where batch_norm of xvector.dense.nonlinear"),
    ],
)
def test_a_graph_that_lacks_a_layer_is_read_one_layer_off(graphs, change, message):
    with pytest.raises(ValueError, match=message):
        cosyvoice.speaker_weights(read(changed(graphs["speaker"], change)), "a.onnx")


def test_a_bias_that_is_missing_moves_the_key_to_the_query(graphs):
    """The key's projection is told from the others by having none."""

    layers = read(graphs["tokenizer"])
    first = next(place for place, layer in enumerate(layers) if layer.kind == "linear")
    layers[first], layers[first + 1] = layers[first + 1], layers[first]
    with pytest.raises(ValueError, match=r"cannot be encoder\.blocks\.0\.attn\.query"):
        cosyvoice.tokenizer_weights(layers, "a.onnx")


def test_a_memory_behind_the_attention_is_taken_for_a_missing_layer(model, graphs):
    layers = read(graphs["tokenizer"])
    memory = next(place for place, layer in enumerate(layers) if layer.weight.shape[1:] == (1, 31))
    layers[memory], layers[memory + 1] = layers[memory + 1], layers[memory]
    found = cosyvoice.tokenizer_weights(layers, "a.onnx")
    expected = published_weights(model)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_layers_that_are_left_over_are_dropped(graphs):
    twice = read(graphs["tokenizer"]) + read(graphs["speaker"])
    with pytest.raises(ValueError, match=r"holds \d+ layers more than expected: conv"):
        cosyvoice.tokenizer_weights(twice, "a.onnx")


def test_a_convolution_with_other_steps_is_taken_for_the_expected_one(graphs):
    layers = read(changed(graphs["speaker"], dilated))
    with pytest.raises(ValueError, match=r"has stride \(1,\) and dilation \(7,\), not \(1,\) and \(2,\)"):
        cosyvoice.speaker_weights(layers, "a.onnx")


def test_the_end_of_a_graph_is_an_index_error():
    layers = Layers([], "a.onnx")
    assert layers.peek() is None
    with pytest.raises(ValueError, match="the graph ends where conv of head should be"):
        layers.take("conv", "head")
