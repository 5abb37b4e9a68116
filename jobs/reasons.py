"""Why rows fail: what each code of the failures table means, and what mends it. `docs/formats.md` defines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """What a code means, and the way out."""

    meaning: str
    way_out: str


_MANIFEST = "Correct these rows in the manifest, or leave them out."
_AGAIN = "Another try may do: s3gen resume OUTPUT --retry-failed."

REASONS: Mapping[str, Reason] = {
    "null_id": Reason("The row has no id.", _MANIFEST),
    "null_voice_id": Reason("The row has no voice_id.", _MANIFEST),
    "null_tokens": Reason("The row has no tokens.", _MANIFEST),
    "bad_id": Reason("The id is not valid UTF-8.", _MANIFEST),
    "bad_voice_id": Reason("The voice_id is not valid UTF-8.", _MANIFEST),
    "empty_tokens": Reason("There are no tokens but start and stop.", _MANIFEST),
    "token_out_of_range": Reason("A token is not one of 0 to 6562.", _MANIFEST),
    "too_long": Reason("There are more tokens than max_tokens.", "Raise max_tokens, or cut these rows."),
    "bad_seed": Reason("The seed is not a whole number, or a float above 2^53.", _MANIFEST),
    "duplicate_id": Reason("An earlier row of the shard has this id.", "Give every row an id of its own."),
    "unknown_voice": Reason(
        "The voice table has no such voice.",
        "Add the voices (s3gen voices --append), then run failures.parquet as a manifest into an output of its own.",
    ),
    "out_of_memory": Reason(
        "Alone in its batch, the row needs more memory than there is.",
        "Use a larger GPU, or engine.prompt_seconds, or shorter rows; then s3gen resume OUTPUT --retry-failed.",
    ),
    "not_finite": Reason(
        "The model made NaN or infinity.", f"{_AGAIN} With float16 it may be an overflow, which bfloat16 has not."
    ),
    "wrong_length": Reason("The model made a wrong number of samples.", _AGAIN),
    "bad_audio": Reason(
        "The audio does not pass a check, and the job says on_bad_audio: fail_row.",
        f"{_AGAIN} It takes another seed.",
    ),
    "worker_crashed": Reason("Every worker that had this row alone in hand died.", _AGAIN),
    "worker_hung": Reason("Every worker that had this row alone in hand got no further.", _AGAIN),
    "synthesis_error": Reason("The model raised an error.", f"See the message. {_AGAIN}"),
}
