"""What the published models need and reach on TPU slices: writes docs/scaling.md and its numbers.

    nice python benchmarks/scaling.py [configs/x.py ...]

Compiles each experiment's training step for slices of 4 to 256 chips (`maskclippp_jax.plan`); needs
`jax[tpu]`, no TPU. A compilation takes minutes of one core and up to 5 GB. Plans that are in
docs/scaling.json are not made again, so it can be stopped and started; delete the file to start
anew.
"""

import dataclasses
import importlib
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from maskclippp_jax import plan  # noqa: E402  (chooses the compiler before JAX starts)

TABLE, NUMBERS = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling.json"
SLICES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
SHOWN = ("v5e:4x4", "v5e:16x16")
IMAGES = 4  # a chip

HEAD = f"""# Scaling

Made by `python benchmarks/scaling.py`, on a machine without TPU: the training step of each
experiment, compiled for the slice with {IMAGES} images a chip, with the `mesh.fsdp` and `remat` of
its configuration, and with less care than for a real run (`--fast`), so slightly pessimistic.
Memory and FLOPs are the compiler's own. Times are what it can price, plus the bytes sent over the
full speed of a chip's links, as if nothing overlapped. They leave out custom kernels and the
waiting of chips for each other, and bodies of loops count once: they compare slices and promise
nothing.
"""


def main(files: list[str]) -> None:
    files = files or sorted(str(f.relative_to(ROOT)) for f in ROOT.glob("configs/*.py")
                            if f.stem != "common" and not f.stem.startswith("quickstart"))
    plan.jax.config.update("jax_optimization_level", "O1")
    done = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    for file in files:
        config = importlib.import_module(f"configs.{pathlib.Path(file).stem}").get_config()
        for topology in sorted(SLICES, key=lambda t: t not in SHOWN):
            name = pathlib.Path(file).stem
            if topology not in done.get(name, {}):
                print(f"compiling {name} for {topology}", flush=True)
                found = dataclasses.asdict(plan.plan_training(config, topology, IMAGES))
                done.setdefault(name, {})[topology] = found
                TABLE.parent.mkdir(exist_ok=True)
                NUMBERS.write_text(json.dumps(done, indent=1) + "\n")
                TABLE.write_text(table(done))
    TABLE.write_text(table(done))


def table(done: dict) -> str:
    lines = [HEAD, "## Memory and speed", "",
             "| experiment | slice | GiB a chip | TFLOP a chip | GB sent a chip | ms computing | "
             "ms sending | images/s | of peak |", "|---|---|---|---|---|---|---|---|---|"]
    for name, plans in done.items():
        for topology in SHOWN:
            p = plans.get(topology)
            if p is None:
                lines.append(f"| {name} | {topology} | not compiled yet | | | | | | |")
            elif p["memory_gib"] is None:
                lines.append(f"| {name} | {topology} | more than {p['available_gib']} |"
                             + " |" * 6)
            else:
                lines.append(
                    f"| {name} | {topology} | {p['memory_gib']:.1f} of {p['available_gib']} | "
                    f"{p['tera_flops']:.2f} | {sum(p['collective_gigabytes'].values()):.2f} | "
                    f"{1000 * p['seconds']:.0f} | {1000 * p['collective_seconds']:.1f} | "
                    f"{p['images_per_second']:.0f} | {100 * p['mfu']:.0f} % |")
    lines += ["", "## From 4 to 256 chips", "",
              "Images/s a chip, relative to the smallest slice.", "",
              "| experiment | " + " | ".join(SLICES) + " |", "|---" * (len(SLICES) + 1) + "|"]
    for name, plans in done.items():
        speeds = [plans.get(t) and plans[t]["images_per_second"]
                  and plans[t]["images_per_second"] / plans[t]["chips"] for t in SLICES]
        cells = [f"{100 * s / speeds[0]:.0f} %" if s and speeds[0] else "–" for s in speeds]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
