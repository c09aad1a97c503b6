"""What the preset's section says of the search, read for a model of so many SID levels."""

from __future__ import annotations

from dataclasses import dataclass

from serving.backend.settings import ServingConfig
from serving.load.ladder import Ladder
from serving.search.normalise import Normalise, parse_normalise
from serving.search.widths import WidthPlan

_WIDEST, _WIDEST_PRUNED = 1.6, 2.5  # rung over the configured widths


@dataclass(frozen=True)
class SearchPlans:
    """Width plans and normalisation of a server.

    Attributes:
        ladder: plans that load control may take; its base is the configured one.
        max_plan: widest plan of all, for requests and load control.
        normalise: of each level.
    """

    ladder: Ladder
    max_plan: WidthPlan
    normalise: tuple[Normalise, ...]

    @classmethod
    def of(cls, config: ServingConfig, *, levels: int, pruned: bool = False) -> SearchPlans:
        """Read the section's texts.

        Args:
            config: the section.
            levels: T.
            pruned: searches are, so that wide ones cost short answers little more; for the widest rung of a
                section without a ladder.

        Raises:
            ValueError: a plan is malformed, `max_widths` is narrower than `widths`, the ladder or `normalise`
                does not fit.
        """
        plan = WidthPlan.parse(config.widths, levels=levels)
        widest = WidthPlan.parse(config.max_widths, levels=levels) if config.max_widths else None
        if widest is not None and widest.narrower(plan):
            raise ValueError(f"serving.max_widths: expected at least serving.widths, {plan}, got {widest}")
        text = "-".join(["codebook"] * levels) if config.normalise is None else config.normalise
        normalise = parse_normalise(text, levels=levels)
        if config.load_control == "fixed":
            return cls(Ladder((plan,), 0), widest or plan, normalise)
        up = _WIDEST_PRUNED if pruned else _WIDEST
        try:
            ladder = Ladder.parse(config.ladder, base=plan) if config.ladder else Ladder.around(plan, up=up)
            ladder = ladder if widest is None else ladder.within(widest)
        except ValueError as error:
            raise ValueError(f"serving.ladder: {error}") from error
        return cls(ladder, widest or ladder.plans[-1], normalise)

    @property
    def plan(self) -> WidthPlan:
        """The configured plan."""
        return self.ladder.plans[self.ladder.base]

    @property
    def prepared(self) -> tuple[WidthPlan, ...]:
        """Plans that engines are prepared for: the configured one, the ladder's narrowest, the widest.

        Rungs between them are padded to the next of these: a CUDA graph for each would take seconds and
        memory.
        """
        return tuple(dict.fromkeys((self.plan, self.ladder.plans[0], self.max_plan)))
