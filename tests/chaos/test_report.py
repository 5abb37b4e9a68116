"""The table that a campaign ends with: nothing that was found is left out of it."""

from __future__ import annotations

import json
from collections import Counter

from tests.chaos.audit import Finding
from tests.chaos.campaign import Result
from tests.chaos.faults import Kind
from tests.chaos.job import Blow
from tests.chaos.report import as_json, as_markdown


def _result() -> Result:
    blows = [
        Blow(kind=Kind.WORKER, at=1.0, repeated=2.0, pause=3.0),
        Blow(kind=Kind.WORKER, at=2.0, repeated=0.5, pause=5.0, made_again=1),
        Blow(kind=Kind.SIGTERM, at=3.0),
    ]
    return Result(rows=10, shards=2, undisturbed_seconds=1.0, blows=blows)


def test_a_clean_campaign_says_so_for_each_fault() -> None:
    text = as_markdown(_result(), {"seed": 4})
    assert "| worker killed | 2 | 0 | 0 | 1 | 2.5 | 4.0 |" in text
    assert "| SIGTERM | 1 | 0 | 0 | 0 | 0.0 |  |" in text
    assert "2 SIGKILLs, 3 faults" in text
    assert text.endswith("nothing is wrong\n")


def test_what_is_wrong_or_missing_is_said() -> None:
    result = _result()
    result.findings.append(Finding("lost", "rows 3, 4", 2))
    result.missed = Counter({Kind.NODE: 1})
    text = as_markdown(result, {"seed": 4})
    assert "| all | 3 | 2 | 0 |" in text
    assert "| SIGTERM | 1 | ? | 0 |" in text  # nobody knows which of the faults it was
    assert "WRONG lost: rows 3, 4" in text
    assert "no occasion came for: node of a cluster killed, another added (1 times)" in text
    assert "nothing is wrong" not in text
    found = json.loads(json.dumps(as_json(result, {"seed": 4})))
    assert found["missed"] == {Kind.NODE.value: 1}
    assert found["kills"] == 2
    assert [blow["kind"] for blow in found["blows"]] == ["worker killed", "worker killed", "SIGTERM"]
