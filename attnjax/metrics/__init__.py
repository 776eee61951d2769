"""What outputs are measured by: BLEU, CIDEr-D, and means of sums."""
