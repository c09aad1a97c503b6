"""Executors that note the shapes they are asked for, and graphs that nobody runs."""

import numpy as np

from serving.search.executor import prefix_outputs, tail_carry_inputs, tail_outputs, tail_parent_inputs


class Recorder:
    """`Executor` around another one whose carry holds arrays; `calls` has (graph, {input: shape}).

    It refuses parents that are no beams: each must be a row of its level's keys and values.
    """

    def __init__(self, inner):
        self.inner, self.calls = inner, []

    def prefix(self, slots, profile):
        self.calls.append(("prefix", {"slots": slots.shape, "profile": profile.shape}))
        return self.inner.prefix(slots, profile)

    def tail(self, level, carry, *, parents, token, allowed):
        shapes = {name: carry[name].shape for name in tail_carry_inputs(level)}
        shapes |= {n: p.shape for n, p in zip(tail_parent_inputs(level), parents, strict=True)}
        shapes |= {"token": token.shape, "allowed": allowed.shape}
        self.calls.append((f"tail_{level}", shapes))
        for j, rows in enumerate(parents, start=2):
            assert rows.min() >= 0, (level, j, rows)
            assert rows.max() < shapes[f"past_kv_{j}"][2], (level, j, rows)
        return self.inner.tail(level, carry, parents=parents, token=token, allowed=allowed)

    def join(self, level, first, second):
        return self.inner.join(level, first, second)


class ShapeExecutor:
    """Engine of random scores for codebooks of any size; its carry has the shapes that a manifest names."""

    def __init__(self, manifest, *, level_sizes=None, seed=0):
        self.graphs = manifest.graphs
        self.sizes = (*(level_sizes or manifest.level_sizes), len(manifest.value_table))
        self.random = np.random.default_rng(seed)

    def prefix(self, slots, profile):
        carry = self.outputs("prefix", prefix_outputs(), batch=len(slots))
        return self.scores((len(slots), self.sizes[0])), carry

    def tail(self, level, carry, *, parents, token, allowed):
        names = tail_outputs(level, last=level == len(self.sizes))
        carry = {**carry, **self.outputs(f"tail_{level}", names, batch=len(token), beams=token.shape[1])}
        return self.scores(allowed.shape), carry

    def scores(self, shape):
        return -self.random.exponential(size=shape).astype(np.float32)

    def outputs(self, stem, names, **sizes):
        dims = {name: dims for name, _, dims in self.graphs[stem]["outputs"]}
        return {
            name: np.zeros([d if isinstance(d, int) else sizes[d] for d in dims[name]], np.float32)
            for name in names
            if name != "logprob"
        }


class FakeGraphs:
    """`serving.model.graphs.Graphs` at a test's command: what is loaded, what prepares, what a probe says."""

    def __init__(
        self,
        is_loaded=lambda manifest: True,
        *,
        prepare=None,
        probe=lambda manifest: None,
        files=lambda manifest: {},
    ):
        self.is_loaded, self.prepare, self.probe, self.files = is_loaded, prepare, probe, files
