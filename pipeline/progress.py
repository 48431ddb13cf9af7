"""What long work says about how far it is. The library only reports; jobs/terminal.py draws."""

from collections.abc import Sequence


class Progress:
    """Receives the progress of one piece of work. This base class ignores everything; see jobs/terminal.py."""

    def start(self, label: str, total: int | None = None, unit: str = "") -> None:
        """A new piece of work begins. total: how many units there are, None when unknown."""

    def advance(self, n: int = 1, **figures: float | str) -> None:
        """`n` more units are done. figures: named values worth showing beside the bar."""

    def update(self, done: int, **figures: float | str) -> None:
        """`done` units are done in all."""

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """What stands under the bar while the work goes on, in place of what was there before."""

    def finish(self, **figures: float | str) -> None:
        """The piece of work is over."""


SILENT = Progress()
