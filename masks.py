"""
The ground truth of the forgery map: which pixels of a fake frame did the manipulation change?

Read beside Sec. III-E (last paragraph), Fig. 3 and Table VII.
  paper      code       shape, type             meaning
             real, fake (H, W, 3) uint8 RGB     the same frame and the same crop, before and after manipulation
  SSIM map   ssim_map   (H, W) float32          255 (1 - SSIM), 0..510: how much the local structure changed
  X_gt       mask       (H, W) uint8            1 = manipulated, 0 = untouched; a real frame's is all zeros and never stored

    python masks.py --data ff++ [--root DIR] [--mask ssim|diff]     writes every mask that is missing, in parallel
"""

import argparse
import collections
import fcntl
import multiprocessing
import os
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity
from tqdm import tqdm

import data

SSIM_THRESHOLD = 20         # grey levels of 255, Sec. III-E
DIFF_THRESHOLD = 0.1 * 255  # grey levels: |real - fake| / 255 > 0.1, Dang et al. [10]


# ---------------------------------------------------------------- Sec. III-E: SSIM mask, Fig. 3
def grey_pair(real, fake):
    """Two (H, W, 3) uint8 RGB crops -> two (H, W) float32 of luma, 0..255. Raises ValueError if the crops differ in shape."""
    if real.shape != fake.shape:
        raise ValueError(f"real crop {real.shape} and fake crop {fake.shape} must match; cut both with one box")
    return [np.asarray(Image.fromarray(crop).convert("L"), dtype=np.float32) for crop in (real, fake)]


def ssim_map(real, fake):
    """How much each pixel's 7 x 7 surroundings changed: 255 (1 - SSIM), (H, W) float32, 0 = not at all, up to 510.

    real, fake: (H, W, 3) uint8 RGB of one frame and one box, H and W at least 7. Raises ValueError if their shapes differ.
    READING Sec. III-E: "multiplied by 255". SSIM is 1 where frames agree, so that as printed (SSIM x 255 > 20) 98 to 100 %
    of every frame would be "manipulated"; we use 1 - SSIM, which gives the masks of Fig. 3.
    READING Sec. III-E: grey, 7 x 7 uniform window, float32: scikit-image's defaults. The Gaussian window of [40] flags 0.02 of the
    frame less and takes twice the time.
    """
    grey_real, grey_fake = grey_pair(real, fake)
    _, ssim = structural_similarity(grey_real, grey_fake, win_size=7, data_range=255, full=True)   # (H, W), in [-1, 1]
    return 255 * (1 - ssim)


def ssim_mask(real, fake, threshold=SSIM_THRESHOLD):
    """X_gt of a fake frame: 1 where manipulation changed the local structure. Arguments as ssim_map; returns (H, W) uint8.

    threshold: in grey levels of 255; 20 is the paper's, "empirically". The map passes 255 where SSIM < 0 (up to 2 % of pixels):
    it is compared before any cast to uint8.
    """
    return (ssim_map(real, fake) > threshold).astype(np.uint8)


# ---------------------------------------------------------------- Table VII: DIFF mask
def diff_mask(real, fake, threshold=DIFF_THRESHOLD):
    """Dang et al.'s mask [10]: 1 where the grey values differ by more than a tenth of the range. Arguments as ssim_mask."""
    grey_real, grey_fake = grey_pair(real, fake)
    return (np.abs(grey_real - grey_fake) > threshold).astype(np.uint8)


MASKS = {"ssim": ssim_mask, "diff": diff_mask}


# ---------------------------------------------------------------- the masks of a whole tree
def best_pairs(dataset, root, kind):
    """[(fake Video, quality)]: the frames of every fake that its real twin shows too, each in the best quality that has both.

    READING Sec. III-E: nothing says from which quality. Compression itself changes structure: masks from c40 flag 0.56 of a face box
    and 0.36 of what lies outside it, masks from c23 0.40 and 0.04, masks from raw the same as c23 within 0.01. So: c0, else c23, else
    c40 with a warning; reused for every quality; the two frames of a pair never from different qualities.
    """
    pairs, covered, seen = [], collections.defaultdict(set), []
    for quality in data.QUALITIES:
        for split in ("train", "val", "test"):
            seen += (videos := data.list_videos(dataset, root, quality, split, kind))
            for video in videos:
                frames = {f: path for f, path in video.frames.items() if f in video.twin and f not in covered[video.key]}
                if frames:
                    covered[video.key].update(frames)
                    pairs.append((video._replace(frames=frames), quality))
    data.crop_rule_warnings(seen)
    return pairs


