"""Why rows fail: what each code of the failures table means, and what mends it. `docs/formats.md` defines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.manifest.token_lists import KNOWN_TOKENS


@dataclass(frozen=True, slots=True)
class Reason:
    """What a code means, and the way out.

    Attributes:
        command: what to run then, where that follows; OUTPUT is the job's output.
    """

    meaning: str
    way_out: str
    command: str = ""


RETRY = "s3gen resume OUTPUT --retry-failed"
ALONE = "s3gen synth CONFIG --manifest OUTPUT/failures.parquet --set output=ANOTHER"
CORRECT = "Correct these rows, or leave them out; failures.parquet shows what is in them."
AGAIN = "Another try may do."

REASONS: Mapping[str, Reason] = {
    "null_id": Reason("The row has no id.", CORRECT),
    "null_voice_id": Reason("The row has no voice_id.", CORRECT),
    "null_tokens": Reason("The row has no tokens.", CORRECT),
    "bad_id": Reason("The id is not valid UTF-8.", CORRECT),
    "bad_voice_id": Reason("The voice_id is not valid UTF-8.", CORRECT),
    "empty_tokens": Reason("There are no tokens but start and stop.", CORRECT),
    "token_out_of_range": Reason(f"A token is not {KNOWN_TOKENS}.", CORRECT),
    "too_long": Reason(
        "There are more tokens than max_tokens.", "For these rows say on_long: split, or raise max_tokens.", ALONE
    ),
    "bad_seed": Reason("The seed is not a whole number, or a float above 2^53.", CORRECT),
    "duplicate_id": Reason("An earlier row of the shard has this id.", "Give every row an id of its own."),
    "unknown_voice": Reason(
        "The voice table has no such voice.", "Add it (s3gen voices --append), then make these rows.", ALONE
    ),
    "out_of_memory": Reason(
        "Alone in its batch, the row needs more memory than there is.", "Try again on a larger GPU.", RETRY
    ),
    "not_finite": Reason(
        "The model made NaN or infinity.",
        "Another seed may do. With float16 it may be an overflow, which bfloat16 does not have.",
        RETRY,
    ),
    "wrong_length": Reason("The model made a wrong number of samples.", AGAIN, RETRY),
    "bad_audio": Reason(
        "The audio does not pass a check, and the job says on_bad_audio: fail_row.", "Another seed may do.", RETRY
    ),
    "worker_crashed": Reason("Every worker that had this row alone in hand died.", AGAIN, RETRY),
    "worker_hung": Reason("Every worker that had this row alone in hand got no further.", AGAIN, RETRY),
    "synthesis_error": Reason("The model raised an error; the message says which.", AGAIN, RETRY),
}
