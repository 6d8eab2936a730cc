"""Tells which mask generator a file holds, from the names in it."""

import typing

from maskclippp_jax.weights import eomt, mask2former

_HEAD = "sem_seg_head."
_ENDING = "give the file of an EoMT, FC-CLIP, MAFT+, or Mask2Former on Swin"


def kind_of(names: typing.Collection[str], path: str) -> typing.Literal[
        "eomt", "fcclip", "mask2former"]:
    """The kind of generator whose tensors have these names; MAFT+ is an FC-CLIP.

    Raises:
      ValueError: none that is read here; what it holds in its place, if that can be told.
    """
    if eomt.is_one(names):
        return "eomt"
    begins = lambda *beginnings: any(name.startswith(beginnings) for name in names)
    if "void_embedding.weight" in names or begins(f"{_HEAD}predictor._mask_pooling_proj."):
        return "fcclip"
    if begins(f"{_HEAD}predictor.transformer_cross_attention_layers."):
        if not begins("backbone.patch_embed."):
            raise ValueError(f"{path} holds a Mask2Former on another trunk than Swin, or is cut "
                             f"short; {_ENDING}")
        return "mask2former"
    if begins(mask2former.TRANSFORMERS):
        if not begins(f"{mask2former.TRANSFORMERS}embeddings.patch_embeddings."):
            raise ValueError(f"{path} holds a Mask2Former on another trunk than Swin, or is cut "
                             f"short; {_ENDING}")
        return "mask2former"
    if begins("visual_encoder."):
        raise ValueError(f"{path} holds a MaskCLIP++, which names masks and finds none; give it as "
                         f"the checkpoint, and here {_ENDING.removeprefix('give ')}")
    if begins("visual.", "text_model.", "vision_model."):
        raise ValueError(f"{path} holds a CLIP, which finds no masks; {_ENDING}")
    shown = ", ".join(sorted(names)[:3]) or "nothing"
    raise ValueError(f"{path} holds no mask generator that is known here (it holds {shown}, ...); "
                     f"{_ENDING}")


def holds_generator(names: typing.Collection[str]) -> bool:
    """Whether a file holds a generator without a whole CLIP, so nothing that names masks."""
    if eomt.is_one(names) or any(name.startswith(mask2former.TRANSFORMERS) for name in names):
        return True
    return (any(name.startswith(_HEAD) for name in names)
            and not any(name.startswith("backbone.clip_model.") for name in names))
