"""
What a training step, a test image, a loaded pair and a mask cost: ours beside the plain form, in turns, in one run.

    python tests/benchmark.py                            this machine's CPU, 299 px, width 1.0, batch 2: about five minutes
    python tests/benchmark.py --device cuda --batch-size 32

plain   NCHW, float32, eager; both branches in full (f_cnn to f_mlp) in every stage, whatever the losses need
ours    train.py's loop: channels last, the branches and heads that a stage needs, bfloat16 on CUDA
Each row gives the median of --rounds alternating measurements and the ratio of the medians. Not a test: pytest does not collect it.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from skimage import data as pictures

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data  # noqa: E402
import masks  # noqa: E402
import train  # noqa: E402
from losses import total_loss  # noqa: E402
from model import LiSiam, XceptionClassifier  # noqa: E402


def measure(functions, rounds, device):
    """Runs the functions in turn, once for warm-up and `rounds` times counted; returns their median seconds."""
    times = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, own in zip(functions, times):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def training_step(net, stage, batch, device, ours, freeze=True):
    """One step as a function without arguments. ours: as in train.py; else the plain form, frozen parts by requires_grad if freeze."""
    parameters = train.freeze(net, stage)
    if not freeze:
        net.requires_grad_(True)
    optimizer = train.make_optimizer(parameters, {"optimizer": "sgd", "lr": 0.002}, device if ours else "cpu")
    clean, degraded, labels, mask = batch
    if ours:
        clean, degraded = (images.contiguous(memory_format=torch.channels_last) for images in (clean, degraded))

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=ours and device == "cuda"):
            if not ours:
                branches = dict(zip((1, 2), net(clean, degraded, heads=(True, True))))
            elif stage == 2:
                branches = {1: net(clean)}
            else:
                branches = dict(zip((1, 2), net(clean, degraded, heads=(stage == 3, False))))
        if stage == 1:
            branches = {n: branch._replace(cls_logits=None) for n, branch in branches.items()}
        loss, _ = total_loss(branches, labels, mask, lambdas=(0, 1, 0) if stage == 2 else (1, 1, 1), aux=0 if stage == 2 else 0.4)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return step


def network_rows(args):
    shape = (args.batch_size, 3, args.size, args.size)
    batch = [torch.rand(shape, device=args.device) * 2 - 1 for _ in range(2)]
    batch += [torch.arange(args.batch_size, device=args.device) % 2, (torch.rand(shape[0], *shape[2:], device=args.device) > 0.8).long()]
    torch.manual_seed(0)
    plain = LiSiam(args.width).to(args.device)
    ours = LiSiam(args.width).to(args.device, memory_format=torch.channels_last)
    seconds = {}
    for stage in (1, 2, 3):
        pair = measure([training_step(plain, stage, batch, args.device, False), training_step(ours, stage, batch, args.device, True)],
                       args.rounds, args.device)
        seconds[stage] = pair[1]
        yield f"stage {stage}, a step of {args.batch_size} pairs", *pair
        if stage == 2:
            naive = training_step(plain, stage, batch, args.device, False, freeze=False)
            yield "stage 2, plain with gradients in the frozen parts too", measure([naive], args.rounds, args.device)[0], pair[1]

    def infer(net, images):
        with torch.inference_mode(), torch.autocast(args.device, torch.bfloat16, enabled=net is ours and args.device == "cuda"):
            net(images)
    plain.eval(), ours.eval()
    last = batch[0].contiguous(memory_format=torch.channels_last)
    yield f"inference, {args.batch_size} images", *measure([lambda: infer(plain, batch[0]), lambda: infer(ours, last)], args.rounds, args.device)
    schedule = sum(steps * seconds[stage] for stage, steps in zip((1, 2, 3), train.PAPER["iterations"])) / 3600
    print(f"\nThe paper's schedule (146k, 16k, 324k steps) at these speeds and this batch: {schedule:,.1f} hours, validation not counted")
    if args.device == "cuda":
        print(f"peak GPU memory, both networks in turn: {torch.cuda.max_memory_allocated() / 2 ** 30:.1f} GiB")


def made_up_tree(root, size, frames=10):
    """A tiny FF++ tree of a photographed face (scikit-image's) with camera grain: a PNG that costs what a real crop costs."""
    rng = np.random.default_rng(0)
    face = Image.fromarray(pictures.astronaut()[20:220, 120:320]).resize((size, size), Image.Resampling.BILINEAR)
    for k in range(frames):
        real = np.clip(np.asarray(face) + rng.normal(0, 3, (size, size, 3)), 0, 255).astype(np.uint8)
        real = np.asarray(Image.fromarray(real).filter(ImageFilter.GaussianBlur(0.7)))
        fake = real.copy()
        middle = slice(size // 4, 3 * size // 4)
        fake[middle, middle] = np.asarray(Image.fromarray(real[middle, middle]).filter(ImageFilter.GaussianBlur(3)))
        for folder, picture in (("original_sequences/youtube/c23/faces/071", real),
                                ("manipulated_sequences/Deepfakes/c23/faces/071_054", fake)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / folder / f"{k:04d}.png")


def loading_rows(args):
    """Pairs and masks a second on one core; all of it in this one process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made_up_tree(root, args.size)
        real, fake = (np.asarray(Image.open(path)) for path in (root / "original_sequences/youtube/c23/faces/071/0000.png",
                                                                 root / "manipulated_sequences/Deepfakes/c23/faces/071_054/0000.png"))
        n = 60
        seconds = measure([lambda: [masks.ssim_mask(real, fake) for _ in range(n)]], args.rounds, "cpu")[0] / n
        print(f"| SSIM mask of a decoded pair | {1 / seconds:.0f} a second |")
        (video, quality), *_ = masks.best_pairs("ff++", root, "ssim")
        target = data.mask_folder(root, video.method, "ssim", quality) / video.id
        seconds = measure([lambda: [masks.write_video_masks((video, target, "ssim")) for _ in range(4)]], args.rounds, "cpu")[0]
        print(f"| SSIM mask, PNG in to PNG out | {4 * len(video.frames) / seconds:.0f} a second |")
        pairs = data.TrainingPairs(data.list_videos("ff++", root, "c23", "train"), args.size)
        seconds = measure([lambda: [pairs[i] for i in range(n)]], args.rounds, "cpu")[0]
        print(f"| training pairs: two PNGs in, degraded copy, tensors out | {n / seconds:.0f} a second |")
        path, mask_path, rng = video.frames[0], next(target.iterdir()), np.random.default_rng(0)
        clean = data.read_face(path, args.size)
        for name, function in (("of which reading the crop", lambda: data.read_face(path, args.size)),
                               ("of which reading the mask", lambda: data.read_mask(mask_path, args.size)),
                               ("of which degrading, on average", lambda: data.degrade(clean, rng)),
                               ("of which two tensors", lambda: (data.to_tensor(clean), data.to_tensor(clean)))):
            seconds = measure([lambda: [function() for _ in range(n)]], args.rounds, "cpu")[0] / n
            print(f"| ... {name} | {1000 * seconds:.2f} ms |")


def timm_row(args):
    """timm's legacy_xception against our trunk at the original strides, same weights: equal features, and time."""
    try:
        import timm
    except ImportError:
        print("\ntimm is not installed (pip install timm): no comparison with its legacy_xception")
        return
    theirs = timm.create_model("legacy_xception", pretrained=False).to(args.device).eval()
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(theirs.state_dict(), file.name)
        ours = XceptionClassifier(num_classes=1000)
        train.load_xception_weights(ours, file.name)
    ours = ours.to(args.device).eval()
    images = torch.rand(args.batch_size, 3, args.size, args.size, device=args.device) * 2 - 1
    with torch.inference_mode():
        difference = (theirs(images) - ours(images)).abs().max().item()
        seconds = measure([lambda: theirs(images), lambda: ours(images)], args.rounds, args.device)
    print(f"\ntimm {timm.__version__} legacy_xception {1000 * seconds[0]:.0f} ms, ours {1000 * seconds[1]:.0f} ms, ratio "
          f"{seconds[1] / seconds[0]:.2f}; largest difference of the logits {difference:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda, default %(default)s")
    parser.add_argument("--batch-size", type=int, default=2, help="pairs a step, default %(default)s")
    parser.add_argument("--size", type=int, default=299, help="default %(default)s")
    parser.add_argument("--width", type=float, default=1.0, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="counted measurements of each, default %(default)s")
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.size} px, width {args.width}, {time.strftime('%Y-%m-%d')}\n")
    print("| | plain | ours | ratio |\n|---|---|---|---|")
    for row, plain, ours in network_rows(args):
        print(f"| {row} | {plain:.3f} s | {ours:.3f} s | {ours / plain:.2f} |", flush=True)
    timm_row(args)
    print("\n| one core | |\n|---|---|")
    loading_rows(args)


if __name__ == "__main__":
    main()
