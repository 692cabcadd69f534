"""evaluate.py beside Sec. IV-A4 and IV-C: metrics against counting, videos kept apart, checkpoints that cannot be trusted."""

import json
import os
import pickle
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import data
import evaluate
import masks


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
    result = evaluate.evaluate(Stub(), {"size": 48}, "ff++", tiny_tree, "c23", "test", batch_size=7)
    videos = data.list_videos("ff++", tiny_tree, "c23", "test")
    scores, labels, owner, ious = [], [], [], []
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
    scores, labels, owner = np.array(scores), np.array(labels), np.array(owner)
    assert (result["frames"], result["videos"], result["real_videos"], result["masked_frames"]) == (30, 10, 2, 24)
    assert result["frame_auc"] == pytest.approx(counted_auc(labels, scores))
    means = np.array([scores[owner == v].mean() for v in range(10)])
    assert result["video_auc"] == pytest.approx(counted_auc(np.array([v.label for v in videos]), means))
    assert result["frame_acc"] == pytest.approx(((scores > 0.5) == labels).mean())
    assert result["iou"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert list(result["methods"]) == list(data.METHODS)
    chosen = np.isin(owner, [v for v, video in enumerate(videos) if video.method in ("real", "Face2Face")])
    assert result["methods"]["Face2Face"]["frame_auc"] == pytest.approx(counted_auc(labels[chosen], scores[chosen]))
    text = evaluate.table([result])
    assert "30" in text and f"{result['frame_auc']:.3f}" in text and "NeuralTextures" in text
    json.dumps(result)                                          # --json writes it


def test_without_masks_localization_is_not_available_and_nothing_is_written(tiny_tree):
    result = evaluate.evaluate(Stub(), {"size": 48}, "ff++", tiny_tree, "c23", "test")
    assert result["iou"] is None and result["pixel_auc"] is None and result["masked_frames"] == 0
    assert "n/a" in evaluate.table([result]) and not list(tiny_tree.glob("**/masks_ssim"))


def test_an_unreadable_frame_is_left_out_and_counted_beside_the_number(tiny_tree):
    path = tiny_tree / "original_sequences/youtube/c23/faces/953/0001.png"
    path.write_bytes(path.read_bytes()[:60])
    result = evaluate.evaluate(Stub(), {"size": 48}, "ff++", tiny_tree, "c23", "test")
    assert (result["frames"], result["unreadable"]) == (29, 1)
    assert "1 frames could not be read" in evaluate.table([result]) and str(path) in evaluate.table([result])


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
    before, after = np.asarray(Image.open(photo)).astype(int), np.asarray(Image.open(next(tmp_path.glob("*_astronaut_map.png")))).astype(int)
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
