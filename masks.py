"""
The ground truth of the forgery map: which pixels of a fake frame did the manipulation change?

Read beside Sec. III-E (last paragraph), Fig. 3 and Table VII.
  paper      code       shape, type           meaning
             real, fake (H, W, 3) uint8 RGB   one frame, one crop, before and after manipulation
  SSIM map   ssim_map   (H, W) float32        255 (1 - SSIM), 0..510: how much structure changed
  X_gt       mask       (H, W) uint8          1 = manipulated, 0 = untouched; a real frame's is all
                                              zeros and never stored

    python masks.py --data ff++ [--root DIR] [--mask ssim|diff]    writes every mask that is missing
"""

import signal

if __name__ == "__main__":          # Ctrl-C while torch loads ends in no traceback; see data.run
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import io
import os

import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity

import data


# ---------------------------------------------------------------- Sec. III-E: SSIM mask, Fig. 3
def grey_pair(real, fake):
    """Two (H, W, 3) uint8 RGB crops -> two (H, W) float32 of luma, 0..255."""
    if real.shape != fake.shape:
        raise ValueError(f"real crop {real.shape} and fake crop {fake.shape} must match; cut both "
                         "with one box")
    return [np.asarray(Image.fromarray(crop).convert("L"), np.float32) for crop in (real, fake)]


def ssim_map(real, fake):
    """How much each pixel's 7 x 7 surroundings changed: 255 (1 - SSIM), (H, W) float32, 0..510.

    real, fake: (H, W, 3) uint8 RGB of one frame and one box, H and W at least 7. Raises ValueError
    if their shapes differ.
    READING Sec. III-E: "multiplied by 255". SSIM is 1 where frames agree, so that as printed
    (SSIM x 255 > 20) 98 to 100 % of every frame would be "manipulated"; we use 1 - SSIM, which
    gives the masks of Fig. 3. MSCCNet, a localization benchmark on FF++, reads it alike: 1 - SSIM
    above .08, which is 20 / 255.
    READING Sec. III-E: of the 299 px crops, grey, 7 x 7 uniform window, float32: scikit-image's
    defaults. The Gaussian window of [40] flags 0.02 of the frame less and takes twice the time.
    """
    pair = grey_pair(real, fake)
    _, ssim = structural_similarity(*pair, win_size=7, data_range=255, full=True)
    return 255 * (1 - ssim)                     # ssim: (H, W), in [-1, 1]


def ssim_mask(real, fake, threshold=20):
    """X_gt of a fake frame, (H, W) uint8: 1 where manipulation changed the local structure.

    Arguments as ssim_map. threshold: in grey levels of 255; 20 is the paper's, "empirically". The
    map passes 255 where SSIM < 0 (up to 2 % of pixels): it is compared before any cast to uint8.
    """
    return (ssim_map(real, fake) > threshold).astype(np.uint8)


# ---------------------------------------------------------------- Table VII: DIFF mask
def diff_mask(real, fake):
    """Dang et al.'s mask [10]: 1 where frames differ by over a tenth of the range. As ssim_mask.

    READING Table VII: a difference of grey values, as for SSIM; the paper does not say of what.
    """
    grey_real, grey_fake = grey_pair(real, fake)
    return (np.abs(grey_real - grey_fake) > 0.1 * 255).astype(np.uint8)


MASKS = {"ssim": ssim_mask, "diff": diff_mask}


# ---------------------------------------------------------------- the masks of a whole tree
def best_pairs(dataset, root):
    """Each fake video of a tree, once, in the best quality that has its real video as well.

    READING Sec. III-E: nothing says from which quality. Compression itself changes structure: masks
    from c40 flag 0.56 of a face box and 0.36 of what lies outside it, masks from c23 0.40 and 0.04,
    masks from raw the same as c23 within 0.01. So: c0, else c23, else c40; one serves all of them,
    and the two frames of a pair never come from different ones.
    """
    best = {}
    for quality in data.QUALITIES:
        for split in ("train", "val", "test"):
            for video in data.list_videos(dataset, root, quality, split):
                is_new = video.label and video.key not in best
                if is_new and any(data.twin_path(frame).exists() for frame in video.frames):
                    best[video.key] = (video, quality)
    return list(best.values())


def missing_masks(video, mask):
    """The frames of a fake video that have a real frame, but no mask yet."""
    return [frame for frame in video.frames
            if data.twin_path(frame).exists() and not data.mask_path(frame, mask).exists()]


def any_missing(dataset, root, mask):
    return any(missing_masks(video, mask) for video, _ in best_pairs(dataset, root))


def write_video_masks(video, quality, mask):
    """Writes the masks of one fake video that are missing. Returns sentences on what went wrong."""
    folder = data.mask_path(video.frames[0], mask).parent
    note = folder / "quality.txt"               # what the masks beside it were made from
    made_from = note.read_text() if note.exists() else quality
    if made_from == "c40" and quality != "c40":
        return [f"{folder} was made from c40, and {quality} is there now: delete it"]
    sentences = []
    for frame in missing_masks(video, mask):
        try:
            pair = [np.asarray(data.read_image(path)) for path in (data.twin_path(frame), frame)]
            image = Image.fromarray(255 * MASKS[mask](*pair))           # white = manipulated
        except ValueError as error:
            sentences.append(f"no mask for {frame}: {error}")
            continue
        if not note.exists():
            data.write_whole(note, quality.encode())
        png = io.BytesIO()
        image.save(png, "PNG", compress_level=1)
        data.write_whole(data.mask_path(frame, mask), png.getvalue())
    return sentences


def write_masks(dataset, root, mask="ssim", workers=None):
    """Writes every missing mask of a tree, or names what cannot be done, and stops.

    Returns how many fake videos there are with a real one.
    """
    pairs = best_pairs(dataset, root)
    if any(quality == "c40" and missing_masks(video, mask) for video, quality in pairs):
        print("warning: masks from c40 are blurred by compression; better cut c0 or c23 first")
    jobs = [(video, quality, mask) for video, quality in pairs]
    sentences = sum(data.in_threads(write_video_masks, jobs, workers, f"{mask} masks"), [])
    if sentences:
        data.stop(*sentences, f"{len(sentences)} masks or videos need your hand; then run again")
    return len(pairs)


def main():
    parser = data.new_parser("Writes the missing SSIM or DIFF masks of face crops (Sec. III-E).")
    flag = parser.add_argument
    flag("--data", choices=data.TRAINABLE, default="ff++", help="default %(default)s")
    flag("--root", type=data.some_path, help="folder of the data set, default datasets/...")
    flag("--mask", choices=list(MASKS), default="ssim",
         help="Sec. III-E, or [10] (Table VII); default %(default)s")
    flag("--workers", type=data.whole_number(1), default=os.cpu_count(),
         help="threads, default %(default)s")
    args = parser.parse_args()
    root = args.root or data.ROOTS[args.data]
    there = [video for video, _ in best_pairs(args.data, root)]
    data.stop_if_broken(there, args.mask, args.workers)     # an empty file is no mask
    videos = write_masks(args.data, root, args.mask, args.workers)
    if not videos:
        data.require_videos(args.data, root, "c23", "train")
        data.stop(f"no fake video with its real video under {root}; see README, 'Prepare'")
    print(f"{videos} fake videos have masks: {root}/manipulated_sequences/*/masks_{args.mask}")


if __name__ == "__main__":
    data.run(main, "masks already written are kept")
