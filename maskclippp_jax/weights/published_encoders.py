"""Rows of `published.MODELS`: TIPSv2, PE-Core and dino.txt, with masks as defined in this project.

Names are OpenCLIP's or the authors'; sources as in `published.Published`. The authors' TIPS and
dino.txt are two files each, with a comma between their addresses.
"""

from maskclippp_jax.models import dinotxt
from maskclippp_jax.models.pe import PEConfig
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.models.tips import TIPSConfig, TIPSTextConfig

_TIPS = "https://storage.googleapis.com/tips_data/v2_0/checkpoints/pytorch"
_DINO = "https://dl.fbaipublicfiles.com/dinov3/dinov3_vitl16"


def _pe(name: str, theirs: str, image: PEConfig, words: TextConfig) -> tuple[tuple, tuple]:
    """The same weights twice: OpenCLIP's file, and the authors'."""
    return tuple((name, theirs, source, "Apache-2.0", image, words) for source in (
        f"hf://timm/{name}", f"hf://facebook/{theirs}/{theirs}.pt"))


def _tips(size: str, short: str, hub: str, image: TIPSConfig, words: TIPSTextConfig
          ) -> tuple[tuple, tuple]:
    """The same weights twice: on the hub, and the authors' for PyTorch."""
    file = f"tips_v2_oss_{short}"
    return tuple((f"TIPSv2 {size}", file, source, "CC-BY-4.0", image, words) for source in (
        f"hf://google/tipsv2-{hub}", f"{_TIPS}/{file}_vision.npz,{_TIPS}/{file}_text.npz"))


_WORDS_512, _WORDS_1024 = (TextConfig.clip(width, depth, context_length=32)
                           for width, depth in ((512, 12), (1024, 24)))

ROWS = (
    *_tips("B/14", "b14", "b14", TIPSConfig.b14(), TIPSTextConfig.b14()),
    *_tips("L/14", "l14", "l14", TIPSConfig.l14(), TIPSTextConfig.l14()),
    *_tips("So400m/14", "so14", "so400m14", TIPSConfig.so400m14(), TIPSTextConfig.so400m14()),
    *_tips("g/14", "g14", "g14", TIPSConfig.g14(), TIPSTextConfig.g14()),

    *_pe("PE-Core-T-16-384", "PE-Core-T16-384", PEConfig.t16_384(), _WORDS_512),
    *_pe("PE-Core-S-16-384", "PE-Core-S16-384", PEConfig.s16_384(), _WORDS_512),
    *_pe("PE-Core-B-16", "PE-Core-B16-224", PEConfig.b16(), _WORDS_1024),
    *_pe("PE-Core-L-14-336", "PE-Core-L14-336", PEConfig.l14_336(), _WORDS_1024),
    *_pe("PE-Core-bigG-14-448", "PE-Core-G14-448", PEConfig.g14_448(),
         TextConfig.clip(1280, 24, context_length=72)),

    # Behind a form: backbone, then head and text tower.
    ("dino.txt L/16", "dinov3_vitl16_dinotxt_tet1280d20h24l",
     f"{_DINO}/dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth,"
     f"{_DINO}/dinov3_vitl16_dinotxt_vision_head_and_text_encoder-a442d8f5.pth",
     "DINOv3 License (Meta's own; passed on with it only)",
     dinotxt.DinoTxtConfig.l16(), dinotxt.text_config()),
)

# Millions of parameters, image and text tower. Of a TIPS without the token that stands for hidden
# patches, of dino.txt also without the biases of keys, which are multiplied by 0.
MILLIONS = {
    "TIPSv2 B/14": (86.32, 109.63), "TIPSv2 L/14": (304.02, 183.92),
    "TIPSv2 So400m/14": (413.39, 448.33), "TIPSv2 g/14": (1135.95, 389.13),
    "PE-Core-T-16-384": (6.14, 63.41), "PE-Core-S-16-384": (23.78, 63.41),
    "PE-Core-B-16": (93.67, 353.99), "PE-Core-L-14-336": (317.15, 353.99),
    "PE-Core-bigG-14-448": (1882.03, 537.23), "dino.txt L/16": (328.45, 538.13),
}
