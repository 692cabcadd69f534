"""
The ground truth of the forgery map: which pixels of a fake frame did the manipulation change?

Read beside Sec. III-E (last paragraph), Fig. 3 and Table VII.
  paper      code       shape, type           meaning
             real, fake (H, W, 3) uint8 RGB   one frame, one crop, before and after manipulation
  SSIM map   ssim_map   (H, W) float32        255 (1 - SSIM), 0..510: how much structure changed
  X_gt       mask       (H, W) uint8          1 = manipulated, 0 = untouched; a real frame's mask is
                                              all zeros and never stored

    python masks.py --data ff++ [--root DIR] [--mask ssim|diff]    writes every mask that is missing
"""

import argparse
import io
import os
import sys

import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity
from tqdm.contrib.concurrent import thread_map

import data


# ---------------------------------------------------------------- Sec. III-E: SSIM mask, Fig. 3
def grey_pair(real, fake):
    """Two (H, W, 3) uint8 RGB crops -> two (H, W) float32 of luma, 0..255."""
    if real.shape != fake.shape:
        raise ValueError(f"crops of {real.shape} and {fake.shape} differ; use one box for both")
    return [np.asarray(Image.fromarray(crop).convert("L"), np.float32) for crop in (real, fake)]


def ssim_map(real, fake):
    """How much the 7 x 7 surroundings of a pixel changed: 255 (1 - SSIM), (H, W) float32, 0..510.

    real, fake: (H, W, 3) uint8 RGB of one frame and one box, H and W at least 7. ValueError if
    their shapes differ.
    READING Sec. III-E: the paper multiplies "the SSIM map" by 255 and compares with 20. SSIM is 1
    where two frames agree, so this would call 98 to 100 % of every frame manipulated. We use
    1 - SSIM, which gives the masks of Fig. 3. MSCCNet, a localization benchmark on FF++, reads it
    in the same way: its threshold for 1 - SSIM is .08, which is 20 / 255 rounded.
    READING Sec. III-E: the paper does not say of what SSIM is computed. We take the grey crops as
    they are on disk (299 px) and scikit-image's defaults, a uniform 7 x 7 window, in float32. The
    Gaussian window of [40] takes twice the time. On two pairs of FF++ in c23 it marked 1.5 and 2.3
    percentage points less of the frame.
    """
    pair = grey_pair(real, fake)
    _, ssim = structural_similarity(*pair, win_size=7, data_range=255, full=True)
    return 255 * (1 - ssim)                     # ssim: (H, W), in [-1, 1]


def ssim_mask(real, fake, threshold=20):
    """X_gt of a fake frame, (H, W) uint8: 1 where manipulation changed the local structure.

    Arguments as in ssim_map. threshold: in grey levels of 255; the paper chose 20 "empirically".
    The map exceeds 255 where SSIM is negative (up to 2 % of pixels), so it is never cast to uint8.
    """
    return (ssim_map(real, fake) > threshold).astype(np.uint8)


# ---------------------------------------------------------------- Table VII: DIFF mask
def diff_mask(real, fake):
    """The mask of Dang et al. [10]: 1 where frames differ by more than a tenth of the range.

    Arguments and result as in ssim_mask.
    READING Table VII: the paper does not say how [10] is computed. [10] takes the difference of the
    RGB frames first and turns it to grey then. We take the difference of the grey frames instead,
    as for SSIM.
    """
    grey_real, grey_fake = grey_pair(real, fake)
    return (np.abs(grey_real - grey_fake) > 0.1 * 255).astype(np.uint8)


MASKS = {"ssim": ssim_mask, "diff": diff_mask}


