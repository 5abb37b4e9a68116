"""The report in a real browser, opened from disk: nothing complains, everything is heard, seen and fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import SCREENSHOTS

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def opened(browser: Any, page: Path, *, scheme: str = "light", viewport: dict[str, int] = DESKTOP) -> Iterator[Any]:
    """A tab that has loaded a page, without a network; it fails when the page complains or asks for something."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
    tab = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url.partition(",")[0]))
    tab.goto(page.as_uri(), wait_until="load")
    yield tab
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    context.close()


LOADED = """async () => {
    const players = [...document.querySelectorAll('audio')];
    await Promise.all(players.map(player => new Promise((done, failed) => {
        if (player.readyState >= 1) return done();
        player.addEventListener('loadedmetadata', done);
        player.addEventListener('error', () => failed(player.error.message));
        player.load();
    })));
    return players.map(player => player.duration);
}"""

HEARD = """async () => {
    const player = document.querySelector('audio');
    player.muted = true;
    await player.play();
    await new Promise((done, failed) => {
        player.addEventListener('ended', done);
        player.addEventListener('error', () => failed(player.error.message));
    });
    return player.currentTime;
}"""

WIDTHS = """() => [...document.querySelectorAll('img')].map(image => image.complete ? image.naturalWidth : 0)"""


def test_a_player_or_a_picture_does_not_load(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["finished"]) as tab:
        durations = tab.evaluate(LOADED)
        assert len(durations) == 9
        # Tokens are 40 ms each, and the rows have 12 to 42 of them.
        assert all(0.48 <= duration <= 1.68 for duration in durations)
        widths = tab.evaluate(WIDTHS)
        assert len(widths) == 9
        assert all(48 <= width <= 168 for width in widths)  # a column is 10 ms
        assert tab.evaluate(HEARD) == pytest.approx(durations[0], abs=0.05)


def test_a_hostile_id_takes_the_page(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["finished"]) as tab:
        assert tab.title() == "finished · s3gen report"
        assert tab.locator("script, iframe, [onerror]").count() == 0
        assert "<script>document.title='taken'</script>" in tab.locator("#voices").inner_text()


@pytest.mark.parametrize("name", ["finished", "underway", "empty"])
@pytest.mark.parametrize(("device", "viewport"), [("desktop", DESKTOP), ("phone", PHONE)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_does_not_fit(
    browser: Any, pages: dict[str, Path], name: str, device: str, viewport: dict[str, int], scheme: str
) -> None:
    """Its screenshot stays in build/browser, to be looked at."""
    with opened(browser, pages[name], scheme=scheme, viewport=viewport) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        tab.evaluate(LOADED)
        tab.screenshot(path=SCREENSHOTS / f"{name}-{device}-{scheme}.png", full_page=True)
        behind, text = tab.evaluate(
            "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        assert (brightness(behind) > 200, brightness(text) < 80) == ((True,) * 2 if scheme == "light" else (False,) * 2)


def brightness(colour: str) -> float:
    """Of `rgb(1, 2, 3)`, the mean."""
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3


def test_a_detail_cannot_be_opened_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["finished"]) as tab:
        summary = tab.locator("#failures summary").first
        summary.focus()
        tab.keyboard.press("Enter")
        assert tab.locator("#failures li").first.is_visible()
        assert "tokens is null" in tab.locator("#failures li").first.inner_text()
        tab.locator("nav a").first.focus()
        tab.keyboard.press("Enter")
        assert tab.url.endswith("#voices")
