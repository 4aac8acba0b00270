"""Decoding: greedy and beam search for translation, sampling for language models."""

from attention_zoo.decoding.base import Hypothesis
from attention_zoo.decoding.beam import Beam
from attention_zoo.decoding.greedy import Greedy
from attention_zoo.decoding.sample import Sample

__all__ = ["Beam", "Greedy", "Hypothesis", "Sample"]
