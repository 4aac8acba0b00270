"""Tokens of any script, written with the fonts that there are."""

# Asian scripts need a font that matplotlib does not bring along; these are used where installed.
_FALLBACK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei")
_LONGEST_LABEL = 14  # characters
_UNKNOWN = "\N{WHITE SQUARE}"


def families() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed)]


def legible(token: str) -> str:
    """At most `_LONGEST_LABEL` characters, each of which the fonts can show."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=name))) for name in families()]
    shown = "".join(
        character
        if character.isprintable() and any(font.get_char_index(ord(character)) for font in fonts)
        else repr(character)[1:-1].replace(character, _UNKNOWN)
        for character in token
    )
    if len(shown) > _LONGEST_LABEL:
        return shown[: _LONGEST_LABEL - 1] + "…"
    return shown.strip() or shown
