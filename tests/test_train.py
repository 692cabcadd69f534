"""train.py beside Sec. IV-B: the three stages, the rate, and a run that can be killed at any time.

Networks are as narrow as they can be (8 channels a layer), pictures have 48 x 48 pixels.
"""

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, write_tiny_tree
from PIL import Image

import data
import evaluate
import train
from losses import VARIANTS, total_loss
from model import LiSiam, LiSiamOutput, XceptionClassifier, build_network, load_network

SMALL = ["--width", "0.02", "--size", "48", "--batch-size", "4", "--pretrained", "none",
         "--workers", "0", "--device", "cpu"]


def command(tree, out, iterations, *flags):
    """The arguments of a small run on a tiny tree."""
    return ["--data", "ff++", "--root", str(tree), "--out", str(out), *SMALL,
            "--iterations", *map(str, iterations), *map(str, flags)]


def run(tree, out, iterations, *flags):
    """Trains, and returns what last.pt holds."""
    train.main(command(tree, out, iterations, *flags))
    return read(out / "last.pt")


@pytest.fixture(autouse=True)
def without_matplotlib(monkeypatch):
    """To save time, matplotlib cannot be imported; one test draws training curves."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


def read(path):
    return torch.load(path, weights_only=True)


def log_of(folder):
    """The lines of log.jsonl, without the time of day."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("time", None)
    return lines


def steps_of(folder):
    """The lines of log.jsonl about training steps: {iteration: line}."""
    return {line["iteration"]: line for line in log_of(folder) if "loss" in line}


def validations_of(folder):
    """The lines of log.jsonl about validations: {iteration: row of numbers}."""
    return {line["iteration"]: line["val"] for line in log_of(folder) if "val" in line}


def assert_equal(first, second):
    """Everything in two nested structures of tensors and numbers is bit-identical."""
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def state_of(checkpoint):
    """What decides how a run goes on: weights, statistics, momentum, iteration, best AUC."""
    momentum = checkpoint["optimizer"]["state"]
    return [checkpoint["model"], momentum, checkpoint["iteration"], checkpoint["best"]]


