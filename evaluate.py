"""
How well a trained network tells real from fake, where it sees the forgery, and the paper's tables and figures.

Read beside Sec. IV-A4 and IV-C to IV-G.
  paper          code              meaning
  frame level    frame_acc, _auc   every frame for itself (Tables I, III, VI)
  video level    video_acc, _auc   the mean P(fake) of a video's frames, one score a video (Tables II, IV, V, VI, VII)
  alpha          scores            P(fake) = 1 - P(real) after softmax, which serves two classes and five
                 iou, pixel_auc    the forgery map against X_gt, on fake frames that have a mask (not in the paper)
Accuracy is at P(fake) > 0.5. FF++'s test set has four fakes to each real: "all fake" scores 80 %, so both classes' accuracies
stand beside it. AUC is undefined (n/a), not 0 or 1, where only one class is there.

    python evaluate.py --checkpoint runs/NAME/best.pt --data ff++ --quality c0 c23 c40 [--json FILE] [--figures DIR] [--sweep]
    python evaluate.py --tables runs/*.json                                          Tables I to VII in Markdown
    python evaluate.py --checkpoint runs/NAME/best.pt --image photo.jpg ... | --video clip.mp4 [--crop auto|none]
"""

import argparse
import functools
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F
from tqdm import tqdm

import data
import masks
from model import LiSiam, XceptionClassifier

LEVELS = ("frame_acc", "frame_auc", "video_acc", "video_auc")      # the four numbers that the paper's tables hold
PIXEL_BINS = 1000           # the map's P(fake) in steps of 0.001, so that pixel AUC needs two histograms and not every pixel


# ---------------------------------------------------------------- Sec. IV-A4: metrics
def auc(labels, scores):
    """Area under the ROC curve: the chance that a fake scores above a real, a tie counting one half. None with one class only.

    labels (n,) of 0 and 1; scores (n,) any real numbers.
    """
    fake = np.asarray(labels).astype(bool)
    levels, place = np.unique(scores, return_inverse=True)                   # equal scores share a place
    return histogram_auc(*(np.bincount(place, chosen, len(levels)) for chosen in (~fake, fake)))


def histogram_auc(untouched, forged):
    """AUC from two histograms over the same rising bins; a bin is a tie. None where one is empty."""
    if not untouched.sum() or not forged.sum():
        return None
    below = np.cumsum(untouched) - untouched / 2
    return float((forged * below).sum() / (untouched.sum() * forged.sum()))


def accuracy(labels, scores, of=None):
    """Share of right answers at P(fake) > 0.5; of=0 or 1: among the real or the fake ones. None where there are none."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    chosen = np.ones(len(labels), bool) if of is None else labels == of
    return float(((scores > 0.5) == labels)[chosen].mean()) if chosen.any() else None


def video_scores(scores, video):
    """Frame scores (n,), video index of each frame (n,) -> mean score of each video that has a frame, and those indices.

    READING Sec. IV-C: "averaging the accuracy and AUC of each frame" has no meaning for AUC, and for accuracy would give the frame
    accuracy again, yet Tables I and II differ (96.51, 97.57). Both are taken of the mean P(fake) of all frames, accuracy at 0.5.
    The authors' release averages over fixed chunks of 100 frames and votes for accuracy.
    """
    indices, inverse = np.unique(video, return_inverse=True)
    return np.bincount(inverse, scores) / np.bincount(inverse), indices


def intervals(labels, scores, video, repeats=1000):
    """95 % bootstrap intervals of the frame- and video-level accuracy and AUC. Frames of a video are alike, so videos are drawn.

    labels, scores (n,) of the frames, video (n,) the index of each frame's video. 1,000 times as many real and as many fake videos
    as there are are drawn with replacement; returns {name: [low, high]}, {} with fewer than five videos of a class. Fakes made on
    one real video count as independent, so on FF++ the intervals are rather too narrow.
    """
    means, indices = video_scores(scores, video)
    place = np.searchsorted(indices, video)                                  # (n,) 0 .. videos - 1
    truth = np.zeros(len(indices), bool)
    truth[place] = labels
    if min(truth.sum(), (~truth).sum()) < 5:
        return {}
    levels = [(t, (score > 0.5) == t, np.unique(score, return_inverse=True)[1], to)          # sorted once, weighted 1,000 times
              for t, score, to in ((truth[place], scores, place), (truth, means, np.arange(len(truth))))]
    rng, samples = np.random.default_rng(0), []
    for _ in range(repeats):
        drawn = np.zeros(len(indices))                                       # how often each video was drawn
        for group in (np.flatnonzero(truth), np.flatnonzero(~truth)):
            np.add.at(drawn, rng.choice(group, len(group)), 1)
        samples.append([number for t, right, rank, to in levels for number in (np.average(right, weights=drawn[to]), histogram_auc(
            np.bincount(rank, drawn[to] * ~t), np.bincount(rank, drawn[to] * t)))])
    return dict(zip(LEVELS, np.percentile(samples, [2.5, 97.5], axis=0).T.tolist()))


def roc(labels, scores, points=200):
    """The ROC curve as [false positive rates], [true positive rates], at most so many points, from (0, 0) to (1, 1)."""
    fake = np.asarray(labels).astype(bool)
    levels, place = np.unique(-np.asarray(scores), return_inverse=True)      # the most suspicious first
    if fake.all() or not fake.any():
        return None
    curve = np.stack([np.concatenate([[0], np.bincount(place, chosen, len(levels)).cumsum() / chosen.sum()]) for chosen in (~fake, fake)])
    return curve[:, np.unique(np.linspace(0, len(levels), points).round().astype(int))].tolist()


# ---------------------------------------------------------------- one pass over the frames
def look(net, images):
    """Eq. (1) on (B, 3, S, S) uint8 pictures -> P(fake) (B,), and the map's P(fake) (B, S, S), None for the baseline.

    In double precision, as float32 would round many scores to 1.0, and ties cost AUC (bfloat16 logits can tie all the same).
    """
    output = net(data.to_input(images))
    cls_logits, probs = (output, None) if torch.is_tensor(output) else (output.cls_logits, output.seg_logits)
    if probs is not None:
        probs = F.interpolate(probs.float().softmax(dim=1)[:, 1:], size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return 1 - cls_logits.double().softmax(dim=1)[:, 0], probs


@torch.inference_mode()
def predict(net, videos, size, batch_size=32, device="cpu", workers=0, limit=None, amp=True, bar="frames", degradation=None,
            with_features=False):
    """Every frame through Eq. (1), in eval mode (which stays on). Returns arrays over the n readable frames, and a list:

    score (n,) P(fake); video (n,) index into videos; iou (n,) of map against mask, NaN without mask or map;
    untouched, forged (videos, 1000) histograms of the map's P(fake) over the pixels of masked fake frames; unreadable: list;
    features (n, channels) on demand: what the last layers read, pooled Z or the baseline's pooled last map.
    """
    frames = data.TestFrames(videos, size, limit, degradation)
    loader = torch.utils.data.DataLoader(frames, batch_size, num_workers=workers, pin_memory=device == "cuda",
                                         generator=torch.Generator())        # its own: ours stays as it is
    scores, video, iou, unreadable, features = [], [], [], [], []
    untouched, forged = (np.zeros((len(videos), PIXEL_BINS)) for _ in range(2))
    pooled, hook = [], None
    if with_features:                                            # f_mlp reads Z before f_aap, (B, C, 13, 13), fc what is pooled, (B, C)
        head = net.fc if isinstance(net, XceptionClassifier) else net.f_mlp
        hook = head.register_forward_pre_hook(lambda module, inputs: pooled.append(
            inputs[0].float().mean(dim=(2, 3)) if inputs[0].dim() == 4 else inputs[0].float()))
    net.eval()
    for batch in tqdm(loader, bar, leave=False, disable=bar is None):
        with torch.autocast(device, torch.bfloat16, enabled=amp and device == "cuda"):
            score, probs = look(net, batch["image"].to(device, non_blocking=True))
        overlap = torch.full_like(score, float("nan"))
        if probs is not None and batch["has_mask"].any():
            mask = batch["mask"].to(device).bool()                                       # (B, S, S)
            marked = probs > 0.5
            overlap = (marked & mask).sum((1, 2)) / (marked | mask).sum((1, 2)).double()   # 0 / 0 = NaN: nothing to find or found
            bins = (probs * PIXEL_BINS).long().clamp(0, PIXEL_BINS - 1).cpu().numpy()
            for k in torch.nonzero(batch["has_mask"]).flatten().tolist():
                inside = mask[k].cpu().numpy()
                forged[batch["video"][k]] += np.bincount(bins[k][inside], minlength=PIXEL_BINS)
                untouched[batch["video"][k]] += np.bincount(bins[k][~inside], minlength=PIXEL_BINS)
            overlap[~batch["has_mask"].to(device)] = float("nan")
        good = [k for k, sentence in enumerate(batch["unreadable"]) if not sentence]
        unreadable += [sentence for sentence in batch["unreadable"] if sentence]
        scores.append(score.cpu().numpy()[good])
        video.append(batch["video"].numpy()[good])
        iou.append(overlap.cpu().numpy()[good])
        if with_features:
            features.append(pooled.pop().cpu().numpy()[good])
    if hook:
        hook.remove()
    return {"score": np.concatenate(scores), "video": np.concatenate(video), "iou": np.concatenate(iou), "unreadable": unreadable,
            "untouched": untouched, "forged": forged, "features": np.concatenate(features) if with_features else None}


def summarize(predictions, videos, method=None):
    """The numbers of one row: all of it, or one method's fakes against all real videos. None stands for undefined."""
    wanted = np.array([video.label == 0 or method in (None, video.method) for video in videos])
    frames = wanted[predictions["video"]]
    scores, video = predictions["score"][frames], predictions["video"][frames]
    labels = np.array([v.label for v in videos])
    means, indices = video_scores(scores, video)
    row = {"videos": len(indices), "real_videos": int((labels[indices] == 0).sum()), "frames": len(scores),
           "real_frames": int((labels[video] == 0).sum())}
    for level, truth, score in (("frame", labels[video], scores), ("video", labels[indices], means)):
        row |= {f"{level}_acc": accuracy(truth, score), f"{level}_auc": auc(truth, score),
                f"{level}_acc_real": accuracy(truth, score, of=0), f"{level}_acc_fake": accuracy(truth, score, of=1)}
    iou = predictions["iou"][frames]
    row["masked_frames"] = int((~np.isnan(iou)).sum())
    row["iou"] = float(np.nanmean(iou)) if row["masked_frames"] else None
    row["pixel_auc"] = histogram_auc(predictions["untouched"][wanted].sum(0), predictions["forged"][wanted].sum(0))
    return row


