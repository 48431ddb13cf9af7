"""The report: well-formed, self-contained, safe, honest, and right with any of its sections."""

import itertools
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from pipeline.drawing import figures
from pipeline.drawing.svg import linear_axis, log_axis, number
from pipeline.frames.frame_set import FrameSet
from pipeline.reports.report import build_report, duration
from pipeline.reports.report_data import (
    Curve,
    Environment,
    FrameSetSection,
    ModelResult,
    Overlays,
    Picture,
    Pretraining,
    ReportData,
    Results,
    Search,
    Stage,
    Trial,
    ViewsSection,
)
from pipeline.reports.verdict import Comparison, Verdict, compare

EVIL = '<script>alert("x")</script>&\''
_VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that tags balance, and collects what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.ids: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(alt: str = "hands") -> Picture:
    frames = np.random.default_rng(0).integers(0, 255, (6, 3, 32, 32), dtype=np.uint8)
    return Picture(png=figures.contact_sheet(frames, columns=3), alt=alt, caption=f"caption of {alt}")


def model(name: str, scale: float) -> ModelResult:
    curve = Curve(thresholds_mm=[0, 25, 50], shares=[0, 0.5 / scale, 0.9 / scale])
    return ModelResult(
        name=name,
        metrics={
            "epe_mm": 60 * scale,
            "root_relative_epe_mm": 50 * scale,
            "pa_epe_mm": 24 * scale,
            "auc": 0.3 / scale,
            "pa_auc": 0.5 / scale,
            "pa_skill": 1 - scale / 1.1,
        },
        joint_errors_mm=[scale * joint for joint in range(21)],
        pck=curve,
        pa_pck=curve,
    )


def constant(scale: float) -> ModelResult:
    """A yardstick: no error before alignment, since it has no place."""
    of_model = model("constant pose", scale)
    return of_model.model_copy(update={"pck": None, "metrics": {**of_model.metrics, "epe_mm": None, "auc": None}})


def comparison(**changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "model": "pretrained",
        "baseline": "from scratch",
        "value": 24.7,
        "baseline_value": 26.3,
        "num_frames": 480,
    }
    return Comparison(**(values | changes))


def verdict(pretrained: float, scratch: float, constant_value: float = 25.0) -> Verdict:
    """Of two models with these errors, each with an interval of +- 2 %."""

    def against(name: str, baseline: str, value: float, baseline_value: float) -> Comparison:
        percent = 100 * (value / baseline_value - 1)
        return comparison(
            model=name,
            baseline=baseline,
            value=value,
            baseline_value=baseline_value,
            interval_percent=(percent - 2, percent + 2),
            num_clips=60,
        )

    return Verdict(
        against_constant=[
            against("pretrained", "constant pose", pretrained, constant_value),
            against("from scratch", "constant pose", scratch, constant_value),
        ],
        between_models=[against("pretrained", "from scratch", pretrained, scratch)],
    )


