"""One trained translation model, and everything that one does with it."""

import gzip
import json
import re

import pytest
import torch
from omegaconf import OmegaConf

from attention_zoo.tasks import load
from tests.cli.conftest import LINES, ROOT, SMALL, Program


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    program = Program(tmp_path_factory.mktemp("trained"))
    options = [*SMALL, *LINES, "trainer.max_steps=3", "trainer.val_check_interval=2"]
    program.done = program("train", *options)
    (program.run,) = program.runs()
    program.best = program.run / "checkpoints" / "best.ckpt"
    return program


def test_a_run_folder_holds_what_was_done_and_how(trained):
    results = json.loads((trained.run / "results.json").read_text())
    scores = {"loss", "bleu", "chrf", "exact_match", "perplexity", "bits_per_byte"}
    assert {f"test/{name}" for name in scores} | {"val/loss"} <= set(results)
    how = {"parameters", "parameters/attention", "parameters/position", "seconds", "seed"}
    how |= {"versions", "git_commit", "hardware", "precision", "data_hash", "data_order"}
    assert how | {"sacrebleu_signature", "chrf_signature"} <= set(results)
    assert "matched" not in results
    for amount in ("tokens_seen", "tokens_per_second", "training_flops_per_token"):
        assert results[amount] > 0
    assert 10**7 < results["peak_memory_bytes"] < 10**11
    # Keys and values of a layer: of the source, and of what was written.
    assert results["decode_state_bytes"] % (2 * 16 * 4) == 0 < results["decode_state_bytes"]
    history = results["history"]
    assert [step for step, _, _ in history["train/loss"]] == [3]
    assert [step for step, _, _ in history["val/loss"]] == [2, 3]
    assert history["val/loss"][-1][1] == results["tokens_seen"]
    config = OmegaConf.load(trained.run / "config.yaml")
    assert OmegaConf.to_container(config, resolve=False) == OmegaConf.to_container(
        config, resolve=True
    )
    assert config.model.dim == 16
    assert (trained.run / "checkpoints" / "last.ckpt").exists()
    assert list((trained.run / "figures").glob("probe-1-cross-layer-0.png"))


def test_the_last_python_example_of_the_readme_runs(trained, capsys):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(examples[-1].replace("FILE", str(trained.best)), {})
    assert capsys.readouterr().out.startswith("['")


def outputs(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


@pytest.mark.slow
def test_what_the_model_wrote_can_be_read_line_by_line(trained, tmp_path):
    lines = outputs(trained.run / "test_outputs.jsonl")
    assert len(lines) == 8
    assert all(line.keys() == {"source", "reference", "output"} for line in lines)
    ckpt, texts = f"ckpt_path={trained.best}", [line["source"] for line in lines]
    written = trained("translate", ckpt, input="\n".join(texts) + "\n").stdout.split("\n")
    assert written[:-1] == [line["output"] for line in lines]
    trained("evaluate", ckpt, f"output={tmp_path / 'of'}")
    assert outputs(tmp_path / "of" / "test_outputs.jsonl") == lines
    trained("evaluate", ckpt, f"output={tmp_path / 'of'}", "split=valid")
    assert len(outputs(tmp_path / "of" / "valid_outputs.jsonl")) == 8


def test_the_terminal_shows_the_run_and_no_noise(trained):
    out, err = trained.done.stdout, trained.done.stderr
    assert err == ""
    assert "tokenizer characters" in out
    assert "Results" in out and "test/bleu" in out and "Samples" in out
    relative = trained.best.relative_to(trained.folder)
    assert f"attention-zoo translate ckpt_path={relative} " in out
    assert out.count("backend=auto is") == 1
    assert out.count("W&B:") == 1
    for noise in ("Warning", "warning", "Tip", "TPU", "Lightning", "rank_zero"):
        assert noise not in out


@pytest.mark.slow
def test_evaluate_gives_the_figures_of_training(trained):
    results = json.loads((trained.run / "results.json").read_text())
    out = trained("evaluate", f"ckpt_path={trained.best}").stdout
    shown = dict(line.split() for line in out.splitlines() if "test/" in line)
    expected = {name: results[name] for name in shown}
    assert shown == {k: f"{v:.4f}" if v < 10 else f"{v:.2f}" for k, v in expected.items()}
    assert len(shown) == 6


@pytest.mark.slow
def test_evaluate_takes_another_split_and_another_source(trained):
    out = trained(
        "evaluate", f"ckpt_path={trained.best}", "split=valid", "data.source.valid=4"
    ).stdout
    assert "val/bleu" in out and "val/loss" in out
    (trained.folder / "a.en").write_text("Brazil\nJapan\n")
    (trained.folder / "a.pt").write_text("Brasil\nJapão\n")
    out = trained(
        "evaluate",
        f"ckpt_path={trained.best}",
        "data=parallel_files",
        "data.source.train=[[a.en,a.pt]]",
        "data.source.valid=[[a.en,a.pt]]",
    ).stdout
    assert "test/chrf" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "override, key, value",
    [
        ("attention@encoder_attention=linear", "encoder_attention.name", "linear"),
        ("seed=5", "seed", 5),
        ("model.dropout=0.3", "model.dropout", 0.3),
    ],
)
def test_overrides_replace_what_the_checkpoint_was_trained_with(trained, override, key, value):
    composed = trained("translate", f"ckpt_path={trained.best}", override, "--cfg", "job").stdout
    assert OmegaConf.select(OmegaConf.create(composed), key) == value


