"""
How well a network tells real from fake, where it sees the forgery, and the paper's figures.

Read beside Sec. IV-A4 and IV-C to IV-G.
  paper         code              meaning
  frame level   frame_acc, _auc   every frame on its own (Tables I, III, VI)
  video level   video_acc, _auc   the mean P(fake) of a video's frames (Tables II, IV, V, VI, VII)
  alpha         score             P(fake) of a frame after softmax, 0..1
                iou, pixel_auc    the forgery map against X_gt on fake frames (not in the paper)
FF++'s test set has four fakes for each real video, so the answer "all fake" has an accuracy of
80 %. Frame accuracy is also given for each class. AUC is n/a if only one class is there.

    python evaluate.py --checkpoint runs/NAME/best.pt --data ff++ --quality c0 c23 c40
                       [--json FILE] [--csv FILE] [--figures DIR] [--sweep]
    python evaluate.py --tables runs/*.json
    python evaluate.py --checkpoint runs/NAME/best.pt --image photo.jpg ... | --video clip.mp4
"""

import argparse
import collections
import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.nn import functional as F
from tqdm import tqdm

import data
import masks
from model import XceptionClassifier, autocast, load_network, to_input

STEPS = 1000                            # P(fake) of a map's pixel is counted in steps of 0.001
THRESHOLDS = np.arange(1, 20) / 20      # of the map: 0.05, 0.10, ... 0.95
MIDDLE = 9                              # THRESHOLDS[9] is 0.5


class Run(NamedTuple):
    """A trained network, and how it is tested now."""

    name: str
    net: torch.nn.Module
    trained: dict       # the settings of its training: model, size, quality, mask, threshold, ...
    call: dict          # the settings of this call: device, workers, batch_size


class TestSet(NamedTuple):
    name: str           # "ff++ c23 test, 10 frames a video"; results, tables and JSON use it
    data: str           # a key of data.ROOTS
    quality: str | None                 # None for Celeb-DF
    videos: list
    limit: int | None                   # frames of each video, evenly spread; None for all


# ---------------------------------------------------------------- Sec. IV-A4: metrics
def auc(labels, scores):
    """Area under the ROC curve: the chance that a fake scores above a real; a tie is half a win.

    labels (n,) of 0 and 1; scores (n,) any numbers. None if only one class is there.
    Example: two reals score 0.2 and 0.6, one fake 0.6. It wins against 0.2 and ties with 0.6: 1.5
    wins of 2, AUC 0.75. In counts of the distinct scores: real_counts [1, 1], fake_counts [0, 1].
    """
    is_fake = np.asarray(labels) == 1
    distinct, rank = np.unique(scores, return_inverse=True)     # equal scores share a rank
    real_counts = np.bincount(rank[~is_fake], minlength=len(distinct))
    fake_counts = np.bincount(rank[is_fake], minlength=len(distinct))
    return auc_of_counts(real_counts, fake_counts)


def auc_of_counts(real_counts, fake_counts):
    """AUC from how many reals and fakes have each score, in rising order; None as for auc."""
    pairs = float(real_counts.sum()) * float(fake_counts.sum())     # of pixels: may overflow int64
    if pairs == 0:
        return None
    reals_below = np.cumsum(real_counts) - real_counts / 2      # a tie counts one half
    return float((fake_counts * reals_below).sum() / pairs)


def accuracy(labels, scores):
    """Share of right answers at P(fake) > 0.5; None without any.

    READING Sec. IV-A4: the paper does not name the threshold of "Acc". We use 0.5. With two classes
    this means the class with the larger logit. With five, a frame is fake if the probabilities of
    the four forgeries sum to more than 0.5.
    """
    right = (np.asarray(scores) > 0.5) == (np.asarray(labels) == 1)
    return float(right.mean()) if len(right) else None


def video_scores(scores, video):
    """Frame scores (n,), video index of each frame (n,) -> mean score of each video, its index.

    READING Sec. IV-C: the paper says "averaging the accuracy and AUC of each frame". A single frame
    has no AUC, and averaged accuracy would be the frame accuracy again, but Tables I and II differ
    (96.51 and 97.57). We average P(fake) over all frames of a video, and compute both numbers from
    these means. The release averages over fixed chunks of 100 frames, and votes for accuracy.
    """
    indices, inverse = np.unique(video, return_inverse=True)
    return np.bincount(inverse, scores) / np.bincount(inverse), indices


def intervals(labels, scores, video):
    """95 % bootstrap intervals {"frame_acc": [low, high], "frame_auc", "video_acc", "video_auc"}.

    labels, scores (n,) of the frames; video (n,) the index of each frame's video. The frames of a
    video resemble each other, so whole videos are drawn. {} if a class has fewer than five videos.
    Fakes of the same real video count as independent, so FF++'s intervals are too narrow.
    """
    means, indices = video_scores(scores, video)                        # (v,), (v,)
    frames = [np.flatnonzero(video == index) for index in indices]      # of each video
    video_labels = np.array([labels[rows[0]] for rows in frames])       # (v,)
    fakes = np.flatnonzero(video_labels == 1)
    reals = np.flatnonzero(video_labels == 0)
    if min(len(fakes), len(reals)) < 5:
        return {}
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(1000):
        # Step 1: draw as many fake and as many real videos as there are, with replacement.
        drawn = np.append(rng.choice(fakes, len(fakes)), rng.choice(reals, len(reals)))
        # Step 2: the four numbers of the frames and of the videos drawn.
        rows = np.concatenate([frames[place] for place in drawn])
        levels = ((labels[rows], scores[rows]), (video_labels[drawn], means[drawn]))
        samples.append([metric(*level) for level in levels for metric in (accuracy, auc)])
    bounds = np.percentile(samples, [2.5, 97.5], axis=0).T.tolist()
    return dict(zip(("frame_acc", "frame_auc", "video_acc", "video_auc"), bounds))


