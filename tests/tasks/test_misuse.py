"""Misuse of data, tokenizers, optimizers and tasks from Python is answered by one line."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from attention_zoo import tasks
from attention_zoo.errors import UserError
from attention_zoo.tasks.data.sources.gettext_catalogues import GettextCatalogues
from attention_zoo.tasks.data.sources.parallel_files import ParallelFiles
from attention_zoo.tasks.data.sources.phrases import Phrases
from attention_zoo.tasks.data.tokenizers import ByteTokenizer, CharacterTokenizer
from attention_zoo.tasks.data.translation_data import TranslationData
from attention_zoo.tasks.training.optimizers import adamw, muon
from attention_zoo.tasks.training.schedules import cosine
from attention_zoo.tasks.training.task import check_texts


def data(**options: Any) -> TranslationData:
    own = {"source": Phrases(), "tokenizer": ByteTokenizer.train, "cache_dir": "cache"}
    return TranslationData(**own | options)


def files(**options: Any) -> ParallelFiles:
    return ParallelFiles(**{"train": [("a.en", "a.pt")]} | options)


def schedule(**options: Any) -> object:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    return cosine(optimizer, **{"warmup_steps": 1, "total_steps": 9} | options)


MODEL = torch.nn.Sequential(torch.nn.Linear(2, 2))
catalogues = partial(GettextCatalogues, catalogues="folder", target="de")
tokenizer = ByteTokenizer()
MISUSE: list[tuple[Callable[[], Any], str]] = [
    (partial(data, max_tokens="9"), "max_tokens must be a whole number, got '9'"),
    (partial(data, max_tokens=9.5), "max_tokens must be a whole number, got 9.5"),
    (partial(data, length_jitter=float("nan")), "length_jitter must be a finite number"),
    (partial(data, num_workers=None), "num_workers must be a whole number, got None"),
    (partial(data, seed=True), "seed must be a whole number, got True"),
    (partial(data, cache_dir=None), "cache_dir must be a word or a Path, got None"),
    (partial(data, cache_dir=5), "cache_dir must be a word or a Path, got 5"),
    (partial(data, tokenizer=tokenizer), "a function that makes a tokenizer"),
    (partial(data, tokenizer="bytes"), "a function that makes a tokenizer"),
    (partial(data, source=[("a", "b")]), "needs a source of text"),
    (partial(data, source=None), "source must be given, got None"),
    (partial(data, probes="a line"), "data.probes must be a list of lines"),
    (partial(Phrases, size="5"), "size must be a whole number, got '5'"),
    (partial(Phrases, target=None), "target must be a word, got None"),
    (partial(files, valid_fraction="0.1"), "valid_fraction must be a finite number"),
    (partial(files, seed=None), "seed must be a whole number, got None"),
    (partial(files, root=5), "root must be a word or a Path, got 5"),
    (partial(files, train="a.tsv", columns=5), "columns must be a list of two, got 5"),
    (partial(catalogues, target=None), "target must be a word, got None"),
    (partial(catalogues, catalogues=5), "catalogues must be names, got 5"),
    (partial(tokenizer.encode, None), "text must be a str, got None"),
    (partial(tokenizer.encode, b"a"), "text must be a str, got b'a'"),
    (partial(tokenizer.decode, [1.5]), "token ids must be whole numbers, got 1.5"),
    (partial(tokenizer.decode, None), "ids must be a list of token ids, got None"),
    (partial(CharacterTokenizer.train, [1]), "text must be a str, got 1"),
    (partial(adamw, MODEL, lr="1"), "lr must be a finite number, got '1'"),
    (partial(adamw, MODEL, lr=True), "lr must be a finite number, got True"),
    (partial(adamw, MODEL, lr=1.0, eps=-1), "eps must be at least 0 and finite, got -1"),
    (partial(adamw, MODEL, lr=1.0, betas="ab"), "betas must be two numbers"),
    (partial(adamw, [*MODEL.parameters()], lr=1.0), "takes the module whose parameters"),
    (partial(muon, MODEL, lr=1.0, momentum="a", head=None), "momentum must be a finite number"),
    (partial(schedule, warmup_steps="1"), "warmup_steps must be a number, got '1'"),
    (partial(schedule, total_steps=None), "total_steps must be a number, got None"),
    (partial(schedule, min_lr_ratio=True), "min_lr_ratio must be a number, got True"),
    (partial(tasks.load, None), "named by a path, got None"),
    (partial(tasks.load, ""), "named by a path, got ''"),
    (partial(check_texts, "a line"), "lines must be a list of texts, got 'a line'"),
    (partial(check_texts, [5]), r"lines must be a list of texts, got \[5\]"),
    (partial(check_texts, None), "lines must be a list of texts, got None"),
]


@pytest.mark.parametrize("call, message", MISUSE, ids=[message for _, message in MISUSE])
def test_misuse_is_one_clear_error(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
