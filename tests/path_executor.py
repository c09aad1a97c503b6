"""An engine whose scores are a seeded function of the request and of the codes chosen so far.

It rebuilds each beam's codes from the carry and the parents alone, so a search that hands over a wrong
parent, or the keys and values of another level, gets other scores than a plain recursion over the catalogue.
"""

import numpy as np


class PathExecutor:
    def __init__(self, level_sizes, *, values=4):
        self.sizes = (*level_sizes, values)
        self.rows = []  # (level, beams) of every tail call

    def logprob(self, request, path):
        x = np.random.default_rng([request, *path]).normal(size=self.sizes[len(path)]) * 2
        return (x - np.log(np.exp(x).sum())).astype(np.float32)

    def prefix(self, slots, profile):
        ids = slots[:, 0, 0].tolist()
        return np.stack([self.logprob(i, ()) for i in ids]), {"ids": ids}

    def tail(self, level, carry, *, parents, token, allowed):
        assert len(parents) == level - 2
        assert all(a.dtype == np.int32 for a in (*parents, token, allowed))
        self.rows.append((level, token.shape[1]))
        out = np.full(allowed.shape, np.nan, np.float32)
        for b, request in enumerate(carry["ids"]):
            for i in range(token.shape[1]):
                # past_kv_j holds the code that tail j was given, s_{j - 1}
                earlier = [carry[f"past_kv_{j}"][b, parents[j - 2][b, i]] for j in range(2, level)]
                scores = self.logprob(request, tuple(int(c) for c in [*earlier, token[b, i]]))
                out[b, i] = np.where(allowed[b, i] >= 0, scores[allowed[b, i]], np.nan)
        return out, {**carry, f"past_kv_{level}": token.copy()}

    def join(self, level, first, second):
        name = f"past_kv_{level}"
        return {**second, name: np.concatenate([first[name], second[name]], 1)}, first[name].shape[1]


def plain_search(executor, live, request, widths, *, normalise, value_table):
    """[(sid, score, expected value)], best first: dicts and Python floats, no batches."""
    kept = {(): 0.0}
    for t, width in enumerate(widths):
        step = {}
        for prefix, score in kept.items():
            codes = sorted({s[t] for s in live if s[:t] == prefix})
            scores = executor.logprob(request, prefix)[codes].astype(float)
            if normalise[t] == "live":
                scores = scores - np.log(np.exp(scores).sum())
            step |= {(*prefix, c): score + float(x) for c, x in zip(codes, scores, strict=True)}
        kept = dict(sorted(step.items(), key=lambda item: -item[1])[:width])
    return [(s, x, float(np.exp(executor.logprob(request, s)) @ value_table)) for s, x in kept.items()]
