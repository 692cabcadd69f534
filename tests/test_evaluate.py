"""evaluate.py beside Sec. IV-A4 and IV-C: metrics against counting, videos kept apart, checkpoints that cannot be trusted."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from conftest import ROOT, write_tiny_tree
from PIL import Image

import data
import evaluate
import masks


SETTINGS = {"model": "lisiam", "variant": "A", "iqd": False, "mask": "ssim", "num_classes": 2, "data": "ff++", "quality": "c23", "size": 48,
            "width": 0.0625, "seed": 0, "out": "runs/x", "as_published": False, "iterations": [1, 1, 1], "batch_size": 2, "optimizer": "sgd",
            "lr": 0.002, "lambdas": [1.0, 1.0, 1.0], "aux": 0.4, "augment": False, "pretrained": "none"}


def counted_auc(labels, scores):
    """AUC by its meaning: over all pairs (fake, real), the share that the fake wins; a tie is half a win."""
    fakes, reals = scores[labels == 1], scores[labels == 0]
    return np.mean([(f > r) + 0.5 * (f == r) for f in fakes for r in reals])


@pytest.mark.parametrize("levels", [2, 5, 10 ** 9])
def test_auc_equals_counting_pairs_ties_included(levels):
    rng = np.random.default_rng(levels)
    labels, scores = rng.integers(0, 2, 60), rng.integers(0, levels, 60).astype(float)
    assert evaluate.auc(labels, scores) == pytest.approx(counted_auc(labels, scores), abs=1e-12)
    assert evaluate.auc(labels, -scores) == pytest.approx(1 - counted_auc(labels, scores), abs=1e-12)


def test_auc_of_constant_scores_is_one_half_and_of_one_class_undefined():
    assert evaluate.auc([0, 1, 1], [7, 7, 7]) == 0.5
    assert evaluate.auc([1, 1], [0.1, 0.9]) is None and evaluate.auc([0], [0.3]) is None
    assert evaluate.histogram_auc(np.zeros(4), np.ones(4)) is None
    assert evaluate.accuracy([1, 1], [0.9, 0.1], of=0) is None
    assert evaluate.show(None) == "n/a"


def test_the_area_under_the_roc_curve_is_the_auc():
    rng = np.random.default_rng(4)
    labels, scores = rng.integers(0, 2, 50), rng.integers(0, 9, 50) / 9
    false, true = evaluate.roc(labels, scores)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(counted_auc(labels, scores))
    assert len(evaluate.roc(labels, rng.random(50), points=10)[0]) <= 11 and evaluate.roc([1, 1], [0.2, 0.3]) is None


def test_intervals_draw_videos_not_frames():
    """Whole videos are drawn with replacement, reals and fakes apart; written out here with lists of copied frames."""
    rng = np.random.default_rng(5)
    real, fake = [2, 5, 8, 10, 11], [3, 7, 9, 12, 14, 15]            # indices with gaps: some videos had no readable frame
    video = np.repeat(sorted(real + fake), rng.integers(1, 7, 11))
    labels = np.isin(video, fake).astype(int)
    scores = np.clip(0.3 * labels + rng.normal(0.3, 0.3, len(video)), 0, 1)
    found = evaluate.intervals(labels, scores, video)
    assert list(found) == ["frame_acc", "frame_auc", "video_acc", "video_auc"]
    samples = []
    for _ in range(3000):
        drawn = [*rng.choice(fake, 6), *rng.choice(real, 5)]
        s, y = np.concatenate([scores[video == v] for v in drawn]), np.concatenate([labels[video == v] for v in drawn])
        m, t = np.array([scores[video == v].mean() for v in drawn]), np.isin(drawn, fake).astype(int)
        samples.append([((s > 0.5) == y).mean(), counted_auc(y, s), ((m > 0.5) == t).mean(), counted_auc(t, m)])
    np.testing.assert_allclose(list(found.values()), np.percentile(samples, [2.5, 97.5], axis=0).T, atol=0.06)
    assert evaluate.intervals(np.arange(9) < 4, np.ones(9), np.arange(9)) == {}       # four fakes say nothing about their spread


def test_histogram_auc_equals_counting_pixel_pairs():
    rng = np.random.default_rng(0)
    untouched, forged = rng.integers(0, 4, 8), rng.integers(0, 4, 8)
    scores = np.concatenate([np.repeat(np.arange(8), untouched), np.repeat(np.arange(8), forged)])
    labels = np.repeat([0, 1], [untouched.sum(), forged.sum()])
    assert evaluate.histogram_auc(untouched, forged) == pytest.approx(counted_auc(labels, scores))


def test_accuracy_is_at_one_half_and_by_class():
    labels, scores = np.array([0, 0, 0, 1]), np.array([0.5, 0.2, 0.7, 0.6])
    assert evaluate.accuracy(labels, scores) == 0.75            # 0.5 itself is not "fake"
    assert evaluate.accuracy(labels, scores, of=0) == pytest.approx(2 / 3)
    assert evaluate.accuracy(labels, scores, of=1) == 1


def test_a_video_scores_the_mean_of_its_frames_even_of_one():
    means, indices = evaluate.video_scores(np.array([0.2, 0.4, 0.9]), np.array([4, 4, 7]))
    np.testing.assert_allclose(means, [0.3, 0.9])
    assert indices.tolist() == [4, 7]


def fake_videos(*rows):
    return [data.Video("ff++", method, id, int(method != "real"), {}, {}, {}) for method, id in rows]


def predictions(score, video, videos):
    n = len(score)
    return {"score": np.array(score), "video": np.array(video), "iou": np.full(n, np.nan), "unreadable": [],
            "untouched": np.zeros((videos, 4)), "forged": np.zeros((videos, 4))}


def test_videos_of_the_same_name_in_two_methods_stay_two():
    """000_003 is a Deepfakes and a FaceSwap video; merged by name their mean would be 0.5 for both, and video AUC another."""
    videos = fake_videos(("real", "000"), ("Deepfakes", "000_003"), ("FaceSwap", "000_003"))
    assert len({video.key for video in videos}) == 3
    row = evaluate.summarize(predictions([0.4, 0.4, 0.9, 0.9, 0.1, 0.1], [0, 0, 1, 1, 2, 2], 3), videos)
    assert (row["videos"], row["frames"], row["video_auc"]) == (3, 6, 0.5)      # beats Deepfakes' real once of two
    assert row["video_acc_fake"] == 0.5 and row["video_acc_real"] == 1
    assert evaluate.summarize(predictions([0.4, 0.9, 0.1], [0, 1, 2], 3), videos, "FaceSwap")["frame_auc"] == 0


def test_frame_and_video_level_differ_where_frames_are_uneven():
    videos = fake_videos(("real", "0"), ("Deepfakes", "0_1"), ("real", "1"))
    scores, video = [0.6, 0.1, 0.1, 0.5, 0.5, 0.2], [0, 0, 0, 1, 1, 2]
    row = evaluate.summarize(predictions(scores, video, 3), videos)
    assert row["frame_auc"] == pytest.approx(counted_auc(np.array([0, 0, 0, 1, 1, 0]), np.array(scores))) == 0.75
    assert row["video_auc"] == 1                                # means: 0.267, 0.5, 0.2


class Stub(torch.nn.Module):
    """Says 'fake' by the mean brightness of the picture, and draws the map 'fake' in its left half."""

    def forward(self, images):
        fake = images.mean((1, 2, 3)) * 10
        seg = torch.full((len(images), 2, 4, 4), 0.0)
        seg[:, 1, :, :2], seg[:, 1, :, 2:] = 9.0, -9.0
        return types.SimpleNamespace(cls_logits=torch.stack([torch.zeros_like(fake), fake], 1), seg_logits=seg)


def test_a_whole_evaluation_agrees_with_one_by_hand(tiny_tree):
    masks.write_masks("ff++", tiny_tree, "ssim", workers=1)
    result = evaluate.evaluate(Stub(), SETTINGS, "ff++", tiny_tree, "c23", "test", batch_size=7)
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    scores, labels, owner, ious, inside, maps = [], [], [], [], [], []
    for number, video in enumerate(videos):
        for frame, path in video.frames.items():
            mean = np.asarray(data.read_image(path)).mean() / 255 * 2 - 1
            scores.append(1 / (1 + np.exp(-10 * mean)))
            labels.append(video.label)
            owner.append(number)
            if video.label:
                mask = data.read_mask(video.masks[frame], 48)
                left = np.zeros((48, 48), bool)
                left[:, :24] = True                             # bilinear between 9 and -9 crosses 0.5 at the middle
                ious.append((mask & left).sum() / (mask | left).sum())
                _, (probs,) = evaluate.judge(Stub(), [data.read_image(path)], 48)
                inside.append(mask.ravel()[::7])                # some of the pixels: counting all pairs takes long
                maps.append(probs.ravel()[::7])
    scores, labels, owner = np.array(scores), np.array(labels), np.array(owner)
    assert (result["frames"], result["videos"], result["real_videos"], result["masked_frames"]) == (30, 10, 2, 24)
    assert result["frame_auc"] == pytest.approx(counted_auc(labels, scores))
    means = np.array([scores[owner == v].mean() for v in range(10)])
    assert result["video_auc"] == pytest.approx(counted_auc(np.array([v.label for v in videos]), means))
    assert result["frame_acc"] == pytest.approx(((scores > 0.5) == labels).mean())
    assert result["iou"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert result["pixel_auc"] == pytest.approx(counted_auc(np.concatenate(inside), np.concatenate(maps)), abs=2e-3)   # bins of 0.001
    assert list(result["methods"]) == list(data.METHODS)
    chosen = np.isin(owner, [v for v, video in enumerate(videos) if video.method in ("real", "Face2Face")])
    assert result["methods"]["Face2Face"]["frame_auc"] == pytest.approx(counted_auc(labels[chosen], scores[chosen]))
    text = evaluate.table(SETTINGS, [result])
    assert "30" in text and f"{result['frame_auc']:.3f}" in text and "NeuralTextures" in text
    json.dumps(result)                                          # --json writes it


def test_without_masks_localization_is_not_available_and_nothing_is_written(tiny_tree):
    result = evaluate.evaluate(Stub(), SETTINGS, "ff++", tiny_tree, "c23", "test")
    assert result["iou"] is None and result["pixel_auc"] is None and result["masked_frames"] == 0
    assert "n/a" in evaluate.table(SETTINGS, [result]) and not list(tiny_tree.glob("**/masks_ssim"))


def test_an_unreadable_frame_is_left_out_and_counted_beside_the_number(tiny_tree):
    path = tiny_tree / "original_sequences/youtube/c23/faces/953/0001.png"
    path.write_bytes(path.read_bytes()[:60])
    result = evaluate.evaluate(Stub(), SETTINGS, "ff++", tiny_tree, "c23", "test")
    assert (result["frames"], result["unreadable"]) == (29, 1)
    assert "1 frames could not be read" in evaluate.table(SETTINGS, [result]) and str(path) in evaluate.table(SETTINGS, [result])


def test_five_classes_give_one_minus_the_chance_of_real(tiny_tree):
    """Fig. 5: P(fake) = 1 - P(real), whichever of the four forgeries it is."""
    class Five(torch.nn.Module):
        def forward(self, images):
            return torch.log(torch.tensor([[0.3, 0.1, 0.2, 0.25, 0.15]])).expand(len(images), 5)
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    np.testing.assert_allclose(evaluate.predict(Five(), videos, 48, bar=None)["score"], 0.7, rtol=1e-6)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("content", ["missing", "empty", "text", "hostile", "other"])
def test_a_wrong_or_hostile_checkpoint_gets_one_sentence_and_runs_no_code(content, tmp_path, capsys):
    path, trap = tmp_path / "best.pt", tmp_path / "trap"
    if content == "hostile":
        torch.save({"settings": Hostile(trap), "model": {}}, path)
        with open(path, "rb") as file, pytest.raises(pickle.UnpicklingError):
            torch.load(file, weights_only=True)
    elif content == "other":
        torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, path)
    elif content != "missing":
        path.write_text("" if content == "empty" else "these are no weights")
    with pytest.raises(SystemExit) as stop:
        evaluate.load_network(path)
    sentence = capsys.readouterr().err
    assert stop.value.code == 2 and str(path) in sentence and len(sentence.strip().splitlines()) == 1 and not trap.exists()


def test_the_command_line_answers_help_and_a_wrong_path_without_traceback():
    done = subprocess.run([sys.executable, "evaluate.py", "--checkpoint", "nowhere.pt"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "nowhere.pt" in done.stderr and "Traceback" not in done.stderr


# ---------------------------------------------------------------- Tables I to VII
def result_of(data_set="ff++", quality="c23", **numbers):
    return {**dict.fromkeys(evaluate.COLUMNS, 0.5), "data": data_set, "quality": quality, "split": "test", "limit": None, "methods": {},
            "frames": 64_600, "real_frames": 13_995, "unreadable": 10, "videos": {"ff++": 700, "celeb-df-v2": 518}.get(data_set, 80), **numbers}


def test_the_papers_numbers_are_those_of_its_tables():
    """A cell of each table, typed from the paper; the sums of all (each once, whatever tables repeat it); no cell without a number."""
    published = {**SETTINGS, "as_published": True}
    for change, result, name, number in (
            ({}, result_of(), "frame_auc", "99.13"), ({"quality": "c40"}, result_of(quality="c40"), "video_acc", "91.29"),
            ({}, result_of("celeb-df-v2", None), "frame_auc", "78.21"), ({"quality": "c0"}, result_of(quality="c40"), "video_auc", "83.52"),
            ({"model": "xception", "iqd": True}, result_of(quality="c40"), "video_auc", "86.23"),
            ({"variant": "F", "quality": "c40"}, result_of(quality="c40"), "video_auc", "94.01"),
            ({"mask": "diff", "quality": "c40"}, result_of(quality="c40"), "video_acc", "89.85")):
        assert evaluate.paper_number({**published, **change}, result, name) == number
    for name, total in {"frame_acc": 884.46, "frame_auc": 1177.04, "video_acc": 1096.99, "video_auc": 3207.67}.items():
        assert sum(float(row[name]) for row in evaluate.PAPER_NUMBERS.values() if row[name] != "-") == pytest.approx(total)
    for _, models, trained, tests, names in evaluate.TABLES.values():
        assert "-" not in [evaluate.PAPER_NUMBERS[model, quality or test, test][name] for model in models for quality in trained or (None,)
                           for test in tests for name in names]


@pytest.mark.parametrize("change", [
    {"as_published": False}, {"variant": "B"}, {"num_classes": 5}, {"quality": "c0"}, {"split": "val"}, {"limit": 10}, {"videos": 4},
    {"frames": 7_000, "real_frames": 1_400}, {"real_frames": 14_100}])
def test_nothing_of_the_paper_stands_beside_a_run_that_differs(change):
    published, result = {**SETTINGS, "as_published": True}, result_of()
    assert evaluate.paper_number(published, result, "frame_auc") == "99.13"
    published.update({k: v for k, v in change.items() if k in published})
    result.update({k: v for k, v in change.items() if k in result and k != "quality"})
    assert evaluate.paper_number(published, result, "frame_auc") is None


def test_tables_collect_runs_average_seeds_and_say_what_was_not_run(tmp_path):
    numbers = {"frame_auc": 0.5, "video_auc": 0.9, "frame_acc": 0.25, "video_acc": 0.75, "iou": None}
    for seed, auc in enumerate((0.98, 0.96)):
        report = [{"settings": {**SETTINGS, "seed": seed, "as_published": True}, "results": [result_of(**{**numbers, "frame_auc": auc})]}]
        (tmp_path / f"{seed}.json").write_text(json.dumps(report))
    demo = [{"settings": {**SETTINGS, "data": "demo"}, "results": [result_of("demo", **numbers)]}]
    (tmp_path / "demo.json").write_text(json.dumps(demo))
    text = evaluate.paper_tables(sorted(tmp_path.glob("*.json")))
    by_demo, by_paper = text.split("## Trained on ff++, as published")
    assert "Trained on demo, iterations [1, 1, 1]" in by_demo and "paper" not in by_demo
    assert "| LiSiam | as tested | 25.00 | 50.00 | not run | not run |" in by_demo                                  # Table I
    assert "| LiSiam | as tested | 25.00 ± 0.00 (2) (paper: 96.51) | 97.00 ± 1.41 (2) (paper: 99.13) | not run | not run |" in by_paper
    assert "Trained on ff++, as published, tested on 2 frames a video" not in text
    assert "| Model-G | as tested | not run | not run | not run | not run |" in by_paper                            # Table VI
    assert all(f"### {table}: " in by_paper for table in evaluate.TABLES)
    quick = [{"settings": {**SETTINGS, "as_published": True}, "results": [result_of(**{**numbers, "limit": 2})]}]
    (tmp_path / "0_quick.json").write_text(json.dumps(quick))                 # a hasty test of run 0 does not replace the whole one
    again = evaluate.paper_tables(sorted(tmp_path.glob("*.json")))
    assert by_paper in again and "as published, tested on 2 frames a video" in again


@pytest.mark.parametrize("text", ["", "[]x", '{"a": 1}', "[1]", '[{"settings": {}, "results": []}]', '[{"settings": [], "results": []}]'])
def test_a_file_that_holds_no_results_gets_one_sentence(text, tmp_path, capsys):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SystemExit):
        evaluate.paper_tables([tmp_path / "x.json"])
    assert "x.json is not a result of evaluate.py" in capsys.readouterr().err


# ---------------------------------------------------------------- Sec. IV-G: Grad-CAM
@pytest.mark.parametrize("name", ["lisiam", "xception"])
def test_grad_cam_weights_channels_by_how_the_fake_logit_moves_with_them(name):
    """Finite differences: raise one channel of the last map everywhere by a little, see how much the fake logit rises."""
    torch.manual_seed(0)
    net = evaluate.build_network({**SETTINGS, "model": name}).double().eval()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 2 - 1
    feats = []

    def logits_with(channel, step):
        def raise_feats(module, inputs, output):                         # X_I, before everything that reads it
            feats.append(output[0])
            return output[0] + step * one_hot(channel, output[0].shape[1])[:, None, None], output[1]

        def raise_pooled(module, inputs):                                # raised everywhere = its mean raised
            return inputs[0] + step * one_hot(channel, inputs[0].shape[1]),

        hook = net.ocr.register_forward_hook(raise_feats) if name == "lisiam" else net.fc.register_forward_pre_hook(raise_pooled)
        output = net(images)
        hook.remove()
        return output.cls_logits if name == "lisiam" else output

    def one_hot(channel, channels):
        return (torch.arange(channels) == channel).double()

    with torch.no_grad():
        if name == "lisiam":
            logits_with(0, 0)
        else:
            net.fc.weight[1].abs_()                                      # else nothing speaks for fake in this random network
            feats.append(torch.relu(net.bn4(net.conv4(torch.relu(net.bn3(net.conv3(net.backbone(images)[0])))))))
        weights = torch.stack([(logits_with(c, 1e-5) - logits_with(c, -1e-5))[:, 1] / 2e-5 for c in range(feats[0].shape[1])], 1)
    heat = (weights[:, :, None, None] * feats[0]).sum(1, keepdim=True).clamp(min=0).float()
    heat = torch.nn.functional.interpolate(heat, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    assert heat.amax((1, 2)).min() > 0
    torch.testing.assert_close(evaluate.grad_cam(net, images), heat / heat.amax((1, 2), keepdim=True), atol=1e-4, rtol=1e-3)


def test_heat_share_against_chance(tiny_tree, monkeypatch):
    """Heat on the left half, however strong, and a mask: the share inside is counted from the pixels; chance is the mask's size."""
    masks.write_masks("ff++", tiny_tree, "ssim", workers=1)
    left = torch.zeros(1, 48, 48)
    left[:, :, :24] = 0.7
    monkeypatch.setattr(evaluate, "grad_cam", lambda net, images: left)
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    share, chance, frames = evaluate.heat_in_mask(None, SETTINGS, videos)
    inside = [data.read_mask(video.masks[1], 48) for video in videos if video.label]
    assert frames == 8 and chance == pytest.approx(np.mean([mask.mean() for mask in inside]))
    assert share == pytest.approx(np.mean([mask[:, :24].sum() / (48 * 24) for mask in inside]))
    assert evaluate.heat_in_mask(None, SETTINGS, []) == (None, None, 0)


