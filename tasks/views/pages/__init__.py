"""Pages of one file, which ask nothing of any network."""

from html import escape
from importlib.resources import files


def document(title: str, body: str, *, of: str) -> str:
    """A page with its style and script in it: what all pages have, and `page.css` and `page.js` of
    a package of `attention_zoo.tasks`.
    """
    tasks = files("attention_zoo.tasks")
    base, css, js = (
        tasks.joinpath(name).read_text(encoding="utf-8")
        for name in ("views/pages/base.css", f"{of}/page.css", f"{of}/page.js")
    )
    # The icon is empty, as a browser would ask for one.
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<style>{base}{css}</style></head><body>{body}<script>{js}</script></body></html>\n"
    )
