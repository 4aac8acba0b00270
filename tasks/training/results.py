"""What a run ends with: `results.json`, and the same told on the console.

Light on purpose: nothing here imports Lightning.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from attention_zoo.tasks.views.tables import Table, print_table

PACKAGES = (
    "attention-zoo",
    "torch",
    "lightning",
    "hydra-core",
    "omegaconf",
    "torchmetrics",
    "tokenizers",
    "sacrebleu",
    "babel",
    "num2words",
    "datasets",
    "wandb",
)
# Of its target: how far what was made to agree with a baseline may lie from it.
MATCHED_WITHIN = 0.01


def fingerprint(config: Mapping[str, Any], *, without: Sequence[str]) -> str:
    """The sha256 of a config in plain containers, but for some of its keys."""
    content = {key: value for key, value in config.items() if key not in without}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def collect_manifest(
    *,
    parameters: Mapping[str, int],
    training_flops_per_token: float,
    decode_state_bytes: int | None,
    tokens_seen: int,
    tokens_per_second: float,
    seconds: float,
    looking_seconds: float,
    peak_memory_bytes: int,
    seed: int | None,
    data_hash: str,
    data_order: str,
    precision: str,
    matched: Mapping[str, Any] | None = None,
    history: Mapping[str, Any],
) -> dict[str, Any]:
    """How a result was obtained: what the caller knows, and what this machine can tell.

    Args:
        parameters: trainable parameters of the model: in total, in attention and in the positional
            encoding, as `parameter_counts` names them.
        training_flops_per_token: of a forward and a backward pass; see `costs`.
        decode_state_bytes: that decoding keeps of a sequence, None where it has no cache; see
            `costs`.
        tokens_seen: target tokens trained on, over all ranks.
        tokens_per_second: the same by the seconds of training proper, without validation. Of the
            whole run, if it was resumed.
        seconds: wall-clock seconds of the training, validation included. Of this process, if the
            run was resumed.
        looking_seconds: of these, what callbacks took that look into the model; see `InspectionCallback`.
        peak_memory_bytes: that the training took on a rank, at most; see `memory`.
        seed: seed of the run, None where there is none.
        data_hash: the data module's `fingerprint`.
        data_order: of the training batches; see `ResumableLoader.order`.
        precision: the Trainer's word, for instance "bf16-mixed".
        matched: what was made to agree with the baseline, where something was; see `matching`.
        history: the curves of the losses; see `History`.

    Returns:
        The arguments, and `versions` (of Python and of the packages that are installed),
        `git_commit` (of the code; ends in "-dirty" where tracked files were changed; None where
        the code is not in a repository) and `hardware`.
    """
    return {
        **parameters,
        "training_flops_per_token": training_flops_per_token,
        "decode_state_bytes": decode_state_bytes,
        "tokens_seen": tokens_seen,
        "tokens_per_second": round(tokens_per_second, 3),
        "seconds": round(seconds, 3),
        "looking_seconds": round(looking_seconds, 3),
        "peak_memory_bytes": peak_memory_bytes,
        "seed": seed,
        "data_hash": data_hash,
        "data_order": data_order,
        "precision": precision,
        **collect_surroundings(),
        **({} if matched is None else {"matched": matched}),
        "history": history,
    }


def collect_surroundings() -> dict[str, Any]:
    """What this machine can tell: `git_commit`, `versions` and `hardware`."""
    return {
        "git_commit": _git_commit(Path(__file__).resolve()),
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "hardware": _hardware(),
    }


def write_results(
    path: str | Path, metrics: Mapping[str, Any], manifest: Mapping[str, Any]
) -> None:
    """Write `results.json`: one flat object, the metrics first, then the manifest's entries, each
    on a line.

    Metrics stand under the names they are logged by (`test/bleu`). JSON has no word for NaN and
    infinity: such a metric is null, and `not_finite` says which it was: `{"val/loss": "nan"}`.
    The file is replaced in one step, so a reader never sees half of it.

    Args:
        path: the file; its folder must exist.
        metrics: name to number or zero-dimensional tensor.
        manifest: what `collect_manifest` gives.

    Raises:
        ValueError: if a metric has the name of a manifest entry.
    """
    if both := {*metrics} & {*manifest, "not_finite"}:
        raise ValueError(f"metrics and manifest must not share names, got {sorted(both)} in both.")
    numbers = {name: _number(value) for name, value in metrics.items()}
    broken = {name: str(value) for name, value in numbers.items() if not math.isfinite(value)}
    results: dict[str, Any] = {
        name: None if name in broken else value for name, value in numbers.items()
    }
    results |= manifest
    if broken:
        results["not_finite"] = broken
    entries = [f"  {_json(name)}: {_json(value)}" for name, value in results.items()]
    _replace(Path(path), "{\n" + ",\n".join(entries) + "\n}\n")


def write_outputs(
    path: str | Path, lines: Sequence[tuple[str, str]], outputs: Mapping[int, str]
) -> None:
    """Write what a model wrote for a split, a line of JSON for each of its lines, in their order.

    `{"source": …, "reference": …, "output": …}`. Line ends are "\\n" alone: a text may hold others.

    Args:
        path: the file; its folder must exist.
        lines: of the split: source and reference.
        outputs: by the number of the line; lines that have none are left out.
    """
    written = [
        _json({"source": lines[place][0], "reference": lines[place][1], "output": outputs[place]})
        for place in sorted(outputs)
    ]
    _replace(Path(path), "".join(f"{line}\n" for line in written))


def print_results(
    console: Console,
    metrics: Mapping[str, Any],
    manifest: Mapping[str, Any],
    paths: Mapping[str, str | Path],
    next_commands: Sequence[str],
) -> None:
    """Tell how a run ended: figures, how they were obtained, where things are, what to try next.

    Paths and commands stand on lines of their own and are never wrapped, to be copied.

    Args:
        console: where to.
        metrics: name to number or zero-dimensional tensor.
        manifest: what `collect_manifest` gives.
        paths: word ("checkpoint") to path, in the order to show them.
        next_commands: complete shell commands.
    """
    print_metrics(console, metrics)
    minutes, seconds = divmod(round(manifest["seconds"]), 60)
    facts = (
        f"{manifest['parameters']:,} parameters",
        f"{manifest['tokens_seen']:,} tokens seen",
        f"{minutes} min {seconds} s" if minutes else f"{seconds} s",
        f"seed {manifest['seed']}",
        str(manifest["precision"]),
    )
    console.print(", ".join(facts), highlight=False, markup=False)

    print_paths(console, paths)
    if next_commands:
        console.print()
        console.print(Text("Next, try", style="bold"))
        for command in next_commands:
            _print_line(console, Text(f"  {command}", style="cyan"))


def named(config: dict[str, Any]) -> dict[str, Any]:
    """The config to show: each group by the word that chose it on the command line."""
    shown = {key: value for key, value in config.items() if key != "choices"}
    for group, choice in config["choices"].items():
        if isinstance(shown.get(group), dict):
            shown[group] = {**shown[group], "name": choice}
    del shown["data"]["tokenizer"]  # It is the group of that name, shown already.
    return shown


def relative_to_cwd(path: Path) -> Path:
    """The path from where the program was started, if it leads there: shorter to read and copy."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def print_metrics(console: Console, metrics: Mapping[str, Any]) -> None:
    """A table of names and figures."""
    rows = [(name, _legible(_number(value))) for name, value in metrics.items()]
    print_table(console, Table("Results", ["metric", "value"], rows))
    console.print()


