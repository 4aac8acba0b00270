"""What is printed can be read and copied."""

import io
import math
from pathlib import Path

from rich.console import Console

from attention_zoo.tasks.views.console import print_config_tree, print_run_summary

METRICS = {"val/loss": 1.23456, "test/bleu": 33.25, "test/perplexity": 5123.4}
MANIFEST = {
    "parameters": 3_312_345,
    "tokens_seen": 12_345_678,
    "steps": 1500,
    "ended": "max_time",
    "seconds": 287.4,
    "seed": 1,
    "precision": "bf16-mixed",
}


def printed(function, *arguments, width=80) -> list[str]:
    out = io.StringIO()
    function(Console(file=out, width=width), *arguments)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_end_of_a_run_can_be_read_and_copied():
    checkpoint = Path("logs/translation/runs/2026-11-23_00-13-32/checkpoints") / ("x" * 60)
    command = f"attention-zoo translate ckpt_path={checkpoint} 'Wednesday, [bold]March[/] 4, 2026'"
    paths = {"folder": "logs", "checkpoint": checkpoint}
    lines = printed(print_run_summary, METRICS, MANIFEST, paths, [command, "attention-zoo list"])
    assert "val/loss          1.2346" in lines
    assert "test/perplexity 5,123.40" in lines
    assert (
        "3,312,345 parameters, 12,345,678 tokens seen, 1,500 steps, ended by max_time, 4" in lines
    )
    assert "min 47 s, seed 1, bf16-mixed" in lines
    assert "folder      logs" in lines
    assert f"checkpoint  {checkpoint}" in lines
    assert lines[-2:] == [f"  {command}", "  attention-zoo list"]
    assert all(character.isprintable() for line in lines for character in line)


def test_a_run_without_figures_still_ends_well():
    lines = printed(print_run_summary, {"val/loss": math.nan}, MANIFEST, {}, [])
    assert any("val/loss" in line and "nan" in line for line in lines)
    assert "Next, try" not in lines


def test_the_config_tree_names_choices_and_fits_80_columns():
    config = {
        "seed": 1,
        "ckpt_path": None,
        "attention": {"name": "linear", "_target_": "a.Linear", "_partial_": True, "heads": 8},
        "data": {
            "_target_": "a.TranslationData",
            "probes": ["Wednesday, March 4, 2026", "one"],
            "source": {"_target_": "a.Phrases", "root": "/data/" + "folder/" * 20},
        },
        "logger": {"csv": {"_target_": "x.CSVLogger", "name": "csv"}},
        "trainer": {"deterministic": False},
    }
    lines = printed(print_config_tree, config)
    assert lines[:6] == [
        "config",
        "├── seed=1 ckpt_path=null",
        "├── attention linear",
        "│   └── heads=8",
        "├── data TranslationData",
        "│   ├── probes=['Wednesday, March 4, 2026',one]",
    ]
    assert lines[-2:] == ["└── trainer", "    └── deterministic=false"]
    assert max(map(len, lines)) <= 80
    assert all(character.isprintable() for line in lines for character in line)
