"""Who does the work on parts of a log: this process, one after the other, or Ray on many machines."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


class Workers(Protocol):
    """Does the same work on each item, and gives what was found in the order of the items."""

    readers: int  # into how many parts the source is worth dividing

    def __call__(self, work: Callable[[Item], Found], items: Iterable[Item]) -> Sequence[Found]:
        """Do it."""


class Here:
    """This process; Polars takes all of its cores for each item."""

    readers = 1

    def __call__(self, work: Callable[[Item], Found], items: Iterable[Item]) -> Sequence[Found]:
        """Do it, one item after the other."""
        return [work(item) for item in items]


class OnRay:
    """Ray Data, one task an item; the machines see the source and the output folder by the same paths.

    Only places and counts travel: each task reads and writes its part of the tables itself. So the tables
    are those of `Here` to the last bit, and Ray needs no memory for them.
    """

    def __init__(self) -> None:
        """Join the cluster that RAY_ADDRESS names, or start one of this machine's cores.

        Raises:
            ValueError: Ray Data is not installed.
        """
        try:
            import ray
            import ray.data  # half a minute of imports that only this way pays
        except ImportError as error:
            raise ValueError(
                "--ray: expected the packages of requirements-ray.txt (pip install --no-deps -r "
                f"requirements-ray.txt), got {error}"
            ) from error
        self._ray, self._data = ray, ray.data
        ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
        self._data.DataContext.get_current().enable_progress_bars = False
        self.readers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def __call__(self, work: Callable[[Item], Found], items: Iterable[Item]) -> Sequence[Found]:
        """Do it, as many items at a time as the cluster has cores."""
        numbered = [{"number": number, "item": item} for number, item in enumerate(items)]
        if not numbered:
            return []

        def of_row(row: dict[str, Any]) -> dict[str, Any]:
            return {"number": row["number"], "found": work(row["item"])}

        items_of_tasks = self._data.from_items(numbered, override_num_blocks=len(numbered))
        try:
            rows = items_of_tasks.map(of_row).take_all()
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error  # as the work itself raises it
        return [row["found"] for row in sorted(rows, key=lambda row: row["number"])]
