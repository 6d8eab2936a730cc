"""The whole method in a few CPU minutes, without any download.

    maskclippp prepare scenes scenes_seen --data_dir=data
    maskclippp train --config=quickstart --workdir=runs/ground_truth
    maskclippp train --config=quickstart:masks=degraded \
        --workdir=runs/degraded

    maskclippp evaluate --config=quickstart --workdir=runs/comparison --checkpoint=untuned \
        --checkpoint=runs/ground_truth --checkpoint=runs/degraded   # on ground-truth masks, and
        # on those of the small mask generator: --generator=quickstart

The small CLIP that ships with the project is tuned on masks of generated scenes, with classes that
leave a quarter of all combinations out. The recipe is the published one, but for the rates: a run
of some hundred steps needs larger ones.
"""

from ml_collections import config_dict

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_1
from maskclippp_jax.weights.published import QUICKSTART_WEIGHTS


def get_config(arg: str = ""):
    arg = common.parse_arg(arg, masks="ground_truth")
    config = common.base()
    config.model = MaskCLIPppConfig.quickstart(num_templates=len(TEMPLATES_1))
    config.weights = QUICKSTART_WEIGHTS
    config.templates = TEMPLATES_1
    config.dtype = "float32"  # bfloat16 is slower on a CPU
    config.checkpoint_every = 200

    config.train.dataset = "scenes_seen"
    config.train.split = "train"
    config.train.masks = arg.masks
    config.train.family = "semantic"
    config.train.size = 64
    config.train.short_sides = (64, 72, 80)  # scenes are 64 pixels; smaller ones lose their digits
    config.train.color_jitter = False        # colours are names here
    config.train.num_masks = 8
    config.train.batch_size = 16
    config.train.steps = 600
    config.optimizer.image_multiplier = 0.5
    config.optimizer.learning_rate = 1e-3
    config.optimizer.end_learning_rate = 5e-5

    config.eval.dataset = "scenes"
    config.eval.split = "validation"
    config.eval.seen_vocabulary = "scenes_seen"
    config.eval.batch_size = 50
    for key in ("loader_min", "loader_max", "short_side", "mask_short_side"):
        config.eval[key] = config_dict.placeholder(int)  # None: scenes and masks stay as they are
    config.eval.num_instances = 20  # of a scene, which has four digits at most
    return config.lock()
