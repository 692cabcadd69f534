"""evaluate.py beside Sec. IV-A4 and IV-C to G: numbers against counting, tables, figures, faces."""

import functools
import json
import os
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
from model import build_network, to_input

# What a checkpoint of train.py says about its run.
SETTINGS = {
    "data": "ff++",
    "quality": "c23",
    "model": "lisiam",
    "variant": "A",
    "iqd": False,
    "mask": "ssim",
    "num_classes": 2,
    "transformer": True,
    "seed": 0,
    "out": "runs/x",
    "device": "cpu",
    "workers": 0,
    "iterations": [1, 1, 1],
    "batch_size": 7,
    "width": 0.0625,
    "size": 48,
    "pretrained": "none",
    "optimizer": "sgd",
    "lr": 0.002,
    "lambdas": [1.0, 1.0, 1.0],
    "aux": 0.4,
    "threshold": 0.5,           # of the map, which a checkpoint holds beside them
}
METHODS = ["Deepfakes", "FaceSwap", "Face2Face", "NeuralTextures"]


def counted_auc(labels, scores):
    """AUC by its meaning: the share of pairs (fake, real) that the fake wins; a tie is half."""
    fakes = scores[labels == 1][:, None]
    reals = scores[labels == 0][None]
    return np.mean((fakes > reals) + 0.5 * (fakes == reals))


def ranked_auc(labels, scores):
    """AUC from the sum of the fakes' ranks, for too many pairs to count them."""
    stats = pytest.importorskip("scipy.stats")          # comes with scikit-image
    statistic = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    return statistic / (np.sum(labels == 1) * np.sum(labels == 0))


def random_network(**changes):
    """A network with random weights whose BatchNorm statistics fit them, so that it sees much."""
    torch.manual_seed(0)
    net = build_network({**SETTINGS, **changes})
    for module in net.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.momentum = 1.0               # the statistics of the last batch alone
    with torch.no_grad():
        net.train()(torch.rand(8, 3, 64, 64) * 2 - 1)
    return net.eval()


