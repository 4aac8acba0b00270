"""`attention-zoo benchmark` as users start it: what it measures, writes and refuses."""

import json
import os

import pytest

from tests.cli.conftest import SMALL

TINY = [*SMALL[:-1], "tokenizer=bytes", "lengths=[8,16]", "rounds=1", "batch_size=1"]
TINY += ["decode_tokens=2", "decode_batch_sizes=[1,2]"]


@pytest.mark.slow
def test_entries_are_measured_together_and_a_report_reads_them(program):
    entries = "attention=multi_head,linear,longformer,fourier"
    done = program("benchmark", entries, *TINY, "output=page.md", "hydra.sweep.dir=measured")
    folder = program.folder / "measured"
    assert "fourier is left out: attention=fourier: fourier cannot be causal" in done.stdout
    assert "longformer has no values of decoding: longformer has no cached" in done.stdout
    contents = json.loads((folder / "results.json").read_text())["benchmark"]
    assert [x["label"] for x in contents["entries"]] == ["multi_head", "linear", "longformer"]
    for measured in contents["entries"]:
        values, can_decode = measured["values"], measured["label"] != "longformer"
        assert {*values["step_milliseconds"]} == {*values["peak_memory_bytes"]} == {"8", "16"}
        assert all(x > 0 for by_length in values.values() for x in by_length.values())
        assert ("decode_tokens_per_second/2" in values) == can_decode
        assert {"step_milliseconds", "peak_memory_bytes"} <= {*measured["exponents"]}
    flops, ratios = (
        [x["values"].get(key) for x in contents["entries"]] for key in ("step_flops", "step_ratio")
    )
    assert flops[0]["16"] > 2 * flops[0]["8"] > 0 and flops[1] != flops[0]
    assert ratios[0] == {"8": 1.0, "16": 1.0} and {*ratios[1]} == {*ratios[2]} == {"8", "16"}
    states = [x["values"].get("decode_state_bytes") for x in contents["entries"]]
    multi_head, linear, longformer = states
    assert longformer is None
    assert multi_head["16"] == 2 * multi_head["8"] and linear["16"] == linear["8"]
    assert (folder / "benchmark.png").stat().st_size > 10_000
    assert (
        "attention-zoo benchmark attention=multi_head,linear"
        in (program.folder / "page.md").read_text()
    )

    printed = program("report", "measured").stdout
    assert "Forward and backward, ms" in printed
    assert "Forward and backward, over those of multi_head" in printed
    assert "FLOPs of forward and backward" in printed and "measured/report.html" in printed
    assert "holds results already" in program.refuses(
        "benchmark", entries, *TINY, "hydra.sweep.dir=measured"
    )


@pytest.mark.slow
def test_a_linear_card_is_held_to_the_exponent(program):
    limit = ["max_linear_exponent=0.000001", "hydra.sweep.dir=measured", "decode_batch_sizes=[]"]
    options = [x for x in TINY if not x.startswith(("lengths", "decode"))]
    # The time of so much longer sequences is longer on any machine.
    lengths = "lengths=[8,512]"
    done = program("benchmark", "attention=gru,multi_head", *options, lengths, *limit, code=2)
    assert "in entries whose cards call it linear, got gru (" in done.stderr
    assert "multi_head (" not in done.stderr
    assert (program.folder / "measured" / "results.json").exists()


@pytest.mark.slow
def test_a_stack_a_precision_and_a_translation_are_measured(program):
    stack = ["stack=hybrid", "attention@stack.a=gated_delta", "attention@stack.b=multi_head"]
    stack += ["stack.pattern=ab", "model.layers=2"]
    options = [x for x in TINY if x != "model.layers=1"]
    program("benchmark", *stack, *options, "trainer.precision=bf16-mixed", "hydra.sweep.dir=a")
    contents = json.loads((program.folder / "a" / "results.json").read_text())["benchmark"]
    assert contents["precision"] == "bf16-mixed" and contents["entries"][0]["cost"] == "t, t²"
    encoders = "attention@encoder_attention=linear,fourier"
    program("benchmark", "task=translation", encoders, *TINY, "hydra.sweep.dir=b")
    contents = json.loads((program.folder / "b" / "results.json").read_text())["benchmark"]
    labels = [x["label"] for x in contents["entries"]]
    assert labels == ["encoder_attention=linear", "encoder_attention=fourier"]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["data.context_length=64"], 2, "would have no effect on benchmark"),
        (["rounds=1,2"], 2, "got several values of rounds; give one."),
        (["trainer=ddp"], 3, "measures one device in one process, got trainer.devices=2"),
        (["position=learned", "position.max_length=10"], 3, "such as position.max_length=16."),
        (["attention=fourier"], 3, "fourier cannot be causal attention"),
        (["tokenizer=symbols"], 2, "SymbolTokenizer has the tokens of its data"),
        (["a line"], 2, "benchmark takes options of the form name=value"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(
    refuses, tmp_path, arguments, code, expected
):
    assert expected in refuses("benchmark", *TINY, *arguments, folder=tmp_path, code=code)
    assert not {*os.listdir(tmp_path)} - {"cache"}


def test_null_lengths_of_entries_are_the_longest_one(program):
    printed = program("benchmark", "position=learned", "lengths=[8,16]", "--cfg", "job").stdout
    assert "rounds: 5" in printed and "- 16\n" in printed


def test_the_shell_completes_the_command_and_its_options(program):
    words = program("-sc", "query=bash", COMP_LINE="attention-zoo ben").stdout
    assert words == "benchmark\n"
    words = program("-sc", "query=bash", COMP_LINE="attention-zoo benchmark attention=multi_h")
    assert "attention=multi_head" in words.stdout
