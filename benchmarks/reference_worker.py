"""The reference, one utterance after another, in its own environment: ``python -P reference_worker.py FOLDER DEVICE``.

FOLDER holds a plan and its inputs, see ``parity/reference.py``. Says when it is ready, then takes lists of the inputs'
names, one a line, and answers each with what its synthesis cost: see ``benchmarks/contenders.py``.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import resource
import sys
import time

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "parity"))
import reference

ROOT = pathlib.Path(__file__).parent.parent
STATUS = pathlib.Path("/proc/self/status")


class Speaker:
    """The reference's model with the weights and inputs of a plan."""

    def __init__(self, folder, device):
        plan = json.loads((folder / "plan.json").read_text())
        torch.set_num_threads(plan["threads"])
        import_torchaudio()
        model = reference.build(reference.load_reference(), load_file(plan["weights"]), meanflow=plan["meanflow"])
        self.model, self.device = model.to(device), device
        self.inputs = {}
        for key, value in load_file(folder / "inputs.safetensors").items():
            case, name = key.rsplit("/", 1)
            self.inputs.setdefault(case, {})[name] = value

    def speak(self, tokens, case):
        """The wave (samples,) of tokens in the voice of a case, in host memory."""
        voice = self.inputs[case]
        wave, _ = self.model.inference(
            tokens[None].to(self.device),
            ref_dict={
                "prompt_token": voice["prompt_token"][None],
                "prompt_token_len": torch.tensor([len(voice["prompt_token"])]),
                "prompt_feat": voice["prompt_feat"][None],
                "prompt_feat_len": None,
                "embedding": voice["embedding"][None],
            },
        )
        return wave[0].cpu()

    def peak_bytes(self):
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        if STATUS.exists():  # ru_maxrss would begin with what the process's parent held
            return (
                next(int(text.split()[1]) for text in STATUS.read_text().splitlines() if text.startswith("VmHWM"))
                * 1024
            )
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def import_torchaudio():
    """Beside any torch: its compiled extension, which the reference does not use, may be for another one."""
    spec = importlib.util.spec_from_file_location("any_torchaudio", ROOT / "s3gen/_torchaudio.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def timed(speaker, names):
    """What the synthesis of the named inputs costs."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    samples = sum(len(speaker.speak(speaker.inputs[name]["tokens"], name)) for name in names)
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
    return {"seconds": wall, "cpu_seconds": cpu, "samples": samples, "peak_bytes": speaker.peak_bytes()}


def answers():
    """Where the answers go: stdout, to which from now on nothing else can write."""
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda message: print(json.dumps(message), file=kept, flush=True)


def main(folder, device):
    answer = answers()
    speaker = Speaker(pathlib.Path(folder), device)
    answer({package: importlib.metadata.version(package) for package in ("chatterbox-tts", "torch")})
    for line in sys.stdin:
        answer(timed(speaker, json.loads(line)))


if __name__ == "__main__":
    main(*sys.argv[1:])
