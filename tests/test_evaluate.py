"""evaluate.py beside Sec. IV-A4 and IV-C to G: numbers against counting, tables, figures, faces."""

import csv
import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny_tree
from PIL import Image

import data
import evaluate
import masks
import train
from model import build_network, to_input

FLAGS = "--data ff++ --pretrained none --width 0.0625 --size 48 --device cpu --out runs/x"
SETTINGS = train.parse_arguments(FLAGS.split())     # what a checkpoint says about its run
METHODS = ["Deepfakes", "FaceSwap", "Face2Face", "NeuralTextures"]


def counted_auc(labels, scores):
    """AUC by its meaning: the share of pairs (fake, real) that the fake wins; a tie is half."""
    fakes = scores[labels == 1][:, None]
    reals = scores[labels == 0][None]
    return np.mean((fakes > reals) + 0.5 * (fakes == reals))


def random_network(**changes):
    """A network with random weights whose BatchNorm statistics fit them, so that it sees much."""
    settings = {**SETTINGS, **changes}
    torch.manual_seed(settings["seed"])
    net = build_network(settings)
    for module in net.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.momentum = 1.0               # the statistics of the last batch alone
    with torch.no_grad():
        net.train()(torch.rand(8, 3, 64, 64) * 2 - 1)
    return net.eval()


