"""The terminal of the jobs: named stages, progress bars with rates and time left, result tables.

On a terminal there are moving bars and colours (none under NO_COLOR); into a file or a pipe go plain
lines, one every ten seconds.
"""

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console, RenderableType
from rich.markup import escape as escape_markup
from rich.table import Column, Table
from rich.text import Text

from pipeline.masking import printable
from pipeline.progress import Progress

_RATE_WINDOW_S = 20.0  # rates follow the last seconds, so that a slow start does not spoil the time left
_PLAIN_WIDTH = 120


@dataclass(frozen=True)
class StageTime:
    """How long a stage took. skipped: it was finished in an earlier run."""

    name: str
    seconds: float
    skipped: bool = False


class TerminalProgress(Progress):
    """Draws progress on a console. A context manager: leaving it, also by an error, removes a moving bar."""

    def __init__(self, console: Console | None = None, interval_s: float = 10.0) -> None:
        """interval_s: time between the plain lines of one piece of work where there is no terminal."""
        self.console = console or _console()
        self.stage_times: list[StageTime] = []
        self._interval_s = interval_s
        self._num_stages = 0
        self._work: _Work | None = None
        self._live: _Bar | None = None
        self._animated = self.console.is_terminal and not self.console.is_dumb_terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_bar()

    def start(self, label: str, total: int | None = None, unit: str = "") -> None:
        """A new piece of work; one that is still open ends here."""
        if self._work is not None:
            self.finish()
        self._work = _Work(label, total, unit)
        if self._animated:
            self._live = _Bar(
                rich.progress.TextColumn("  {task.description}"),
                rich.progress.BarColumn(
                    bar_width=28 if self.console.width >= 110 else 14, complete_style="cyan", finished_style="cyan"
                ),
                _StatusColumn(self._work),
                console=self.console,
                transient=True,
            )
            self._live.add_task(escape(label), total=total)
            self._live.start()

    def advance(self, n: int = 1, **figures: float | str) -> None:
        """`n` more units are done."""
        if self._work is not None:
            self.update(self._work.done + n, **figures)

    def update(self, done: int, **figures: float | str) -> None:
        """`done` units are done in all."""
        work = self._work
        if work is None:
            return
        work.update(done, figures)
        if self._live is not None:
            self._live.update(self._live.task_ids[0], completed=done, refresh=False)
        elif not self._animated and time.monotonic() - work.last_line >= self._interval_s:
            work.last_line = time.monotonic()
            self._print(f"  {escape(work.label)}: {escape(work.status())}")

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """What stands under the bar while the work goes on; nothing where there is no terminal."""
        if self._live is not None:
            self._live.below = _table(columns, rows) if rows else None

    def finish(self, **figures: float | str) -> None:
        """The piece of work is over: one line stays."""
        self._stop_bar()
        work, self._work = self._work, None
        if work is not None:
            work.figures.update(figures)
            self._print(f"  [green]{self._sign('✓', 'ok')}[/] {escape(work.label)}  [dim]{escape(work.summary())}[/]")

    def plan(self, num_stages: int) -> None:
        """How many stages there will be, for "2/6"."""
        self._num_stages = num_stages

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One named stage: a heading, and at its end a line with its wall time."""
        self._print(f"[bold cyan]{self._stage_number()}[/][bold]{escape(name)}[/]")
        start = time.monotonic()
        try:
            yield
        except BaseException:
            self._stop_bar()
            self._work = None
            self._print(
                f"  [red]{self._sign('✗', 'stopped')} {escape(name)}[/] after {_duration(time.monotonic() - start)}"
            )
            raise
        if self._work is not None:
            self.finish()
        seconds = time.monotonic() - start
        self.stage_times.append(StageTime(name, seconds))
        self._print(f"  [bold green]{self._sign('✓', 'done')} {escape(name)}[/] [dim]in {_duration(seconds)}[/]")

    def skip_stage(self, name: str, reason: str = "done in an earlier run", seconds: float = 0.0) -> None:
        """A stage that has nothing to do. seconds: what it took when it ran, for the report."""
        number = self._stage_number()
        self.stage_times.append(StageTime(name, seconds, skipped=True))
        self._print(
            f"[bold cyan]{number}[/][bold]{escape(name)}[/] [dim]{self._sign('–', '-')} skipped: {escape(reason)}[/]"
        )

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table of results. Columns of numbers are set right; the first column names the row."""
        table = _table(columns, rows)
        table.title, table.title_justify, table.title_style = escape(title), "left", "bold"
        self.console.print(table)

    def note(self, text: str) -> None:
        """A line of text, above a bar that moves."""
        self._print(escape(text))

    def warning(self, text: str) -> None:
        """One line on what was wrong, where the work goes on."""
        self._print(f"[bold yellow]warning:[/] {escape(' '.join(text.split()))}")

    def error(self, message: str) -> None:
        """One line on what went wrong."""
        self._stop_bar()
        self._print(f"[bold red]error:[/] {escape(' '.join(message.split()))}")

    def _stage_number(self) -> str:
        number = len(self.stage_times) + 1
        return f"{number}/{self._num_stages} " if self._num_stages else f"{number} "

    def _stop_bar(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, markup: str) -> None:
        self.console.print(markup, highlight=False, soft_wrap=True)

    def _sign(self, sign: str, plain: str) -> str:
        return sign if self.console.encoding.lower().startswith("utf") else plain


