"""What the published models need and reach on TPU slices: writes docs/scaling.md and its numbers.

    nice python benchmarks/scaling.py [configs/x.py ...]

Compiles each experiment's training step for slices of 4 to 256 chips (training/plans.py); needs
`jax[tpu]`, no TPU. A compilation takes minutes of one core and up to 5 GB. Plans that are in
docs/scaling.json are not made again, so it can be stopped and started; delete the file to start
anew.
"""

import dataclasses
import importlib
import json
import pathlib
import sys

from maskclippp_jax.training import plans

ROOT = pathlib.Path(__file__).parents[1]

TABLE, NUMBERS = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling.json"
SLICES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
SHOWN = ("v5e:4x4", "v5e:16x16")
IMAGES = 4  # a chip; fewer where these do not fit

HEAD = f"""# Scaling

Made by `python benchmarks/scaling.py`, on a machine without TPU: the training step of each
experiment, compiled for the slice with {IMAGES} images a chip, with the `mesh.fsdp` and `remat` of
its configuration, and with less care than for a real run (`--fast`), so slightly pessimistic. What
does not fit so is tried with recomputation (`remat`), then with the parameters split over up to 16
chips (`mesh.fsdp`, the second number of the mesh) as well, then with fewer images.
Memory and FLOPs are the compiler's own. Times are what it can price, plus the bytes sent over the
full speed of a chip's links, as if nothing overlapped. The attention kernel takes the time of its
FLOPs, at the share of the matrix unit that a head fills, or of its bytes, whichever is longer; what
it does beside matrix products is left out, and so is the waiting of chips for each other. Bodies of
loops count once. The times compare slices and promise nothing.
"""


def main(files: list[str]) -> None:
    files = files or sorted(str(f.relative_to(ROOT)) for f in ROOT.glob("configs/coco_*.py"))
    plans.compile_only()
    plans.jax.config.update("jax_optimization_level", "O1")
    done = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    names = [pathlib.Path(file).stem for file in files]
    configs = {name: importlib.import_module(f"maskclippp_jax.configs.{name}").get_config()
               for name in names}
    # What the first table shows is compiled first, for all experiments.
    for topology in sorted(SLICES, key=lambda t: t not in SHOWN):
        for name in names:
            if topology in done.get(name, {}):
                continue
            print(f"compiling {name} for {topology}", flush=True)
            found = dataclasses.asdict(best_plan(configs[name], topology))
            done.setdefault(name, {})[topology] = found
            TABLE.parent.mkdir(exist_ok=True)
            NUMBERS.write_text(json.dumps(done, indent=1) + "\n")
            TABLE.write_text(table(done))
    TABLE.write_text(table(done))


def best_plan(config, topology: str) -> plans.Plan:
    """The first arrangement that fits, or the last one tried."""
    own = config.mesh.fsdp
    split = min(16, plans.make_mesh(1, topology).size)
    for fsdp, remat, images in ((own, config.remat, IMAGES), (own, "full", IMAGES),
                                (split, "full", IMAGES), (split, "full", IMAGES // 2),
                                (split, "full", 1)):
        settings = config.copy_and_resolve_references().unlock()
        settings.mesh.fsdp, settings.remat = fsdp, remat
        found = plans.plan_training(settings, topology, images)
        print(f"{found.data}x{fsdp}, remat {remat}, {images} images a chip: "
              + (f"{found.memory_gib:.1f} GiB" if found.fits else "does not fit"), flush=True)
        if found.fits:
            break
    return found


def table(done: dict) -> str:
    lines = [HEAD, "## Memory and speed", "",
             "| experiment | slice | mesh | remat | images a chip | GiB a chip | TFLOP a chip | "
             "GB sent a chip | ms computing | ms sending | images/s | of peak |",
             "|---" * 12 + "|"]
    for name, of_slices in done.items():
        for topology in SHOWN:
            p = of_slices.get(topology)
            if p is None:
                lines.append(f"| {name} | {topology} | not compiled yet " + "|" * 10)
                continue
            start = (f"| {name} | {topology} | {p['data']}x{p['fsdp']} | {p['remat']} | "
                     f"{p['images_per_chip']} | ")
            if not p["fits"]:
                lines.append(f"{start}more than {p['available_gib']} " + "|" * 7)
            else:
                lines.append(
                    f"{start}{p['memory_gib']:.1f} of {p['available_gib']} | "
                    f"{p['tera_flops']:.2f} | {sum(p['collective_gigabytes'].values()):.2f} | "
                    f"{1000 * p['seconds']:.0f} | {1000 * p['collective_seconds']:.1f} | "
                    f"{p['images_per_second']:.0f} | {100 * p['mfu']:.0f} % |")
    shares = [p["collective_seconds"] / (p["seconds"] + p["collective_seconds"])
              for of_slices in done.values() for p in of_slices.values() if p["fits"]]
    shown = ("Images/s a chip, relative to the smallest slice that was compiled, where both fit in "
             "the same way.")
    lines += ["", f"Sending takes at most {100 * max(shares):.0f} % of a step. A third axis of the "
              "mesh (`tensor`) could only win some of that, so there is none.",
              "", "## From 4 to 256 chips", "",
              shown, "",
              "| experiment | " + " | ".join(SLICES) + " |", "|---" * (len(SLICES) + 1) + "|"]
    for name, of_slices in done.items():
        found = [of_slices.get(t) for t in SLICES]
        first = next((p for p in found if p), None)
        same = [p and first["fits"] and all(
            p[k] == first[k] for k in ("fits", "remat", "images_per_chip")) for p in found]
        speeds = [p["images_per_second"] / p["chips"] if s else None for p, s in zip(found, same)]
        smallest = next((s for s in speeds if s), None)
        cells = [f"{100 * s / smallest:.0f} %" if s else "–" for s in speeds]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
