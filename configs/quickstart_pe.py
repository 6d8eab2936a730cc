"""The quick start with a small encoder of another kind, PE-Core's: masks pool after the blocks.

It does not ship with the project. To see how two kinds compare before tuning, train both for a
short time (docs/encoders.md):

    python launch/pretrain_quickstart.py --config=quickstart_pe --stage=digits \
        --output=encoders/pe_digits.safetensors
    python launch/pretrain_quickstart.py --config=quickstart_pe --stage=scenes \
        --start=encoders/pe_digits.safetensors --output=encoders/pe.safetensors
    maskclippp sweep --encoders="quickstart|quickstart_pe" --workdir=runs/encoders
"""

import dataclasses

from maskclippp_jax.configs import quickstart
from maskclippp_jax.models.pe import PEConfig


def get_config():
    config = quickstart.get_config().unlock()
    small = config.model.image
    config.model = dataclasses.replace(config.model, image=PEConfig(
        small.image_size, small.patch_size, width=small.width, depth=small.depth,
        num_heads=small.num_heads, mlp_width=4 * small.width, embed_dim=small.embed_dim))
    config.weights = "encoders/pe.safetensors"
    return config.lock()
