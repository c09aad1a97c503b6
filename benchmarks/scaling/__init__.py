"""Larger models, wider beams: what they find and earn, beside the paper's end points."""
