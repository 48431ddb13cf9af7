"""Evaluating models on a labelled set: perfect and imperfect models, tables, pictures, files."""

import io
from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from jobs.evaluate import run
from jobs.terminal import TerminalProgress
from pipeline.config import load
from pipeline.errors import DataError, EquihandError, SettingsError
from pipeline.evaluation.image_metrics import image_metrics
from pipeline.evaluation.metrics import pose_metrics
from pipeline.evaluation.yardsticks import Constant, random_poses
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import load_labelled, read_joints_2d, read_poses
from pipeline.frames.manifest import write_manifest
from pipeline.geometry import project, transform_camera, transform_points
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseOutput, PoseSettings
from pipeline.models.predict import predict
from pipeline.models.pretrain import PretrainModel, ProjectionSettings
from pipeline.models.weights import LoadedPoseModel, load_pose_model
from pipeline.reports.answers import constant_answers
from pipeline.reports.evaluate import (
    EvaluateSettings,
    comparison_table,
    evaluate,
    evaluate_model,
    judge,
    probe_table,
)
from pipeline.storage import exists, join, read_bytes, read_json
from pipeline.tracked import Delivered, deliver_left
from pipeline.tracking import Sender, TrackingSettings, stored_run
from pipeline.views import ViewSettings, apply_views, identity_views, view_matrix
from tests.tiny_sets import write_tiny_set


class Oracle(PoseModel):
    """Answers with the labels, which it is told in order."""

    def __init__(self, joints_3d: torch.Tensor, error_m: float = 0.0) -> None:
        super().__init__(build_encoder(EncoderSettings(width=8)), PoseSettings(refine_root=False))
        self.answers = joints_3d.clone()
        self.answers[:, 8, 0] += error_m  # index tip
        self.next = 0

    def forward(self, images: torch.Tensor, camera: torch.Tensor | None = None) -> PoseOutput:
        assert camera is not None
        rows = slice(self.next, self.next + len(images))
        self.next += len(images)
        targets = self.targets(self.answers[rows], camera)
        joints = self.to_rooted(self.answers[rows]) / targets.bone_length[:, None, None]
        return PoseOutput(targets.joints_25d, targets.root_depth, joints)


@pytest.fixture(scope="module")
def frame_set(tmp_path_factory) -> str:
    uri = str(tmp_path_factory.mktemp("set"))
    write_tiny_set(uri, splits={"test": 24}, image_size=48)
    return uri


@pytest.fixture
def data(frame_set):
    return load_labelled(FrameSet.open(frame_set), "test")


def random_checkpoint(
    folder, seed: int, constant: Constant | None = None, root: Literal["palm", "wrist"] = "palm"
) -> str:
    torch.manual_seed(seed)
    head = PoseSettings(root=root)
    model = PoseModel(build_encoder(EncoderSettings(width=8)), head)
    torch.nn.init.normal_(model.head.get_parameter("together.3.bias"), 0, 0.1)
    meta = {"kind": "pose", "settings": {"head": head.model_dump(), "views": {"size": 32}}}
    save_checkpoint(folder, model, {}, meta if constant is None else {**meta, "constant": constant.to_json()})
    return str(folder)


def evaluation_settings(models: dict[str, str], frame_set: str, **changes) -> EvaluateSettings:
    return EvaluateSettings.model_validate(
        {"models": models, "frame_set": frame_set, "track": False, "probe": {"enabled": False}, **changes}
    )


def test_an_oracle_is_perfect_whatever_the_batch_size(data):
    joints = torch.from_numpy(data.joints_3d)
    evaluation = evaluate_model("oracle", LoadedPoseModel(Oracle(joints), 32, {}), data)
    assert evaluation.metrics["epe_mm"] == pytest.approx(0, abs=1e-3)
    assert evaluation.result().metrics["auc"] == pytest.approx(1, abs=1e-3)
    batch = data.batch(slice(None))
    model = Oracle(joints)
    predictions = predict(model, batch.frames, batch.camera, 32, model.bone_length(joints), batch_size=7)
    torch.testing.assert_close(predictions.joints_3d, joints, atol=1e-5, rtol=0)
    torch.testing.assert_close(predictions.joints_2d, project(joints, batch.camera), atol=1e-3, rtol=0)


