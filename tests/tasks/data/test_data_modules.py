import pickle
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from attention_zoo.errors import BadInput, Unsupported, UserError
from attention_zoo.tasks.configuration.conf_files import (
    SYMBOL_TOKENIZER,
    choice_target,
    list_choices,
)
from attention_zoo.tasks.data import language_data
from attention_zoo.tasks.data.language_data import LanguageData, encode_document, pieces
from attention_zoo.tasks.data.samplers import RandomBlockSampler
from attention_zoo.tasks.data.sources.parallel_files import ParallelFiles
from attention_zoo.tasks.data.sources.phrases import Phrases
from attention_zoo.tasks.data.sources.text_files import TextFiles
from attention_zoo.tasks.data.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
)
from attention_zoo.tasks.data.translation_data import TranslationData

CONF = Path(__file__).parents[3] / "conf"
BPE = partial(BytePairTokenizer.train, vocabulary_size=400)
SOURCES = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
TOKENIZERS = [
    name
    for name in list_choices("tokenizer")
    if choice_target("tokenizer", name) != SYMBOL_TOKENIZER
]


def phrases(cache: Path, **changes) -> TranslationData:
    arguments = {
        "source": Phrases(size=400, valid=30, test=30),
        "tokenizer": BPE,
        "cache_dir": cache,
        "tokens_per_batch": 256,
    }
    data = TranslationData(**(arguments | changes))
    data.prepare_data()
    data.setup()
    return data


def composed(name: str, cache: Path, tokenizer: str = "bytes", **changes: object):
    config = OmegaConf.create(
        {
            "seed": 3,
            "paths": {"cache": str(cache)},
            "tokenizer": OmegaConf.load(CONF / "tokenizer" / f"{tokenizer}.yaml"),
            "data": OmegaConf.load(CONF / "data" / f"{name}.yaml"),
        }
    )
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    config.data.pop("defaults", None)  # For Hydra alone, when it composes.
    return instantiate(config.data, _convert_="all")


@pytest.mark.parametrize("name", SOURCES)
def test_every_yaml_makes_its_data_module(name: str, tmp_path: Path) -> None:
    required = {
        "parallel_files": {
            "data__source__train": [["a", "b"]],
            "data__source__valid": [["a", "b"]],
        },
        "text_files": {"data__source__train": ["a"], "data__source__valid": ["b"]},
    }
    data = composed(name, tmp_path, **required.get(name, {}))
    assert data.seed == 3
    embedded = name in ("phrases", "python_docs", "python_source")
    assert isinstance(data.source.cache_key() if embedded else {}, dict)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_tokenizer_of_text_prepares_the_embedded_data(tokenizer: str, tmp_path: Path) -> None:
    data = composed("phrases", tmp_path, tokenizer, data__source__size=300)
    data.prepare_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    for source, target, index in zip(*batch, strict=True):
        pair = data.train[index]
        assert data.tokenizer.decode(source.tolist()) == pair[0]
        assert data.tokenizer.decode(target.tolist()) == pair[1]
        assert source[source != 0][-1] == 2
        assert target[0] == 1 and target[target != 0][-1] == 2


def test_reports_probes_and_fingerprint(tmp_path: Path) -> None:
    data = phrases(tmp_path)
    assert data.report["train"]["lines"] == data.report["train"]["kept"] == 400
    assert data.probes[0] == "Wednesday, March 4, 2026"
    assert data.probe_references is not None
    assert data.probe_references[0] == "quarta-feira, 4 de março de 2026"
    assert phrases(tmp_path).fingerprint == phrases(tmp_path / "other").fingerprint
    assert phrases(tmp_path, tokenizer=ByteTokenizer.train).fingerprint != data.fingerprint


def test_the_arguments_of_a_tokenizer_are_inputs_of_the_data(tmp_path: Path) -> None:
    def train(size: int, lines: list[str]) -> BytePairTokenizer:
        return BytePairTokenizer.train(lines, vocabulary_size=size)

    for size in (300, 350):
        data = phrases(tmp_path, tokenizer=partial(train, size))
        assert data.tokenizer.vocabulary_size == size


def test_chosen_probes_find_their_references(tmp_path: Path) -> None:
    known = phrases(tmp_path).valid[3]
    data = phrases(tmp_path, probes=[known[0]])
    assert (data.probes, data.probe_references) == ([known[0]], [known[1]])
    assert phrases(tmp_path, probes=["never seen"]).probe_references is None


