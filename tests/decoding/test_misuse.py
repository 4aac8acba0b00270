"""Misuse of decoding from Python is answered by one line that names the rule."""

from typing import Any

import pytest
import torch

from attention_zoo.decoding import Beam, Greedy, Sample
from attention_zoo.errors import UserError
from tests.library.test_misuse import language_model, seq2seq

IDS = {"bos_id": 1, "eos_id": 2, "pad_id": 0}
# A value of each wrong type for each option: a word, a truth value, nothing, and no finite number.
WRONG = ("1", True, None, float("nan"))
OPTIONS = {
    Greedy: ("max_ratio", "max_extra"),
    Beam: ("width", "length_penalty", "n_best", "max_ratio"),
    Sample: ("temperature", "max_tokens"),
}
CASES = [(kind, option, x) for kind, names in OPTIONS.items() for option in names for x in WRONG]
CASES += [(Sample, option, x) for option in ("top_k", "top_p", "seed") for x in ("1", True)]
CASES += [(Sample, "top_k", 1.5), (Sample, "seed", 1.5), (Sample, "seed", 2**70)]
CASES += [(Greedy, "max_extra", 1.5), (Beam, "n_best", 1.0)]


@pytest.mark.parametrize("kind, option, value", CASES)
def test_an_option_of_another_type_is_refused(kind: type, option: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{option} must be"):
        kind(**{option: value})


def translate(**arguments: Any) -> None:
    source = torch.tensor([[3, 4]])
    inputs = {"model": seq2seq().eval(), "source": source, "source_mask": source > 0} | IDS
    Greedy(max_extra=1, max_ratio=0)(**inputs | arguments)


def continue_prompts(**arguments: Any) -> None:
    inputs = {"model": language_model().eval(), "prompts": [[1, 3]]} | IDS
    Sample(max_tokens=1)(**inputs | arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": language_model().eval()}, "needs a model such as Seq2Seq, got LanguageModel"),
        ({"model": "model"}, "needs a model such as Seq2Seq, got str"),
        ({"source": [[3, 4]]}, "source must be a tensor .b s. of integers, got list"),
        ({"source": torch.tensor([3, 4])}, r"source must have the shape \[b s\], got \[2\]"),
        ({"source_mask": None}, "source_mask must be a tensor .b k. bool, got NoneType"),
        ({"source_mask": torch.ones(1, 2)}, "source_mask must be boolean"),
        ({"eos_id": None}, "eos_id must be a whole number, got None"),
        ({"eos_id": -1}, "eos_id must be at least 0, got -1"),
        ({"eos_id": 11}, "eos_id must be from 0 to 10, got 11"),
        ({"eos_id": 1}, "eos_id must differ from bos_id"),
        ({"eos_id": 0}, "eos_id must differ from pad_id"),
    ],
)
def test_a_search_refuses_what_it_cannot_translate(arguments: dict, message: str) -> None:
    translate()
    with pytest.raises(UserError, match=message):
        translate(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": seq2seq().eval()}, "needs a model such as LanguageModel, got Seq2Seq"),
        ({"prompts": "ab"}, "prompts must be lists of token ids"),
        ({"prompts": ["ab"]}, "prompts must be lists of token ids"),
        ({"prompts": [1, 2]}, "prompts must be lists of token ids"),
        ({"prompts": None}, "prompts must be lists of token ids"),
        ({"prompts": torch.tensor([[1, 2]])}, "prompts must be lists of token ids"),
        ({"eos_id": "2"}, "eos_id must be a whole number, got '2'"),
        ({"eos_id": 11}, "eos_id must be from 0 to 10, got 11"),
        ({"eos_id": 0}, "eos_id must differ from pad_id"),
    ],
)
def test_sampling_refuses_what_it_cannot_continue(arguments: dict, message: str) -> None:
    continue_prompts()
    with pytest.raises(UserError, match=message):
        continue_prompts(**arguments)
