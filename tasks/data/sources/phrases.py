"""An endless supply of true translations from Babel's locale data (CLDR) and num2words."""

import datetime
import importlib.metadata
import platform
import random
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

from babel import Locale, UnknownLocaleError
from babel.dates import format_date, format_skeleton, format_time, format_timedelta
from babel.lists import format_list
from babel.localedata import locale_identifiers
from babel.numbers import format_compact_decimal, format_currency, format_percent
from babel.units import UnknownUnitError, format_unit
from num2words import num2words

from attention_zoo.errors import UserError, check_positive
from attention_zoo.factory import typed_options
from attention_zoo.tasks.data.sources.base import Pair, Source, split_of
from attention_zoo.tasks.host_memory import check_memory

# Called with `locale=…`, a phrase returns that locale's words.
Phrase = Callable[..., str]
PhraseSampler = Callable[[random.Random], Phrase]

PAIR_BYTES = 300  # that a pair of short lines takes at least, in Python
# Fixed samples, so that each name is seen often enough to be learned.
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
SECONDS = {"minute": 60, "hour": 3600, "day": 86400, "week": 7 * 86400, "year": 365 * 86400}


class Phrases(Source[list[Pair]]):
    """Dates, times, durations, measures, prices, lists of countries and languages, numbers.

    One to three of them make a line, which is rendered in the source locale and in the target
    locale.

    A hash of the source line decides its split. So the splits share no line, whatever their sizes
    and the seed; and a source line has one translation. Kinds that Babel or num2words cannot render
    in both locales are left out, and `notes` name them.

    Args:
        source, target: locales as Babel names them, such as "en", "pt_BR", "ru".
        size, valid, test: lines in each split.
        seed: of the draw.
    """

    @typed_options
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
        check_positive(
            **{"data.source.size": size, "data.source.valid": valid, "data.source.test": test}
        )
        lines = size + valid + test
        check_memory(PAIR_BYTES * lines, f"{lines:,} lines", "lower data.source.size")
        self.sizes = {"train": size, "valid": valid, "test": test}
        self.locales = (parse_locale(source), parse_locale(target))
        self.target_language = target
        self.seed = seed

    def splits(self) -> dict[str, list[Pair]]:
        samplers = self._samplers()
        patterns = [locale.list_patterns for locale in self.locales]
        styles = [style for style in ("standard", "or") if all(style in x for x in patterns)]
        generator = random.Random(self.seed)
        probes = dict(self.probes())
        result: dict[str, list[Pair]] = {split: [] for split in self.sizes}
        translations = probes.copy()
        useless_draws = 0
        while small := [split for split, size in self.sizes.items() if len(result[split]) < size]:
            source, target = self.translate(sample_line(generator, samplers, styles))
            split = split_of(source.encode())
            repeated = source in translations
            useless_draws += 1
            if useless_draws > 100_000:
                raise UserError(
                    f"the locales {self.locales[0]} and {self.locales[1]} give too few different "
                    f"{small[0]} lines, got {small[0]}={self.sizes[small[0]]}; "
                    f"ask for {len(result[small[0]])} at most: data.source.{small[0]}."
                )
            if source in probes or translations.setdefault(source, target) != target:
                continue
            if len(result[split]) < self.sizes[split] and (split == "train" or not repeated):
                result[split].append((source, target))
                useless_draws = 0
        return result

    def cache_key(self) -> dict[str, Any]:
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
        """Return three lines that no split holds, the same for every seed."""
        countries = [partial(render_name, "territories", code) for code in ("BR", "FR", "JP")]
        time = partial(format_time, datetime.time(15, 45), format="short")
        price = partial(format_currency, 12.5, "USD", format_type="name")
        phrases: list[Phrase] = [
            partial(render_date, datetime.date(2026, 3, 4), "full"),
            partial(render_list, countries),
            partial(render_list, [time, price]),
        ]
        return [self.translate(phrase) for phrase in phrases]

    def translate(self, phrase: Phrase) -> Pair:
        """Render a phrase in both locales, on one line with plain spaces only."""
        source, target = (" ".join(phrase(locale=locale).split()) for locale in self.locales)
        return source, target

    def _samplers(self) -> list[PhraseSampler]:
        """Return the kinds that both locales can render, and note the others."""
        notes: list[str] = []
        samplers: list[PhraseSampler] = [sample_date, sample_time, sample_duration]
        samplers += [sample_percentage, sample_price]
        for table, codes in (("territories", COUNTRIES), ("languages", LANGUAGES)):
            tables = [getattr(locale, table) for locale in self.locales]
            known = [code for code in codes.split() if all(code in names for names in tables)]
            samplers.append(partial(sample_names, table, known))
        units = [x for x in UNITS.split() if all(has_unit(locale, x) for locale in self.locales)]
        if missing := sorted({*UNITS.split()} - {*units}):
            notes.append(f"Babel does not render measures in {', '.join(missing)}")
        samplers.append(partial(sample_measure, units))
        if all("long" in locale.compact_decimal_formats for locale in self.locales):
            samplers.append(sample_magnitude)
        else:
            notes.append("Babel does not render magnitudes such as '3 million'")
        if unspelled := [str(locale) for locale in self.locales if not can_spell_numbers(locale)]:
            notes.append(f"num2words ({', '.join(unspelled)}) does not render spelled-out numbers")
        else:
            samplers.append(sample_number)
        self.notes = [f"{note} in both locales: left out" for note in notes]
        return samplers


