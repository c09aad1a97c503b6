"""The closed loop, played: what is served teaches what is served next, beside a model that stays put."""
