"""Endless true translations out of Babel's locale data (CLDR) and num2words: no download."""

import datetime
import importlib.metadata
import platform
import random
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache, partial
from typing import Any

from babel import Locale, UnknownLocaleError
from babel.dates import format_date, format_skeleton, format_time, format_timedelta
from babel.lists import format_list
from babel.localedata import locale_identifiers
from babel.numbers import format_compact_decimal, format_currency, format_percent
from babel.units import UnknownUnitError, format_unit

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.sources.base import Pair, Source, split_of

# A drawn piece: asked for a locale, it gives that locale's words.
Piece = Callable[[Locale], str]
Draw = Callable[[random.Random], Piece]

# Samples that are fixed, so that each name is seen often enough to be learned.
COUNTRIES = (
    "AO AR AT AU BE BG BO BR CA CH CL CN CO CR CU CZ DE DK EC EG ES FI FR GB GR HR HU ID IE "
    "IL IN IR IS IT JM JP KE KR MA MX MZ NG NL NO NZ PE PH PL PT PY RO RS RU SE SN TH TR UA "
    "US UY VE VN ZA"
)
LANGUAGES = (
    "af ar bg bn ca cs da de el en es et eu fa fi fr he hi hr hu id is it ja ko lt lv nl no "
    "pl pt ro ru sk sl sv sw th tr uk ur vi zh"
)
UNITS = (
    "length-kilometer length-meter length-centimeter length-mile mass-kilogram mass-gram "
    "mass-pound volume-liter volume-milliliter volume-cup temperature-celsius "
    "temperature-fahrenheit speed-kilometer-per-hour area-hectare area-square-meter "
    "digital-megabyte energy-kilocalorie power-watt electric-volt angle-degree"
)
CURRENCIES = ("USD", "EUR", "GBP", "JPY", "BRL", "MXN", "INR", "CNY", "CHF", "CAD")
STEPS = {"minute": 60, "hour": 3600, "day": 86400, "week": 7 * 86400, "year": 365 * 86400}
FIRST_DAY = datetime.date(1980, 1, 1)
DAYS = 60 * 365