def write_checkpoint(path, **changes):
    """A checkpoint of such a network, as train.py writes them. Returns the path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": random_network(**changes).state_dict(), "threshold": 0.35,
                "settings": {**SETTINGS, **changes}}, path)
    return str(path)


def run_of(net, batch_size=7, workers=0):
    call = {"device": "cpu", "workers": workers, "batch_size": batch_size}
    return evaluate.Run("Stub", net, {**SETTINGS, "threshold": 0.2}, call)


def videos_of(root, quality="c23"):
    return data.list_videos("ff++", root, quality, "test")


def masked(root):
    """A tree, after masks.py has written the masks of its test split."""
    masks.write_masks(videos_of(root), workers=1)
    return root


def read_mask(path):
    return np.asarray(Image.open(path)) == 255


def video_means(labels, scores, owners):
    """Labels and scores of videos: the mean of their frames (Sec. IV-C)."""
    names, firsts = np.unique(owners, return_index=True)
    return labels[firsts], np.array([scores[owners == name].mean() for name in names])


def call(monkeypatch, *arguments):
    """python evaluate.py with these arguments, in this process and on the CPU."""
    if "--checkpoint" in arguments:
        arguments = [*arguments, "--device", "cpu", "--workers", 0]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


def stopped(monkeypatch, capsys, *arguments):
    """What evaluate.py says when it ends with a sentence; a wrong flag has exit status 2."""
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    if isinstance(stop.value.code, str):        # Python prints it, and the exit status is 1
        return stop.value.code
    assert stop.value.code == 2
    return capsys.readouterr().err


# ---------------------------------------------------------------- Sec. IV-A4: metrics
@pytest.mark.parametrize("levels", [1, 2, 5, 10 ** 9])
def test_auc_equals_counting_pairs_ties_included(levels):
    rng = np.random.default_rng(levels)
    labels = rng.integers(0, 2, 60)
    scores = rng.integers(0, levels, 60).astype(float)
    expected = counted_auc(labels, scores)
    assert evaluate.auc(labels, scores) == pytest.approx(expected, abs=1e-12)
    assert evaluate.auc(labels, -scores) == pytest.approx(1 - expected, abs=1e-12)


def test_accuracy_is_at_one_half_and_by_class():
    """AUC and accuracy are not available where a class is missing."""
    labels = np.array([0, 0, 0, 1])
    scores = np.array([0.5, 0.2, 0.7, 0.6])
    assert evaluate.accuracy(labels, scores) == 0.75                # 0.5 itself is not "fake"
    assert evaluate.accuracy(labels[:3], scores[:3]) == pytest.approx(2 / 3)
    assert evaluate.accuracy(labels[3:], scores[3:]) == 1
    assert evaluate.accuracy([], []) is None
    assert evaluate.auc([1, 1], [0.1, 0.9]) is evaluate.auc([0], [0.3]) is None


def test_intervals_draw_videos_not_frames():
    """Whole videos are drawn with replacement, reals and fakes apart, at least five of each."""
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
        drawn = [*rng.choice(fake, 6), *rng.choice(real, 5)]
        rows = np.concatenate([np.flatnonzero(video == index) for index in drawn])
        means = np.array([scores[video == index].mean() for index in drawn])
        is_fake = np.isin(drawn, fake).astype(int)
        samples.append([((scores[rows] > 0.5) == labels[rows]).mean(),
                        counted_auc(labels[rows], scores[rows]),
                        ((means > 0.5) == is_fake).mean(), counted_auc(is_fake, means)])
    expected = np.percentile(samples, [2.5, 97.5], axis=0).T
    np.testing.assert_allclose(list(found.values()), expected, atol=0.06)
    assert evaluate.intervals(np.arange(9) < 4, np.ones(9), np.arange(9)) == {}


def brute_force_constant(forged):
    """The best mean IoU of a level set of the mean mask, frame by frame."""
    constants = [forged.mean(axis=0) > k / 20 for k in range(20)]
    return max(np.mean([(mask & constant).sum() / (mask | constant).sum() for mask in forged])
               for constant in constants)


def test_the_numbers_of_a_map_by_hand():
    """A 4 x 4 map: 0.9 in the left half, 0.3 in the right; the first mask is the upper half."""
    probs = torch.full((2, 4, 4), 0.3)
    probs[:, :, :2] = 0.9
    mask = torch.zeros(2, 4, 4, dtype=torch.uint8)
    mask[0, :2] = 1
    iou, marked = evaluate.map_numbers(evaluate.count_pixels(probs, mask))
    assert marked.tolist() == [0.5, 0.5]
    by_threshold = dict(zip(evaluate.THRESHOLDS.round(2), iou[0].tolist()))
    assert by_threshold[0.2] == pytest.approx(8 / 16)       # all of the picture is marked
    assert by_threshold[0.5] == pytest.approx(4 / 12)
    assert by_threshold[0.95] == 0
    assert iou[1].isnan().all()                             # nothing is forged there
    assert evaluate.best_threshold({"iou_by_threshold": iou[0].tolist()}) == 0.05
    assert evaluate.best_threshold({"iou_by_threshold": [None] * 19}) == 0.5


def test_a_video_scores_the_mean_of_its_frames_and_belongs_to_one_method():
    """Sec. IV-C. 0_3 is a Deepfakes and a FaceSwap video; merged, they would have one mean."""
    names = [("real", "0"), ("Deepfakes", "0_3"), ("FaceSwap", "0_3"), ("real", "3")]
    videos = [data.Video("ff++", method, id, int(method != "real"), [], []) for method, id in names]
    assert len({video.key for video in videos}) == 4
    found = {"score": np.array([0.6, 0.1, 0.1, 0.9, 0.7, 0.2, 0.2, 0.3]),
             "video": np.array([0, 0, 0, 1, 1, 2, 2, 3]), "has_mask": np.zeros(8, bool)}
    row = evaluate.summarize(found, videos)                         # means 0.27, 0.8, 0.2, 0.3
    assert (row["frames"], row["real_frames"]) == (8, 4)
    assert (row["videos"], row["real_videos"]) == (4, 2)
    assert row["frame_auc"] == (8 + 4) / 16                         # wins of 4 x 4 pairs
    assert row["video_auc"] == 2 / 4
    assert row["video_acc_fake"] == 0.5
    assert row["video_acc_real"] == 1
    one_method = evaluate.summarize(found, videos, "FaceSwap")
    assert (one_method["videos"], one_method["video_auc"]) == (3, 0)


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
    """The map is measured on fakes that have a mask: here one Deepfakes video has none."""
    shutil.rmtree(masked_tree / "manipulated_sequences/Deepfakes/masks_ssim/953_974")
    test = evaluate.TestSet("somewhere", "ff++", "c23", videos_of(masked_tree), None)
    result, found = evaluate.evaluate(run_of(Stub()), test)
    is_fake = np.array([label == 1 for *_, label in found["names"]])
    assert evaluate.agreement(found, found, is_fake) == 1
    other_frames = {**found, "names": found["names"][::-1]}
    assert evaluate.agreement(found, other_frames, is_fake) is None
    frames = [path for path in masked_tree.glob("*/*/c23/faces/*/*.png")
              if path.parent.name in ("953", "974", "953_974", "974_953")]     # the test split
    methods = np.array([path.parents[3].name for path in frames])
    owners = np.array([f"{path.parents[3].name}/{path.parent.name}" for path in frames])
    labels = (methods != "youtube").astype(int)
    brightness = np.array([np.asarray(Image.open(path)).mean() / 255 * 2 - 1 for path in frames])
    scores = 1 / (1 + np.exp(-10 * brightness))
    right = (scores > 0.5) == labels
    video_labels, means = video_means(labels, scores, owners)
    assert (result["test"], result["data"], result["quality"]) == ("somewhere", "ff++", "c23")
    assert (result["frames"], result["real_frames"], result["masked_frames"]) == (30, 6, 21)
    assert (result["videos"], result["real_videos"]) == (10, 2)
    assert 0 < right.mean() < 1
    assert result["frame_acc"] == pytest.approx(right.mean())
    assert result["frame_acc_real"] == pytest.approx(right[labels == 0].mean())
    assert result["frame_acc_fake"] == pytest.approx(right[labels == 1].mean())
    assert result["frame_auc"] == pytest.approx(counted_auc(labels, scores))
    assert result["video_acc"] == pytest.approx(((means > 0.5) == video_labels).mean())
    assert result["video_auc"] == pytest.approx(counted_auc(video_labels, means))
    chosen = np.isin(methods, ["youtube", "Face2Face"])
    of_method = result["methods"]["Face2Face"]
    assert of_method["frame_auc"] == pytest.approx(counted_auc(labels[chosen], scores[chosen]))
    assert (of_method["frames"], of_method["masked_frames"]) == (12, 6)

    # Stub's map: two rows of 4 say fake, two say real; at 48 px it is bilinear between them.
    probs = np.interp((np.arange(48) + 0.5) / 12 - 0.5, [1, 2], [1 / (1 + np.exp(-9)), 0])
    wins = (probs[:, None] > probs) + 0.5 * (probs[:, None] == probs)       # of a row of pixels
    assert list(result["methods"]) == METHODS
    forged = []
    constants = []                              # the best mask for each method, then the mean
    for method, row in [*result["methods"].items(), (None, result)]:
        if row is not result:
            folder = masked_tree / "manipulated_sequences" / method / "masks_ssim"
            forged.append(np.stack([read_mask(path) for path in folder.glob("9*/*.png")]))
            constants.append(brute_force_constant(forged[-1].reshape(len(forged[-1]), -1)))
            assert row["iou_constant"] == pytest.approx(constants[-1])
            mean_mask = np.broadcast_to(forged[-1].mean(axis=0), forged[-1].shape)
            pixel_auc = counted_auc(forged[-1], mean_mask)
            assert row["pixel_auc_constant"] == pytest.approx(pixel_auc)
        chosen = np.concatenate(forged) if row is result else forged[-1]
        fakes, reals = chosen.sum(axis=(0, 2)), (~chosen).sum(axis=(0, 2))  # pixels of each row
        pixel_auc = fakes @ wins @ reals / (fakes.sum() * reals.sum())
        assert row["pixel_auc"] == pytest.approx(pixel_auc, abs=2e-3)       # in steps of 0.001
    assert result["iou_constant"] == pytest.approx(np.mean(constants))
    for column, threshold in (("iou", 0.5), ("iou_val", 0.2)):
        marked = np.repeat(probs[:, None] >= threshold, 48, axis=1)
        ious = [(mask & marked).sum() / (mask | marked).sum() for mask in np.concatenate(forged)]
        assert result[column] == pytest.approx(np.mean(ious), abs=1e-6)
    assert result["iou"] != result["iou_val"]
    assert result["marked_real"] == 0.5


@pytest.mark.parametrize("name", ["lisiam", "xception"])
def test_five_classes_give_one_minus_the_chance_of_real(name):
    """Fig. 5: P(fake) = 1 - P(real), whichever of the four forgeries it is."""
    net = random_network(model=name, num_classes=5)
    images = torch.randint(256, (4, 48, 48, 3), dtype=torch.uint8)
    with torch.no_grad():
        scores, _ = evaluate.scores_and_maps(net, images)
        output = net(images.permute(0, 3, 1, 2) / 127.5 - 1)
    logits = output if name == "xception" else output.cls_logits
    expected = logits.exp()[:, 1:].sum(dim=1) / logits.exp().sum(dim=1)
    torch.testing.assert_close(scores.float(), expected)


def test_scores_close_to_one_do_not_tie():
    """In float32 both would be 1.0 exactly."""
    images = torch.zeros(1, 48, 48, 3, dtype=torch.uint8)
    sure, _ = evaluate.scores_and_maps(lambda images: torch.tensor([[0.0, 20.0]]), images)
    surer, _ = evaluate.scores_and_maps(lambda images: torch.tensor([[0.0, 25.0]]), images)
    assert sure.item() < surer.item() < 1


def test_a_frame_is_judged_alike_whatever_its_batch_and_its_process(masked_tree, monkeypatch):
    """27 frames: one process has 14 of them, the other 13. train.gather joins their shares.

    The network was left in training mode, but BatchNorm and dropout must not be at work.
    """
    videos = videos_of(masked_tree)[:9]
    net = random_network()

    def predict(batch_size, *share):
        run = run_of(net.train(), batch_size)
        test = evaluate.TestSet("", "ff++", "c23", videos, None)
        return evaluate.predict(run, test, keep_pixels=True, share=share)

    alone = predict(1, 0, 1)
    np.testing.assert_allclose(predict(9, 0, 1)["score"], alone["score"], atol=1e-5)
    assert np.ptp(alone["score"]) > 0.01
    shares = [predict(1, 0, 2), predict(1, 1, 2)]
    assert [len(share["score"]) for share in shares] == [14, 13]

    def all_gather(parts, found):
        parts[:] = shares

    monkeypatch.setattr(train.distributed, "all_gather_object", all_gather)
    joined = train.gather(shares[1], 2)
    assert {*joined, "names"} == set(alone)
    for name, expected in joined.items():
        np.testing.assert_allclose(alone[name], expected, atol=1e-5, err_msg=name)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
def test_loading_processes_leave_no_file_descriptors_open(masked_tree):
    """What a loading process sends is an open file here until the tensor is dropped."""
    net, counts = Stub(), []
    net.register_forward_hook(lambda *parts: counts.append(len(os.listdir("/proc/self/fd"))))
    run = run_of(net, batch_size=1, workers=2)
    test = evaluate.TestSet("", "ff++", "c23", videos_of(masked_tree), None)
    evaluate.predict(run, test, keep_pixels=True)
    assert len(counts) == 30
    assert max(counts[20:]) - max(counts[:10]) < 10


# ---------------------------------------------------------------- the command line
@pytest.mark.parametrize("flags, part", [
    ("--data ff++", "--checkpoint"),
    ("--checkpoint nowhere.pt", "nowhere.pt"),
    ("--checkpoint a b --image x.png", "one --checkpoint"),
    ("--checkpoint a --image x.png --video x.mp4", "--video"),
    ("--checkpoint a --video x.mp4 --frames 101", "100"),
    ("--checkpoint a --frames 0", "--frames"),
    ("--checkpoint a --data ff++ demo --root x", "--root"),
    ("--data celeb-df-v2 --figures figs", "--figures"),
])
def test_what_cannot_work_is_refused_before_the_work(flags, part, monkeypatch, capsys):
    said = stopped(monkeypatch, capsys, *flags.split())
    assert part in said.splitlines()[-1]        # the lines before it are argparse's usage


def test_a_broken_first_picture_is_named_before_the_work(
        tiny_tree, tmp_path, monkeypatch, capsys):
    """Of all test sets: here the second has broken ones."""
    broken = list(write_celeb(tmp_path / "celeb").glob("*/faces/*/0000.png"))
    for path in broken:
        path.write_bytes(b"")
    checkpoint = write_checkpoint(tmp_path / "best.pt")
    said = stopped(monkeypatch, capsys, "--checkpoint", checkpoint, "--data", "ff++",
                   "celeb-df-v2", "--root", tiny_tree, tmp_path / "celeb")
    assert any(str(path) in said for path in broken)
    assert "AUC" not in capsys.readouterr().out     # no row of a table


def test_scores_that_are_no_numbers_stop_the_evaluation(tiny_tree):
    """A network whose statistics are damaged answers NaN, which must not get an AUC."""
    net = random_network()
    net.backbone.bn1.running_var[0] = float("nan")
    with pytest.raises(SystemExit, match="finite"):
        test = evaluate.TestSet("", "ff++", "c23", videos_of(tiny_tree), None)
        evaluate.predict(run_of(net), test)


def test_a_map_is_compared_with_masks_of_another_kind_or_not_at_all(
        masked_tree, tmp_path, monkeypatch, capsys):
    """There are SSIM masks only, and none is written. --json keeps how the network was trained."""
    checkpoint = write_checkpoint(tmp_path / "best.pt")
    for mask, frames in (("ssim", 8), ("diff", 0)):
        call(monkeypatch, "--checkpoint", checkpoint, "--root", masked_tree, "--frames", 1,
             "--mask", mask, "--batch-size", 5, "--json", tmp_path / "x.json")
        run, = json.loads((tmp_path / "x.json").read_text())
        result, = run["results"]
        assert run["settings"] == {**SETTINGS, "threshold": 0.35}
        assert result["test"] == f"ff++ c23 test, 1 frames a video, {mask} masks"
        assert result["masked_frames"] == frames
        for column in ("iou", "iou_val", "iou_constant", "pixel_auc"):
            assert (result[column] is None) == (mask == "diff")
        assert ("IoU" in capsys.readouterr().out) == (mask == "ssim")
    assert not list(masked_tree.glob("**/masks_diff"))


def write_celeb(root):
    """Celeb-DF with two videos of two frames. In its list 1 means real; here 1 is fake."""
    for number, name in enumerate(("Celeb-real/id0_0", "Celeb-synthesis/id0_id1_0")):
        folder = root / name.replace("/", "/faces/")
        folder.mkdir(parents=True)
        for frame in range(2):
            picture = Image.new("RGB", (48, 48), (100 + 90 * number, 40, 60 * frame))
            picture.save(folder / f"{frame:04d}.png")
    listed = "1 Celeb-real/id0_0.mp4\n0 Celeb-synthesis/id0_id1_0.mp4\n"
    (root / "List_of_testing_videos.txt").write_text(listed)
    return root


def test_csv_has_a_line_for_each_frame_and_all_numbers_follow_from_it(
        masked_tree, tmp_path, monkeypatch):
    """Also for Celeb-DF, which has one quality and no masks (Table III), and for the baseline."""
    celeb = write_celeb(tmp_path / "celeb")
    checkpoints = [write_checkpoint(tmp_path / model / "best.pt", model=model)
                   for model in ("lisiam", "xception")]
    call(monkeypatch, "--checkpoint", *checkpoints, "--data", "ff++", "celeb-df-v2", "--root",
         masked_tree, celeb, "--csv", tmp_path / "x.csv", "--json", tmp_path / "x.json")
    lines = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    report = json.loads((tmp_path / "x.json").read_text())
    parts = [(checkpoint, result) for checkpoint, run in zip(checkpoints, report)
             for result in run["results"]]
    assert [result["frames"] for _, result in parts] == [30, 4, 30, 4]
    assert len(lines) == 68
    for checkpoint, result in parts:
        chosen = [line for line in lines
                  if (line["checkpoint"], line["data"]) == (checkpoint, result["data"])]
        names = {(line["method"], line["video"], line["frame"]) for line in chosen}
        assert len(names) == len(chosen) == result["frames"]
        assert {line["quality"] for line in chosen} == {result["quality"] or ""}
        labels = np.array([int(line["method"] not in ("real", "Celeb-real")) for line in chosen])
        assert [int(line["label"]) for line in chosen] == labels.tolist()
        scores = np.array([float(line["score"]) for line in chosen])
        assert result["frame_auc"] == pytest.approx(counted_auc(labels, scores))
        owners = np.array([f"{line['method']}/{line['video']}" for line in chosen])
        video_auc = counted_auc(*video_means(labels, scores, owners))
        assert result["video_auc"] == pytest.approx(video_auc)
        ious = [float(line["iou"]) for line in chosen if line["iou"]]
        has_iou = checkpoint == checkpoints[0] and result["data"] == "ff++"
        assert len(ious) == (24 if has_iou else 0)
        assert result["iou"] == (pytest.approx(np.mean(ious)) if has_iou else None)


def test_json_and_csv_survive_a_test_set_that_breaks(masked_tree, tmp_path, monkeypatch):
    """They are written again after each test set. The broken frame is not a video's first."""
    celeb = write_celeb(tmp_path / "celeb")
    (celeb / "Celeb-synthesis/faces/id0_id1_0/0001.png").write_bytes(b"")
    checkpoint = write_checkpoint(tmp_path / "best.pt")
    with pytest.raises(ValueError, match="id0_id1_0/0001.png"):
        call(monkeypatch, "--checkpoint", checkpoint, "--data", "ff++", "celeb-df-v2", "--root",
             masked_tree, celeb, "--csv", tmp_path / "x.csv", "--json", tmp_path / "x.json")
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 1 + 30
    run, = json.loads((tmp_path / "x.json").read_text())
    assert [result["frames"] for result in run["results"]] == [30]