@pytest.mark.slow
def test_a_checkpoint_is_whole(trained, tmp_path):
    checkpoint = torch.load(trained.best, weights_only=True)
    assert checkpoint["attention_zoo"]["config"]["model"]["dim"] == 16
    alone = Program(tmp_path)
    (tmp_path / "a copy.ckpt").write_bytes(trained.best.read_bytes())
    here = alone("translate", "ckpt_path='a copy.ckpt'", "Brazil").stdout
    assert here == trained("translate", f"ckpt_path={trained.best}", "Brazil").stdout
    assert here.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a copy.ckpt"]


@pytest.mark.slow
def test_lines_come_from_anywhere(trained):
    lines = ["Brazil", "", "a=b and c"]
    text = "\n".join(lines) + "\n"
    arguments = trained("translate", f"ckpt_path={trained.best}", "--", *lines).stdout
    assert arguments.count("\n") == 3
    (trained.folder / "lines.txt").write_text(text)
    (trained.folder / "lines.txt.gz").write_bytes(gzip.compress(text.encode()))
    ckpt = f"ckpt_path={trained.best}"
    assert trained("translate", ckpt, "input=lines.txt.gz").stdout == arguments
    assert trained("translate", ckpt, input=text).stdout == arguments


@pytest.mark.slow
def test_beam_search_gives_n_best(trained):
    done = trained(
        "translate",
        f"ckpt_path={trained.best}",
        "decoding=beam",
        "decoding.n_best=3",
        "Brazil",
        "Japan",
    )
    first, second, rest = done.stdout.split("\n\n")
    assert rest == ""
    for part in (first, second):
        scores = [float(line.split("\t")[0]) for line in part.split("\n")]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_attend_translates_and_writes_a_page(trained):
    ckpt, lines = f"ckpt_path={trained.best}", ["Brazil", "a b"]
    options = ["decoding=beam", "output=pages/seen.html", "--", *lines]
    done = trained("attend", ckpt, *options)
    assert done.stderr == ""
    *written, told = done.stdout.splitlines()
    expected = trained("translate", ckpt, "decoding=beam", "--", *lines).stdout
    assert written == expected.split("\n")[:-1]
    assert told.startswith("What attends to what: pages/seen.html (")
    records = read_records(trained.folder / "pages" / "seen.html")
    assert [record["source"] for record in records] == lines
    assert [record["target"] for record in records] == written
    for reading in records:
        roles = {role["name"]: role for role in reading["roles"]}
        assert list(roles) == ["encoder", "decoder", "cross"]
        characters = reading["source"].replace(" ", "␣")
        assert roles["cross"]["keys"] == [*characters, "<eos>"]
        assert [layer["heads"] for layer in roles["cross"]["layers"]] == [2]


def read_records(page):
    return json.loads(re.search(r'id="records">(.*?)</script>', page.read_text())[1])


def test_a_checkpoint_is_loaded_in_one_call(trained):
    task = load(trained.best)
    assert not task.training
    reading = task.attend("Brazil")
    assert reading.source == "Brazil" and reading.target == task.generate(["Brazil"])[0]
    source, target = (torch.tensor([[*ids, 2]]) for ids in map(task.tokenizer.encode, reading[3:5]))
    maps = task.model.attention_maps(source, torch.cat([torch.tensor([[1]]), target[:, :-1]], 1))
    for role in maps:
        queries, keys = reading.tokens(role)
        assert reading.maps[role][0].shape == (2, len(queries), len(keys))
        assert torch.allclose(reading.maps[role][0], maps[role][0][0])


