"""Every config composes, names what exists, and builds what it names."""

import json
import re
import shlex
from itertools import product
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class, get_method
from omegaconf import OmegaConf

import attention_zoo
from attention_zoo.errors import Unsupported
from attention_zoo.tasks.comparison.published import read_published
from attention_zoo.tasks.comparison.suite import read_suite
from attention_zoo.tasks.configuration.build import (
    build_model,
    instantiate,
    refuse_untrusted_targets,
)
from attention_zoo.tasks.configuration.composition import register_plugins
from attention_zoo.tasks.configuration.conf_files import (
    SYMBOL_TOKENIZER,
    choice_target,
    data_task,
)
from attention_zoo.tasks.configuration.defaults import resolve_defaults
from attention_zoo.tasks.configuration.group_overrides import complete_overrides
from attention_zoo.tasks.configuration.resolved_config import find_targets
from attention_zoo.tasks.configuration.validation import validate
from attention_zoo.tasks.training.trainer_options import check_training
from attention_zoo.zoo import ATTENTION, POSITION
from tests.conformance.cases import family, mark_exhaustive

CONF = Path(attention_zoo.__file__).parent / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
# Experiments have a folder of small forms; one of them is experiment=small/scan.
CHOICES = sorted(
    (path.parts[0], "/".join(path.with_suffix("").parts[1:]))
    for path in FILES
    if len(path.parts) > 1 and "hydra" not in path.parts
)
# What a choice of a group needs of the others.
FITTING = {
    ("data", "parallel_files"): ["data.source.train=[[a,b]]", "data.source.valid=[[a,b]]"],
    ("decoding", "sample"): ["task=language_modeling"],
    ("data", "text_files"): ["data.source.train=[a]", "data.source.valid=[a]"],
}


def composed(*overrides):
    register_plugins("train")
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        # A composition has no output folder: that is made when the job runs.
        config = compose("train", overrides=[*overrides, "paths.run=run"])
        resolve_defaults(config, overrides)
        return OmegaConf.to_container(config, resolve=True)


def overrides_of(group, choice):
    if group == "attention":
        card = ATTENTION.card(choice)
        # Every mechanism takes what is added to embeddings; the default encoding acts on heads.
        if "causal" in card.roles:
            return ["task=language_modeling", f"attention={choice}"]
        return [f"attention@encoder_attention={choice}"]
    task = [f"task={data_task(choice)}"] if group == "data" else []
    if group == "position" and "global" not in POSITION.card(choice).roles:
        task = ["task=language_modeling"]
    if choice_target(group, choice) == SYMBOL_TOKENIZER:
        task = ["task=language_modeling", "data=recall"]
    return [*task, *FITTING.get((group, choice), []), f"{group}={choice}"]


def commands_in(experiment):
    """Return the commands in the comments of an experiment, each as its overrides."""
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    text = "\n".join(line.removeprefix("#") for line in lines if line.startswith("#"))
    # A line that is indented further goes on with the one before.
    text = re.sub(r"\n {4,}(?=\S)(?!attention-zoo)", " ", text)
    commands = re.findall(r"^ +attention-zoo train (.*)$", text, re.MULTILINE)
    return [shlex.split(command, comments=True) for command in commands]


def jobs_of(overrides):
    """Return the overrides of each job that a command starts."""
    values = [x for x in overrides if "=" in x]
    if "-m" not in overrides:
        return [values]
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        sweeps = OverridesParser.create().parse_overrides(values)
    choices = [
        [f"{x.key_or_group}={value}" for value in x.sweep_string_iterator()]
        if x.is_sweep_override()
        else [x.input_line]
        for x in sweeps
    ]
    return [list(job) for job in product(*choices)]


def kind_of_choice(group, choice):
    """Return what choices have in common: the family, where an encoding acts, or the target."""
    if group == "attention":
        return group, family(choice)
    if group == "position":
        return group, POSITION.card(choice).acts
    return group, choice_target(group, choice)