def full_report() -> ReportData:
    trials = [
        Trial(
            name=f"trial_{i}",
            config={"learning_rate": 10.0 ** -(i % 4 + 1), "head": EVIL if i == 1 else "mlp", "flag": True},
            value=25.0 + i,
            state="completed" if i % 2 else "stopped",
            rungs=[(1.0, 30.0 + i), (2.0, 25.0 + i)][: 1 + i % 2],
            seconds=12.0 * i,
        )
        for i in range(6)
    ]
    trials.append(Trial(name="trial_bad", config={"learning_rate": 0.1}, state="failed"))
    trials.append(Trial(name="trial_nan", config={"learning_rate": 0.1}, value=math.nan))
    return ReportData(
        title=f"Report {EVIL}",
        subtitle="Hand video in, hand pose out",
        created_at="2026-03-01T12:00:00Z",
        run_ids={"pretrain": "demo-pretrain"},
        verdict=verdict(24.0, 26.3),
        environment=Environment(num_cpus=2, memory_gb=15.5, platform="Linux", versions={"torch": "2.11"}),
        stages=[Stage(name="ingest", seconds=61), Stage(name="pretrain", seconds=200.0, skipped=True)],
        frame_sets=[
            FrameSetSection(
                name="Video",
                uri="s3://bucket/frames",
                digest="ab" * 16,
                image_size=160,
                num_rows=1200,
                num_clips=50,
                counts={EVIL: {"train": 1000, "test": 200}},
                hands={"right": 700, "left": 500},
                rejects={EVIL: {"no_hand": 3, EVIL: 4}},
                reject_examples={EVIL: [EVIL, "b", "c", "d"]},
                contact_sheet=picture(EVIL),
            )
        ],
        views=ViewsSection(grid=picture("views"), settings={"rotation_deg": 90.0}),
        pretraining=Pretraining(
            run_id="demo-pretrain",
            history={
                "loss": [(i, 5 - i / 200) for i in range(200)],
                "positive_similarity": [(0, 0.5), (1, math.nan), (2, 0.6)],
                "negative_similarity": [(0, 0.4), (2, 0.1)],
                "probe_pa_epe_mm": [(100, 26.0)],
                EVIL: [(0, 1.0), (1, 2.0)],
            },
            facts={"encoder": "resnet18"},
            neighbours=picture("neighbours"),
        ),
        search=Search(metric="PA-EPE", unit="mm", trials=trials, best="trial_0", constant=27.5),
        results=Results(
            models=[model("pretrained", 1.0), model(EVIL, 1.2)],
            yardsticks=[constant(1.1)],
            baseline=EVIL,
            test_set="480 frames",
            overlays=[Overlays(title="Good", picture=picture("good"))],
        ),
        settings={"pretrain": f"seed: 0\nname: {EVIL}\n"},
    )


