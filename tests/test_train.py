"""train.py beside Sec. IV-B: the three stages, the rate, and a run that can be killed at any time.

Networks are as narrow as they can be (8 channels a layer), pictures have 48 x 48 pixels.
"""

import contextlib
import datetime
import functools
import json
import os
import random
import resource
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
from model import LiSiam, XceptionClassifier, build_network, load_network

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
def without_curves(monkeypatch):
    """As without matplotlib, to save time; test_evaluate.py draws training curves."""
    monkeypatch.setattr(evaluate, "matplotlib_figure", lambda: None)


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


def equal(first, second):
    """Whether two dicts of tensors are bit-identical."""
    if first.keys() != second.keys():
        return False
    return all(torch.equal(first[name], second[name]) for name in first)


def equal_runs(first, second):
    """Whether two checkpoints go on alike: weights, statistics, momentum, iteration, best AUC."""
    if first["iteration"] != second["iteration"] or first["best"] != second["best"]:
        return False
    states = zip(first["optimizer"]["state"].values(), second["optimizer"]["state"].values(),
                 strict=True)
    return equal(first["model"], second["model"]) and all(equal(a, b) for a, b in states)


def last_error(capsys):
    """The last line on standard error, without the bars before it."""
    return capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]


def stopped(capsys, *arguments):
    """The sentence with which train.py ends, exit status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return last_error(capsys)


# ---------------------------------------------------------------- Sec. IV-B: the settings
def test_a_new_row_of_variants_and_a_new_data_set_are_flags_at_once(monkeypatch):
    """README, 'Where to start changing things': a row says itself whether it has a transformer."""
    row = VARIANTS["A"]._replace(transformer=False)
    monkeypatch.setitem(VARIANTS, "H", row)
    monkeypatch.setattr(data, "TRAINABLE", (*data.TRAINABLE, "mine"))
    monkeypatch.setitem(data.ROOTS, "mine", "somewhere")
    settings = train.parse_arguments(["--data", "mine", "--variant", "H", "--width", "0.02"])
    assert build_network(settings).f_mt is None
    assert settings["root"] == "somewhere"


def test_the_defaults_are_the_papers_numbers():
    """Sec. IV-B: 146k, 16k, 324k iterations of 32 pairs, rate 0.002; III-E: 299 px, lambdas 1."""
    settings = train.parse_arguments(["--data", "ff++"])
    assert settings["iterations"] == [146_000, 16_000, 324_000]
    assert settings["batch_size"] == 32
    assert settings["lr"] == 0.002
    assert settings["size"] == 299
    assert settings["width"] == 1.0
    assert settings["lambdas"] == [1, 1, 1]
    assert settings["pretrained"] == "imagenet"


def test_a_flag_wins_over_the_demos_settings_and_those_over_the_papers():
    settings = train.parse_arguments(["--data", "demo", "--batch-size", "6"])
    assert settings["batch_size"] == 6
    assert settings["width"] == train.DEMO["width"] < train.PAPER["width"]
    assert settings["momentum"] == train.PAPER["momentum"]


def test_poly_rate_by_hand_and_its_end():
    """Sec. IV-B: 0.002 (1 - step / steps)^0.9; half way it is 0.002 * 0.5^0.9 = 0.0010718."""
    assert train.poly_lr(0, 100, 0.002) == 0.002
    assert train.poly_lr(50, 100, 0.002) == pytest.approx(0.00107177, rel=1e-5)
    assert 0 < train.poly_lr(99, 100, 0.002) < 0.002 * 0.016


def test_the_rate_restarts_in_each_stage_and_each_stage_has_its_losses(masked_tree, tmp_path):
    """Sec. IV-B, with SGD's momentum and weight decay as in the authors' release."""
    checkpoint = run(masked_tree, tmp_path / "run", (2, 2, 2), "--save-every", 1, "--lr", 0.002)
    steps = steps_of(tmp_path / "run")
    half = pytest.approx(0.002 * 0.5 ** 0.9)
    rates = {iteration: line["lr"] for iteration, line in steps.items()}
    assert rates == {1: 0.002, 2: half, 3: 0.002, 4: half, 5: 0.002, 6: half}
    losses = [set(line) & {"li", "cls", "seg", "aux"} for line in steps.values()]
    assert losses[0] == losses[1] == {"li", "seg", "aux"}
    assert losses[2] == losses[3] == {"cls"}
    assert losses[4] == losses[5] == {"li", "cls", "seg", "aux"}
    group = checkpoint["optimizer"]["param_groups"][0]
    assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)


def test_eq19_is_trained_with_the_weights_of_the_command_line(masked_tree, tmp_path):
    """Eq. (19): lambda_li L_li + lambda_cls L_cls + lambda_seg L_seg, and OCR's own loss."""
    run(masked_tree, tmp_path / "run", (1, 1, 1), "--save-every", 1,
        "--lambdas", 2, 3, 5, "--aux", 7)
    first, second, third = steps_of(tmp_path / "run").values()
    expected = 2 * first["li"] + 5 * first["seg"] + 7 * first["aux"]
    assert first["loss"] == pytest.approx(expected, rel=1e-5)
    assert second["loss"] == pytest.approx(3 * second["cls"], rel=1e-5)
    expected = 2 * third["li"] + 3 * third["cls"] + 5 * third["seg"] + 7 * third["aux"]
    assert third["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_first_stage_may_weigh_the_invariance_loss_less():
    """The demo starts from random weights, where L_li makes the map constant."""
    settings = {"variant": "A", "lambdas": [2, 3, 5], "aux": 7, "li_in_stage_1": 0.25}
    assert train.plan_of(settings, 1).lambdas == (0.5, 0, 5)
    assert train.plan_of(settings, 3).lambdas == (2, 3, 5)


# ---------------------------------------------------------------- Sec. IV-B: the three stages
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_frozen_parts_are_bit_identical_afterwards_batchnorm_statistics_included(
        stage, masked_tree, tmp_path):
    """Sec. IV-B: stage 1 leaves f_scu, f_mt and f_mlp alone, stage 2 f_cnn and f_seg.

    Everything else moves.
    """
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


@pytest.fixture
def black_copies(monkeypatch):
    """Each degraded copy is black, so that a test can tell it from the clean picture."""
    monkeypatch.setattr(data, "degrade", lambda image, rng: Image.new("RGB", image.size))


def kind_of(images):
    """c: a batch of clean pictures, d: of degraded ones, b: both, one after the other."""
    is_black = (images == -1).flatten(1).all(dim=1).tolist()
    if not any(is_black):
        return "c"
    if all(is_black):
        return "d"
    half = len(images) // 2
    assert is_black == [False] * half + [True] * half
    return "b"


TABLE_VI = {    # what stages 1, 2 and 3 run: c, d, b as above; a capital: f_scu, f_mt, f_mlp too
    "A": "cd C Cd",
    "B": "cd CD CD",
    "C": "C Cd",
    "D": "cd D cD",
    "E": "d D D",
    "F": "cd C Cd",
    "G": "b B B",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_its_branches_and_heads_in_each_stage(
        variant, masked_tree, tmp_path, black_copies, monkeypatch):
    """Table VI and Sec. IV-B, in train.py's own loop. Model-C skips stage 1."""
    ran = []
    branch = LiSiam.branch

    def note_branch(net, images, head):
        if net.training:                        # neither validation nor the picture of a batch
            kind = kind_of(images)
            ran.append(kind.upper() if head else kind)
        return branch(net, images, head)

    monkeypatch.setattr(LiSiam, "branch", note_branch)
    checkpoint = run(masked_tree, tmp_path / "run", (1, 1, 1), "--variant", variant)
    assert "".join(ran) == TABLE_VI[variant].replace(" ", "")
    assert checkpoint["iteration"] == len(TABLE_VI[variant].split())
    net, _ = load_network(tmp_path / "run" / "best.pt")
    assert (net.f_mt is None) == (variant == "F")


@pytest.mark.parametrize("flags, kind", [([], "c"), (["--iqd"], "d")])
def test_the_baseline_has_one_stage_no_masks_and_with_iqd_degraded_pictures_alone(
        flags, kind, tiny_tree, tmp_path, black_copies, monkeypatch):
    """Table I: as many iterations as LiSiam has. Table V: +IQD."""
    ran = []
    forward = XceptionClassifier.forward

    def note_forward(net, images):
        if net.training:
            ran.append(kind_of(images))
        return forward(net, images)

    monkeypatch.setattr(XceptionClassifier, "forward", note_forward)
    run(tiny_tree, tmp_path / "run", (1, 1, 2), "--save-every", 1, "--model", "xception", *flags)
    assert ran == [kind] * 4
    for line in steps_of(tmp_path / "run").values():
        assert line["stage"] == 3
        assert line["loss"] == line["cls"]
        assert "seg" not in line
    assert not list(tiny_tree.glob("manipulated_sequences/*/masks_ssim"))


def test_five_classes_train_a_head_of_five(masked_tree, tmp_path):
    """Fig. 5: real and the four methods."""
    run(masked_tree, tmp_path / "run", (1, 1, 1), "--num-classes", 5)
    net, settings = load_network(tmp_path / "run" / "best.pt")
    assert settings["num_classes"] == 5
    assert net(torch.zeros(1, 3, 48, 48)).cls_logits.shape == (1, 5)


def test_a_picture_of_what_it_sees_is_drawn_at_the_end_of_each_stage(masked_tree, tmp_path):
    run(masked_tree, tmp_path / "run", (1, 2, 1))
    names = sorted(path.name for path in (tmp_path / "run").glob("panel_*.png"))
    assert names == ["panel_000001.png", "panel_000003.png", "panel_000004.png"]


# ---------------------------------------------------------------- validation
def give_auc(monkeypatch, values):
    """Makes these the frame AUC of one validation after the other."""
    remaining = iter(values)
    summarize = evaluate.summarize

    def row_with_next_value(*arguments):
        return {**summarize(*arguments), "frame_auc": next(remaining)}

    monkeypatch.setattr(evaluate, "summarize", row_with_next_value)


def test_best_is_the_last_of_the_highest_val_auc(masked_tree, tmp_path, monkeypatch):
    """It is looked at from stage 2 on, from iteration 2; of equals the later has trained longer."""
    give_auc(monkeypatch, [0.5, 0.75, 0.25, 0.75])
    run(masked_tree, tmp_path / "run", (1, 2, 2), "--eval-every", 1)
    assert read(tmp_path / "run" / "best.pt")["iteration"] == 5


def test_what_validation_logs_is_what_evaluate_finds(masked_tree, tmp_path, capsys):
    """And the last line says how to test the weights that are kept."""
    out = tmp_path / "run"
    run(masked_tree, out, (1, 2, 3), "--eval-every", 1)
    rows = {line["iteration"]: line["val"] for line in log_of(out) if "val" in line}
    assert list(rows) == [2, 3, 4, 5, 6]
    row = rows[read(out / "best.pt")["iteration"]]
    net, settings = load_network(out / "best.pt")
    result = evaluate.evaluate(net, settings, "ff++", masked_tree, "c23", "val")
    assert row["frame_auc"] == max(row["frame_auc"] for row in rows.values())
    for name in ("frames", "frame_auc", "video_auc", "iou"):
        assert result[name] == pytest.approx(row[name])
    said = capsys.readouterr().out
    assert f"--checkpoint {out / 'best.pt'} --data ff++ --root {masked_tree}" in said


def test_without_real_val_videos_best_holds_the_last_weights(masked_tree, tmp_path, capsys):
    for video in data.list_videos("ff++", masked_tree, "c23", "val"):
        for frame in video.frames:
            if not video.label:
                frame.unlink()
    last = run(masked_tree, tmp_path / "run", (0, 1, 1))
    assert "last weights" in capsys.readouterr().out
    assert equal(last["model"], read(tmp_path / "run" / "best.pt")["model"])


def test_looking_at_the_network_does_not_change_it(masked_tree, tmp_path):
    """Validated and drawn at every step or at none: BatchNorm and dropout go on alike."""
    often = run(masked_tree, tmp_path / "often", (0, 2, 3), "--eval-every", 1, "--val-frames", 1)
    never = run(masked_tree, tmp_path / "never", (0, 2, 3))
    assert equal(often["model"], never["model"])


# ---------------------------------------------------------------- a user's mistakes
@pytest.mark.parametrize("flags, part", [
    ("--save-every 0", "--save-every"),
    ("--eval-every 0", "--eval-every"),
    ("--val-frames -1", "--val-frames"),
    ("--val-frames 0", "--val-frames"),
    ("--iterations 0 0 0", "--iterations"),
    ("--out=", "--out"),
    ("--root=", "--root"),
    ("--workers -1", "--workers"),
    ("--batch-size 1", "--batch-size"),
    ("--size 22", "--size"),
    ("--iterations 1 2", "--iterations"),
    ("--lr -1", "--lr"),
    ("--lr nan", "--lr"),
    ("--lambdas -1 1 1", "--lambdas"),
    ("--aux nan", "--aux"),
    ("--width 0", "--width"),
    ("--seed -1", "--seed"),
    ("--seed 2147483648", "--seed"),
    ("--variant H", "--variant"),
    ("--iqd", "--iqd"),
    ("--model xception --variant C", "--variant"),
    ("--model xception --lambdas 1 1 0", "--lambdas"),
    ("--lambdas 1 0 1", "stage 2 has nothing to train"),
    ("--lambdas 0 1 0 --aux 0", "stage 1 has nothing to train"),
    ("--no-such-flag", "--no-such-flag"),
    pytest.param("--device cuda", "no GPU", marks=pytest.mark.skipif(
        torch.cuda.is_available(), reason="has a GPU")),
])
def test_flags_that_make_no_sense_are_one_sentence_before_anything_starts(flags, part, capsys):
    with pytest.raises(SystemExit) as stop:
        train.parse_arguments(["--data", "ff++", *flags.split()])
    assert stop.value.code == 2
    sentence = capsys.readouterr().err
    assert part in sentence
    assert len(sentence.splitlines()) == 1


def test_a_stage_without_a_loss_is_allowed_where_it_has_no_iterations():
    flags = "--data ff++ --lambdas 1 0 1 --iterations 5 0 5"
    assert train.parse_arguments(flags.split())["lambdas"] == [1, 0, 1]


def test_without_data_one_sentence_says_where_it_looked_and_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(command(tmp_path / "none", tmp_path / "run", (1, 1, 1)))
    assert stop.value.code == 2
    sentence = capsys.readouterr().err
    assert len(sentence.splitlines()) == 1
    for part in (str(tmp_path / "none"), "github.com/ondyari/FaceForensics", "data.py faces",
                 "--data demo"):
        assert part in sentence


def test_missing_masks_are_said(tiny_tree, tmp_path, capsys):
    flags = command(tiny_tree, tmp_path / "run", (1, 1, 1), "--mask", "given")
    assert "mask" in stopped(capsys, *flags)


def test_every_broken_picture_and_mask_is_named_before_the_first_iteration(
        masked_tree, tmp_path, capsys):
    methods = masked_tree / "manipulated_sequences"
    broken = [masked_tree / "original_sequences/youtube/c23/faces/071/0001.png",
              methods / "Deepfakes/c23/faces/720_672/0000.png",             # a val video's
              methods / "FaceSwap/masks_ssim/054_071/0002.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SystemExit) as stop:
        run(masked_tree, tmp_path / "run", (1, 1, 1))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert all(str(path) in said for path in broken)
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_breaks_later_stops_the_run_with_its_path(workers, tiny_tree, capsys):
    videos = data.list_videos("ff++", tiny_tree, "c23", "train")
    pairs = data.TrainingPairs(videos, 48, mask=None)
    for frame in videos[0].frames:
        frame.write_bytes(b"")
    settings = {"batch_size": 16, "workers": workers, "device": "cpu"}
    with pytest.raises(SystemExit) as stop:
        list(train.load_batches(pairs, settings, range(1), 0, 1))
    assert stop.value.code == 2
    sentence = capsys.readouterr().err
    assert str(videos[0].frames[0].parent) in sentence
    assert "--resume" in sentence
    assert len(sentence.splitlines()) == 1


@pytest.mark.parametrize("lr", [1e18, 3e38])
def test_a_loss_or_weight_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(
        lr, masked_tree, tmp_path, capsys):
    """The first loss is finite, the weights after it are not."""
    flags = command(masked_tree, tmp_path / "run", (30, 0, 0), "--lr", lr, "--save-every", 1,
                    "--lambdas", 99, 99, 99)
    assert "--lr" in stopped(capsys, *flags)
    kept = read(tmp_path / "run" / "last.pt")
    assert kept["iteration"] == 0
    assert all(tensor.isfinite().all() for tensor in kept["model"].values())


def test_a_statistic_that_is_not_finite_stops_the_run(masked_tree, tmp_path, capsys):
    """BatchNorm's running mean is no parameter, and nothing of training reads it."""
    build = train.build_network

    def broken(settings):
        net = build(settings)
        net.backbone.bn1.running_mean[0] = float("inf")
        return net
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_network", broken)
        flags = command(masked_tree, tmp_path / "run", (30, 0, 0), "--save-every", 1)
        assert "norm" in stopped(capsys, *flags)


# ---------------------------------------------------------------- kill and resume
def test_a_folder_with_a_run_and_a_resume_with_other_settings_are_refused(
        masked_tree, tmp_path, capsys):
    out = tmp_path / "run"
    again = command(masked_tree, out, (1, 1, 1))
    train.main(again)
    whole = (out / "last.pt").read_bytes()
    assert "--resume" in stopped(capsys, *again)
    sentence = stopped(capsys, *again, "--resume", "--lr", "0.1")
    assert "lr = 0.002" in sentence
    assert "0.1" in sentence
    assert "variant = A" in stopped(capsys, *again, "--resume", "--variant", "B")
    assert "nothing to resume" in stopped(capsys, *again, "--resume", "--out", tmp_path / "other")
    assert (out / "last.pt").read_bytes() == whole
    (out / "last.pt").write_bytes(b"torn")
    assert "not a checkpoint" in stopped(capsys, *again, "--resume")


def test_a_new_run_makes_its_log_before_anything_else_so_there_can_be_one(
        masked_tree, tmp_path, capsys):
    """Two runs that start at once in one folder: the second finds the first one's log."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "log.jsonl").write_text("")
    assert "already holds a run" in stopped(capsys, *command(masked_tree, out, (1, 1, 1)))
    assert [path.name for path in out.iterdir()] == ["log.jsonl"]


def test_a_start_that_fails_leaves_nothing_behind(tiny_tree, tmp_path, capsys):
    """So the same command can be given again, once the picture is mended."""
    out = tmp_path / "run"
    path = tiny_tree / "original_sequences/youtube/c23/faces/071/0001.png"
    whole = path.read_bytes()
    path.write_bytes(b"")
    flags = command(tiny_tree, out, (1, 1, 1))
    with pytest.raises(SystemExit):
        train.main(flags)
    assert str(path) in capsys.readouterr().err
    assert not out.exists()
    path.write_bytes(whole)
    train.main(flags)
    assert read(out / "last.pt")["iteration"] == 3


def test_weights_that_cannot_be_had_are_said_before_masks_are_made(tiny_tree, tmp_path, capsys):
    flags = command(tiny_tree, tmp_path / "run", (1, 1, 1), "--pretrained", "typo.pth")
    assert "typo.pth" in stopped(capsys, *flags)
    assert not list(tiny_tree.glob("*/*/masks_ssim"))


def test_of_two_resumed_runs_in_one_folder_the_one_that_finds_the_others_file_stops(
        masked_tree, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    flags = command(masked_tree, out, (1, 1, 4), "--save-every", 1)
    with ctrl_c_after_the_save_of(3, out, monkeypatch):
        train.main(flags)
    other = tmp_path / "other"
    shutil.copytree(out, other)
    step_loss = train.step_loss

    def step_while_another_run_saves(*arguments):
        os.replace(other / "last.pt", out / "last.pt")
        monkeypatch.setattr(train, "step_loss", step_loss)
        return step_loss(*arguments)
    monkeypatch.setattr(train, "step_loss", step_while_another_run_saves)
    assert "another run has written" in stopped(capsys, *flags, "--resume")
    assert read(out / "last.pt")["iteration"] == 3


def test_a_best_pt_is_no_run_to_go_on_with(masked_tree, tmp_path, capsys):
    out = tmp_path / "run"
    flags = command(masked_tree, out, (0, 1, 1))
    train.main(flags)
    os.replace(out / "best.pt", out / "last.pt")
    assert "no run to go on with" in stopped(capsys, *flags, "--resume")


@pytest.mark.parametrize("entry", [
    {"iteration": "1"}, {"iteration": -1}, {"best": None}, {"optimizer": {"param_groups": []}},
    {"optimizer": {"state": {}, "param_groups": [{"params": [0]}]}}, "shapes",
], ids=str)
def test_a_damaged_checkpoint_is_not_resumed(entry, masked_tree, tmp_path, capsys):
    out = tmp_path / "run"
    flags = command(masked_tree, out, (2, 0, 0), "--save-every", 1)
    train.main(flags)
    last = read(out / "last.pt")
    if entry == "shapes":
        for momentum in last["optimizer"]["state"].values():
            momentum["momentum_buffer"] = torch.zeros(1, 2, 3)
        entry = {}
    torch.save({**last, "iteration": 1, **entry}, out / "last.pt")
    assert "last.pt" in stopped(capsys, *flags, "--resume")


def test_a_run_whose_log_was_deleted_goes_on_with_a_new_one(masked_tree, tmp_path):
    out = tmp_path / "run"
    flags = command(masked_tree, out, (2, 0, 0))
    train.main(flags)
    (out / "log.jsonl").unlink()
    train.main([*flags, "--resume"])
    assert (out / "log.jsonl").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_is_to_be_deleted(tmp_path, capsys,
                                                                            masked_tree):
    out = tmp_path / "run"
    out.mkdir()
    (out / "log.jsonl").touch()
    assert "delete the folder" in stopped(capsys, *command(masked_tree, out, (1, 0, 0)))


def test_what_a_killed_save_left_is_swept_up_by_resume(masked_tree, tmp_path):
    out = tmp_path / "run"
    flags = command(masked_tree, out, (1, 0, 0))
    train.main(flags)
    (out / ".last.pt.0123abcd.part").write_bytes(b"half")
    train.main([*flags, "--resume"])
    assert not list(out.glob(".*"))


def test_an_optimizers_state_takes_on_the_habits_of_the_device():
    """A state saved on CUDA asks for fused kernels, which the CPU must not take over."""
    settings = {**train.PAPER, "device": "cpu"}
    weight = torch.nn.Parameter(torch.ones(3))
    first = train.make_optimizer([weight], settings)
    weight.grad = torch.ones(3)
    first.step()
    state = first.state_dict()
    state["param_groups"][0]["fused"] = True
    again = train.make_optimizer([weight], settings, state)
    assert again.param_groups[0]["fused"] is False
    assert torch.equal(again.state[weight]["momentum_buffer"], torch.full((3,), 1 + 5e-4))


def test_another_seed_has_another_folder():
    assert train.parse_arguments(["--data", "demo"])["out"] == "runs/demo"
    named = train.parse_arguments(["--data", "ff++", "--seed", "3", "--variant", "G"])["out"]
    assert named == "runs/ff++-c23-lisiam-G-seed3"


@contextlib.contextmanager
def ctrl_c_after_the_save_of(iteration, out, monkeypatch):
    save = train.RunFolder.save

    def save_and_stop(*arguments, **more):
        save(*arguments, **more)
        if read(out / "last.pt")["iteration"] == iteration:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.RunFolder, "save", save_and_stop)
        yield


@pytest.mark.parametrize("last", [2, 3])
def test_a_run_stopped_at_the_end_of_a_stage_or_within_one_goes_on_as_if_it_had_not(
        last, masked_tree, tmp_path, monkeypatch):
    """Momentum starts anew in each stage, and is kept within one."""
    whole = run(masked_tree, tmp_path / "whole", (2, 2, 1))
    out = tmp_path / "stopped"
    with ctrl_c_after_the_save_of(last, out, monkeypatch):
        run(masked_tree, out, (2, 2, 1), "--save-every", 1)
    resumed = run(masked_tree, out, (2, 2, 1), "--save-every", 1, "--resume")
    assert equal_runs(resumed, whole)


def test_a_resumed_run_knows_the_best_auc_so_far(masked_tree, tmp_path, monkeypatch):
    give_auc(monkeypatch, [0.75, 0.5, 0.25])
    out = tmp_path / "run"
    flags = ("--save-every", 1, "--eval-every", 1)
    with ctrl_c_after_the_save_of(1, out, monkeypatch):
        run(masked_tree, out, (0, 1, 2), *flags)
    run(masked_tree, out, (0, 1, 2), *flags, "--resume")
    assert read(out / "best.pt")["iteration"] == 1


def wait_for_saves(path, count, process):
    """Returns a moment after the process has written `path` another `count` times."""
    stamp = path.stat().st_mtime_ns if path.exists() else None
    deadline = time.time() + 120
    while count and time.time() < deadline:
        assert process.poll() is None, "the process ended before it could be killed"
        if path.exists() and path.stat().st_mtime_ns != stamp:
            stamp = path.stat().st_mtime_ns
            count -= 1
        time.sleep(0.002)


def test_a_run_killed_three_times_ends_bit_identical_to_an_unbroken_one(masked_tree, tmp_path):
    """kill -9 wherever it is, then --resume, once with another number of loading processes.

    The same weights, momentum, best weights and log.
    """
    iterations = (25, 10, 25)
    flags = ("--save-every", 3, "--eval-every", 4, "--val-frames", 1)
    whole = run(masked_tree, tmp_path / "whole", iterations, *flags)
    out = tmp_path / "killed"
    program = [sys.executable, "train.py", *command(masked_tree, out, iterations, *flags)]
    chance = random.Random(0)
    for more in ([], ["--resume", "--workers", "1"], ["--resume"]):
        process = subprocess.Popen(program + more, cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for_saves(out / "last.pt", chance.randint(2, 4), process)
        time.sleep(chance.uniform(0, 0.05))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the process ended before it could be killed"
        read(out / "last.pt")                                               # never torn
    assert read(out / "last.pt")["iteration"] < 60
    resumed = run(masked_tree, out, iterations, *flags, "--resume")
    assert resumed["iteration"] == 60
    assert equal_runs(resumed, whole)
    best = [read(folder / "best.pt") for folder in (tmp_path / "whole", out)]
    assert best[0]["iteration"] == best[1]["iteration"]
    assert equal(best[0]["model"], best[1]["model"])
    assert log_of(out) == log_of(tmp_path / "whole")


def test_resume_forgets_what_the_log_says_after_the_checkpoint_and_a_torn_line(
        masked_tree, tmp_path):
    run(masked_tree, tmp_path / "run", (1, 1, 2))
    log = tmp_path / "run" / "log.jsonl"
    before = log.read_text()
    log.write_text(before + '{"iteration": 5, "stage": 3, "loss": 1.0}\n{"iteration": 6, "sta')
    run(masked_tree, tmp_path / "run", (1, 1, 2), "--resume")
    assert log.read_text() == before


@contextlib.contextmanager
def largest_file(size):
    """No file may grow past `size` bytes: a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_checkpoint_whole_and_the_run_goes_on_later(
        masked_tree, tmp_path, capsys):
    """The checkpoint of iteration 1 holds momentum as well, and does not fit any more."""
    whole = run(masked_tree, tmp_path / "whole", (2, 0, 0), "--save-every", 1)
    torch.save(whole["model"], tmp_path / "model.pt")
    sizes = [path.stat().st_size for path in (tmp_path / "model.pt", tmp_path / "whole/last.pt")]
    out = tmp_path / "run"
    flags = command(masked_tree, out, (2, 0, 0), "--save-every", 1)
    capsys.readouterr()
    with largest_file(sum(sizes) // 2), pytest.raises(SystemExit) as stop:
        data.run(functools.partial(train.main, flags), "the advice")
    assert stop.value.code == 2
    sentence = last_error(capsys)
    assert str(out / "last.pt") in sentence
    assert "the advice" in sentence
    assert read(out / "last.pt")["iteration"] == 0
    assert sorted(path.name for path in out.iterdir()) == ["last.pt", "log.jsonl"]
    resumed = run(masked_tree, out, (2, 0, 0), "--save-every", 1, "--resume")
    assert equal_runs(resumed, whole)


# ---------------------------------------------------------------- the demo
def test_the_demo_ends_with_a_table_of_its_test_split_in_all_qualities(tmp_path, capsys):
    """On FF++'s tiny tree under the demo's name; its split is written beside it."""
    root = write_tiny_tree(tmp_path / "demo", data.QUALITIES)
    (root / "splits").mkdir()
    for split, pairs in data.FFPP_PAIRS.items():
        pair = pairs.split()[0].split("_")
        (root / "splits" / f"{split}.json").write_text(json.dumps([pair]))
    out = tmp_path / "run"
    train.main(["--data", "demo", "--root", str(root), "--out", str(out), *SMALL,
                "--iterations", "1", "1", "1"])
    report = json.loads((out / "test.json").read_text())[0]
    assert report["settings"]["data"] == "demo"
    assert [result["quality"] for result in report["results"]] == ["c0", "c23", "c40"]
    for result in report["results"]:
        assert (result["split"], result["frames"]) == ("test", 30)
    said = capsys.readouterr().out
    assert all(f"demo {quality} test" in said for quality in data.QUALITIES)


# ---------------------------------------------------------------- bfloat16
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU"))])
def test_bfloat16_agrees_with_float32_gradients_included(device):
    """Same weights, same batch, BatchNorm's statistics fixed.

    The losses are in float32 and agree within 0.1 %, all gradients together within 11 degrees.
    """
    torch.manual_seed(0)
    net = LiSiam(0.125).to(device).eval()
    clean = torch.randn(4, 3, 48, 48, device=device)
    degraded = torch.randn(4, 3, 48, 48, device=device)
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
@pytest.mark.parametrize("world", [2, 4])
def test_the_draws_of_all_processes_together_are_those_of_one(world):
    """A data set of numbers shows which are drawn, here in iterations 7 and 8 of batches of 8."""
    settings = {"batch_size": 8, "workers": 0, "device": "cpu"}
    parts = []
    for rank in range(world):
        parts.append(list(train.load_batches(range(100), settings, range(7, 9), rank, world)))
    alone = list(train.load_batches(range(100), settings, range(7, 9), 0, 1))
    together = [torch.cat(of_all) for of_all in zip(*parts, strict=True)]
    assert [batch.tolist() for batch in together] == [batch.tolist() for batch in alone]
    assert [batch.tolist() for batch in alone] == [list(range(56, 64)), list(range(64, 72))]


@pytest.mark.parametrize("size", [2, 5])
def test_a_batch_that_cannot_be_shared_out_is_refused(size, tmp_path, capsys, monkeypatch):
    """Each process needs as many pairs as the others, and BatchNorm at least 2."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **more: None)
    flags = command(tmp_path / "none", tmp_path / "run", (1, 1, 1), "--batch-size", size)
    assert f"--batch-size {size}" in stopped(capsys, *flags)


def loss_and_gradients(net, clean, degraded, labels, mask):
    """Eq. (19) of one batch: the loss; the gradients stay in the network."""
    first, second = net(clean, degraded)
    loss, _ = total_loss({1: first, 2: second}, labels, mask)
    loss.backward()
    return loss.detach()


SHARED = {"lambdas": [1, 1, 1], "aux": 0.4, "device": "cpu"}


def half_of_the_batch(rank, folder):
    """One of two gloo processes: half of a batch through train.py's wrapper, BatchNorm fixed."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=60))
    torch.set_num_threads(1)
    model, batch = torch.load(folder / "batch.pt", weights_only=True)
    net = LiSiam(0.02)
    net.load_state_dict(model)
    parallel = train.parallel_network(net.eval(), SHARED, 2)
    half = [tensor[2 * rank:2 * rank + 2] for tensor in batch]
    loss = loss_and_gradients(parallel, *half)
    torch.distributed.all_reduce(loss)
    if rank == 0:
        gradients = {name: weight.grad for name, weight in net.named_parameters()}
        torch.save([loss / 2, gradients], folder / "together.pt")
    torch.distributed.barrier()                 # nobody leaves while the other still talks
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path):
    torch.manual_seed(0)
    net = LiSiam(0.02).eval()
    batch = [torch.randn(4, 3, 48, 48), torch.randn(4, 3, 48, 48), torch.tensor([0, 1, 1, 0]),
             torch.randint(0, 2, (4, 48, 48))]
    torch.save([net.state_dict(), batch], tmp_path / "batch.pt")
    loss = loss_and_gradients(net, *batch)
    torch.multiprocessing.spawn(half_of_the_batch, (tmp_path,), nprocs=2)
    loss_together, gradients = read(tmp_path / "together.pt")
    torch.testing.assert_close(loss_together, loss, rtol=1e-5, atol=1e-5)
    for name, weight in net.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_dropout_is_another_one_for_another_seed_iteration_or_process():
    """torch's generator on the CPU looks at 32 bits only: a seed above them would reach nothing."""
    draws = set()
    for numbers in ((0, 7, 0), (1, 7, 0), (0, 8, 0), (0, 7, 1)):
        torch.manual_seed(train.mixed_seed(*numbers))
        draws.add(torch.rand(1).item())
    assert len(draws) == 4
    assert train.mixed_seed(1, 7, 0) == train.mixed_seed(1, 7, 0) < 2 ** 32


# train.py, then what each process drew, how it seeded dropout, and what its weights became.
TRAIN_AND_TELL = """
import os
import sys

import torch

import data
import train

drawn = []
seeds = []
networks = []
get_item = data.TrainingPairs.__getitem__
build_network = train.build_network
step_loss = train.step_loss

def note_draw(pairs, n):
    drawn.append(n)
    return get_item(pairs, n)

def note_network(settings):
    networks.append(build_network(settings))
    return networks[-1]

def note_seed(*arguments):
    seeds.append(torch.initial_seed())
    return step_loss(*arguments)

data.TrainingPairs.__getitem__ = note_draw
train.build_network = note_network
train.step_loss = note_seed
train.main(sys.argv[2:])
weights = dict(networks[0].named_parameters())
torch.save([drawn, seeds, weights], f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
"""


def test_several_processes_do_not_write_masks(tiny_tree, tmp_path, monkeypatch, capsys):
    """It may take half an hour, and the others would wait: the sentence says what to run first."""
    monkeypatch.setattr(train, "join_processes", lambda settings: (0, 2))
    sentence = stopped(capsys, *command(tiny_tree, tmp_path / "run", (1, 1, 1)))
    assert "python masks.py" in sentence
    assert not list(tiny_tree.glob("*/*/masks_ssim"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_trains_saves_resumes_validates_and_is_tested(
        masked_tree, tmp_path, monkeypatch):
    out = tmp_path / "run"
    flags = command(masked_tree, out, (2, 2, 4), "--save-every", 2, "--eval-every", 2)
    flags[flags.index("--device") + 1] = "cuda"
    with ctrl_c_after_the_save_of(6, out, monkeypatch):
        train.main(flags)
    train.main([*flags, "--resume"])
    assert list(steps_of(out)) == [2, 4, 6, 8]
    assert all(tensor.isfinite().all() for tensor in read(out / "last.pt")["model"].values())
    arguments = ["--checkpoint", out / "best.pt", "--root", masked_tree, "--workers", 0,
                 "--device", "cuda", "--json", tmp_path / "test.json"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()
    result = json.loads((tmp_path / "test.json").read_text())[0]["results"][0]
    assert (result["frames"], result["masked_frames"]) == (30, 24)


@pytest.mark.parametrize("flags", [[], ["--lambdas", 0, 1, 0]])
def test_torchrun_with_two_processes_trains_all_stages_and_writes_one_run(
        flags, masked_tree, tmp_path):
    """Also with losses off: in stage 1 f_seg then has no gradient, and nobody waits for one."""
    script = tmp_path / "both.py"
    script.write_text(TRAIN_AND_TELL)
    out = tmp_path / "run"
    arguments = command(masked_tree, out, (2, 2, 2), "--save-every", 1, *flags)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node=2", script, tmp_path, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, env=environment,
                          timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read(out / "last.pt")["iteration"] == 6
    assert list(steps_of(out)) == [1, 2, 3, 4, 5, 6]
    assert len(log_of(out)) == 8                                    # and two validations
    drawn, seeds, weights = read(tmp_path / "rank0.pt")
    other_drawn, other_seeds, other_weights = read(tmp_path / "rank1.pt")
    assert drawn == [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21]      # of batches of 4
    assert other_drawn == [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23]
    assert len({*seeds, *other_seeds}) == 12                        # of 2 x 6 steps
    assert equal(weights, other_weights)                            # gradients were averaged
