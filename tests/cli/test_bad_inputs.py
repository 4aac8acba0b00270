"""What users write by mistake, in all commands: an exit code, a line or few, and no traceback."""

import io
import os
import shlex
import sys

import pytest
import torch

from attention_zoo.tasks.commands.cli import main
from attention_zoo.tasks.data.base import PreparedData
from tests.cli.conftest import SMALL

pytestmark = pytest.mark.slow
TRAIN = [*SMALL, "logger=none", "callbacks=minimal", "trainer.max_steps=1", "test=false"]
TRAIN += ["data.source.size=40", "data.source.valid=4", "data.source.test=4"]

LANGUAGE_TRAIN = [x for x in TRAIN if not x.startswith("data.")]

# A command line a row, and a word of the message that names the rule or the remedy.
TRAINING = """
lr=0.1 | optimizer.lr
+lr=0.1 | optimizer.lr
++lr=0.1 | optimizer.lr
max_steps=5 | trainer.max_steps
max_step=5 | trainer.max_steps
baseline=x +baseline.attention=null | baseline=x and +baseline.attention=null replace each other
baseline.attention=linear baseline=null | replace each other
epochs=3 | trainer.max_epochs
batch_size=4 | data.tokens_per_batch
precision=16 | trainer.precision
vocab_size=4 | tokenizer.vocabulary_size
vocabulary_size=4 | tokenizer.vocabulary_size
tags=x | logger.wandb.tags
dropout=0.1 | model.dropout
d_model=4 | model.dim
num_heads=4 | model.heads
n_layers=4 | model.layers
gpus=1 | trainer.devices
learning_rate=1 | optimizer.lr
patience=1 | no option 'patience'
+foo=1 | no option 'foo'
+paths.foo=5 | paths.cache
+optimizer.foo=5 | optimizer.lr
+schedule.foo=5 | schedule.warmup_steps
+task.foo=5 | task.label_smoothing
+trainer.foo=1 | trainer.max_steps
trainer.max_step=1 | Did you mean trainer.max_steps
+callbacks.best_checkpoint.foo=1 | callbacks.best_checkpoint.monitor
+callbacks.foo=1 | needs a _target_
+logger.foo=1 | needs a _target_
+data.foo=1 | data.max_tokens
+data.source.foo=1 | data.source.target
+tokenizer.foo=1 | no option 'tokenizer.foo'
+decoding.foo=1 | decoding.max_extra
+attention.foo=1 | attention.backend
+position.foo=1 | position
+baseline.foo=1 | baseline.attention
++model.x=1 | model.dim
+model.vocabulary_size=5 | decided by the program
+trainer.logger=false | decided by the program
+trainer.callbacks=[] | decided by the program
+schedule.total_steps=4 | decided by the program
baseline=foo | baseline must be a mapping
baseline=[a] | baseline must be a mapping
freeze={a:1} | freeze must be a list
data.source={foo:1} | no option 'data.source.foo'
data.source=[1] | data.source=[1]
model.dim=abc | model.dim must be a whole number
model.dim=1.5 | model.dim must be a whole number
model.dim=null | model.dim must be a whole number
model.dim= | model.dim must be a whole number
model.dim=-4 | dim
model.dim=99999999999999999999 | the largest is 9223372036854775807
lengths=[99999999999999999999] | the largest is 9223372036854775807
task.name=[a] | task.name must be one of translation
logger=tensorboard +logger.tensorboard.flush_secs=1e30 | flush_secs must be a whole number
logger=tensorboard +logger.tensorboard.filename_suffix=0 | filename_suffix must be text
data.length_jitter=nan | data.length_jitter must be a number, got NaN
optimizer.betas=[0.9,nan] | optimizer.betas.1 must be a number, got NaN
callbacks.progress.refresh_seconds=nan | refresh_seconds must be a number, got NaN
~jobs | cannot be left out
hydra.job.chdir=true | leave it out
~seed | seed
~ckpt_path | is null already
~foo | no option 'foo'
~trainer.foo | no option 'trainer.foo'
~trainer.max_step | Did you mean trainer.max_steps
~test | cannot be left out
~model.dim | model.dim
model.layers=four | model.layers must be a whole number
model.layers=[linear,multi_head] | model.layers must be a whole number
model.layers=0 | model.layers must be at least 1
model.decoder_layers=0 | model.decoder_layers must be at least 1
stack=hybrid stack.pattern=aab | give model.layers=3
stack=hybrid stack.pattern=a-b | stack.pattern must be letters
stack=hybrid stack.pattern=1 | stack.pattern must be letters
stack=hybrid stack.pattern={a:1} | stack.pattern must be letters
stack=hybrid stack.pattern=c | attention@stack.c=NAME
stack=hybrid stack.foo=1 | stack.pattern
stack=hybrid stack.a.windo=1 | Did you mean stack.a.window
stack=hybrid stack.pattern=a position=alibi position@stack.a.position=none | no effect
stack=[hybrid,uniform] | stack takes one choice
stack.pattern=aab | choose stack=hybrid
stack=gemma4 | Did you mean gemma3
attention=mamba2 | It is called state_space_dual here
stack=hybrid attention@stack.a=gdn | It is called gated_delta here
position=t5 | It is called t5_bias here
attention=rope | no attention 'rope', but there is position=rotary
attention=gemma3 | there is stack=gemma3
stack=hybrid stack.a=linear | give attention@stack.a=linear
stack=hybrid stack.c=linear | give attention@stack.c=NAME
stack=hybrid stack.a.position=alibi | give position@stack.a.position=alibi
stack=hybrid position@stack.a=alibi | position@stack.a.position
stack=hybrid attention@stack.e=linear | Choices: attention, attention@encoder_attention
attention@stack.a=linear | Choose stack=hybrid, or a layout, too
stack=hybrid attention@stack.c=linear model.layers=4 | no layer has the kind c
stack=hybrid stack.encoder_pattern=3a | stack.encoder_pattern must be letters
stack=hybrid stack.encoder_pattern=aaaaab model.encoder_layers=2 | give model.encoder_layers=6
stack=hybrid stack.pattern=aA model.decoder_share_kv=[null,0] model.layers=4 | give one of them
stack=hybrid stack.pattern=a+bA+B model.layers=4 | side by side
model.heads=0 | model.heads must be at least 1
model.heads=3 | heads
model.activation=foo | relu_squared
model.norm=foo | rms
model.dropout=2 | dropout
model.dropout=yes | model.dropout must be a number
model.tie_embeddings=3 | true or false
attention.backend=[sdpa] | attention.backend must be
attention.backend=foo | backend
attention.heads=3 | heads
attention.name=foo | no attention 'foo'
attention=rope | no attention 'rope'
attention=mha | It is called multi_head here
position=rope | It is called rotary here
position=alibii | alibi
trainer.max_steps=null | trainer.max_steps must be a whole number
trainer.max_steps=abc | trainer.max_steps must be a whole number
trainer.max_steps=0 | trains nothing
trainer.max_steps=-1 | trainer.max_epochs
trainer.max_steps=-2 | at least -1
~trainer.max_steps | trainer.max_steps
trainer.precision=fp16 | bf16-mixed
trainer.precision=16-mixed | needs a GPU
trainer.accelerator=gpu | gpu
trainer.accelerator=foo | cpu
trainer.strategy=foo | ddp
trainer.devices=abc | devices
trainer.devices=0 | devices
trainer.num_nodes=0 | num_nodes
trainer.accumulate_grad_batches=0 | at least 1
trainer.accumulate_grad_batches=999 | as many batches
trainer.gradient_clip_val=-1 | at least 0
trainer.gradient_clip_val=abc | a number
trainer.gradient_clip_algorithm=foo | norm
trainer.val_check_interval=0 | above 0
trainer.val_check_interval=0.5 | check_val_every_n_epoch
trainer.val_check_interval=abc | DD:HH:MM:SS
trainer.check_val_every_n_epoch=1 | trainer.val_check_interval=200
trainer.limit_train_batches=0 | above 0
trainer.limit_val_batches=1.5 | limit_val_batches
trainer.overfit_batches=1 | debug=overfit
trainer.max_time=abc | DD:HH:MM:SS
trainer.profiler=foo | simple
trainer.barebones=true | barebones
trainer.log_every_n_steps=0 | at least 1
trainer._target_=foo | cannot be imported
trainer._target_=torch.nn.Identity | lightning.Trainer
task._target_=torch.nn.Identity | Task
optimizer._target_=torch.optim.AdamW | optimizer.momentum
optimizer._target_=torch.optim.Nope | cannot be imported
optimizer.lr=abc | optimizer.lr must be a number
optimizer.lr=-1 | above 0
optimizer.lr=0 | above 0
optimizer.betas=0.9 | list of 2 numbers
optimizer.betas=[0.9] | list of 2 numbers
~optimizer.lr | lr
optimizer=adam | Did you mean adamw
schedule.warmup_steps=5 | warmup_steps
schedule.warmup_steps=abc | schedule.warmup_steps must be a number
schedule.decay=foo | linear, sqrt
schedule.min_lr_ratio=2 | min_lr_ratio
schedule=foo | cosine
callbacks.best_checkpoint.monitor=foo | val/bleu
callbacks.best_checkpoint.monitor=train/foo | train/loss
callbacks=default callbacks.samples.probes=-1 | at least 1
callbacks.best_checkpoint.mode=foo | min, max
callbacks.best_checkpoint.save_top_k=-3 | save_top_k
callbacks.best_checkpoint.save_top_k=abc | a whole number
+callbacks.mine._target_=torch.nn.Identity | Callback
+callbacks.mine._target_=nomod.Nope | No module named 'nomod'
+logger.mine._target_=nomod.Nope | No module named 'nomod'
logger=foo | tensorboard
logger=[1,2] | takes names
logger=[csv,[wandb]] | takes names
callbacks=[null] | takes names
logger=csv logger.csv.name=5 | logger.csv.name must be text
logger=csv logger.csv.flush_logs_every_n_steps=0 | at least 1
logger=tensorboard +logger.tensorboard.foo=1 | logger.tensorboard.comment
logger=tensorboard +logger.tensorboard.log_dir=x | decided by the program
logger=wandb +logger.wandb.foo=1 | logger.wandb.notes
logger=wandb logger.wandb.dir=x | no option 'logger.wandb.dir'
logger=wandb +logger.wandb.dir=x | decided by the program
logger=wandb logger.wandb.mode=foo | auto, online, offline
logger=wandb logger.wandb.artifacts=[foo] | config
logger=wandb logger.wandb.init_timeout=-1 | logger.wandb.init_timeout must be at least 0
logger=wandb logger.wandb.finish_timeout=-1 | logger.wandb.finish_timeout must be at least 0
logger=tensorboard +logger.tensorboard.flush_secs=-1 | flush_secs must be at least 0
logger=csv logger.csv.foo=5 | no option 'logger.csv.foo'
compile=foo | compile must be
compile={mode:foo} | max-autotune
compile={foo:1} | foo
seed=-1 | seed must lie
seed=1.5 | seed must be a whole number
seed=null | seed must be a whole number
seed=abc | seed must be a whole number
jobs=2 | sweep with -m
fail_fast=true | sweep with -m
seeds=3 | with -m
test=maybe | true or false
lengths=64 | a list
lengths=[64] | lengths
stride=4 | lengths
match=foo | flops
match=flops model.ffn_dim=null | needs a model.ffn_dim
model.parallel_feed_forward=true | cross-attention
model.qkv_convolution=0 | qkv_convolution must be at least 1
model.qkv_convolution=foo | model.qkv_convolution must be a whole number
model.qkv_convolution=3 attention@encoder_attention=fourier | fourier does not project
model.qkv_convolution=3 attention@decoder_attention=gated_delta | set its kernel_size
model.value_residual=maybe | true or false
model.value_residual=true model.layers=1 | another layer with values of its own
model.value_residual=true model.layers=2 attention@decoder_attention=gru | gru, in layer 0
model.value_residual=true model.layers=2 attention@encoder_attention=grouped_tied | a value
baseline.attention=linear | match
data.num_workers=-1 | data.num_workers
data.max_tokens=1 | data.max_tokens
data.source=foo | data.source=foo
data.source.target=xx | locale
data.source.size=0 | data.source.size
data.seed=-1 | data.seed must be at least 0
data.length_jitter=-1 | at least 0
data.seed=null | data.seed must be
data=foo | phrases
tokenizer=symbols | tokenizer
tokenizer=bpe tokenizer.vocabulary_size=3 | vocabulary_size
task=foo | translation
task.bleu_tokenizer=foo | task.bleu_tokenizer=foo
task.non_finite=foo | stop, skip, continue
task.label_smoothing=2 | between 0 and 1
task.label_smoothing=-1 | between 0 and 1
optimizer=null | optimizer cannot be left out
attention=null | attention cannot be left out
task=null | task cannot be left out
data=null | data cannot be left out
model=null | model cannot be left out
tokenizer=null | tokenizer cannot be left out
schedule=null | schedule cannot be left out
decoding=null | decoding cannot be left out
trainer=null | trainer cannot be left out
paths=null | paths cannot be left out
~optimizer | optimizer cannot be left out
~data | data cannot be left out
optimizer=5 | one choice
optimizer= | one choice
model={dim:3} | one choice
attention=[multi_head,gated] | attention@cross_attention
optimizer=[adamw,muon] | one choice
attention@encoder_attention=[linear,gated] | one choice
encoder_attention=linear | attention@encoder_attention=linear
attention=linformer | cannot be causal
decoding=sample | decoding
decoding=beam decoding.width=0 | at least 1
decoding=beam decoding.length_penalty=-3 | length_penalty
hydra.run.dir=/proc/x | /proc/x
paths.logs=/proc/x | /proc/x
paths.cache=/proc/x | paths.cache
paths.cache= | paths.cache must not be empty
ckpt_path=/nonexist | no checkpoint
ckpt_path=a=b.ckpt | no checkpoint
model.dim=${foo} | foo
a=1=2 | no option 'a'
a.b.c=1 | no option 'a.b.c'
hello | name=value
--foo | name=value
--config-dir=/nonexist | /nonexist
-m --cfg=job | --cfg
hydra.foo=1 | hydra.foo
~model.dim=7 | write ~model.dim
~seed=3 | only where it is 3, got 1
~optimizer=adam | not made
~callbacks=foo | not made
~callbacks.progress=1 | write ~callbacks.progress
~hydra.run | cannot be left out
model.dim=[1 | close all brackets and quotes
model.dim={a | close all brackets and quotes
'model.dim="abc' | close all brackets and quotes
'model.dim=1]' | close all brackets and quotes
'optimizer.betas=[0.9,]' | close all brackets and quotes
'optimizer.betas=(0.9,0.98)' | close all brackets and quotes
'seed=1;2' | quote a value
'seed=!1' | quote a value
model.dim='#3' | quote a value
'model.dim=${foo' | close all brackets and quotes
model.dim=range(1,3) | sweep over them with -m
model.dim=choice(8,16) | sweep over them with -m
model.dim=1,2 | sweep over them with -m
model.dim=sort(3,1) | sweep over them with -m
model.dim=foo(3) | no function 'foo'
model.dim=int(abc) | has no value
'model.dim=${foo:1}' | model.dim: Unsupported
'model.dim=${model.dim}' | model.dim: Recursive
'model.dim=${oc.env:NOPE}' | 'NOPE' not found
model..dim=3 | no name of an option
.dim=3 | no name of an option
model.=3 | no name of an option
=3 | name=value
+=3 | name=value
++~model.dim=3 | name=value
model.dim:int=3 | no name of an option
attention@=linear | no name of an option
@model=tiny | no name of an option
model.dim@x=3 | Did you mean model?
model@foo=tiny | no node foo to choose model for
model/dim=3 | no option 'model/dim'
model[0]=3 | name=value
'$x=3' | no option '$x'
hydra.mode=foo | RUN, MULTIRUN
hydra=foo | config, default
hydra/launcher=nope | processes
--info foo | searchpath
--cfg foo | job, hydra, all
--package foo | give --cfg job
--resolve | give --cfg job
strict=false | init_from
ckpt_override=[optimizer] | ckpt_path
logger.wandb.tags=[a] | choose logger=wandb too
callbacks.attention_maps.layers=[1] | choose callbacks=default too
callbacks.averaging.last=2 | choose callbacks=averaged too
callbacks.progress.refresh_seconds=-1 | at least 0
trainer.max_time=00:00:00:00 | trains nothing
trainer.min_steps=5 | at most trainer.max_steps
optimizer.lr=inf | finite
optimizer.weight_decay=inf | finite
trainer.gradient_clip_val=nan | must be a number, got NaN
trainer.use_distributed_sampler=true | leave it out
hydra.run.dir= | must not be empty
paths.run=x | hydra.run.dir=FOLDER
hydra.sweep.subdir=x | sweep with -m
hydra/launcher=processes | sweep with -m
experiment=[parity,bar] | extrapolation
experiment=small/scam | Did you mean small/scan
experiment=scam | small/mano
callbacks=default callbacks.attention_maps.layers=[7] | layers of cross must be some of 0
callbacks=default callbacks.attention_maps.heads=[9] | heads of cross must be some of 0, 1
callbacks=default callbacks.attention_maps.steps=[9] | steps must be among the 1
"""
# What only a language model has.
LANGUAGE = """
callbacks=default callbacks.attention_maps.roles=[cross] | roles must be some of decoder
position=learned position.max_length=8 | lower data.context_length
position=learned lengths=[9999] | at most 512 tokens
data=recall tokenizer=symbols position=learned position.max_length=4 | lower data.source.length
"""
# What only files have.
FILES = """
data=parallel_files | data.source.train is missing
data=parallel_files data.source.valid=a.tsv | data.source.train is missing
"""
# {} is a checkpoint of a translation.
OTHERS = """
nonsense | Choices: train
trian | Did you mean train
evaluate | needs a checkpoint
evaluate ckpt_path=/nonexist | no checkpoint
evaluate ckpt_path= | ckpt_path must name a file
evaluate ckpt_path=[a] | ckpt_path must name a file
evaluate ckpt_path=. | is a folder
evaluate foo=1 | no option 'foo'
evaluate ~foo=1 | no option 'foo'
evaluate ckpt_path=[a | close all brackets and quotes
evaluate ckpt_path=a,b | several values
translate ckpt_path={a hello | close all brackets and quotes
attend ~output=3 | write ~output
evaluate ckpt_path={} split=train | valid or test
evaluate ckpt_path={} foo=1 | no option 'foo'
evaluate ckpt_path={} +foo=1 | no option 'foo'
evaluate ckpt_path={} trainer.precision=fp16 | bf16-mixed
evaluate ckpt_path={} trainer.accelerator=gpu | gpu
evaluate ckpt_path={} lengths=[4] | lengths
evaluate ckpt_path={} stride=4 | lengths
evaluate ckpt_path={} model.dim=32 | does not fit
evaluate ckpt_path={} output=/proc/x | output=FOLDER
evaluate ckpt_path={} hello | name=value
evaluate ckpt_path={} data=recall | recall
translate | needs a checkpoint
translate hello | needs a checkpoint
translate ckpt_path=null hello | needs a checkpoint
translate ckpt_path=/nonexist hello | no checkpoint
translate ckpt_path=epoch=3-step=400.ckpt hello | epoch=3-step=400.ckpt
translate ckpt=x hello | called ckpt_path
translate ckpt_path={} output=x hello | > FILE
translate ckpt_path={} foo=1 hello | no option 'foo'
translate ckpt_path={} input=/nonexist | there is no file
translate ckpt_path={} input=/nonexist hello | not from both
translate ckpt_path={} decoding=sample hello | decoding
translate ckpt_path={} decoding.max_ratio=abc hello | a number
translate ckpt_path={} decoding=beam decoding.width=0 hello | width
translate ckpt_path={} decoding=null hello | decoding cannot be left out
translate ckpt_path={} model.dim=32 hello | does not fit
translate ckpt_path={} -hello | after --
evaluate ckpt_path={} seed=-1 | seed must lie between
evaluate ckpt_path={} output= | output must not be empty
evaluate ckpt_path={} +trainer.limit_test_batches=0 | score nothing
evaluate ckpt_path={} logger=wandb logger.wandb.init_timeout=-1 | at least 0
evaluate ckpt_path={} optimizer=muon | no effect on evaluate
evaluate ckpt_path={} trainer.max_steps=7 | no effect on evaluate
evaluate ckpt_path={} task.label_smoothing=0.5 | no effect on evaluate
evaluate ckpt_path={} data=parallel_files | data.source.test is missing
translate ckpt_path={} input= | input must name a file
translate ckpt_path={} input=- | standard input
translate ckpt_path={} trainer.precision=bf16-true hello | no effect on translate
translate ckpt_path={} ~trainer.precision hello | no effect on translate
translate ckpt_path={} +trainer.fast_dev_run=true hello | no effect on translate
translate ckpt_path={} seed=3 hello | no effect on translate
translate ckpt_path={} data=copy hello | no effect on translate
translate ckpt_path={} compile=true hello | no effect on translate
translate ckpt_path={} model.dropout=0.5 hello | no effect on translate
translate ckpt_path={} decoding.n_best=3 hello | choose decoding=beam too
attend ckpt_path={} optimizer.lr=1 hello | no effect on attend
generate | needs a checkpoint
generate ckpt_path={} hello | attention-zoo translate
generate ckpt_path=/nonexist | no checkpoint
attend | needs a checkpoint
attend ckpt_path=/nonexist | no checkpoint
attend ckpt_path={} output=/proc/x/y hello | /proc/x
attend ckpt_path={} foo=1 | no option 'foo'
list foo | name=value
list foo=1 | pairs
list pairs=foo | no attention or position 'foo'
list format=foo | markdown
list output=/nonexist/x | output=FILE
list --pairs | pairs=all
list pairs=all pairs=all | one value
list pairs= | one value
show | at least one NAME
show foo | no attention or position 'foo'
show rope | It is called rotary here
show multi_head linear | one NAME
show stack=hybrid -m | name=value
show stack=hybrid ckpt_path={} | no effect on show
show stack=hybrid optimizer.lr=3 | no effect on show
show stack=hybrid trainer.max_steps=3 | no effect on show
show stack=hybrid seeds=3 | no effect on show
show stack=hybrid hydra.run.dir=x | no effect on show
show stack=hybrid multi_head | show takes only NAME
show stack=hybrid output=a.png output=b.png | one value
report | at least one FOLDER
report /nonexist | no folder
report . foo=1 | baseline
report . | There is no run in .
report --foo | name=value
report baseline=x | at least one FOLDER
compare | needs two candidates
compare --dry-run | got no option with several values
compare trial=5 attention=multi_head,linear | Did you mean trials
compare --cfg job attention=multi_head,linear | several values
compare suite=smal | Did you mean small
compare suite=/nonexist.yaml | is no file
compare +suite=smal | Did you mean small
train suite=small | no option 'suite'
train budget=1h | no option 'budget'
list output=. | output=FILE
list format= | one value
list format=table output=x | Leave it out
list pairs=all output=x | Leave it out
report . logger=foo | wandb
report --into x | output=FOLDER
report '' | one that is empty
-sc query=bash | COMP_LINE
figures foo | name=value
figures --into x | output=FOLDER
figures ckpt_path=/nonexist | no checkpoint
figures foo=1 | output
"""