# ---------------------------------------------------------------- Tables I to VII
def result_of(**numbers):
    """A result of evaluate, every number 0.5 but those given."""
    row = dict.fromkeys([*evaluate.DECISION, *evaluate.MAP], 0.5)
    return {"test": "ff++ c23 test", "operation": None, **row, "methods": {}, "intervals": {},
            **numbers}


def cells_of(table):
    """A Markdown table as its head and its rows, lists of cells. Its columns line up."""
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return head, rows


def test_a_result_is_shown_in_tables_of_the_decision_and_of_the_map():
    """Each for all and for each method. Beside the map stand the constant masks."""
    fakes = {"videos": 4, "frames": 12, "frame_auc": 0.25, "iou": 0.31}
    result = result_of(videos=10, frames=30, frame_acc_real=None, iou=0.6, iou_val=0.05,
                       iou_constant=0.44, methods={"FaceSwap": fakes},
                       intervals={"frame_auc": [0.912, 0.934]})
    texts = evaluate.result_tables([result]).split("\n\n")
    decision, maps, decision_by_method, maps_by_method, sentence, spans = texts
    head, rows = cells_of(decision)
    assert head[:4] == ["test set", "videos", "frames", "AUC frame"]
    assert rows[0][:4] == ["ff++ c23 test", "10", "30", "0.500"]
    assert rows[0][head.index("of reals")] == "n/a"
    head, rows = cells_of(maps)
    assert head[:4] == ["test set", "IoU", "at val's threshold", "of constant masks"]
    assert rows[0][:4] == ["ff++ c23 test", "0.600", "0.050", "0.440"]
    assert "fitted to the test frames" in sentence
    assert cells_of(decision_by_method)[1][0][:4] == ["ff++ c23 test: FaceSwap", "4", "12", "0.250"]
    assert cells_of(maps_by_method)[1][0][:2] == ["ff++ c23 test: FaceSwap", "0.310"]
    assert "AUC frame 0.912 to 0.934" in spans
    of_a_sweep = evaluate.result_tables([{**result, "operation": "JPEG quality"}])
    assert "FaceSwap" in texts[2] and "FaceSwap" not in of_a_sweep      # 18 points times 4 methods