def write_checkpoint(path, **changes):
    """A checkpoint of such a network, as train.py writes them. Returns the path as text."""
    settings = {**SETTINGS, **changes}
    net = random_network(**changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": net.state_dict(), "settings": settings}, path)
    return str(path)


def call(monkeypatch, *arguments):
    """python evaluate.py with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


def stopped(monkeypatch, capsys, *arguments):
    """The sentence with which evaluate.py ends, exit status 2."""
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]


# ---------------------------------------------------------------- Sec. IV-A4: metrics
@pytest.mark.parametrize("levels", [2, 5, 10 ** 9])
def test_auc_equals_counting_pairs_ties_included(levels):
    rng = np.random.default_rng(levels)
    labels = rng.integers(0, 2, 60)
    scores = rng.integers(0, levels, 60).astype(float)
    expected = counted_auc(labels, scores)
    assert evaluate.auc(labels, scores) == pytest.approx(expected, abs=1e-12)
    assert evaluate.auc(labels, -scores) == pytest.approx(1 - expected, abs=1e-12)


def test_auc_of_constant_scores_is_one_half_and_of_one_class_undefined():
    assert evaluate.auc([0, 1, 1], [7, 7, 7]) == 0.5
    assert evaluate.auc([1, 1], [0.1, 0.9]) is None
    assert evaluate.auc([0], [0.3]) is None
    assert evaluate.show(None) == "n/a"


def test_auc_of_counts_equals_counting_pixel_pairs():
    rng = np.random.default_rng(0)
    untouched = rng.integers(0, 4, 8)
    forged = rng.integers(0, 4, 8)
    scores = np.concatenate([np.repeat(np.arange(8), untouched), np.repeat(np.arange(8), forged)])
    labels = np.repeat([0, 1], [untouched.sum(), forged.sum()])
    found = evaluate.auc_of_counts(untouched, forged)
    assert found == pytest.approx(counted_auc(labels, scores))
    assert evaluate.auc_of_counts(np.zeros(8), forged) is None


def test_pixels_are_counted_by_truth_and_by_level_of_the_map():
    """Two pictures of 1 x 2 pixels, in steps of 0.001; 1.0 itself belongs to the last step."""
    probs = torch.tensor([[[0.0, 0.5]], [[1.0, 0.2504]]])
    mask = torch.tensor([[[0, 1]], [[1, 0]]])
    counts = evaluate.count_pixels(probs, mask)
    assert counts.shape == (2, 2, 1000)
    assert counts.sum() == 4
    assert counts[0, 0, 0] == counts[0, 1, 500] == counts[1, 1, 999] == counts[1, 0, 250] == 1


def test_accuracy_is_at_one_half_and_by_class():
    labels = np.array([0, 0, 0, 1])
    scores = np.array([0.5, 0.2, 0.7, 0.6])
    assert evaluate.accuracy(labels, scores) == 0.75                # 0.5 itself is not "fake"
    assert evaluate.accuracy(labels, scores, of=0) == pytest.approx(2 / 3)
    assert evaluate.accuracy(labels, scores, of=1) == 1
    assert evaluate.accuracy([1, 1], [0.9, 0.1], of=0) is None


def test_a_video_scores_the_mean_of_its_frames_even_of_one():
    """Sec. IV-C. Videos 4 and 7; that an index is missing is no harm."""
    means, indices = evaluate.video_scores(np.array([0.2, 0.4, 0.9]), np.array([4, 4, 7]))
    np.testing.assert_allclose(means, [0.3, 0.9])
    assert indices.tolist() == [4, 7]


def test_intervals_draw_videos_not_frames():
    """Whole videos are drawn with replacement, reals and fakes apart; here as lists of frames."""
    rng = np.random.default_rng(5)
    real = [2, 5, 8, 10, 11]
    fake = [3, 7, 9, 12, 14, 15]
    video = np.repeat(sorted(real + fake), rng.integers(1, 7, 11))
    labels = np.isin(video, fake).astype(int)
    of_video = rng.normal(0, 0.25, 16)                              # frames of a video are alike
    scores = np.clip(0.4 + 0.1 * labels + of_video[video] + rng.normal(0, 0.05, len(video)), 0, 1)
    found = evaluate.intervals(labels, scores, video)
    assert list(found) == ["frame_acc", "frame_auc", "video_acc", "video_auc"]
    samples = []
    for _ in range(3000):
        frame_labels = []
        frame_scores = []
        video_labels = []
        means = []
        for index in [*rng.choice(fake, 6), *rng.choice(real, 5)]:
            frame_labels.extend(labels[video == index])
            frame_scores.extend(scores[video == index])
            video_labels.append(int(index in fake))
            means.append(scores[video == index].mean())
        row = []
        for truth, score in ((frame_labels, frame_scores), (video_labels, means)):
            truth = np.array(truth)
            score = np.array(score)
            row.append(((score > 0.5) == truth).mean())
            row.append(counted_auc(truth, score))
        samples.append(row)
    expected = np.percentile(samples, [2.5, 97.5], axis=0).T
    np.testing.assert_allclose(list(found.values()), expected, atol=0.06)


def test_four_videos_of_a_class_have_no_interval():
    assert evaluate.intervals(np.arange(9) < 4, np.ones(9), np.arange(9)) == {}
    assert evaluate.intervals(np.arange(10) < 5, np.ones(10), np.arange(10)) != {}


# ---------------------------------------------------------------- the map and a constant mask
def brute_force_constant(masks):
    """The best mean IoU of a level set of the mean mask, frame by frame in plain loops."""
    mean = masks.mean(axis=0)
    best = 0.0
    for threshold in [k / 20 for k in range(1, 20)]:
        constant = mean > threshold
        if not constant.any():
            continue
        ious = [(mask & constant).sum() / (mask | constant).sum() for mask in masks]
        best = max(best, float(np.mean(ious)))
    return best


def test_the_constant_mask_is_the_best_level_set_of_the_mean():
    rng = np.random.default_rng(0)
    masks_seen = rng.random((12, 40)) < rng.random(40)
    found = evaluate.constant_mask(masks_seen)
    assert found["iou_constant"] == pytest.approx(brute_force_constant(masks_seen))


def test_a_constant_mask_is_perfect_where_all_masks_are_equal():
    one = np.zeros((5, 30), bool)
    one[:, 3:9] = True
    assert evaluate.constant_mask(one) == {"iou_constant": 1.0, "inside_constant": 1.0,
                                           "pixel_auc_constant": 1.0}


def test_the_mean_mask_as_a_map_has_the_pixel_auc_of_counting():
    rng = np.random.default_rng(1)
    masks_seen = rng.random((6, 25)) < rng.random(25)
    scores = np.tile(masks_seen.mean(axis=0), 6)
    expected = counted_auc(masks_seen.ravel().astype(int), scores)
    assert evaluate.constant_mask(masks_seen)["pixel_auc_constant"] == pytest.approx(expected)


def test_without_a_forged_pixel_there_is_no_constant_mask():
    for masks_seen in (np.zeros((0, 9), bool), np.zeros((4, 9), bool)):
        assert set(evaluate.constant_mask(masks_seen).values()) == {None}


def test_overlap_leaves_out_frames_where_both_are_empty():
    first = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]], bool)
    second = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0]], bool)
    assert evaluate.overlap(first, second) == pytest.approx((0.5 + 0.0) / 2)


def test_the_numbers_of_a_map_by_hand():
    """A 4 x 4 map: 0.9 in the left half, 0.3 in the right; the mask is the upper half."""
    probs = torch.full((1, 4, 4), 0.3)
    probs[:, :, :2] = 0.9
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask[:, :2] = 1
    iou, marked, inside = evaluate.map_numbers(evaluate.count_pixels(probs, mask))
    assert marked.item() == 0.5
    assert inside.item() == 0.5
    by_threshold = dict(zip(evaluate.THRESHOLDS.round(2), iou[0].tolist()))
    assert by_threshold[0.2] == pytest.approx(8 / 16)       # all of the picture is marked
    assert by_threshold[0.5] == pytest.approx(4 / 12)
    assert by_threshold[0.95] == 0


# ---------------------------------------------------------------- rows of a table
def videos_named(*names):
    """Videos without frames, from (method, id)."""
    return [data.Video("ff++", method, id, int(method != "real"), []) for method, id in names]


def predictions(scores, video, videos):
    """What predict returns of a network without a map."""
    return {"score": np.array(scores), "video": np.array(video),
            "has_mask": np.zeros(len(scores), bool), "counts": np.zeros((len(videos), 2, 4))}


def test_videos_of_one_name_in_two_methods_stay_two():
    """000_003 is a Deepfakes and a FaceSwap video; merged, the mean of both would be 0.5."""
    videos = videos_named(("real", "000"), ("Deepfakes", "000_003"), ("FaceSwap", "000_003"))
    assert len({video.key for video in videos}) == 3
    found = predictions([0.4, 0.4, 0.9, 0.9, 0.1, 0.1], [0, 0, 1, 1, 2, 2], videos)
    row = evaluate.summarize(found, videos)
    assert (row["videos"], row["real_videos"]) == (3, 1)
    assert (row["frames"], row["real_frames"]) == (6, 2)
    assert row["video_auc"] == 0.5                                  # Deepfakes wins, FaceSwap loses
    assert row["video_acc_fake"] == 0.5
    assert row["video_acc_real"] == 1
    one_method = evaluate.summarize(found, videos, "FaceSwap")
    assert one_method["videos"] == 2
    assert one_method["frame_auc"] == 0


def test_frame_and_video_level_differ_where_frames_are_uneven():
    videos = videos_named(("real", "0"), ("Deepfakes", "0_1"), ("real", "1"))
    scores = [0.6, 0.1, 0.1, 0.5, 0.5, 0.2]
    row = evaluate.summarize(predictions(scores, [0, 0, 0, 1, 1, 2], videos), videos)
    assert row["frame_auc"] == 0.75                                 # 6 wins of 8: 0.6 beats both
    assert row["video_auc"] == 1                                    # means: 0.267, 0.5, 0.2


class Stub(torch.nn.Module):
    """Says "fake" by the brightness of a picture; its map marks the upper half."""

    def forward(self, images):
        fake = images.mean(dim=(1, 2, 3)) * 10
        cls_logits = torch.stack([torch.zeros_like(fake), fake], dim=1)
        seg_logits = torch.zeros(len(images), 2, 4, 4)
        seg_logits[:, 1, :2] = 9.0
        seg_logits[:, 1, 2:] = -9.0
        return types.SimpleNamespace(cls_logits=cls_logits, seg_logits=seg_logits)


def test_a_whole_evaluation_agrees_with_one_by_hand(masked_tree):
    result = evaluate.evaluate(Stub(), SETTINGS, "ff++", masked_tree, "c23")
    upper = np.zeros((48, 48), bool)
    upper[:24] = True                           # bilinear between 9 and -9: 0.5 in the middle
    pictures = sorted(masked_tree.glob("*/*/c23/faces/*/*.png"))
    scores = []
    labels = []
    methods = []
    owners = []
    overlaps = []
    forged = []
    fake_methods = []
    maps = []
    for path in pictures:
        if path.parent.name not in ("953", "974", "953_974", "974_953"):    # the test split
            continue
        picture = Image.open(path)
        method = path.parents[3].name
        brightness = np.asarray(picture).mean() / 255 * 2 - 1
        scores.append(1 / (1 + np.exp(-10 * brightness)))
        labels.append(int(method != "youtube"))
        methods.append(method)
        owners.append(f"{method}/{path.parent.name}")
        if method != "youtube":
            mask_path = path.parents[3] / "masks_ssim" / path.parent.name / path.name
            mask = np.asarray(Image.open(mask_path)) == 255
            overlaps.append((mask & upper).sum() / (mask | upper).sum())
            _, found_maps = evaluate.judge(Stub(), [picture], SETTINGS)
            forged.append(mask)
            fake_methods.append(method)
            maps.append(found_maps[0])
    scores = np.array(scores)
    labels = np.array(labels)
    methods = np.array(methods)
    owners = np.array(owners)
    means = np.array([scores[owners == owner].mean() for owner in np.unique(owners)])
    video_labels = np.array([int("youtube" not in owner) for owner in np.unique(owners)])

    assert (result["data"], result["quality"], result["split"]) == ("ff++", "c23", "test")
    assert (result["frames"], result["real_frames"], result["masked_frames"]) == (30, 6, 24)
    assert (result["videos"], result["real_videos"]) == (10, 2)
    right = (scores > 0.5) == labels
    assert 0 < right.mean() < 1
    assert result["frame_acc"] == pytest.approx(right.mean())
    assert result["frame_acc_real"] == pytest.approx(right[labels == 0].mean())
    assert result["frame_acc_fake"] == pytest.approx(right[labels == 1].mean())
    assert result["frame_auc"] == pytest.approx(counted_auc(labels, scores))
    assert result["video_acc"] == pytest.approx(((means > 0.5) == video_labels).mean())
    assert result["video_auc"] == pytest.approx(counted_auc(video_labels, means))
    assert result["iou"] == pytest.approx(np.mean(overlaps), abs=1e-6)
    pixels = ranked_auc(np.stack(forged), np.stack(maps))
    assert result["pixel_auc"] == pytest.approx(pixels, abs=2e-3)           # in steps of 0.001
    marked_real = [found.mean() for found in [upper] * 6]           # the map is the same everywhere
    assert result["marked_real"] == pytest.approx(np.mean(marked_real))
    inside = [mask[upper].mean() for mask in forged]
    assert result["inside"] == pytest.approx(np.mean(inside))
    own = []                                    # the best mask for each method, then the mean
    for method in METHODS:
        of_method = np.stack([mask for mask, name in zip(forged, fake_methods) if name == method])
        constant = brute_force_constant(of_method.reshape(len(of_method), -1))
        assert result["methods"][method]["iou_constant"] == pytest.approx(constant)
        own.append(constant)
    assert result["iou_constant_each"] == pytest.approx(np.mean(own))
    everything = brute_force_constant(np.stack(forged).reshape(len(forged), -1))
    assert result["iou_constant"] == pytest.approx(everything)
    assert list(result["methods"]) == METHODS
    chosen = np.isin(methods, ["youtube", "Face2Face"])
    row = result["methods"]["Face2Face"]
    assert row["frame_auc"] == pytest.approx(counted_auc(labels[chosen], scores[chosen]))
    assert (row["frames"], row["masked_frames"]) == (12, 6)
    json.dumps(result)                                                      # --json writes it


def test_a_limit_takes_so_many_frames_of_each_video_evenly_spread(masked_tree):
    """Of three frames two are the first and the last."""
    videos = data.list_videos("ff++", masked_tree, "c23", "test")
    every = evaluate.predict(Stub(), videos, SETTINGS)
    two = evaluate.predict(Stub(), videos, SETTINGS, limit=2)
    assert two["video"].tolist() == [index for index in range(10) for _ in range(2)]
    expected = every["score"].reshape(10, 3)[:, [0, 2]].ravel()
    np.testing.assert_allclose(two["score"], expected)


def test_the_map_is_measured_on_fakes_with_a_mask_alone(masked_tree):
    """Others are scored, and have no IoU. A method's pixels are its own: DF is forged higher up."""
    shutil.rmtree(masked_tree / "manipulated_sequences/Deepfakes/masks_ssim/953_974")
    result = evaluate.evaluate(Stub(), SETTINGS, "ff++", masked_tree, "c23")
    assert (result["frames"], result["masked_frames"]) == (30, 21)
    assert result["methods"]["Deepfakes"]["masked_frames"] == 3
    for method in ("Deepfakes", "NeuralTextures"):
        folder = masked_tree / "manipulated_sequences" / method / "masks_ssim"
        paths = [*folder.glob("953_974/*.png"), *folder.glob("974_953/*.png")]
        forged = [np.asarray(Image.open(path)) == 255 for path in paths]
        _, maps = evaluate.judge(Stub(), [Image.new("RGB", (48, 48))] * len(forged), SETTINGS)
        expected = ranked_auc(np.stack(forged), np.stack(maps))
        assert result["methods"][method]["pixel_auc"] == pytest.approx(expected, abs=2e-3)
    assert result["methods"]["Deepfakes"]["pixel_auc"] > 0.6
    assert result["methods"]["NeuralTextures"]["pixel_auc"] < 0.4


def test_without_masks_localization_is_not_available_and_nothing_is_written(tiny_tree):
    result = evaluate.evaluate(Stub(), SETTINGS, "ff++", tiny_tree, "c23")
    assert result["masked_frames"] == 0
    assert result["iou"] is None
    assert result["pixel_auc"] is None
    assert "IoU" not in evaluate.table(result)
    assert not list(tiny_tree.glob("**/masks_ssim"))


def test_celeb_df_has_one_quality_no_masks_and_its_own_list(tmp_path):
    """Table III. In its list 1 means real; here 1 is fake, everywhere."""
    for number, name in enumerate(("Celeb-real/id0_0000", "Celeb-synthesis/id0_id1_0000")):
        folder = tmp_path / name.split("/")[0] / "faces" / name.split("/")[1]
        folder.mkdir(parents=True)
        Image.new("RGB", (48, 48), (100 + 100 * number,) * 3).save(folder / "0000.png")
    listed = "1 Celeb-real/id0_0000.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n"
    (tmp_path / "List_of_testing_videos.txt").write_text(listed)
    result = evaluate.evaluate(Stub(), SETTINGS, "celeb-df-v2", tmp_path, None)
    assert (result["frames"], result["real_frames"], result["frame_auc"]) == (2, 1, 1)
    assert result["iou"] is None
    assert evaluate.test_set(result) == "celeb-df-v2"


class Fixed(torch.nn.Module):
    """The same logits for every picture, and no map: as the baseline."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits.expand(len(images), len(self.logits))


class FixedWithMap(Fixed):
    """As LiSiam."""

    def forward(self, images):
        return types.SimpleNamespace(cls_logits=super().forward(images),
                                     seg_logits=torch.zeros(len(images), 2, 4, 4))


@pytest.mark.parametrize("network", [Fixed, FixedWithMap])
def test_five_classes_give_one_minus_the_chance_of_real(network, tiny_tree):
    """Fig. 5: P(fake) = 1 - P(real), whichever of the four forgeries it is."""
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    net = network(np.log([0.3, 0.1, 0.2, 0.25, 0.15]).tolist())
    found = evaluate.predict(net, videos, SETTINGS)
    np.testing.assert_allclose(found["score"], 0.7, rtol=1e-6)
    assert found["counts"].sum() == 0           # no frame has a mask here


def test_scores_close_to_one_do_not_tie():
    """In float32 both would be 1.0 exactly."""
    images = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    sure, _ = evaluate.scores_and_maps(Fixed([0.0, 20.0]), images)
    surer, _ = evaluate.scores_and_maps(Fixed([0.0, 25.0]), images)
    assert sure.item() < surer.item() < 1


@pytest.mark.parametrize("name", ["lisiam", "xception"])
def test_a_frame_is_judged_alike_whatever_else_is_in_its_batch(name, tiny_tree):
    """Even a network in training mode: BatchNorm and dropout must not be at work."""
    net = random_network(model=name).train()
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    alone = evaluate.predict(net, videos, {**SETTINGS, "batch_size": 1}, limit=1)
    together = evaluate.predict(net.train(), videos, {**SETTINGS, "batch_size": 10}, limit=1)
    np.testing.assert_allclose(alone["score"], together["score"], atol=1e-5)
    assert np.ptp(alone["score"]) > 0.01


@pytest.mark.parametrize("name", ["lisiam", "xception"])
def test_features_are_what_the_last_layers_read(name, tiny_tree):
    """Fig. 5: the last layers, given the features, say what the network said."""
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    net = random_network(model=name)
    features, of_video = evaluate.pooled_features(net, videos, SETTINGS)
    assert of_video.tolist() == [index for index in range(10) for _ in range(3)]
    frames = [np.asarray(Image.open(frame)) for video in videos for frame in video.frames]
    output = net(to_input(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)))
    features = torch.from_numpy(features)
    if name == "lisiam":
        torch.testing.assert_close(net.f_mlp.f_mlp(features), output.cls_logits)
    else:
        torch.testing.assert_close(net.fc(features), output)
    assert not any(module._forward_pre_hooks for module in net.modules())    # none stays behind


# ---------------------------------------------------------------- the command line
class Hostile:
    """Pickled; whoever unpickles it makes a folder."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.mkdir, (str(self.trap),)


@pytest.mark.parametrize("content", ["missing", "empty", "text", "hostile", "other"])
def test_a_wrong_or_hostile_checkpoint_gets_one_sentence_and_runs_no_code(
        content, tmp_path, monkeypatch, capsys):
    path = tmp_path / "best.pt"
    trap = tmp_path / "trap"
    if content == "empty":
        path.write_bytes(b"")
    if content == "text":
        path.write_text("these are no weights")
    if content == "hostile":
        torch.save({"settings": Hostile(trap), "model": {}}, path)
    if content == "other":
        torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, path)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--checkpoint", path)
    assert stop.value.code == 2
    sentence = capsys.readouterr().err
    assert str(path) in sentence
    assert len(sentence.splitlines()) == 1
    assert not trap.exists()