def test_the_view_and_its_camera_belong_together(data):
    """Joints projected with the view's camera are the crop's joints moved by the view's matrix."""
    batch = data.batch(slice(None))
    matrix = view_matrix(identity_views(len(data)), 48, 32)
    in_view = project(batch.joints_3d, transform_camera(matrix, batch.camera))
    moved = transform_points(matrix, project(batch.joints_3d, batch.camera))
    torch.testing.assert_close(in_view, moved, atol=1e-3, rtol=0)


def test_known_error_shows_in_the_right_place(data):
    joints = torch.from_numpy(data.joints_3d)
    evaluation = evaluate_model("off", LoadedPoseModel(Oracle(joints, error_m=0.021), 32, {}), data)
    assert evaluation.metrics["epe_mm"] == pytest.approx(1.0, abs=1e-2)
    assert evaluation.metrics["per_joint_mm"]["index_tip"] == pytest.approx(21.0, abs=1e-2)
    assert evaluation.result().metrics["root_relative_epe_mm"] == pytest.approx(1.0, abs=1e-2)


def test_unknown_scale_is_flagged_and_costs_accuracy(data):
    joints = torch.from_numpy(data.joints_3d)
    model = Oracle(joints)
    model.mean_bone_length.fill_(2 * float(model.bone_length(joints).mean()))
    evaluation = evaluate_model("mean", LoadedPoseModel(model, 32, {}), data, scale="mean")
    assert evaluation.metrics["epe_mm"] > 400  # twice as large is twice as far
    assert evaluation.metrics["pa_epe_mm"] == pytest.approx(0, abs=1e-2)


def test_job_compares_models_and_writes_everything(frame_set, tmp_path):
    models = {name: random_checkpoint(tmp_path / name, seed) for seed, name in enumerate(("ours", "scratch"))}
    arguments = [f"--models.{name}={uri}" for name, uri in models.items()]
    output = str(tmp_path / "out")
    more = ["--output", output, "--baseline", "scratch", "--num_cases", "2", "--save_predictions", "true"]
    more += ["--track", "false"]
    settings = load(EvaluateSettings, [*arguments, "--frame_set", frame_set, *more])
    outcome = run(settings)

    assert list(outcome["models"]) == ["ours", "scratch"]
    assert outcome["num_frames"] == 24
    assert [c["baseline"] for c in outcome["verdict"]["between_models"]] == ["scratch"]
    assert outcome["probes"] == {}  # no split to fit them on
    # Neither do the models bring a constant pose, nor has the set one, and that is said.
    assert outcome["yardsticks"] == {}
    assert outcome["verdict"]["without_constant"] == ["ours", "scratch"]
    assert "Whether ours and scratch can do more than answer one fixed hand is not known" in outcome["conclusions"][0]
    assert "no constant pose: the model brings none" in outcome["models"]["ours"]["notes"][1]
    assert [section["title"] for section in outcome["results"]["overlays"]] == ["Good", "Median", "Worst"]
    columns, rows = comparison_table(outcome)
    assert columns[:3] == ["model", "PA-EPE (mm)", "PA skill"]
    assert rows[0][0] == "ours"
    assert rows[0][1] == pytest.approx(outcome["models"]["ours"]["metrics"]["pa_epe_mm"], abs=0.06)
    assert rows[0][2] is None
    assert "given" in outcome["models"]["ours"]["notes"][0]

    written = read_json(join(output, "metrics.json"))
    assert written == {name: value for name, value in outcome.items() if name != "results"}
    assert exists(join(output, "pictures", "overlays_worst.png"))
    assert load(EvaluateSettings, ["--config", join(output, "settings.yaml")]) == settings
    assert b"scratch" in read_bytes(join(output, "report.html"))
    table = pq.read_table(io.BytesIO(read_bytes(join(output, "predictions", "ours.parquet"))))
    assert table.num_rows == 24
    assert np.isfinite(np.array(table["joints_3d"].to_pylist())).all()


def test_labels_of_a_detector_are_called_so(tmp_path):
    manifest = write_tiny_set(str(tmp_path / "frames"), splits={"train": 8, "test": 8})
    settings = evaluation_settings({"ours": random_checkpoint(tmp_path / "ours", 0)}, str(tmp_path / "frames"))
    notes = run(settings)["models"]["ours"]["notes"]
    assert not any("ground truth" in note for note in notes)
    (name,) = manifest.settings
    record = manifest.settings[name].model_copy(update={"settings": {"source": {"labels": "detector"}}})
    write_manifest(str(tmp_path / "frames"), manifest.model_copy(update={"settings": {name: record}}))
    assert "joints of 'tiny' are a detector's answers, no ground truth" in run(settings)["models"]["ours"]["notes"][-1]