def write_report(path, result, **changes):
    settings = {**SETTINGS, **changes}
    path.write_text(json.dumps([{"settings": settings, "results": [result]}]))
    return path


def test_tables_average_over_seeds_and_keep_what_differs_apart(tmp_path):
    """In percent. A file of a run without "methods" in its settings was trained on all of them."""
    numbers = {"frame_acc": 0.25, "video_acc": 0.75, "video_auc": 0.9, "iou": None}
    paths = [write_report(tmp_path / "0.json", result_of(frame_auc=0.98, **numbers), seed=0),
             write_report(tmp_path / "1.json", result_of(frame_auc=0.96, **numbers), seed=1),
             write_report(tmp_path / "f.json", result_of(test="demo test"), variant="F",
                          methods=["Deepfakes", "Face2Face"])]
    older = paths[0].read_text().replace('"methods": null, ', "")
    assert "methods" not in json.loads(older)[0]["settings"]
    paths[0].write_text(older)
    head, rows = cells_of(evaluate.tables([*paths, paths[0]]))      # a file twice counts once
    assert head[:9] == ["model", "trained on", "tested on", "runs", "Acc frame", "AUC frame",
                        "Acc video", "AUC video", "IoU"]
    assert [row[:9] for row in rows] == [
        ["LiSiam", "ff++ c23", "ff++ c23 test", "2", "25.00 ± 0.00", "97.00 ± 1.41",
         "75.00 ± 0.00", "90.00 ± 0.00", "n/a"],
        ["Model-F", "ff++ c23, Deepfakes and Face2Face only", "demo test", "1", *5 * ["50.00"]]]
    paths[1] = write_report(tmp_path / "narrow.json", result_of(), width=0.5)
    paths[2] = write_report(tmp_path / "one.json", result_of(), methods=["FaceSwap"])
    _, rows = cells_of(evaluate.tables(paths))
    assert [row[:2] for row in rows] == [["LiSiam, width 0.0625", "ff++ c23"],
                                         ["LiSiam, width 0.5", "ff++ c23"],
                                         ["LiSiam, width 0.0625", "ff++ c23, FaceSwap only"]]