@pytest.mark.slow
def test_wrong_checkpoints_and_texts_get_one_line(trained, refuses):
    ckpt = f"ckpt_path={trained.best}"
    whole = trained.best.read_bytes()
    (trained.folder / "corrupt.ckpt").write_bytes(whole[: len(whole) // 2])
    (trained.folder / "empty.ckpt").write_bytes(b"")
    torch.save({"state_dict": {}}, trained.folder / "other.ckpt")
    (trained.folder / "latin1.txt").write_bytes(b"fine\nA\xe7ores\n")
    (trained.folder / "best.html").write_bytes(b"")
    (trained.folder / "cut.gz").write_bytes(gzip.compress(b"a line\n" * 9)[:-9])
    folder = trained.run / "checkpoints"
    wrong = {
        ("translate", f"ckpt_path={folder}", "x"): "is a folder",
        ("translate", "ckpt_path=nowhere.ckpt", "x"): "There is no checkpoint nowhere.ckpt",
        ("translate", "x"): "translate needs a checkpoint",
        ("translate", "ckpt_path=corrupt.ckpt", "x"): "corrupt.ckpt cannot be read",
        ("evaluate", "ckpt_path=empty.ckpt"): "empty.ckpt cannot be read",
        ("translate", "ckpt_path=other.ckpt", "x"): "no checkpoint of attention-zoo",
        ("generate", ckpt, "x"): "use attention-zoo translate",
        ("translate", ckpt, "input=missing.txt"): "missing.txt",
        ("translate", ckpt, "input=cut.gz"): "cut.gz cannot be read",
        ("translate", ckpt, "input=latin1.txt"): "line 2: byte 0xe7 is not valid UTF-8",
        ("translate", ckpt, "input=latin1.txt", "x"): "not from both",
        ("evaluate", ckpt, "split=train"): "split must be",
        ("evaluate", ckpt, "match=flops"): "There is no option 'match'",
        (
            "evaluate",
            ckpt,
            "position=learned",
        ): "position.table.weight is missing in the checkpoint",
        (
            "evaluate",
            ckpt,
            "model.ffn_dim=48",
        ): "[32, 16] in the checkpoint, and [48, 16] in the model",
        ("translate", ckpt, "decoding=beam", "decoding.widht=2", "x"): "decoding.width",
        ("translate", ckpt, "decoding=bean", "x"): "beam",
        ("attend", "x"): "attend needs a checkpoint",
        (
            "attend",
            ckpt,
            "output=page.txt",
            "x",
        ): "must be an HTML file, such as attention.html, got",
        (
            "attend",
            ckpt,
            "output=best.html/page.html",
            "x",
        ): "best.html/page.html cannot be written",
        ("attend", ckpt, "decoding=beam", "decoding.n_best=2", "x"): "give decoding.n_best=1",
        ("attend", ckpt, "split=test", "x"): "There is no option 'split'",
    }
    for arguments, reason in wrong.items():
        assert reason in refuses(*arguments, folder=trained.folder), arguments
    told = refuses("translate", ckpt, folder=trained.folder, input=b"\xff\n")
    assert "standard input, line 1: byte 0xff is not valid UTF-8" in told


def test_what_cannot_be_resumed_is_refused(trained, refuses):
    last = trained.run / "checkpoints" / "last.ckpt"
    options = ["train", *SMALL, *LINES, "logger=none", f"ckpt_path={last}"]
    options += ["trainer.val_check_interval=2"]
    refusal = refuses(*options, "model.ffn_dim=48", folder=trained.folder)
    assert "was trained with model.ffn_dim=32, got model.ffn_dim=48" in refusal
    refusal = refuses(*options, "trainer.max_steps=2", folder=trained.folder)
    assert "for 3 steps already" in refusal


@pytest.mark.slow
def test_figures_are_of_the_newest_translation(trained):
    lines = trained("figures").stdout.splitlines()
    assert lines[0] == f"The trained model is {trained.best.relative_to(trained.folder)}."
    assert lines[-1] == "figures/index.html"
    files = {str(path.relative_to(trained.folder)) for path in trained.folder.glob("figures/*")}
    assert files == {*lines[1:]} and len(files) > 12