@pytest.fixture(scope="module")
def html() -> str:
    return build_report(full_report())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_tags_balance_and_ids_are_unique(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    sections = [a["id"] for a in page.all("section")]
    assert sections == ["results", "data", "views", "pretraining", "search", "run", "settings"]
    targets = [a["href"] for a in page.all("a")]
    assert targets == ["#content", *[f"#{s}" for s in sections]]


def test_names_are_shown_not_obeyed(html: str, page: Page) -> None:
    assert EVIL not in html
    assert len(page.all("script")) == 1
    assert page.text.count(EVIL) >= 8


def test_nothing_is_fetched(html: str, page: Page) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (name, value)
    without_namespace = html.replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in without_namespace
    assert "https:" not in without_namespace
    assert "@import" not in html
    assert "url(" not in html
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_everybody_can_read_it(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert all(a.get("alt") for a in page.all("img") if a["src"] != "data:,")
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))
    assert all(a.get("scope") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 4
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_size_is_reasonable(html: str) -> None:
    assert len(html) < 300_000  # of which four small pictures of noise are half


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_both_themes(html: str) -> None:
    blocks = re.findall(r"color-scheme: (light|dark);(.*?)--s5: (#\w+);", html, re.S)
    assert {name for name, _, _ in blocks} == {"light", "dark"}
    for name, block, _ in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6});", block))
        for ink in ("ink", "muted", "accent", "good", "bad"):
            for ground in ("paper", "card", "sunk"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (name, ink, ground)
        for series in ("s0", "s1", "s2", "s3", "s4"):
            assert contrast(colours[series], colours["card"]) >= 3, (name, series)
        assert contrast(colours["good"], colours["good-soft"]) >= 4.5
        assert contrast(colours["bad"], colours["bad-soft"]) >= 4.5


SECTIONS = [
    "environment",
    "stages",
    "frame_sets",
    "views",
    "pretraining",
    "search",
    "results",
    "verdict",
    "settings",
    "run_ids",
]


@pytest.mark.parametrize("section", [*SECTIONS, None])
def test_every_section_is_optional(section: str | None) -> None:
    whole = full_report()
    alone = Page(build_report(ReportData(**({section: getattr(whole, section)} if section else {}))))
    assert len(alone.all("section")) == (0 if section in (None, "verdict") else 1)
    without = whole.model_copy(update={section: ReportData.model_fields[section].get_default()} if section else {})
    Page(build_report(without))


def test_sparse_sections_are_shown_too() -> None:
    data = ReportData(
        frame_sets=[FrameSetSection(name="Video", num_rows=0)],
        views=ViewsSection(),
        pretraining=Pretraining(history={"loss": [(0, math.nan)], "empty": []}),
        search=Search(metric="loss", trials=[Trial(name="a", config={}), Trial(name="b", config={}, value=1.0)]),
        results=Results(models=[ModelResult(name="m", metrics={"epe_mm": None, "own_metric": 3.0})]),
    )
    text = Page(build_report(data)).text
    assert "own metric" in text


def test_json_brings_the_same_report_back() -> None:
    data = full_report()
    again = ReportData.from_json(data.to_json())
    assert build_report(again) == build_report(data)
    assert b"NaN" in data.to_json()
    json.loads(data.to_json(), parse_constant=pytest.fail)  # NaN travels as a string: the JSON is standard


def test_the_best_values_are_bold_and_differences_signed(html: str) -> None:
    row = re.search(r'<th scope="row">pretrained</th>(.*?)</tr>', html, re.S)
    assert row is not None
    assert row[1].count("<strong>") == 6
    assert row[1].count('class="delta better">−') == 3
    assert row[1].count('class="delta better">+') == 2  # skill has no difference in percent


def test_yardsticks_are_rows_and_can_be_the_best() -> None:
    """A model that is worse than a constant is not the best, even where it is the only one."""
    results = Results(models=[model("worse", 2.0)], yardsticks=[constant(1.0)])
    html = build_report(ReportData(results=results))
    row = re.search(r'<tr class="yardstick"><th scope="row">constant pose</th>(.*?)</tr>', html, re.S)
    assert row is not None
    assert row[1].count("<strong>") == 4
    assert row[1].count("–") == 2
    of_model = re.search(r'<th scope="row">worse</th>(.*?)</tr>', html, re.S)
    assert of_model is not None
    assert "<strong>" not in of_model[1]
    assert "−0.82" in of_model[1]
    titles = [a.get("aria-label") or "" for a in Page(html).all("svg")]
    before, after = (
        next(t for t in titles if t.startswith(f"{name}. ")) for name in ("PCK", "PCK after Procrustes alignment")
    )
    assert "constant pose" not in before
    assert "constant pose: from 0" in after


def test_trials_are_held_against_the_constant() -> None:
    trials = [Trial(name=f"t{i}", config={"a": i}, value=20.0 + i, rungs=[(1, 30.0), (2, 20.0 + i)]) for i in range(3)]
    search = Search(metric="PA-EPE", unit="mm", trials=trials, best="t0", constant=20.5)
    html = build_report(ReportData(search=search))
    assert "Always answering one fixed hand gives 20.5 mm; 1 of 3 trials are better." in html
    assert 'class="level"' in html
    assert "none of 3" in build_report(ReportData(search=search.model_copy(update={"constant": 15.0})))
    assert "fixed hand" not in build_report(ReportData(search=search.model_copy(update={"constant": None})))


def test_a_single_model_is_not_best() -> None:
    html = build_report(ReportData(results=Results(models=[model("only", 1.0)])))
    assert "<strong>" not in html


def test_times_are_for_people(page: Page) -> None:
    assert "1 March 2026, 12:00 UTC" in page.text
    assert "last night" in build_report(ReportData(created_at="last night"))
    assert "1 March 2026, 10:30 UTC" in build_report(ReportData(created_at="2026-03-01T12:30:00+02:00"))


def test_trials_are_sorted_and_the_best_is_marked(html: str) -> None:
    names = re.findall(r'<th scope="row">(trial_\w+)', html)
    assert names[:6] == [f"trial_{i}" for i in range(6)]
    assert set(names[6:]) == {"trial_bad", "trial_nan"}
    assert html.count('<tr class="best">') == 1


def test_search_for_more_sorts_the_other_way() -> None:
    trials = [Trial(name=f"t{i}", config={"a": i}, value=float(i)) for i in range(3)]
    html = build_report(ReportData(search=Search(metric="auc", lower_is_better=False, trials=trials, best="t2")))
    assert re.findall(r'<th scope="row">(t\d)', html) == ["t2", "t1", "t0"]


def test_frame_set_section_comes_from_the_manifest() -> None:
    manifest_module = pytest.importorskip("pipeline.frames.manifest")
    manifest = manifest_module.Manifest(
        created_at="2026-01-01T00:00:00Z",
        image_size=160,
        group_size=4,
        num_rows=12,
        num_clips=3,
        counts={"a": {"train": 12}},
        hands={"right": 12},
        rejects={"a": {"no_hand": 1}},
        reject_examples={"no_hand": ["a/1"]},
        settings={},
        digest="0" * 32,
        shards=[],
    )
    section = FrameSetSection.of(FrameSet("s3://b/f", manifest), "Video")
    assert (section.num_rows, section.num_clips, section.image_size) == (12, 3, 160)
    assert section.rejects == {"a": {"no_hand": 1}}


class TestVerdict:
    def test_the_constant_comes_first_and_both_models_are_named(self) -> None:
        result = verdict(23.0, 24.0)
        assert result.outcome == "better"
        assert [sentence.replace("\u00a0", " ") for sentence in result.sentences()] == [
            "pretrained is better than always answering one fixed hand: PA-EPE 23.0 mm against 25.0 mm, −8.0 % "
            "(95 % interval −10.0 % to −6.0 %).",
            "from scratch is better than always answering one fixed hand: PA-EPE 24.0 mm against 25.0 mm, −4.0 % "
            "(95 % interval −6.0 % to −2.0 %).",
            "pretrained is better than from scratch: PA-EPE 23.0 mm against 24.0 mm, −4.2 % "
            "(95 % interval −6.2 % to −2.2 %).",
        ]

    def test_a_model_that_is_worse_than_a_constant_is_called_so(self) -> None:
        """The demo's figures of the first version: a gain of 3 % between two models that are both useless."""
        result = verdict(23.7, 24.4, constant_value=15.0)
        assert result.outcome == "worse"
        first, second, between = result.sentences()
        assert first.startswith("pretrained is worse than always answering one fixed hand: PA-EPE 23.7")
        assert second.startswith("from scratch is worse than always answering one fixed hand: PA-EPE 24.4")
        assert between.endswith("Neither is better than one fixed hand, so this difference means little.")
        page = Page(build_report(ReportData(verdict=result)))
        assert "No better than one fixed hand" in page.text
        assert page.text.index(first) < page.text.index(between)
        assert "pretrained against one fixed hand" in page.text

    def test_not_clearly_better_is_not_better(self) -> None:
        result = verdict(24.8, 27.0)
        assert "pretrained is not clearly better than always answering one fixed hand" in result.sentences()[0]
        assert "means little" in result.sentences()[2]
        assert result.headline() == "No better than one fixed hand"

    def test_one_that_beats_the_constant_makes_the_difference_count(self) -> None:
        result = verdict(20.0, 27.0)
        assert result.outcome == "unclear"
        assert result.headline() == "Not all better than one fixed hand"
        assert "means little" not in " ".join(result.sentences())

    def test_a_missing_constant_is_said(self) -> None:
        between = comparison(interval_percent=(-8.0, -4.0))
        result = Verdict(without_constant=["pretrained", "from scratch"], between_models=[between])
        first, second = result.sentences()
        assert first.startswith(
            "Whether pretrained and from scratch can do more than answer one fixed hand is not known"
        )
        assert "means little" not in second
        assert result.headline() == "Lower error"
        assert Verdict(without_constant=["only"]).sentences()
        Page(build_report(ReportData(verdict=Verdict(without_constant=["only"]))))

    def test_worse_than_the_other_model_is_said(self) -> None:
        result = Verdict(between_models=[comparison(value=28.0, interval_percent=(2.0, 9.0))])
        assert result.sentences()[0].startswith("pretrained is worse than from scratch: PA-EPE 28.0")
        assert "Higher error" in build_report(ReportData(verdict=result))

    def test_an_interval_with_zero_is_unclear(self) -> None:
        result = comparison(interval_percent=(-13.0, 1.0))
        assert result.outcome == "unclear"
        assert result.against_model().startswith("No clear difference between pretrained and from scratch: PA-EPE 24.7")
        assert "−6.1\u00a0%" in result.against_model()

    def test_without_an_interval_one_percent_decides(self) -> None:
        assert comparison(value=26.1).outcome == "unclear"
        assert comparison(value=26.0).outcome == "better"
        assert comparison(value=26.6).outcome == "worse"

    def test_a_baseline_without_error_does_not_divide_by_zero(self) -> None:
        result = compare("a", np.ones(20), "b", np.zeros(20), [str(i) for i in range(20)])
        assert result.outcome == "worse"
        assert math.isfinite(result.percent)
        json.loads(Verdict(between_models=[result]).model_dump_json(), parse_constant=pytest.fail)

    def test_the_number_of_runs_is_told(self) -> None:
        assert "trained once" in Verdict(between_models=[comparison()]).caveat()
        assert "5 training runs" in Verdict(between_models=[comparison(num_runs=5)]).caveat()

    def test_reports_from_before_there_were_constants_still_open(self) -> None:
        old = {"model": "a", "baseline": "b", "value": 24.7, "baseline_value": 26.3, "num_frames": 480}
        data = ReportData.from_json(json.dumps({"verdict": old}).encode())
        assert data.verdict is not None
        assert data.verdict.outcome == "better"
        assert "a is better than b" in build_report(data)

    def test_compare_finds_a_shift_and_no_shift(self) -> None:
        rng = np.random.default_rng(0)
        errors = rng.gamma(4, 6, 600)
        clips = [f"clip_{i // 10}" for i in range(600)]
        shifted = compare("a", errors, "b", errors + rng.normal(2.0, 1.0, 600), clips)
        assert shifted.outcome == "better"
        low, high = shifted.interval_percent or (0, 0)
        assert low < shifted.percent < high
        assert shifted.num_clips == 60
        assert compare("a", errors, "b", errors + rng.normal(0.0, 4.0, 600), clips).outcome == "unclear"

    def test_frames_of_one_clip_count_as_one(self) -> None:
        rng = np.random.default_rng(0)
        of_clip = np.repeat(rng.normal(0, 4, 20), 30)
        base = np.full(600, 25.0)
        clips = [f"c{i // 30}" for i in range(600)]
        by_clip = compare("a", base + of_clip, "b", base, clips).interval_percent
        by_frame = compare("a", base + of_clip, "b", base, [str(i) for i in range(600)]).interval_percent
        assert by_clip is not None
        assert by_frame is not None
        assert by_clip[1] - by_clip[0] > 3 * (by_frame[1] - by_frame[0])

    def test_few_clips_have_no_interval(self) -> None:
        assert compare("a", [1.0, 2.0], "b", [1.0, 2.5], ["x", "y"]).interval_percent is None

    def test_compare_refuses_unequal_lengths(self) -> None:
        with pytest.raises(ValueError, match="2, 1 and 2 clips"):
            compare("a", [1.0, 2.0], "b", [1.0], ["x", "y"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (0.00123, "0.00123"),
        (0.00012, "1.2e−4"),
        (-3.0, "−3"),
        (1_000_000.0, "1,000,000"),
        (math.nan, "not a number"),
        (math.inf, "∞"),
        (None, "–"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 9.96, 59.6, 185, 7800)] == [
        "0.0 s",
        "10 s",
        "1 min 00 s",
        "3 min 05 s",
        "2 h 10 min",
    ]


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [26.6, 27.9], [3.0, 3.0], [0.0, 0.0], [-3.2, 0.9], [1e-7, 9e-4], [0, 12345]]
)
def test_axes_hold_their_values(values: list[float]) -> None:
    axis = linear_axis(values)
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert 3 <= len(axis.ticks) <= 9
    assert len(set(axis.labels())) == len(axis.ticks)


def test_logarithmic_axes_show_powers_of_ten() -> None:
    axis = log_axis([2e-4, 0.02])
    assert axis.labels() == ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]
    assert axis.position(1e-4) == 0
    assert axis.position(0.1) == 1