def test_runs_are_named_as_in_the_papers_tables():
    for changes, name in (
            ({"mask": "diff"}, "LiSiam+DIFF"), ({"variant": "G"}, "Model-G"),
            ({"num_classes": 5}, "LiSiam, 5 classes"), ({"model": "xception"}, "Xception"),
            ({"model": "xception", "iqd": True, "mask": "diff"}, "Xception+IQD")):
        assert evaluate.model_name({**SETTINGS, **changes}) == name


# ---------------------------------------------------------------- Sec. IV-G: Grad-CAM
@pytest.mark.parametrize("name, num_classes", [("lisiam", 5), ("xception", 2)])
def test_grad_cam_weights_channels_by_how_the_fake_logit_moves_with_them(
        name, num_classes, monkeypatch):
    """By finite differences; the map is X_I, or the baseline's last after its ReLU (Sec. IV-G).

    Of five classes the logit is that of the likeliest forgery, here Face2Face.
    """
    net = random_network(model=name, num_classes=num_classes).double()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 2 - 1
    if name == "lisiam":
        net.f_mlp.f_mlp[-1].bias.data[3] += 10
    else:
        net.fc.weight.data[1].abs_()            # else nothing speaks for fake in these weights
    found = evaluate.grad_cam(net, images)
    with torch.no_grad():
        backbone, middle = net.backbone(images)
        if name == "lisiam":
            feats, region_logits = net.ocr(backbone, middle)
        else:
            feats = torch.relu(net.bn3(net.conv3(backbone)))
            feats = torch.relu(net.bn4(net.conv4(feats)))
    monkeypatch.setattr(net.backbone, "forward", lambda images: (backbone, middle))

    @torch.no_grad()
    def fake_logits(channel, step):
        """The logits if one channel of the feature map is raised everywhere."""
        raised = feats.clone()
        raised[:, channel] += step
        if name == "xception":
            return net.fc(raised.mean(dim=(2, 3)))[:, 1]
        monkeypatch.setattr(net.ocr, "forward", lambda *inputs: (raised, region_logits))
        return net(images).cls_logits[:, 3]

    heat = torch.zeros(2, 1, *feats.shape[2:], dtype=torch.float64)
    step = 1e-3                                 # f_mt is in float32, where less would drown
    for channel in range(feats.shape[1]):
        slope = (fake_logits(channel, step) - fake_logits(channel, -step)) / (2 * step)
        heat += slope[:, None, None, None] * feats[:, channel:channel + 1]
    heat = torch.nn.functional.interpolate(heat.clamp(min=0).float(), size=(64, 64),
                                           mode="bilinear", align_corners=False)[:, 0]
    hottest = heat.amax(dim=(1, 2), keepdim=True)
    assert hottest.min() > 0
    torch.testing.assert_close(found, heat / hottest, atol=0.01, rtol=0)


def test_grad_cam_is_cold_where_nothing_speaks_for_fake():
    net = random_network(model="xception")
    net.fc.weight.data[1] = -1                  # its features are none below 0
    assert not evaluate.grad_cam(net, torch.rand(1, 3, 48, 48)).any()


