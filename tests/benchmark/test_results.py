"""Exponents, tables, pages and reports of a benchmark, with figures made up."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from attention_zoo.errors import BadInput, UserError
from attention_zoo.tasks.benchmark.answer import (
    answer,
    benchmark_page,
    check_exponents,
    draw_benchmark,
    measure_table,
    print_benchmark,
)
from attention_zoo.tasks.benchmark.results import (
    KEY,
    MEMORY,
    STATE,
    STEP,
    Benchmark,
    Entry,
    decoding_measure,
    find_benchmarks,
    fit_exponent,
    read_benchmark,
)
from attention_zoo.tasks.commands.report import run as report

LENGTHS = [64, 256, 1024]


def entry(label: str, cost: str, power: float) -> Entry:
    """Return an entry whose time and memory grow with a power of the length."""
    grown = {length: 0.01 * length**power for length in LENGTHS}
    values = {STEP.key: grown, MEMORY.key: {k: 2**20 * x for k, x in grown.items()}}
    return Entry(label, [f"attention={label}"], cost, 1000, values)


@pytest.fixture
def benchmark() -> Benchmark:
    quadratic, linear = entry("multi_head", "t²", 2.0), entry("linear", "t", 1.1)
    linear.values[decoding_measure(32).key] = dict.fromkeys(LENGTHS, 1234.0)
    linear.values[STATE.key] = dict.fromkeys(LENGTHS, 8704.0)
    quadratic.reasons["decoding"] = "it has no cache."
    return Benchmark(
        lengths=LENGTHS,
        rounds=5,
        batch_size=4,
        decode_tokens=16,
        decode_batch_sizes=[1, 32],
        device="2 threads of a processor",
        precision="32-true",
        entries=[quadratic, linear],
        refused={"fourier": "it cannot be causal. Choose: linear."},
        command="attention-zoo benchmark attention=multi_head,linear",
    )


@pytest.mark.parametrize("power", [0.0, 1.0, 1.2, 2.0])
def test_the_exponent_is_the_slope_of_the_logarithms(power: float) -> None:
    assert fit_exponent({x: 3.5 * x**power for x in LENGTHS}) == pytest.approx(power, abs=1e-9)


def test_one_length_has_no_exponent() -> None:
    assert fit_exponent({64: 1.0}) is None and fit_exponent({}) is None


def test_only_entries_whose_cards_say_linear_are_held_to_the_limit(benchmark: Benchmark) -> None:
    check_exponents(benchmark, None)
    check_exponents(benchmark, 1.2)
    with pytest.raises(UserError, match=r"at most 1.05 .* got linear \(1.10\)\."):
        check_exponents(benchmark, 1.05)


def test_tables_have_a_dash_for_what_is_missing(benchmark: Benchmark) -> None:
    times = measure_table(benchmark, STEP)
    assert [*times.columns] == ["entry", "64", "256", "1,024", "exponent", "card"]
    assert [*times.rows[0]] == ["multi_head", "41.0", "655.4", "10,486", "2.00", "t²"]
    assert times.rows[1][-2:] == ["1.10", "t"]
    decoding = measure_table(benchmark, decoding_measure(32))
    assert [list(row[1:]) for row in decoding.rows] == [["–"] * 3, ["1,234"] * 3]
    assert decoding_measure(1) not in benchmark.measures


def test_what_is_printed_fits_into_100_columns_and_says_what_is_missing(
    benchmark: Benchmark,
) -> None:
    out = StringIO()
    print_benchmark(Console(file=out, width=100), benchmark)
    tables, _, sentences = out.getvalue().partition("On 2 threads of a processor in 32-true")
    assert max(map(len, tables.splitlines())) <= 100
    assert "Peak memory of forward and backward\n" in tables
    assert "fourier is left out: it cannot be causal." in sentences
    assert "multi_head has no values of decoding: it has no cache." in sentences


def test_the_page_has_the_command_and_every_table(benchmark: Benchmark) -> None:
    page = benchmark_page(benchmark)
    assert "```console\nattention-zoo benchmark attention=multi_head,linear\n```" in page
    assert page.count("\n## ") == len(benchmark.measures) + 1
    assert "| `linear` | 1.0 | 4.5 | 20.5 | 1.10 | t |" in page


def test_the_picture_has_a_line_for_each_entry_on_logarithmic_axes(benchmark: Benchmark) -> None:
    figure = draw_benchmark(benchmark)
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert [line.get_label() for line in axes.lines] == ["multi_head", "linear"]


def test_a_report_reads_the_results(benchmark: Benchmark, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "benchmarks" / "one"
    folder.mkdir(parents=True)
    answer(benchmark, folder, str(tmp_path / "page.md"), Console(file=StringIO()))
    assert (tmp_path / "page.md").read_text() == benchmark_page(benchmark)
    assert {x.name for x in folder.iterdir()} == {"results.json", "benchmark.png"}
    contents = json.loads((folder / "results.json").read_text())
    assert contents[KEY]["entries"][1]["exponents"][STEP.key] == 1.1
    assert contents["versions"]["torch"]
    (read,) = find_benchmarks(tmp_path).values()
    assert read == benchmark

    report([str(tmp_path / "benchmarks")])
    output = tmp_path / "benchmarks"
    assert "multi_head has no values of decoding: it has no cache." in capsys.readouterr().out
    text = (output / "report.md").read_text()
    assert "| linear | 1.0 | 4.5 | 20.5 | 1.10 | t |" in text and "jobs" not in text
    page = (output / "report.html").read_text()
    assert page.count("<svg") >= 2 and "10,486" in page and "Jobs" not in page
    assert (output / "results.csv").read_text().count(",linear,") == 3


@pytest.mark.parametrize("damaged", ["[]", '{"entries": 3}', '{"entries": [{"label": "x"}]}'])
def test_damaged_results_are_refused_by_name(damaged: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(f'{{"{KEY}": {damaged}}}')
    with pytest.raises(BadInput, match=r"results\.json is not the results of a benchmark"):
        read_benchmark(path)
    path.write_text('{"val/loss": 1.0}')
    assert read_benchmark(path) is None