def test_as_a_program_it_ends_without_traceback(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "evaluate.py", "--checkpoint", "nowhere.pt"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nowhere.pt" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flags, part", [
    ("--data ff++", "--checkpoint"),
    ("--sweep --figures figs", "--checkpoint"),
    ("--figures figs --json x.json", "--checkpoint"),
    ("--image x.png", "--checkpoint"),
    ("--checkpoint a b --image x.png", "one --checkpoint"),
    ("--checkpoint a --video x.mp4 --crop none", "--crop none"),
    ("--checkpoint a --video x.mp4 --frames 501", "500"),
    ("--checkpoint a --video x.mp4 --image x.png", "together"),
    ("--checkpoint a --data ff++ demo --root x", "--root"),
    ("--checkpoint a --workers -1", "--workers"),
    ("--checkpoint a --batch-size 0", "--batch-size"),
    ("--checkpoint a --frames 0", "--frames"),
    ("--checkpoint a --quality c24", "--quality"),
    ("--checkpoint a --data celeb-df", "--data"),
    pytest.param("--checkpoint a --device cuda", "no GPU", marks=pytest.mark.skipif(
        torch.cuda.is_available(), reason="has a GPU")),
])
def test_what_cannot_work_is_one_sentence_before_the_work(flags, part, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *flags.split())
    assert stop.value.code == 2
    sentence = capsys.readouterr().err
    assert part in sentence
    assert len(sentence.splitlines()) == 1


