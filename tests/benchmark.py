"""
What a training step, a test image, a loaded pair and a mask cost: ours beside the plain form.

    python tests/benchmark.py                                    this CPU, batch 2: five minutes
    python tests/benchmark.py --device cuda --batch-size 32      a GPU: under five minutes
    python tests/benchmark.py --start                            a tree of FF++'s size: how long
                                                                 train.py and evaluate.py need to
                                                                 start on it

plain      as a newcomer would write it: NCHW, float32, PyTorch's default SGD; both branches in full
           (f_cnn to f_mlp) in every stage
ours       train.py's own step: uint8 batches, to_input, seeding, the branches and heads that a
           stage needs, losses, optimizer; channels last; bfloat16 where the GPU has it
tuned      ours with torch.backends.cudnn.benchmark; on CUDA only
compiled   ours after net.compile(dynamic=False); on CUDA only
All take turns. A row gives the median of --rounds samples, the ratio to plain and, on CUDA, each
one's own peak memory. Not a test: pytest does not collect it.

COSTS
By arithmetic alone, not measured on a GPU: stage 3 with 32 pairs at 299 px in bfloat16 needs 16.6
GiB and moves 150 GB. That is 50 ms at an H100's 3.0 TB/s, and 60 ms with each kernel's own floor.
The paper's 486,000 iterations would take about 8 hours there at best, and a card of 16 GB needs a
smaller --batch-size.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
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
import evaluate  # noqa: E402
import masks  # noqa: E402
import train  # noqa: E402
from losses import total_loss  # noqa: E402
from model import LiSiam, XceptionClassifier, load_xception_weights  # noqa: E402


def measure(functions, args, steps=1):
    """{name: (median seconds of a call, peak GiB)} of functions that take turns, after a warm-up.

    steps: calls in a sample, so that waiting for the GPU once does not count.
    """
    seconds = {name: [] for name in functions}
    peak = dict.fromkeys(functions, 0.0)
    for turn in range(args.rounds + 1):
        for name, function in functions.items():
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                function()
            if args.device == "cuda":
                torch.cuda.synchronize()
                peak[name] = torch.cuda.max_memory_allocated() / 2 ** 30
            if turn > 0:
                seconds[name].append((time.perf_counter() - start) / steps)
    return {name: (statistics.median(seconds[name]), peak[name]) for name in functions}


COLUMNS = ("plain", "ours", "tuned", "compiled")


def print_row(title, measured, args):
    plain, _ = measured["plain"]
    cells = []
    for name in COLUMNS:
        if name not in measured:
            cells.append("-")
            continue
        time_taken, peak = measured[name]
        cell = f"{1000 * time_taken:.1f} ms ({time_taken / plain:.2f})"
        cells.append(cell + (f", {peak:.1f} GiB" if args.device == "cuda" else ""))
    print(f"| {title} | {' | '.join(cells)} |", flush=True)


def made_up_batch(args):
    """A batch as data.TrainingPairs' loader gives it: bytes, in page-locked memory for CUDA."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch_size, args.size, args.size, 3)
    batch = {
        "clean": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "degraded": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "mask": (torch.rand(shape[:3], generator=generator) > 0.8).to(torch.uint8),
        "label": torch.arange(args.batch_size) % 2,
    }
    if args.device == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return batch


def our_step(net, batch, settings, stage):
    """train.main's lines for one batch, as a function without arguments."""
    optimizer = train.make_optimizer(train.freeze(net, stage), settings)

    def step():
        torch.manual_seed(0)
        loss, _ = train.step_loss(net, batch, settings, stage)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return step


def tuned(step):
    """The same step where cuDNN may try its algorithms and keep the fastest."""
    def with_benchmark():
        torch.backends.cudnn.benchmark = True
        step()
        torch.backends.cudnn.benchmark = False
    return with_benchmark


def plain_input(images):
    """The plain form's layout: (B, 3, S, S) with each channel on its own."""
    return (images.permute(0, 3, 1, 2).contiguous().float() / 255 - 0.5) / 0.5