# ---------------------------------------------------------------- figures and the sweep
def test_a_plot_puts_its_points_where_the_axes_say():
    picture = np.asarray(evaluate.plot("t", "x", "y", (0, 1), (0, 1), [("a", [0.25, 0.75], [0.5, None], "red", "dots")]))
    red = np.argwhere((picture == (255, 0, 0)).all(-1) & (np.arange(picture.shape[1]) < 430))
    np.testing.assert_allclose(red.mean(0), [52 + 140, 58 + 93], atol=1.5)                # the gap is not drawn
    picture = np.asarray(evaluate.plot("t", "x", "y", (0, 4), (0, 1), [("a", range(5), [0.5, 0.5, None, 0.5, 0.5], "red", "line")]))
    columns = {column for _, column in np.argwhere((picture == (255, 0, 0)).all(-1)) if column < 430}
    assert columns == {*range(58, 152), *range(337, 430)}                               # no line across the gap


def test_every_figure_is_drawn_from_a_tree_and_two_networks(tmp_path, monkeypatch, capsys):
    root = write_tiny_tree(tmp_path / "tree", ("c23", "c40"))
    masks.write_masks("ff++", root, "ssim", workers=1)
    paths = []
    for name in ("xception", "lisiam"):
        settings = {**SETTINGS, "model": name}
        (tmp_path / name).mkdir()
        paths.append(str(tmp_path / name / "best.pt"))
        torch.save({"model": evaluate.build_network(settings).state_dict(), "settings": settings, "iteration": 1}, paths[-1])
    (tmp_path / "lisiam" / "log.jsonl").write_text('{"iteration": 1, "stage": 2, "loss": 3.0, "cls": 3.0}\n'
                                                   '{"iteration": 1, "val": {"frame_auc": 0.5, "video_auc": 0.5, "iou": null}}\n')
    command = ["evaluate.py", "--checkpoint", *paths, "--data", "ff++", "--root", str(root), "--quality", "c23", "c40", "--sweep",
               "--workers", "0", "--device", "cpu", "--figures", str(tmp_path / "figs"), "--json", str(tmp_path / "out.json"), "--frames", "1"]
    monkeypatch.setattr(sys, "argv", command)
    evaluate.main()
    said, drawn = capsys.readouterr().out, {path.stem: Image.open(path) for path in (tmp_path / "figs").iterdir()}
    assert {"roc", "sweep", "curves_lisiam", "fig3_masks", "fig4_degradations", "fig6_segmentation", "fig7_gradcam",
            "fig8_gradcam_quality"} <= set(drawn)
    assert ("fig5_tsne" in drawn) != ("pip install scikit-learn" in said) and "of the heat inside the mask" in said
    report = json.loads((tmp_path / "out.json").read_text())
    assert [run["settings"]["model"] for run in report] == ["xception", "lisiam"]
    assert [result["quality"] for result in report[0]["results"]] == ["c23", "c40"] and report[0]["results"][0]["frames"] == 10
    same = [row for row in report[0]["sweep"] if row["operation"].startswith("resized") and row["strength"] == 1]
    assert same[0]["frame_auc"] == pytest.approx(report[0]["results"][0]["frame_auc"])     # no degradation: the table's number
    assert "Table IV" in evaluate.paper_tables([tmp_path / "out.json"])
    # Fig. 3's first row is what masks.py computes for the DF face; its twin is the real face of the same name and frame
    fake, real = (np.asarray(Image.open(next(root.glob(f"*/{folder}/faces/{name}/0001.png")))) for folder, name in (
        ("Deepfakes/c23", "953_974"), ("youtube/c23", "953")))
    tile = np.asarray(drawn["fig3_masks"].convert("L"))[48:48 + 128, -132:-4]
    assert tile.mean() / 255 == pytest.approx(masks.ssim_mask(real, fake).mean(), abs=0.01) and tile.any() and not tile.all()
    blurred = [row["strength"] for row in report[1]["sweep"] if row["operation"].startswith("blur")]
    assert blurred[0] == 0 and len(blurred) == 7


