"""How an actor ended, from what Ray says of it: whether its machine went, or its machine's memory."""

from __future__ import annotations

import ray.exceptions

# Ray has an exception of its own for it where a machine dies under a task; for an actor it is the text that says so.
MACHINE_WORDS = ("its node has died", "node was preempted", "forcibly preempted")
MEMORY_WORDS = ("running low on memory", "memory pressure")


def lost_machine(error: BaseException) -> bool:
    """Whether the actor's machine is gone, or the way to it: the task that it had in hand is not to blame."""
    # Unavailable is what Ray says when the connection broke and nobody knows yet why: a process that dies on a machine
    # that lives is reported by that machine.
    kinds = (ray.exceptions.NodeDiedError, ray.exceptions.LocalRayletDiedError, ray.exceptions.ActorUnavailableError)
    return isinstance(error, kinds) or getattr(error, "preempted", False) or _says(error, MACHINE_WORDS)


def starved_machine(error: BaseException) -> bool:
    """Whether Ray has killed the actor since its machine ran out of memory."""
    return isinstance(error, ray.exceptions.OutOfMemoryError) or _says(error, MEMORY_WORDS)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error)
    return any(word in text for word in words)
