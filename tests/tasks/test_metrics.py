"""Metrics against published scores, sacrebleu's public functions, and closed forms."""

import copy
import csv
import gzip
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
import torch
import torch.nn.functional as F
from torch import multiprocessing

from attention_zoo.errors import UserError
from attention_zoo.tasks.training import metrics
from attention_zoo.tasks.training.metrics import (
    Accuracy,
    BitsPerByte,
    ChrF,
    ExactMatch,
    Perplexity,
    SacreBleu,
    TokenLoss,
    default_bleu_tokenizer,
)
from tests.conformance.cases import mark_exhaustive

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ATTENTION_ZOO_DATA", ROOT.parent / "shared" / "data"))


def data_folder(folder):
    path = DATA / folder
    if not path.is_dir():
        pytest.skip(f"{path} is missing; set ATTENTION_ZOO_DATA to the folder of the real data.")
    return path


def lines(path):
    text = gzip.decompress(path.read_bytes()).decode()
    # The published scores are of lines without trailing white space.
    return [line.rstrip() for line in text.removesuffix("\n").split("\n")]


def updated(metric, hypotheses, references, size):
    """Update a metric with samples in batches of this size, and return it."""
    for start in range(0, len(hypotheses), size):
        part = slice(start, start + size)
        index = torch.arange(len(hypotheses))[part]
        metric.update(hypotheses[part], references[part], index)
    return metric


COLUMNS = [
    ("bleu_mteval_v13a", SacreBleu, {}, 16),
    ("chrf_chrF++.py_nw0", ChrF, {"eps_smoothing": True}, 2),
    ("chrf++_chrF++.py", ChrF, {"word_order": 2, "eps_smoothing": True}, 2),
    ("chrf2_sacrebleu_readme_1dp", ChrF, {}, 5),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "column, kind, options, published", mark_exhaustive((case, case[1]) for case in COLUMNS)
)
def test_published_scores_of_wmt17_systems(column, kind, options, published):
    folder = data_folder("wmt17-en-de-systems")
    with open(folder / "scores.tsv", newline="") as file:
        scores = {row["system"]: row[column] for row in csv.DictReader(file, delimiter="\t")}
    assert len(scores) == 16
    scores = {system: score for system, score in scores.items() if score}
    assert len(scores) == published
    references = lines(folder / "ref.de.gz")
    assert len(references) == 3004
    ours = {}
    for system, score in scores.items():
        hypotheses = lines(folder / "systems" / f"{system}.gz")
        digits = len(score.partition(".")[2])
        value = updated(kind(**options), hypotheses, references, 97).compute().item()
        ours[system] = f"{value:.{digits}f}"
    assert {system: float(value) for system, value in ours.items()} == {
        system: float(score) for system, score in scores.items()
    }


CHRF3 = {"beta": 3}
# How sacrebleu's own tests call it for each list of cases. TER is no metric of ours.
CASES = {
    "corpus_bleu": (SacreBleu, {}),
    "corpus_bleu_max_order": (SacreBleu, {}),
    "raw_corpus_bleu_floor_0.01_fraction": (
        SacreBleu,
        {
            "tokenize": "none",
            "smooth_method": "floor",
            "smooth_value": 0.01,
            "effective_order": True,
        },
    ),
    "sentence_bleu_effective_order": (SacreBleu, {"effective_order": True}),
    "corpus_chrf_beta3_order6_eps_smoothing": (ChrF, CHRF3 | {"eps_smoothing": True}),
    "corpus_chrf_beta3_order6_effective_order": (ChrF, CHRF3),
    "corpus_chrf_beta3_order6_keep_whitespace": (
        ChrF,
        CHRF3 | {"whitespace": True, "eps_smoothing": True},
    ),
    "sentence_chrf_beta2_order6_eps_smoothing": (ChrF, {"eps_smoothing": True}),
}
OPTIONS = ["lowercase", "max_ngram_order", "smooth_method", "smooth_value", "tokenize"]


