"""A generator as small as it gets, with random weights: what takes time is compiling."""

import functools
import json
import pathlib

import jax
import numpy as np
from safetensors.numpy import save_file

from maskclippp_jax import params as parameters
from maskclippp_jax.generators.eomt import EoMT, EoMTConfig
from maskclippp_jax.weights import eomt, rules

CLASSES = ("red one", "blue three", "grey grass")
CONFIG = EoMTConfig((64, 64), width=64, depth=2, num_heads=1, mlp_width=64, num_classes=3,
                    num_queries=6, query_blocks=1)


@functools.cache
def params(config: EoMTConfig = CONFIG, seed: int = 9):
    """Random parameters, spread so that masks and classes are neither all alike nor certain."""
    leaves = parameters.flatten(jax.device_get(parameters.initialize(
        lambda: EoMT(config, rngs=parameters.Keys(seed)))))
    rng = np.random.default_rng(seed)
    draw = lambda x, deviation: (x + deviation * rng.standard_normal(x.shape)).astype(np.float32)
    leaves |= {path: draw(x, 0.1) for path, x in leaves.items()
               if path.endswith(("bias", "scale", "scale1", "scale2"))}
    leaves |= {path: draw(leaves[path], 1.0) for path in (
        "queries", "class_token", "registers", "position_table")}
    leaves |= {path: 4 * leaves[path] for path in ("class_head/kernel", "patch_embed/kernel")}
    return parameters.unflatten(leaves)


def named(layout: str, config: EoMTConfig = CONFIG) -> dict[str, np.ndarray]:
    """The parameters under the names of a layout, with what its files hold besides."""
    extra = {"attn_mask_probs": np.zeros(config.query_blocks, np.float32)}
    table = eomt.transformers_rules(swiglu=config.swiglu)
    if layout == "authors":
        extra = {f"network.{name}": x for name, x in extra.items()}
        table = eomt.authors_rules(swiglu=config.swiglu)
    return rules.export(params(config), table) | extra


def write_folder(folder: pathlib.Path, **changes) -> pathlib.Path:
    """A folder as the hub has it: transformers' file, and a config.json with names of classes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(named("transformers"), folder / "model.safetensors")
    facts = dict(model_type="eomt", num_attention_heads=CONFIG.num_heads,
                 num_blocks=CONFIG.query_blocks, id2label=dict(enumerate(CLASSES))) | changes
    (folder / "config.json").write_text(json.dumps(facts))
    return folder