# Those whose rule the prepared data decide.
NEED_DATA = ("accumulate_grad_batches=999", "check_val_every_n_epoch=1", "paths.cache=/proc/x")


def rows(table, prefix=()):
    """Return the arguments and the expected word of each row."""
    lines = (line.split(" | ") for line in table.strip().splitlines())
    return [([*prefix, *shlex.split(command)], word) for command, word in lines]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A translation that was trained for one step."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ATTENTION_ZOO_CACHE", str(folder / "cache"))
        patch.setattr(sys, "argv", ["attention-zoo", "train", *TRAIN])
        main()
    return str(next(folder.glob("logs/*/runs/*/checkpoints/best.ckpt")))


def run(monkeypatch, capsys, folder, arguments):
    """Run the program in this process; return its exit code and what it printed of errors."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(folder / "cache"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["attention-zoo", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    capsys.readouterr()
    try:
        with pytest.raises(SystemExit) as exit:
            main()
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
    return exit.value.code, capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*hydra.searchpath.*")
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        *rows(TRAINING, ["train", *TRAIN]),
        *rows(LANGUAGE, ["train", "task=language_modeling", "data=python_docs", *LANGUAGE_TRAIN]),
        *rows(FILES, ["train", *LANGUAGE_TRAIN]),
        *rows(OTHERS),
    ],
    ids=lambda x: " ".join(y for y in x if y not in TRAIN) if isinstance(x, list) else "",
)
def test_it_is_refused_in_a_line_that_helps(
    monkeypatch, capsys, tmp_path, checkpoint, arguments, word
):
    if arguments[0] == "train" and not arguments[-1].endswith(NEED_DATA):
        monkeypatch.setattr(PreparedData, "prepare_data", None)  # It is refused before that.
    arguments = [x.replace("{}", checkpoint) if "={}" in x else x for x in arguments]
    code, errors = run(monkeypatch, capsys, tmp_path, arguments)
    assert code in (2, 3), errors
    lines = errors.strip().splitlines()
    assert 1 <= len(lines) <= 3 and "Traceback" not in errors, errors
    assert lines[-1].startswith("refused: " if code == 3 else "error: "), errors
    assert word in errors, errors


def test_lines_are_translated_whatever_the_data_of_the_training(
    monkeypatch, capsys, tmp_path, checkpoint
):
    contents = torch.load(checkpoint, weights_only=True)
    contents["attention_zoo"]["config"]["data"]["_target_"] = "mine.Data"
    torch.save(contents, tmp_path / "own.ckpt")
    command = ["ckpt_path=own.ckpt", "decoding.max_extra=2", "decoding.max_ratio=0.1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attention-zoo", "translate", *command, "a line"])
    main()
    assert len(capsys.readouterr().out.splitlines()) == 1
    code, errors = run(monkeypatch, capsys, tmp_path, ["evaluate", *command])
    assert code == 3 and "got _target_: mine.Data" in errors
    changed = [*command, "data.max_tokens=5", "a line"]
    code, errors = run(monkeypatch, capsys, tmp_path, ["translate", *changed])
    assert code == 3 and "got _target_: mine.Data" in errors


def test_the_table_is_long_enough():
    assert len(rows(TRAINING) + rows(OTHERS)) >= 150
