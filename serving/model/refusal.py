"""Why a version does not answer."""

from __future__ import annotations

from typing import Literal, NamedTuple

Reason = Literal["manifest", "features", "graphs", "files", "generation", "answers"]
"""What of a version is not as it should be: the file that names it or the manifest, the features that the
repository was rendered for, graphs that are not loaded, a file's content, the index, what the graphs compute.
"""


class Refusal(NamedTuple):
    """Why a version that was named does not answer."""

    reason: Reason
    text: str