# ---------------------------------------------------------------- figures 3 to 8
@pytest.fixture
def grids(monkeypatch):
    """What is asked of evaluate.draw_grid: {"Fig. 3": {row's title: {column's title: picture}}}."""
    asked = {}
    draw = evaluate.draw_grid

    def note(title, rows, path):
        asked[title[:6]] = rows
        draw(title, rows, path)

    monkeypatch.setattr(evaluate, "draw_grid", note)
    return asked


def faces_of(root, quality="c23"):
    """Frame 1 of the test split: the target's, the source's, and each method's fake."""
    reals = root / f"original_sequences/youtube/{quality}/faces"
    paths = {"target": reals / "953/0001.png", "source": reals / "974/0001.png"}
    for method in METHODS:
        folder = root / "manipulated_sequences" / method / quality / "faces/953_974"
        paths[method] = folder / "0001.png"
    return {name: Image.open(path) for name, path in paths.items()}


def test_figures_3_and_4_need_no_network_and_take_crops_as_they_are(tmp_path, grids, monkeypatch):
    """The SSIM mask is the one that masks.py writes. Fig. 4 degrades by R, then C, then G."""
    root = masked(write_tiny_tree(tmp_path / "tree", size=107))
    call(monkeypatch, "--root", root, "--figures", tmp_path / "figs")
    drawn = sorted(path.name for path in (tmp_path / "figs").iterdir())
    assert drawn == ["fig3_masks.png", "fig4_degradations.png"]
    faces = faces_of(root)
    target = faces["target"]
    assert list(grids["Fig. 3"]) == METHODS
    for method, row in grids["Fig. 3"].items():
        written = read_mask(root / f"manipulated_sequences/{method}/masks_ssim/953_974/0001.png")
        assert 0 < written.mean() < 1
        assert np.array_equal(row["SSIM mask"], written)
        assert np.array_equal(row["SSIM map"] * 255 > 20, written)
        assert np.array_equal(row["fake"], faces[method])
        greys = [np.asarray(face.convert("L")).astype(int) for face in (target, faces[method])]
        assert np.array_equal(row["DIFF mask"], np.abs(greys[0] - greys[1]) > 25.5)
    resized = data.resize(target, 100 / 299)
    expected = {"original": target, "R": resized, "C": data.jpeg(target, 10),
                "G": data.blur(target, 1.0), "R&C&G": data.blur(data.jpeg(resized, 10), 1.0)}
    for column, picture in expected.items():
        assert np.array_equal(grids["Fig. 4"]["real"][column], picture)


def test_a_grid_shows_its_pictures_in_rows_and_columns(tmp_path):
    """Where a row has no picture for a column the grid is white. Values are never stretched."""
    red, lime, blue = [np.full((9, 9, 3), colour, np.uint8) for colour in 255 * np.eye(3)]
    rows = {"upper": {"left": red, "right": lime}, "lower": {"right": blue}}
    evaluate.draw_grid("title", rows, tmp_path / "grid.png", side=20)
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    places = []
    for colour in (red, lime, blue):
        ys, xs = np.nonzero((picture == colour[0, 0]).all(axis=2))
        assert len(ys) == 400
        places.append((ys.min(), xs.min()))
    (top, left), (_, right), (bottom, _) = places
    assert places == [(top, left), (top, right), (bottom, right)]
    assert (picture[bottom:bottom + 20, left:left + 20] == 255).all()
    greys = np.asarray(evaluate.to_image(np.array([[0.0, 0.25, 0.5, 1.7]])))
    assert greys[0, :, 0].tolist() == [0, 63, 127, 255]


def test_without_a_fake_and_its_real_video_figures_are_refused(
        tiny_tree, tmp_path, monkeypatch, capsys):
    shutil.rmtree(tiny_tree / "original_sequences")
    said = stopped(monkeypatch, capsys, "--root", tiny_tree, "--figures", tmp_path / "figs")
    assert "real video" in said


def maps_by_hand(net, faces, size=48):
    """P(fake) of the pixels of faces, from the network's logits."""
    faces = [np.asarray(face.resize((size, size), Image.Resampling.BILINEAR)) for face in faces]
    with torch.no_grad():
        output = net(torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2) / 127.5 - 1)
    probs = output.seg_logits.softmax(dim=1)[:, 1:]
    return torch.nn.functional.interpolate(probs, size=(size, size), mode="bilinear")[:, 0].numpy()