def stopped(capsys, *arguments):
    """The sentence with which train.py ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main([str(argument) for argument in arguments])
    if isinstance(stop.value.code, str):                # sys.exit
        return stop.value.code
    assert stop.value.code == 2                         # argparse
    return capsys.readouterr().err.strip().splitlines()[-1]


def val_result(path, tree):
    """The val split of a tree, tested with a checkpoint as evaluate.py does it."""
    tested = evaluate.load_run(path, call={"device": "cpu", "workers": 0, "batch_size": 4})
    videos = data.list_videos("ff++", tree, "c23", "val")
    result, _ = evaluate.evaluate(tested, evaluate.TestSet("val", "ff++", "c23", videos, None))
    return result


# ---------------------------------------------------------------- Sec. IV-B: the settings
def test_a_new_row_of_variants_and_a_new_data_set_are_flags_at_once(monkeypatch):
    """README, 'Where to start changing things': a row says itself whether it has a transformer."""
    monkeypatch.setitem(VARIANTS, "H", VARIANTS["A"]._replace(transformer=False))
    monkeypatch.setattr(data, "TRAINABLE", (*data.TRAINABLE, "mine"))
    monkeypatch.setitem(data.ROOTS, "mine", "somewhere")
    settings = train.parse_arguments(["--data", "mine", "--variant", "H", *SMALL])
    assert build_network(settings).f_mt is None
    assert settings["root"] == "somewhere"
    videos = [data.Video("mine", "Forged", "0", 1, [], [])]     # no method of FF++
    monkeypatch.setattr(data, "list_videos", lambda *arguments: videos)
    assert train.list_split(settings, "train") == videos


def test_the_defaults_are_the_papers_numbers():
    """Sec. IV-B, III-E and IV-A1. Validation comes every 30 epochs of 5760 pairs."""
    settings = train.parse_arguments(["--data", "ff++"])
    papers = {
        "iterations": [146_000, 16_000, 324_000], "batch_size": 32, "lr": 0.002, "size": 299,
        "width": 1.0, "lambdas": [1, 1, 1], "pretrained": "imagenet", "quality": "c23",
        "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "aux": 0.4, "variant": "A",
        "model": "lisiam", "mask": "ssim", "eval_every": 30 * 5760 // 32, "val_frames": None,
    }
    assert {name: settings[name] for name in papers} == papers


def test_a_flag_wins_over_the_demos_settings_and_those_over_the_papers(monkeypatch):
    monkeypatch.setattr(train, "DEMO", {"batch_size": 5, "lr": 0.5})
    settings = train.parse_arguments(["--data", "demo", "--batch-size", "6"])
    assert settings["batch_size"] == 6
    assert settings["lr"] == 0.5
    assert settings["momentum"] == 0.9
    assert train.parse_arguments(["--data", "ff++"])["lr"] == 0.002


def test_settings_that_differ_have_another_folder():
    assert train.parse_arguments(["--data", "demo"])["out"] == "runs/demo"
    flags = "--data ff++ --quality c40 --variant G --methods FaceSwap Deepfakes --seed 3"
    named = train.parse_arguments(flags.split())["out"]
    assert named == "runs/ff++-c40-lisiam-G-Deepfakes-FaceSwap-seed3"


def test_poly_rate_by_hand_and_its_end():
    """Sec. IV-B: 0.002 (1 - step / steps)^0.9; half way it is 0.002 * 0.5^0.9 = 0.0010718."""
    assert train.poly_lr(0, 100, 0.002) == 0.002
    assert train.poly_lr(50, 100, 0.002) == pytest.approx(0.00107177, rel=1e-5)
    assert 0 < train.poly_lr(99, 100, 0.002) < 0.002 * 0.016


def test_the_rate_restarts_in_each_stage_and_eq19_has_its_weights(masked_tree, tmp_path):
    """Eq. (19): lambda_li L_li + lambda_cls L_cls + lambda_seg L_seg, and OCR's own loss.

    Sec. IV-B, with SGD's momentum and weight decay as in the authors' release.
    """
    checkpoint = run(masked_tree, tmp_path / "run", (2, 2, 2), "--save-every", 1,
                     "--lr", 0.002, "--lambdas", 2, 3, 5, "--aux", 7)
    group = checkpoint["optimizer"]["param_groups"][0]
    assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
    steps = steps_of(tmp_path / "run")
    half = pytest.approx(0.002 * 0.5 ** 0.9)
    rates = {iteration: line["lr"] for iteration, line in steps.items()}
    assert rates == {1: 0.002, 2: half, 3: 0.002, 4: half, 5: 0.002, 6: half}
    weights = {"li": 2, "cls": 3, "seg": 5, "aux": 7}
    losses = {1: {"li", "seg", "aux"}, 2: {"cls"}, 3: {"li", "cls", "seg", "aux"}}
    for line in steps.values():
        assert line.keys() & weights.keys() == losses[line["stage"]]
        weighted = sum(weights[name] * line[name] for name in losses[line["stage"]])
        assert line["loss"] == pytest.approx(weighted, rel=1e-5)


# ---------------------------------------------------------------- Sec. IV-B: the three stages
@pytest.mark.parametrize("transformer", [True, False])
def test_stages_1_and_2_split_every_parameter(transformer):
    """Sec. IV-B: f_cnn and f_seg are segmentation, f_scu, f_mt and f_mlp are classification."""
    net = LiSiam(0.02, transformer=transformer)
    first, second = [set(train.freeze(net, stage)) for stage in (1, 2)]
    assert not first & second
    assert first | second == set(net.parameters())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_frozen_parts_are_bit_identical_batchnorm_statistics_included(
        stage, masked_tree, tmp_path):
    """Sec. IV-B: stage 1 leaves f_scu, f_mt, f_mlp alone, stage 2 f_cnn, f_seg; the rest moves."""
    iterations = [0, 0, 0]
    iterations[stage - 1] = 3
    after = run(masked_tree, tmp_path / "run", iterations)["model"]
    torch.manual_seed(0)
    before = LiSiam(0.02).state_dict()
    for name in before:
        is_classification = name.startswith(("f_scu.", "f_mt.", "f_mlp."))
        if (stage == 1 and is_classification) or (stage == 2 and not is_classification):
            assert torch.equal(before[name], after[name]), name
        elif name.endswith(("running_mean", "weight")):
            assert not torch.equal(before[name], after[name]), name


def kind_of(images):
    """c: a batch of clean pictures, d: of degraded ones, b: both, one after the other."""
    is_black = (images == -1).flatten(1).all(dim=1).tolist()
    half = len(images) // 2
    first, second = set(is_black[:half]), set(is_black[half:])
    kinds = {"c": ({False}, {False}), "d": ({True}, {True}), "b": ({False}, {True})}
    return next(kind for kind, halves in kinds.items() if halves == (first, second))


TABLES = {      # what stages 1, 2 and 3 run: c, d, b as above; a capital: f_scu, f_mt, f_mlp too
    "--variant A": "cd C Cd",
    "--variant B": "cd CD CD",
    "--variant C": "- - Cd",
    "--variant D": "cd D cD",
    "--variant E": "d D D",
    "--variant F": "cd C Cd",
    "--variant G": "b B B",
    "--num-classes 5": "cd C Cd",
    "--lambdas 1 1 0 --aux 0": "- - Cd",
    "--model xception": "- - c",
    "--model xception --iqd": "- - d",
}


@pytest.mark.parametrize("flags", TABLES)
def test_every_network_runs_its_branches_and_heads_in_each_stage(
        flags, masked_tree, tmp_path, monkeypatch):
    """Tables VI, I (baseline) and V (+IQD), Fig. 5. Here each degraded copy is black."""
    monkeypatch.setattr(data, "degrade", lambda image, rng: Image.new("RGB", image.size))
    ran = []
    branch = LiSiam.branch
    forward = XceptionClassifier.forward

    def note_branch(net, images, head):
        if net.training:                        # neither validation nor the picture of a batch
            kind = kind_of(images)
            ran.append(kind.upper() if head else kind)
        return branch(net, images, head)

    def note_forward(net, images):
        if net.training:
            ran.append(kind_of(images))
        return forward(net, images)

    monkeypatch.setattr(LiSiam, "branch", note_branch)
    monkeypatch.setattr(XceptionClassifier, "forward", note_forward)
    out = tmp_path / "run"
    run(masked_tree, out, (1, 1, 1), "--save-every", 1, *flags.split())
    stages = [line["stage"] for line in steps_of(out).values()]
    assert stages == ([3, 3, 3] if "-" in TABLES[flags] else [1, 2, 3])
    of_stage = TABLES[flags].split()
    assert "".join(ran) == "".join(of_stage[stage - 1] for stage in stages)
    if "xception" not in flags:
        net, _ = load_network(out / "best.pt")
        assert (net.f_mt is None) == (flags == "--variant F")
        logits = net(torch.zeros(1, 3, 48, 48)).cls_logits
        assert logits.shape == (1, 5 if flags == "--num-classes 5" else 2)


@pytest.mark.parametrize("flags, losses", [
    (["--variant", "C"], {"li", "cls"}),
    (["--lambdas", 1, 1, 0, "--aux", 0], {"li", "cls"}),
    (["--model", "xception"], {"cls"}),
])
def test_training_without_mask_supervision_needs_no_masks(
        flags, losses, tiny_tree, tmp_path, monkeypatch):
    """Model-C, Eq. (19) without L_seg and OCR's own loss, the baseline; also several processes."""
    out = tmp_path / "run"
    run(tiny_tree, out, (1, 1, 1), "--save-every", 1, *flags)
    found = set().union(*steps_of(out).values()) & {"li", "cls", "seg", "aux"}
    assert found == losses
    assert validations_of(out)[3]["iou"] is None
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    settings = train.parse_arguments(command(tiny_tree, out, (1, 1, 1), *flags))
    for rank in (0, 1):
        pairs, _ = train.prepare_data(settings, rank, world=2)
        assert len(pairs) == 16
    assert not list(tiny_tree.glob("*/*/masks_ssim"))