def test_models_worse_than_one_fixed_hand_are_called_so(tmp_path):
    """In the terminal, in the JSON and in the report: two untrained models, one of them a little better."""
    frame_set, output = str(tmp_path / "set"), str(tmp_path / "out")
    write_tiny_set(frame_set, splits={"train": 40, "test": 48}, image_size=48, wobble=0.01)
    train = torch.from_numpy(read_poses(FrameSet.open(frame_set), "train"))
    target = torch.from_numpy(load_labelled(FrameSet.open(frame_set), "test").joints_3d)
    constant = Constant.of(train)
    models = {name: random_checkpoint(tmp_path / name, seed, constant) for seed, name in enumerate(("ours", "scratch"))}
    settings = load(
        EvaluateSettings,
        [
            *(f"--models.{name}={uri}" for name, uri in models.items()),
            f"--frame_set={frame_set}",
            f"--output={output}",
            "--baseline=scratch",
            "--probe.enabled=false",
            f"--tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        ],
    )
    progress = TerminalProgress(Console(record=True, width=160))
    outcome = run(settings, progress)

    metrics = outcome["models"]["ours"]["metrics"]
    mean_errors = pose_metrics(constant.procrustes_mean.expand_as(target), target)
    assert metrics["constant_pa_epe_mm"] == pytest.approx(mean_errors["pa_epe_mm"], abs=1e-3)
    assert metrics["pa_skill"] == pytest.approx(1 - metrics["pa_epe_mm"] / metrics["constant_pa_epe_mm"])
    assert metrics["pa_skill"] < 0
    blind = pose_metrics(random_poses(train, len(target)), target)
    assert outcome["yardsticks"]["random training pose"]["metrics"]["pa_epe_mm"] == pytest.approx(blind["pa_epe_mm"])

    beaten = f"ours is worse than always answering one fixed hand: PA-EPE {metrics['pa_epe_mm']:.1f}"
    assert outcome["conclusions"][0].replace("\u00a0", " ").startswith(beaten)
    assert "this difference means little" in outcome["conclusions"][2]
    low, high = outcome["verdict"]["against_constant"][0]["interval_percent"]
    percent = -100 * metrics["pa_skill"]
    assert 0 < low < percent < high
    assert read_json(join(output, "metrics.json"))["conclusions"] == outcome["conclusions"]
    terminal = " ".join(progress.console.export_text().replace("\u00a0", " ").split())
    assert beaten in terminal
    assert "constant pose: of the 40 labels that the model was trained on" in terminal
    columns, rows = comparison_table(outcome)
    assert [row[0] for row in rows] == ["ours", "scratch", "constant pose", "random training pose"]
    assert rows[2][columns.index("PA skill")] == 0
    assert rows[2][columns.index("EPE (mm)")] is None
    page = read_bytes(join(output, "report.html")).decode().replace("\u00a0", " ")
    assert page.index("No better than one fixed hand") < page.index(beaten) < page.index("means little")
    assert '<tr class="yardstick"><th scope="row">constant pose</th>' in page
    history = stored_run(settings.tracking, outcome).history()
    assert history["constant pose/pa_epe_mm"][0][1] == pytest.approx(mean_errors["pa_epe_mm"], abs=1e-3)
    assert history["ours/pa_skill"][0][1] == metrics["pa_skill"]


def test_a_model_that_knows_the_hand_beats_the_constant(data):
    """And one skill a metric: perfect, and half as good as the constant."""
    joints = torch.from_numpy(data.joints_3d)
    constant = Constant.of(joints + 0.02 * torch.randn(joints.shape, generator=torch.Generator().manual_seed(0)))
    perfect = evaluate_model("oracle", LoadedPoseModel(Oracle(joints), 32, {}), data, constant=constant)
    assert perfect.metrics["pa_skill"] == pytest.approx(1, abs=1e-3)
    assert perfect.result().metrics["root_relative_skill"] == pytest.approx(1, abs=1e-3)
    verdict = judge([perfect], constant_answers({"oracle": constant}, joints, "freihand"), None, data)
    assert verdict.outcome == "better"
    assert "oracle is better than always answering one fixed hand" in verdict.sentences()[0]


def test_models_of_other_labels_have_their_own_constants(tmp_path):
    """One model brings its constant, an older one takes that of the set's training split."""
    frame_set = str(tmp_path / "set")
    write_tiny_set(frame_set, splits={"train": 40, "test": 24}, image_size=48, wobble=0.01)
    target = torch.from_numpy(load_labelled(FrameSet.open(frame_set), "test").joints_3d)
    own = Constant.of(torch.randn(10, 21, 3, generator=torch.Generator().manual_seed(0)) * 0.05)
    of_set = Constant.of(torch.from_numpy(read_poses(FrameSet.open(frame_set), "train")))
    models = {"new": random_checkpoint(tmp_path / "a", 0, own), "old": random_checkpoint(tmp_path / "b", 1)}
    for protocol in ("freihand", "peclr"):
        outcome = evaluate(evaluation_settings(models, frame_set, protocol=protocol))
        rows = outcome["yardsticks"]
        assert list(rows) == ["constant pose of new", "constant pose of old", "random training pose"]
        for name, constant in (("new", own), ("old", of_set)):
            expected = constant.errors_mm(target, protocol)["constant_pa_epe_mm"]
            assert outcome["models"][name]["metrics"]["constant_pa_epe_mm"] == pytest.approx(expected, rel=1e-3)
            assert rows[f"constant pose of {name}"]["metrics"]["pa_epe_mm"] == pytest.approx(expected, rel=1e-3)
        assert "pa_skill" not in rows["random training pose"]["metrics"]  # over which of the two?
        notes = [outcome["models"][name]["notes"][1] for name in models]
        assert "of the 10 labels that the model was trained on" in notes[0]
        assert "of the 40 labels in split 'train'" in notes[1]
    with pytest.raises(ValueError, match="'constant pose' is the name of a row that is always there"):
        evaluation_settings({"constant pose": "x"}, frame_set)


def test_probes_are_those_of_a_naive_computation(tmp_path):
    """Of a pose model and of a pretrained encoder; in the result, in MLflow and in the report."""
    frame_set, database = str(tmp_path / "set"), f"sqlite:///{tmp_path}/mlflow.db"
    write_tiny_set(frame_set, splits={"train": 40, "test": 12}, image_size=48, wobble=0.01)
    pose = random_checkpoint(tmp_path / "pose", 0)
    torch.manual_seed(1)
    pretrained = PretrainModel(EncoderSettings(width=8), ProjectionSettings(hidden=16, outputs=8))
    save_checkpoint(tmp_path / "pretrained", pretrained, {}, {"kind": "pretrain", "settings": {"views": {"size": 32}}})
    settings = EvaluateSettings(
        models={"pose (a)": pose},
        encoders={"encoder": str(tmp_path / "pretrained")},
        frame_set=frame_set,
        num_cases=1,
        output=str(tmp_path / "out"),
        tracking=TrackingSettings(uri=database),
    )
    outcome = evaluate(settings)

    train, test = (load_labelled(FrameSet.open(frame_set), split).batch(slice(None)) for split in ("train", "test"))
    model, pretrained = load_pose_model(pose).model.eval(), pretrained.eval()
    angles = np.radians(np.linspace(-45, 45, 12))

    def view(frame: torch.Tensor, angle: float) -> torch.Tensor:
        one = identity_views(1)
        return apply_views(frame[None], one._replace(angle=torch.tensor([angle]).float()), ViewSettings(size=32))

    project = pretrained.projection
    assert project is not None
    points_of: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "pose (a)": lambda image: model(image).joints_25d[0, :, :2],
        "encoder": lambda image: project(pretrained.encoder(image)).view(-1, 2),
    }
    for name, encoder in (("pose (a)", model.encoder), ("encoder", pretrained.encoder)):
        found = outcome["probes"][name]
        with torch.no_grad():
            x, queries = (
                np.array([encoder(view(frame, 0))[0].numpy() for frame in batch.frames]) for batch in (train, test)
            )
            before, after = (
                [
                    points_of[name](view(frame, angle * turn)).double().numpy()
                    for frame, angle in zip(test.frames, angles, strict=True)
                ]
                for turn in (0, 1)
            )
        joints, true = ((batch.joints_3d - batch.joints_3d[:, :1]).double().numpy() for batch in (train, test))

        nearest = [max(range(40), key=lambda i: x[i] @ q / np.linalg.norm(x[i])) for q in queries]
        errors = [np.linalg.norm(joints[i] - t, axis=-1).mean() for i, t in zip(nearest, true, strict=True)]
        assert found["retrieval_epe_mm"] == pytest.approx(1000 * np.mean(errors), rel=1e-4)

        # Ridge as a plain least-squares problem with sqrt(alpha) rows; constant features drop out.
        spread = x.std(0, ddof=1)
        spread[spread < 1e-12] = 1
        rows = np.vstack([(x - x.mean(0)) / spread, np.sqrt(found["alpha"]) * np.eye(x.shape[1])])
        centre = joints.mean(0)
        goal = np.vstack([(joints - centre).reshape(40, -1), np.zeros((x.shape[1], 63))])
        weights = np.linalg.lstsq(rows, goal, rcond=None)[0]
        pose_of = ((queries - x.mean(0)) / spread @ weights).reshape(-1, 21, 3) + centre
        assert found["epe_mm"] == pytest.approx(1000 * np.linalg.norm(pose_of - true, axis=-1).mean(), rel=1e-3)

        cosines = []
        for a, b, angle in zip(before, after, angles, strict=True):
            a, b = ((p - p.mean(0)) @ np.array([1, -1j]) for p in (a, b))  # as complex numbers, y upwards
            cosines.append((np.exp(1j * angle) * a * b.conj()).sum().real / np.linalg.norm(a) / np.linalg.norm(b))
        assert found["equivariance_cosine"] == pytest.approx(np.mean(cosines), abs=1e-3)

    history = stored_run(settings.tracking, outcome).history()
    assert history["encoder/probe_epe_mm"] == [(0, outcome["probes"]["encoder"]["epe_mm"])]
    assert history["pose _a_/probe_alpha"][0][1] > 0
    assert history["pose _a_/pa_epe_mm"][0][1] == outcome["models"]["pose (a)"]["metrics"]["pa_epe_mm"]
    assert read_json(join(str(tmp_path / "out"), "metrics.json"))["probes"] == outcome["probes"]
    page = read_bytes(join(str(tmp_path / "out"), "report.html")).decode()
    assert '<section id="probes">' in page
    columns, table = probe_table(outcome)
    assert columns[:2] == ["encoder of", "ridge PA-EPE (mm)"]
    assert [row[0] for row in table] == ["pose (a)", "encoder"]