@pytest.mark.parametrize(
    "group, choice", mark_exhaustive((pair, kind_of_choice(*pair)) for pair in CHOICES)
)
def test_every_choice_composes_and_builds(group, choice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = composed(*overrides_of(group, choice))
    validate(config)
    found = list(find_targets(config))
    assert found
    for target in found:
        last = target.rpartition(".")[2]
        (get_class if last[0].isupper() else get_method)(target)
    if group in ("attention", "position", "model", "task", "experiment", "debug"):
        build_model(config, vocabulary_size=5, pad_id=0)
    elif group == "callbacks":
        assert all(instantiate(node) for node in config["callbacks"].values())
    elif group == "logger":
        assert config["logger"] is None or all(
            node["_target_"] for node in config["logger"].values()
        )
    elif group in ("data", "optimizer", "schedule", "decoding", "tokenizer"):
        assert instantiate(config[group]) is not None
    elif group == "trainer" and choice != "gpu":
        trainer = config["trainer"] | {"accelerator": "cpu"}
        instantiate(trainer, logger=False, enable_checkpointing=False)


def test_data_choose_the_symbols_of_diagnostics_and_the_command_line_comes_first():
    language = ["task=language_modeling"]
    assert composed(*language)["tokenizer"]["vocabulary_size"] == 1000
    assert (
        choice_target("tokenizer", "symbols")
        == composed(*language, "data=copy")["tokenizer"]["_target_"]
    )
    config = composed(*language, "data=copy", "tokenizer=bytes")
    config["choices"] = {"data": "copy"}
    with pytest.raises(Unsupported, match=r"tokenizer=bytes cannot read data=copy.* symbols"):
        validate(config)
    config = composed(*language, "tokenizer=symbols")
    config["choices"] = {"data": "python_docs"}
    with pytest.raises(Unsupported, match=r"made of text\. .* for it: bpe, bytes, characters"):
        validate(config)


@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_float16_is_refused_where_it_is_not_computed_or_can_only_diverge(precision):
    config = composed("task=language_modeling", "trainer.accelerator=cpu")
    config["trainer"]["precision"] = precision
    with pytest.raises(Unsupported, match=f"{precision} needs .*bf16"):
        check_training(config)


def test_the_model_writes_as_much_as_an_answer_takes():
    def written(*overrides):
        return composed("task=language_modeling", *overrides)["decoding"]["max_tokens"]

    assert written() == 200
    assert written("data=recall") == 1
    assert written("data=reverse", "data.source.length=20") == 20
    assert written("data=recall", "decoding.max_tokens=5") == 5


def test_words_are_names_and_all_of_them():
    for group, registry in (("attention", ATTENTION), ("position", POSITION)):
        assert [choice for each, choice in CHOICES if each == group] == list(registry)
        for name in registry:
            assert OmegaConf.load(CONF / group / f"{name}.yaml").name == name


def test_one_word_for_all_roles_and_one_override_for_one():
    config = composed("attention=linear", "attention@cross_attention=additive", "model.heads=2")
    assert config["attention"]["name"] == "linear"
    assert config["encoder_attention"] is None
    assert config["cross_attention"]["name"] == "additive"
    # Nothing of the one choice leaks into the other.
    assert set(config["cross_attention"]) == set(OmegaConf.load(CONF / "attention/additive.yaml"))
    other = composed("attention@cross_attention=multi_head", "cross_attention.heads=1")
    assert (other["cross_attention"]["heads"], other["attention"]["heads"]) == (1, 4)


@pytest.mark.parametrize(
    ("attention", "position"),
    [
        (["attention=multi_head"], "rotary"),
        (["attention=additive"], "sinusoidal"),
        (["attention@encoder_attention=additive"], "sinusoidal"),
        (["attention@cross_attention=additive"], "rotary"),
        (["attention=additive", "position=alibi"], "alibi"),
    ],
)
def test_an_encoding_that_was_not_chosen_fits_all_attention(attention, position):
    config = composed(*attention)
    assert config["position"]["name"] == position
    validate(config)


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "subprocess.run", "numpy.load"])
def test_a_checkpoint_may_not_name_the_code_of_others(target):
    config = {"inside": [{"_target_": target}]}
    with pytest.raises(Unsupported, match=f"got _target_: {target}"):
        refuse_untrusted_targets(config, config)
    refuse_untrusted_targets(config, {})  # A user's own config may.


EXPERIMENTS = [(group, choice) for group, choice in CHOICES if group in ("experiment", "debug")]
FOLDERS = {"multi30k": "multi30k/raw", "tinyshakespeare": "tinyshakespeare"}


