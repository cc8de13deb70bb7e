"""Mails and the backtest's page as people see them: in a browser, on a desk and on a phone."""

from pathlib import Path

import pytest

from tests.browser.chromium import NAMES, Seen, find_program, look_at
from tests.conftest import GOLDEN

PAGES = sorted(GOLDEN.glob("*.html"))
PHONE, WINDOW, DESK = 360, 860, 1200
WIDTHS = (PHONE, WINDOW, DESK)
FAULTY = """<!doctype html><meta name="viewport" content="width=device-width"><title>Faulty</title>
<img src="http://127.0.0.1:9/tracker.png"><p style="width:800px">wide</p>
<div style="overflow-x:auto;width:200px"><p style="width:300px">hidden, but it scrolls</p></div>
<ul style="display:grid;grid-template-columns:1fr 1fr"><li>1<li>2<li>3</ul>
<script>console.error("complained"); undefinedFunction()</script>
"""

PROGRAM = find_program()
pytestmark = pytest.mark.skipif(
    PROGRAM is None,
    reason=f"no browser: none of {', '.join(NAMES)} is on the PATH; the Debian package is called chromium",
)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("page") / "faulty.html"
    page.write_text(FAULTY)
    return page


@pytest.fixture(scope="module")
def seen(faulty: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Seen]:
    """All pages at all widths, looked at by one browser."""
    assert PROGRAM
    return look_at(PROGRAM, tmp_path_factory.mktemp("profile"), [*PAGES, faulty], WIDTHS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_fits_its_width_and_needs_nothing_else(page: Path, seen: dict[Path, Seen]) -> None:
    assert seen[page] == Seen(misfits={width: [] for width in WIDTHS}, complaints=[], requests=[])


def test_all_mails_and_the_backtest_are_looked_at() -> None:
    assert {"backtest", "mail_escalation", "mail_suggestion"} <= {page.stem for page in PAGES}


def test_what_is_wrong_with_a_page_is_seen(faulty: Path, seen: dict[Path, Seen]) -> None:
    found = seen[faulty]
    said = " ".join(found.complaints)

    assert found.requests == ["http://127.0.0.1:9/tracker.png"]
    assert all(word in said for word in ("complained", "Uncaught", "net::ERR")), "the console, the script, the request"
    assert found.misfits[DESK] == ["DIV scrolls: 300 > 200", "UL has a row that is not full"]
    assert any(misfit.startswith("HTML scrolls") for misfit in found.misfits[PHONE])