def test_the_sweep_degrades_what_the_network_sees(tiny_tree):
    """Each score is the contrast of what arrives: the stronger the blur, the lower; JPEG at 100 takes some colour only."""
    class Contrast(torch.nn.Module):
        def forward(self, images):
            seen.append(images.std().item())
            return torch.zeros(len(images), 2)
    seen = []
    rows = evaluate.sweep(Contrast(), SETTINGS, data.list_videos("ff++", tiny_tree, "c23", "test"))
    assert len(rows) == len(seen) == 18 and seen[0] == pytest.approx(seen[6], rel=0.1)           # quality 100, size 1
    for strengths in (seen[6:11], seen[11:18]):
        assert strengths == sorted(strengths, reverse=True) and strengths[-1] < 0.98 * strengths[0]


@pytest.mark.parametrize("flags, part", [
    (["--sweep", "--figures", "figs"], "--checkpoint"), (["--json", "x.json"], "--checkpoint"), (["--checkpoint", "a", "b", "--image", "x"], "one"),
    (["--checkpoint", "a", "--video", "x", "--crop", "none"], "--crop none"), (["--data", "ff++", "demo", "--root", "x", "--figures", "f"], "--root 1"),
    (["--checkpoint", "BEST", "--json", "no/such/folder.json"], "cannot write"), (["--checkpoint", "BEST", "--figures", "BEST"], "cannot write"),
    (["--checkpoint", "BEST", "--workers", "-1"], "--workers")])
