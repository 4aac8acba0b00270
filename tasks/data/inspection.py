"""Look at text as it is read: count what is usually a mistake, and name the remedy."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from attention_zoo.tasks.data.sources.base import Pair

MIN_LINE = 40  # characters of a line of running text that would not recur by chance
MAX_LINES = 200_000  # of running text that are remembered, to find those that recur
MIN_PAIRS = 100  # of a correlation
MIN_CORRELATION = 0.4  # of the lengths of two sides: 0.85 and more in real pairs, 0.2 if shifted


class Trait(NamedTuple):
    """Something in a line that clean text has seldom.

    The shares of the lines from which on it is worth a warning lie between those counted in clean
    text (Multi30k, Tatoeba, WMT news, FLORES, the built-in sources) and in their tokenized forms.
    """

    pattern: re.Pattern[str]
    pair_share: float
    text_share: float  # prose about programs has tags, and tables have tabs
    remedy: str


TRAITS = {
    "markup": Trait(
        re.compile(
            r"</?(?!unk>)[A-Za-z][\w:.-]*(?:\s+[\w:.-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|\w+))*\s*/?>"
            r"|<\?xml|<!DOCTYPE|<!--"
        ),
        0.005,
        0.05,
        "take the tags away, and the lines that are about the text",
    ),
    "subword marks": Trait(
        re.compile(r"\S@@(?: |$)|▁|(?:^| )##\w"),
        0.005,
        0.005,
        "join the subwords (sed -E 's/@@( |$)//g'): the tokenizer makes its own",
    ),
    "tokenized": Trait(
        re.compile(r"\w ,(?: |$)|\w \.$|\w '(?:s|re|ve|ll|d|m)\b|\w n't\b|@[-,.]@|<unk>"),
        0.05,
        0.05,
        "detokenize it (sacremoses detokenize): outputs and scores are of plain text",
    ),
    "entities": Trait(
        re.compile(r"&(?:apos|quot|amp|lt|gt|nbsp|#\d+|#x[0-9A-Fa-f]+|#?bar);"),
        0.005,
        0.05,
        "write the characters themselves (html.unescape of Python)",
    ),
    "tabs": Trait(
        re.compile(r"\S\t+\S"),
        0.05,
        0.5,
        "a line looks like a row of columns: cut them apart (cut -f1 FILE)",
    ),
    "broken characters": Trait(
        re.compile("\ufffd|[ÃÂ][\x80-\xbf]|â€|[\x00-\x08\x0e-\x1b]"),
        0.005,
        0.005,
        "the text was decoded wrongly: convert the original file (iconv -f ENCODING -t UTF-8)",
    ),
}
ANY_TRAIT = re.compile("|".join(trait.pattern.pattern for trait in TRAITS.values()))
MIN_UNKNOWN = 0.005  # of the tokens
IN_TRAIN = "take them out of train: scores of lines that were learnt say little"
FREQUENT_WORDS = 300
# Words of Latin script, and single characters of all others.
WORD = re.compile(r"[a-zà-ɏ]+|[^\W\d_]")


class Inspection:
    """Counts of the lines of each split, and the warnings that follow from them."""

    share: str  # the field of `Trait` that decides

    def __init__(self) -> None:
        self.lines: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {}
        self.examples: dict[str, str] = {}
        self.sentences: list[str] = []  # warnings that are no count of a trait

    def add(self, split: str, *sides: str) -> None:
        """Count the traits of a line, of one side or two."""
        self.lines[split] += 1
        if not any(ANY_TRAIT.search(side) for side in sides):
            return
        counts = self.counts.setdefault(split, Counter())
        for name, trait in TRAITS.items():
            found = next(filter(None, map(trait.pattern.search, sides)), None)
            if found is not None:
                counts[name] += 1
                text, (start, end) = found.string, found.span()
                self.examples.setdefault(name, text[max(0, start - 15) : end + 15].strip())

    def split_counts(self, split: str) -> dict[str, int]:
        """Return the counts of a split for the report, without those that are zero."""
        counts: Mapping[str, int] = self.counts.get(split, {})
        return {name.replace(" ", "_"): count for name, count in counts.items()}

    def add_unknown(self, split: str, unknown: int, tokens: int) -> None:
        """Warn if many tokens of a split are unknown to the tokenizer."""
        if unknown >= MIN_UNKNOWN * tokens > 0:
            self.sentences.append(
                f"unknown characters: {unknown:,} of {tokens:,} {split} tokens are not in train; "
                "tokenizer=bpe and tokenizer=bytes know all characters"
            )

    def warn(self, name: str, remedy: str, *, min_share: float, min_count: int = 2) -> None:
        """Add a warning if a count is at least a share of the lines in any split."""
        shares = {
            split: counts[name] / self.lines[split]
            for split, counts in self.counts.items()
            if counts[name] >= min_count
        }
        if not shares or max(shares.values()) < min_share:
            return
        places = ", ".join(
            f"{self.counts[split][name]:,} of {self.lines[split]:,} {split} lines"
            for split in ("train", "valid", "test")
            if split in shares
        )
        example = f", such as {self.examples[name]!r}" if name in self.examples else ""
        self.sentences.append(f"{name}: {places}{example}; {remedy}")

    def warnings(self) -> list[str]:
        """Return a line for each finding: what was found, how often, where, and the remedy."""
        for name, trait in TRAITS.items():
            self.warn(name, trait.remedy, min_share=getattr(trait, self.share))
        return self.sentences


class TextInspection(Inspection):
    """An inspection of running text, which passes by once."""

    share = "text_share"

    def __init__(self) -> None:
        super().__init__()
        self.held_out: dict[str, set[int]] = {"valid": set(), "test": set()}
        self.trained: set[int] = set()

    def add_text(self, split: str, text: str) -> None:
        """Count what is in a piece of a split; those of train come last."""
        counts = self.counts.setdefault(split, Counter())
        for line in filter(str.strip, text.split("\n")):
            self.add(split, line)
            if len(line) < MIN_LINE:
                continue
            key = hash(line)
            lines = self.trained if split == "train" else self.held_out[split]
            if split == "train":
                counts["repeated"] += key in lines
                for other, held_out in self.held_out.items():
                    if key in held_out:
                        held_out.remove(key)
                        self.counts[other]["in train"] += 1
            if len(lines) < MAX_LINES:
                lines.add(key)

    def warnings(self) -> list[str]:
        self.warn("repeated", "keep each text once", min_share=0.2)
        self.warn("in train", IN_TRAIN, min_share=0.05)
        return super().warnings()


class PairInspection(Inspection):
    """An inspection of sentence pairs."""

    share = "pair_share"

    def add_pairs(self, splits: Mapping[str, list[Pair]]) -> None:
        """Count what is in all splits."""
        train = Counter(splits["train"])
        for split, pairs in splits.items():
            counts = self.counts.setdefault(split, Counter())
            for source, target in pairs:
                self.add(split, source, target)
                if source.strip() == target.strip() != "":
                    counts["equal sides"] += 1
                    self.examples.setdefault("equal sides", source.strip()[:40])
            counts["repeated"] = len(pairs) - len(set(pairs))
            if split != "train":
                counts["in train"] = sum(any(pair) and pair in train for pair in pairs)
        self.warn("equal sides", "see whether the targets are translated", min_share=0.2)
        pair, count = train.most_common(1)[0]
        self.examples["repeated"] = f"{' = '.join(pair)[:60]} ({count:,} times)"
        often = count >= max(10, 0.01 * len(splits["train"]))
        self.warn("repeated", "keep each pair once", min_share=0.0 if often else 0.5)
        self.warn("in train", IN_TRAIN, min_share=0.01, min_count=1)
        self.compare_languages(splits)
        self.compare_lengths(splits["train"])

    def compare_languages(self, splits: Mapping[str, list[Pair]]) -> None:
        """Warn of splits whose sides have other frequent words than those of the train split."""
        frequent = [
            {word for word, _ in count_words(side).most_common(FREQUENT_WORDS)}
            for side in zip(*splits["train"], strict=True)
        ]
        only = frequent[0] - frequent[1], frequent[1] - frequent[0]
        for split in ("valid", "test"):
            sides = [count_words(side) for side in zip(*splits[split], strict=True)]
            if all(
                share_of(words, there) > 2 * share_of(words, here)
                for words, here, there in zip(sides, only, only[::-1], strict=True)
            ):
                self.sentences.append(
                    f"swapped languages: the sources of the {split} split have the words of the "
                    "targets of train, and the targets those of its sources; exchange its sides"
                )

    def compare_lengths(self, pairs: list[Pair]) -> None:
        """Warn if long sources do not have long targets."""
        lengths = np.array([(len(source), len(target)) for source, target in pairs]).T
        if len(pairs) < MIN_PAIRS or 0 in lengths.std(1):
            return
        correlation = np.corrcoef(lengths)[0, 1]
        if correlation < MIN_CORRELATION:
            self.sentences.append(
                f"alignment: the lengths of the two sides of train correlate by {correlation:.2f}, "
                "those of translations by more than 0.7; see whether line i translates line i"
            )


def count_words(lines: Iterable[str]) -> Counter[str]:
    """Count the words of lines, in lower case."""
    return Counter(word for line in lines for word in WORD.findall(line.lower()))


def share_of(words: Counter[str], known: set[str]) -> float:
    """Return the share of the words that are known."""
    return sum(words[word] for word in known) / max(1, words.total())
