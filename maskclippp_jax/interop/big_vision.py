"""Our models and our mask accuracy in google-research/big_vision, from its own configurations.

big_vision has no installer: its folder must be on PYTHONPATH. Nothing here needs it but `register`,
which makes two modules known to it, before a trainer or its evaluators are made:

    from maskclippp_jax.interop import big_vision
    big_vision.register()

    config.model_name = "proj.maskclippp.model"
    config.model = dict(variant="SigLIP2 B/16 256")
    config.model_init = "siglip2_b16_256.npz"  # any file that `config.weights` can name here
    config.schedule = [("image/pool/.*", dict(decay_type="cosine")), (".*", None)]
    config.evals.masks = dict(type="proj.maskclippp.mask_accuracy", log_steps=1000,
                              data_dir="data", dataset="ade20k_150", split="validation",
                              variant=config.model.variant, sentencepiece="gemma_tokenizer.model")

Names of parameters are ours (`image/blocks/0/attention/query/kernel`), as in `optim`. To bring a
file into big_vision's own `two_towers`, use `convert --layout=big_vision`. Sizes of one's own are
`variant=big_vision.sizes(config)`, plain values that big_vision can write. `model_init` may also be
a dictionary of files, and `model_load` have `img_load_kw`, as `two_towers` takes them.

With the jax that is wanted here, three names in big_vision itself must be replaced: in its
trainers `jax.tree_map` (by `jax.tree.map`) and `jax.tree_leaves` (by `jax.tree.leaves`), and in
`utils.sync` `jax.sharding.PositionalSharding(jax.devices())`, by a
`NamedSharding(Mesh(jax.devices(), ("all",)), PartitionSpec("all"))`.
"""

import importlib.util
import sys

from maskclippp_jax.interop import big_vision_evaluator, big_vision_model
from maskclippp_jax.interop.big_vision_model import sizes as sizes  # for configurations

# Where big_vision looks, and what it finds.
MODULES = {"big_vision.models.proj.maskclippp.model": big_vision_model,
           "big_vision.evaluators.proj.maskclippp.mask_accuracy": big_vision_evaluator}


def register() -> None:
    """Makes our modules known under the names that big_vision looks them up by.

    Raises:
      ImportError: big_vision is not on PYTHONPATH.
    """
    if importlib.util.find_spec("big_vision") is None:
        raise ImportError("big_vision is not on PYTHONPATH; clone "
                          "https://github.com/google-research/big_vision and add its folder")
    sys.modules.update(MODULES)
