"""The reference's voices, clip by clip, in its own environment: ``python -P voices_worker.py FOLDER DEVICE``.

FOLDER holds a plan and its inputs, ``wav`` and ``rate`` of each clip; the rest is as for ``reference_worker.py``.
"""

import json
import pathlib
import sys
import time
from typing import Any

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from reference_worker import Speaker, answers


def timed(speaker: Speaker, names: list[str]) -> dict[str, Any]:
    """What the voices of the named clips cost, brought to host memory."""
    samples = 0
    begun, cpu_begun = time.perf_counter(), time.process_time()
    for name in names:
        clip = speaker.inputs[name]
        with torch.inference_mode():
            voice = speaker.model.embed_ref(clip["wav"], int(clip["rate"]))
            for part in ("prompt_token", "prompt_feat", "embedding"):
                voice[part].cpu()
        samples += len(clip["wav"])
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
    return {"seconds": wall, "cpu_seconds": cpu, "samples": samples, "peak_bytes": speaker.peak_bytes()}


def main(folder: str, device: str) -> None:
    answer = answers()
    speaker = Speaker(pathlib.Path(folder), device)
    answer({"torch": torch.__version__})
    for line in sys.stdin:
        answer(timed(speaker, json.loads(line)))


if __name__ == "__main__":
    main(*sys.argv[1:])
