"""Help, composition, wrong words and completion: what answers without a training."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.composition import parse_command
from attention_zoo.tasks.configuration.override_grammar import (
    describe_repeated_options,
    last_values,
)
from attention_zoo.tasks.run_folder import JobRecord, RunFolder
from attention_zoo.tasks.sweeps.jobs import JOB_FOLDER, Job
from attention_zoo.tasks.sweeps.scheduling import outcome_table
from attention_zoo.tasks.views.tables import print_table
from tests.cli.conftest import ROOT, SMALL, TEXT
from tests.conformance.cases import mark_exhaustive

ASK = (
    "import sys; sys.argv = ['attention-zoo', *sys.argv[1:]]; "
    "from attention_zoo.tasks.commands.cli import"
)


def test_composition_needs_no_torch(program):
    code = (
        f"{ASK} main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'lightning', 'wandb', 'torchmetrics'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for arguments in (["train", "--cfg", "job"], ["train", "--help"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=program.folder,
            env=program.environment(),
            capture_output=True,
            text=True,
        )
        assert "AssertionError" not in done.stderr, (arguments, done.stderr)


WRONG = [
    (["trian"], 2, "Did you mean train"),
    (["train", "attention=multihed"], 2, "Did you mean multi_head"),
    (["train", "model.dimm=3"], 2, "Did you mean model.dim"),
    (["train", "sed=3"], 2, "Did you mean seed"),
    (["train", "hello"], 2, "options of the form name=value, got 'hello'"),
    (["train", "model.dim=[1,"], 2, "[1,"),
    (["train", "cross_attention.heads=2"], 2, "attention@cross_attention=NAME"),
    (["train", "cross_attention=linear"], 2, "give attention@cross_attention=linear"),
    (["train", "task=language_modeling", "attention@cross_attention=linear"], 2, "attention"),
    (["train", "data=parallel_files"], 2, "data.source.train is missing; give it"),
    (["train", "model.dim=100", "model.heads=8"], 2, "dim=100, heads=8"),
    (["train", "attention=linear", "position=alibi"], 3, "position=alibi"),
    (["train", "attention@cross_attention=sliding_window"], 3, "cross"),
    (["train", "+callbacks.x._target_=os.getcwd"], 2, "must build a Callback"),
    (["train", "ckpt_path=last"], 2, "there is no checkpoint"),
    (["train", "-m", "attention=multi_head,multihed"], 2, "Did you mean multi_head"),
    (["train", "-m", "seed=1,2", "jobs=0"], 2, "jobs must be a whole number of at least 1"),
    (["train", "seed=abc"], 2, "seed"),
    (["train", "seeds=3"], 2, "with -m"),
    (["train", "match=size"], 2, "match must be null, parameters or flops, got 'size'"),
    (["train", "baseline.attention=linear"], 2, "match=parameters or match=flops"),
    (["train", "match=flops", "baseline.attention=multihed"], 3, "Did you mean multi_head"),
    (
        ["train", "match=flops", "baseline.attention=linear", "baseline.position=alibi"],
        3,
        "the baseline of match=flops: encoder_attention=linear: linear cannot take",
    ),
    (["train", "task=translation", "data=python_docs"], 3, "Data for it: gettext, iwslt14"),
    (["train", "task=translation", "data=recall"], 3, "Data for it: gettext, iwslt14"),
    (["train", "task=language_modeling", "data=phrases"], 3, "copy, depo, enwik8"),
    (["train", "data=recall", "tokenizer=bpe"], 3, "Tokenizers for it: symbols"),
    (["train", "data=recall", "data.source.pairs=40"], 2, "pairs=40 and length=64"),
    (["train", "optimizer.lr=abc"], 2, "lr must be a number"),
    (["train", "optimizer.lr=-1"], 2, "lr must be above 0"),
    (["train", "data=multi30k", "data.root=nowhere"], 2, "nowhere"),
    (["show", "rotari"], 2, "Did you mean rotary"),
    (["show", "rotary", "x=1"], 2, "show takes only NAME | stack=NAME"),
    (["show", "stack=gemma3", "-m"], 2, "show takes only NAME | stack=NAME"),
    (["show", "stack.pattern=aab"], 2, "choose stack=hybrid"),
    (["show", "gemma3"], 2, "attention-zoo show stack=gemma3"),
    (["list", "pairs=all", "format=markdown"], 2, "pairs=all takes no format"),
    (["list", "pairs=rotary", "output=zoo.md"], 2, "pairs=rotary takes no output"),
    (["list", "output=zoo.md", "format=table"], 2, "output=zoo.md takes no format=table"),
]


@pytest.mark.parametrize(
    "arguments, code, reason",
    mark_exhaustive((case, (case[0][0], case[1])) for case in WRONG),
)
def test_what_is_wrong_gets_one_line(refuses, tmp_path, arguments, code, reason):
    arguments = [*arguments, *(["logger=none"] if arguments[0] == "train" else [])]
    assert reason in refuses(*arguments, folder=tmp_path, code=code)


@pytest.mark.slow
def test_the_process_exits_with_the_code(program):
    assert "Choices" in program.refuses("train", "model.dimm=3")
    assert "linear" in program.refuses("train", "attention=linear", "position=alibi", code=3)
    assert program("show", "rotary").stdout.split()[:2] == ["name", "rotary"]
    assert "multi_head" in program("list").stdout
    assert "| `multi_head` |" in program("list", "format=markdown").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["--help", "train --help", "list", "list pairs=all", "show rotary"]
)
def test_a_reader_that_ends_early_gets_no_traceback(words):
    command = f"{sys.executable} -m attention_zoo {words} | head -1 > /dev/null"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


def complete(program, line):
    words = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    return program("-sc", "query=bash", **words).stdout.split()


def test_the_shell_completes_after_the_command(program):
    assert "complete" in program("-sc", "install=bash").stdout
    assert complete(program, "attention-zoo tr") == ["train", "translate"]
    assert complete(program, "attention-zoo at") == ["attend"]
    rotary = ["position=rotary", "position=rotary_every"]
    assert complete(program, "attention-zoo train position=ro") == rotary
    assert "attention=" in complete(program, "attention-zoo train att")
    assert "rotary" in complete(program, "attention-zoo show rot")


def test_bash_completes(program, tmp_path):
    """As in a terminal, with the program under its name."""
    name = tmp_path / "attention-zoo"
    name.write_text(f"#!{sys.executable}\n{ASK} main\nmain()\n")
    name.chmod(0o755)
    script = (
        'eval "$(attention-zoo -sc install=bash)"\n'
        "COMP_LINE='attention-zoo train position=si' COMP_POINT=31 COMP_CWORD=2\n"
        'hydra_bash_completion; echo "${COMPREPLY[@]}"'
    )
    env = program.environment({"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "position=sinusoidal", done.stderr


@pytest.mark.parametrize(
    "overrides, implied",
    [
        (["data=python_docs"], "task=language_modeling"),
        (["-m", "attention=linear", "data=recall,text_files"], "task=language_modeling"),
        (["data=phrases"], None),
        (["data=phrases,python_docs"], None),
        (["data=nothing"], None),
        (["data=recall", "task=translation"], None),
        (["data=tinyshakespeare", "experiment=tinyshakespeare"], None),
        (["model=tiny"], None),
    ],
)
def test_data_imply_the_task_that_they_fit(overrides, implied):
    invocation = parse_command("train", overrides)
    assert invocation.inferred_task == implied
    assert invocation.overrides == overrides + ([implied] if implied else [])


@pytest.mark.parametrize(
    "overrides, swept",
    [
        (["seeds=3"], "seed=1,2,3"),
        (["seed=7", "seeds=2", "attention=linear,additive"], "seed=7,8"),
        (["+seeds=1", "hydra/sweeper=basic", "~hparams_search"], "seed=1"),
    ],
)
def test_a_number_of_seeds_is_a_sweep_over_them(overrides, swept):
    others = [x for x in overrides if "seed" not in x]
    assert parse_command("train", ["-m", *overrides]).overrides == ["-m", *others, swept]


@pytest.mark.parametrize("flag", ["--config-dir {}", "--config-dir={}", "hydra.searchpath=[{}]"])
def test_seeds_count_from_that_of_the_experiment(tmp_path, flag):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 40\n")
    flags = flag.format(tmp_path).split()
    given = parse_command("train", ["-m", *flags, "experiment=mine", "seeds=2"]).overrides
    assert given[-1] == "seed=40,41"


@pytest.mark.parametrize(
    "overrides, reason",
    [
        (["seeds=0"], "whole number of at least 1, such as 3, got 0"),
        (["seeds=2,3"], "whole number"),
        (["seeds=1.5"], "whole number"),
        (["seeds=2", "seed=1,2"], "counts on from one seed, got seed=1,2"),
        (["seeds=2", "seed=range(3)"], "got seed=range"),
        (["seeds=2", "hydra.sweeper.params.seed='1,2'"], "counts on from one seed"),
        (["seeds=2", "experiment=recall,multi30k"], "may have several; give the first one"),
        (["seeds=2", "hparams_search=optuna"], "would search for the best seed"),
        (["seeds=2", "hydra/sweeper=optuna"], "would search for the best seed"),
    ],
)
def test_a_number_of_seeds_that_makes_no_sense_is_refused(overrides, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        parse_command("train", ["-m", *overrides])


@pytest.mark.slow
def test_a_diagnostic_is_trained_scored_and_asked(program):
    small = [*SMALL[:-1], "data.source.size=64", "data.source.valid=8", "data.source.test=8"]
    tiny = [*small, "data.source.length=16", "data.source.vocabulary=8", "data.test_lengths=[12]"]
    done = program("train", "data=induction", *tiny, "trainer.max_steps=2", "logger=csv")
    assert "data=induction: task=language_modeling" in done.stdout
    assert done.stderr == ""
    (run,) = program.runs("language_modeling")
    results = json.loads((run / "results.json").read_text())
    names = {
        f"test/{name}{at}" for name in ("loss", "accuracy", "exact_match") for at in ("", "@12")
    }
    names |= {f"val/{name}" for name in ("loss", "accuracy", "exact_match")}
    assert {name for name in results if name.startswith(("test/", "val/"))} == names
    assert list((run / "figures").glob("*.png"))
    ckpt = f"ckpt_path={run / 'checkpoints' / 'best.ckpt'}"
    assert "test/exact_match@12" in program("evaluate", ckpt).stdout
    assert "test/accuracy@14" in program("evaluate", ckpt, "data.test_lengths=[14]").stdout
    written = program("generate", ckpt, "3 1 4 3").stdout.split()
    assert written[:4] == ["3", "1", "4", "3"] and len(written) <= 12
    assert "There is no symbol '9'" in program("generate", ckpt, "9", code=2).stderr
    assert "trained on" in program.refuses("evaluate", ckpt, "data.source.vocabulary=9", code=3)
    assert "made of text" in program.refuses("evaluate", ckpt, "data=python_docs", code=3)


@pytest.mark.slow
def test_a_language_model_goes_on_from_a_prompt(program):
    program("train", *TEXT, "trainer.max_steps=2", "logger=csv", "callbacks=minimal")
    (run,) = program.runs("language_modeling")
    assert (run / "csv" / "metrics.csv").read_text().count("\n") > 1
    ckpt = f"ckpt_path={run / 'checkpoints' / 'best.ckpt'}"
    short = ["generate", ckpt, "decoding.max_tokens=20"]
    first = program(*short, "decoding.seed=1", "--", "The ", "a=b: ").stdout
    assert first.startswith("The ")
    hot = program(
        *short, "decoding.temperature=2", "decoding.top_k=50", "decoding.top_p=0.9", "The "
    ).stdout
    assert hot != first
    again = program(*short, "decoding.seed=1", "--", "The ", "a=b: ").stdout
    assert first == again
    # The attention over the text, which does not go on.
    told = program("attend", ckpt, "The ").stdout
    assert told.startswith("What attends to what: attention.html (") and told.count("\n") == 1
    tokens = '"T","h","e","␣"]'
    assert tokens in (program.folder / "attention.html").read_text()
    assert "let attention-zoo generate write" in program.refuses(
        "attend", ckpt, "decoding.temperature=0", "The "
    )


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_refusal(program):
    lines = ["data.source.size=60", "data.source.valid=8", "data.source.test=8"]
    options = [*SMALL, *lines, "trainer.max_steps=1", "callbacks=minimal", "logger=none"]
    done = program(
        "train", "-m", "attention=multi_head,linear", "position=sinusoidal,alibi", *options
    )
    (sweep,) = (program.folder / "logs" / "translation" / "multiruns").iterdir()
    trained = {path.parent.name for path in sweep.glob("*/results.json")}
    assert trained == {"0", "1", "2"}
    table = " ".join(done.stdout[done.stdout.rindex("outcome") :].split())
    assert table.count("trained") == 3
    assert "refused" in table and "alibi" in table
    # Again, over the same folder: what has no result yet runs, from its last checkpoint.
    (sweep / "1" / "results.json").unlink()
    record = json.loads((sweep / "1" / "job.json").read_text())
    (sweep / "1" / "job.json").write_text(json.dumps(record | {"outcome": "killed"}))
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/results.json")}
    again = ["train", "-m", "attention=multi_head,linear", *options, f"hydra.sweep.dir={sweep}"]
    done = program(*again, "position=sinusoidal,alibi")
    assert "3 of 4 jobs have their result already" in done.stdout
    assert "ckpt_path=" in done.stdout and (sweep / "1" / "results.json").exists()
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    told = program.refuses(*again, "position=sinusoidal,rotary")
    assert "had position=alibi, and now position=rotary" in told


@pytest.mark.slow
def test_a_failing_job_fails_the_sweep(program):
    done = program("train", "-m", "model.heads=3,5", "model.dim=16", "logger=none", code=2)
    table = done.stdout[done.stdout.rindex("outcome") :]
    assert table.count("failed (2)") == 2
    assert done.stdout.count("log: ") == 2
    assert done.stderr.splitlines()[-1].startswith("error: job 0 failed")
    assert ROOT.name not in done.stdout


def test_a_sweep_over_a_diagnostic_shows_how_much_is_right(tmp_path):
    def told(*metrics):
        jobs = []
        for number, each in enumerate(metrics):
            folder = RunFolder(tmp_path / str(number))
            jobs.append(Job(number, [], f"seed={number}", folder, JobRecord()))
            folder.path.mkdir(exist_ok=True)
            folder.results_file.write_text(json.dumps(each))
        out = io.StringIO()
        print_table(Console(file=out, width=100), outcome_table(jobs))
        return out.getvalue()

    losses = {"val/loss": 1.5, "test/loss": 2.5}
    assert "test/accuracy" not in told(losses, {})
    table = told(losses | {"test/accuracy": 0.875}, losses)
    assert "test/accuracy" in table and "0.875" in table and table.count("2.500") == 2


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("train", "logs}/${task.name}/multiruns"),
        ("compare", "logs}/${task.name}/comparisons"),
        ("benchmark", "logs}/benchmarks"),
    ],
)
def test_what_starts_several_jobs_has_a_folder_by_its_kind(program, command, folder):
    printed = program(command, "attention=linear", "--cfg", "hydra").stdout
    assert f"${{paths.{folder}/${{now:" in printed


def test_the_config_of_a_comparison_is_shown(program):
    printed = program("compare", "attention=linear", "--cfg", "job").stdout
    assert "trials: 7" in printed and "name: linear" in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["attention=linear", "attention=multi_head"],
            "attention=multi_head, not attention=linear",
        ),
        (["model.dim=32", "x=1", "++model.dim=64"], "counts: model.dim=64, not model.dim=32"),
        (["~logger", "logger=csv"], "logger=csv, not ~logger"),
        (
            ["a=1", "a=2", "+a=3"],
            "a is given several times, and the last counts: a=3, not a=1 or a=2",
        ),
    ],
)
def test_of_several_values_the_last_counts_and_this_is_said(arguments, expected):
    (sentence,) = describe_repeated_options(arguments)
    assert expected in sentence


def test_the_same_value_twice_is_one_and_a_job_may_have_what_its_sweep_adds(monkeypatch):
    assert not [*describe_repeated_options(["model.dim=32", "++model.dim=32"])]
    monkeypatch.setenv(JOB_FOLDER, "sweep/0")
    assert not [*describe_repeated_options(["overwrite=false", "overwrite=true"])]


def test_a_run_says_which_value_counts(program):
    line = program("show", "stack=hybrid", "model.layers=4", "model.layers=5").stdout
    assert line.startswith("model.layers is given several times, and the last counts: ")
    dry = program("compare", *SMALL, "seed=1", "seed=2", "trials=4", code=2)
    assert dry.stdout.startswith("seed is given several times, and the last counts: seed=2, not")
    assert len(dry.stderr.splitlines()) == 1
    shown = program("train", "seed=1", "seed=2", "--cfg", "job").stdout
    assert "several" not in shown and "seed: 2" in shown


def test_only_the_last_value_of_an_option_is_read(refuses, tmp_path):
    again = ["init_from=first.ckpt", "seed=1", "init_from=last.ckpt"]
    assert "last.ckpt" in refuses("train", *again, folder=tmp_path)
    assert last_values(["~a", "-m", "b=1", "b=1", "a=2", "text"]) == ["-m", "b=1", "a=2", "text"]


def test_a_flag_has_one_value(refuses, tmp_path):
    line = refuses("train", "--config-dir", "a", "-cd", "b", folder=tmp_path)
    assert "--config-dir takes one value, got a and b." in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["show", "stack=hybrid", "model.layers=100000"], "model.layers must be at most 1,000"),
        (["train", "model.layers=100000"], "model.layers must be at most 1,000"),
        (["train", "model.dim=1000000", "model.heads=1"], "parameters would take at least"),
    ],
)
def test_a_model_that_no_machine_holds_is_refused(refuses, tmp_path, arguments, expected):
    assert expected in refuses(*arguments, folder=tmp_path)
