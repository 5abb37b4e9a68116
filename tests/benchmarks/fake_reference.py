"""Speaks the protocol of the reference's processes without a reference: ``python fake_reference.py FOLDER DEVICE``.

One second for every second of audio. What it is told to do wrong stands in FOLDER/misbehaves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file

SAMPLES_PER_TOKEN = 960


def main(folder: Path) -> None:
    told = folder / "misbehaves"
    wrong = told.read_text() if told.exists() else ""
    if wrong == "at once":
        sys.exit("there is no chatterbox here")
    inputs = load_file(folder / "inputs.safetensors")
    answer({"torch": "fake"})
    for line in sys.stdin:
        if wrong == "when asked":
            sys.exit("out of memory")
        samples = sum(len(inputs[f"{name}/tokens"]) * SAMPLES_PER_TOKEN for name in json.loads(line))
        made = samples - (wrong == "one sample too few")
        answer({"seconds": samples / 24_000, "cpu_seconds": None, "samples": made, "peak_bytes": 7})


def answer(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
