"""A browser for the report page. Without one these tests are skipped; `make test-browser` wants it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.finish import finalise
from jobs.report.report import write_report
from tests.jobs import shown_job

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCREENSHOTS = Path(__file__).parents[2] / "build/browser"


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Chromium without a window."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as running:
        # Its sandbox does not work for root, whom containers have; the pages are our own.
        chromium = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a job that is finished, of one under way, and of one that has nothing yet."""
    folder = tmp_path_factory.mktemp("pages")
    manifest = shown_job.write_manifest(folder / "manifest.parquet")
    found = {}
    for name, shards in (("finished", 10), ("underway", 4), ("empty", 0)):
        ledger = shown_job.start(str(folder / name), manifest, on_bad_audio="keep")
        for shard in range(shards):
            shown_job.make(ledger, shard)
        if name == "finished":
            finalise(ledger)
        found[name] = folder / f"{name}.html"
        write_report(ledger.folder.url, out=str(found[name]))
    return found
