"""
How well a trained network tells real from fake, and where it sees the forgery.

Read beside Sec. IV-A4 and IV-C to IV-G.
  paper          code              meaning
  frame level    frame_acc, _auc   every frame for itself (Tables I, III, VI)
  video level    video_acc, _auc   the mean P(fake) of a video's frames, one score a video (Tables II, IV, V, VI, VII)
  alpha          scores            P(fake) = 1 - P(real) after softmax, which serves two classes and five
                 iou, pixel_auc    the forgery map against X_gt, on fake frames that have a mask (not in the paper)
Accuracy is at P(fake) > 0.5. FF++'s test set has four fakes to each real: "all fake" scores 80 %, so both classes' accuracies
stand beside it. AUC is undefined (n/a), not 0 or 1, where only one class is there.

    python evaluate.py --checkpoint runs/NAME/best.pt --data ff++ --quality c0 c23 c40 [--split test] [--json FILE]
    python evaluate.py --checkpoint runs/NAME/best.pt --image photo.jpg ... | --video clip.mp4 [--crop auto|none]
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

import data
from model import LiSiam, XceptionClassifier

PIXEL_BINS = 1000           # the map's P(fake) in steps of 0.001, so that pixel AUC needs two histograms and not every pixel


# ---------------------------------------------------------------- Sec. IV-A4: metrics
def auc(labels, scores):
    """Area under the ROC curve: the chance that a fake scores above a real, a tie counting one half. None with one class only.

    labels (n,) of 0 and 1, scores (n,) any real numbers. By ranks: ties share the mean of their ranks.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    fakes, reals = int(labels.sum()), int((~labels).sum())
    if not fakes or not reals:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]                  # 1-based, mean over ties
    return float((ranks[labels].sum() - fakes * (fakes + 1) / 2) / (fakes * reals))


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

    READING Sec. IV-C: "averaging the accuracy and AUC of each frame" has no meaning for AUC; the mean P(fake) of all frames has.
    The authors' release averages over fixed chunks of 100 frames and votes for accuracy.
    """
    indices, inverse = np.unique(video, return_inverse=True)
    return np.bincount(inverse, scores) / np.bincount(inverse), indices


# ---------------------------------------------------------------- one pass over the frames
@torch.inference_mode()
def predict(net, videos, size, batch_size=32, device="cpu", workers=0, limit=None, amp=True, bar="frames", degradation=None):
    """Every frame through Eq. (1). Returns a dict of numpy arrays over the n frames that could be read, and sentences:

    score (n,) P(fake); video (n,) index into videos; iou (n,) of map against mask, NaN without mask or map;
    untouched, forged (videos, 1000) histograms of the map's P(fake) over the pixels of masked fake frames; unreadable: list.
    """
    frames = data.TestFrames(videos, size, limit, degradation)
    loader = torch.utils.data.DataLoader(frames, batch_size, num_workers=workers, pin_memory=device == "cuda",
                                         generator=torch.Generator())        # its own: ours stays as it is
    scores, video, iou, unreadable = [], [], [], []
    untouched, forged = (np.zeros((len(videos), PIXEL_BINS)) for _ in range(2))
    training = net.training
    net.eval()
    for batch in tqdm(loader, bar, leave=False, disable=bar is None):
        with torch.autocast(device, torch.bfloat16, enabled=amp and device == "cuda"):
            output = net(data.to_input(batch["image"].to(device, non_blocking=True)))
        cls_logits = output if torch.is_tensor(output) else output.cls_logits            # the baseline gives logits alone
        score = 1 - cls_logits.double().softmax(dim=1)[:, 0]                             # double: no ties at 1.0 by rounding
        overlap = torch.full_like(score, float("nan"))
        if not torch.is_tensor(output) and batch["has_mask"].any():
            mask = batch["mask"].to(device).bool()                                       # (B, S, S)
            probs = F.interpolate(output.seg_logits.float().softmax(dim=1)[:, 1:], size=mask.shape[1:],
                                  mode="bilinear", align_corners=False)[:, 0]            # (B, S, S) P(fake) of each pixel
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
    net.train(training)
    return {"score": np.concatenate(scores), "video": np.concatenate(video), "iou": np.concatenate(iou),
            "untouched": untouched, "forged": forged, "unreadable": unreadable}


def summarize(predictions, videos, method=None):
    """The numbers of one row: all of it, or one method's fakes against all real videos. None stands for undefined."""
    wanted = np.array([video.label == 0 or method in (None, video.method) for video in videos])
    frames = wanted[predictions["video"]]
    scores, video = predictions["score"][frames], predictions["video"][frames]
    labels = np.array([v.label for v in videos])
    means, indices = video_scores(scores, video)
    row = {"videos": len(indices), "real_videos": int((labels[indices] == 0).sum()), "frames": len(scores)}
    for level, truth, score in (("frame", labels[video], scores), ("video", labels[indices], means)):
        row |= {f"{level}_acc": accuracy(truth, score), f"{level}_auc": auc(truth, score),
                f"{level}_acc_real": accuracy(truth, score, of=0), f"{level}_acc_fake": accuracy(truth, score, of=1)}
    iou = predictions["iou"][frames]
    row["masked_frames"] = int((~np.isnan(iou)).sum())
    row["iou"] = float(np.nanmean(iou)) if row["masked_frames"] else None
    row["pixel_auc"] = histogram_auc(predictions["untouched"][wanted].sum(0), predictions["forged"][wanted].sum(0))
    return row