def test_encoders_alone_are_probed(tmp_path):
    """A bare weights file, without a projection."""
    frame_set = str(tmp_path / "set")
    write_tiny_set(frame_set, splits={"train": 16, "test": 8}, image_size=48)
    torch.save(build_encoder(EncoderSettings(width=8)).state_dict(), tmp_path / "resnet.pth")
    encoders = {"bare": str(tmp_path / "resnet.pth")}
    outcome = evaluate(EvaluateSettings(encoders=encoders, frame_set=frame_set, output=str(tmp_path), track=False))
    assert outcome["models"] == {}
    assert outcome["probes"]["bare"]["pa_epe_mm"] > 0
    assert "equivariance_cosine" not in outcome["probes"]["bare"]
    for wrong, message in (({}, "name at least one model"), ({"models": encoders}, "'bare' is also among the models")):
        with pytest.raises(ValueError, match=message):
            EvaluateSettings.model_validate({"frame_set": frame_set, "encoders": encoders if wrong else {}, **wrong})
    (tmp_path / "none").mkdir()
    write_tiny_set(str(tmp_path / "none"), splits={"test": 8}, image_size=48)
    with pytest.raises(DataError, match="split 'train' has no frames"):
        evaluate(EvaluateSettings(encoders=encoders, frame_set=str(tmp_path / "none"), track=False))


