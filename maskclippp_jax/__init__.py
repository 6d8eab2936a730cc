"""MaskCLIP++ in JAX: tunes a CLIP on masks, so that it names any mask with any vocabulary.

    import maskclippp_jax as mc

    model = mc.load("runs/mine")
    result = model.name("photo.jpg", "masks.png", ["cat", "dog, puppy", "grass"])
    result.draw().save("named.png")

What it offers is in `api`, and imported when it is first asked for.
"""

import importlib

# Where the names of this door are; nothing heavy is imported before one is used.
_DOOR = {
    "load": "api", "load_generator": "api", "Model": "api", "Generator": "api", "Result": "api",
    "Words": "api", "Bundle": "api", "AnnotationWriter": "naming.annotation_writer",
    "Vocabulary": "vocabulary", "superpixels": "data.regions", "grid": "data.regions",
}
__all__ = sorted(_DOOR)


def __getattr__(name: str):
    if name not in _DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_DOOR[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOOR])