def print_paths(console: Console, paths: Mapping[str, str | Path]) -> None:
    """Where things are: a word and a path a line, which is never wrapped, to be copied."""
    console.print()
    width = max(map(len, paths), default=0)
    for word, path in paths.items():
        _print_line(console, Text.assemble((f"{word:<{width}}", "bold"), "  ", str(path)))


def print_samples(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of what the model wrote."""
    print_table(console, Table("Samples", columns, rows, "l" * len(columns)))
    console.print()


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """What the data module read and left out: a line a split, then its notes."""
    order = ("train", "valid", "test")  # and test@128, a test at another length
    splits = [name for split in order for name in report if name.partition("@")[0] == split]
    width = max(map(len, splits))
    for split in splits:
        counts = report[split]
        facts = ", ".join(f"{word.replace('_', ' ')} {n:,}" for word, n in counts.items() if n)
        _print_line(console, Text(f"{split:<{width}}  {facts}"))
    for note in report["notes"]:
        _print_line(console, Text(f"note   {note}"))


def print_config_tree(console: Console, config: Mapping[str, Any]) -> None:
    """Print a resolved config, a branch a group: what was chosen, then its values.

    Args:
        console: where to.
        config: plain dicts and lists, all interpolations resolved.
    """
    console.print(_branch(Tree(Text("config", style="bold"), guide_style="dim"), config))


def choice_of(node: Mapping[str, Any]) -> str:
    """The word for what a config node chose: its `name`, else the last word of its `_target_`."""
    return str(node.get("name") or str(node.get("_target_", "")).rpartition(".")[2])


def _branch(tree: Tree, node: Mapping[str, Any]) -> Tree:
    # name and _target_ are in the branch's title already; _partial_ and the like are grammar.
    values = Text()
    for key, value in node.items():
        if not isinstance(value, Mapping) and key != "name" and not key.startswith("_"):
            values.append(" " if values else "").append(f"{key}=", "dim").append(_plain(value))
    if values:
        tree.add(values)
    for key, value in node.items():
        if isinstance(value, Mapping):
            title = Text(key, style="bold")
            if choice := choice_of(value):
                title.append(f" {choice}", style="cyan")
            _branch(tree.add(title), value)
    return tree


def _plain(value: Any) -> str:
    """A value as it is written in an override."""
    if isinstance(value, list):
        return f"[{','.join(map(_plain, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = str(value)
    return repr(text) if set(text) & set(" ,") else text


def _print_line(console: Console, text: Text) -> None:
    # soft_wrap leaves a long line to the terminal, so that it is copied as one line.
    console.print(text, soft_wrap=True, highlight=False)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _replace(path: Path, text: str) -> None:
    """Write a file in one step, so that a reader sees all of it or what was there before."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8", newline="\n")
    os.replace(draft, path)


def _number(value: Any) -> float:
    return value.item() if hasattr(value, "item") else value


def _legible(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 0.001:
        return f"{value:.3g}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _git_commit(file: Path) -> str | None:
    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(file.parent), *arguments]
            return subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    # A virtual environment often lies inside some other project's repository: its commit says
    # nothing about this code, which git does not track there.
    if git("ls-files", "--error-unmatch", str(file)) is None:
        return None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": _cpu_model(), "threads": torch.get_num_threads(), "gpus": gpus}


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