@pytest.mark.parametrize(
    "group, choice",
    [
        pytest.param(*pair, marks=[] if pair[1] == "default" else [pytest.mark.slow])
        for pair in EXPERIMENTS
    ],
)
def test_every_experiment_trains_two_steps(group, choice, train, real, tmp_path):
    config = composed(f"{group}={choice}")
    overrides = [f"{group}={choice}", "trainer.max_steps=2", "logger=none", "test=false"]
    overrides += ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=1"]
    overrides += ["++trainer.limit_val_batches=1", "callbacks=minimal"]
    source = config["data"]["source"]
    if source["_target_"].endswith("Phrases"):
        overrides += ["data.source.size=100", "data.source.valid=8", "data.source.test=8"]
    elif "diagnostics" in source["_target_"]:
        overrides += [f"data.source.{name}=20" for name in ("size", "valid", "test")]
        variants = config["data"].get("test_variants") or {}
        overrides += [f"++data.test_variants.{name}.test=20" for name in variants]
        overrides += ["data.batch_size=4", "model.dim=32", "model.heads=2"]
    elif "hub" in source["_target_"]:
        name = next(name for name in FOLDERS if name in source["path"].replace("_", ""))
        overrides += [f"data.root={real(FOLDERS[name])}"]
    elif source["_target_"].endswith("GettextCatalogues"):
        entries = [f'msgid "Open file {i}"\nmsgstr "Abrir o arquivo {i}"\n' for i in range(100)]
        (tmp_path / f"{source['target']}.po").write_text("\n".join(entries))
        overrides += [f"data.source.catalogues=[{tmp_path}]"]
    run = train(*overrides)
    assert json.loads((run / "results.json").read_text())["val/loss"] > 0


@pytest.mark.parametrize(
    "group, choice",
    mark_exhaustive((pair, (pair[0], "/" in pair[1])) for pair in EXPERIMENTS),
)
def test_every_experiment_has_its_way(group, choice):
    """What it sets stands in the composed config, whatever the defaults are."""
    config = OmegaConf.create(composed(f"{group}={choice}"))
    own = OmegaConf.load(CONF / group / f"{choice}.yaml")
    del own["defaults"]
    own.pop("hydra", None)  # No part of a job's config; a sweep shows it.
    assert OmegaConf.merge(config, own) == config


@pytest.mark.parametrize(
    "experiment",
    mark_exhaustive((x, "/" in x) for group, x in EXPERIMENTS if group == "experiment"),
)
def test_commands_of_experiments_build(experiment):
    commands = commands_in(experiment)
    assert commands
    for command in commands:
        for job in jobs_of(command):
            job = [x.replace("=FOLDER", "=.") for x in job]
            config = composed(*complete_overrides("train", job))
            validate(config)
            with torch.device("meta"):
                build_model(config, vocabulary_size=40, pad_id=0)


@pytest.mark.parametrize("benchmark", read_suite("small"))
def test_the_small_suite_takes_the_mechanisms_with_published_results(benchmark):
    published = read_published(benchmark)
    names = set()
    for source in [] if published is None else published["sources"]:
        names |= source.get("figures", {}).keys()
        for ordering in source.get("orderings", []):
            names |= {*ordering.get("better", []), *ordering.get("worse", [])}
    for name in sorted(names):
        choice, *options = name.split()
        group = "attention" if choice in ATTENTION else "position"
        job = [*read_suite("small")[benchmark], f"{group}={choice}"]
        config = composed(*job, *(f"{group}.{option}" for option in options))
        validate(config)
        build_model(config, vocabulary_size=5, pad_id=0)


@pytest.mark.slow
def test_debugging_can_learn_a_batch_by_heart(train):
    run = train(
        "debug=overfit",
        "trainer.max_steps=40",
        "trainer.log_every_n_steps=10",
        "callbacks=minimal",
        "logger=csv",
    )
    lines = (run / "csv" / "metrics.csv").read_text().splitlines()
    place = lines[0].split(",").index("train/loss")
    losses = [float(line.split(",")[place]) for line in lines[1:] if line.split(",")[place]]
    assert losses[-1] < 0.5 * losses[0]