def evaluate(net, settings, dataset, root, quality, split="test", mask=None, limit=None, batch_size=32, device="cpu", workers=0,
             amp=True):
    """One network on one data set, quality (None for Celeb-DF, which has one) and split; mask: default as trained with.

    Returns what --json writes: counts and numbers, overall and per method, intervals and ROC curves.
    """
    mask = mask or settings["mask"]
    videos = data.require_videos(dataset, root, quality, split, mask)
    found = predict(net, videos, settings["size"], batch_size, device, workers, limit, amp, bar=f"{dataset} {quality or ''} {split}")
    methods = list(dict.fromkeys(video.method for video in videos if video.label))
    labels = np.array([video.label for video in videos])
    means, indices = video_scores(found["score"], found["video"])
    return {"data": dataset, "quality": quality, "split": split, "limit": limit, "mask": mask, "unreadable": len(found["unreadable"]),
            "unreadable_frames": found["unreadable"][:20], **summarize(found, videos),
            "methods": {method: summarize(found, videos, method) for method in methods},
            "intervals": intervals(labels[found["video"]], found["score"], found["video"]),
            "roc": {"frame": roc(labels[found["video"]], found["score"]), "video": roc(labels[indices], means)}}


# ---------------------------------------------------------------- Tables I to VII
COLUMNS = {"frames": "frames", "videos": "videos", "frame_acc": "Acc frame", "frame_auc": "AUC frame", "video_acc": "Acc video",
           "video_auc": "AUC video", "frame_acc_real": "Acc real", "frame_acc_fake": "Acc fake",         # of frames
           "iou": "IoU", "pixel_auc": "AUC pixel"}

