"""What a figure was measured on, and the memory that it took."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

LOADING_LIMIT_BYTES = 2_500_000_000  # resident, of a process that has loaded the full-size model
_CPU_INFO = Path("/proc/cpuinfo")
_STATUS = Path("/proc/self/status")
_LOAD = """
import sys
from benchmarks.machine import peak_resident_bytes
from s3gen import S3GenModel
model = S3GenModel.from_pretrained(sys.argv[1])
print(peak_resident_bytes())
"""


def describe(device: torch.device) -> dict[str, str | int]:
    """Names, versions and the time, for a report."""
    found: dict[str, str | int] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"gpu": card.name, "gpu_memory_gb": round(card.total_memory / 1e9), "cuda": str(torch.version.cuda)}
    return found


def line(described: dict[str, str | int]) -> str:
    """The same for a reader, in one line."""
    gpu = f"{described['gpu']} (CUDA {described['cuda']}), " if "gpu" in described else ""
    return (
        f"{gpu}{described['cpu']}, {described['threads']} of {described['cores']} cores, torch {described['torch']}, "
        f"Python {described['python']}, {described['date']}"
    )


def _cpu_name() -> str:
    if _CPU_INFO.exists():
        for text in _CPU_INFO.read_text().splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_bytes(device: torch.device) -> int:
    """The most memory held: on CUDA by tensors since `forget_peak`, on a CPU by the process since it began."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()


def forget_peak(device: torch.device) -> None:
    """Begin the measure of `peak_bytes` anew, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_resident_bytes() -> int:
    """The most memory that this process has held."""
    if _STATUS.exists():  # ru_maxrss would begin with what the process's parent held
        return (
            next(int(text.split()[1]) for text in _STATUS.read_text().splitlines() if text.startswith("VmHWM")) * 1024
        )
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def loading_bytes(model: str) -> int:
    """The most memory that a fresh process holds which loads a model on a CPU."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, model], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    return int(done.stdout)
