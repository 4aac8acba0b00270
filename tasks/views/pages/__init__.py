"""Pages of one file each, which need no network, from Jinja templates."""

import re
from functools import cache
from posixpath import dirname
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


def render_page(template: str, **values: Any) -> str:
    """Render a template, whose path starts in `attention_zoo.tasks`, with values of its variables.

    If it extends `views/pages/base.html`, the page contains the `page.css` and `page.js` next to
    it, and `title` is one of the variables.
    """
    return create_environment().get_template(template).render(folder=dirname(template), **values)


@cache
def create_environment() -> Environment:
    """Return the environment of the templates, which escapes all values."""
    loader = PackageLoader("attention_zoo.tasks", ".")
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **options)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.globals["read_source"] = lambda x: Markup(loader.get_source(environment, x)[0])
    environment.filters["bold_labels"] = bold_labels
    return environment


def bold_labels(text: str) -> Markup:
    """Return a text with the labels that it quotes in backticks in bold."""
    return Markup(re.sub(r"`([^`]*)`", r"<b>\1</b>", str(escape(text))))
