"""Pairs from files of translation tools: TMX and XLIFF 1.2 and 2."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.data.sources.base import Pair
from attention_zoo.tasks.data.sources.columns import one_line
from attention_zoo.tasks.data.sources.text_reader import READ_ERRORS, decompress

MEMORY_SUFFIXES = (".tmx", ".xlf", ".xliff")
CODE_ELEMENTS = ("{*}bpt", "{*}ept", "{*}ph", "{*}it", "{*}ut")  # they hold formatting


def read_memory(path: Path, languages: Sequence[Any] | None) -> list[Pair]:
    """Return the pairs of a file that have text in both languages, source and target.

    An XLIFF file names its two languages itself, so `languages` may be None.
    """
    try:
        from lxml import etree
        from translate.storage import tmx, xliff, xliff2
    except ImportError:
        raise BadInput(f"{path} needs a package: pip install 'attention-zoo[files]'.") from None
    try:
        with path.open("rb") as file:
            content = decompress(file, str(path)).read()
        root = etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True))
        etree.strip_elements(root, *CODE_ELEMENTS, with_tail=False)
        name = etree.QName(root).localname
        if name == "tmx":
            units = multilingual_units(tmx.tmxfile.parsestring(etree.tostring(root)))
        elif name == "xliff":
            kind = xliff2.Xliff2File if root.get("version") == "2.0" else xliff.Xliff1File
            units = bilingual_units(kind.parsestring(etree.tostring(root)))
        else:
            raise BadInput(f"{path} is XML of <{name}>, not TMX or XLIFF; convert it to TMX.")
        texts = [{code: one_line(text) for code, text in unit.items() if text} for unit in units]
    except (*READ_ERRORS, etree.LxmlError, AssertionError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} cannot be read ({error}); fetch or write it again.") from error
    counts = Counter(code for unit in texts for code in unit)
    if languages is None and name == "xliff" and texts:
        languages = list(units[0])
    if languages is None or isinstance(languages, str) or len(languages) != 2:
        raise UserError(
            f"{path} has text in {', '.join(counts) or 'no language'}; name two of them: "
            "data.source.columns=[SOURCE,TARGET]."
        )
    chosen = [match_language(path, str(language), counts) for language in languages]
    if chosen[0] == chosen[1]:
        raise UserError(
            f"{path}: data.source.columns must be two languages, got {list(languages)}."
        )
    return [
        (unit[chosen[0]], unit[chosen[1]])
        for unit in texts
        if chosen[0] in unit and chosen[1] in unit
    ]


def multilingual_units(memory: Any) -> list[dict[str, str]]:
    """Return the texts of a TMX file's units by language."""
    return [dict(unit_texts(unit)) for unit in memory.units]


def unit_texts(unit: Any) -> Iterator[tuple[str, str]]:
    """Yield the languages of a TMX unit, "de" and "de-de", with their texts."""
    for node in unit.getlanguageNodes():
        for name, value in node.attrib.items():
            if name in ("lang", "{http://www.w3.org/XML/1998/namespace}lang"):
                yield normalize_code(value), unit.getNodeText(node) or ""


def bilingual_units(memory: Any) -> list[dict[str, str]]:
    """Return the texts of an XLIFF file's units by language."""
    codes = [memory.getsourcelanguage() or "source", memory.gettargetlanguage() or "target"]
    return [
        {normalize_code(code): str(text or "") for code, text in zip(codes, texts, strict=True)}
        for texts in ((unit.source, unit.target) for unit in memory.units)
    ]


def normalize_code(code: str) -> str:
    """Return a language code in small letters, with "-"."""
    return code.lower().replace("_", "-")


def match_language(path: Path, language: str, counts: Counter[str]) -> str:
    """Return the code of a language in a file: itself, or its most frequent variant."""
    code = normalize_code(language)
    variants = [other for other, _ in counts.most_common() if other.startswith(code + "-")]
    for found in [code, *variants]:
        if counts[found]:
            return found
    raise UserError(
        f"{path} has no text in {language!r}; it has {', '.join(counts) or 'none'}: choose two in "
        "data.source.columns."
    )
