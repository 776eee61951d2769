"""Metrics of outputs: BLEU, chrF, CIDEr-D, and means accumulated over batches."""