@pytest.mark.parametrize("name", CASES)
def test_cases_of_sacrebleu(name):
    cases = json.loads((data_folder("sacrebleu-metric-cases") / "cases.json").read_text())
    assert {key for key in cases if not key.startswith("_")} == {*CASES, "corpus_ter"}
    kind, options = CASES[name]
    for case in cases[name]:
        case_options = case.get("options", {}) | {key: case[key] for key in OPTIONS if key in case}
        hypotheses = case.get("hyps") or [case["hyp"]]
        if "hyp" in case:
            references = [case.get("refs") or [case["ref"]]]
        else:
            references = list(zip(*case["refs"], strict=False))
        hypotheses = hypotheses[: len(references)]
        value = updated(kind(**options | case_options), hypotheses, references, 1).compute().item()
        if name.startswith("raw"):
            value /= 100
        if "score_2dp" in case:
            assert f"{value:.2f}" == case["score_2dp"]
        else:
            assert value == pytest.approx(case["score"], abs=case.get("tolerance", 1e-5)), case


HYPOTHESES = ["O gato está no tapete .", "", "quarta-feira, 4 de março de 2026", "mais um", "dois"]
REFERENCES = [
    "O gato está sobre o tapete.",
    "nada",
    "quarta-feira, 4 de março de 2026",
    "Mais um",
    "",
]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"lowercase": True}, {"tokenize": "char"}])
def test_bleu_is_sacrebleu(size, options):
    value = updated(SacreBleu(**options), HYPOTHESES, REFERENCES, size).compute().item()
    wanted = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], **options)
    assert value == pytest.approx(wanted.score, rel=1e-6)
    assert value > 0


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"word_order": 2}, {"char_order": 3, "beta": 1}])
def test_chrf_is_sacrebleu(size, options):
    value = updated(ChrF(**options), HYPOTHESES, REFERENCES, size).compute().item()
    wanted = sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], **options)
    assert value == pytest.approx(wanted.score, rel=1e-6)


def test_the_numbers_of_references_may_differ():
    bleu = updated(
        SacreBleu(), ["a b c d e", "f g h i"], [["a b c d f", "b c d e"], ["f g h j"]], 2
    )
    streams = [["a b c d f", "f g h j"], ["b c d e", None]]
    wanted = sacrebleu.corpus_bleu(["a b c d e", "f g h i"], streams)
    assert bleu.compute().item() == pytest.approx(wanted.score, rel=1e-6)
    assert "nrefs:var" in bleu.signature


def test_signatures_are_those_of_sacrebleu():
    assert SacreBleu().signature == (
        f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    )
    two = updated(SacreBleu(lowercase=True), ["a"], [["a", "b"]], 1)
    assert two.signature.startswith("nrefs:2|case:lc|")
    assert ChrF(word_order=2).signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|")


def test_exact_match():
    match = updated(
        ExactMatch(), [" ein Haus\n", "Haus", "", "x"], ["ein Haus", "haus", " ", "x"], 3
    )
    assert match.compute().item() == 0.75


ALL = [
    (SacreBleu, lambda metric: metric.update(["a b c d", "e"], ["a b c d", "f"], [3, 4])),
    (ChrF, lambda metric: metric.update(["a b c d", "e"], ["a b c d", "f"], [3, 4])),
    (ExactMatch, lambda metric: metric.update(["a b c d", "e"], ["a b c d", "f"], [3, 4])),
    (TokenLoss, lambda metric: metric.update(torch.tensor(6.0), 4)),
    (Perplexity, lambda metric: metric.update(torch.tensor(6.0), 4)),
    (BitsPerByte, lambda metric: metric.update(torch.tensor(6.0), torch.tensor(4))),
    (Accuracy, lambda metric: metric.update(torch.tensor([True, False, True]))),
]


@pytest.mark.parametrize("kind, update", ALL)
def test_reset_forgets_everything(kind, update):
    metric = kind()
    update(metric)
    first = metric.compute().item()
    if kind in (SacreBleu, ChrF, ExactMatch):
        metric.update(["zz"], ["yy"], [9])
    elif kind is Accuracy:
        metric.update(torch.tensor([False]))
    else:
        metric.update(torch.tensor(1.0), 1)
    assert metric.compute().item() != first
    metric.reset()
    update(metric)
    assert metric.compute().item() == first


@pytest.mark.parametrize("kind, update", ALL)
def test_metrics_are_copied_and_called(kind, update):
    metric = copy.deepcopy(kind())
    update(metric)
    other = metric.clone()
    other.reset()
    update(other)
    assert other.compute() == metric.compute()
    assert other.compute().dtype == torch.float32