def test_models_also_come_as_a_list():
    settings = EvaluateSettings.model_validate({"models": [{"name": "a", "uri": "x"}], "frame_set": "y"})
    assert settings.models == {"a": "x"}


def test_bad_input_is_named(frame_set, tmp_path):
    uri = random_checkpoint(tmp_path / "model", 0)
    with pytest.raises(SettingsError, match="'baseline' = 'b' is none of the models"):
        evaluate(EvaluateSettings(models={"a": uri}, frame_set=frame_set, baseline="b"))
    with pytest.raises(DataError, match="split 'val' has no frames"):
        evaluate(EvaluateSettings(models={"a": uri}, frame_set=frame_set, split="val"))
    unlabelled = str(tmp_path / "unlabelled")
    write_tiny_set(unlabelled, splits={"test": 8}, image_size=48, labelled=False)
    with pytest.raises(DataError, match="no joints_3d"):
        evaluate(EvaluateSettings(models={"a": uri}, frame_set=unlabelled))


def test_sets_without_depth_are_measured_in_the_image(tmp_path):
    """Errors, yardsticks, verdict and pictures, all of them in the image; the same figures as for the set in 3D."""
    uri, whole = str(tmp_path / "set"), str(tmp_path / "whole")
    for each, in_2d in ((uri, lambda number: True), (whole, lambda number: False)):
        write_tiny_set(each, splits={"train": 40, "test": 24}, image_size=48, wobble=0.01, in_2d=in_2d)
    # Root at the wrist: the image of a palm in 3D is not quite the middle between the images of its ends.
    models = {
        name: random_checkpoint(tmp_path / name, seed, root="wrist") for seed, name in enumerate(("ours", "scratch"))
    }
    changes = {"baseline": "scratch", "num_cases": 2, "output": str(tmp_path / "out"), "save_predictions": True}
    arguments = [
        *(f"--models.{name}={model}" for name, model in models.items()),
        "--frame_set",
        uri,
        "--track",
        "false",
    ]
    for name, value in changes.items():
        arguments += [f"--{name}", str(value)]
    outcome = run(load(EvaluateSettings, arguments))
    in_3d = evaluate(evaluation_settings(models, whole, num_cases=1))

    train, test = (torch.from_numpy(read_joints_2d(FrameSet.open(uri), split)) for split in ("train", "test"))
    constant = image_metrics(48 * train.mean(0).expand(test.shape), 48 * test, torch.ones(24))["epe_2d"]
    assert outcome["yardsticks"]["constant pose"]["metrics"]["epe_2d"] == pytest.approx(constant, rel=1e-5)
    for name in models:
        found = outcome["models"][name]["metrics"]
        assert not any(key.endswith("_mm") for key in found)
        assert found["epe_2d_skill"] == pytest.approx(1 - found["epe_2d"] / constant, rel=1e-4)
        for key in ("epe_2d", "epe_2d_px", "pck_2d_10", "auc_2d", "constant_epe_2d", "epe_2d_skill"):
            assert found[key] == pytest.approx(in_3d["models"][name]["metrics"][key], rel=1e-3), key
    for name in ("constant pose", "random training pose"):
        assert in_3d["yardsticks"][name]["metrics"]["pck_2d_10"] == pytest.approx(
            outcome["yardsticks"][name]["metrics"]["pck_2d_10"]
        )
    assert outcome["probes"] == {}
    assert len(outcome["models"]["ours"]["notes"]) == 1
    against = outcome["verdict"]["against_constant"][0]
    assert (against["metric"], against["unit"]) == ("2D EPE", "% of the hand")
    assert against["baseline_value"] == pytest.approx(100 * constant, rel=1e-5)
    assert "of the hand" in outcome["conclusions"][0]

    columns, rows = comparison_table(outcome)
    assert columns[:3] == ["model", "2D EPE (hand sizes)", "2D skill"]
    assert [row[0] for row in rows] == ["ours", "scratch", "constant pose", "random training pose"]
    assert [section["title"] for section in outcome["results"]["overlays"]] == ["Good", "Median", "Worst"]
    page = read_bytes(join(str(tmp_path / "out"), "report.html")).decode()
    assert "2D EPE" in page
    assert "Error by finger" not in page
    table = pq.read_table(io.BytesIO(read_bytes(join(str(tmp_path / "out"), "predictions", "ours.parquet"))))
    assert table["pa_epe_mm"].null_count == 24
    assert np.mean(table["epe_2d"].to_pylist()) == pytest.approx(outcome["models"]["ours"]["metrics"]["epe_2d"])


