"""Asks the reference, in its own environment and process, for its results: see `reference.py` for the files."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from s3gen.checkpoint import published_shapes
from s3gen.model import S3GenModel
from s3gen.weights import random_weights

_SCRIPT = Path(__file__).with_name("reference.py")
# Of this process's environment.
_VISIBLE = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the reference made: tensors by case and name, its packages' versions, and what it failed at."""

    outputs: dict[str, dict[str, Tensor]]
    versions: dict[str, str]
    notes: dict[str, str]


@dataclass(kw_only=True, slots=True)
class Plan:
    """Calls of the reference, collected, then carried out in one process of it.

    `script` makes them, beside this file; `source` is a checkout that it needs besides what is installed.
    """

    folder: Path
    weights: Path
    meanflow: bool = False
    script: Path = _SCRIPT
    source: Path | None = None
    inputs: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: str, call: str, inputs: Mapping[str, Tensor], **options: Any) -> None:
        """One call (a method of `reference.Calls`) on tensors and plain options."""
        if case in self.inputs:
            raise ValueError(f"there is already a case {case!r}")
        self.inputs[case] = dict(inputs)
        self.calls.append({"case": case, "call": call, "options": options})

    def write(self, threads: int, *, checkpoints: str = "") -> None:
        """Put plan and inputs into the folder; `checkpoints` names the files that the state dict is saved as."""
        self.folder.mkdir(parents=True, exist_ok=True)
        flat = {  # copies, since cases may share a voice, which a safetensors file cannot say
            f"{case}/{name}": value.clone().contiguous()
            for case, named in self.inputs.items()
            for name, value in named.items()
        }
        save_file(flat, self.folder / "inputs.safetensors")
        plan = {"weights": str(self.weights), "meanflow": self.meanflow, "threads": threads, "calls": self.calls}
        more = {"checkpoints": checkpoints, "source": None if self.source is None else str(self.source.resolve())}
        (self.folder / "plan.json").write_text(json.dumps(plan | more))

    def run(self, python: Path, threads: int, *, checkpoints: str = "") -> Answer:
        """Write the plan and have the reference carry out all its calls.

        Raises:
            RuntimeError: the reference failed; with the end of what it wrote.
        """
        self.write(threads, checkpoints=checkpoints)
        command = reference_command(python, self.script, self.folder)
        environment = reference_environment(threads)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the reference failed ({done.returncode}):\n{done.stderr[-4000:]}")
        report = json.loads((self.folder / "report.json").read_text())
        outputs: dict[str, dict[str, Tensor]] = {}
        for key, value in load_file(self.folder / "outputs.safetensors").items():
            case, name = key.rsplit("/", 1)
            outputs.setdefault(case, {})[name] = value
        return Answer(outputs=outputs, versions=report["versions"], notes=report["notes"])


def reference_command(python: Path, script: Path, folder: Path) -> list[str]:
    """A script in the reference's environment; -P keeps this project off its import path."""
    return [str(python), "-P", str(script), str(folder)]


def reference_environment(threads: int) -> dict[str, str]:
    """Nothing of this process's environment that could change what it imports or how it computes."""
    return {name: os.environ[name] for name in _VISIBLE if name in os.environ} | {"OMP_NUM_THREADS": str(threads)}


def formula_weights(model: S3GenModel) -> dict[str, Tensor]:
    """Weights by formula for a model's published names: what `random:full` holds, or a variant of it."""
    return random_weights(published_shapes(model))


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """As `Plan.weights` is read."""
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