# The paper's numbers in percent: model, trained on, tested on, then frame Acc, frame AUC (Tables I, III, VI), video Acc, video AUC
# (Tables II, IV-VII); a number that stands in several tables is the same in all. Xception is the authors' own run but for Table III.
PAPER_NUMBERS = """
Xception       c0  c0    -     -     -     99.89    Xception+IQD  c0  c0    -     -     -     99.64
Xception       c0  c23   -     -     -     68.95    Xception+IQD  c0  c23   -     -     -     97.74
Xception       c0  c40   -     -     -     56.48    Xception+IQD  c0  c40   -     -     -     78.82
Xception       c23 c0    -     -     -     99.33    Xception+IQD  c23 c0    -     -     -     99.31
Xception       c23 c23   94.90 98.37 97.00 99.31    Xception+IQD  c23 c23   -     -     -     99.07
Xception       c23 c40   -     -     -     80.74    Xception+IQD  c23 c40   -     -     -     86.23
Xception       c40 c0    -     -     -     80.68    Xception+IQD  c40 c0    -     -     -     92.14
Xception       c40 c23   -     -     -     88.62    Xception+IQD  c40 c23   -     -     -     92.15
Xception       c40 c40   85.50 85.39 88.71 91.93    Xception+IQD  c40 c40   -     -     -     91.31
LiSiam         c0  c0    -     -     -     99.93    LiSiam        c40 c0    -     -     -     93.88
LiSiam         c0  c23   -     -     -     98.12    LiSiam        c40 c23   -     -     -     93.80
LiSiam         c0  c40   -     -     -     83.52    LiSiam        c40 c40   87.81 91.44 91.29 94.65
LiSiam         c23 c0    -     -     -     99.50    Model-B       c40 c40   86.57 89.41 88.43 93.13
LiSiam         c23 c23   96.51 99.13 97.57 99.52    Model-C       c40 c40   86.50 89.02 88.86 93.99
LiSiam         c23 c40   -     -     -     87.82    Model-D       c40 c40   86.11 90.33 89.42 93.24
LiSiam+DIFF    c23 c23   -     -     97.00 99.41    Model-E       c40 c40   86.21 89.24 89.43 92.94
LiSiam+DIFF    c40 c40   -     -     89.85 93.96    Model-F       c40 c40   87.17 90.65 89.43 94.01
LiSiam         c23 celeb-df-v1 - 81.14 -    -       Model-G       c40 c40   87.18 90.51 90.00 93.91
LiSiam         c23 celeb-df-v2 - 78.21 -    -
Xception       c23 celeb-df-v1 - 38.7  -    -       Xception      c23 celeb-df-v2 - 65.5  -    -
""".split()
# READING Table III: it says "FF++" and no level: c23, and frame level, the default of Sec. IV-A4.
PAPER_NUMBERS = {tuple(PAPER_NUMBERS[k:k + 3]): dict(zip(LEVELS, PAPER_NUMBERS[k + 3:k + 7])) for k in range(0, len(PAPER_NUMBERS), 7)}
TEST_VIDEOS = {"ff++": 700, "celeb-df-v1": 100, "celeb-df-v2": 518}     # official test sets: 140 real + 560 fake of [3]; Celeb-DF's
# Each table: what it holds, models, qualities trained on (None: the one tested on), test sets, numbers.
TABLES = {"Table I": ("frame level", ("Xception", "LiSiam"), None, ("c23", "c40"), ("frame_acc", "frame_auc")),
          "Table II": ("video level", ("Xception", "LiSiam"), None, ("c23", "c40"), ("video_acc", "video_auc")),
          "Table III": ("cross-database, frame level", ("Xception", "LiSiam"), ("c23",), ("celeb-df-v1", "celeb-df-v2"), ("frame_auc",)),
          "Table IV": ("cross-quality, video level", ("Xception", "LiSiam"), data.QUALITIES, data.QUALITIES, ("video_auc",)),
          "Table V": ("cross-quality, degraded input", ("Xception+IQD", "LiSiam"), data.QUALITIES, data.QUALITIES, ("video_auc",)),
          "Table VI": ("ablation", ("Xception", "LiSiam", *(f"Model-{v}" for v in "BCDEFG")), None, ("c40",),
                 ("video_acc", "video_auc", "frame_acc", "frame_auc")),
          "Table VII": ("masks, video level", ("LiSiam+DIFF", "LiSiam"), None, ("c23", "c40"), ("video_acc", "video_auc"))}


def model_name(settings):
    """A run's row in the paper's tables: LiSiam (= Model-A), Model-B .. G, Xception, Xception+IQD, LiSiam+DIFF."""
    name = "Xception" if settings["model"] == "xception" else "LiSiam" if settings["variant"] == "A" else f"Model-{settings['variant']}"
    masked = settings["model"] == "lisiam" and settings["mask"] != "ssim"
    return name + "+IQD" * settings["iqd"] + f"+{settings['mask'].upper()}" * masked + ", 5 classes" * (settings["num_classes"] == 5)


def tested_on(settings, result):
    """A result's column: the quality, for the data set trained on; the data set, for another."""
    return result["quality"] if result["data"] == settings["data"] else test_set(result)


def paper_number(settings, result, name):
    """The paper's number for this very cell, in percent as printed. None where there is none, or where model, training or test set
    differ from the paper's (all videos of the test set, 100 frames of each): its number stands beside nothing else.

    FF++'s frames are counted on the 140 real videos: a fake that is shorter than its real twin has fewer than 100 of its frames."""
    whole = (result["split"] == "test" and not result["limit"] and result["videos"] == TEST_VIDEOS.get(result["data"])
             and (result["data"] != "ff++" or 0 <= 14_000 - result.get("real_frames", 0) <= result["unreadable"]))
    numbers = PAPER_NUMBERS.get((model_name(settings), settings["quality"], tested_on(settings, result)), {})
    number = numbers.get(name, "-") if whole and settings.get("as_published") else "-"
    return None if number == "-" else number


def test_set(result):
    """Its name, without a quality for Celeb-DF."""
    return " ".join(filter(None, (result["data"], result["quality"])))


def show(value):
    return "n/a" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def table(settings, results):
    """A run's results of evaluate -> a Markdown table, one row for all methods and one for each against all real videos."""
    lines, notes = ["| test set | fakes | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"], []
    for result in results:
        where = f"{test_set(result)} {result['split']}"
        numbers = {key: paper_number(settings, result, key) for key in COLUMNS}
        cells = [show(result[key]) + f" (paper: {numbers[key]} %)" * (numbers[key] is not None) for key in COLUMNS]
        lines.append(f"| {where} | all | " + " | ".join(cells) + " |")
        lines += [f"|  | {method} | " + " | ".join(show(row[key]) for key in COLUMNS) + " |" for method, row in result["methods"].items()]
        if result["intervals"]:
            notes.append(f"{where}, 95 % intervals over videos: " + ", ".join(
                f"{COLUMNS[name]} {low:.3f} to {high:.3f}" for name, (low, high) in result["intervals"].items()))
        if result["unreadable"]:
            notes.append(f"{where}: {result['unreadable']} frames could not be read and are left out, the first: "
                         f"{result['unreadable_frames'][0]}")
    if any(result["iou"] is None for result in results):
        notes.append("IoU and pixel AUC are n/a without masks on disk (python masks.py; Celeb-DF has none), and for the baseline")
    return "\n".join(lines + notes)