def test_figures_are_drawn_of_three_networks_and_two_qualities(
        tmp_path, grids, monkeypatch, capsys):
    """Without optional packages the others are drawn. Celeb-DF, which has no pairs, is in none."""
    monkeypatch.chdir(tmp_path)
    root = masked(write_tiny_tree(tmp_path / "tree", ("c23", "c40")))
    write_celeb(Path("celeb"))                  # a path may be as short as this
    trained = {"small": {"size": 48}, "large": {"size": 64, "seed": 1},
               "base": {"model": "xception", "quality": "c40"}}
    checkpoints = [write_checkpoint(tmp_path / name / "best.pt", **changes)
                   for name, changes in trained.items()]
    for module in ("matplotlib.figure", "sklearn.manifold"):
        monkeypatch.setitem(sys.modules, module, None)              # as if not installed
    call(monkeypatch, "--checkpoint", *checkpoints, "--data", "ff++", "celeb-df-v2", "--root",
         root, "celeb", "--quality", "c23", "c40", "--frames", 1, "--figures", "figs")
    assert sorted(path.name[:4] for path in Path("figs").iterdir()) == ["fig3", "fig4", "fig6",
                                                                        "fig7", "fig8"]
    said = capsys.readouterr().out
    assert "pip install matplotlib" in said
    assert "pip install scikit-learn" in said
    rows = dict(grids["Fig. 6"])
    for name in ("SSIM map", "SSIM mask"):
        truth = rows.pop(name)
        assert {column for column in truth if np.any(truth[column])} == set(METHODS)
    for quality in ("c23", "c40"):
        faces = faces_of(root, quality)
        inputs = rows.pop(f"input, {quality}")
        assert list(inputs) == list(faces)
        assert all(np.array_equal(inputs[name], faces[name]) for name in faces)
        for name, checkpoint in zip(("small", "large"), checkpoints):
            net = random_network(**trained[name])
            maps = rows.pop(f"LiSiam, {checkpoint}: map, {quality}")
            marked = rows.pop(f"LiSiam, {checkpoint}: map >= 0.5, {quality}")
            expected = maps_by_hand(net, faces.values(), trained[name]["size"])
            np.testing.assert_allclose(list(maps.values()), expected, atol=1e-4)
            assert all(np.array_equal(marked[name], maps[name] >= 0.5) for name in faces)
    assert not rows                             # the baseline has no map

    networks = [f"{name}, {path} ({quality})" for name, path, quality in zip(
        ("LiSiam", "LiSiam", "Xception"), checkpoints, ("c23", "c23", "c40"))]
    titles = ["input", "SSIM", *(f"grey map, {name}" for name in networks),
              *(f"Grad-CAM, {name}" for name in networks)]
    assert list(grids["Fig. 7"]) == list(grids["Fig. 8"]) == titles
    columns = [*METHODS, *(f"{method} (2)" for method in METHODS)]      # of two pairs
    assert list(grids["Fig. 7"]["input"]) == columns
    for name in networks:                       # hot is red, cold is blue
        heat = grids["Fig. 7"][f"grey map, {name}"]["FaceSwap"]
        coloured = grids["Fig. 7"][f"Grad-CAM, {name}"]["FaceSwap"].astype(int)
        red, _, blue = np.moveaxis(coloured, 2, 0)
        assert (red - blue)[heat > 0.9].min() > (red - blue)[heat < 0.1].max()
    columns = [f"{method} {quality}" for quality in ("c23", "c40") for method in METHODS]
    assert list(grids["Fig. 8"]["input"]) == columns
    assert np.array_equal(grids["Fig. 8"]["input"]["NeuralTextures c40"],
                          faces_of(root, "c40")["NeuralTextures"])


@pytest.mark.parametrize("name", ["lisiam", "xception"])
def test_fig_5_colours_what_the_last_layers_read_by_forgery(name, tiny_tree, monkeypatch):
    """With a t-SNE that takes the first two features. The last layers say what the network says."""
    pytest.importorskip("matplotlib")
    net = random_network(model=name)
    seen = []
    figures = []

    def fit_transform(features):
        seen.append(torch.from_numpy(features))
        return features[:, :2]

    tsne = types.SimpleNamespace(fit_transform=fit_transform)
    module = types.SimpleNamespace(TSNE=lambda **settings: tsne)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", module)
    monkeypatch.setattr(evaluate, "save_figure", lambda figure, path: figures.append(figure))
    videos = videos_of(tiny_tree)
    evaluate.figure_5([run_of(net)], [evaluate.TestSet("", "ff++", "c23", videos, 1)], "fig5.png")
    frames = [np.asarray(Image.open(frame)) for video in videos for frame in video.frames]
    output = net(to_input(torch.from_numpy(np.stack(frames))))
    if name == "xception":
        torch.testing.assert_close(net.fc(seen[0]), output)
    else:
        torch.testing.assert_close(net.f_mlp.f_mlp(seen[0]), output.cls_logits)
    methods = np.repeat([video.method for video in videos], 3)
    clouds = figures[0].axes[0].collections
    assert [points.get_label() for points in clouds] == ["real", *METHODS]
    for points in clouds:
        expected = seen[0][methods == points.get_label(), :2]
        np.testing.assert_allclose(points.get_offsets(), expected, atol=1e-6)


# ---------------------------------------------------------------- robustness: the sweep
def test_every_point_of_a_sweep_is_an_ordinary_result(tmp_path, monkeypatch):
    """Maps of c40, the first test set, are compared with those of c40 as it is.

    Those are compared with maps of c23, which the run was trained on, whichever comes first.
    """
    root = masked(write_tiny_tree(tmp_path / "tree", ("c23", "c40"), frames=1))
    checkpoint = write_checkpoint(tmp_path / "best.pt", seed=1)
    diagrams = []                               # none without matplotlib
    monkeypatch.setattr(evaluate, "save_figure", lambda figure, path: diagrams.append(figure))
    call(monkeypatch, "--checkpoint", checkpoint, "--root", root, "--quality", "c40", "c23",
         "--sweep", "--json", tmp_path / "x.json")
    run, = json.loads((tmp_path / "x.json").read_text())
    c23, c40, *points = run["results"]
    assert (c23["test"], c40["test"]) == ("ff++ c23 test", "ff++ c40 test")
    assert c23["operation"] is c23["strength"] is c23["agreement"] is None

    net = random_network(seed=1)

    def marks(quality, operation=None, strength=None):
        """What the map marks in two real faces and in eight fakes of the test split."""
        faces = [Image.open(video.frames[0]) for video in videos_of(root, quality)]
        if operation:
            faces = [operation.function(face, strength) for face in faces]
        return maps_by_hand(net, faces) >= 0.5

    def mean_iou_of_fakes(first, second):
        return np.mean([(one & other).sum() / (one | other).sum()
                        for one, other in zip(first[2:], second[2:]) if (one | other).any()])

    clean = marks("c40")
    expected = mean_iou_of_fakes(clean, marks("c23"))
    assert 0.1 < expected < 0.99
    assert c40["agreement"] == pytest.approx(expected, abs=0.01)
    strengths = [(operation, strength) for operation in data.OPERATIONS
                 for strength in operation.sweep]
    assert len({point["test"] for point in points}) == len(points) == 18
    for point, (operation, strength) in zip(points, strengths):
        assert (point["operation"], point["strength"]) == (operation.name, strength)
        assert point["test"].startswith(f"ff++ c40 test, {operation.name} ")
        assert set(point) == set(c40)
        assert None not in [point[column] for column in (*evaluate.DECISION, *evaluate.MAP)]
        marked = marks("c40", operation, strength)
        assert point["marked_real"] == pytest.approx(marked[:2].mean(), abs=2e-3)
        assert point["agreement"] == pytest.approx(mean_iou_of_fakes(marked, clean), abs=0.01)
    assert points[6]["agreement"] == points[11]["agreement"] == 1   # resized to 1.0, blur 0.0
    for diagram in diagrams:
        jpeg, _, _ = diagram.axes
        drawn = {line.get_label(): line.get_xydata().tolist() for line in jpeg.lines}
        assert drawn == {f"LiSiam: {column}": [[point["strength"], point[column]]
                                               for point in points[:6]]
                         for column in ("frame_auc", "iou")}


