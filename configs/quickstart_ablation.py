"""The quick start with parts of the method changed, to compare them (docs/experiments.md).

    maskclippp sweep --config=quickstart_ablation --workdir=runs/ablation \
        --seeds=0,1,2 --vary=":head=linear|linear_from_mean|mean"

Minutes on a CPU for each run. What a flag such as --config.tune.image=all cannot change is an
argument here: --config=quickstart_ablation:head=mean,mask_layers=1
"""

import dataclasses

from maskclippp_jax.configs import common, quickstart
from maskclippp_jax.models.similarity import LinearSimilarityConfig

# In words that the small CLIP knows.
_TEMPLATES = ("a photo of a {}.", "a photo of {}.", "{}.", "a {} on grass.")


def get_config(arg: str = ""):
    config = quickstart.get_config().unlock()
    model = config.model
    arg = common.parse_arg(arg, head="quickstart", templates=1,
                           mask_layers=model.image.mask_layers)  # blocks in which masks are seen
    config.templates = _TEMPLATES[:arg.templates]
    heads = dict(quickstart=model.similarity, linear=LinearSimilarityConfig(arg.templates),
                 linear_from_mean=LinearSimilarityConfig(arg.templates, start="mean"), mean=None)
    if arg.head not in heads:
        raise ValueError(f"head is {arg.head!r}; it can be {', '.join(heads)}")
    head = heads[arg.head] and dataclasses.replace(heads[arg.head], num_templates=arg.templates)
    config.model = dataclasses.replace(
        model, similarity=head, image=dataclasses.replace(model.image, mask_layers=arg.mask_layers))
    return config.lock()