def test_every_broken_picture_is_named_before_the_first_row(
        masked_tree, tmp_path, monkeypatch, capsys):
    """Of all test sets: here the second has broken ones."""
    checkpoint = write_checkpoint(tmp_path / "run" / "best.pt")
    other = write_tiny_tree(tmp_path / "other")
    broken = [other / "original_sequences/youtube/c23/faces/953/0001.png",
              other / "manipulated_sequences/FaceSwap/c23/faces/953_974/0002.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--checkpoint", checkpoint, "--data", "ff++", "ff++", "--root",
             masked_tree, other, "--workers", 0, "--device", "cpu")
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert all(str(path) in said.err for path in broken)
    assert "|" not in said.out


def test_scores_that_are_no_numbers_stop_the_evaluation(tiny_tree, tmp_path, monkeypatch, capsys):
    """A network whose statistics are damaged answers NaN; it used to be scored 0.500."""
    checkpoint = write_checkpoint(tmp_path / "run" / "best.pt")
    kept = torch.load(checkpoint, weights_only=True)
    kept["model"]["backbone.bn1.running_var"][0] = float("nan")
    torch.save(kept, checkpoint)
    face = next(tiny_tree.rglob("faces/*/0000.png"))
    for what in (["--root", tiny_tree, "--workers", 0], ["--image", face, "--crop", "none"]):
        sentence = stopped(monkeypatch, capsys, "--checkpoint", checkpoint, *what,
                           "--device", "cpu")
        assert "finite" in sentence


def test_testing_with_other_masks_or_batches_does_not_rename_a_run(
        masked_tree, tmp_path, monkeypatch, capsys):
    """--json keeps how it was trained; how it was tested stands in the result."""
    checkpoint = write_checkpoint(tmp_path / "run" / "best.pt")
    call(monkeypatch, "--checkpoint", checkpoint, "--root", masked_tree, "--workers", 0,
         "--device", "cpu", "--frames", 1, "--mask", "diff", "--batch-size", 5,
         "--json", tmp_path / "x.json")
    report = json.loads((tmp_path / "x.json").read_text())
    assert report[0]["settings"]["mask"] == "ssim"
    assert report[0]["settings"]["batch_size"] == SETTINGS["batch_size"]
    assert capsys.readouterr().out.startswith("LiSiam, trained")
    assert "diff masks" in evaluate.tables([tmp_path / "x.json"])


def test_a_broken_picture_stops_figures_without_a_network(tiny_tree, tmp_path, monkeypatch, capsys):
    path = tiny_tree / "original_sequences/youtube/c23/faces/953/0001.png"
    path.write_bytes(b"")
    with pytest.raises(SystemExit):
        call(monkeypatch, "--root", tiny_tree, "--figures", tmp_path / "figs")
    assert str(path) in capsys.readouterr().err


def test_the_baseline_does_not_need_whole_masks(masked_tree, tmp_path, monkeypatch, capsys):
    """It has no map to compare them with."""
    next(masked_tree.glob("*/FaceSwap/masks_ssim/953_974/*.png")).write_bytes(b"")
    checkpoint = write_checkpoint(tmp_path / "run" / "best.pt", model="xception")
    call(monkeypatch, "--checkpoint", checkpoint, "--root", masked_tree, "--workers", 0,
         "--device", "cpu", "--frames", 1)
    assert "ff++ c23 test" in capsys.readouterr().out


def test_the_map_may_be_compared_with_other_masks_than_it_was_trained_with(
        masked_tree, tmp_path, monkeypatch):
    """There are SSIM masks only."""
    checkpoint = write_checkpoint(tmp_path / "run" / "best.pt")
    for mask, frames in (("ssim", 8), ("diff", 0)):
        call(monkeypatch, "--checkpoint", checkpoint, "--root", masked_tree, "--workers", 0,
             "--device", "cpu", "--frames", 1, "--mask", mask, "--json", tmp_path / "x.json")
        report = json.loads((tmp_path / "x.json").read_text())
        result = report[0]["results"][0]
        assert result["mask"] == mask
        assert result["masked_frames"] == frames


def test_several_runs_are_told_apart_by_their_folders(tmp_path):
    checkpoints = [write_checkpoint(tmp_path / name / "best.pt") for name in ("first", "second")]
    args = types.SimpleNamespace(checkpoint=checkpoints, device="cpu", workers=0, batch_size=32,
                                 mask=None, figures=None)
    runs, _ = evaluate.load_runs(args)
    assert [name for name, _, _ in runs] == ["LiSiam, first", "LiSiam, second"]
    args.checkpoint = checkpoints[:1]
    runs, _ = evaluate.load_runs(args)
    assert runs[0][0] == "LiSiam"


def test_figures_of_networks_of_two_sizes_are_refused_before_the_work(
        tiny_tree, tmp_path, monkeypatch, capsys):
    checkpoints = [write_checkpoint(tmp_path / str(size) / "best.pt", size=size)
                   for size in (48, 64)]
    sentence = stopped(monkeypatch, capsys, "--checkpoint", *checkpoints, "--root", tiny_tree,
                       "--figures", tmp_path / "figs")
    assert "different sizes" in sentence


# ---------------------------------------------------------------- Tables I to VII
@pytest.mark.parametrize("changes, name", [
    ({}, "LiSiam"),
    ({"variant": "F"}, "Model-F"),
    ({"mask": "diff"}, "LiSiam+DIFF"),
    ({"num_classes": 5}, "LiSiam, 5 classes"),
    ({"model": "xception"}, "Xception"),
    ({"model": "xception", "iqd": True, "mask": "diff"}, "Xception+IQD"),
])
def test_a_run_is_named_as_in_the_papers_tables(changes, name):
    assert evaluate.model_name({**SETTINGS, **changes}) == name


