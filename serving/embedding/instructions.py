"""A sentence about an ad for the sentence model, worded by the form of the ad.

GR4AD reads an ad through one of six prompt templates: live, external advertiser, virtual product, physical
goods and so on (arXiv 2602.22732, section on UA-SID); their texts are not published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

FIELDS = ("account_id", "conversion_type", "text")


@dataclass(frozen=True)
class _Template:
    form: str
    when: dict[str, frozenset[str]]
    words: frozenset[str]
    instruction: str

    def fits(self, fields: Mapping[str, str], words: set[str]) -> bool:
        named = all(fields[name].casefold() in values for name, values in self.when.items())
        return named and (not self.words or bool(self.words & words))


class Instructions:
    """Templates in the order they are tried; the first that fits an ad words its sentence."""

    def __init__(self, templates: Sequence[Mapping[str, Any]]) -> None:
        """Take templates as a file of them has them.

        Args:
            templates: each with `form`, its name; `instruction`, with `{text}` in it and, where wanted,
                `{account_id}` and `{conversion_type}`; and, in all but the last, `when`: values that
                account_id or conversion_type must be one of, and `words`, one of which the text must hold.

        Raises:
            ValueError: a template is not such a one, or an ad could fit none.
        """
        self.templates = [dict(template) for template in templates]
        self._parsed = [_parsed(template, at) for at, template in enumerate(self.templates)]
        if not self._parsed or self._parsed[-1].when or self._parsed[-1].words:
            raise ValueError("instructions: expected a last template without `when`, for all other ads")

    def form(self, account_id: str, conversion_type: str, text: str) -> str:
        """Name of the template that fits an ad."""
        return self._fitting(account_id, conversion_type, text).form

    def sentence(self, account_id: str, conversion_type: str, text: str) -> str:
        """The ad in a sentence; a blank text stays as it is, for nothing is known of such an ad."""
        if not text.strip():
            return text
        template = self._fitting(account_id, conversion_type, text)
        return template.instruction.format(account_id=account_id, conversion_type=conversion_type, text=text)

    def _fitting(self, account_id: str, conversion_type: str, text: str) -> _Template:
        fields = {"account_id": account_id, "conversion_type": conversion_type}
        words = set(re.findall(r"\w+", text.casefold()))
        return next(template for template in self._parsed if template.fits(fields, words))


def _parsed(template: Mapping[str, Any], at: int) -> _Template:
    where = f"instructions, template {at + 1}"
    unknown = template.keys() - {"form", "when", "instruction"}
    form, instruction = template.get("form"), template.get("instruction")
    if unknown or not isinstance(form, str) or not isinstance(instruction, str):
        raise ValueError(
            f"{where}: expected form, instruction and, where wanted, when, got {sorted(template)}"
        )
    try:
        parsed = [(name, spec, how) for _, name, spec, how in Formatter().parse(instruction)]
    except ValueError as error:
        raise ValueError(f"{where}: instruction {instruction[:80]!r}: {error}") from error
    found = [place for place in parsed if place[0] is not None]
    names = {name for name, *_ in found}
    # A format or conversion behind a name would fail, or not, with the ad that it is given.
    if "text" not in names or not names <= set(FIELDS) or any(spec or how for _, spec, how in found):
        wanted = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ValueError(
            f"{where}: expected {{text}} and no other than {wanted} in its instruction, as they stand "
            f"here, got {instruction[:80]!r}"
        )
    when = template.get("when") or {}
    if not isinstance(when, Mapping) or not when.keys() <= {"account_id", "conversion_type", "words"}:
        raise ValueError(f"{where}: expected `when` of account_id, conversion_type or words, got {when!r}")
    for name, values in when.items():
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            raise ValueError(f"{where}, when, {name}: expected a list of texts, got {values!r}")
    folded = {name: frozenset(value.casefold() for value in values) for name, values in when.items()}
    words = folded.pop("words", frozenset())
    return _Template(form, folded, words=words, instruction=instruction)