@dataclass
class _Work:
    """One piece of work and how fast it goes."""

    label: str
    total: int | None
    unit: str
    done: int = 0
    figures: dict[str, float | str] = field(default_factory=dict)
    begin: float = field(default_factory=lambda: time.monotonic())
    last_line: float = field(default_factory=lambda: time.monotonic())
    recent: deque[tuple[float, int]] = field(default_factory=deque)

    def update(self, done: int, figures: dict[str, float | str]) -> None:
        now = time.monotonic()
        self.done = done
        self.figures.update(figures)
        # A point each quarter of a second is enough, however often the work reports.
        if not self.recent or now - self.recent[-1][0] >= 0.25:
            self.recent.append((now, done))
        while len(self.recent) > 2 and now - self.recent[0][0] > _RATE_WINDOW_S:
            self.recent.popleft()

    def rate(self) -> float:
        """Units a second over the last seconds; 0 before anything is done."""
        since, before = self.recent[0] if len(self.recent) > 1 else (self.begin, 0)
        elapsed = time.monotonic() - since
        return max(0.0, (self.done - before) / elapsed) if elapsed > 0 else 0.0

    def status(self) -> str:
        """Such as "25 %  0:28 left  130 frames/s  1,200/4,800 frames  loss 3.21"; what matters most comes first."""
        parts = []
        rate = self.rate()
        if self.total:
            parts.append(f"{100 * self.done // self.total} %")
            if rate > 0 and self.total > self.done:
                parts.append(f"{_clock((self.total - self.done) / rate)} left")
        if rate > 0:
            parts.append(self._rate_text(rate))
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts.append(f"{count} {self.unit}".rstrip())
        return "  ".join(parts + self._shown_figures())

    def summary(self) -> str:
        """Such as "4,800 frames in 12 s (400 frames/s)  loss 3.21"."""
        elapsed = time.monotonic() - self.begin
        parts = [f"in {_duration(elapsed)}"]
        if self.done:
            rate = f" ({self._rate_text(self.done / elapsed)})" if elapsed >= 1 else ""
            parts = [" ".join(f"{self.done:,} {self.unit} in {_duration(elapsed)}{rate}".split())]
        return "  ".join(parts + self._shown_figures())

    def _rate_text(self, rate: float) -> str:
        return f"{rate:.3g} {self.unit or 'units'}/s" if rate < 1000 else f"{rate:,.0f} {self.unit or 'units'}/s"

    def _shown_figures(self) -> list[str]:
        return [f"{name.replace('_', ' ')} {_figure(value)}" for name, value in self.figures.items()]


class _Bar(rich.progress.Progress):
    """A bar, and a table below it."""

    below: Table | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.below is not None:
            yield self.below


class _StatusColumn(rich.progress.ProgressColumn):
    """Counts, rate, time left and figures of the work, drawn anew at each refresh."""

    def __init__(self, work: _Work) -> None:
        super().__init__()
        self._work = work

    def render(self, task: rich.progress.Task) -> Text:
        return Text(printable(self._work.status()), style="dim", overflow="ellipsis", no_wrap=True)


def escape(text: str) -> str:
    """For rich, which reads markup, and passes on what steers a terminal, in file names too."""
    return escape_markup(printable(text))


def _console() -> Console:
    console = Console()
    # A pipe has no width of its own; the default of 80 would fold tables that fit a log file well.
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    numeric = [
        all(isinstance(row[i], int | float) or row[i] is None for row in rows) and bool(rows)
        for i in range(len(columns))
    ]
    table = Table(
        *[
            Column(escape(name), justify="right" if numeric[i] else "left", overflow="fold")
            for i, name in enumerate(columns)
        ],
        header_style="bold",
    )
    texts = [
        _column([row[i] for row in rows]) if numeric[i] else [_figure(row[i]) for row in rows]
        for i in range(len(columns))
    ]
    for cells in zip(*texts, strict=True):
        table.add_row(*[escape(cell) for cell in cells])
    return table


def _column(values: Sequence[object]) -> list[str]:
    """The numbers of a column with the same number of decimals, so that they can be compared at a glance."""
    largest = max((abs(v) for v in values if isinstance(v, float) and math.isfinite(v)), default=0.0)
    decimals = next((d for d, limit in ((3, 1), (2, 100), (1, 1000)) if largest < limit), 0)
    return [f"{v:,.{decimals}f}" if isinstance(v, float) else _figure(v) for v in values]


def _figure(value: object) -> str:
    """A cell or figure: thousands set apart, four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if 0 < abs(value) < 1 else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