def result_of(quality="c23", **numbers):
    """A result of evaluate, every number 0.5 but those given."""
    row = dict.fromkeys([*evaluate.COLUMNS, *evaluate.MAP_COLUMNS], 0.5)
    row["iou_by_threshold"] = [k / 100 for k in range(19)]
    return {**row, "threshold": 0.5, "data": "ff++", "quality": quality, "split": "test",
            "limit": None, "mask": "ssim", "methods": {}, "intervals": {}, **numbers}


def test_a_table_has_a_row_for_all_and_one_for_each_method_and_the_intervals():
    fakes = {**dict.fromkeys(evaluate.COLUMNS, 0.25), "iou": None}
    result = result_of(frames=30, methods={"FaceSwap": {**fakes, "frames": 12}}, iou=None,
                       frame_acc_real=None, intervals={"frame_auc": [0.912, 0.934]})
    lines = evaluate.table(result).splitlines()
    assert lines[2].startswith("| ff++ c23 test | all | 30 | 0.500 |")
    assert "n/a" in lines[2]
    assert lines[3].startswith("| ff++ c23 test | FaceSwap | 12 | 0.250 |")
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == lines[3].count("|")
    assert "95 %" in lines[4]
    assert "0.912 to 0.934" in lines[4]


def test_the_maps_table_has_the_constant_mask_beside_the_map_and_vals_threshold():
    """"iou_val" is the IoU at the threshold that was best on val, here 0.3."""
    fakes = result_of(iou=0.31, iou_constant=0.29)
    result = result_of(iou=0.6, iou_constant=0.44, iou_constant_each=0.51, threshold=0.3,
                       methods={"FaceSwap": fakes})
    lines = evaluate.table(result).splitlines()
    head = next(line for line in lines if "constant" in line)
    rows = lines[lines.index(head) + 2:lines.index(head) + 4]
    whole = dict(zip(head.strip("| ").split(" | "), rows[0].strip("| ").split(" | ")))
    assert whole["IoU"] == "0.600"
    assert whole["IoU, val's threshold"] == "0.050"                 # the sixth: 0.30
    assert whole["IoU of a constant mask"] == "0.440"
    assert whole["one a method"] == "0.510"
    assert "| FaceSwap |" in rows[1]
    assert "constant mask" in lines[-1]                             # a sentence says how to read it


def write_report(path, results, **changes):
    path.write_text(json.dumps([{"settings": {**SETTINGS, **changes}, "results": results}]))
    return path


def cells_of(text):
    """The rows of a Markdown table, as lists of cells, without head and rule."""
    return [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]


def test_tables_average_over_seeds_and_keep_what_differs_apart(tmp_path):
    numbers = {"frame_acc": 0.25, "video_acc": 0.75, "video_auc": 0.9, "iou": None}
    paths = []
    for seed, auc in enumerate((0.98, 0.96)):
        results = [result_of(frame_auc=auc, **numbers)]
        paths.append(write_report(tmp_path / f"{seed}.json", results, seed=seed))
    paths.append(write_report(tmp_path / "f.json", [result_of("c40", **numbers)], variant="F"))
    rows = cells_of(evaluate.tables([*paths, paths[0]]))            # a file twice counts once
    assert rows == [
        ["LiSiam", "ff++ c23", "ff++ c23 test", "2",
         "25.00 ± 0.00", "97.00 ± 1.41", "75.00 ± 0.00", "90.00 ± 0.00", "n/a", "50.00 ± 0.00",
         "50.00 ± 0.00", "n/a"],
        ["Model-F", "ff++ c23", "ff++ c40 test", "1", "25.00", "50.00", "75.00", "90.00", "n/a",
         "50.00", "50.00", "n/a"]]


def test_tables_name_settings_that_differ_and_a_hasty_test(tmp_path):
    paths = [write_report(tmp_path / "whole.json", [result_of()]),
             write_report(tmp_path / "hasty.json", [result_of(limit=2)]),
             write_report(tmp_path / "narrow.json", [result_of()], width=0.5)]
    rows = cells_of(evaluate.tables(paths))
    assert len(rows) == 3
    assert {row[3] for row in rows} == {"1"}
    assert sorted(row[0] for row in rows) == ["LiSiam, width 0.0625", "LiSiam, width 0.0625",
                                              "LiSiam, width 0.5"]
    assert len([row for row in rows if "2 frames a video" in row[2]]) == 1


@pytest.mark.parametrize("text", [
    "", "[]x", '{"a": 1}', "[1]", "null", '[{"settings": {}, "results": []}]',
    '[{"settings": [], "results": 3}]'])
def test_a_file_that_holds_no_results_gets_one_sentence(text, tmp_path, monkeypatch, capsys):
    (tmp_path / "x.json").write_text(text)
    sentence = stopped(monkeypatch, capsys, "--tables", tmp_path / "x.json")
    assert str(tmp_path / "x.json") in sentence
    assert "--json" in sentence


# ---------------------------------------------------------------- Sec. IV-G: Grad-CAM
def raise_channel(channel, step, module, inputs, output):
    """A hook: one channel of X_I, everywhere, by a little. OCR gives a second output."""
    feats, region_logits = output
    change = torch.zeros(feats.shape[1], dtype=feats.dtype)
    change[channel] = step
    return feats + change[:, None, None], region_logits


def raise_mean(channel, step, module, inputs):
    """A hook: the baseline's last layer reads means, so a channel everywhere is its mean."""
    pooled = inputs[0].clone()
    pooled[:, channel] += step
    return (pooled,)


@pytest.mark.parametrize("name, num_classes", [("lisiam", 5), ("xception", 2)])
def test_grad_cam_weights_channels_by_how_the_fake_logit_moves_with_them(name, num_classes):
    """By finite differences; the map is X_I, or the baseline's last (Sec. IV-G).

    Of five classes the logit is that of the likeliest forgery, here Face2Face.
    """
    net = random_network(model=name, num_classes=num_classes).double()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 2 - 1
    if name == "lisiam":
        net.f_mlp.f_mlp[-1].bias.data[3] += 10
    else:
        net.fc.weight.data[1].abs_()            # else nothing speaks for fake in these weights

    def fake_logits(channel, step):
        if name == "lisiam":
            change = functools.partial(raise_channel, channel, step)
            hook = net.ocr.register_forward_hook(change)
        else:
            change = functools.partial(raise_mean, channel, step)
            hook = net.fc.register_forward_pre_hook(change)
        with hook, torch.no_grad():
            output = net(images)
        return output.cls_logits[:, 3] if name == "lisiam" else output[:, 1]

    with torch.no_grad():
        backbone, middle = net.backbone(images)
        if name == "lisiam":
            feats, _ = net.ocr(backbone, middle)
        else:
            feats = torch.relu(net.bn3(net.conv3(backbone)))
            feats = torch.relu(net.bn4(net.conv4(feats)))
    heat = torch.zeros(2, 1, *feats.shape[2:], dtype=torch.float64)
    step = 1e-3                                 # f_mt is in float32, where less would drown
    for channel in range(feats.shape[1]):
        slope = (fake_logits(channel, step) - fake_logits(channel, -step)) / (2 * step)
        heat += slope[:, None, None, None] * feats[:, channel:channel + 1]
    heat = torch.nn.functional.interpolate(heat.clamp(min=0).float(), size=(64, 64),
                                           mode="bilinear", align_corners=False)[:, 0]
    hottest = heat.amax(dim=(1, 2), keepdim=True)
    assert hottest.min() > 0
    torch.testing.assert_close(evaluate.grad_cam(net, images), heat / hottest, atol=0.01, rtol=0)


def test_grad_cam_is_cold_where_nothing_speaks_for_fake():
    net = random_network(model="xception")
    net.fc.weight.data[1] = -1                  # its features are none below 0
    heat = evaluate.grad_cam(net, torch.rand(1, 3, 48, 48))
    assert heat.abs().max() == 0


