"""What experiments share. One level deep: a config calls these functions, they call nothing.

Every key that exists is set in `base`; the dictionary is locked afterwards, so a misspelt key
fails.
"""

import ml_collections


def base() -> ml_collections.ConfigDict:
    """The published MaskCLIP++ recipe for EVA models (arXiv 2412.11464), without data and model."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.dtype = "bfloat16"   # arithmetic of the towers; parameters stay float32
    config.remat = "none"       # "full" or "dots": recompute blocks to save memory
    config.data_dir = "data"    # where `prepare` put the data sets
    config.weights = ""         # file of the pre-trained CLIP, or "random"
    config.sentencepiece = ""   # vocabulary file of a SigLIP or TIPS; a CLIP needs none
    config.checkpoint_every = 4000  # steps
    config.keep = 2                 # checkpoints, the newest
    config.keep_best = 0            # and so many with the best eval/mask_accuracy of all looks
    config.log_every = 20           # steps
    config.eval_every = 0           # steps between looks at config.eval's data set; 0: none
    config.eval_pictures = 4        # drawn with their named masks at each look
    config.mesh = dict(fsdp=1)      # chips that share one copy of the parameters

    config.train = dict(
        masks="ground_truth",   # "degraded": as a poor generator would give them
        dataset="",             # or several with the same classes, separated by commas
        dataset_weights=(),     # how often each is drawn from; (): by its size
        drop_smallest=False,    # of a picture with more than num_masks masks; False: stop
        skip_broken=0,          # records that may be left out because they cannot be decoded
        batch_size=4,           # pictures a step, over all chips
        steps=20000,
        accumulate=1,           # parts a batch is cut into, to save memory; the numbers stay
        workers=0,              # processes that read and augment; 0 = threads of this one
    )
    config.tune = dict(
        image="attention",      # a kind of optim.image_tuning
        text="none",            # a kind of optim.text_tuning
        batch_norm="batch")     # of ResNets: by the batch, with running averages; or by "stored"
    config.optimizer = dict(
        learning_rate=2e-4, end_learning_rate=1e-5, warmup_steps=0, warmup_factor=1.0,
        image_multiplier=0.01, text_multiplier=0.01, weight_decay=0.05, clip_norm=0.01)
    config.loss = dict(
        balance_classes=True,   # each class of an image weighs the same, else each mask
        ignore_empty=True,      # masks that down-sampling loses do not count
        temperature=1.0)
    config.ema_decay = 0.0      # of a moving average of what is tuned, kept beside it; 0: none
    config.eval = dict(
        batch_size=1,            # pictures a step, over all chips
        max_tokens=0,            # pictures at most so many patches, for NaFlex; 0: by short_side
        # Test-time augmentation, of `evaluate`: the mean of label maps' scores over versions.
        short_sides=(),          # pixels the loaded picture is brought to; (): it stays as it is
        flip=False,              # each of these also mirrored
        # With masks of a generator (--bundle):
        ensemble=False,          # whether its opinion of the class counts
        alpha=1.0, beta=1.0,     # our share in it, for classes of `seen_vocabulary` and for others
        objectness=0.0,          # share of void that what we are sure of takes back; OVRCOAT: 0.5
        object_threshold=0.0,    # masks must score more to become panoptic segments ...
        overlap_threshold=0.8,   # ... and win this share of what they cover
        num_instances=100,       # pairs of mask and class a picture, stuff among them
        generator=None,          # the CLIP whose text tower its class embeddings speak to ...
        generator_weights="")    # ... and its file
    return config


def semantic_family(config: ml_collections.ConfigDict, size: int) -> None:
    """The published augmentation of COCO-Stuff at `size` pixels."""
    config.train.family = "semantic"
    config.train.size = size
    # Shorter sides drawn uniformly: int(x * size / 10) for x = 3 ... 19.
    config.train.short_sides = tuple(x * size // 10 for x in range(3, 20))
    config.train.color_jitter = True


def panoptic_family(config: ml_collections.ConfigDict, size: int) -> None:
    """The published augmentation of COCO panoptic at `size` pixels: flip and large-scale jitter."""
    config.train.family = "panoptic"
    config.train.size = size
    config.train.short_sides = ()
    config.train.color_jitter = False


def on_coco_stuff(config: ml_collections.ConfigDict) -> None:
    """Tunes on the 171 classes of COCO-Stuff and evaluates on ADE20K."""
    config.train.dataset, config.train.split = "coco_stuff_171", "train"
    config.train.num_masks = 64  # semantic masks of one picture: at most one a class
    config.eval.dataset, config.eval.split = "ade20k_150", "validation"
    config.eval.seen_vocabulary = "coco_stuff_171"
    config.eval.loader_max = 2048      # pixels, longest side of the loaded picture
    config.eval.mask_short_side = 800  # masks pass through this size, as a generator's would


def on_coco_panoptic(config: ml_collections.ConfigDict) -> None:
    """Tunes on the 133 things and stuff of COCO panoptic and evaluates on ADE20K."""
    config.train.dataset, config.train.split = "coco_panoptic_133", "train"
    config.train.num_masks = 128  # segments of one picture; more stop the run
    config.eval.dataset, config.eval.split = "ade20k_150", "validation"
    config.eval.seen_vocabulary = "coco_panoptic_133"
    config.eval.loader_min, config.eval.loader_max = 800, 2560  # sides of the loaded picture
    config.eval.mask_short_side = 800  # masks pass through this size, as a generator's would


def tune_convnext(config: ml_collections.ConfigDict) -> None:
    """What the published ConvNeXt models have in place of the recipe of the EVA models."""
    config.tune.image = "all"
    config.optimizer.image_multiplier = 0.001
    config.loss.ignore_empty = False  # an empty mask counts: its embedding is a constant


def parse_arg(arg: str, **defaults) -> ml_collections.ConfigDict:
    """Reads "masks=degraded,fast" after the colon of --config; values typed like the defaults."""
    result = ml_collections.ConfigDict(defaults)
    for item in filter(None, arg.split(",")):
        key, _, value = item.partition("=")
        if key not in defaults:
            raise ValueError(f"the configuration has no argument {key!r}; it has "
                             f"{', '.join(defaults)}")
        kind = type(defaults[key])
        result[key] = value.lower() in ("", "1", "true") if kind is bool else kind(value)
    return result
