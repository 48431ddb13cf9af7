"""The jobs' terminal: plain lines, bars, stages, tables, errors."""

import contextlib
import io

import pytest
from rich.console import Console

from jobs import terminal
from jobs.terminal import TerminalProgress


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal.time, "monotonic", clock)
    return clock


def plain(encoding: str = "utf-8") -> tuple[TerminalProgress, io.TextIOWrapper]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return TerminalProgress(Console(file=stream, width=100)), stream


def written(stream: io.TextIOWrapper) -> list[str]:
    stream.seek(0)
    return stream.read().splitlines()


def test_plain_lines_come_at_intervals_and_at_the_end(clock: Clock) -> None:
    progress, stream = plain()
    progress.start("ingest", total=1000, unit="frames")
    for _ in range(50):
        clock.now += 0.5
        progress.advance(10, rejects=3)
    progress.finish(loss=1.23456)
    lines = written(stream)
    assert lines[0] == "  ingest: 20 %  0:40 left  20 frames/s  200/1,000 frames  rejects 3"
    assert len(lines) == 3
    assert lines[-1] == "  ✓ ingest  500 frames in 25 s (20 frames/s)  rejects 3  loss 1.235"


def test_rate_follows_the_last_seconds(clock: Clock) -> None:
    progress, stream = plain()
    progress.start("train", total=200, unit="steps")
    clock.now += 60  # a slow start
    for step in range(1, 101):
        clock.now += 0.5
        progress.update(step)
    assert "40 %  1:00 left  2 steps/s  81/200 steps" in written(stream)[-1]


def test_unknown_total_and_no_unit(clock: Clock) -> None:
    progress, stream = plain()
    progress.start("scan")
    clock.now += 11
    progress.advance(22)
    progress.finish()
    assert written(stream) == ["  scan: 2 units/s  22", "  ✓ scan  22 in 11 s (2 units/s)"]


def test_stages_are_numbered_timed_and_skipped(clock: Clock) -> None:
    progress, stream = plain()
    progress.plan(3)
    progress.skip_stage("synthesize", seconds=38.0)
    with progress.stage("ingest"):
        progress.start("read", total=1)
        clock.now += 75
    with pytest.raises(KeyboardInterrupt):
        interrupted_stage(progress, clock)
    assert written(stream) == [
        "1/3 synthesize – skipped: done in an earlier run",
        "2/3 ingest",
        "  ✓ read  in 75 s",
        "  ✓ ingest in 75 s",
        "3/3 pretrain",
        "  ✗ pretrain after 2 min 10 s",
    ]
    assert [(s.name, s.seconds, s.skipped) for s in progress.stage_times] == [
        ("synthesize", 38.0, True),
        ("ingest", 75.0, False),
    ]


def interrupted_stage(progress: TerminalProgress, clock: Clock) -> None:
    with progress.stage("pretrain"):
        clock.now += 130
        raise KeyboardInterrupt


def test_markup_in_names_is_shown_not_obeyed(clock: Clock) -> None:
    progress, stream = plain()
    progress.start("clip [red]1[/red].mp4 [/]")
    progress.finish(file="[bold]")
    progress.error("bad\n  file [/x]")
    lines = written(stream)
    assert "clip [red]1[/red].mp4 [/]" in lines[0]
    assert "[bold]" in lines[0]
    assert lines[1] == "error: bad file [/x]"


def test_table_aligns_numbers(clock: Clock) -> None:
    progress, stream = plain()
    progress.table(
        "Results", ["model", "PA-EPE (mm)", "frames"], [["pretrained", 24.683, 12000], ["[scratch]", 26.3, None]]
    )
    text = "\n".join(written(stream))
    assert "Results" in text
    assert "[scratch]" in text
    assert "24.68 │ 12,000" in text
    assert "26.30 │      –" in text


def test_ascii_console_gets_ascii_signs(clock: Clock) -> None:
    progress, stream = plain("ascii")
    progress.start("work")
    progress.finish()
    assert written(stream)[0].startswith("  ok work")


def test_terminal_shows_a_bar_and_leaves_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system="standard", legacy_windows=False)
    monkeypatch.setenv("TERM", "xterm")
    with TerminalProgress(console) as progress:
        progress.start("ingest", total=4, unit="frames")
        progress.advance(3, loss=2.5)
        progress.note("a note")
        progress.finish()
    text = stream.getvalue()
    assert "━" in text
    assert "a note" in text
    assert "\x1b[32m✓" in text
    assert "3 frames in" in text


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream, force_terminal=True, width=80))
    progress.error("no such bucket")
    with progress.stage("ingest"):
        pass
    assert "\x1b[3" not in stream.getvalue().replace("\x1b[1", "")
    assert "no such bucket" in stream.getvalue()


def test_leaving_by_an_error_stops_the_bar() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream, force_terminal=True, width=80))
    with contextlib.suppress(ValueError), progress:
        progress.start("work", total=2)
        raise ValueError
    assert "\x1b[?25l" in stream.getvalue()
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is back


def test_work_without_start_is_ignored() -> None:
    progress, stream = plain()
    progress.advance()
    progress.finish()
    assert written(stream) == []