@pytest.mark.parametrize("kind", [SacreBleu, ChrF, ExactMatch])
def test_a_sample_counts_once(kind):
    metric = updated(kind(), HYPOTHESES, REFERENCES, 2)
    once = metric.compute().item()
    metric.update(HYPOTHESES[1:3], REFERENCES[1:3], [1, 2])
    assert metric.compute().item() == once
    # The same texts on other lines are other samples.
    metric.update(HYPOTHESES[:2], REFERENCES[:2], [11, 12])
    assert metric.compute().item() != once


@pytest.mark.parametrize("kind", [SacreBleu, ChrF, ExactMatch])
def test_empty_hypotheses_and_empty_batches(kind):
    metric = kind()
    metric.update([], [], [])
    metric.update(["", ""], ["a b", "c"], [0, 1])
    assert metric.compute().item() == 0


@pytest.mark.parametrize("kind", [SacreBleu, ChrF, ExactMatch])
def test_lists_of_unequal_length_are_refused(kind):
    with pytest.raises(UserError, match="the same length, got 2, 1 and 2"):
        kind().update(["a", "b"], ["a"], [0, 1])


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("kind, update", ALL)
def test_nothing_has_no_score(kind, update):
    with pytest.raises(UserError, match=f"{kind.__name__} needs at least one"):
        kind().compute()


@pytest.mark.parametrize("option", ["tokenize", "smooth_method"])
def test_unknown_names_are_refused(option):
    with pytest.raises(UserError, match=f"{option} must be one of .*, got 'words'"):
        SacreBleu(**{option: "words"})


def test_losses_in_closed_form():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, 11, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 11, (5, 7), generator=generator)
    targets[3, 4:] = -100
    loss, perplexity, bits = TokenLoss(), Perplexity(), BitsPerByte()
    probabilities, size = [], 0
    for row, target in zip(logits, targets, strict=True):
        nll = F.cross_entropy(row, target, reduction="sum", ignore_index=-100)
        real_targets = target[target >= 0]
        loss.update(nll, len(real_targets))
        perplexity.update(nll, (target >= 0).sum())
        bits.update(nll, 3 * len(real_targets))
        size += 3 * len(real_targets)
        probabilities += [
            (word[token].exp() / word.exp().sum()).item()
            for word, token in zip(row, target, strict=True)
            if token >= 0
        ]
    product = math.prod(probabilities)
    assert len(probabilities) == 32
    assert loss.compute().item() == pytest.approx(-math.log(product) / 32, rel=1e-6)
    assert perplexity.compute().item() == pytest.approx(product ** (-1 / 32), rel=1e-6)
    assert bits.compute().item() == pytest.approx(-math.log2(product) / size, rel=1e-6)


def test_the_share_of_right_answers():
    accuracy = Accuracy()
    accuracy.update(torch.tensor([True, True, False]))
    accuracy.update(torch.tensor([], dtype=torch.bool))
    accuracy.update(torch.tensor([True]))
    assert accuracy.compute().item() == 0.75


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    perplexity = Perplexity()
    for _ in range(3):
        perplexity.update(F.cross_entropy(torch.zeros(9, 50), torch.arange(9), reduction="sum"), 9)
    assert perplexity.compute().item() == pytest.approx(50, rel=1e-6)


def test_many_small_batches_lose_no_digits():
    loss = TokenLoss()
    for _ in range(20_000):
        loss.update(torch.tensor(0.1), 1)
    assert loss.compute().item() == pytest.approx(0.1, rel=1e-7)


def test_sums_in_single_precision_lose_no_digits():
    total = torch.zeros(2, 3, dtype=torch.float32)
    values = torch.tensor([0.1, 3e-5, 7.0], dtype=torch.float32)
    total = metrics.add_exactly(total, torch.full((3,), 2.0**25, dtype=torch.float32))
    for _ in range(1000):
        total = metrics.add_exactly(total, values)
    assert total.dtype == torch.float32
    expected = 2.0**25 + 1000 * values.double()
    torch.testing.assert_close(total.double().sum(0), expected, rtol=1e-10, atol=0)


def test_losses_take_no_more_memory_with_each_batch():
    nll, is_target = torch.rand(4, 6), torch.ones(4, 6, dtype=torch.bool)
    token_losses = [TokenLoss(), Perplexity(), BitsPerByte()]
    by_position = metrics.LossByPosition(6)
    sizes = []
    for _ in range(20):
        for metric in token_losses:
            metric.update(nll.sum(), is_target.sum())
        by_position.update(nll, is_target)
        sizes.append(len(pickle.dumps([*token_losses, by_position])))
    assert len(set(sizes[1:])) == 1


