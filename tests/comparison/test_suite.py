"""Suites of benchmarks, with comparisons that train nothing."""

import subprocess

import pytest
from hydra import compose, initialize_config_module

from attention_zoo.errors import UserError
from attention_zoo.tasks.comparison.candidate import Candidate
from attention_zoo.tasks.comparison.scoreboard import name_row
from attention_zoo.tasks.comparison.suite import list_suites, read_suite, run_suite
from attention_zoo.tasks.configuration.composition import register_plugins

BENCHMARKS = [(suite, name) for suite in list_suites() for name in read_suite(suite)]


@pytest.fixture
def launched(monkeypatch):
    """The arguments of the comparisons that a suite starts; the exit code of each is in `codes`."""
    commands, codes = [], {}

    def run(command, check):
        commands.append(command[4:])
        return subprocess.CompletedProcess(command, codes.get(len(commands), 0))

    monkeypatch.setattr(subprocess, "run", run)
    return commands, codes


@pytest.mark.parametrize(("suite", "name"), BENCHMARKS)
def test_every_benchmark_composes(suite, name):
    register_plugins("compare")
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        assert compose("train", overrides=read_suite(suite)[name]).trainer.max_steps > 0


def test_each_benchmark_is_compared_in_a_folder_of_its_own(launched, tmp_path):
    commands, _ = launched
    arguments = ["suite=small", "attention=multi_head,linear", f"hydra.sweep.dir={tmp_path}"]
    run_suite("small", [*arguments, "--dry-run"])
    suite = read_suite("small")
    assert len(commands) == len(suite)
    for command, (name, overrides) in zip(commands, suite.items(), strict=True):
        expected = [*overrides, "attention=multi_head,linear", "--dry-run"]
        expected.append(f"benchmark={name}")
        assert command == [*expected, f"hydra.sweep.dir='{tmp_path / name}'"]


def test_of_several_values_the_last_is_passed_on_and_this_is_said_once(launched, tmp_path, capsys):
    commands, _ = launched
    arguments = [
        "suite=large",
        "suite=small",
        "attention=multi_head,linear",
        "trials=4",
        "trials=5",
    ]
    run_suite("small", [*arguments, f"hydra.sweep.dir={tmp_path}"])
    assert all("trials=5" in x and "trials=4" not in x for x in commands)
    printed = capsys.readouterr().out
    assert printed.count("the last counts: suite=small, not suite=large") == 1
    assert printed.count("the last counts: trials=5, not trials=4") == 1


def test_a_comparison_that_fails_does_not_stop_the_others(launched, tmp_path):
    commands, codes = launched
    codes[1] = 2
    first = next(iter(read_suite("small")))
    with pytest.raises(UserError, match=f"1 of .* comparisons failed: {first}. The same command"):
        run_suite("small", ["attention=multi_head,linear", f"hydra.sweep.dir={tmp_path}"])
    assert len(commands) == len(read_suite("small"))


def test_what_is_wrong_in_all_benchmarks_is_refused_once(launched, tmp_path):
    commands, _ = launched
    file = tmp_path / "mine.yaml"
    file.write_text("copy: experiment=small/copying\nparity: experiment=parity\n")
    pair, place = "attention=multi_head,linear", f"hydra.sweep.dir={tmp_path / 'sweep'}"
    for wrong, message in [
        ("model.dims=16", "no option 'model.dims'"),
        ("seeds=1", "seeds must be at least 3, got 1"),
        ("attention=multi_head,linea", "no attention 'linea'"),
        ("optimizer.lr=low", "compare tunes optimizer.lr, got low"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            run_suite(str(file), [pair, wrong, place][wrong.startswith("attention") :])
        assert "\n" not in str(error.value)
    assert not commands and not (tmp_path / "sweep").exists()


def test_what_is_wrong_in_one_benchmark_is_left_to_it(launched, tmp_path):
    commands, _ = launched
    file = tmp_path / "mine.yaml"
    file.write_text("wrong: experiment=no_such\ncopy: experiment=small/copying\n")
    run_suite(str(file), ["attention=multi_head,linear", f"hydra.sweep.dir={tmp_path}"])
    assert len(commands) == 2


def test_a_suite_may_be_a_file_of_the_user(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("short: data=copy model=tiny\n")
    assert read_suite(str(file)) == {"short": ["data=copy", "model=tiny"]}
    file.write_text("short: data=copy 'paths.logs=a b'\n")
    assert read_suite(str(file)) == {"short": ["data=copy", "paths.logs=a b"]}


@pytest.mark.parametrize(
    "content",
    [
        *(b"short: [1]", b"", b"a: [b", b"\xff\xfe\x00", b"a/b: data=copy", b"..: data=copy"),
        *(b"- data=copy", b"short: copy", b"short: 5", b"short:", b"short: data='copy"),
    ],
)
def test_a_file_that_is_no_suite_is_refused_in_a_line(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match="a name and its overrides in each line") as error:
        read_suite(str(file))
    assert "\n" not in str(error.value)


def test_a_suite_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    for name in ("folder.yaml", "missing.yaml"):
        with pytest.raises(UserError, match=r"is no file; name a suite \(small\)"):
            read_suite(str(tmp_path / name))


def test_what_the_benchmarks_decide_is_refused():
    for name in ("experiment", "data", "task", "benchmark"):
        with pytest.raises(UserError, match=f"suite=small chooses {name} itself, got {name}=x"):
            run_suite("small", ["suite=small", f"{name}=x"])
    with pytest.raises(UserError, match="suite"):
        run_suite("smal", ["suite=smal"])


@pytest.mark.parametrize(
    ("label", "overrides", "expected"),
    [
        ("delta", ["attention=delta"], "delta"),
        (
            "negative_eigenvalues=True",
            ["attention=delta", "attention.negative_eigenvalues=True"],
            "delta negative_eigenvalues=true",
        ),
        (
            "input_convolution=3 delta",
            ["model.input_convolution=3", "attention=delta"],
            "delta input_convolution=3",
        ),
        ("rotary", ["position=rotary"], "rotary"),
    ],
)
def test_a_row_of_the_scoreboard_names_its_mechanism(label, overrides, expected):
    assert name_row(Candidate(overrides, label, 64, label, 0.01)) == expected
