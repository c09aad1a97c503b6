"""Beam search over live semantic IDs: widths, selection, what unseen SIDs get."""
