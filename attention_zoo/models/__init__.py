"""Transformers made of the zoo's attention: blocks, stacks, and two complete models."""

from attention_zoo.models.language_model import LanguageModel
from attention_zoo.models.seq2seq import Seq2Seq

__all__ = ["LanguageModel", "Seq2Seq"]
