"""Everything between text and batches: sources, tokenizers, the cache, samplers, data modules."""
