"""Sentence pairs: sources, subword vocabularies, batches."""
