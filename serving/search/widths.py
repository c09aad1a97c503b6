"""Width plans: how many beams each level keeps (dynamic beam width, DBW)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WidthPlan:
    """Beams kept after each SID level, and how many of the final beams get a value token.

    Attributes:
        sid: one width a SID level, e.g. (64, 128, 256).
        value: beams of the last level that the value level scores; at least the number of ads asked for is.
    """

    sid: tuple[int, ...]
    value: int

    def __post_init__(self) -> None:
        """Reject widths that keep nothing."""
        if not self.sid or min(self.sid) < 1 or self.value < 1:
            raise ValueError(f"expected widths and value >= 1, got {self}")

    @classmethod
    def parse(cls, text: str, *, levels: int) -> WidthPlan:
        """Read "64-128-256:64" (widths, then the value width, which defaults to the last width).

        Raises:
            ValueError: not of that form, or not one width a level.
        """
        widths, _, value = text.partition(":")
        try:
            sid = tuple(int(w) for w in widths.split("-"))
            plan = cls(sid, int(value) if value else sid[-1])
        except ValueError as error:
            raise ValueError(
                f'width plan: expected a form like "64-128-256:64", got {text!r} ({error})'
            ) from None
        if len(plan.sid) != levels:
            raise ValueError(f"width plan: expected {levels} widths (one a SID level), got {text!r}")
        return plan

    def capped(self, cap: int) -> WidthPlan:
        """The plan with no width above `cap`."""
        return WidthPlan(tuple(min(w, cap) for w in self.sid), min(self.value, cap))

    def within(self, most: WidthPlan) -> WidthPlan:
        """The plan with no width above that of `most` at the same level."""
        return WidthPlan(
            tuple(min(w, m) for w, m in zip(self.sid, most.sid, strict=True)), min(self.value, most.value)
        )

    def narrower(self, other: WidthPlan) -> bool:
        """Whether any width is below that of `other`."""
        return self.within(other) != other

    def pool(self, num_ads: int, *, ranked_among: int) -> int:
        """Of how many of the best beams an answer is made.

        Args:
            num_ads: asked for.
            ranked_among: beams that get another order than that of their probability, as far as they have a
                value; 0 for none.
        """
        return max(num_ads, min(ranked_among, self.value, self.sid[-1]))

    def __str__(self) -> str:
        """The form `parse` reads."""
        return "-".join(map(str, self.sid)) + f":{self.value}"
