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
file into big_vision's own `two_towers`, use `convert --layout=big_vision`.
"""

import importlib.util
import sys

from maskclippp_jax.interop import big_vision_evaluator, big_vision_model

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