def test_heat_is_red_and_cold_is_blue():
    black = Image.new("RGB", (2, 1))
    picture = np.asarray(evaluate.heat_colour(black, np.array([[0.0, 1.0]])))
    cold_red, _, cold_blue = picture[0, 0].tolist()
    hot_red, _, hot_blue = picture[0, 1].tolist()
    assert cold_red == hot_blue == 0
    assert cold_blue > 30
    assert hot_red > 30


# ---------------------------------------------------------------- figures 3 to 8
@pytest.fixture
def sheets(monkeypatch):
    """What is asked of evaluate.sheet, as {"Fig. 3": (columns, [(row's title, images), ...])}."""
    asked = {}
    draw = evaluate.sheet

    def note(title, columns, rows, side=128):
        asked[title.split(":")[0]] = (list(columns), rows)
        return draw(title, columns, rows, side)

    monkeypatch.setattr(evaluate, "sheet", note)
    return asked


def same(first, second):
    return np.array_equal(np.asarray(first), np.asarray(second))


def open_face(path, size):
    return Image.open(path).resize((size, size), Image.Resampling.BILINEAR)


def faces_of(root, quality="c23", size=48):
    """Frame 1 of the test split by hand: the target's, the source's, and each method's fake."""
    reals = root / f"original_sequences/youtube/{quality}/faces"
    target = open_face(reals / "953/0001.png", size)
    source = open_face(reals / "974/0001.png", size)
    fakes = {}
    for short, method in zip(("DF", "FS", "F2F", "NT"), METHODS):
        folder = root / "manipulated_sequences" / method / quality / "faces/953_974"
        fakes[short] = open_face(folder / "0001.png", size)
    return target, source, fakes


def test_examples_are_a_target_its_source_and_the_fakes_made_on_it(tiny_tree):
    """The middle of three frames, of 953_974; the other pair is number 1, and there is no third."""
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    people, fakes = evaluate.examples(videos, 48)
    target, source, expected = faces_of(tiny_tree)
    assert same(people["target"], target)
    assert same(people["source"], source)
    assert list(fakes) == ["DF", "FS", "F2F", "NT"]
    for short, (fake, real) in fakes.items():
        assert same(fake, expected[short])
        assert same(real, target)
    people, fakes = evaluate.examples(videos, 48, number=1)
    assert same(people["target"], source)
    assert same(fakes["DF"][1], source)
    assert evaluate.examples(videos, 48, number=2) == ({}, {})


def test_figures_3_and_4_need_no_network(tiny_tree, tmp_path, sheets, monkeypatch):
    """In the paper's 299 px. Fig. 4 shows each operation at its strongest, R, C and G in turn."""
    call(monkeypatch, "--root", tiny_tree, "--figures", tmp_path / "figs")
    drawn = sorted(path.name for path in (tmp_path / "figs").iterdir())
    assert drawn == ["fig3_masks.png", "fig4_degradations.png"]
    target, _, fakes = faces_of(tiny_tree, size=299)
    columns, rows = sheets["Fig. 3"]
    assert columns == ["fake", "DIFF mask", "SSIM map", "SSIM mask"]
    assert [name for name, _ in rows] == ["DF", "FS", "F2F", "NT"]
    for short, (fake, diff, _, ssim) in rows:
        pair = (np.asarray(target), np.asarray(fakes[short]))
        assert same(fake, fakes[short])
        assert same(diff, 255 * masks.diff_mask(*pair))
        assert same(ssim, 255 * masks.ssim_mask(*pair))
    columns, rows = sheets["Fig. 4"]
    _, real_row = rows[0]
    short, fake_row = rows[1]
    by_name = dict(zip(columns, real_row))
    assert same(by_name["original"], target)
    assert same(by_name["R"], data.resize(target, 100 / 299))
    assert same(by_name["C"], data.jpeg(target, 10))
    assert same(by_name["G"], data.blur(target, 1.0))
    in_turn = data.blur(data.jpeg(data.resize(target, 100 / 299), 10), 1.0)
    assert same(by_name["R&C&G"], in_turn)
    assert short == "DF"
    assert same(fake_row[0], fakes["DF"])


def test_a_sheet_shows_its_pictures_in_a_grid():
    """Four colours in two rows of two; what is not a picture is white."""
    colours = ["red", "lime", "blue", "black"]
    first, second, third, fourth = [Image.new("RGB", (9, 9), colour) for colour in colours]
    rows = [("upper", [first, second]), ("lower", [third, fourth])]
    picture = np.asarray(evaluate.sheet("title", ["left", "right"], rows, side=20))
    places = {}
    for colour, rgb in (("red", (255, 0, 0)), ("lime", (0, 255, 0)), ("blue", (0, 0, 255))):
        ys, xs = np.nonzero((picture == rgb).all(axis=2))
        assert len(ys) == 400
        places[colour] = (ys.min(), xs.min())
    assert places["red"][0] == places["lime"][0] < places["blue"][0]
    assert places["red"][1] == places["blue"][1] < places["lime"][1]


def test_without_a_fake_and_its_real_video_figures_are_refused(
        tiny_tree, tmp_path, monkeypatch, capsys):
    shutil.rmtree(tiny_tree / "original_sequences")
    sentence = stopped(monkeypatch, capsys, "--root", tiny_tree, "--figures", tmp_path / "figs")
    assert "real video" in sentence


def test_every_figure_is_drawn_from_a_tree_and_two_networks(
        tmp_path, sheets, monkeypatch, capsys):
    """One call: the table, the sweep, and all that needs neither matplotlib nor scikit-learn."""
    root = write_tiny_tree(tmp_path / "tree", ("c23", "c40"))
    masks.write_masks("ff++", root, "ssim", workers=1)
    folder = tmp_path / "figs"
    checkpoints = []
    for name in ("xception", "lisiam"):
        checkpoints.append(write_checkpoint(tmp_path / name / "best.pt", model=name))
    call(monkeypatch, "--checkpoint", *checkpoints, "--data", "ff++", "--root", root,
         "--quality", "c23", "c40", "--sweep", "--frames", 1, "--workers", 0, "--device", "cpu",
         "--figures", folder, "--json", tmp_path / "out.json")
    said = capsys.readouterr().out
    drawn = {path.stem for path in folder.iterdir()}
    assert {"fig3_masks", "fig4_degradations", "fig6_segmentation", "fig7_gradcam",
            "fig8_gradcam_quality"} <= drawn
    assert ("pip install matplotlib" in said) != ("sweep" in drawn)
    assert ("pip install" in said) != ("fig5_tsne" in drawn)

    report = json.loads((tmp_path / "out.json").read_text())
    assert [run["settings"]["model"] for run in report] == ["xception", "lisiam"]
    for run in report:
        assert [result["quality"] for result in run["results"]] == ["c23", "c40"]
        assert run["results"][0]["frames"] == 10
        assert (run["results"][0]["iou"] is None) == (run["settings"]["model"] == "xception")
        for row in run["sweep"]:                # without any degradation: the table's number
            if (row["operation"], row["strength"]) in (("resized to this share of the side", 1.0),
                                                       ("blur sigma, px at 299 px", 0.0)):
                assert row["frame_auc"] == pytest.approx(run["results"][0]["frame_auc"])
    points = sum(len(strengths) for _, _, _, strengths, _ in evaluate.SWEEP)
    assert len(cells_of(evaluate.tables([tmp_path / "out.json"]))) == 2 * (2 + points)

    target, source, fakes = faces_of(root)
    columns, rows = sheets["Fig. 6"]
    rows = dict(rows)
    assert columns == ["target", "source", "DF", "FS", "F2F", "NT"]
    assert same(rows["input"][0], target)
    assert same(rows["input"][1], source)
    assert same(rows["input"][2], fakes["DF"])
    assert not np.asarray(rows["SSIM map"][0]).any()                # nothing is forged here
    assert np.asarray(rows["SSIM map"][2]).any()
    assert set(rows) == {"input", "SSIM map", "LiSiam, lisiam: map", "LiSiam, lisiam: mask"}
    grey_map = np.asarray(rows["LiSiam, lisiam: map"][2])
    mask = np.asarray(rows["LiSiam, lisiam: mask"][2])
    assert (mask[grey_map > 127] == 255).all()                      # 127 itself is 0.498 to 0.502
    assert (mask[grey_map < 127] == 0).all()
    assert 0 < mask.mean() < 255
    columns, rows = sheets["Fig. 7"]
    assert columns == ["DF", "FS", "F2F", "NT", "DF (2)", "FS (2)", "F2F (2)", "NT (2)"]
    in_colour = [name for name, _ in rows if name.startswith("Grad-CAM")]
    assert len(in_colour) == 2
    assert "Xception" in in_colour[0]
    assert "LiSiam" in in_colour[1]
    columns, rows = sheets["Fig. 8"]
    inputs = dict(rows)["input"]
    assert columns == [f"{method} {quality}" for quality in ("c23", "c40")
                       for method in ("DF", "FS", "F2F", "NT")]
    assert same(inputs[0], fakes["DF"])
    _, _, low_quality = faces_of(root, "c40")
    assert same(inputs[7], low_quality["NT"])


