"""A small untrained task, for pictures that need a trained one."""

from functools import partial

import torch

from attention_zoo import create_attention, create_position
from attention_zoo.decoding import Greedy
from attention_zoo.models import Seq2Seq
from attention_zoo.tasks.data.tokenizers import BytePairTokenizer
from attention_zoo.tasks.training.translation import TranslationTask
from attention_zoo.tasks.views.figures.gallery import LINE


def create_untrained_task() -> TranslationTask:
    torch.manual_seed(0)
    lines = [LINE, "quarta-feira, 4 de março de 2026"]
    tokenizer = BytePairTokenizer.train(lines, vocabulary_size=280)
    attention = partial(create_attention, "multi_head", heads=2)
    model = Seq2Seq(
        vocabulary_size=tokenizer.vocabulary_size,
        pad_id=tokenizer.pad_id,
        dim=16,
        ffn_dim=32,
        layers=2,
        encoder_attention=attention,
        decoder_attention=attention,
        cross_attention=attention,
        position=partial(create_position, "rotary"),
    )
    return TranslationTask(
        model=model,
        tokenizer=tokenizer,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        schedule=None,
        decoding=Greedy(max_ratio=0.2, max_extra=4),
        label_smoothing=0.0,
        config={},
    ).eval()