# ---------------------------------------------------------------- the masks of videos
def best_pair(video):
    """(fake's folder, real video's folder, quality, names of common frames); None without a pair.

    READING Sec. III-E: the paper does not say from which quality masks are made. Compression itself
    changes structure. On a real pair of Deepfakes, masks from c40 marked 56 % of the face box and
    36 % of what lies outside it; masks from c23 marked 40 % and 4 %. On other frames, masks from c0
    and c23 agreed within 1 %. So c40 is taken only where there is nothing else, and of c0 and c23
    the one with more pairs of frames; if they have equally many, c0. All qualities share the masks.
    Both frames of a pair have the same quality.
    """
    if not video.label:
        return None
    folder = video.frames[0].parent             # .../Deepfakes/c23/faces/000_003
    pairs = []
    for quality in data.QUALITIES:              # the best first
        place = data.quality_folder(folder.parents[2], quality)
        fake = place / folder.parent.name / folder.name
        real = data.twin_folder(fake)
        common = set(data.names(fake, ".png")) & set(data.names(real, ".png"))
        if common:
            pairs.append((fake, real, quality, common))
    return max(pairs, key=lambda pair: (pair[2] != "c40", len(pair[3])), default=None)


def missing_names(pair, mask):
    """File names of the frames whose mask is missing. pair: see best_pair; [] without a pair."""
    if pair is None:
        return []
    fake, _, _, common = pair
    there = data.names(data.mask_folder(fake, mask), ".png")
    return sorted(common.difference(there))


def write_pair_masks(pair, mask):
    """Writes the missing masks of one fake video. Returns sentences on what went wrong."""
    fake, real, quality, _ = pair
    folder = data.mask_folder(fake, mask)
    note = folder / "quality.txt"               # from which quality the first mask was made
    if quality != "c40" and note.exists() and note.read_text() == "c40":
        return [f"the masks in {folder} were made from c40, but there is {quality} now, which "
                "gives better ones; delete the folder and run again"]
    problems = []
    for name in missing_names(pair, mask):
        try:
            crops = [np.asarray(data.read_image(place / name)) for place in (real, fake)]
            image = Image.fromarray(255 * MASKS[mask](*crops))          # white = manipulated
        except ValueError as error:
            problems.append(f"no mask for {fake / name}: {error}")
            continue
        if not note.exists():
            data.write_whole(note, quality.encode())
        png = io.BytesIO()
        image.save(png, "PNG", compress_level=1)
        data.write_whole(folder / name, png.getvalue())
    return problems


def write_masks(videos, mask="ssim", workers=None):
    """Writes every missing mask of the fakes among the videos, and keeps those that are there.

    Returns the number of fakes that have a pair. Ends the program with sentences on what could not
    be done, if anything.
    """
    pairs = [pair for pair in map(best_pair, videos) if pair]
    from_c40 = sum(pair[2] == "c40" and missing_names(pair, mask) != [] for pair in pairs)
    if from_c40:
        print(f"warning: the masks of {from_c40} videos are made from c40, where compression alone "
              "changes many pixels; cut c0 or c23 first if you have it")
    found = thread_map(lambda pair: write_pair_masks(pair, mask), pairs,
                       max_workers=workers or None, desc=f"{mask} masks", leave=False)
    problems = sum(found, [])
    if problems:
        sys.exit("\n".join(problems))
    return len(pairs)


def main():
    parser = argparse.ArgumentParser(
        description="Writes the missing SSIM or DIFF masks of face crops (Sec. III-E).")
    flag = parser.add_argument
    flag("--data", choices=data.TRAINABLE, default="ff++", help="default %(default)s")
    flag("--root", help="folder of the data set, default datasets/...")
    flag("--mask", choices=list(MASKS), default="ssim",
         help="Sec. III-E, or [10] (Table VII); default %(default)s")
    flag("--workers", type=int, default=os.cpu_count(), help="threads, default %(default)s")
    args = parser.parse_args()
    root = args.root or data.ROOTS[args.data]
    videos = {}                                 # each video once, whatever its qualities
    for quality in data.QUALITIES:
        for split in data.SPLITS:
            for video in data.list_videos(args.data, root, quality, split, args.mask):
                videos[video.key] = video
    count = write_masks(videos.values(), args.mask, args.workers)
    if count == 0:
        sys.exit(f"there are no crops of a fake video and of its real video under {root}, but "
                 "masks are made from both; python data.py faces cuts them, and python train.py "
                 "--data demo draws the demo's")
    print(f"the masks of {count} fake videos are in "
          f"{root}/manipulated_sequences/*/masks_{args.mask}")


if __name__ == "__main__":
    main()
