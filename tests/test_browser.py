"""What a page must not do, the look into pages notices."""

from pathlib import Path
from typing import Any

import pytest

from tests.browser import assert_quiet, in_browser, look

pytestmark = in_browser


@pytest.mark.parametrize(
    "fault", ["<script>nowhere()</script>", "<img src='http://localhost:9/a.png'>"]
)
def test_errors_and_requests_are_seen(browser: Any, tmp_path: Path, fault: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<link rel='icon' href='data:,'>{fault}")
    look(browser, page.as_uri())
    with pytest.raises(AssertionError):
        assert_quiet(browser, page.as_uri())


def test_a_quiet_page_is_let_through(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<link rel='icon' href='data:,'>")
    look(browser, page.as_uri())
    assert_quiet(browser, page.as_uri())
