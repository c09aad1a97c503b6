"""Recommendation quality on the field's benchmarks, beside a control trained here: `make benchmark`."""