def plain_step(net, batch, settings, stage, freezes=True):
    """The plain form. freezes: clears requires_grad of what the stage does not train."""
    device = settings["device"]
    images = [plain_input(batch[name]) for name in ("clean", "degraded")]
    parameters = train.freeze(net, stage)
    if not freezes:
        net.requires_grad_(True)
    optimizer = torch.optim.SGD(parameters, lr=0.002, momentum=0.9, weight_decay=5e-4)
    cls_only = stage == 2

    def step():
        clean, degraded = [image.to(device) for image in images]
        first, second = net(clean, degraded, heads=(True, True))
        lambdas = (0, 1, 0) if cls_only else (1, int(stage == 3), 1)
        loss, _ = total_loss({1: first, 2: second}, batch["label"].to(device),
                             batch["mask"].to(device), lambdas=lambdas, aux=0 if cls_only else 0.4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return step


def validation_batch(net, batch, device):
    """evaluate.predict's lines for one batch of images."""
    @torch.inference_mode()
    def step():
        images = batch["clean"].to(device, non_blocking=True)
        _, probs = evaluate.scores_and_maps(net, images)
        evaluate.map_numbers(evaluate.count_pixels(probs, batch["mask"].to(device)))
    return step


def network_rows(args):
    """Prints the rows of the three stages and of testing; returns {row: seconds of ours}."""
    settings = {**train.PAPER, "model": "lisiam", "variant": "A", "device": args.device}
    batch = made_up_batch(args)
    torch.manual_seed(0)
    nets = {"plain": LiSiam(args.width).to(args.device)}
    nets["ours"] = LiSiam(args.width).to(args.device, memory_format=torch.channels_last)
    if args.device == "cuda":
        nets["compiled"] = LiSiam(args.width).to(args.device, memory_format=torch.channels_last)
        nets["compiled"].compile(dynamic=False)
    steps = 10 if args.device == "cuda" else 1
    ours = {}
    print(f"| {args.size} px, batch {args.batch_size} | {' | '.join(COLUMNS)} |")
    print("|---|" + "---|" * len(COLUMNS))
    for stage in (1, 2, 3):
        functions = {}
        for name, net in nets.items():
            make = plain_step if name == "plain" else our_step
            functions[name] = make(net, batch, settings, stage)
        if args.device == "cuda":
            functions["tuned"] = tuned(functions["ours"])
        measured = measure(functions, args, steps)
        print_row(f"stage {stage}, a step", measured, args)
        ours[stage] = measured["ours"][0]
    naive = {"plain": plain_step(nets["plain"], batch, settings, 2, freezes=False),
             "ours": our_step(nets["ours"], batch, settings, 2)}
    print_row("stage 2; plain with all gradients", measure(naive, args, steps), args)

    for net in nets.values():
        net.eval()
    images = plain_input(batch["clean"])

    @torch.inference_mode()
    def plain_test():
        nets["plain"](images.to(args.device))
    functions = {"plain": plain_test,
                 "ours": validation_batch(nets["ours"], batch, args.device)}
    measured = measure(functions, args, steps)
    print_row("a test batch (ours: with the map's numbers)", measured, args)
    ours["test"] = measured["ours"][0]
    return ours


def print_schedule(ours, args):
    """The paper's run in hours at these speeds: training, and validation every 5,400 iterations."""
    steps = train.PAPER["iterations"]
    training = sum(count * ours[stage] for stage, count in zip((1, 2, 3), steps)) / 3600
    every = train.PAPER["eval_every"]
    checks = sum(steps) // every - steps[0] // every            # none in stage 1
    one = 70_000 / args.batch_size * ours["test"] / 60
    print(f"\nThe paper's schedule (146k, 16k, 324k steps) at this batch: {training:,.1f} hours; a "
          f"validation of 70,000 frames {one:,.1f} minutes, {checks} of them "
          f"{checks * one / 60:,.1f} hours (loading not counted)")


def made_up_tree(root, size, frames=10):
    """A tiny FF++ tree of scikit-image's astronaut with camera grain: PNGs as large as crops'."""
    rng = np.random.default_rng(0)
    face = Image.fromarray(pictures.astronaut()[20:220, 120:320]).resize((size, size))
    for k in range(frames):
        noisy = np.asarray(face) + rng.normal(0, 3, (size, size, 3))
        real = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        real = real.filter(ImageFilter.GaussianBlur(0.7))
        fake = real.copy()
        box = (size // 4, size // 4, 3 * size // 4, 3 * size // 4)
        fake.paste(real.crop(box).filter(ImageFilter.GaussianBlur(3)), box)
        for folder, picture in (("original_sequences/youtube/c23/faces/071", real),
                                ("manipulated_sequences/Deepfakes/c23/faces/071_054", fake)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / f"{k:04d}.png")


def loading_rows(args):
    """Pairs, test frames and masks a second on one core, all in this one process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made_up_tree(root, args.size)
        reals, fakes = data.list_videos("ff++", root, "c23", "train")
        pair = [np.asarray(data.read_image(video.frames[0])) for video in (reals, fakes)]

        masked = data.mask_folder(fakes.frames[0].parent, "ssim")

        def write_masks():
            shutil.rmtree(masked, ignore_errors=True)
            masks.write_pair_masks(masks.best_pair(fakes), "ssim")
        write_masks()
        reals, fakes = data.list_videos("ff++", root, "c23", "train")
        pairs = data.TrainingPairs([reals, fakes], args.size)
        frames = data.TestFrames([reals, fakes], args.size)
        clean = data.read_image(fakes.frames[0])
        rng = np.random.default_rng(0)
        rows = {
            "SSIM masks of decoded pairs": (lambda: masks.ssim_mask(*pair), 1),
            "SSIM masks, PNG to PNG": (write_masks, len(fakes.frames)),
            "training pairs, from PNG to tensors": (lambda: [pairs[n] for n in range(20)], 20),
            "test frames with masks": (lambda: [frames[n] for n in range(20)], 20),
            "... reading a crop": (lambda: data.read_face(fakes.frames[0]), 1),
            "... reading a crop and its mask": (
                lambda: data.read_face(fakes.frames[0], fakes.masks[0]), 1),
            "... degrading, on average": (lambda: data.degrade(clean, rng), 1),
        }
        print("\n| one core | a second |\n|---|---|")
        for title, (function, count) in rows.items():
            seconds, _ = measure({title: function}, args, steps=20 if count == 1 else 2)[title]
            print(f"| {title} | {count / seconds:.0f} |", flush=True)


def link(source, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, path)


def ffpp_sized_tree(root, copies=100):
    """1,000 real and 4,000 fake videos, 446,400 pictures and masks in c23, of hard links.

    A file can have 65,000 links, so each picture is written `copies` times first.
    """
    small = root / "small"
    made_up_tree(small, 299, frames=copies)
    reals, fakes = data.list_videos("ff++", small, "c23", "train")
    masks.write_masks([reals, fakes], "ssim")
    _, fakes = data.list_videos("ff++", small, "c23", "train")
    count = 0
    for (method, id), split in data.official_split("ff++", root).items():
        folder = data.method_folders("ff++", root, "c23")[method] / "faces" / id
        for k in range(30 if split == "train" else 100):
            video = reals if method == "real" else fakes
            link(video.frames[count % copies], folder / f"{k:04d}.png")
            if method != "real":
                mask = data.mask_folder(folder, "ssim") / f"{k:04d}.png"
                link(fakes.masks[count % copies], mask)
            count += 1
    shutil.rmtree(small)


def starting_rows():
    """Seconds until train.py has done its first iteration, and of evaluate.py --frames 2."""
    project = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ffpp"
        ffpp_sized_tree(root)
        out = Path(folder) / "run"
        where = ["--data", "ff++", "--root", str(root)]
        train_once = ["train.py", *where, "--out", str(out), "--pretrained", "none", "--width",
                      "0.125", "--batch-size", "2", "--iterations", "1", "0", "0"]
        test = ["evaluate.py", "--checkpoint", str(out / "best.pt"), *where, "--frames", "2"]
        print("\n| a tree of FF++'s size | seconds |\n|---|---|")
        for title, command in (("to the end of the first iteration", train_once),
                               ("the same, files in memory", [*train_once, "--resume"]),
                               ("evaluate.py --frames 2", test)):
            if "--resume" in command:
                shutil.rmtree(out)
                command = command[:-1]
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=project, check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            print(f"| {title} | {time.perf_counter() - start:.1f} |", flush=True)
        call = {"device": "cpu", "workers": min(8, os.cpu_count()), "batch_size": 32}
        run = evaluate.load_run(out / "best.pt", call)
        videos = data.list_videos("ff++", root, "c23", "test")
        test = evaluate.TestSet("scoring", "ff++", "c23", videos, 2)
        start = time.perf_counter()
        evaluate.predict(run, test, keep_pixels=True)
        print(f"| ... of which scoring | {time.perf_counter() - start:.1f} |")


def timm_row(args):
    """timm's legacy_xception and our baseline with the same weights: logits and time."""
    try:
        import timm
    except ImportError:
        print("\nno comparison with timm's legacy_xception: pip install timm")
        return
    theirs = timm.create_model("legacy_xception", pretrained=False).to(args.device).eval()
    ours = XceptionClassifier(num_classes=1000)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), Path(folder) / "timm.pth")
        load_xception_weights(ours, Path(folder) / "timm.pth")
    ours = ours.to(args.device).eval()
    images = torch.rand(args.batch_size, 3, args.size, args.size, device=args.device) * 2 - 1
    with torch.inference_mode():
        difference = (theirs(images) - ours(images)).abs().max().item()
        measured = measure({"timm": lambda: theirs(images), "ours": lambda: ours(images)}, args)
    ratio = measured["ours"][0] / measured["timm"][0]
    print(f"\ntimm {timm.__version__} legacy_xception against ours: largest difference of the "
          f"logits {difference:.1e}, time ratio {ratio:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
                        help="default %(default)s")
    parser.add_argument("--batch-size", type=int, default=2, help="pairs, default %(default)s")
    parser.add_argument("--size", type=int, default=299, help="default %(default)s")
    parser.add_argument("--width", type=float, default=1.0, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="samples, default %(default)s")
    parser.add_argument("--start", action="store_true", help="measure the start on FF++'s size")
    args = parser.parse_args()
    name = platform.processor() or platform.machine()
    if args.device == "cuda":
        name = torch.cuda.get_device_name()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, width "
          f"{args.width}, {time.strftime('%Y-%m-%d')}\n")
    if args.start:
        starting_rows()
        return
    print_schedule(network_rows(args), args)
    timm_row(args)
    loading_rows(args)


if __name__ == "__main__":
    main()
