"""Folders as runs leave them, with figures made up."""

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

SENTENCES = 60
SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
CHRF_SIGNATURE = "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0"
WORDS = ["the", "a", "small", "red", "old", "boat", "house", "child", "dog", "runs", "sees", "in"]


def config(folder: Path, *, attention: str, position: str, seed: int, **changes: Any) -> dict:
    choices = {"task": "translation", "data": "phrases", "attention": attention}
    contents: dict[str, Any] = {
        "seed": seed,
        "attention": {"name": attention, "heads": 4} | changes.pop("attention_options", {}),
        "position": {"name": position},
        "data": {"seed": seed, "source": {"seed": 0}},
        "optimizer": {"lr": changes.pop("lr", 0.004)},
        "logger": {"csv": {"save_dir": str(folder)}},
        "callbacks": {"best": {"dirpath": f"{folder}/checkpoints"}},
        "paths": {"run": str(folder)},
        "choices": choices | {"position": position} | changes.pop("choices", {}),
    }
    return contents | changes


def results(*, seed: int, skill: float, chance: random.Random, **changes: Any) -> dict[str, Any]:
    """Of a run that is as good as `skill` says, from 0 to 1."""
    loss = 3.2 - 1.6 * skill + chance.gauss(0, 0.01)
    steps = range(100, 3001, 100)

    def curve(offset: float) -> list[list[float]]:
        return [
            [s, 2048 * s, loss + offset + 4 * math.exp(-s / 350) + chance.gauss(0, 0.01)]
            for s in steps
        ]

    return {
        "val/loss": loss,
        "test/bleu": 60 * skill + chance.gauss(0, 0.3),
        "test/chrf": 30 + 35 * skill + chance.gauss(0, 0.3),
        "test/exact_match": max(0.0, skill / 2 + chance.gauss(0, 0.005)),
        "test/loss": loss + 0.05,
        "test/perplexity": math.exp(loss + 0.05),
        "parameters": 1_049_608,
        "parameters/attention": 262_144,
        "parameters/position": 0,
        "training_flops_per_token": 7.4e6,
        "decode_state_bytes": 262_144,
        "tokens_seen": 6_144_000,
        "tokens_per_second": 12_000 + chance.gauss(0, 90),
        "peak_memory_bytes": 1_250_000_000 + chance.randrange(10_000_000),
        "seconds": 512.0 + chance.gauss(0, 4),
        "seed": seed,
        "data_hash": "5b9d8b12abee87ed73cd27afb35ad09251ff04f658363c241b34ac0548868b6e",
        "data_order": f"{seed:064x}",
        "precision": "32-true",
        "hardware": {"cpu": "AMD EPYC", "threads": 2, "gpus": []},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "git_commit": "b61f28cb0a962b8c363fbfd6ac15b16bcc772012",
        "sacrebleu_signature": SIGNATURE,
        "chrf_signature": CHRF_SIGNATURE,
        "history": {"train/loss": curve(-0.1), "val/loss": curve(0.0)},
    } | changes


def outputs(skill: float, seed: int, name: str) -> list[dict[str, str]]:
    """Of the same sentences, whatever the model: more of their words are right with more skill."""
    text, chance = random.Random(0), random.Random(f"{name} {seed}")
    lines = []
    for number in range(SENTENCES):
        reference = [text.choice(WORDS) for _ in range(12)]
        output = [x if chance.random() < skill else chance.choice(WORDS) for x in reference]
        lines.append(
            {"source": f"{number}", "reference": " ".join(reference), "output": " ".join(output)}
        )
    return lines


def write_run(
    folder: Path,
    *,
    attention: str = "multi_head",
    position: str = "rotary",
    seed: int = 1,
    skill: float = 0.7,
    figures: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run that was trained, without a sweep. What is added is of the config."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(f"{attention} {position} {seed}")
    contents = config(folder, attention=attention, position=position, seed=seed, **changes)
    (folder / "config.yaml").write_text(yaml.safe_dump(contents, allow_unicode=True))
    figures_of_run = results(seed=seed, skill=skill, chance=chance) | (figures or {})
    (folder / "results.json").write_text(json.dumps(figures_of_run))
    with (folder / "test_outputs.jsonl").open("w") as file:
        for line in outputs(skill, seed, f"{attention} {position}"):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return folder


def write_job(
    folder: Path, *words: str, outcome: str = "trained", reason: str = "", code: int = 0
) -> Path:
    """The record that a sweep leaves of a job."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"overrides": list(words), "config_hash": "0" * 64, "outcome": outcome, "code": code}
    record |= {"reason": reason, "seconds": 12.5}
    (folder / "job.json").write_text(json.dumps(record, ensure_ascii=False))
    return folder


def drop(folder: Path, name: str) -> None:
    (folder / name).unlink()


MECHANISMS = {  # skill, tokens/s, parameters, decode state
    "multi_head": (0.80, 12_000, 1_049_608, 262_144),
    "grouped_query": (0.795, 13_100, 984_072, 65_536),
    "gated": (0.81, 11_200, 1_115_144, 262_144),
    "linear": (0.62, 15_900, 1_049_608, 33_280),
    "retention": (0.70, 14_800, 1_082_376, 32_768),
    "sliding_window": (0.76, 13_900, 1_049_608, 65_536),
    "latent": (0.79, 10_900, 1_008_648, 49_152),
    "performer": (0.55, 14_100, 1_049_608, 66_560),
    "delta": (0.74, 9_700, 1_066_120, 32_768),
}


def write_sweep(folder: Path, *, seeds: int = 3) -> Path:
    """Nine mechanisms, some refused, diverged, failed, killed or cut off."""
    number = 0

    def next_folder() -> Path:
        nonlocal number
        number += 1
        return folder / str(number - 1)

    for attention, (skill, speed, parameters, state) in MECHANISMS.items():
        position = "sinusoidal" if attention in ("linear", "performer") else "rotary"
        for seed in range(1, seeds + 1):
            words = (f"attention={attention}", f"position={position}", f"seed={seed}")
            run = write_job(next_folder(), *words)
            figures = {
                "tokens_per_second": speed * (1 + seed / 100),
                "parameters": parameters,
                "decode_state_bytes": state,
                "peak_memory_bytes": 9e8 + 4e12 / speed,
            }
            write_run(
                run, attention=attention, position=position, seed=seed, skill=skill, figures=figures
            )
            if (attention, seed) == ("delta", 3):
                write_job(run, *words, outcome="diverged", reason="val/loss is nan", code=2)
                nan = {"val/loss": None, "not_finite": {"val/loss": "nan"}, "seed": seed}
                (run / "results.json").write_text(json.dumps(nan))
            if (attention, seed) == ("performer", 2):
                reason = "signal 9 (SIGKILL)"
                write_job(run, *words, outcome="killed", reason=reason, code=-9)
                drop(run, "results.json")
    reason = "linear cannot take position=alibi, which acts on scores. Positions: none, rotary."
    job = ("attention=linear", "position=alibi", "seed=1")
    write_job(next_folder(), *job, outcome="refused", reason=reason, code=3)
    write_job(next_folder(), "attention=fourier", outcome="failed", reason="no space left", code=2)
    return folder
