"""Compilation changes no number beyond rounding, is bounded, and gives way with one warning where it fails."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch._dynamo.exc import InternalTorchDynamoError

from s3gen import S3GenModel, Solver, attention, compiled, flow, lean
from s3gen.attention import variable_length
from s3gen.compiled import MOST_GRAPHS, Compiler, Graphs
from s3gen.packing import Packing
from tests.conftest import random_tokens, relative_error
from tests.s3gen.test_exactness import EXACT, LENGTHS, TWO_STEPS, solver_rows
from tests.s3gen.test_lean import by_runs

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def model() -> S3GenModel:
    return S3GenModel.from_pretrained("random:tiny").double()


def test_compiled_functions_give_the_same_numbers(model, monkeypatch):
    """Captured, functionalised and run without a code generator, which takes a minute on a CPU."""
    rows = solver_rows(model, LENGTHS)
    plain = model.flow.solve(*rows, TWO_STEPS)
    made = []

    def counted(function):
        made.append(function.__name__)
        return torch_compile(function, backend="aot_eager", fullgraph=True)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", counted)
    model.prepare(compile=True)
    for mel, expected in zip(model.flow.solve(*rows, TWO_STEPS), plain, strict=True):
        assert relative_error(mel, expected) < EXACT
    assert set(made) == {"before_attention", "after_attention", "resnet", "resnet_end", "snake"}


def test_the_vocoder_compiled_gives_the_same_samples(model, monkeypatch):
    mel = torch.randn(1, 80, 5, dtype=torch.float64)
    plain, _ = model.mel2wav.inference(mel)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    model.prepare(compile=True)
    assert relative_error(model.mel2wav.inference(mel)[0], plain) < EXACT


def test_a_compiler_that_fails_is_left_alone_after_one_warning(model, monkeypatch):
    rows = solver_rows(model, LENGTHS)
    plain = model.flow.solve(*rows, TWO_STEPS)

    def broken(function):
        def compiled(*arguments):
            raise InternalTorchDynamoError("no C compiler")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    model.prepare(compile=True)
    with pytest.warns(UserWarning, match=r"torch.compile failed.*no C compiler") as caught:
        mels = model.flow.solve(*rows, TWO_STEPS)
    assert len([each for each in caught if "torch.compile" in str(each.message)]) == 1
    assert all(torch.equal(mel, expected) for mel, expected in zip(mels, plain, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.flow.solve(*rows, TWO_STEPS)


def test_a_failure_of_the_function_itself_is_not_taken_for_the_compilers(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)

    def out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Compiler()(out_of_memory)()


# --- recordings ----------------------------------------------------------------------------------------------------


class FakeGraph:
    """What a recording promises, on a CPU: the function as it was, on the memory that it was recorded with."""

    made = 0

    def __init__(self, function, inputs, pool):
        FakeGraph.made += 1
        self.function, self.inputs = function, [value.clone() for value in inputs]
        self.output = function(*self.inputs).clone()

    def replay(self, inputs):
        for kept, value in zip(self.inputs, inputs, strict=True):
            kept.copy_(value)
        return self.output.copy_(self.function(*self.inputs))


@pytest.fixture
def recordings(monkeypatch):
    FakeGraph.made = 0
    monkeypatch.setattr(compiled, "_Graph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    # Attention as on CUDA: what it knows of the rows is in the tensors that a recording reads.
    monkeypatch.setattr(attention, "varlen_attn", by_runs)
    monkeypatch.setattr(lean, "attend", lambda qkv, heads, packing, scratch: variable_length(qkv, heads, packing))
    monkeypatch.setattr(flow, "Packing", lambda *given, **named: Packing(*given, **(named | {"rounded": True})))


def test_one_recording_serves_batches_of_other_lengths(model, recordings):
    for lengths in ([14, 1, 6, 20], [9, 9, 9, 9], [30, 2, 1, 5]):
        rows = solver_rows(model, lengths)
        for mel, expected in zip(
            model.flow.solve(*rows, TWO_STEPS), model.flow.solve_plain(*rows, TWO_STEPS), strict=True
        ):
            assert relative_error(mel, expected) < EXACT
    assert FakeGraph.made == 1


def test_a_result_outlives_the_next_run_of_its_recording(model, recordings):
    rows, others = solver_rows(model, [5, 6]), solver_rows(model, [6, 5])
    first = model.flow.solve(*rows, TWO_STEPS)
    kept = [mel.clone() for mel in first]
    model.flow.solve(*others, TWO_STEPS)
    assert all(torch.equal(mel, before) for mel, before in zip(first, kept, strict=True))


def test_a_recording_does_not_outlive_the_weights_it_reads(model, recordings):
    rows = solver_rows(model, [5])
    before = model.flow.solve(*rows, TWO_STEPS)[0]
    model.flow.estimator.final_proj.weight.mul_(0.5)
    after = model.flow.solve(*rows, TWO_STEPS)[0]
    assert FakeGraph.made == 2
    assert relative_error(after, before) > 1e-3


def test_recordings_are_bounded_and_the_least_used_goes(recordings):
    graphs = Graphs()
    for key in range(MOST_GRAPHS + 1):
        graphs.run(key, torch.sin, [torch.ones(1)])
        graphs.run(0, torch.sin, [torch.ones(1)])
    made = FakeGraph.made
    graphs.run(0, torch.sin, [torch.ones(1)])
    assert FakeGraph.made == made
    graphs.run(1, torch.sin, [torch.ones(1)])
    assert FakeGraph.made == made + 1


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted when stream is capturing")])
def test_a_recording_that_fails_is_left_alone_after_one_warning(monkeypatch, error):
    tries = []

    def failing(*arguments):
        tries.append(arguments)
        raise error

    monkeypatch.setattr(compiled, "_Graph", failing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    graphs = Graphs()
    with pytest.warns(UserWarning, match=r"CUDA graph failed.*capturing") as caught:
        results = [graphs.run("key", torch.sin, [torch.zeros(1)]) for _ in range(3)]
    assert results == [0, 0, 0]
    assert (len(caught), len(tries)) == (1, 1)


def test_no_memory_for_a_recording_is_no_reason_to_give_them_up(monkeypatch, recordings):
    graphs = Graphs()
    graphs.run("kept", torch.sin, [torch.zeros(1)])

    def starved(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(compiled, "_Graph", starved)
        assert graphs.run("large", torch.sin, [torch.zeros(1)]) == 0
    made = FakeGraph.made
    graphs.run("kept", torch.sin, [torch.zeros(1)])
    assert FakeGraph.made == made + 1  # it was given up for the memory, and is made again


# --- warming up ----------------------------------------------------------------------------------------------------


def test_warming_up_runs_one_row_and_a_whole_budget(monkeypatch):
    model = S3GenModel.from_pretrained("random:tiny")
    seen = []
    monkeypatch.setattr(model, "synthesize", lambda tokens, refs, **how: seen.append((len(tokens), len(tokens[0]))))
    model.warm_up(8192)
    assert seen == []  # nothing to wait for
    model.flow.compiler = Compiler()
    model.warm_up(8192)
    assert seen == [(1, 128), (16, 128)]
    seen.clear()
    model.warm_up(1)
    assert seen == [(1, 1)]


def test_warming_up_can_really_be_synthesised(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    model = S3GenModel.from_pretrained("random:tiny").prepare(compile=True)
    made, synthesize = [], model.synthesize
    monkeypatch.setattr(model, "synthesize", lambda tokens, refs, **how: made.append(synthesize(tokens, refs, **how)))
    model.warm_up(1024, solver=Solver(steps=1, guidance=0.0))
    assert [len(waves) for waves in made] == [1, 2]


def test_a_prepared_model_is_still_the_same_model():
    model = S3GenModel.from_pretrained("random:tiny")
    before = model.fingerprint(), set(model.state_dict())
    model.prepare(dtype="bfloat16")
    model.synthesize([random_tokens(3, 1)], [model.embed_ref(torch.rand(24_000) - 0.5, 24_000)])
    assert (model.fingerprint(), set(model.state_dict())) == before