@pytest.mark.parametrize("missing, kept", [
    ("matplotlib", {"fig3_masks", "fig6_segmentation"}),
    ("sklearn", {"fig3_masks", "fig6_segmentation", "sweep"}),
])
def test_without_an_optional_package_the_rest_is_drawn_and_one_line_names_it(
        missing, kept, masked_tree, tmp_path, monkeypatch, capsys):
    if missing == "sklearn":
        pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, missing, None)                 # as if it were not installed
    monkeypatch.setitem(sys.modules, "matplotlib.figure", sys.modules.get("matplotlib.figure"))
    if missing == "matplotlib":
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    checkpoint = write_checkpoint(tmp_path / "run" / "best.pt")
    call(monkeypatch, "--checkpoint", checkpoint, "--root", masked_tree, "--workers", 0,
         "--device", "cpu", "--frames", 1, "--sweep", "--figures", tmp_path / "figs")
    drawn = {path.stem for path in (tmp_path / "figs").iterdir()}
    assert kept <= drawn
    assert "fig5_tsne" not in drawn
    lines = {line for line in capsys.readouterr().out.splitlines() if "pip install" in line}
    assert len(lines) == 1
    assert ("matplotlib" if missing == "matplotlib" else "scikit-learn") in lines.pop()


def test_a_panel_shows_what_training_sees_and_the_maps(tiny_tree, tmp_path, sheets):
    """Four fakes and two reals at most; the maps of the clean and of the degraded picture."""
    videos = data.list_videos("ff++", tiny_tree, "c23", "train")
    pairs = data.TrainingPairs(videos, 48, mask=None)
    batch = torch.utils.data.default_collate([pairs[n] for n in range(len(pairs))])
    first_fake = batch["label"].tolist().index(1)
    evaluate.panel(Stub(), batch, SETTINGS, tmp_path / "panel.png")
    assert Image.open(tmp_path / "panel.png").width > 5 * 128
    columns, rows = next(iter(sheets.values()))
    assert columns[:3] == ["clean", "degraded", "mask"]
    assert [name for name, _ in rows] == ["fake"] * 4 + ["real"] * 2
    clean, degraded, mask, map_of_clean, map_of_degraded = rows[0][1]
    assert same(clean, batch["clean"][first_fake].permute(1, 2, 0))
    assert same(degraded, batch["degraded"][first_fake].permute(1, 2, 0))
    assert not np.asarray(mask).any()
    for image in (map_of_clean, map_of_degraded):
        assert np.asarray(image)[:20].min() > 200                   # Stub marks the upper half
        assert np.asarray(image)[-20:].max() < 50


# ---------------------------------------------------------------- diagrams: with matplotlib alone
@pytest.fixture
def diagrams(monkeypatch):
    """The axes of each diagram that is saved: {file: [(title, {label: points}), ...]}."""
    pytest.importorskip("matplotlib")
    saved = {}
    save = evaluate.save_figure

    def note(figure, path):
        for axes in figure.axes:
            lines = {line.get_label(): line.get_xydata() for line in axes.lines}
            saved.setdefault(path.name, []).append((axes.get_title(), lines))
        save(figure, path)

    monkeypatch.setattr(evaluate, "save_figure", note)
    return saved


def test_training_curves_leave_out_what_a_stage_lacks_and_a_torn_line(tmp_path, diagrams):
    lines = [{"iteration": 1, "stage": 1, "loss": 3.0, "seg": 3.0},
             {"iteration": 2, "stage": 2, "loss": 2.0, "cls": 2.0},
             {"iteration": 2, "stage": 2,
              "val": {"frame_auc": 0.75, "video_auc": 0.5, "iou": None}}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "log.jsonl").write_text(text + '{"iteration": 3, "sta')
    evaluate.training_curves(tmp_path)
    assert (tmp_path / "curves.png").exists()
    (_, losses), (_, checks) = diagrams["curves.png"]
    assert losses["loss"].tolist() == [[1, 3], [2, 2]]
    assert losses["seg"].tolist() == [[1, 3]]
    assert losses["cls"].tolist() == [[2, 2]]
    assert "li" not in losses
    assert checks["frame_auc"].tolist() == [[2, 0.75]]
    assert np.isnan(checks["iou"][:, 1]).all()


def test_fig_5_colours_the_features_by_forgery(tiny_tree, tmp_path, monkeypatch):
    """With a t-SNE that takes the first two features, whatever is installed."""
    figure = pytest.importorskip("matplotlib.figure").Figure()

    class TSNE:
        def __init__(self, **settings):
            pass

        def fit_transform(self, features):
            return features[:, :2]

    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.manifold", types.SimpleNamespace(TSNE=TSNE))
    clouds = []                                 # for each axes, a cloud of points for each method

    def keep(figure, path):
        clouds.extend(list(axes.collections) for axes in figure.axes)

    monkeypatch.setattr(evaluate, "save_figure", keep)
    net = random_network(model="xception")
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    runs = [("Xception", net, SETTINGS)]
    evaluate.figure_5(figure, runs, {"c23": videos, "c40": videos}, tmp_path / "fig5.png")
    features, _ = evaluate.pooled_features(net, videos, SETTINGS)
    of_frame = np.repeat([video.method for video in videos], 3)
    assert len(clouds) == 2                                         # a column for each quality
    for cloud in clouds:
        assert [points.get_label() for points in cloud] == ["real", *METHODS]
        assert len({tuple(points.get_facecolor()[0]) for points in cloud}) == 5
        for points in cloud:
            expected = features[of_frame == points.get_label(), :2]
            np.testing.assert_allclose(points.get_offsets(), expected, atol=1e-6)