def evaluate(net, settings, dataset, root, quality, split="test", mask="ssim", limit=None, batch_size=32, device="cpu", workers=0,
             amp=True):
    """One network on one data set, quality and split. Returns what --json writes: counts and numbers, overall and per method."""
    videos = data.require_videos(dataset, root, quality, split, mask)
    predictions = predict(net, videos, settings["size"], batch_size, device, workers, limit, amp, bar=f"{dataset} {quality} {split}")
    methods = sorted({video.method for video in videos if video.label}, key=[v.method for v in videos].index)
    return {"data": dataset, "quality": quality, "split": split, "unreadable": len(predictions["unreadable"]),
            "unreadable_frames": predictions["unreadable"][:20], **summarize(predictions, videos),
            "methods": {method: summarize(predictions, videos, method) for method in methods}}


# ---------------------------------------------------------------- the table
COLUMNS = (("frames", "frames"), ("videos", "videos"), ("frame_acc", "Acc frame"), ("frame_auc", "AUC frame"),
           ("video_acc", "Acc video"), ("video_auc", "AUC video"), ("frame_acc_real", "Acc real"), ("frame_acc_fake", "Acc fake"),
           ("iou", "IoU"), ("pixel_auc", "AUC pixel"))       # Acc real, Acc fake: of frames


def show(value):
    return "n/a" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def table(results):
    """Results of evaluate -> a Markdown table, one row for all methods and one for each against all real videos."""
    lines = ["| test set | fakes | " + " | ".join(title for _, title in COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for result in results:
        for method, row in (("all", result), *result["methods"].items()):
            name = f"{result['data']} {result['quality']} {result['split']}" if method == "all" else ""
            lines.append(f"| {name} | {method} | " + " | ".join(show(row[key]) for key, _ in COLUMNS) + " |")
    notes = [f"{result['quality']}: {result['unreadable']} frames could not be read and are left out, the first: "
             f"{result['unreadable_frames'][0]}" for result in results if result["unreadable"]]
    if any(result["iou"] is None for result in results):
        notes.append("IoU and pixel AUC are n/a without masks on disk (python masks.py) or without a map (the Xception baseline)")
    return "\n".join(lines + notes)


# ---------------------------------------------------------------- one picture, one video
@torch.inference_mode()
def judge(net, crops, size, device="cpu"):
    """Face crops (Pillow RGB) through Eq. (1), one by one -> P(fake) of each, and its map (S, S) of P(fake), None for the baseline."""
    scores, maps = [], []
    for crop in crops:
        images = data.to_tensor(crop.resize((size, size), Image.Resampling.BILINEAR))[None].to(device)
        output = net(data.to_input(images))
        cls_logits = output if torch.is_tensor(output) else output.cls_logits
        scores.append(1 - cls_logits.double().softmax(dim=1)[0, 0].item())
        maps.append(None if torch.is_tensor(output) else F.interpolate(output.seg_logits.softmax(dim=1)[:, 1:], size=(size, size),
                                                                       mode="bilinear", align_corners=False)[0, 0].cpu().numpy())
    return scores, maps


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
            target = folder / f"{Path(path).absolute().parent.name}_{Path(path).stem}_map.png"
            picture.save(target)
            print(f"  map drawn over it: {target}")
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
    parser = argparse.ArgumentParser(description="Frame- and video-level accuracy and AUC, and localization (Sec. IV-C to IV-E).")
    parser.add_argument("--checkpoint", required=True, help="best.pt or last.pt of a run of train.py")
    parser.add_argument("--data", choices=list(data.DEFAULT_ROOTS), default="ff++", help="default %(default)s")
    parser.add_argument("--root", help="folder of the data set, default datasets/... as in README")
    parser.add_argument("--quality", nargs="+", choices=data.QUALITIES, default=["c23"], help="FF++ compression (Sec. IV-E), default c23")
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="default %(default)s")
    parser.add_argument("--mask", choices=["ssim", "diff", "given"], default="ssim",
                        help="what the map is compared with, default %(default)s")
    parser.add_argument("--frames", type=int, help="at most so many frames a video, evenly spread; default all (100 in the paper)")
    parser.add_argument("--batch-size", type=int, default=32, help="default %(default)s")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count()), help="loading processes, default %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
    parser.add_argument("--no-amp", action="store_true", help="float32 instead of bfloat16 on CUDA")
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--image", nargs="+", help="instead of a data set: P(fake) of the faces in these pictures")
    parser.add_argument("--video", help="instead of a data set: P(fake) of this video, the mean over --frames (default 100) frames")
    parser.add_argument("--crop", choices=["auto", "none"], default="auto", help="none: the pictures are face crops already, default auto")
    parser.add_argument("--detector", choices=list(data.CROP_SCALE), default="centerface", help="as trained with, default %(default)s")
    parser.add_argument("--figures", help="folder for the maps of --image and --video, default the checkpoint's")
    args = parser.parse_args()
    net, settings = load_network(args.checkpoint, args.device)
    if args.image or args.video:
        folder = Path(args.figures or Path(args.checkpoint).parent)
        folder.mkdir(parents=True, exist_ok=True)
        if args.video:
            look_at_video(net, settings, args.video, args.frames or 100, args.detector, args.device, folder)
        if args.image and not look_at_images(net, settings, args.image, args.crop, args.detector, args.device, folder):
            data.stop("no face was judged; the reasons are above")
        print("A score is no proof: it tells how much a face resembles the fakes this network was trained on"
              + (", which were drawn ones." if settings["data"] == "demo" else "."))
        return
    root = Path(args.root or data.DEFAULT_ROOTS[args.data])
    results = [evaluate(net, settings, args.data, root, quality, args.split, args.mask, args.frames, args.batch_size, args.device,
                        args.workers, not args.no_amp) for quality in args.quality]
    print(table(results))
    if args.json:
        Path(args.json).write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
