"""Everything between text and batches: sources, tokenizers, the cache, batches, data modules."""