class Phrases(Source[Pair]):
    """Dates, times, durations, measures, prices, lists of countries and languages, numbers.

    One to three of them make a line, rendered twice: by the source locale and by the target locale.

    A hash of the source line decides its split, so no size and no seed makes the splits share a
    line, and a source line has one translation. Kinds that Babel or num2words cannot render in
    both locales are left out, and `notes` say so.

    Args:
        source, target: locales as Babel names them, such as "en", "pt_BR", "ru".
        size, valid, test: lines in each split.
        seed: of the draw.
    """

    def __init__(
        self,
        *,
        source: str = "en",
        target: str = "pt_BR",
        size: int = 20000,
        valid: int = 500,
        test: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sizes = {"train": size, "valid": valid, "test": test}
        for split, lines in self.sizes.items():
            if lines < 1:
                raise UserError(f"the {split} split must have at least 1 line, got {lines}.")
        self.locales = (locale_of(source), locale_of(target))
        self.seed = seed

    def splits(self) -> dict[str, list[Pair]]:
        draws = self._draws()
        styles = common_list_styles(self.locales)
        generator = random.Random(self.seed)
        probes = self.probes()
        result: dict[str, list[Pair]] = {split: [] for split in self.sizes}
        translations: dict[str, str] = dict(probes)
        held_out = {source for source, _ in probes}
        idle = 0
        while any(len(result[split]) < size for split, size in self.sizes.items()):
            source, target = draw_line(generator, draws, styles, self.locales)
            split = split_of(source.encode())
            seen = source in translations
            idle += 1
            if idle > 100_000:
                short = next(s for s, size in self.sizes.items() if len(result[s]) < size)
                raise UserError(
                    f"the locales {self.locales[0]} and {self.locales[1]} give too few different "
                    f"{short} lines, got {short}={self.sizes[short]}; "
                    f"ask for {len(result[short])} at most: data.source.{short}."
                )
            if source in held_out or translations.setdefault(source, target) != target:
                continue
            if len(result[split]) < self.sizes[split] and not (seen and split != "train"):
                result[split].append((source, target))
                idle = 0
        return result

    def key(self) -> dict[str, Any]:
        return {
            "source": "phrases",
            "locales": [str(locale) for locale in self.locales],
            "sizes": self.sizes,
            "seed": self.seed,
            "python": platform.python_version(),
            "babel": importlib.metadata.version("babel"),
            "num2words": importlib.metadata.version("num2words"),
        }

    def probes(self) -> list[Pair]:
        """Three lines that no split holds, the same for every seed."""
        day = datetime.date(2026, 3, 4)
        pieces: list[Piece] = [
            partial(date_in, day, "full"),
            partial(listed, "standard", [partial(country_in, code) for code in ("BR", "FR", "JP")]),
            partial(
                listed,
                "standard",
                [partial(time_in, 15, 45), partial(price_in, 12.5, "USD", "name")],
            ),
        ]
        source, target = self.locales
        return [(clean(piece(source)), clean(piece(target))) for piece in pieces]

    def _draws(self) -> list[Draw]:
        """The kinds that both locales can render; notes name the others."""
        self.notes = []
        draws: list[Draw] = [dates, times, durations, percentages, prices]
        names = partial(common, self.locales)
        draws += [
            partial(names_of, country_in, names("territories", COUNTRIES)),
            partial(names_of, language_in, names("languages", LANGUAGES)),
        ]
        known = UNITS.split()
        units = [unit for unit in known if all(has_unit(locale, unit) for locale in self.locales)]
        if len(units) < len(known):
            self._leave_out("measures in " + ", ".join(sorted(set(known) - set(units))), "Babel")
        draws.append(partial(measures, units))
        if all("long" in locale.compact_decimal_formats for locale in self.locales):
            draws.append(magnitudes)
        else:
            self._leave_out("magnitudes such as '3 million'", "Babel")
        silent = [str(locale) for locale in self.locales if not speaks(locale)]
        if silent:
            self._leave_out("spelled-out numbers", f"num2words ({', '.join(silent)})")
        else:
            draws.append(numbers)
        return draws

    def _leave_out(self, what: str, whom: str) -> None:
        self.notes.append(f"{whom} does not render {what} in both locales: left out")


def locale_of(name: str) -> Locale:
    """Babel's locale. Raises UserError with the nearest names for an unknown one."""
    try:
        return Locale.parse(name)
    except (UnknownLocaleError, ValueError):
        near = get_close_matches(name, locale_identifiers(), n=3) or ["en", "pt_BR", "ru"]
        raise UserError(
            f"Babel does not know the locale {name!r}; try {', '.join(near)}."
        ) from None


def clean(text: str) -> str:
    """One line with plain spaces: CLDR writes no-break and narrow ones, which no keyboard does."""
    return " ".join(text.split())


def draw_line(
    generator: random.Random, draws: list[Draw], styles: list[str], locales: tuple[Locale, Locale]
) -> Pair:
    """One to three pieces, joined as either language joins a list."""
    count = generator.choices((1, 2, 3), weights=(6, 3, 1))[0]
    pieces = [generator.choice(draws)(generator) for _ in range(count)]
    style = generator.choice(styles)
    source, target = (clean(listed(style, pieces, locale)) for locale in locales)
    return source, target


def listed(style: Any, pieces: list[Piece], locale: Locale) -> str:
    """The pieces in a locale's words, joined by its list pattern."""
    return format_list([piece(locale) for piece in pieces], style=style, locale=locale)


def common_list_styles(locales: tuple[Locale, Locale]) -> list[str]:
    """Of "and" and "or", the lists that both locales have."""
    return [
        style
        for style in ("standard", "or")
        if all(style in locale.list_patterns for locale in locales)
    ]


def common(locales: tuple[Locale, Locale], table: str, codes: str) -> list[str]:
    """The codes that both locales have a name for."""
    return [
        code for code in codes.split() if all(code in getattr(locale, table) for locale in locales)
    ]


# Each kind: how it is drawn, and how one locale says it.


def dates(generator: random.Random) -> Piece:
    day = FIRST_DAY + datetime.timedelta(days=generator.randrange(DAYS))
    form = generator.choice(("full", "full", "full", "long", "medium", "yMMMM", "MMMMd", "EEEE"))
    return partial(date_in, day, form)


def date_in(day: datetime.date, form: str, locale: Locale) -> str:
    if form in ("yMMMM", "MMMMd"):
        if form not in locale.datetime_skeletons:
            form = "MMMM"
        else:
            moment = datetime.datetime(day.year, day.month, day.day)
            return format_skeleton(form, moment, locale=locale)
    return format_date(day, format=form, locale=locale)


def times(generator: random.Random) -> Piece:
    return partial(time_in, generator.randrange(24), generator.randrange(0, 60, 5))


def time_in(hour: int, minute: int, locale: Locale) -> str:
    return format_time(datetime.time(hour, minute), format="short", locale=locale)


def durations(generator: random.Random) -> Piece:
    step: Any = generator.choice(list(STEPS))
    return partial(duration_in, generator.randint(1, 30), step, generator.choice((-1, 0, 1)))


def duration_in(count: int, step: Any, direction: int, locale: Locale) -> str:
    """ "3 hours"; with a direction "in 3 hours" or "3 hours ago"."""
    return format_timedelta(
        (direction or 1) * count * STEPS[step],
        granularity=step,
        threshold=10_000,
        add_direction=direction != 0,
        locale=locale,
    )


def measures(units: list[str], generator: random.Random) -> Piece:
    value: float = generator.randint(1, 250)
    if generator.random() < 0.25:
        value = generator.randint(1, 199) / 10
    return partial(unit_in, value, generator.choice(units))


def unit_in(value: float, unit: str, locale: Locale) -> str:
    return format_unit(value, unit, length="long", locale=locale)


@cache
def has_unit(locale: Locale, unit: str) -> bool:
    """Whether a locale has words for a unit; where it has none, Babel writes the unit's code."""
    try:
        return unit not in unit_in(2, unit, locale)
    except UnknownUnitError:
        return False


def prices(generator: random.Random) -> Piece:
    currency = generator.choice(CURRENCIES)
    value = generator.choice((generator.randint(1, 99), generator.randint(100, 9999) / 100))
    if generator.random() < 0.2:
        value = generator.randrange(1000, 10_000, 50)
    return partial(price_in, value, currency, generator.choice(("name", "standard")))


def price_in(value: float, currency: str, form: Any, locale: Locale) -> str:
    return format_currency(value, currency, locale=locale, format_type=form)


def percentages(generator: random.Random) -> Piece:
    return partial(percent_in, generator.randint(1, 100) / 100)


def percent_in(value: float, locale: Locale) -> str:
    return format_percent(value, locale=locale)


def magnitudes(generator: random.Random) -> Piece:
    power = generator.choice((10**3, 10**6, 10**9))
    return partial(magnitude_in, generator.randint(1, 200) * power)


def magnitude_in(value: int, locale: Locale) -> str:
    return format_compact_decimal(value, format_type="long", locale=locale)


def names_of(
    name_in: Callable[[str, Locale], str], codes: list[str], generator: random.Random
) -> Piece:
    chosen = generator.sample(codes, generator.choice((1, 2, 3)))
    return partial(listed, "standard", [partial(name_in, code) for code in chosen])


def country_in(code: str, locale: Locale) -> str:
    return locale.territories[code]


def language_in(code: str, locale: Locale) -> str:
    return locale.languages[code]


def numbers(generator: random.Random) -> Piece:
    return partial(number_in, generator.randrange(10 ** generator.choice((2, 3, 4))))


def number_in(value: int, locale: Locale) -> str:
    from num2words import num2words

    # The language alone: num2words' variants pt_BR and fr_CH have faults.
    return num2words(value, lang=locale.language)


@cache
def speaks(locale: Locale) -> bool:
    """Whether num2words spells out numbers in this locale's language."""
    try:
        return bool(number_in(1234, locale)) and bool(number_in(5, locale))
    except NotImplementedError:
        return False