def test_mixed_sets_are_measured_both_ways(tmp_path):
    """In 3D the frames that have it; in the image all of them."""
    uri, whole = str(tmp_path / "set"), str(tmp_path / "whole")
    for each, in_2d in ((uri, lambda number: number % 3 == 0), (whole, lambda number: False)):
        write_tiny_set(each, splits={"test": 24}, image_size=48, wobble=0.01, in_2d=in_2d)
    data, complete = (load_labelled(FrameSet.open(each), "test") for each in (uri, whole))
    assert data.has_3d.sum() == 16
    joints = torch.from_numpy(complete.joints_3d)
    evaluation = evaluate_model("off", LoadedPoseModel(Oracle(joints, error_m=0.021), 32, {}), data)
    assert evaluation.metrics["num_samples"] == 16
    assert evaluation.metrics["epe_mm"] == pytest.approx(1.0, abs=1e-2)
    assert (len(evaluation.errors_mm), len(evaluation.errors_2d)) == (16, 24)
    other = evaluate_model("off", LoadedPoseModel(Oracle(joints, error_m=0.021), 32, {}), complete)
    np.testing.assert_allclose(evaluation.errors_mm, other.errors_mm[data.has_3d], rtol=1e-4)
    np.testing.assert_allclose(evaluation.errors_2d[data.has_3d], other.errors_2d[data.has_3d], rtol=1e-2)
    models = {name: random_checkpoint(tmp_path / name, seed) for seed, name in enumerate(("ours", "scratch"))}
    outcome = evaluate(evaluation_settings(models, uri, baseline="scratch", num_cases=2, output=str(tmp_path / "out")))
    assert outcome["verdict"]["between_models"][0]["num_frames"] == 16
    assert any("16 of 24 frames have joints in 3D" in note for note in outcome["models"]["ours"]["notes"])
    shown = [
        name
        for overlay in outcome["results"]["overlays"]
        for name in overlay["picture"]["caption"].split(": ")[1].split(", ")
    ]
    in_3d = {name for name, known in zip(data.frame_ids, data.has_3d, strict=True) if known}
    assert set(shown) <= in_3d