def test_one_process_writes_masks_and_several_say_who_does(tiny_tree, tmp_path, monkeypatch):
    """It may take half an hour, and the others would wait."""
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    settings = train.parse_arguments(command(tiny_tree, tmp_path / "run", (1, 1, 1)))
    with pytest.raises(SystemExit, match="python masks.py"):
        train.prepare_data(settings, 0, world=2)
    assert not list(tiny_tree.glob("*/*/masks_ssim"))
    train.prepare_data(settings, 0, world=1)
    assert len(list(tiny_tree.glob("*/*/masks_ssim/*/*.png"))) == 72       # 24 in each split


def test_only_the_fakes_of_the_named_methods_are_trained_and_validated_on(tiny_tree, tmp_path):
    """Table IV trains on one method and tests on another."""
    chosen = ["FaceSwap", "NeuralTextures"]
    flags = ["--model", "xception", "--methods", *chosen]
    settings = train.parse_arguments(command(tiny_tree, tmp_path / "run", (1, 0, 0), *flags))
    pairs, val_videos = train.prepare_data(settings, 0, 1)
    for videos in (pairs.videos, val_videos):
        assert {video.method for video in videos} == {"real", *chosen}
    checkpoint = run(tiny_tree, tmp_path / "run", (1, 0, 0), *flags)
    assert checkpoint["settings"]["methods"] == chosen
    row = validations_of(tmp_path / "run")[1]
    assert (row["real_videos"], row["videos"]) == (2, 6)


# ---------------------------------------------------------------- pictures of the training
class BrightIsFake(torch.nn.Module):
    """A network whose map marks what is bright."""

    def forward(self, images):
        fake = 9 * images.mean(dim=1, keepdim=True)
        return LiSiamOutput(torch.zeros(len(images), 2), torch.cat([-fake, fake], dim=1), None)