def test_a_diverged_model_has_an_infinite_perplexity():
    perplexity = Perplexity()
    perplexity.update(torch.tensor(5000.0), 2)
    perplexity.update(torch.tensor(1.0), 2)
    assert perplexity.compute().item() == math.inf


# Line 2 is seen by both processes; and then one of them sees nothing at all.
RANK_LINES = [[[0, 2], [1, 2, 3, 4]], [[0, 1, 2, 3, 4], []]]


def one_process(rank, folder):
    torch.set_num_threads(1)
    # A file brings the processes together, so no port can be taken.
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    scores = []
    for lines_of_rank in RANK_LINES:
        metrics = {kind.__name__: kind() for kind, _ in ALL}
        for line in lines_of_rank[rank]:
            for name in ("SacreBleu", "ChrF", "ExactMatch"):
                metrics[name].update([HYPOTHESES[line]], [REFERENCES[line]], [line])
            if rank == 0 or line != 2:
                for name in ("TokenLoss", "Perplexity", "BitsPerByte"):
                    metrics[name].update(torch.tensor(1.0 + line), 2 * line + 1)
                metrics["Accuracy"].update(torch.tensor([line < 2] * (line + 1)))
        scores.append({name: metric.compute().item() for name, metric in metrics.items()})
    Path(folder, f"{rank}.json").write_text(json.dumps(scores))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    multiprocessing.spawn(one_process, args=(tmp_path,), nprocs=2, join=True)
    wanted = {}
    for kind, _ in ALL:
        metric = kind()
        if kind in (SacreBleu, ChrF, ExactMatch):
            updated(metric, HYPOTHESES, REFERENCES, 5)
        elif kind is Accuracy:
            metric.update(torch.tensor([True] * 3 + [False] * 12))
        else:
            for line in range(5):
                metric.update(torch.tensor(1.0 + line), 2 * line + 1)
        wanted[kind.__name__] = metric.compute().item()
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) == len(RANK_LINES)
        for scores in found:
            assert scores == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_nothing_heavy_is_imported():
    """By us: torchmetrics takes in transformers, wherever that is installed."""
    code = (
        "import sys, attention_zoo.tasks.training.metrics; "
        "print([name for name in ('lightning', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


ZH = (["他今天早上去了北京然后回家。"] * 2, ["他今天早上去北京了然后回了家。"] * 2)


@pytest.mark.parametrize("language", ["zh", "zh_Hant_TW", "zh-CN", "yue"])
def test_chinese_has_its_own_tokens(language):
    metric = updated(SacreBleu(tokenize=default_bleu_tokenizer(language)), *ZH, size=1)
    expected = sacrebleu.corpus_bleu(ZH[0], [ZH[1]], tokenize="zh").score
    assert float(metric.compute()) == pytest.approx(expected)
    assert expected > 4 * sacrebleu.corpus_bleu(ZH[0], [ZH[1]]).score
    assert "tok:zh" in metric.signature


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        *[(language, "13a") for language in ("pt_BR", "de", "tr", "", None, "2016_flickr")],
        *[("th", "char"), ("lo_LA", "char"), ("km", "char")],
    ],
)
def test_tokens_follow_the_language(language, tokenizer):
    assert default_bleu_tokenizer(language) == tokenizer


@pytest.mark.parametrize(("language", "tokenizer"), [("ja_JP", "ja-mecab"), ("ko", "ko-mecab")])
def test_a_missing_package_is_said(language, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    assert default_bleu_tokenizer(language) == "char"
    assert f"pip install 'sacrebleu[{language[:2]}]'" in caplog.text
    monkeypatch.setattr(metrics, "find_spec", lambda name: name)
    assert default_bleu_tokenizer(language) == tokenizer


def test_outputs_in_tokens_are_warned_of_once(caplog):
    texts = [f"all {number} words of a line ." for number in range(120)]
    metric = updated(SacreBleu(), texts, texts, size=7)
    assert float(metric.compute()) == pytest.approx(100)
    assert "nrefs:1" in metric.signature
    assert caplog.text.count("you forgot to detokenize") == 1