def test_what_cannot_work_is_said_before_the_work(flags, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": evaluate.build_network(SETTINGS).state_dict(), "settings": SETTINGS}, "BEST")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags])
    with pytest.raises(SystemExit) as stop:
        evaluate.main()
    sentence = capsys.readouterr().err
    assert stop.value.code == 2 and part in sentence and len(sentence.splitlines()) == 1


def test_a_loaded_network_judges_the_same_face_alike(tmp_path):
    """Dropout and BatchNorm are off: a network fresh from its file is in eval mode."""
    torch.save({"model": evaluate.build_network(SETTINGS).state_dict(), "settings": SETTINGS}, tmp_path / "best.pt")
    net, _ = evaluate.load_network(tmp_path / "best.pt")
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    scores, maps = evaluate.judge(net, [crop, crop], 48)
    assert not net.training and scores[0] == scores[1] and (maps[0] == maps[1]).all()


def test_fig_5_colours_the_features_by_forgery(tiny_tree, monkeypatch):
    """With a t-SNE that takes the first two features, whichever library is at hand."""
    class TSNE:
        def __init__(self, **settings):
            pass

        def fit_transform(self, features):
            return features[:, :2]
    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.manifold", types.SimpleNamespace(TSNE=TSNE))
    net = evaluate.build_network({**SETTINGS, "model": "xception"})
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    picture = np.asarray(evaluate.figure_5([("Xception", net, SETTINGS)], {"c23": videos, "c40": videos}, workers=0))
    assert picture.shape == (380, 1280, 3)
    for colour in ((255, 0, 0), (0, 0, 255), (0, 128, 0), (128, 0, 128), (255, 165, 0)):     # real, DF, FS, F2F, NT
        assert (picture == colour).all(-1).sum() > 40


def test_broken_frames_and_torn_logs_do_not_end_the_figures_in_a_traceback(tiny_tree, tmp_path, monkeypatch, capsys):
    masks.write_masks("ff++", tiny_tree, "ssim", workers=1)
    torch.save({"model": evaluate.build_network(SETTINGS).state_dict(), "settings": SETTINGS}, tmp_path / "best.pt")
    (tmp_path / "log.jsonl").write_text('{"iteration": 1, "stage": 1, "loss": 3.0}\n{"iteration": 2, "sta')
    next(tiny_tree.glob("*/NeuralTextures/c23/faces/953_974/0001.png")).write_bytes(b"")       # the frame that the figures show
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--checkpoint", str(tmp_path / "best.pt"), "--root", str(tiny_tree), "--workers", "0",
                                      "--device", "cpu", "--figures", str(tmp_path / "figs")])
    with pytest.raises(SystemExit):
        evaluate.main()
    said = capsys.readouterr()
    assert "means over" in said.out and "replace it" in said.err and (tmp_path / "figs" / f"curves_{tmp_path.name}.png").exists()