# ---------------------------------------------------------------- one pass over the frames
def scores_and_maps(net, images):
    """Eq. (1) on (B, S, S, 3) uint8 -> P(fake) (B,), the map's P(fake) (B, S, S); baseline: None.

    READING Sec. IV-A4: P(fake) is 1 - P(real), so that one rule serves two classes and five.
    Scores are in double precision. float32 would round many to 1.0, and ties cost AUC.
    READING Fig. 6: the paper does not say how the map is enlarged. We enlarge its probabilities, as
    Eq. (6) does. The loss of Eq. (17) enlarges logits.
    """
    with autocast(images.device.type):
        output = net(to_input(images))
    if torch.is_tensor(output):                                 # the baseline
        return 1 - output.double().softmax(dim=1)[:, 0], None
    scores = 1 - output.cls_logits.double().softmax(dim=1)[:, 0]
    probs = output.seg_logits.softmax(dim=1)[:, 1:]             # (B, 1, 37, 37)
    probs = F.interpolate(probs, size=images.shape[1:3], mode="bilinear", align_corners=False)
    return scores, probs[:, 0]


def count_pixels(probs, mask):
    """Counts the pixels of each frame by ground truth and by P(fake): (B, 2, STEPS) int64.

    probs (B, S, S) in 0..1, mask (B, S, S) of 0 and 1. counts[b, 1, 700] is the number of forged
    pixels of frame b with P(fake) from 0.700 to 0.701. IoU, pixel AUC and marked area follow.
    """
    step = (probs * STEPS).long().clamp(0, STEPS - 1)           # (B, S, S), the last index
    place = (mask.long() * STEPS + step).flatten(1)             # (B, S * S), in 2 * STEPS places
    counts = place.new_zeros(len(probs), 2 * STEPS)
    # Each pixel adds one at its place. torch.bincount would make the program wait for a GPU.
    counts.scatter_add_(1, place, torch.ones_like(place))
    return counts.view(len(probs), 2, STEPS)