def test_probes_need_joints_in_3d(tmp_path):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 16, "test": 8}, image_size=48, in_2d=lambda number: number >= 1)
    settings = evaluation_settings({"a": random_checkpoint(tmp_path / "a", 0)}, uri, probe={"enabled": True})
    with pytest.raises(DataError, match="split 'train' has 1 frames with joints in 3D and the evaluated one 0"):
        evaluate(settings)


def test_a_wrong_tracking_uri_is_said_before_any_model_runs(frame_set, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.reports.evaluate.load_pose_model", lambda uri: pytest.fail("a model was loaded"))
    settings = evaluation_settings(
        {"a": str(tmp_path)},
        frame_set,
        track=True,
        tracking={"uri": "http://127.0.0.1:1"},
        output=str(tmp_path / "out"),
    )
    with pytest.raises(EquihandError, match=r"^MLflow at http://127.0.0.1:1: "):
        evaluate(settings)


def test_results_are_written_where_tracking_fails_on_the_way(frame_set, tmp_path, monkeypatch, caplog):
    from mlflow import MlflowClient

    def give(sender, client, records):
        if records[0]["do"] == "metrics":
            raise OSError("the server went away")
        return given(sender, client, records)

    given = Sender._give
    monkeypatch.setattr("pipeline.tracking.Sender._give", give)
    output = str(tmp_path / "out")
    settings = evaluation_settings(
        {"a": random_checkpoint(tmp_path / "a", 0)},
        frame_set,
        track=True,
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        output=output,
    )
    outcome = evaluate(settings)
    assert outcome["untracked"].startswith("MLflow does not have all of the run: 2 records wait (MLflow at sqlite:///")
    assert outcome["untracked"].endswith(
        f": the server went away); `python -m jobs.sync {output}` delivers what is there"
    )
    assert outcome["untracked"] in caplog.text
    assert "untracked" not in read_json(join(output, "metrics.json"))
    assert (tmp_path / "out/report.html").exists()
    monkeypatch.setattr("pipeline.tracking.Sender._give", given)
    assert deliver_left(output) == Delivered(2, "")
    stored = stored_run(settings.tracking, outcome)
    assert "a/pa_epe_mm" in stored.history()
    artifacts = MlflowClient(stored.tracking_uri).list_artifacts(stored.mlflow_run_id)
    assert {item.path for item in artifacts} == {"settings.yaml", "metrics.json", "report.html", "pictures"}
