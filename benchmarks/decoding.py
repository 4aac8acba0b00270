"""Speed of decoding, against transformers' `generate`.

Both models have the same shape and random weights, write the same number of tokens from the same
inputs, and take turns in one process. The ratio is their time over ours: the median over rounds,
and the smallest and largest. No output ends early: transformers' has no eos, and ours is one that
the logits' bias keeps out until the limit.

    python -m benchmarks.decoding [--rounds 5] [--threads 2] [--output PAGE]
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
import transformers
from rich.progress import track
from transformers import GPT2Config, GPT2LMHeadModel, MarianConfig, MarianMTModel

from attention_zoo import create_attention, create_position
from attention_zoo.decoding import Beam, Greedy, Sample
from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.tasks.views.tables import Table, markdown_table
from benchmarks.measuring import CLOCKS, create_parser, describe_ratios, write_page

LAYERS, DIM, HEADS, FFN_DIM, VOCABULARY = 6, 384, 6, 1536, 8000
PROMPT, SOURCE, NEW = 32, 32, 64  # tokens
PAD, BOS, EOS = 0, 1, 2
BATCHES = (1, 32)
NEVER = -1e4  # the bias of eos

INTRODUCTION = """# Decoding

`generate` of transformers {version} and ours, with {layers} layers of width {dim}, {heads} heads, a
feed-forward of {ffn_dim} and a vocabulary of {vocabulary:,} in float32, in {clock} seconds with
{threads} threads.
{new} tokens are written after a prompt, or for a source, of {prompt}. The language models are GPT-2
and ours with learned positions, the translation models Marian and ours with sinusoidal positions.
The ratio is their time over ours: above 1, ours is faster. Medians of {rounds} rounds, in which
both take turns; the smallest and the largest in brackets. What ours loses at batch 1 is time in
Python: checks and modules, for a token as for a whole sentence. This command makes the page:

    python -m benchmarks.decoding --rounds {rounds} --threads {threads} --clock {clock} \\
        --output PAGE

"""

Run = Callable[[], object]


def language_models() -> dict[str, Callable[[int], tuple[Run, Run]]]:
    """Return, by the name of a search, what makes our run and theirs for a batch size."""
    ours = LanguageModel(
        vocabulary_size=VOCABULARY,
        layers=LAYERS,
        dim=DIM,
        ffn_dim=FFN_DIM,
        attention=partial(create_attention, "multi_head", heads=HEADS, bias=True),
        position=partial(create_position, "learned", max_length=1024),
        logit_bias=True,
    ).eval()
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=DIM,
            n_layer=LAYERS,
            n_head=HEADS,
            n_inner=FFN_DIM,
            bos_token_id=BOS,
            eos_token_id=None,
        )
    ).eval()
    forbid_eos(ours)

    def create_runs(batch: int) -> tuple[Run, Run]:
        prompts = torch.randint(3, VOCABULARY, (batch, PROMPT))
        sample = Sample(temperature=0.0, max_tokens=NEW)
        options = dict(do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW, pad_token_id=PAD)
        return (
            partial(sample, ours, prompts.tolist(), bos_id=BOS, eos_id=EOS, pad_id=PAD),
            partial(
                theirs.generate,
                prompts,
                attention_mask=torch.ones_like(prompts),
                eos_token_id=None,
                **options,
            ),
        )

    return {"language model, greedy": create_runs}


def translation_models() -> dict[str, Callable[[int], tuple[Run, Run]]]:
    """Return the same as `language_models`, for translation."""
    attention = partial(create_attention, "multi_head", heads=HEADS, bias=True)
    ours = Seq2Seq(
        vocabulary_size=VOCABULARY,
        pad_id=PAD,
        layers=LAYERS,
        dim=DIM,
        ffn_dim=FFN_DIM,
        encoder_attention=attention,
        decoder_attention=attention,
        cross_attention=attention,
        position=partial(create_position, "sinusoidal"),
        logit_bias=True,
        activation="silu",
        norm_order="post",
    ).eval()
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "layers": LAYERS,
            "ffn_dim": FFN_DIM,
            "attention_heads": HEADS,
        }.items()
    }
    theirs = MarianMTModel(
        MarianConfig(
            vocab_size=VOCABULARY,
            d_model=DIM,
            activation_function="silu",
            scale_embedding=True,
            pad_token_id=PAD,
            eos_token_id=None,
            bos_token_id=BOS,
            decoder_start_token_id=BOS,
            forced_eos_token_id=None,
            max_position_embeddings=512,
            **sizes,
        )
    ).eval()
    forbid_eos(ours)

    def create_runs(search: Greedy | Beam, beams: int, batch: int) -> tuple[Run, Run]:
        source = torch.randint(3, VOCABULARY, (batch, SOURCE))
        mask = torch.ones_like(source)
        return (
            partial(search, ours, source, mask.bool(), bos_id=BOS, eos_id=EOS, pad_id=PAD),
            partial(
                theirs.generate,
                source,
                attention_mask=mask,
                num_beams=beams,
                do_sample=False,
                min_new_tokens=NEW,
                max_new_tokens=NEW,
            ),
        )

    limit = {"max_ratio": 0.0, "max_extra": NEW - 1}  # Our outputs end in eos besides.
    return {
        "translation, greedy": partial(create_runs, Greedy(**limit), 1),
        "translation, beam of 5": partial(create_runs, Beam(width=5, **limit), 5),
    }


def forbid_eos(model: LanguageModel | Seq2Seq) -> None:
    """Keep eos from being likely before an output has to end."""
    torch.nn.init.zeros_(model.head.bias)
    model.head.bias.data[EOS] = NEVER


def measure_seconds(run: Run, clock: Callable[[], float]) -> float:
    """Return how long a run takes."""
    started = clock()
    with torch.inference_mode():
        run()
    return clock() - started


def main() -> None:
    """Measure all cases, and print or write the table."""
    arguments = create_parser(__doc__, rounds=5).parse_args()
    clock = CLOCKS[arguments.clock]
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = []
    cases = {**language_models(), **translation_models()}
    jobs = [(name, create, batch) for name, create in cases.items() for batch in BATCHES]
    for name, create, batch in track(jobs, "Decoding"):
        ours, theirs = create(batch)
        times = [
            (measure_seconds(ours, clock), measure_seconds(theirs, clock))
            for _ in range(arguments.rounds + 1)
        ][1:]  # The first round warms up.
        ratios = [other / own for own, other in times]
        speed = batch * NEW / statistics.median(own for own, _ in times)
        rows.append([name, f"{batch}", f"{speed:,.0f}", describe_ratios(ratios)])
    table = Table("", ["decoding", "batch", "tokens per second", "ratio"], rows)
    introduction = INTRODUCTION.format(
        version=transformers.__version__,
        layers=LAYERS,
        dim=DIM,
        heads=HEADS,
        ffn_dim=FFN_DIM,
        vocabulary=VOCABULARY,
        threads=arguments.threads,
        clock=arguments.clock,
        new=NEW,
        prompt=PROMPT,
        rounds=arguments.rounds,
    )
    write_page(f"{introduction}{markdown_table(table)}\n", arguments.output)


if __name__ == "__main__":
    main()