def test_a_panel_shows_fakes_and_reals_with_their_masks_and_maps(tmp_path, monkeypatch):
    """Four fakes and two real faces at most. Here clean pictures are white, degraded ones black."""
    figure = {}
    monkeypatch.setattr(evaluate, "draw_grid", lambda title, rows, path: figure.update(rows))
    labels = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0])
    batch = {"clean": torch.full((8, 48, 48, 3), 255, dtype=torch.uint8),
             "degraded": torch.zeros(8, 48, 48, 3, dtype=torch.uint8),
             "mask": labels[:, None, None].expand(8, 48, 48), "label": labels}
    train.panel(BrightIsFake(), batch, {"size": 48, "device": "cpu"}, tmp_path / "panel.png")
    assert list(figure) == ["1: fake", "2: fake", "4: fake", "5: fake", "0: real", "3: real"]
    for name, row in figure.items():
        assert list(row) == ["clean", "degraded", "mask", "map of clean", "map of degraded"]
        assert row["clean"].shape == (48, 48, 3)
        assert row["clean"].min() == 255
        assert row["degraded"].max() == 0
        assert (row["mask"] == name.endswith("fake")).all()
        assert row["map of clean"].min() > 0.99
        assert row["map of degraded"].max() < 0.01


def test_training_curves_leave_out_the_losses_that_a_stage_lacks(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.figure")
    pytest.importorskip("matplotlib.figure")
    drawn = {}
    monkeypatch.setattr(evaluate, "save_figure",
                        lambda figure, path: drawn.update({path.name: figure}))
    lines = [{"iteration": 1, "stage": 1, "loss": 3.0, "seg": 3.0},
             {"iteration": 2, "stage": 2, "loss": 2.0, "cls": 2.0},
             {"iteration": 2, "stage": 2,
              "val": {"frame_auc": 0.75, "video_auc": 0.5, "iou": None}}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train.curves(tmp_path)
    losses, checks = [{line.get_label(): line.get_xydata().tolist() for line in axes.lines}
                      for axes in drawn["curves.png"].axes]
    assert losses == {"loss": [[1, 3], [2, 2]], "seg": [[1, 3]], "cls": [[2, 2]]}
    assert (checks["frame_auc"], checks["video_auc"]) == ([[2, 0.75]], [[2, 0.5]])


# ---------------------------------------------------------------- validation
def test_what_validation_logs_is_what_evaluate_finds(masked_tree, tmp_path, capsys):
    """And the last line says how to test the weights that are kept."""
    out = tmp_path / "run"
    run(masked_tree, out, (1, 2, 3), "--eval-every", 1)
    rows = validations_of(out)
    assert list(rows) == [2, 3, 4, 5, 6]
    row = rows[read(out / "best.pt")["iteration"]]
    assert row["frame_auc"] == max(row["frame_auc"] for row in rows.values())
    result = val_result(out / "best.pt", masked_tree)
    for name in ("frames", "frame_auc", "video_auc", "iou", "marked_real", "pixel_auc"):
        assert result[name] == pytest.approx(row[name])
    assert result["iou_val"] == pytest.approx(max(row["iou_by_threshold"]))
    test_it = f"--checkpoint {out / 'best.pt'} --data ff++ --root {masked_tree}"
    assert test_it in capsys.readouterr().out


def test_without_real_val_videos_best_holds_the_last_weights(masked_tree, tmp_path, capsys):
    for video in data.FFPP_PAIRS["val"].split()[0].split("_"):
        shutil.rmtree(masked_tree / "original_sequences/youtube/c23/faces" / video)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pt").write_bytes(b"of an older run")
    last = run(masked_tree, tmp_path / "run", (0, 1, 1))
    assert "last weights" in capsys.readouterr().out
    assert_equal(last["model"], read(tmp_path / "run" / "best.pt")["model"])


def test_looking_at_the_network_does_not_change_it(masked_tree, tmp_path):
    """Validated and drawn at every step or at none: BatchNorm and dropout go on alike."""
    often = run(masked_tree, tmp_path / "often", (0, 2, 3), "--eval-every", 1, "--val-frames", 1)
    never = run(masked_tree, tmp_path / "never", (0, 2, 3))
    assert_equal(often["model"], never["model"])


# ---------------------------------------------------------------- a user's mistakes
@pytest.mark.parametrize("flags", [
    "--save-every 0", "--eval-every 0", "--val-frames 0", "--workers -1", "--batch-size 1",
    "--size 22", "--seed -1", "--lr 0", "--lr nan", "--width 0", "--aux nan", "--lambdas -1 1 1",
    "--iterations 0 0 0", "--iterations 2 -1 2", "--iterations 0 0 0 --variant C", "--iqd",
    "--variant C --model xception", "--lambdas 1 1 0 --model xception", "--aux 0 --model xception",
    "--mask diff --model xception", "--pretrained typo.pth",
    "--lambdas 1 0 1",                          # leaves stage 2 without a loss
    "--lambdas 0 0 0 --aux 0",                  # leaves stage 3 without a loss
    "--width 0.5",                              # there are no such pretrained weights
    "--num-classes 5 --methods Deepfakes FaceSwap",
])
def test_flags_that_make_no_sense_are_refused_in_a_sentence(flags, capsys):
    sentence = stopped(capsys, "--data", "ff++", *flags.split())
    assert flags.split()[0] in sentence


def test_data_and_folder_are_looked_at_before_weights_are_downloaded(
        masked_tree, tmp_path, capsys, monkeypatch):
    """A download that fails leaves the folder free."""
    def no_download(url, **more):
        raise ConnectionError

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_download)
    monkeypatch.setattr(train, "build_network", lambda settings: LiSiam(0.02))      # to save time
    pretrained = ["--width", "1", "--pretrained", "imagenet"]
    out = tmp_path / "run"
    sentence = stopped(capsys, *command(tmp_path / "none", out, (1, 1, 1), *pretrained))
    for part in (str(tmp_path / "none"), "data.py faces", "--data demo"):
        assert part in sentence
    with pytest.raises(ConnectionError):
        run(masked_tree, out, (1, 0, 0), *pretrained)
    assert not out.exists()
    run(masked_tree, out, (1, 0, 0))
    assert "already holds" in stopped(capsys, *command(masked_tree, out, (1, 0, 0), *pretrained))


def test_a_broken_picture_or_mask_is_named_and_leaves_the_folder_free(
        masked_tree, tmp_path, capsys):
    """The same command can be given again, once they are repaired."""
    methods = masked_tree / "manipulated_sequences"
    out = tmp_path / "run"
    flags = command(masked_tree, out, (1, 0, 0))
    for path in (masked_tree / "original_sequences/youtube/c23/faces/071/0000.png",
                 methods / "Deepfakes/c23/faces/720_672/0000.png",          # of a val video
                 methods / "FaceSwap/masks_ssim/054_071/0000.png"):
        whole = path.read_bytes()
        path.write_bytes(whole[:60])
        assert str(path) in stopped(capsys, *flags)
        assert not out.exists()
        path.write_bytes(whole)
    train.main(flags)
    assert read(out / "last.pt")["iteration"] == 1


def test_a_picture_that_breaks_later_stops_a_run_that_goes_on_once_repaired(
        masked_tree, tmp_path):
    """Only the first frame of each video is looked at before training starts."""
    flags = ("--save-every", 1)
    whole = run(masked_tree, tmp_path / "whole", (3, 2, 3), *flags)
    video = masked_tree / "manipulated_sequences/Face2Face/c23/faces/054_071"
    repaired = shutil.copytree(masked_tree, tmp_path / "repaired")
    for frame in sorted(video.iterdir())[1:]:
        frame.write_bytes(b"")
    out = tmp_path / "broken"
    with pytest.raises(ValueError, match=re.escape(f"{video}/000")):
        run(masked_tree, out, (3, 2, 3), *flags, "--workers", 1)
    assert 0 < read(out / "last.pt")["iteration"] < 8
    resumed = run(repaired, out, (3, 2, 3), *flags, "--resume")
    assert_equal(state_of(resumed), state_of(whole))


@pytest.mark.parametrize("lr, statistic", [(1e18, 0), (3e38, 0), (0.002, float("inf"))])
def test_what_is_not_finite_stops_the_run_and_spares_the_checkpoint(
        lr, statistic, masked_tree, tmp_path, capsys, monkeypatch):
    """With a huge rate the first loss is finite, the weights after it are not.

    BatchNorm's running mean is no parameter, and nothing of training reads it.
    """
    step_loss = train.step_loss

    def step_with_the_statistic(net, *arguments):
        net.backbone.bn1.running_mean[0] += statistic
        return step_loss(net, *arguments)

    monkeypatch.setattr(train, "step_loss", step_with_the_statistic)
    flags = command(masked_tree, tmp_path / "run", (30, 0, 0), "--save-every", 1, "--lr", lr,
                    "--lambdas", 99, 99, 99)
    assert "--lr" in stopped(capsys, *flags)
    kept = read(tmp_path / "run" / "last.pt")
    assert kept["iteration"] == 0
    assert all(tensor.isfinite().all() for tensor in kept["model"].values())


# ---------------------------------------------------------------- kill and resume
def test_a_taken_folder_and_other_settings_or_videos_are_refused(
        masked_tree, tmp_path, capsys):
    """Other videos, or another number of their frames, would change every later draw."""
    out = tmp_path / "run"
    train.main(command(masked_tree, out, (1, 1, 1)))
    whole = (out / "last.pt").read_bytes()
    moved = masked_tree.rename(tmp_path / "moved")                  # another --root is allowed
    again = command(moved, out, (1, 1, 1))
    assert "--resume" in stopped(capsys, *again)
    again.append("--resume")
    sentence = stopped(capsys, *again, "--lr", "0.1")
    assert "lr = 0.002" in sentence
    assert "0.1" in sentence
    assert "variant = A" in stopped(capsys, *again, "--variant", "B")
    assert "nothing to resume" in stopped(capsys, *again, "--out", tmp_path / "other")
    video = moved / "manipulated_sequences/Deepfakes/c23/faces/071_054"
    for path in (video / "0002.png", video):
        path.rename(tmp_path / "hidden")
        assert "training videos" in stopped(capsys, *again)
        (tmp_path / "hidden").rename(path)
    assert (out / "last.pt").read_bytes() == whole
    train.main(again)


@contextlib.contextmanager
def ctrl_c_after_the_save_of(last, monkeypatch):
    save = train.RunFolder.save

    def save_and_press_it(folder, name, net, iteration, **more):
        save(folder, name, net, iteration, **more)
        if name == "last.pt" and iteration == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.RunFolder, "save", save_and_press_it)
        yield