def test_figures_3_and_4_need_no_network_and_no_twin_is_said(tmp_path, monkeypatch, capsys):
    root = write_tiny_tree(tmp_path / "tree")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--data", "ff++", "--root", str(root), "--figures", str(tmp_path / "figs")])
    evaluate.main()
    assert sorted(path.name for path in (tmp_path / "figs").iterdir()) == ["fig3_masks.png", "fig4_degradations.png"]
    for folder in (root / "original_sequences/youtube/c23/faces").iterdir():
        shutil.rmtree(folder)
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "real twin" in capsys.readouterr().err


def test_features_are_what_the_last_layers_read(tiny_tree):
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    for model, channels in (("lisiam", 64), ("xception", 128)):
        net = evaluate.build_network({**SETTINGS, "model": model})
        found = evaluate.predict(net, videos, 48, bar=None, with_features=True)
        logits = (net.fc if model == "xception" else net.f_mlp.f_mlp).eval()(torch.from_numpy(found["features"]))
        assert found["features"].shape == (30, channels)
        np.testing.assert_allclose(logits.softmax(1)[:, 1].detach(), found["score"], atol=1e-5)


# ---------------------------------------------------------------- one picture
class Left(torch.nn.Module):
    """P(fake) = 0.7 for every crop; the map says the left half is forged."""

    def forward(self, images):
        return types.SimpleNamespace(cls_logits=torch.tensor([[0.3, 0.7]]).log(), seg_logits=Stub()(images).seg_logits)