def test_the_order_is_reproducible_and_follows_the_seed(tmp_path: Path) -> None:
    orders = [
        [batch.index.tolist() for batch in phrases(tmp_path, seed=seed).train_dataloader()]
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    hashes = [phrases(tmp_path, seed=seed).train_dataloader().order_hash() for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_example_has_the_mean_length_of_training(tmp_path: Path) -> None:
    data = phrases(tmp_path, tokens_per_batch=512)
    lengths = [part.ne(0).sum(1) for batch in data.train_dataloader() for part in batch[:2]]
    source, target = (torch.cat(lengths[side::2]).float().mean() for side in (0, 1))
    example = data.example_batch()
    assert example.source.shape == (1, round(source.item()))
    assert example.target.shape == (1, round(target.item()))
    assert example.source.ne(0).all() and example.target.ne(0).all()
    text = language(tmp_path, documents=True).example_batch()
    assert text.inputs.shape == text.targets.shape == text.segment_ids.shape == (1, 16)


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    alone, with_worker = phrases(tmp_path), phrases(tmp_path, num_workers=1)
    for one, other in zip(alone.train_dataloader(), with_worker.train_dataloader(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def pair_files(folder: Path, train: list[tuple[str, str]], valid: list[tuple[str, str]]):
    for name, pairs in (("train", train), ("valid", valid)):
        for side, language in enumerate(("en", "pt")):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (folder / f"{name}.{language}").write_text(text, encoding="utf-8")
    return ParallelFiles(
        train=[["train.en", "train.pt"]], valid=[["valid.en", "valid.pt"]], root=folder
    )


def test_empty_and_long_train_lines_are_counted_and_others_kept(tmp_path: Path) -> None:
    train = [("a", "b"), ("", "c"), ("d", "  "), ("e" * 30, "f"), ("g", "h" * 30), ("i", "j")]
    source = pair_files(tmp_path, train, [("", "k"), ("l" * 40, "m")])
    data = phrases(tmp_path, source=source, tokenizer=ByteTokenizer.train, max_tokens=20)
    counts = {name: data.report["train"][name] for name in ("lines", "empty", "over_long", "kept")}
    assert counts == {"lines": 6, "empty": 2, "over_long": 2, "kept": 2}
    assert data.report["valid"]["kept"] == 2 and data.report["valid"]["empty"] == 1
    rows = np.concatenate([batch.index for batch in data.train_dataloader()])
    assert sorted(rows.tolist()) == [0, 5]
    rows = np.concatenate([batch.index for batch in data.val_dataloader()])
    assert sorted(rows.tolist()) == [0, 1]


def test_lines_that_the_model_cannot_take_are_refused_with_their_location(tmp_path: Path) -> None:
    source = pair_files(tmp_path, [("a", "b")], [("c", "d"), ("e" * 40, "f")])
    for _ in range(2):  # the second time out of the cache
        data = phrases(tmp_path, source=source, tokenizer=ByteTokenizer.train, max_tokens=20)
        data.check_max_length(41)
        with pytest.raises(BadInput, match=r"valid\.en .*line 2: 41 tokens, .*takes 40; shorten"):
            data.check_max_length(40)
    with pytest.raises(BadInput, match=r"train\.en .*line 1.*lower data\.max_tokens to 2"):
        data.check_max_length(2)


def test_a_train_split_without_usable_lines_is_refused(tmp_path: Path) -> None:
    source = pair_files(tmp_path, [("", "a"), ("b" * 30, "c")], [("d", "e")])
    with pytest.raises(BadInput, match=r"no train line is left: of 2, 1 are empty .* 1 have more"):
        phrases(tmp_path, source=source, tokenizer=ByteTokenizer.train, max_tokens=20)


def test_a_limit_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_tokens=300 and tokens_per_batch=256"):
        phrases(tmp_path, max_tokens=300)


def test_changed_files_are_prepared_anew(tmp_path: Path) -> None:
    before = phrases(tmp_path, source=pair_files(tmp_path, [("a", "b")], [("c", "d")]))
    after = phrases(tmp_path, source=pair_files(tmp_path, [("a", "x")], [("c", "d")]))
    assert before.train == [("a", "b")] and after.train == [("a", "x")]
    assert before.fingerprint != after.fingerprint


def language(folder: Path, **changes) -> LanguageData:
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("first\ntext " * 40, encoding="utf-8")
    (folder / "b.txt").write_text("other text\n" * 20, encoding="utf-8")
    arguments = {
        "source": TextFiles(train=["a.txt", "b.txt"], valid="b.txt", root=folder),
        "tokenizer": CharacterTokenizer.train,
        "cache_dir": folder,
        "context_length": 16,
        "batch_size": 4,
    }
    data = LanguageData(**(arguments | changes))
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("documents", [False, True])
def test_text_becomes_blocks(documents: bool, tmp_path: Path) -> None:
    data = language(tmp_path, documents=documents)
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape == (4, 16)
    assert (batch.segment_ids is not None) == documents
    predicted = [batch.targets[batch.targets != -100] for batch in data.val_dataloader()]
    assert data.tokenizer.decode(torch.cat(predicted).tolist()) == "other text\n" * 20
    assert data.report["train"]["documents"] == 2
    assert data.report["valid"]["bytes"] == 220
    assert data.probes and data.probe_references is None


def test_random_blocks_are_a_choice_of_configuration(tmp_path: Path) -> None:
    data = language(tmp_path, sampling=RandomBlockSampler)
    assert isinstance(data.train_dataloader().sampler, RandomBlockSampler)


def test_impossible_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.context_length must be at least 1, got 0"):
        language(tmp_path, context_length=0)
    with pytest.raises(UserError, match=r"lower data\.context_length"):
        language(tmp_path, context_length=5000).train_dataloader()
    with pytest.raises(UserError, match=r"data\.context_length must be at most .* got 16 and 8"):
        language(tmp_path).check_max_length(8)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(BadInput, match="the valid split holds no text"):
        language(tmp_path, source=TextFiles(train="a.txt", valid="empty.txt", root=tmp_path))


AWKWARD = (
    "a \n b\n\nc 5\n5 \n ²x\t'd 's  it's\r\n\u2028 é 一二 三\n\n\n  \n z "
    "中文\n无空格 \x1c q\x85 r\n"
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("text", [AWKWARD * 5, "ACGT" * 800, " \n = Title = \n \n Words . \n" * 30])
def test_a_document_in_pieces_is_encoded_as_a_whole(
    text: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_data, "PIECE_SIZE", size)
    monkeypatch.setattr(language_data, "PIECES", 3)
    for tokenizer in (
        BytePairTokenizer.train([text], vocabulary_size=300),
        CharacterTokenizer.train([text]),
        ByteTokenizer(),
    ):
        for document in (text, text.splitlines(keepends=True), list(text)):
            tokens = np.concatenate([*encode_document(tokenizer, pieces(document))])
            assert tokens.tolist() == [1, *tokenizer.encode(text), 2]


def test_real_text_in_pieces_is_encoded_as_a_whole(
    real_lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_data, "PIECE_SIZE", 200)
    text = "\n".join(real_lines("wikitext-2/valid.txt.gz")[:400])
    for tokenizer in (BytePairTokenizer.train([text], vocabulary_size=500), ByteTokenizer()):
        tokens = np.concatenate([*encode_document(tokenizer, pieces(text))])
        assert tokens.tolist() == [1, *tokenizer.encode(text), 2]
        assert len([*pieces(text)]) > 200
    again = BytePairTokenizer.train(pieces(text), vocabulary_size=500)
    assert again.state() == BytePairTokenizer.train([text], vocabulary_size=500).state()


class Parts:
    """A document that is read in parts, again each time."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def __iter__(self):
        return iter(self.texts)


class TextsInParts(Phrases):
    def splits(self):
        train = [Parts("some text 12\n" * 100, "\n \nmore é\n" * 50), Parts(" ", "\n"), "plain\n"]
        return {"train": train, "valid": [Parts("other ", "text\n" * 20)], "test": ["x y\n" * 20]}


class WholeTexts(TextsInParts):
    def splits(self):
        parts = super().splits()
        return {split: ["".join(document) for document in parts[split]] for split in parts}


@pytest.mark.parametrize("tokenizer", [BPE, ByteTokenizer.train, CharacterTokenizer.train])
def test_documents_in_parts_are_those_documents(tokenizer, tmp_path: Path) -> None:
    one = language(tmp_path / "1", source=TextsInParts(), tokenizer=tokenizer)
    other = language(tmp_path / "2", source=WholeTexts(), tokenizer=tokenizer)
    for split in ("train", "valid", "test"):
        assert one.streams[split].tolist() == other.streams[split].tolist()
        assert one.report[split] == other.report[split]
    assert one.report["train"]["empty"] == 1 and one.report["train"]["lines"] == 251
    assert one.probes == other.probes


class Pairs(Phrases):
    def splits(self):
        return {split: [("a text", "ein Text")] for split in ("train", "valid", "test")}


def test_pairs_are_no_text_and_texts_are_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"needs a source of texts, got a pair"):
        language(tmp_path / "1", source=Pairs())
    with pytest.raises(Unsupported, match=r"needs a source of pairs .*, got WholeTexts"):
        data = TranslationData(
            source=WholeTexts(), tokenizer=ByteTokenizer.train, cache_dir=tmp_path / "2"
        )
        data.prepare_data()


def test_a_stream_stays_on_disk_also_in_workers(tmp_path: Path) -> None:
    data = language(tmp_path)
    assert isinstance(data.streams["train"], np.memmap)
    sent = pickle.dumps(data.dataset("train"))
    assert len(sent) < 1000
    received = pickle.loads(sent)
    assert isinstance(received.stream, np.memmap)
    assert torch.equal(received[[3]].inputs, data.dataset("train")[[3]].inputs)


@pytest.mark.slow
def test_real_multi30k(real, tmp_path: Path) -> None:
    data = composed("multi30k", tmp_path, "bpe", data__root=str(real("multi30k/raw")))
    data.prepare_data()
    data.setup()
    lengths = {split: len(getattr(data, split)) for split in ("train", "valid", "test")}
    assert lengths == {"train": 29000, "valid": 1014, "test": 1000}
    assert data.report["train"]["kept"] == 29000
    assert data.tokenizer.vocabulary_size == 1000
    real_tokens = data.report["train"]["source_tokens"] + data.report["train"]["target_tokens"]
    padded = sum(batch.source.numel() + batch.target.numel() for batch in data.train_dataloader())
    assert 1 - real_tokens / padded < 0.1


def test_real_cyrillic(real, tmp_path: Path) -> None:
    data = composed(
        "parallel_files",
        tmp_path,
        "characters",
        data__root=str(real("tatoeba-en-ru")),
        data__source__train=[["train.en", "train.ru"]],
        data__source__valid=[["valid.en", "valid.ru"]],
        data__source__test=[["test.en", "test.ru"]],
    )
    data.prepare_data()
    data.setup()
    assert len(data.train) == 17425
    batch = next(iter(data.test_dataloader()))
    for target, index in zip(batch.target, batch.index, strict=True):
        unknown = (target == 3).any()
        assert unknown or data.tokenizer.decode(target.tolist()) == data.test[index][1]


class Recorder(LightningModule):
    """Records the pairs of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int]]] = []
        self.evaluated: list[int] = []

    def training_step(self, batch, number):
        self.seen.append((self.current_epoch, batch.index.tolist()))
        return self.weight.sum()

    def validation_step(self, batch, number):
        self.evaluated += batch.index.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: TranslationData, folder: Path, resume: str | None = None, **limits) -> Recorder:
    model = Recorder()
    checkpoint = ModelCheckpoint(folder, every_n_train_steps=7, save_top_k=-1, filename="{step}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[checkpoint],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            **limits,
        ).fit(model, datamodule=data, ckpt_path=resume)
    return model


def test_lightning_gives_each_epoch_its_order_and_resumes_within_one(tmp_path: Path) -> None:
    whole = fit(phrases(tmp_path), tmp_path / "whole", max_epochs=3)
    epochs = [[batch for epoch, batch in whole.seen if epoch == number] for number in range(3)]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(400))
    assert epochs[0] != epochs[1] != epochs[2]
    assert sorted(whole.evaluated) == sorted(list(range(30)) * 3)

    steps = len(whole.seen)
    for step in (7, 14, steps // 7 * 7):
        path = str(tmp_path / "whole" / f"step={step}.ckpt")
        resumed = fit(phrases(tmp_path), tmp_path / f"from{step}", resume=path, max_epochs=3)
        assert resumed.seen == whole.seen[step:]
