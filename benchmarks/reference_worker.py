"""Times the reference, in its own environment: ``python -P reference_worker.py FOLDER``, where a plan lies.

Loads the plan's weights, saves them as FOLDER/s3gen.safetensors as the reference would publish them, and says so on
stdout; then takes the name of a case per line on stdin and answers with the seconds, by the clock and of CPU, that its
synthesis took.
"""

import contextlib
import json
import pathlib
import sys
import time

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "parity"))
import reference


def main(folder):
    plan = json.loads((folder / "plan.json").read_text())
    torch.set_num_threads(plan["threads"])
    model = reference.build(reference.load_reference(), load_file(plan["weights"]), meanflow=plan["meanflow"])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, folder / "s3gen.safetensors")
    del state
    inputs = load_file(folder / "inputs.safetensors")
    answer({"ready": True})
    for line in sys.stdin:
        case = line.strip() + "/"
        given = {name.removeprefix(case): value for name, value in inputs.items() if name.startswith(case)}
        with contextlib.redirect_stdout(sys.stderr):
            seconds, cpu_seconds, samples = timed(model, **given)
        answer({"seconds": seconds, "cpu_seconds": cpu_seconds, "samples": samples})


def timed(model, tokens, prompt_token, prompt_feat, embedding):
    """Seconds of one synthesis, by the clock and of CPU, and how many samples came out."""
    voice = {
        "prompt_token": prompt_token[None],
        "prompt_token_len": torch.tensor([len(prompt_token)]),
        "prompt_feat": prompt_feat[None],
        "prompt_feat_len": None,
        "embedding": embedding[None],
    }
    begun, cpu_begun = time.perf_counter(), time.process_time()
    wave, _ = model.inference(tokens[None], ref_dict=voice)
    return time.perf_counter() - begun, time.process_time() - cpu_begun, wave.shape[1]


def answer(message):
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