def test_a_photo_is_cut_as_in_training_judged_and_drawn_over(tmp_path, capsys):
    from skimage import data as pictures
    photo = tmp_path / "astronaut.png"
    Image.fromarray(pictures.astronaut()).save(photo)
    assert evaluate.look_at_images(Left(), {"size": 48}, [photo], "auto", "lbp", "cpu", tmp_path) >= 1
    text = capsys.readouterr().out
    assert "P(fake) 0.700" in text
    x, y, side = (int(v) for v in re.search(r"x (\d+), y (\d+), side (\d+)", text).groups())
    assert x < 220 < x + side and y < 110 < y + side                  # her nose
    before, after = np.asarray(Image.open(photo)).astype(int), np.asarray(Image.open(next(tmp_path.glob("*_astronaut.png_map.png")))).astype(int)
    left, right = (np.abs(after - before)[y + 5:y + side - 5, a:b].mean() for a, b in ((x + 5, x + side // 3), (x + 2 * side // 3, x + side)))
    assert left > 20 > 5 > right and (after == before)[:, :x].all()   # red on the left half of the face, nothing outside it


def test_no_face_is_said_not_guessed_and_a_crop_goes_in_as_it_is(tmp_path, capsys):
    crop, text = tmp_path / "crop.png", tmp_path / "text.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(crop)
    text.write_text("no picture")
    assert evaluate.look_at_images(Left(), {"size": 48}, [crop, text], "auto", "lbp", "cpu", tmp_path) == 0
    said = capsys.readouterr().out
    assert "finds no face" in said and "cannot be read" in said
    assert evaluate.look_at_images(Left(), {"size": 48}, [crop], "none", "lbp", "cpu", tmp_path) == 1
    assert "as it is): P(fake) 0.700" in capsys.readouterr().out


def test_a_video_is_the_mean_of_its_frames(tmp_path, capsys):
    """A folder of full frames serves as a video; the same face moves, the brightness and with it Stub's score changes."""
    from skimage import data as pictures
    frames = tmp_path / "clip"
    frames.mkdir()
    for k in range(4):
        Image.fromarray(np.clip(pictures.astronaut()[:300, 60:460] * (0.7 + 0.1 * k), 0, 255).astype(np.uint8)).save(frames / f"{k}.png")
    evaluate.look_at_video(Stub(), {"size": 48}, frames, 3, "lbp", "cpu", tmp_path)
    said = capsys.readouterr().out
    mean, low, high = (float(re.search(word + r" (\d\.\d+)", said)[1]) for word in (r"P\(fake\)", "lowest", "highest"))
    assert low < mean < high and "3 frames" in said and "frame 3, the highest" in said and (tmp_path / "clip_map.png").exists()