def test_last_is_saved_whenever_best_may_have_been(masked_tree, tmp_path, monkeypatch):
    """Else a resumed run would not know the AUC of its own best.pt, and might replace it."""
    with ctrl_c_after_the_save_of(3, monkeypatch):              # within stage 3
        run(masked_tree, tmp_path / "run", (1, 1, 2), "--save-every", 50, "--eval-every", 3)


def test_a_run_stops_if_another_run_has_written_into_its_folder(
        masked_tree, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    step_loss = train.step_loss

    def step_while_another_run_saves(*arguments):
        data.write_whole(out / "last.pt", (out / "last.pt").read_bytes())
        return step_loss(*arguments)

    monkeypatch.setattr(train, "step_loss", step_while_another_run_saves)
    assert "another run has written" in stopped(capsys, *command(masked_tree, out, (1, 1, 1)))
    assert read(out / "last.pt")["iteration"] == 0


@pytest.mark.parametrize("last", [2, 3])
def test_a_run_stopped_after_or_within_a_stage_goes_on_as_if_it_had_not(
        last, masked_tree, tmp_path, monkeypatch):
    """Momentum starts anew in each stage, and is kept within one.

    What the log says after the checkpoint is forgotten, and so is a line that a kill has torn.
    """
    whole = run(masked_tree, tmp_path / "whole", (2, 2, 1), "--save-every", 1)
    out = tmp_path / "stopped"
    with ctrl_c_after_the_save_of(last, monkeypatch):
        run(masked_tree, out, (2, 2, 1), "--save-every", 1)
    with open(out / "log.jsonl", "a") as file:
        file.write('{"iteration": 4, "stage": 2, "loss": 1.0}\n{"iteration": 4, "sta')
    resumed = run(masked_tree, out, (2, 2, 1), "--save-every", 1, "--resume")
    assert_equal(state_of(resumed), state_of(whole))
    assert log_of(out) == log_of(tmp_path / "whole")


def test_best_is_the_last_of_the_highest_val_auc_also_when_resumed(
        masked_tree, tmp_path, monkeypatch):
    """It is looked at from stage 2 on, so from iteration 2; of equals the later trained longer."""
    values = iter([0.75, 0.5, 0.75, 0.25])
    summarize = evaluate.summarize

    def row_with_next_value(*arguments):
        return {**summarize(*arguments), "frame_auc": next(values)}

    monkeypatch.setattr(evaluate, "summarize", row_with_next_value)
    out = tmp_path / "run"
    flags = ("--save-every", 1, "--eval-every", 1)
    with ctrl_c_after_the_save_of(4, monkeypatch):
        run(masked_tree, out, (1, 2, 2), *flags)
    run(masked_tree, out, (1, 2, 2), *flags, "--resume")
    assert read(out / "best.pt")["iteration"] == 4


def test_a_run_killed_twice_ends_bit_identical_to_an_unbroken_one(masked_tree, tmp_path):
    """kill -9 wherever it is, then --resume, once with another number of loading processes."""
    iterations = (15, 6, 15)
    flags = ("--save-every", 3, "--eval-every", 4, "--val-frames", 1)
    whole = run(masked_tree, tmp_path / "whole", iterations, *flags)
    out = tmp_path / "killed"
    log = out / "log.jsonl"
    program = [sys.executable, "train.py", *command(masked_tree, out, iterations, *flags)]
    for lines, more in ((3, []), (8, ["--resume", "--workers", "1"])):
        process = subprocess.Popen(program + more, cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.time() + 120
        while not log.exists() or len(log.read_bytes().splitlines()) < lines:
            assert time.time() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the process ended before it could be killed"
        assert 0 < read(out / "last.pt")["iteration"] < 36                  # never torn
    resumed = run(masked_tree, out, iterations, *flags, "--resume")
    assert resumed["iteration"] == 36
    assert_equal(state_of(resumed), state_of(whole))
    best = [read(folder / "best.pt") for folder in (tmp_path / "whole", out)]
    assert_equal(best[0]["model"], best[1]["model"])
    assert log_of(out) == log_of(tmp_path / "whole")


# ---------------------------------------------------------------- the demo
def test_the_demo_ends_with_tables_of_its_test_split_and_pictures(tmp_path, capsys):
    """On FF++'s tiny tree under the demo's name; its split is written beside it.

    A picture is drawn at the end of each stage. Training curves need matplotlib.
    """
    root = write_tiny_tree(tmp_path / "demo", data.QUALITIES)
    (root / "splits").mkdir()
    for split, pairs in data.FFPP_PAIRS.items():
        pair = pairs.split()[0].split("_")
        (root / "splits" / f"{split}.json").write_text(json.dumps([pair]))
    out = tmp_path / "run"
    train.main(["--data", "demo", "--root", str(root), "--out", str(out), *SMALL,
                "--iterations", "1", "2", "1"])
    said = capsys.readouterr().out
    report = json.loads((out / "test.json").read_text())[0]
    assert {result["quality"] for result in report["results"]} == {"c0", "c23", "c40"}
    for result in report["results"]:
        assert result["test"] == f"demo {result['quality']} test"
        assert (result["frames"], result["masked_frames"]) == (30, 24)
        assert result["test"] in said
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert pictures == ["panel_000001.png", "panel_000003.png", "panel_000004.png"]
    assert "pip install matplotlib" in said


# ---------------------------------------------------------------- bfloat16
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU"))])
def test_bfloat16_agrees_with_float32_gradients_included(device):
    """Same weights, same batch, BatchNorm's statistics fixed.

    The losses are in float32 and agree within 0.1 %, all gradients together within 11 degrees.
    """
    torch.manual_seed(0)
    net = LiSiam(0.125).to(device).eval()
    clean, degraded = torch.randn(2, 4, 3, 48, 48, device=device)
    labels = torch.tensor([0, 1, 1, 0], device=device)
    mask = torch.randint(0, 2, (4, 48, 48), device=device)
    losses = []
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        net.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            first, second = net(clean, degraded)
        loss, parts = total_loss({1: first, 2: second}, labels, mask)
        assert first.region_logits.dtype == dtype
        assert first.seg_logits.dtype == first.cls_logits.dtype == torch.float32
        assert all(part.dtype == torch.float32 for part in parts.values())
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([weight.grad.flatten() for weight in net.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


# ---------------------------------------------------------------- several processes
def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path, capsys, monkeypatch):
    """Each process needs as many pairs as the others, and BatchNorm at least 2.

    Clusters set WORLD_SIZE for other reasons, so without torchrun it means nothing.
    """
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.join_processes({"batch_size": 5}) == (0, 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "set by torchrun")
    for size in (2, 5):
        flags = command(tmp_path / "none", tmp_path / "run", (1, 1, 1), "--batch-size", size)
        assert f"--batch-size {size}" in stopped(capsys, *flags)


def test_the_first_checkpoint_of_rank_0_does_not_stop_the_other_processes(tmp_path):
    """A slow process finds last.pt in the folder, but it is that of its own run."""
    pairs = data.TrainingPairs([], size=48)
    for rank in (0, 1):
        settings = {"out": str(tmp_path), "resume": False, "pretrained": "none"}
        run_folder = train.RunFolder(settings, pairs, rank)
        run_folder.begin(torch.nn.Linear(1, 1))
    assert read(tmp_path / "last.pt")["iteration"] == 0


CASES = [([], 1), ([], 2), ([], 3), (["--lambdas", 0, 1, 0], 1), (["--variant", "C"], 3)]


def losses_and_gradients(rank, world):
    """Each of CASES on this process's part of one batch: [(loss, {parameter: gradient})].

    A case is flags and a stage. BatchNorm and dropout stand still. In a second step PyTorch would
    complain about a parameter that got no gradient although it was waited for.
    """
    torch.manual_seed(0)
    clean, degraded = torch.randint(0, 256, (2, 4, 48, 48, 3), dtype=torch.uint8)
    batch = {"clean": clean, "degraded": degraded, "mask": torch.randint(0, 2, (4, 48, 48)),
             "label": torch.tensor([0, 1, 1, 0])}
    part = {name: tensor.chunk(world)[rank] for name, tensor in batch.items()}
    found = []
    for flags, stage in CASES:
        settings = train.parse_arguments(command("-", "-", (1, 1, 1), *flags))
        torch.manual_seed(rank)                 # rank 0 must hand its weights to the others
        net = build_network(settings)
        train.freeze(net, stage)
        parallel = train.parallel_network(net.eval(), settings, world)
        for _ in range(2):
            net.zero_grad()
            loss, _ = train.step_loss(parallel, part, settings, stage)
            loss.backward()
        gradients = {}
        for name, weight in net.named_parameters():
            gradients[name] = torch.zeros(1) if weight.grad is None else weight.grad
        found.append((loss.detach(), gradients))
    return found


def one_of_two_processes(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=60))
    torch.set_num_threads(1)
    torch.save(losses_and_gradients(rank, world=2), folder / f"rank{rank}.pt")
    torch.distributed.barrier()                 # nobody leaves while the other still talks
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_losses_and_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(one_of_two_processes, (tmp_path,), nprocs=2)
    ranks = [read(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    alone = losses_and_gradients(0, world=1)
    for (loss, gradients), (loss_0, grads_0), (loss_1, grads_1) in zip(alone, *ranks):
        torch.testing.assert_close((loss_0 + loss_1) / 2, loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grads_0, gradients, rtol=1e-4, atol=1e-5)
        assert_equal(grads_0, grads_1)


def test_dropout_is_another_one_for_another_seed_iteration_or_process():
    """torch's generator on the CPU looks at 32 bits only: a seed above them would reach nothing."""
    draws = set()
    for numbers in ((0, 7, 0), (1, 7, 0), (0, 8, 0), (0, 7, 1)):
        torch.manual_seed(train.mixed_seed(*numbers))
        draws.add(torch.rand(1).item())
    assert len(draws) == 4
    assert train.mixed_seed(1, 7, 0) == train.mixed_seed(1, 7, 0) < 2 ** 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_run_on_a_gpu_can_go_on_on_the_cpu(masked_tree, tmp_path, monkeypatch):
    """The optimizer's state asks for a fused kernel, which the CPU must be able to run, too."""
    flags = command(masked_tree, tmp_path / "run", (2, 2, 4), "--save-every", 1)
    with ctrl_c_after_the_save_of(6, monkeypatch):
        train.main([*flags, "--device", "cuda"])
    train.main([*flags, "--resume"])
    kept = read(tmp_path / "run" / "last.pt")["model"]
    assert all(tensor.isfinite().all() for tensor in kept.values())


# train.py, then what each process drew, how it seeded dropout, which parts of the network were in
# training mode, and what the weights became.
TRAIN_AND_TELL = """
import os
import sys

import torch

import data
import train

told = {"drawn": [], "seeds": [], "modes": []}
get_item = data.TrainingPairs.__getitem__
step_loss = train.step_loss

def get_and_tell(pairs, n):
    told["drawn"].append(n)
    return get_item(pairs, n)

def step_and_tell(net, *arguments):
    told["seeds"].append(torch.initial_seed())
    parts = net.module.named_children()
    told["modes"].append([name for name, part in parts if part.training])
    told["weights"] = dict(net.module.named_parameters())
    return step_loss(net, *arguments)

data.TrainingPairs.__getitem__ = get_and_tell
train.step_loss = step_and_tell
train.main(sys.argv[2:])
torch.save(told, f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
"""


def test_torchrun_with_two_processes_trains_validates_and_writes_one_run(masked_tree, tmp_path):
    """The val split has an odd number of frames, so that the shares of the processes differ."""
    (masked_tree / "manipulated_sequences/FaceSwap/c23/faces/672_720/0001.png").unlink()
    (tmp_path / "both.py").write_text(TRAIN_AND_TELL)
    out = tmp_path / "run"
    arguments = command(masked_tree, out, (2, 2, 2), "--save-every", 1, "--eval-every", 1)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node=2", tmp_path / "both.py", tmp_path, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, env=environment,
                          timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = steps_of(out)
    assert list(steps) == [1, 2, 3, 4, 5, 6]
    first, second = [read(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert first["drawn"] == [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21]     # of batches of 4
    assert second["drawn"] == [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23]
    assert len({*first["seeds"], *second["seeds"]}) == 12                   # of 2 x 6 steps
    assert_equal(first["weights"], second["weights"])           # gradients were averaged

    parts = ["backbone", "ocr", "f_seg", "f_scu", "f_mt", "f_mlp"]
    trained = {1: parts[:3], 2: parts[3:], 3: parts}
    expected = [trained[line["stage"]] for line in steps.values()]
    assert first["modes"] == second["modes"] == expected        # also after a validation

    row = validations_of(out)[6]
    result = val_result(out / "last.pt", masked_tree)
    assert row["frames"] == result["frames"] == 29
    for name in ("frame_auc", "video_auc", "masked_frames", "iou", "marked_real", "pixel_auc"):
        assert row[name] == pytest.approx(result[name], rel=1e-4), name
