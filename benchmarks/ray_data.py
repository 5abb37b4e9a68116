"""The reference as Ray Data's users run a model over a data set: ``python -P ray_data.py FOLDER DEVICE``.

A class that holds the model, handed to ``map_batches``, one actor of it. The reference takes one utterance at a time,
so the class goes through its batch in a loop. In the reference's environment, with ``ray[data]`` beside it; what comes
in and goes out is that of ``benchmarks/reference_worker.py``. The clock runs from the first batch that the actor is
given to the last wave that arrives, since the actor is made anew for every run and loading the model is not counted.
"""

import json
import os
import pathlib
import sys
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
import ray.data
import torch
from safetensors.torch import load_file

HERE = str(pathlib.Path(__file__).parent)
ROWS = 8  # per batch


class Synthesize:
    """Rows of `tokens` and `voice` to the same with their `wave`."""

    def __init__(self, here, folder, device):
        sys.path.insert(0, here)
        from reference_worker import Speaker

        self.speaker = Speaker(pathlib.Path(folder), device)
        case, given = min(self.speaker.inputs.items(), key=lambda item: len(item[1]["tokens"]))
        self.speaker.speak(given["tokens"], case)

    def __call__(self, batch):
        begun = time.time()
        rows = zip(batch["tokens"], batch["voice"], strict=True)
        waves = [self.speaker.speak(torch.tensor(tokens), voice).numpy() for tokens, voice in rows]
        column = np.empty(len(waves), dtype=object)
        column[:] = waves
        about = {"begun": begun, "peak_bytes": self.speaker.peak_bytes()}
        return {"wave": column, **{name: np.full(len(waves), value) for name, value in about.items()}}


def timed(rows, folder, device, threads):
    """What the pipeline costs on rows of tokens and voices."""
    made = ray.data.from_items(rows).map_batches(
        Synthesize,
        fn_constructor_args=(HERE, folder, device),
        batch_size=ROWS,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=threads,
        num_gpus=1 if device == "cuda" else 0,
    )
    samples, begun, peak = 0, np.inf, 0
    for batch in made.iter_batches(batch_size=None, batch_format="numpy"):
        samples += sum(len(wave) for wave in batch["wave"])
        begun, peak = min(begun, batch["begun"].min()), max(peak, batch["peak_bytes"].max())
    seconds = time.time() - begun
    return {"seconds": float(seconds), "cpu_seconds": None, "samples": samples, "peak_bytes": int(peak)}


def main(folder, device):
    sys.path.insert(0, HERE)
    from reference_worker import answers

    answer = answers()
    threads = json.loads((pathlib.Path(folder) / "plan.json").read_text())["threads"]
    inputs = load_file(pathlib.Path(folder) / "inputs.safetensors")
    ray.init(address="local", num_cpus=threads + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    answer({"ray": ray.__version__})
    for line in sys.stdin:
        rows = [{"tokens": inputs[f"{name}/tokens"].numpy(), "voice": name} for name in json.loads(line)]
        answer(timed(rows, folder, device, threads))
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