def parse_locale(name: str) -> Locale:
    """Return Babel's locale. Raise UserError with similar names for an unknown one."""
    try:
        return Locale.parse(name)
    except (UnknownLocaleError, ValueError):
        similar = get_close_matches(name, locale_identifiers(), n=3) or ["en", "pt_BR", "ru"]
        raise UserError(
            f"Babel does not know the locale {name!r}; try {', '.join(similar)}."
        ) from None


def sample_line(
    generator: random.Random, samplers: list[PhraseSampler], styles: list[str]
) -> Phrase:
    """Draw one to three phrases, joined as either language joins a list."""
    count = generator.choices((1, 2, 3), weights=(6, 3, 1))[0]
    phrases = [generator.choice(samplers)(generator) for _ in range(count)]
    return partial(render_list, phrases, style=generator.choice(styles))


def render_list(phrases: Sequence[Phrase], *, style: Any = "standard", locale: Locale) -> str:
    """Render phrases, joined by the locale's pattern of a list."""
    return format_list([phrase(locale=locale) for phrase in phrases], style=style, locale=locale)


# Each kind of phrase draws its values, and is rendered by Babel or by the function below it.


def sample_date(generator: random.Random) -> Phrase:
    """Draw a date, or a part of one."""
    days = datetime.timedelta(days=generator.randrange(60 * 365))
    form = generator.choice(("full", "full", "full", "long", "medium", "yMMMM", "MMMMd", "EEEE"))
    return partial(render_date, datetime.date(1980, 1, 1) + days, form)


def render_date(day: datetime.date, form: str, *, locale: Locale) -> str:
    """Render a date by a style or a skeleton of CLDR."""
    if form in ("yMMMM", "MMMMd"):
        if form in locale.datetime_skeletons:
            moment = datetime.datetime.combine(day, datetime.time())
            return format_skeleton(form, moment, locale=locale)
        form = "MMMM"
    return format_date(day, format=form, locale=locale)


def sample_time(generator: random.Random) -> Phrase:
    """Draw "3:45 PM"."""
    time = datetime.time(generator.randrange(24), generator.randrange(0, 60, 5))
    return partial(format_time, time, format="short")


def sample_duration(generator: random.Random) -> Phrase:
    """Draw "3 hours", "in 3 hours" or "3 hours ago"."""
    unit: Any = generator.choice(list(SECONDS))
    count = generator.randint(1, 30)
    direction = generator.choice((-1, 0, 1))
    return partial(
        format_timedelta,
        (direction or 1) * count * SECONDS[unit],
        granularity=unit,
        threshold=10_000,
        add_direction=direction != 0,
    )


def sample_measure(units: list[str], generator: random.Random) -> Phrase:
    """Draw "12.5 kilometers"."""
    value: float = generator.randint(1, 250)
    if generator.random() < 0.25:
        value = generator.randint(1, 199) / 10
    return partial(format_unit, value, generator.choice(units), length="long")


def has_unit(locale: Locale, unit: str) -> bool:
    """Check that a locale has words for a unit; where it has none, Babel writes the unit's code."""
    try:
        return unit not in format_unit(2, unit, length="long", locale=locale)
    except UnknownUnitError:
        return False


def sample_price(generator: random.Random) -> Phrase:
    """Draw "$12.50" or "12.50 US dollars"."""
    currency = generator.choice(CURRENCIES)
    value = generator.choice((generator.randint(1, 99), generator.randint(100, 9999) / 100))
    if generator.random() < 0.2:
        value = generator.randrange(1000, 10_000, 50)
    form: Any = generator.choice(("name", "standard"))
    return partial(format_currency, value, currency, format_type=form)


def sample_percentage(generator: random.Random) -> Phrase:
    """Draw "45%"."""
    return partial(format_percent, generator.randint(1, 100) / 100)


def sample_magnitude(generator: random.Random) -> Phrase:
    """Draw "3 million"."""
    power = generator.choice((10**3, 10**6, 10**9))
    return partial(format_compact_decimal, generator.randint(1, 200) * power, format_type="long")


def sample_names(table: str, codes: list[str], generator: random.Random) -> Phrase:
    """Draw one to three names from a table of Babel's."""
    chosen = generator.sample(codes, generator.choice((1, 2, 3)))
    return partial(render_list, [partial(render_name, table, code) for code in chosen])


def render_name(table: str, code: str, *, locale: Locale) -> str:
    """Look up a name in a table of Babel's."""
    return getattr(locale, table)[code]


def sample_number(generator: random.Random) -> Phrase:
    """Draw "forty-two"."""
    return partial(spell_number, generator.randrange(10 ** generator.choice((2, 3, 4))))


def spell_number(value: int, *, locale: Locale) -> str:
    """Spell out a number."""
    # The language alone: num2words' variants pt_BR and fr_CH have faults.
    return num2words(value, lang=locale.language)


def can_spell_numbers(locale: Locale) -> bool:
    """Check that num2words knows this locale's language."""
    try:
        return bool(spell_number(1234, locale=locale)) and bool(spell_number(5, locale=locale))
    except NotImplementedError:
        return False