def write_video_masks(job):
    """Masks of one fake video that are not on disk yet. Returns (written, sentences about frames that have none)."""
    video, folder, kind = job
    written, problems = 0, []
    for frame, path in video.frames.items():
        if frame in video.masks or (folder / f"{path.stem}.png").exists():     # the second: by a run that this one waited for
            continue
        try:
            mask = MASKS[kind](np.asarray(data.read_image(video.twin[frame])), np.asarray(data.read_image(path)))
        except ValueError as error:
            problems.append(f"no mask for {path}: {error}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{path.stem}.part"                    # a kill leaves this; the next run writes over and renames it
        Image.fromarray(mask * 255).save(part, "PNG", compress_level=1)
        os.replace(part, folder / f"{path.stem}.png")
        written += 1
    return written, problems


def write_masks(dataset, root, kind="ssim", workers=None, required=False):
    """Writes every missing mask of a tree beside its faces, manipulated_sequences/<method>/masks_<kind>/<video>/<frame>.png.

    White = manipulated. What is there is kept; processes work on one video each. Returns (masks written, sentences on frames
    without one); prints the sentences, at most five, and a warning where only c40 is at hand.
    """
    pairs = best_pairs(dataset, root, kind)
    if not pairs and required:
        data.stop(f"no fake video with its real twin under {root}; {data.HOW_TO_GET[dataset]}")
    jobs = [(video, data.mask_folder(root, video.method, kind, quality) / video.id, kind) for video, quality in pairs
            if set(video.frames) - set(video.masks)]
    poor = {video.id for video, quality in pairs if quality == "c40"}
    if jobs and poor:
        print(f"warning: masks of {len(poor)} videos come from c40, whose compression blurs them; better crop c0 or c23 as well")
    written, problems = 0, []
    if jobs:
        try:
            with multiprocessing.Pool(min(len(jobs), workers or os.cpu_count())) as pool, open(Path(root) / ".masks.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)                # two trainings may start at once: one waits for the other
                for count, sentences in tqdm(pool.imap_unordered(write_video_masks, jobs), f"{kind} masks", len(jobs), unit="video"):
                    written, problems = written + count, problems + sentences
        except OSError as error:
            data.stop(f"cannot write masks under {root} ({error.strerror}); make room or make it writable, or copy the tree, and run again: "
                      "masks already written are kept")
    for sentence in problems[:5]:
        print(f"warning: {sentence}")
    if len(problems) > 5:
        print(f"warning: and {len(problems) - 5} more frames without a mask")
    return written, problems


def main():
    parser = argparse.ArgumentParser(description="Writes the missing SSIM or DIFF masks of a tree of face crops (Sec. III-E, Fig. 3).")
    parser.add_argument("--data", choices=["ff++", "demo"], default="ff++", help="default %(default)s")
    parser.add_argument("--root", help="folder of the data set, default " + ", ".join(data.DEFAULT_ROOTS[d] for d in ("ff++", "demo")))
    parser.add_argument("--mask", choices=list(MASKS), default="ssim", help="Sec. III-E or [10] (Table VII), default %(default)s")
    parser.add_argument("--workers", type=int, help="processes, default one a core")
    args = parser.parse_args()
    root = Path(args.root or data.DEFAULT_ROOTS[args.data])
    if args.workers is not None and args.workers < 1:
        data.stop("--workers must be at least 1")
    written, problems = write_masks(args.data, root, args.mask, args.workers, required=True)
    print(f"{written} masks written under {root}/manipulated_sequences/<method>/masks_{args.mask}, {len(problems)} frames without one")


if __name__ == "__main__":
    main()
