"""How an actor ended, from what Ray says of it: whether its machine went, or its machine's memory."""

from __future__ import annotations

import ray.exceptions

# Ray has an exception of its own for it where a machine dies under a task; for an actor it is the text that says so.
MACHINE_WORDS = "its node has died"


def lost_machine(error: BaseException) -> bool:
    """Whether the actor's machine is gone, or the way to it: the task that it had in hand is not to blame."""
    # Unavailable is what Ray says when the connection broke and nobody knows yet why: a process that dies on a machine
    # that lives is reported by that machine.
    kinds = (ray.exceptions.NodeDiedError, ray.exceptions.LocalRayletDiedError, ray.exceptions.ActorUnavailableError)
    return isinstance(error, kinds) or getattr(error, "preempted", False) or MACHINE_WORDS in str(error)


def starved_machine(error: BaseException) -> bool:
    """Whether Ray has killed the actor since its machine ran out of memory."""
    return isinstance(error, ray.exceptions.OutOfMemoryError)