# ---------------------------------------------------------------- robustness: the sweep
class Contrast(torch.nn.Module):
    """Keeps the contrast of the pictures that arrive."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images.std().item())
        return torch.zeros(len(images), 2)


def test_the_sweep_degrades_what_the_network_sees(tiny_tree):
    """The smaller or the more blurred, the less contrast; JPEG at 100 leaves nearly all of it."""
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    net = Contrast()
    rows = evaluate.sweep(net, {**SETTINGS, "batch_size": 30}, videos)
    seen = {}
    for row, contrast in zip(rows, net.seen[1:], strict=True):      # the first as they are
        seen.setdefault(row["operation"].split()[0], []).append((row["strength"], contrast))
    assert list(seen) == ["JPEG", "resized", "blur"]
    untouched = seen["blur"][0][1]
    assert seen["blur"][0][0] == 0
    assert seen["resized"][0] == (1.0, untouched)
    assert seen["JPEG"][0] == (100, pytest.approx(untouched, rel=0.1))
    for name in ("resized", "blur"):
        contrasts = [contrast for _, contrast in seen[name]]
        assert contrasts == sorted(contrasts, reverse=True)
        assert contrasts[-1] < 0.98 * contrasts[0]
    assert {row["frame_auc"] for row in rows} == {0.5}


def test_the_sweeps_diagram_has_its_numbers_and_the_trainings_range(tmp_path, diagrams):
    rows = []
    for name, _, _, strengths, _ in evaluate.SWEEP:
        for place, strength in enumerate(strengths):
            rows.append({"operation": name, "strength": strength, "frame_auc": 0.9 - 0.1 * place,
                         "iou": None})
    figure = evaluate.matplotlib_figure()()
    evaluate.sweep_plot(figure, "where", [("LiSiam", rows)], tmp_path / "sweep.png")
    assert len(diagrams["sweep.png"]) == 3
    _, lines = diagrams["sweep.png"][0]
    assert lines["LiSiam: frame_auc"][:, 0].tolist() == [100, 80, 60, 40, 20, 5]
    assert lines["LiSiam: frame_auc"][:, 1] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert "LiSiam: iou" not in lines


# ---------------------------------------------------------------- one picture, one video
def scene(brightness=100):
    """A frame of 120 x 200 grey pixels."""
    return Image.new("RGB", (200, 120), (brightness, brightness, brightness))


def test_a_face_is_judged_by_its_crop_and_drawn_over_where_the_map_says(tmp_path, capsys):
    """Stub marks the upper half: there the face turns red, and nothing outside its box."""
    frame = scene()
    frame.paste((255, 255, 255), (100, 40, 164, 104))               # what stands in the box
    before = np.asarray(frame).astype(int)
    evaluate.report_face(Stub(), SETTINGS, "photo", [frame], [(100, 40, 64)], tmp_path / "map.png")
    said = capsys.readouterr().out
    assert "P(fake) 1.000" in said
    assert "x 100, y 40, side 64" in said
    after = np.asarray(Image.open(tmp_path / "map.png")).astype(int)
    change = np.abs(after - before).sum(axis=2)
    outside = change.copy()
    outside[40:104, 100:164] = 0
    assert not outside.any()
    assert change[42:62, 102:162].min() > 100
    assert change[82:102, 102:162].max() < 20
    red, green, blue = after[50, 130].tolist()
    assert red == 255
    assert green == blue < 128


def test_several_frames_give_the_mean_the_spread_and_the_worst_is_drawn(tmp_path, capsys):
    frames = [scene(brightness) for brightness in (120, 140, 130)]
    boxes = [(0, 0, 64), (20, 8, 64), (4, 4, 64)]
    scores = [1 / (1 + np.exp(-10 * (value / 255 * 2 - 1))) for value in (120, 140, 130)]
    evaluate.report_face(Stub(), SETTINGS, "clip", frames, boxes, tmp_path / "map.png")
    said = capsys.readouterr().out
    assert f"P(fake) {np.mean(scores):.3f}" in said
    assert "3 frames" in said
    for number in (min(scores), max(scores), np.std(scores)):
        assert f"{number:.3f}" in said
    assert "x 20, y 8, side 64" in said                             # the highest has its face there
    after = np.asarray(Image.open(tmp_path / "map.png"))
    assert after[0, 0].tolist() == [140, 140, 140]


def test_a_crop_is_judged_in_the_size_the_network_was_trained_with():
    scores, maps = evaluate.judge(Stub(), [scene(120), scene(140)], SETTINGS)
    assert scores[0] < 0.5 < scores[1]
    assert maps[0].shape == maps[1].shape == (48, 48)


def test_the_baseline_has_no_map_to_draw(tmp_path, capsys):
    net = Fixed(np.log([0.25, 0.75]).tolist())
    evaluate.report_face(net, SETTINGS, "photo", [scene()], [(0, 0, 64)], tmp_path / "map.png")
    assert "P(fake) 0.750" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_crop_goes_in_as_it_is_and_what_cannot_be_judged_is_named(
        tmp_path, monkeypatch, capsys):
    """--crop none needs no detector. The good picture is judged, then the exit status is 2."""
    checkpoint = write_checkpoint(tmp_path / "run" / "best.pt")
    crop = tmp_path / "crop.png"
    scene().crop((0, 0, 64, 64)).save(crop)
    call(monkeypatch, "--checkpoint", checkpoint, "--device", "cpu", "--crop", "none",
         "--image", crop)
    said = capsys.readouterr().out
    assert f"{crop}: P(fake) 0." in said
    assert "side 64" in said
    assert "no proof" in said
    assert (tmp_path / "run" / f"{tmp_path.name}_crop.png_map.png").exists()

    oblong = tmp_path / "oblong.png"
    scene().save(oblong)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--checkpoint", checkpoint, "--device", "cpu", "--crop", "none",
             "--image", oblong, text, crop)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert f"{oblong} is not square" in said.err
    assert f"{text} cannot be read" in said.err
    assert f"{crop}: P(fake) 0." in said.out


def bright_faces(frame):
    """A detector for tests: a large face at the left, a small one at the right; none in the dark.

    Boxes are (x1, y1, x2, y2).
    """
    if frame.mean() < 50:
        return []
    return [(150, 40, 160, 50), (40, 40, 80, 80)]


def test_in_a_photograph_the_largest_face_is_judged(tmp_path, monkeypatch, capsys):
    """Its box is squared and 1.3 times as large, as in training: 40 px become 52."""
    monkeypatch.setattr(data, "load_detector", lambda: bright_faces)
    checkpoint = write_checkpoint(tmp_path / "run" / "best.pt")
    photo = tmp_path / "photo.png"
    dark = tmp_path / "dark.png"
    scene(200).save(photo)
    scene(20).save(dark)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--checkpoint", checkpoint, "--device", "cpu", "--image", photo, dark,
             "--figures", tmp_path / "drawn")
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert re.search(r"photo\.png: P\(fake\) 0\.\d+ at x 34, y 34, side 52", said.out)
    assert "dark.png: no face found" in said.err
    drawn = [path.name for path in (tmp_path / "drawn").iterdir()]
    assert drawn == [f"{tmp_path.name}_photo.png_map.png"]


def test_a_video_is_the_mean_of_its_frames(tmp_path, monkeypatch, capsys):
    """Of 9 frames 3, evenly spread; the dark one without a face takes the box of the nearest."""
    asked = []

    def read_frames(video, wanted):
        for index in wanted:
            asked.append(index)
            yield index, np.asarray(scene(20 if index == 4 else 200))

    monkeypatch.setattr(data, "load_detector", lambda: bright_faces)
    monkeypatch.setattr(data, "count_frames", lambda video: 9)
    monkeypatch.setattr(data, "read_frames", read_frames)
    checkpoint = write_checkpoint(tmp_path / "run" / "best.pt")
    call(monkeypatch, "--checkpoint", checkpoint, "--device", "cpu", "--video", "clip.mp4",
         "--frames", 3)
    assert asked == [0, 4, 8]
    said = capsys.readouterr().out
    assert "clip.mp4: P(fake) 0." in said
    assert "3 frames" in said
    assert "x 34, y 34, side 52" in said
    assert list((tmp_path / "run").glob("*clip.mp4_map.png"))