# ---------------------------------------------------------------- one picture, one video
def scene(brightness=100):
    """A frame of 120 x 200 grey pixels."""
    return np.full((120, 200, 3), brightness, np.uint8)


def write_picture(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def test_the_map_of_the_most_suspicious_frame_is_drawn_over_it(tmp_path, capsys):
    """Stub marks the upper half: there the face turns red, and nothing changes outside its box."""
    levels = (120, 150, 130)                    # what stands in the box, in each frame
    boxes = [(0, 0, 64), (100, 40, 64), (4, 4, 64)]
    frames = [scene(), scene(), scene()]
    for frame, level, (x, y, side) in zip(frames, levels, boxes):
        frame[y:y + side, x:x + side] = level
    scores = [1 / (1 + np.exp(-10 * (level / 255 * 2 - 1))) for level in levels]
    found = {index: (*box, 300) for index, box in enumerate(boxes)}     # as data.find_boxes
    evaluate.report_face(run_of(Stub()), "clip", list(enumerate(frames)), found,
                         tmp_path / "map.png")
    said = capsys.readouterr().out
    assert f"3 frames have P(fake) {min(scores):.3f} to {max(scores):.3f}" in said
    assert f"clip: P(fake) {np.mean(scores):.3f}; face at" in said
    assert "x 100, y 40, side 64" in said
    after = np.asarray(Image.open(tmp_path / "map.png")).astype(int)
    red, green, blue = after[50, 130].tolist()
    assert red > 200
    assert green == blue < 100
    change = np.abs(after - frames[1]).sum(axis=2)
    assert change[42:62, 102:162].min() > 100
    assert change[82:102, 102:162].max() < 20
    change[40:104, 100:164] = 0
    assert not change.any()


def test_a_crop_goes_in_as_it_is_and_what_cannot_be_judged_is_named(
        tmp_path, monkeypatch, capsys):
    """--crop none needs no detector. The good picture is judged all the same."""
    checkpoint = write_checkpoint(tmp_path / "run" / "best.pt", methods=["FaceSwap"])
    crop = write_picture(tmp_path / "crop.png", scene()[:64, :64])
    oblong = write_picture(tmp_path / "oblong.png", scene())
    sentence = stopped(monkeypatch, capsys, "--checkpoint", checkpoint, "--crop", "none",
                       "--image", oblong, crop)
    assert f"{oblong}: no face found; --crop none takes a square picture" in sentence
    said = capsys.readouterr().out
    for part in (f"{crop}: P(fake) 0.", "side 64", "not a proof", "FaceSwap only"):
        assert part in said
    name = "_".join([*tmp_path.parts[-3:], "crop.png_map.png"])
    drawn = tmp_path / "run" / name
    assert Image.open(drawn).size == (64, 64)


def bright_faces(frame):
    """A detector for tests: a large face and a small one, as (x1, y1, x2, y2); none in the dark."""
    return [(150, 40, 160, 50), (40, 40, 80, 80)] if frame.mean() > 50 else []


def test_in_a_photograph_the_largest_face_is_judged(tmp_path, monkeypatch, capsys):
    """Its box becomes 1.3 times as large, as in training. The baseline has no map to draw."""
    monkeypatch.setattr(data, "load_detector", lambda: bright_faces)
    checkpoint = write_checkpoint(tmp_path / "best.pt", model="xception")
    photo = write_picture(tmp_path / "photo.png", scene(200))
    dark = write_picture(tmp_path / "dark.png", scene(20))
    sentence = stopped(monkeypatch, capsys, "--checkpoint", checkpoint, "--image", photo, dark,
                       "--figures", tmp_path / "drawn")
    assert "dark.png: no face found" in sentence
    said = capsys.readouterr().out
    assert "photo.png: P(fake) 0." in said
    assert "x 34, y 34, side 52" in said
    assert not list((tmp_path / "drawn").iterdir())


def test_a_video_is_the_mean_of_its_frames(tmp_path, monkeypatch, capsys):
    """Of 9 frames 3, evenly spread; the dark one without a face takes the box of the nearest."""
    def read_frames(video, wanted):
        assert list(wanted) == [0, 4, 8]
        return [(index, scene(20 if index == 4 else 200)) for index in wanted]

    monkeypatch.setattr(data, "load_detector", lambda: bright_faces)
    monkeypatch.setattr(data, "count_frames", lambda video: 9)
    monkeypatch.setattr(data, "read_frames", read_frames)
    checkpoint = write_checkpoint(tmp_path / "best.pt")
    clip = tmp_path / "clip.mp4"
    clip.touch()
    call(monkeypatch, "--checkpoint", checkpoint, "--video", clip, "--frames", 3)
    said = capsys.readouterr().out
    for part in ("clip.mp4: P(fake) 0.", "3 frames have", "x 34, y 34, side 52"):
        assert part in said
    assert list(tmp_path.glob("*clip.mp4_map.png"))