def paper_tables(paths):
    """JSON files of --json -> Tables I to VII in Markdown, in percent. A cell that no run filled says 'not run'; several runs (seeds)
    make mean and standard deviation. Runs of unlike data or settings get tables of their own."""
    groups = {}                                      # {what is alike: {(model, trained, tested): {run: (result, settings)}}}
    for path in paths:
        try:
            for run in json.loads(Path(path).read_text()):
                settings = run["settings"]
                alike = "as published" if settings.get("as_published") else ", ".join(
                    f"{name} {settings[name]}" for name in ("iterations", "batch_size", "width", "size", "optimizer", "lr", "lambdas",
                                                            "aux", "augment", "pretrained"))
                for result in run["results"]:
                    if result["split"] != "test":
                        continue
                    sampled = f", tested on {result['limit']} frames a video" * bool(result["limit"])
                    cell = groups.setdefault((settings["data"], alike + sampled), {}).setdefault(
                        (model_name(settings), settings["quality"], tested_on(settings, result)), {})
                    if cell.setdefault((settings["seed"], settings["out"]), (result, settings))[0] != result:
                        print(f"warning: {path}: {settings['out']} on {tested_on(settings, result)} is in the tables already, from a file "
                              "before this one", file=sys.stderr)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            data.stop(f"{path} is not a result of evaluate.py --json ({type(error).__name__}: {error}); make one with --checkpoint ... "
                      "--json FILE")

    def text(runs, name):
        values = [100 * result[name] for result, _ in runs.values() if result[name] is not None]
        if not values:
            return "n/a" if runs else "not run"
        paper = {paper_number(settings, result, name) for result, settings in runs.values()} - {None}
        return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f} ({len(values)})" if len(values) > 1 else "") + "".join(
            f" (paper: {number})" for number in paper)

    lines = []
    for (trained_on, alike), cells in sorted(groups.items()):
        lines += [f"## Trained on {trained_on}, {alike}", "", "In percent; several runs: mean ± standard deviation (runs)."]
        models, qualities, tests = (list(dict.fromkeys(cell[k] for cell in cells)) for k in range(3))
        everything = {"Every run": ("AUC of frames, of videos, IoU", models, sorted(qualities), tests, ("frame_auc", "video_auc", "iou"))}
        for number, (what, models, trained, tests, names) in (everything | TABLES).items():
            lines += ["", f"### {number}: {what}", "",
                      "| model | trained on | " + " | ".join(f"{test} {COLUMNS[name]}" for test in tests for name in names) + " |",
                      "|---" * (2 + len(tests) * len(names)) + "|"]
            for quality in trained or (None,):
                for model in models:
                    row = [text(cells.get((model, quality or test, test), {}), name) for test in tests for name in names]
                    if number in TABLES or set(row) != {"not run"}:
                        lines.append(f"| {model} | {quality or 'as tested'} | " + " | ".join(row) + " |")
        lines.append("")
    return "\n".join(lines)


# ---------------------------------------------------------------- drawing
UNIT = (0, 0.25, 0.5, 0.75, 1)
FONT, SMALL = ImageFont.load_default(13), ImageFont.load_default(12)
COLOURS = ("#c23b22", "#1f5fa8", "#2e8b57", "#7b3fa0", "#e08a00", "#444444", "#00838f", "#9e5a2a")