def map_numbers(counts):
    """count_pixels (B, 2, STEPS) -> iou (B, 19) at THRESHOLDS, marked (B,).

    iou is NaN for a frame without forged pixels. marked is the share of pixels at 0.5 or more.
    """
    steps = range(STEPS // 20, STEPS, STEPS // 20)              # of THRESHOLDS
    # The pixels of each frame and ground truth at or above each threshold    (B, 2, 19)
    marked = torch.stack([counts[:, :, step:].sum(dim=2) for step in steps], dim=2).double()
    forged = counts[:, 1].sum(dim=1, keepdim=True)              # (B, 1) pixels
    union = forged + marked[:, 0]                               # forged, or marked by mistake
    iou = torch.where(forged > 0, marked[:, 1] / union, torch.nan)
    return iou, marked[:, :, MIDDLE].sum(dim=1) / counts.sum(dim=(1, 2))


# What predict finds is a dictionary of NumPy arrays over n frames:
#   index (n,)                  place of the frame among all frames of the test set
#   video (n,)                  index into the videos of the test set
#   has_mask (n,) bool
#   names                       list of n tuples (data set, method, video's id, file name, label)
#   score (n,)                  P(fake)
#   iou (n, 19), marked (n,)    of the map, see map_numbers
#   counts (videos, 2, STEPS)   count_pixels of a video's frames that have a mask
#   masks (n, P) bool           on a grid of about 100 x 100 pixels
#   marks (n, P / 8) uint8      where the map is 0.5 or more on that grid, 8 pixels to a byte
# The baseline has no map, so iou, marked and marks are missing.
@torch.inference_mode()
def predict(run, test, operation=None, keep_pixels=False, share=(0, 1)):
    """The frames of a TestSet through Eq. (1). The network is in eval mode afterwards.

    operation: see data.TestFrames. keep_pixels: whether to keep masks and marks. share=(rank,
    world): every world-th frame from rank on, for several processes.
    """
    size, device, videos = run.trained["size"], run.call["device"], test.videos
    frames = data.TestFrames(videos, size, test.limit, operation)
    index = range(share[0], len(frames), share[1])
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(frames, index), run.call["batch_size"],
        num_workers=run.call["workers"], pin_memory=device == "cuda", generator=torch.Generator())
    counts = torch.zeros(len(videos), 2, STEPS, dtype=torch.int64, device=device)
    found = collections.defaultdict(list)
    grid = slice(None, None, max(1, size // 75))
    run.net.eval()
    # We keep only new tensors. A batch itself would keep a file of its loading process open.
    for batch in tqdm(loader, test.name, leave=False, disable=share[0] > 0):
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        score, probs = scores_and_maps(run.net, batch["image"])
        found["score"].append(score)
        if keep_pixels:
            found["masks"].append(batch["mask"][:, grid, grid].flatten(1).bool())
        if probs is None:                       # the baseline
            continue
        if keep_pixels:
            found["marks"].append((probs >= 0.5)[:, grid, grid].flatten(1))
        pixels = count_pixels(probs, batch["mask"])
        iou, marked = map_numbers(pixels)
        found["iou"].append(iou)
        found["marked"].append(marked)
        pixels[~batch["has_mask"]] = 0
        counts.index_add_(0, batch["video"], pixels)
    # Nothing was copied back until here, so the loop never waited for a GPU.
    arrays = {name: torch.cat(values).cpu().numpy() for name, values in found.items()}
    if not np.isfinite(arrays.get("score", 0)).all():
        sys.exit("the scores are not finite: weights or BatchNorm statistics are damaged")
    if "marks" in arrays:
        arrays["marks"] = np.packbits(arrays["marks"], axis=1)
    items = [frames.items[place] for place in index]            # (video's index, frame, its mask)
    return {**arrays, "counts": counts.cpu().numpy(), "index": np.array(index),
            "video": np.array([video for video, _, _ in items]),
            "has_mask": np.array([mask is not None for _, _, mask in items]),
            "names": [(*videos[v].key, frame.name, videos[v].label) for v, frame, _ in items]}


def summarize(found, videos, method=None, threshold=None):
    """The numbers of a row: all videos, or one method's fakes against all real ones; None = n/a.

    found: of predict. threshold: of the map, for iou_val; None if it was not chosen on val.
    """
    labels = np.array([video.label for video in videos])
    wanted = np.array([video.label == 0 or method in (None, video.method) for video in videos])
    frames = wanted[found["video"]]                             # (n,) bool
    is_fake = labels[found["video"]] == 1                       # (n,) bool
    scores = found["score"][frames]                             # (m,) of the wanted frames
    video = found["video"][frames]
    means, indices = video_scores(scores, video)
    row = {
        "videos": len(indices), "real_videos": int((labels[indices] == 0).sum()),
        "frames": len(scores), "real_frames": int((frames & ~is_fake).sum()),
        "masked_frames": int((frames & found["has_mask"]).sum()),
    }
    levels = {"frame": (labels[video], scores), "video": (labels[indices], means)}
    for level, (truth, score) in levels.items():
        row[f"{level}_acc"] = accuracy(truth, score)
        row[f"{level}_auc"] = auc(truth, score)
        row[f"{level}_acc_real"] = accuracy(truth[truth == 0], score[truth == 0])
        row[f"{level}_acc_fake"] = accuracy(truth[truth == 1], score[truth == 1])
    row.update(dict.fromkeys(("iou", "iou_val", "iou_by_threshold", "marked_real", "pixel_auc")))
    if "iou" in found:                          # the baseline has no map
        ious = [mean_or_none(column) for column in found["iou"][frames].T]      # at THRESHOLDS
        row["iou_by_threshold"] = ious
        row["iou"] = ious[MIDDLE]
        row["iou_val"] = ious[round(20 * threshold) - 1] if threshold else None
        row["marked_real"] = mean_or_none(found["marked"][frames & ~is_fake])
        row["pixel_auc"] = auc_of_counts(*found["counts"][wanted].sum(axis=0))      # (2, STEPS)
    return row


def best_threshold(row):
    """The threshold at which the map of a row of summarize fits the masks best; 0.5 without any."""
    ious = row["iou_by_threshold"] or [None]
    return 0.5 if None in ious else float(THRESHOLDS[np.argmax(ious)])


def mean_or_none(values):
    """The mean of the numbers that are neither None nor NaN; None without any."""
    values = np.asarray(values, float)          # None becomes NaN
    count = int((~np.isnan(values)).sum())
    return float(np.nansum(values) / count) if count else None


def constant_mask(forged):
    """The scores of the best constant mask for (n, P) bool masks, the same in every frame.

    iou_constant: the mean mask, cut at the level with the highest IoU. pixel_auc_constant: the mean
    mask itself, used as a map. They are fitted to the test frames themselves, so a map that does
    not beat them gives no evidence that it used the picture.
    """
    forged = forged[forged.any(axis=1)]         # as for the map: frames with forged pixels
    if len(forged) == 0:
        return {"iou_constant": None, "pixel_auc_constant": None}
    share = forged.mean(axis=0)                 # (P,): in how many of the frames a pixel is forged
    ious = []
    for level in (0, *THRESHOLDS):
        constant = share > level
        union = (forged | constant).sum(axis=1)                 # (n,) pixels
        ious.append(float(((forged & constant).sum(axis=1) / union).mean()))
    shares, pixels = np.unique(share, return_counts=True)       # how many pixels have each share
    return {"iou_constant": max(ious),
            "pixel_auc_constant": auc_of_counts(pixels * (1 - shares), pixels * shares)}


def agreement(found, reference, is_fake):
    """Mean IoU of what two predictions of the same fake frames mark; None if the frames differ.

    found, reference: of predict with keep_pixels; is_fake (n,) bool. A frame in which neither marks
    anything does not count.
    """
    if "marks" not in found or found["names"] != reference["names"]:
        return None
    first, second = found["marks"][is_fake], reference["marks"][is_fake]
    both = np.bitwise_count(first & second).sum(axis=1)         # (fakes,) pixels
    union = np.bitwise_count(first | second).sum(axis=1)
    return mean_or_none(both[union > 0] / union[union > 0])


def evaluate(run, test, operation=None, strength=None, reference=None):
    """One network on one TestSet: (a result for tables and --json, what predict found).

    operation, strength: a data.Operation that degrades each frame first. reference: what an earlier
    call found; its maps are compared with these.
    """
    if operation:
        test = test._replace(name=f"{test.name}, {operation.name} = {strength:.3g}")
    found = predict(run, test, operation and (operation.function, strength), keep_pixels=True)
    threshold = run.trained["threshold"]        # the one that fitted the val masks best
    result = {
        "test": test.name, "data": test.data, "quality": test.quality,
        "operation": operation.name if operation else None, "strength": strength,
        "threshold": threshold, **summarize(found, test.videos, threshold=threshold),
        "methods": {}, "intervals": {}, "agreement": None,
    }
    methods = np.array([video.method for video in test.videos])[found["video"]]     # (n,)
    is_fake = np.array([video.label == 1 for video in test.videos])[found["video"]]     # (n,)
    for method in dict.fromkeys(methods[is_fake].tolist()):
        result["methods"][method] = {
            **summarize(found, test.videos, method, threshold),
            **constant_mask(found["masks"][methods == method])}
    for column in ("iou_constant", "pixel_auc_constant"):
        # The mean over methods, each with a mask of its own.
        result[column] = mean_or_none([row[column] for row in result["methods"].values()])
    if reference:
        result["agreement"] = agreement(found, reference, is_fake)
    if operation is None:                       # a sweep has too many points for bootstrapping
        result["intervals"] = intervals(is_fake.astype(int), found["score"], found["video"])
    del found["masks"]                          # hundreds of megabytes on FF++
    return result, found


# ---------------------------------------------------------------- tables
DECISION = {
    "videos": "videos", "frames": "frames", "frame_auc": "AUC frame", "video_auc": "AUC video",
    "frame_acc": "Acc frame", "frame_acc_real": "of reals", "frame_acc_fake": "of fakes",
    "video_acc": "Acc video",
}
MAP = {
    "iou": "IoU", "iou_val": "at val's threshold", "iou_constant": "of constant masks",
    "pixel_auc": "AUC pixel", "pixel_auc_constant": "of constant masks",
    "marked_real": "marked in reals", "agreement": "agreement",
}
MAP_LEGEND = """\
IoU is taken at 0.5, and at the threshold that was best on val. Constant masks show what a map can
reach without looking at the picture: one mask for each method, fitted to the test frames. What is
marked in real frames is a false positive. Agreement is the IoU with the map of the same frame in
the quality of the training, in a sweep with that of the undegraded frame; n/a if there is none, or
if nothing is marked."""
COMPARED = ("frame_acc frame_auc video_acc video_auc iou iou_val iou_constant pixel_auc "
            "marked_real agreement").split()                    # the columns of --tables


def show(value):
    """A cell of a table: text and whole numbers as they are, others to three decimals."""
    if value is None:
        return "n/a"
    return str(value) if isinstance(value, (int, str)) else f"{value:.3f}"


def markdown(lines):
    """Lines of cells, the first of them titles -> a Markdown table whose columns line up."""
    lines = [[show(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def model_name(settings):
    """A run's name in the paper's tables: LiSiam, Model-B .. G, Xception, Xception+IQD, ..."""
    if settings["model"] == "xception":
        name = "Xception+IQD" if settings["iqd"] else "Xception"
    else:
        name = "LiSiam" if settings["variant"] == "A" else f"Model-{settings['variant']}"
        if settings["mask"] != "ssim":
            name += f"+{settings['mask'].upper()}"
        if settings["lambdas"][0] == 0:
            name += " without L_li"
    return f"{name}, 5 classes" if settings["num_classes"] == 5 else name


def trained_on(settings):
    """ "ff++ c23", and the methods if the run was not trained on all of them."""
    methods = settings.get("methods")           # older checkpoints were trained on all
    only = f", {' and '.join(methods)} only" if methods else ""
    return f"{settings['data']} {settings['quality']}{only}"


def result_tables(results):
    """Results of evaluate -> tables of the decision and of the map, by method, and intervals."""
    by_method = [{"test": f"{result['test']}: {method}", **row}
                 for result in results if result["operation"] is None       # not of a sweep
                 for method, row in result["methods"].items()]
    texts = []
    for rows in (results, by_method):
        for columns in (DECISION, MAP):
            shown = [row for row in rows if columns is DECISION or row["iou"] is not None]
            # Agreement is a number of whole test sets, not of a method.
            keys = [key for key in columns if shown and key in shown[0]]
            lines = [[row["test"], *(row[key] for key in keys)] for row in shown]
            if lines:
                texts.append(markdown([["test set", *(columns[key] for key in keys)], *lines]))
    if any(result["iou"] is not None for result in results):
        texts.append(MAP_LEGEND)
    for result in results:
        if result["intervals"]:
            spans = [f"{DECISION[column]} {low:.3f} to {high:.3f}"
                     for column, (low, high) in result["intervals"].items()]
            texts.append(f"{result['test']}, 95 % intervals over videos: {', '.join(spans)}")
    return "\n\n".join(texts)


def tables(paths):
    """Files of --json -> a row for each model, training and test set, in percent.

    Runs that differ only in the seed share a row: mean and standard deviation over them. If the
    files differ in iterations, size or a similar setting, it is added to the model's name. A run
    that was tested twice counts once.
    """
    rows = []                                   # (settings, result)
    for path in paths:
        for run in json.loads(Path(path).read_text()):
            rows += [(run["settings"], result) for result in run["results"]]
    keys = "root iterations batch_size width size lr lambdas aux pretrained".split()
    varied = [key for key in keys if len({str(settings.get(key)) for settings, _ in rows}) > 1]
    groups = collections.defaultdict(dict)      # {first cells: {(seed, folder): result}}
    for settings, result in rows:
        model = ", ".join([model_name(settings), *(f"{key} {settings.get(key)}" for key in varied)])
        group = groups[model, trained_on(settings), result["test"]]
        group[settings["seed"], settings["out"]] = result
    titles = {**DECISION, **MAP}
    lines = [["model", "trained on", "tested on", "runs", *(titles[key] for key in COMPARED)]]
    for first_cells, results in groups.items():
        line = [*first_cells, len(results)]
        for column in COMPARED:
            values = [100 * result[column] for result in results.values()
                      if result[column] is not None]
            cell = f"{np.mean(values):.2f}" if values else None
            if len(values) > 1:
                cell += f" ± {np.std(values, ddof=1):.2f}"
            line.append(cell)
        lines.append(line)
    return markdown(lines)


def frame_lines(checkpoint, test, found):
    """Lines of --csv: one for each frame of a test set. iou is empty where there is none."""
    ious = found["iou"][:, MIDDLE] if "iou" in found else np.full(len(found["score"]), np.nan)
    return [(checkpoint, dataset, test.quality, *rest, score, "" if np.isnan(iou) else iou)
            for (dataset, *rest), score, iou in zip(found["names"], found["score"], ious)]


CSV_TITLES = ("checkpoint", "data", "quality", "method", "video", "frame", "label", "score", "iou")


def save_results(args, report, lines):
    """Writes --json and --csv, after each test set, so that hours of testing are not lost."""
    if args.json:
        data.write_whole(Path(args.json), json.dumps(report, indent=1).encode())
    if args.csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([CSV_TITLES, *lines])
        data.write_whole(Path(args.csv), text.getvalue().encode())


# ---------------------------------------------------------------- drawing
# A figure is {row's title: {column's title: picture}}. A picture is (S, S, 3) uint8 RGB, or (S, S)
# of 0..1, where 1 is white and what is above 1 is cut.
def to_image(picture):
    """A picture of a figure as a Pillow image. Values are shown as they are, never stretched."""
    picture = np.asarray(picture)
    if picture.ndim == 2:
        picture = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(picture).convert("RGB")


def draw_grid(title, rows, path, side=128):
    """Draws a figure as a grid of pictures into a PNG."""
    font = ImageFont.load_default(13)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    left = 12 + max(int(font.getlength(name)) for name in rows)
    top = 48
    step = side + 4
    width = max(left + len(columns) * step, int(font.getlength(title)) + 12)
    grid = Image.new("RGB", (width, top + len(rows) * step), "white")
    draw = ImageDraw.Draw(grid)
    draw.text((6, 5), title, "black", font)
    for x, column in enumerate(columns):
        draw.text((left + x * step, 28), column, "black", font)
    for y, (name, row) in enumerate(rows.items()):
        draw.text((6, top + y * step + side // 2), name, "black", font, anchor="lm")
        for x, column in enumerate(columns):
            if column in row:
                image = to_image(row[column]).resize((side, side), Image.Resampling.BILINEAR)
                grid.paste(image, (left + x * step, top + y * step))
    grid.save(path)


def matplotlib_figure(width, height):
    """A figure of matplotlib, an optional package; None and a line without it."""
    try:
        from matplotlib.figure import Figure    # not pyplot, which may want a screen
    except ImportError:
        print("diagrams are not drawn: they need an optional package, pip install matplotlib")
        return None
    return Figure(figsize=(width, height))


def save_figure(figure, path):
    figure.savefig(path, dpi=100, bbox_inches="tight")
    print(f"drawn: {path}")


# ---------------------------------------------------------------- robustness: a sweep
def sweep_plot(title, sweeps, path):
    """AUC and IoU over the strength of each operation. sweeps: {run's name: results}."""
    figure = matplotlib_figure(18, 4.5)
    if figure is None:
        return
    for axes, operation in zip(figure.subplots(1, len(data.OPERATIONS)), data.OPERATIONS):
        axes.axvspan(*operation.drawn, color="0.92", label="range drawn in training")
        for color, (name, results) in enumerate(sweeps.items()):
            points = [result for result in results if result["operation"] == operation.name]
            for column, style in (("frame_auc", "-"), ("iou", "--")):
                if points[0][column] is not None:           # the baseline has no IoU
                    axes.plot(operation.sweep, [point[column] for point in points], style,
                              color=f"C{color}", label=f"{name}: {column}")
        worse_to_the_right = (operation.sweep[0], operation.sweep[-1])
        axes.set(title=operation.name, ylim=(0, 1.02), xlim=worse_to_the_right)
    figure.suptitle(title)
    figure.axes[0].legend(fontsize="small")
    save_figure(figure, path)


# ---------------------------------------------------------------- Sec. IV-G: Grad-CAM
def grad_cam(net, images):
    """What speaks for fake: (B, 3, S, S) in [-1, 1] -> (B, S, S) float32 in 0..1, 1 is the hottest.

    Each channel of a feature map is weighted by the mean gradient of the logit of the likeliest
    forgery. All zeros where nothing speaks for fake.
    READING Sec. IV-G: the paper names neither the layer nor the class. We take X_I (512 x 37 x 37),
    from which both the map and the decision are made, and for the baseline its last feature map
    (2048 x 10 x 10).
    """
    kept = []
    layer = net.relu4 if isinstance(net, XceptionClassifier) else net.ocr
    with layer.register_forward_hook(lambda module, inputs, output: kept.append(output)):
        output = net(images)
    feats = kept[0] if torch.is_tensor(kept[0]) else kept[0][0]             # (B, 512, 37, 37)
    cls_logits = output if torch.is_tensor(output) else output.cls_logits
    fake_logits = cls_logits[:, 1:].max(dim=1).values                       # (B,)
    gradient, = torch.autograd.grad(fake_logits.sum(), feats)               # (B, 512, 37, 37)
    weights = gradient.mean(dim=(2, 3), keepdim=True)                       # (B, 512, 1, 1)
    heat = (weights * feats).sum(dim=1, keepdim=True).relu()                # (B, 1, 37, 37)
    heat = F.interpolate(heat.detach().float(), images.shape[2:], mode="bilinear")[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def heat_colour(face, heat):
    """A face (H, W, 3) uint8 under its heat (S, S) in 0..1, from blue (cold) to red (hot)."""
    face = Image.fromarray(face).resize(heat.shape[::-1], Image.Resampling.BILINEAR)
    colours = ImageOps.colorize(to_image(heat).convert("L"), "blue", "red", mid="lime")
    return np.asarray(Image.blend(face, colours, 0.45))


# ---------------------------------------------------------------- Figures 3 to 8
def examples(videos, number=0):
    """The middle frame of a real face, of its fakes' source, and of the fakes made from it.

    Returns {"target", "source": face}, {method: (fake, real)}, all (H, W, 3) uint8 as they are on
    disk. number counts real videos that have fakes; {}, {} if there are fewer.
    """
    middle = {(video.method, video.id): video.frames[len(video.frames) // 2] for video in videos}
    fakes = {key: frame for key, frame in middle.items()
             if key[0] != "real" and data.twin_path(frame).exists()}
    ids = list(dict.fromkeys(pair_id for _, pair_id in fakes))  # <target>_<source>
    if number >= len(ids):
        return {}, {}
    pairs = {}
    for (method, pair_id), frame in fakes.items():
        if pair_id == ids[number]:
            pairs[method] = [np.asarray(data.read_image(path))
                             for path in (frame, data.twin_path(frame))]
    people = {"target": next(iter(pairs.values()))[1]}
    source = ("real", ids[number].split("_")[1])
    if source in middle:
        people["source"] = np.asarray(data.read_image(middle[source]))
    return people, pairs


def figure_3(fakes):
    """Fig. 3: for each method the fake, its DIFF mask, its SSIM map and its SSIM mask."""
    return {name: {"fake": fake, "DIFF mask": masks.diff_mask(real, fake),
                   "SSIM map": masks.ssim_map(real, fake) / 255,
                   "SSIM mask": masks.ssim_mask(real, fake)}
            for name, (fake, real) in fakes.items()}


def figure_4(fakes):
    """Fig. 4: a real face and its first fake, degraded.

    READING Fig. 4: the paper does not name the strengths. We take the strongest in training.
    """
    strongest = {"R": min, "C": min, "G": max}  # the smallest fraction and quality, the most blur
    operations = {operation.letter: operation for operation in data.OPERATIONS}
    method, (fake, real) = next(iter(fakes.items()))
    rows = {"real": {"original": real}, method: {"original": fake}}
    for row in rows.values():
        for column in ("R", "C", "G", "R&C", "R&G", "C&G", "R&C&G"):
            image = Image.fromarray(row["original"])
            for letter in column.split("&"):
                operation = operations[letter]
                image = operation.function(image, strongest[letter](operation.drawn))
            row[column] = np.asarray(image)
    return rows


def pooled_features(run, test):
    """What the last layers read of n frames: (n, C) float32, and the method of each frame (n,).

    LiSiam: Z after pooling (Model-F: X_c); the baseline: its last feature map after pooling.
    """
    pooled = []                                 # (B, C) of each batch
    last_layers = run.net.fc if isinstance(run.net, XceptionClassifier) else run.net.f_mlp.f_mlp
    with last_layers.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0])):
        found = predict(run, test)
    methods = np.array([name[1] for name in found["names"]])
    return torch.cat(pooled).float().cpu().numpy(), methods


def figure_5(runs, tests, path):
    """Fig. 5: t-SNE of pooled features, coloured by method; rows are networks, columns test sets.

    READING Fig. 5: the paper does not say which features. We take those that the last layers read,
    of four frames a video.
    """
    figure = matplotlib_figure(5 * len(tests), 5 * len(runs))
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        print("Fig. 5 is not drawn: it needs an optional package, pip install scikit-learn")
        return
    if figure is None:
        return
    colours = {"real": "red", "Deepfakes": "blue", "FaceSwap": "green", "Face2Face": "purple",
               "NeuralTextures": "orange"}
    grid = figure.subplots(len(runs), len(tests), squeeze=False)
    for row, run in zip(grid, runs):
        for axes, test in zip(row, tests):
            features, methods = pooled_features(run, test._replace(limit=4))
            tsne = TSNE(init="pca", random_state=0, perplexity=min(30, (len(features) - 1) / 3))
            points = tsne.fit_transform(features)
            for method, colour in colours.items():
                axes.scatter(*points[methods == method].T, s=6, c=colour, label=method)
            title = f"{run.name}: {run.trained['quality']}-{test.quality}"
            axes.set(title=title, xticks=[], yticks=[])
    grid[0][0].legend()
    save_figure(figure, path)


def figure_6(runs, tests):
    """Fig. 6: target, source and fakes; their ground truth; each network's map and mask.

    For each quality there is a row for the input and two rows for each network.
    READING Fig. 6: the paper does not name the threshold of the mask. We take 0.5.
    """
    people, fakes = examples(tests[0].videos)
    rows = {"SSIM map": {name: np.zeros(face.shape[:2]) for name, face in people.items()}}
    rows["SSIM mask"] = dict(rows["SSIM map"])  # nothing is forged in target and source
    for name, (fake, real) in fakes.items():
        rows["SSIM map"][name] = masks.ssim_map(real, fake) / 255
        rows["SSIM mask"][name] = masks.ssim_mask(real, fake)
    with_map = [run for run in runs if not isinstance(run.net, XceptionClassifier)]
    for test in tests:
        people, fakes = examples(test.videos)
        faces = {**people, **{name: fake for name, (fake, _) in fakes.items()}}
        rows[f"input, {test.quality}"] = faces
        for run in with_map:
            maps = {name: judge(run, face)[1] for name, face in faces.items()}
            rows[f"{run.name}: map, {test.quality}"] = maps
            rows[f"{run.name}: map >= 0.5, {test.quality}"] = {
                name: probs >= 0.5 for name, probs in maps.items()}
    return rows


def figures_7_and_8(runs, fakes):
    """Figs. 7, 8: input, SSIM map, each network's Grad-CAM in grey, then over the picture."""
    rows = {"input": {name: fake for name, (fake, _) in fakes.items()},
            "SSIM": {name: masks.ssim_map(real, fake) / 255
                     for name, (fake, real) in fakes.items()}}
    coloured = {}
    for run in runs:
        images = to_input(torch.cat([crop_tensor(run, fake) for fake, _ in fakes.values()]))
        heats = dict(zip(fakes, grad_cam(run.net, images).cpu().numpy()))
        name = f"{run.name} ({run.trained['quality']})"
        rows[f"grey map, {name}"] = heats
        coloured[f"Grad-CAM, {name}"] = {short: heat_colour(fakes[short][0], heat)
                                         for short, heat in heats.items()}
    return {**rows, **coloured}


def draw_figures(runs, tests, folder):
    """Figs. 3 to 8 as PNG. Figs. 5, 6 and 8 show all qualities, the others the first one."""
    tests = [test for test in tests if test.data == tests[0].data]
    where = ", ".join(test.name for test in tests)
    _, fakes = examples(tests[0].videos)
    if not fakes:
        sys.exit(f"Figs. 3 to 8 need a fake video with its real video, and {where} has none")
    figures = {"Fig. 3 masks": figure_3(fakes), "Fig. 4 degradations": figure_4(fakes)}
    if runs:                                    # 3 and 4 need no network
        _, second = examples(tests[0].videos, number=1)
        two = {**fakes, **{f"{name} (2)": pair for name, pair in second.items()}}
        across = {f"{name} {test.quality}": pair for test in tests
                  for name, pair in examples(test.videos)[1].items()}
        figures["Fig. 6 segmentation"] = figure_6(runs, tests)
        figures["Fig. 7 gradcam"] = figures_7_and_8(runs, two)
        figures["Fig. 8 gradcam quality"] = figures_7_and_8(runs, across)
    for name, rows in figures.items():
        file = name.lower().replace(". ", "").replace(" ", "_")         # fig3_masks
        draw_grid(f"{name}; {where}", rows, folder / f"{file}.png")
        print(f"drawn: {folder / file}.png")
    if runs:
        figure_5(runs, tests, folder / "fig5_tsne.png")


# ---------------------------------------------------------------- one picture, one video
def crop_tensor(run, crop):
    """A face crop (H, W, 3) uint8 of any size -> (1, S, S, 3) uint8, as the network takes it."""
    image = data.to_size(Image.fromarray(crop), run.trained["size"])
    return torch.from_numpy(np.array(image))[None].to(run.call["device"])


@torch.inference_mode()
def judge(run, crop):
    """A face crop (H, W, 3) uint8 -> P(fake), its map (S, S); baseline: None."""
    score, probs = scores_and_maps(run.net, crop_tensor(run, crop))
    return score.item(), None if probs is None else probs[0].cpu().numpy()


def report_face(run, name, frames, boxes, path):
    """Prints the mean P(fake) of the largest face in a picture or in a video's frames.

    frames: [(index, (H, W, 3) uint8)]; boxes: see data.find_boxes. Draws the map over the most
    suspicious frame, to path; the redder, the likelier forged.
    """
    places = [(frame, *boxes[index][:3]) for index, frame in frames]
    crops = [frame[y:y + side, x:x + side] for frame, x, y, side in places]
    scores, maps = zip(*[judge(run, crop) for crop in crops])   # 100 are too many for one batch
    worst = int(np.argmax(scores))
    frame, x, y, side = places[worst]
    if len(frames) > 1:
        print(f"{len(frames)} frames have P(fake) {min(scores):.3f} to {max(scores):.3f}; the most "
              "suspicious is shown")
    print(f"{name}: P(fake) {np.mean(scores):.3f}; face at x {x}, y {y}, side {side}")
    if maps[worst] is not None:
        frame = Image.fromarray(frame)
        strength = to_image(0.63 * maps[worst]).convert("L").resize((side, side))
        frame.paste(Image.new("RGB", (side, side), (255, 0, 0)), (x, y), strength)
        frame.save(path)
        print(f"drawn: {path}")


def whole_picture(frame):
    """The detector of --crop none, see data.load_detector: a square picture is one whole face."""
    height, width = frame.shape[:2]
    return [(0, 0, width, height)] if width == height else []


def report_faces(run, args, folder):
    """--image and --video. Names the files that cannot be scored; the exit status is then 1."""
    detect = whole_picture if args.crop == "none" else data.load_detector()
    problems = []
    for name in args.image or [args.video]:
        try:
            if args.image:
                frames = [(0, np.asarray(data.read_image(name)))]
            else:
                wanted = data.evenly_spread(range(data.count_frames(name)), args.frames or 100)
                frames = list(data.read_frames(name, wanted))
        except ValueError as error:
            problems.append(str(error))
            continue
        boxes = data.find_boxes(frames, detect)
        if boxes:
            path = Path(name).resolve()
            file = "_".join(path.parts[-4:]).replace(path.anchor, "")       # c23_faces_000_0012.png
            report_face(run, name, frames, boxes, folder / f"{file}_map.png")
        else:
            problems.append(f"{name}: no face found; --crop none takes a square picture as a face")
    print("A score is not a proof. It says how much a face resembles the fakes that this network "
          f"was trained on ({trained_on(run.trained)}).")
    if problems:
        sys.exit("\n".join(problems))


# ---------------------------------------------------------------- command line
def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description="Metrics, tables and figures (Sec. IV).")
    flag = parser.add_argument
    flag("--checkpoint", nargs="+", default=[], help="best.pt of one or several runs of train.py")
    flag("--data", nargs="+", choices=list(data.ROOTS), default=["ff++"], help="default ff++")
    flag("--root", nargs="+", help="of each data set, default datasets/...")
    flag("--quality", nargs="+", choices=data.QUALITIES, default=["c23"],
         help="FF++ compression (Sec. IV-E), default c23")
    flag("--split", choices=data.SPLITS, default="test", help="default %(default)s")
    kinds = [*masks.MASKS, "given"]
    flag("--mask", choices=kinds, help="compared with the map, default as in training")
    flag("--frames", type=int, help="at most this many of each video, evenly spread; default all")
    flag("--batch-size", type=int, default=32, help="default %(default)s")
    flag("--workers", type=int, default=min(8, os.cpu_count()), help="loading processes")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flag("--device", choices=["cpu", "cuda"], default=device, help="default %(default)s")
    flag("--json", help="also write all numbers to this file")
    flag("--csv", help="also write the score of each frame to this file")
    flag("--figures", metavar="DIR", help="also draw Figs. 3 to 8; 3 and 4 need no --checkpoint")
    flag("--sweep", action="store_true", help="also degrade the first test set step by step")
    flag("--tables", nargs="+", metavar="JSON", help="instead: a row for each model in these files")
    flag("--image", nargs="+", help="instead: P(fake) of the largest face in each picture")
    flag("--video", help="instead: P(fake) of this video, the mean over --frames (100) frames")
    flag("--crop", choices=["auto", "none"], default="auto", help="none: these are face crops")
    args = parser.parse_args(argv)
    if args.frames is not None and not 1 <= args.frames <= (100 if args.video else 10 ** 9):
        parser.error("--frames must be at least 1, and for a --video at most 100")
    if not (args.checkpoint or args.tables or args.figures) or (args.sweep and not args.checkpoint):
        parser.error("--checkpoint FILE is missing")
    if args.image and args.video or (args.image or args.video) and len(args.checkpoint) != 1:
        parser.error("give --image or --video, not both, and one --checkpoint")
    if args.figures and args.data[0] not in data.TRAINABLE:
        parser.error("--figures needs ff++ or demo first in --data: real and fake frames in pairs")
    if args.root and len(args.root) != len(args.data):
        parser.error(f"give one --root for each --data: {len(args.data)}, not {len(args.root)}")
    videos = [args.video] if args.video else []
    for path in [*args.checkpoint, *(args.tables or []), *(args.image or []), *videos]:
        if not Path(path).is_file():
            parser.error(f"there is no file {path}")
    return args


def load_run(path, call):
    """A checkpoint of train.py -> Run. call: device, workers, batch_size."""
    net, trained = load_network(path, call["device"])
    return Run(model_name(trained), net, trained, call)


def find_tests(args, mask):
    """The TestSets that the command line names. mask: which masks are ground truth, or None."""
    tests = []
    for dataset, root in zip(args.data, args.root or [data.ROOTS[name] for name in args.data]):
        for quality in [None] if dataset.startswith("celeb") else args.quality:
            name = " ".join(filter(None, (dataset, quality, args.split)))
            if args.frames:
                name += f", {args.frames} frames a video"
            if args.mask and dataset in data.TRAINABLE:
                name += f", {args.mask} masks"
            videos = data.require_videos(dataset, root, quality, args.split, mask)
            if mask and dataset in data.TRAINABLE and not any(any(video.masks) for video in videos):
                print(f"{name}: there are no masks, so maps are not measured (python masks.py)")
            tests.append(TestSet(name, dataset, quality, videos, args.frames))
    data.look_at_first_frames([video for test in tests for video in test.videos], args.workers)
    return tests


def test_run(run, tests):
    """One network on several TestSets: yields (test, result, what predict found) after each.

    The training quality, if it is among them, is tested first. Its maps are the reference for the
    same frames in other qualities.
    """
    references = {}                             # {data set: what was found}
    for test in sorted(tests, key=lambda test: test.quality != run.trained["quality"]):
        result, found = evaluate(run, test, reference=references.get(test.data))
        if test.quality == run.trained["quality"]:
            references[test.data] = found
        print(f"{run.name}, {test.name}: frame AUC {show(result['frame_auc'])}", flush=True)
        yield test, result, found


def main():
    args = parse_arguments()
    if args.tables:
        print(tables(args.tables))
        return
    runs = [load_run(path, call=vars(args)) for path in args.checkpoint]
    if len({run.name for run in runs}) < len(runs):         # the files tell them apart
        runs = [run._replace(name=f"{run.name}, {path}")
                for run, path in zip(runs, args.checkpoint)]
    folder = Path(args.figures or Path(args.checkpoint[0]).parent)
    folder.mkdir(parents=True, exist_ok=True)
    if args.image or args.video:
        report_faces(runs[0], args, folder)
        return

    report = [{"settings": run.trained, "results": []} for run in runs]
    lines = []                                  # of --csv
    sweeps = {}
    for run, entry, path in zip(runs, report, args.checkpoint):
        tests = find_tests(args, args.mask or run.trained["mask"])
        print(f"{run.name}, trained on {trained_on(run.trained)} ({path})")
        for test, result, found in test_run(run, tests):
            entry["results"].append(result)
            lines += frame_lines(path, test, found)
            save_results(args, report, lines)
            if test is tests[0]:
                first_found = found
        print(f"\n{result_tables(entry['results'])}\n")
        if args.sweep:
            sweeps[run.name] = [evaluate(run, tests[0], operation, strength, first_found)[0]
                                for operation in data.OPERATIONS for strength in operation.sweep]
            entry["results"] += sweeps[run.name]
            save_results(args, report, lines)
            print(f"{result_tables(sweeps[run.name])}\n")
    if args.sweep:
        sweep_plot(tests[0].name, sweeps, folder / "sweep.png")
    if args.figures:            # they make their own masks, so the test sets of any run serve
        draw_figures(runs, tests if runs else find_tests(args, args.mask or "ssim"), folder)


if __name__ == "__main__":
    main()