def sheet(title, columns, rows, side=128):
    """Pictures in a grid: columns: titles; rows: [(title, [a Pillow image for each column])]. Returns a Pillow image."""
    left, top, step = 12 + max(int(FONT.getlength(name)) for name, _ in rows), 48, side + 4
    picture = Image.new("RGB", (max(left + len(columns) * step, int(FONT.getlength(title)) + 12), top + len(rows) * step), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((6, 5), title, "black", FONT)
    for c, name in enumerate(columns):
        draw.text((left + c * step, 28), name, "black", FONT)
    for r, (name, tiles) in enumerate(rows):
        draw.text((6, top + r * step + side // 2), name, "black", FONT, anchor="lm")
        for c, tile in enumerate(tiles):
            picture.paste(tile.convert("RGB").resize((side, side), Image.Resampling.BILINEAR), (left + c * step, top + r * step))
    return picture


def plot(title, xlabel, ylabel, xticks, yticks, series, shade=None):
    """A diagram: series [(name, xs, ys, colour, "line", "dashed" or "dots")], where y None is a gap. The axes end at their outer
    ticks, which may rise or fall; shade: (x, x) between which the ground is grey."""
    width, height, left, top, right, bottom = 640, 380, 58, 52, 430, 332
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)

    def at(x, y):
        return (left + (x - xticks[0]) / (xticks[-1] - xticks[0]) * (right - left),
                bottom - (y - yticks[0]) / (yticks[-1] - yticks[0]) * (bottom - top))

    def line(points, colour, style):
        for a, b in ((a, b) for a, b in zip(points, points[1:]) if a and b):
            steps = max(1, int(np.hypot(b[0] - a[0], b[1] - a[1]) / 5)) if style == "dashed" else 1
            ends = np.linspace(a, b, steps + 1)
            for k in range(0, steps, 2):
                draw.line([tuple(ends[k]), tuple(ends[k + 1])], colour, 2)

    if shade:
        (a, _), (b, _) = at(shade[0], 0), at(shade[1], 0)
        draw.rectangle([min(a, b), top, max(a, b), bottom], "#eeeeee")
    for x in xticks:
        draw.line([at(x, yticks[0]), at(x, yticks[-1])], "#d8d8d8")
        draw.text((at(x, 0)[0], bottom + 5), f"{x:.0f}" if abs(x) > 99 else f"{x:.3g}", "black", SMALL, anchor="ma")
    for y in yticks:
        draw.line([at(xticks[0], y), at(xticks[-1], y)], "#d8d8d8")
        draw.text((left - 5, at(0, y)[1]), f"{y:.3g}", "black", SMALL, anchor="rm")
    draw.rectangle([left, top, right, bottom], outline="black")
    draw.text((6, 5), title, "black", FONT)
    draw.text((6, 30), ylabel, "black", SMALL)
    draw.text(((left + right) / 2, height - 22), xlabel, "black", SMALL, anchor="ma")
    for number, (name, xs, ys, colour, style) in enumerate(series):
        points, y = [None if y is None else at(x, y) for x, y in zip(xs, ys)], top + 8 + 18 * number
        if style == "dots":
            for u, v in filter(None, [*points, (right + 18, y)]):
                draw.ellipse([u - 2, v - 2, u + 2, v + 2], colour)
        else:
            line(points, colour, style)
            line([(right + 8, y), (right + 28, y)], colour, style)
        draw.text((right + 34, y), name, "black", SMALL, anchor="lm")
    return picture


def beside(pictures, columns=2):
    """Pictures of one size, in rows of so many."""
    width, height = pictures[0].size
    whole = Image.new("RGB", (width * min(columns, len(pictures)), height * -(-len(pictures) // columns)), "white")
    for k, picture in enumerate(pictures):
        whole.paste(picture, (k % columns * width, k // columns * height))
    return whole


def draw(picture, path):
    """Saves a picture and says where."""
    picture.save(path)
    print(f"drawn: {path}")


def grey(values):
    """(S, S) of 0..1 -> a Pillow image, 1 = white."""
    return Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))


# ---------------------------------------------------------------- curves of a run
def training_curves(folder):
    """Draws log.jsonl of a run: the losses of Sec. III-C and III-D through the stages, and what validation gave. None without a log."""
    path = Path(folder) / "log.jsonl"                    # a full disk may have torn its last line, which then has no end
    lines = [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()] if path.is_file() else []
    steps, checks = [line for line in lines if "loss" in line], [line for line in lines if "val" in line]
    if not steps:
        return None

    def series(lines, names, value):
        return [(title, [line["iteration"] for line in lines], [value(line, name) for line in lines], colour, style)
                for (name, title, style), colour in zip(names, COLOURS) if any(value(line, name) is not None for line in lines)]

    xticks, middle = np.linspace(0, steps[-1]["iteration"], 5), [line["iteration"] for line in steps if line["stage"] == 2]
    highest = max(line["loss"] for line in steps)
    highest = next(limit for limit in sorted(10.0 ** n * m for n in range(-3, 9) for m in (1, 2, 4)) if limit >= highest)
    return beside([plot("Training losses (grey: stage 2)", "iteration", "loss", xticks, np.linspace(0, highest, 5), series(
                        steps, [(name, name, "line") for name in ("loss", "li", "cls", "seg", "aux")], lambda line, name: line.get(name)),
                        middle and (middle[0], middle[-1])),
                   plot("Validation", "iteration", "AUC, IoU", xticks, UNIT, series(
                        checks, [("frame_auc", "AUC frame", "line"), ("video_auc", "AUC video", "line"), ("iou", "IoU", "dashed")],
                        lambda line, name: line["val"][name]))])


def roc_curves(runs):
    """runs [(name, results)] -> the ROC curves by frame and by video, one line for each test set of each run."""
    pictures = []
    for level in ("frame", "video"):
        curves = [(f"{name}, {test_set(result)}: {result[f'{level}_auc']:.3f}", *result["roc"][level])
                  for name, results in runs for result in results if result["roc"][level]]
        pictures.append(plot(f"ROC by {level}", "false positive rate", "true positive rate", UNIT, UNIT, [
            *((name, xs, ys, colour, "line") for (name, xs, ys), colour in zip(curves, COLOURS * len(curves))),
            ("chance", (0, 1), (0, 1), "grey", "dashed")]))
    return beside(pictures)


# ---------------------------------------------------------------- robustness: a sweep over the degradations of Sec. IV-A3
SWEEP = (("JPEG quality", data.jpeg, "quality", (100, 80, 60, 40, 20, 5), data.JPEG_QUALITY),
         ("resized to this share of the side", data.resize, "fraction", (1.0, 0.8, 0.6, 0.4, 0.2), data.RESIZE_SIDE),
         ("blur sigma, px at 299 px", data.blur, "sigma", (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0), data.BLUR_SIGMA))


def sweep(net, settings, videos, **how):
    """AUC and IoU of one network while the test pictures get worse: [{"operation", "strength", "frame_auc", "video_auc", "iou"}]."""
    rows = []
    for operation, function, argument, strengths, _ in SWEEP:
        for strength in strengths:
            found = predict(net, videos, settings["size"], bar=f"{operation} {strength:.3g}",
                            degradation=functools.partial(function, **{argument: strength}), **how)
            row = summarize(found, videos)
            rows.append({"operation": operation, "strength": strength, **{name: row[name] for name in ("frame_auc", "video_auc", "iou")}})
    return rows


def sweep_plot(title, sweeps):
    """sweeps [(name, rows of sweep)] -> a diagram for each operation; from left to right the pictures get worse."""
    pictures = []
    for operation, _, _, strengths, trained in SWEEP:
        series = []
        for (name, rows), colour in zip(sweeps, COLOURS * len(sweeps)):
            rows = [row for row in rows if row["operation"] == operation]
            for key, what, style in (("frame_auc", "AUC frame", "line"), ("iou", "IoU", "dashed")):
                if any(row[key] is not None for row in rows):
                    series.append((f"{name}: {what}", strengths, [row[key] for row in rows], colour, style))
        pictures.append(plot(f"{title}: {operation}", f"{operation} (grey: range of the training's degraded copies)", "AUC, IoU",
                             strengths, UNIT, series, trained))
    return beside(pictures, columns=3)


# ---------------------------------------------------------------- Sec. IV-G: Grad-CAM [59], [60]
def grad_cam(net, images):
    """What spoke for fake: images (B, 3, S, S) in [-1, 1] -> (B, S, S) float32 in 0..1, the hottest pixel 1; all 0 where nothing did.

    Each channel of the last feature map is weighted by the mean gradient of the logit of the likeliest forgery.
    READING Sec. IV-G: the layer is not said: the last convolution's map, X_I (512 x 37 x 37) or the baseline's (2048 x 10 x 10).
    """
    kept = []                       # bn4's output is kept before its ReLU, which then works in place: what is kept is after the ReLU
    layer = net.bn4 if isinstance(net, XceptionClassifier) else net.ocr
    with layer.register_forward_hook(lambda module, inputs, output: kept.append(output[0] if isinstance(output, tuple) else output)):
        output = net(images)
    cls_logits = output if torch.is_tensor(output) else output.cls_logits
    gradient, = torch.autograd.grad(cls_logits[:, 1:].max(dim=1).values.sum(), kept[0])
    heat = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1, keepdim=True).relu()                # (B, 1, 37, 37)
    heat = F.interpolate(heat.detach().float(), size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def heat_colour(image, heat):
    """The picture under its heat, blue (cold) to red (hot). image Pillow (S, S), heat (S, S) in 0..1."""
    ramp = np.stack([np.clip(1.5 - np.abs(4 * heat - k), 0, 1) for k in (3, 2, 1)], axis=-1) * 255
    return Image.blend(image, Image.fromarray(ramp.astype(np.uint8)), 0.45)


def heat_in_mask(net, settings, videos, device="cpu"):
    """How much of Grad-CAM's heat lies inside X_gt, on the middle frame of each fake with a mask: (share, chance, frames).

    Chance is the mask's share of the picture: what heat spread evenly would reach. Frames without any heat are left out.
    """
    shares, chances = [], []
    for video in tqdm(videos, "Grad-CAM", leave=False):
        if video.label and video.masks:
            frame = list(video.masks)[len(video.masks) // 2]
            try:
                mask = data.read_mask(video.masks[frame], settings["size"])
                images = data.to_tensor(data.read_face(video.frames[frame], settings["size"]))[None].to(device)
            except ValueError:                                               # predict has named it
                continue
            heat = grad_cam(net, data.to_input(images))[0].cpu().numpy()
            if heat.any():
                shares.append(float((heat * mask).sum() / heat.sum()))
                chances.append(float(mask.mean()))
    return (np.mean(shares), np.mean(chances), len(shares)) if shares else (None, None, 0)


# ---------------------------------------------------------------- Figures 3 to 8
SHORT = {"Deepfakes": "DF", "FaceSwap": "FS", "Face2Face": "F2F", "NeuralTextures": "NT"}


def examples(videos, size, number=0):
    """The middle frame of one real face, of its fakes' source, and of the fakes: ({"target", "source": face}, {"DF", ..: (fake, real)}).

    The number-th real video among those that were forged by the most methods; {}, {} where there are no more fakes with a twin.
    """
    made = {}
    for video in videos:
        if video.method in SHORT and any(frame in video.twin for frame in video.frames):
            made.setdefault(video.id.split("_")[0], []).append(video)
    if number >= len(made):
        return {}, {}
    fakes = sorted(made.values(), key=lambda fakes: -len(fakes))[number]
    shared = [frame for frame in fakes[0].frames if frame in fakes[0].twin]
    middle = shared[len(shared) // 2]
    people = {"target": data.read_face(fakes[0].twin[middle], size)}
    for video in videos:
        if video.method == "real" and video.id == fakes[0].id.split("_")[-1]:
            people["source"] = data.read_face(list(video.frames.values())[len(video.frames) // 2], size)
    return people, {short: (data.read_face(video.frames[middle], size), people["target"])
                    for method, short in SHORT.items() for video in fakes if video.method == method and middle in video.frames}


def ssim_image(fake, real):
    """Fig. 3's SSIM map in grey."""
    return grey(masks.ssim_map(np.asarray(real), np.asarray(fake)) / 255)


def figure_3(where, fakes):
    """Fig. 3: for each method the fake, its DIFF mask, its SSIM map and its SSIM mask."""
    rows = [(name, [fake, grey(masks.diff_mask(np.asarray(real), np.asarray(fake))), ssim_image(fake, real),
                    grey(masks.ssim_mask(np.asarray(real), np.asarray(fake)))]) for name, (fake, real) in fakes.items()]
    return sheet(f"Fig. 3: masks, {where}", ("fake", "DIFF mask", "SSIM map", "SSIM mask"), rows)


def figure_4(where, fakes):
    """Fig. 4: a real face and its first fake (DF) under each degradation and their combinations, at the strong end of the ranges."""
    operations = {"R": lambda x: data.resize(x, data.RESIZE_SIDE[0]), "C": lambda x: data.jpeg(x, data.JPEG_QUALITY[0]),
                  "G": lambda x: data.blur(x, data.BLUR_SIGMA[1]), "original": lambda x: x}
    columns = ("original", "R", "C", "G", "R&C", "R&G", "C&G", "R&C&G")
    short, (fake, real) = next(iter(fakes.items()))
    rows = [(name, [functools.reduce(lambda x, letter: operations[letter](x), column.split("&"), face) for column in columns])
            for name, face in (("real", real), (short, fake))]
    return sheet(f"Fig. 4: R resized to {data.RESIZE_SIDE[0]:.2f} and back, C JPEG quality {data.JPEG_QUALITY[0]}, G blur sigma "
                 f"{data.BLUR_SIGMA[1]} px at 299 px; {where}", columns, rows)


def figure_5(runs, videos_of, **how):
    """Fig. 5: t-SNE of the pooled features, 4 frames a video, by forgery; a row for each network, a column for each quality."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        print(f"Fig. 5 is left out ({error}): t-SNE needs scikit-learn, pip install scikit-learn")
        return None
    pictures = []
    for name, net, settings in runs:
        for quality, videos in videos_of.items():
            found = predict(net, videos, settings["size"], limit=4, bar=f"t-SNE {quality}", with_features=True, **how)
            points = TSNE(init="pca", random_state=0, perplexity=min(30, (len(found["score"]) - 1) / 3)).fit_transform(found["features"])
            method = np.array([videos[k].method for k in found["video"]])
            ticks = [(axis.min(), axis.max()) for axis in points.T]          # t-SNE's units mean nothing
            pictures.append(plot(f"{name}: {settings['quality']}-{quality}", "", "", *ticks, [
                (f"{short} ({(method == m).sum()})", *points[method == m].T, colour, "dots") for (m, short), colour in
                zip({"real": "real", **SHORT}.items(), ("red", "blue", "green", "purple", "orange")) if (method == m).any()]))
    return beside(pictures, len(videos_of))


def figure_6(where, runs, people, fakes, device):
    """Fig. 6: target, source and the fakes made of them; the input, the SSIM map, and each network's map and mask (P(fake) > 0.5)."""
    pairs = {name: (face, face) for name, face in people.items()} | fakes
    rows = [("input", [face for face, _ in pairs.values()]), ("SSIM map", [ssim_image(*pair) for pair in pairs.values()])]
    for name, net, settings in runs:
        _, maps = judge(net, [face for face, _ in pairs.values()], settings["size"], device)
        if maps[0] is not None:
            rows += [(f"{name}: map", [grey(probs) for probs in maps]), (f"{name}: mask", [grey(probs > 0.5) for probs in maps])]
    return sheet(f"Fig. 6: segmentation, {where}", list(pairs), rows)


def figures_7_and_8(title, runs, fakes, device):
    """Figs. 7, 8: fakes {title: (fake, real)}; rows: input, SSIM, then each network's heat in grey, then each one's over the picture."""
    images = torch.stack([data.to_tensor(fake) for fake, _ in fakes.values()]).to(device)
    heats = [(f"{name} ({settings['quality']})", grad_cam(net, data.to_input(images)).cpu().numpy()) for name, net, settings in runs]
    rows = [("input", [fake for fake, _ in fakes.values()]), ("SSIM", [ssim_image(*pair) for pair in fakes.values()])]
    rows += [(f"grey map, {name}", [grey(heat) for heat in maps]) for name, maps in heats]
    rows += [(f"Grad-CAM, {name}", [heat_colour(fake, heat) for (fake, _), heat in zip(fakes.values(), maps)]) for name, maps in heats]
    return sheet(title, list(fakes), rows, side=104)


def draw_figures(runs, dataset, root, qualities, split, folder, device, **how):
    """Figures 3 to 8 as PNG into folder; 3 and 4 need no network. runs [(name, network, settings)] stand in the order given."""
    size, where = (runs[0][2]["size"] if runs else 299), f"{dataset} {qualities[0]} {split}"
    if {settings["size"] for _, _, settings in runs} - {size}:
        data.stop("the networks were trained on crops of different sizes; draw their figures in separate calls")
    videos_of = {quality: data.require_videos(dataset, root, quality, split) for quality in (qualities if runs else qualities[:1])}
    try:
        people, fakes = examples(videos_of[qualities[0]], size)
        second = {f"{name} (2)": pair for name, pair in examples(videos_of[qualities[0]], size, number=1)[1].items()}
        across = {f"{name} {quality}": pair for quality, videos in videos_of.items() for name, pair in examples(videos, size)[1].items()}
    except ValueError as error:
        data.stop(f"{error}; the figures show this frame: replace it")
    if not fakes:
        data.stop(f"Figures 3 to 8 need a fake {split} video with its real twin; there is none under {root} for {qualities[0]}")
    figures = {"fig3_masks": figure_3(where, fakes), "fig4_degradations": figure_4(where, fakes)}
    if runs:
        figures |= {"fig5_tsne": figure_5(runs, videos_of, device=device, **how),
                    "fig6_segmentation": figure_6(where, runs, people, fakes, device),
                    "fig7_gradcam": figures_7_and_8(f"Fig. 7: Grad-CAM, {where}", runs, fakes | second, device),
                    "fig8_gradcam_quality": figures_7_and_8(f"Fig. 8: Grad-CAM across qualities, {dataset} {split}", runs, across, device)}
    for name, picture in figures.items():
        if picture is not None:
            draw(picture, folder / f"{name}.png")


# ---------------------------------------------------------------- one picture, one video
@torch.inference_mode()
def judge(net, crops, size, device="cpu"):
    """Face crops (Pillow RGB), one by one -> P(fake) of each, and its map (S, S) of P(fake), None for the baseline."""
    looks = [look(net, data.to_tensor(crop.resize((size, size), Image.Resampling.BILINEAR))[None].to(device)) for crop in crops]
    return [score.item() for score, _ in looks], [probs if probs is None else probs[0].cpu().numpy() for _, probs in looks]


def draw_map(picture, box, probs):
    """The picture with the forgery map over the face: the redder, the likelier forged. box (x, y, side), probs (S, S) in 0..1."""
    x, y, side = box
    strength = Image.fromarray((160 * probs).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    drawn = picture.copy()
    drawn.paste(Image.new("RGB", (side, side), (255, 0, 0)), (x, y), strength)
    return drawn


def look_at_images(net, settings, paths, crop, detector, device, folder):
    """P(fake) of every face of every picture, printed, and the maps drawn over the pictures as PNG. Returns how many faces."""
    faces = 0
    for path in paths:
        try:
            picture = data.read_image(path)
        except ValueError as error:
            print(error)
            continue
        boxes = [(0, 0, min(picture.size))]
        if crop == "auto":
            found = [data.square_box(box, data.CROP_SCALE[detector], *picture.size)
                     for box in data.load_detector(detector)(np.asarray(picture))]
            boxes = []                                           # largest first; one with its middle in a larger one is the same face
            for x, y, side in sorted(found, key=lambda box: -box[2]):
                if not any(0 < x + side / 2 - u < width and 0 < y + side / 2 - v < width for u, v, width in boxes):
                    boxes.append((x, y, side))
        if not boxes:
            print(f"{path}: {detector} finds no face; if the picture is a face crop already, --crop none takes it as it is")
        if crop == "none" and picture.width != picture.height:
            data.stop(f"{path} is {picture.width} x {picture.height}, but --crop none takes square face crops; leave it out for a photo")
        scores, maps = judge(net, [picture.crop((x, y, x + side, y + side)) for x, y, side in boxes], settings["size"], device)
        for number, (box, score, probs) in enumerate(zip(boxes, scores, maps), start=1):
            where = "as it is" if crop == "none" else "at x {}, y {}, side {}".format(*box)
            print(f"{path}: face {number} ({where}): P(fake) {score:.3f}")
            picture = picture if probs is None else draw_map(picture, box, probs)
        if boxes and maps[0] is not None:
            draw(picture, folder / f"{Path(path).absolute().parent.name}_{Path(path).name}_map.png")
        faces += len(boxes)
    return faces


def look_at_video(net, settings, path, frames, detector, device, folder):
    """The mean P(fake) of a video's evenly spread frames and its spread; the map over the most suspicious frame as PNG."""
    path = Path(path)
    if not path.exists():
        data.stop(f"no video {path}")
    try:
        boxes, borrowed = data.find_boxes(path, frames, detector)
        scores, worst = [], (-1.0, None)
        for index, frame in data.read_frames(path, list(boxes)):
            x, y, side = box = boxes[index][:3]
            picture = Image.fromarray(frame)
            (score,), (probs,) = judge(net, [picture.crop((x, y, x + side, y + side))], settings["size"], device)
            scores.append(score)
            if score > worst[0]:
                worst = score, probs is not None and draw_map(picture, box, probs), index
    except data.CannotCut as problem:
        data.stop(str(problem))
    print(f"{path}: P(fake) {np.mean(scores):.3f}, the mean of {len(scores)} frames (standard deviation {np.std(scores):.3f}, lowest "
          f"{min(scores):.3f}, highest {max(scores):.3f}; {borrowed} frames took a neighbour's box)")
    if worst[1]:
        target = folder / f"{path.stem}_map.png"
        worst[1].save(target)
        print(f"  map drawn over frame {worst[2]}, the highest: {target}")


# ---------------------------------------------------------------- checkpoints
def load_network(path, device="cpu"):
    """A checkpoint of train.py -> (network in eval mode, its settings). Only tensors and plain values are read: no code runs."""
    if not Path(path).is_file():
        data.stop(f"no checkpoint {path}; train one (python train.py --data demo writes runs/demo/best.pt)")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        settings = checkpoint["settings"]
        net = build_network(settings)
        net.load_state_dict(checkpoint["model"])
        model_name(settings), settings["data"], settings["quality"], settings["size"]
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        data.stop(f"{path} is not a checkpoint of train.py ({reason}); expected one with its settings and weights, such as best.pt")
    return net.to(device, memory_format=torch.channels_last).eval(), settings


def build_network(settings):
    """The network that a run's settings describe: model, variant, num_classes, width."""
    if settings["model"] == "xception":
        return XceptionClassifier(settings["num_classes"], settings["width"])
    return LiSiam(settings["width"], settings["num_classes"], transformer=settings["variant"] != "F")


def main():
    parser = argparse.ArgumentParser(description="Accuracy and AUC by frame and video, localization, tables, figures (Sec. IV-C to IV-G).")
    parser.add_argument("--checkpoint", nargs="+", default=[], help="best.pt or last.pt of runs of train.py; Figs. 5, 7, 8 compare two")
    parser.add_argument("--data", nargs="+", choices=list(data.DEFAULT_ROOTS), default=["ff++"], help="one or several, default ff++")
    parser.add_argument("--root", nargs="+", help="folder of each data set, default datasets/... as in README")
    parser.add_argument("--quality", nargs="+", choices=data.QUALITIES, default=["c23"], help="FF++ compression (Sec. IV-E), default c23")
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="default %(default)s")
    parser.add_argument("--mask", choices=["ssim", "diff", "given"], help="what the map is compared with, default as trained with")
    parser.add_argument("--frames", type=int, help="at most so many frames a video, evenly spread; default all (100 in the paper)")
    parser.add_argument("--batch-size", type=int, default=32, help="default %(default)s")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count()), help="loading processes, default %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
    parser.add_argument("--no-amp", action="store_true", help="float32 instead of bfloat16 on CUDA")
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--tables", nargs="+", metavar="JSON", help="instead: Tables I to VII from files of --json (the demo's is test.json)")
    parser.add_argument("--sweep", action="store_true", help="also AUC and IoU as JPEG, resizing and blur grow, at the first --quality")
    parser.add_argument("--figures", metavar="DIR", help="also Figs. 3 to 8, ROC, training curves as PNG; Figs. 3, 4 need no checkpoint")
    parser.add_argument("--image", nargs="+", help="instead of a data set: P(fake) of the faces in these pictures")
    parser.add_argument("--video", help="instead of a data set: P(fake) of this video, the mean over --frames (default 100) frames")
    parser.add_argument("--crop", choices=["auto", "none"], default="auto", help="none: the pictures are face crops already, default auto")
    parser.add_argument("--detector", choices=list(data.CROP_SCALE), default="centerface", help="as trained with, default %(default)s")
    args = parser.parse_args()
    if args.tables:
        return print(paper_tables(args.tables))
    if args.device == "cuda" and not torch.cuda.is_available():
        data.stop("--device cuda, but PyTorch finds no GPU here; use --device cpu")
    if args.workers < 0 or args.batch_size < 1 or args.frames is not None and args.frames < 1:
        data.stop("--workers must be at least 0, --batch-size and --frames at least 1")
    looks = args.image or args.video
    if looks and len(args.checkpoint) != 1 or not args.checkpoint and not args.figures:
        data.stop("--checkpoint FILE is missing" if not args.checkpoint else "--image and --video take one --checkpoint")
    if not args.checkpoint and (args.sweep or args.json):
        data.stop("--sweep and --json need a --checkpoint")
    if args.video and args.crop == "none":
        data.stop("--crop none is for --image; in a video the face is always looked for")
    roots = [Path(root) for root in args.root or (data.DEFAULT_ROOTS[dataset] for dataset in args.data)]
    if len(roots) != len(args.data):
        data.stop(f"--data names {len(args.data)} data sets, --root {len(roots)} folders; give one folder for each")
    nets = [load_network(path, args.device) for path in args.checkpoint]
    names = [model_name(settings) for _, settings in nets]
    names = [name if names.count(name) == 1 else f"{name}, {Path(path).absolute().parent.name}"
             for name, path in zip(names, args.checkpoint)]
    runs = [(name, *net) for name, net in zip(names, nets)]
    folder = Path(args.figures or Path(args.checkpoint[0]).parent)
    try:                                                         # before the work, not after it
        if looks or args.sweep or args.figures:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".writable").touch()
            (folder / ".writable").unlink()
        if args.json:
            open(args.json, "a").close()
    except OSError as error:
        data.stop(f"cannot write {error.filename} ({error.strerror}); name another place with --figures or --json")

    if looks:
        _, net, settings = runs[0]
        if args.video:
            look_at_video(net, settings, args.video, args.frames or 100, args.detector, args.device, folder)
        if args.image and not look_at_images(net, settings, args.image, args.crop, args.detector, args.device, folder):
            data.stop("no face was judged; the reasons are above")
        print("A score is no proof: it tells how much a face resembles the fakes this network was trained on"
              + (", which were drawn ones." if settings["data"] == "demo" else "."))
        return

    # ---------------------------------------------------------------- Tables I to VII: every network on every test set
    how = dict(batch_size=args.batch_size, device=args.device, workers=args.workers, amp=not args.no_amp)
    tests = [(dataset, root, quality) for dataset, root in zip(args.data, roots)
             for quality in ([None] if dataset.startswith("celeb") else args.quality)]
    report = []
    for (name, net, settings), path in zip(runs, args.checkpoint):
        results = [evaluate(net, settings, *test, args.split, args.mask, args.frames, **how) for test in tests]
        print(f"{name}, trained on {settings['data']} {settings['quality']} ({path})\n{table(settings, results)}\n")
        report.append({"settings": settings, "results": results})
    dataset, root, quality = tests[0]
    where = " ".join(filter(None, (dataset, quality, args.split)))
    for run, (name, net, settings) in zip(report, runs if args.sweep else []):
        videos = data.require_videos(*tests[0], args.split, args.mask or settings["mask"])
        run["sweep"] = sweep(net, settings, videos, limit=args.frames, **how)
        print(f"{name}, {where}\n| operation | strength | AUC frame | AUC video | IoU |\n" + "|---" * 5 + "|")
        for row in run["sweep"]:
            cells = [show(row[key]) for key in ("frame_auc", "video_auc", "iou")]
            print(f"| {row['operation']} | {row['strength']:.3g} | " + " | ".join(cells) + " |")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")

    # ---------------------------------------------------------------- Figures
    if args.sweep:
        draw(sweep_plot(where, [(name, run["sweep"]) for name, run in zip(names, report)]), folder / "sweep.png")
    if not args.figures:
        return
    if runs:
        draw(roc_curves([(name, run["results"]) for name, run in zip(names, report)]), folder / "roc.png")
    for path, (name, net, settings) in zip(args.checkpoint, runs):
        home = Path(path).absolute().parent
        if curves := training_curves(home):
            draw(curves, folder / f"curves_{home.name}.png")
        videos = data.require_videos(*tests[0], args.split, args.mask or settings["mask"])
        share, chance, frames = heat_in_mask(net, settings, videos, args.device)
        if frames:
            print(f"Grad-CAM, {name}, {where}: {share:.3f} of the heat inside the mask, {chance:.3f} by chance (means over {frames} fakes)")
    if dataset.startswith("celeb"):
        print("Figures 3 to 8 need ff++ or demo first in --data")
    else:
        draw_figures(runs, dataset, root, args.quality, args.split, folder, **how)


if __name__ == "__main__":
    main()
