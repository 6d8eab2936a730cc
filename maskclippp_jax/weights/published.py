"""The published CLIPs and SigLIPs that can be read here: names, sizes, files, and licences.

Licences are as the publishers state them; look there before relying on one. All take pictures with
CLIP's own mean and deviation unless a row says otherwise.
"""

import dataclasses
import difflib
import functools
import pathlib
import typing

from maskclippp_jax import params as parameters
from maskclippp_jax.models import maskclippp
from maskclippp_jax.models.clip_convnext import ConvNeXtConfig
from maskclippp_jax.models.clip_resnet import ResNetConfig
from maskclippp_jax.models.clip_vit import ClipViTConfig
from maskclippp_jax.models.dinotxt import DinoTxtConfig
from maskclippp_jax.models.eva_vit import EvaViTConfig
from maskclippp_jax.models.layers import PIXEL_MEAN, PIXEL_STD
from maskclippp_jax.models.maskclippp import ImageConfig, MaskCLIPpp, MaskCLIPppConfig
from maskclippp_jax.models.pe import PEConfig
from maskclippp_jax.models.siglip import SigLIPConfig, SigLIPTextConfig
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.models.tips import TIPSConfig
from maskclippp_jax.weights import published_encoders, rules

# The small CLIP that ships with the project (launch/pretrain_quickstart.py made it).
QUICKSTART_WEIGHTS = str(
    pathlib.Path(__file__).parents[1] / "assets" / "quickstart_clip.safetensors")


class Published(typing.NamedTuple):
    name: str        # of the model, as OpenCLIP, EVA-CLIP or big_vision has it
    training: str    # OpenCLIP's tag, or the file's name
    source: str      # a path for `hub.fetch`, or an address to download from
    licence: str
    image: ImageConfig
    text: maskclippp.TextConfig

    @property
    def model(self) -> MaskCLIPppConfig:
        """The untuned model: mean over templates."""
        if isinstance(self.image, SigLIPConfig):
            return MaskCLIPppConfig.of_siglip(self.image, self.text)
        if isinstance(self.image, PEConfig | TIPSConfig | DinoTxtConfig):
            return MaskCLIPppConfig.of_uncut(self.image, self.text)
        return MaskCLIPppConfig(self.image, self.text, similarity=None)

    @property
    def pixels(self) -> tuple[tuple, tuple]:
        """Mean and deviation of RGB on 0..255."""
        return (getattr(self.image, "pixel_mean", PIXEL_MEAN),
                getattr(self.image, "pixel_std", PIXEL_STD))


_B, _L, _H = TextConfig.clip(512), TextConfig.clip(768), TextConfig.clip(1024, 24)
_BIG_G = TextConfig.clip(1280, 32)
_HALF = (127.5,) * 3


def _quick(name, training, source, licence, image, text) -> Published:
    """Weights that want QuickGELU; a ResNet has it in its text tower only."""
    if isinstance(image, ClipViTConfig):
        image = dataclasses.replace(image, quick_gelu=True)
    return Published(name, training, source, licence, image,
                     dataclasses.replace(text, quick_gelu=True))


def _openai(name: str, digest: str, image, text) -> Published:
    file = name + ("px.pt" if name.endswith("336") else ".pt")
    return _quick(name, "openai", f"https://openaipublic.azureedge.net/clip/models/{digest}/{file}",
                  "MIT", image, text)


def _transformers(name: str, repository: str, image, text) -> Published:
    return _quick(name, "openai", f"hf://openai/{repository}", "MIT", image, text)


def _metaclip(name: str, training: str, file: str, repository: str, image, text, *,
              make=_quick) -> tuple[Published, ...]:
    """The same weights twice: their authors' file, and the copy on the hub."""
    return tuple(make(name, f"metaclip_{training}", source, "CC-BY-NC-4.0", image, text)
                 for source in (f"https://dl.fbaipublicfiles.com/MMPT/metaclip/{file}",
                                f"hf://timm/{repository}"))


def _dfn(name: str, training: str, repository: str, image, text, *, make=_quick) -> Published:
    return make(name, training, f"hf://apple/{repository}", "Apple ML Research", image, text)


def _laion(name: str, training: str, repository: str, image, text) -> Published:
    return Published(name, training, f"hf://laion/{repository}", "MIT", image, text)


def _eva(name: str, file: str, repository: str, image, text) -> tuple[Published, ...]:
    """The same weights twice: their authors' file, and OpenCLIP's under timm's names."""
    return tuple(Published(name, file.removesuffix(".pt"), source, "MIT", image, text)
                 for source in (f"hf://QuanSun/EVA-CLIP/{file}", f"hf://timm/{repository}"))


def _siglip(name: str, file: str, repository: str, open_clip: str, image, text
            ) -> tuple[Published, ...]:
    """The same weights three times: of big_vision, transformers, and (but for NaFlex) OpenCLIP."""
    folder = "siglip2" if name.startswith("SigLIP2") else "siglip"
    sources = (f"https://storage.googleapis.com/big_vision/{folder}/{file}.npz",
               f"hf://google/{repository}", *([f"hf://timm/ViT-{open_clip}"] if open_clip else []))
    return tuple(Published(name, file, source, "Apache-2.0", image, text) for source in sources)


_SIG, _WORDS = SigLIPConfig, SigLIPTextConfig.siglip
_WORDS2 = {size: SigLIPTextConfig.siglip2(size) for size in ("B", "L", "So400m")}
_SIGLIP = (
    _siglip("SigLIP B/16 224", "webli_en_b16_224_63724782", "siglip-base-patch16-224",
            "B-16-SigLIP", _SIG.b16(224), _WORDS("B")),
    _siglip("SigLIP B/16 256", "webli_en_b16_256_60500360", "siglip-base-patch16-256",
            "B-16-SigLIP-256", _SIG.b16(256), _WORDS("B")),
    _siglip("SigLIP B/16 384", "webli_en_b16_384_68578854", "siglip-base-patch16-384",
            "B-16-SigLIP-384", _SIG.b16(384), _WORDS("B")),
    _siglip("SigLIP B/16 512", "webli_en_b16_512_68580893", "siglip-base-patch16-512",
            "B-16-SigLIP-512", _SIG.b16(512), _WORDS("B")),
    _siglip("SigLIP L/16 256", "webli_en_l16_256_60552751", "siglip-large-patch16-256",
            "L-16-SigLIP-256", _SIG.l16(256), _WORDS("L")),
    _siglip("SigLIP L/16 384", "webli_en_l16_384_63634585", "siglip-large-patch16-384",
            "L-16-SigLIP-384", _SIG.l16(384), _WORDS("L")),
    _siglip("SigLIP So400m/14 224", "webli_en_so400m_224_57633886", "siglip-so400m-patch14-224",
            "SO400M-14-SigLIP", _SIG.so400m14(224), _WORDS("So400m", context_length=16)),
    _siglip("SigLIP So400m/14 384", "webli_en_so400m_384_58765454", "siglip-so400m-patch14-384",
            "SO400M-14-SigLIP-384", _SIG.so400m14(384), _WORDS("So400m")),
    _siglip("SigLIP B/16 256 i18n", "webli_i18n_b16_256_66117334",
            "siglip-base-patch16-256-multilingual", "B-16-SigLIP-i18n-256", _SIG.b16(256),
            _WORDS("B", vocab_size=250_000)),
    _siglip("SigLIP So400m/16 256 i18n", "webli_i18n_so400m_16_256_78061115",
            "siglip-so400m-patch16-256-i18n", "SO400M-16-SigLIP-i18n-256", _SIG.so400m16(256),
            _WORDS("So400m", vocab_size=250_000, has_head=False)),

    _siglip("SigLIP2 B/32 256", "siglip2_b32_256", "siglip2-base-patch32-256",
            "B-32-SigLIP2-256", _SIG.b32(256), _WORDS2["B"]),
    _siglip("SigLIP2 B/16 224", "siglip2_b16_224", "siglip2-base-patch16-224", "B-16-SigLIP2",
            _SIG.b16(224), _WORDS2["B"]),
    *(_siglip(f"SigLIP2 B/16 {px}", f"siglip2_b16_{px}", f"siglip2-base-patch16-{px}",
              f"B-16-SigLIP2-{px}", _SIG.b16(px), _WORDS2["B"]) for px in (256, 384, 512)),
    *(_siglip(f"SigLIP2 L/16 {px}", f"siglip2_l16_{px}", f"siglip2-large-patch16-{px}",
              f"L-16-SigLIP2-{px}", _SIG.l16(px), _WORDS2["L"]) for px in (256, 384, 512)),
    _siglip("SigLIP2 So400m/14 224", "siglip2_so400m14_224", "siglip2-so400m-patch14-224",
            "SO400M-14-SigLIP2", _SIG.so400m14(224), _WORDS2["So400m"]),
    _siglip("SigLIP2 So400m/14 384", "siglip2_so400m14_384", "siglip2-so400m-patch14-384",
            "SO400M-14-SigLIP2-378", _SIG.so400m14(384), _WORDS2["So400m"]),
    *(_siglip(f"SigLIP2 So400m/16 {px}", f"siglip2_so400m16_{px}",
              f"siglip2-so400m-patch16-{px}", f"SO400M-16-SigLIP2-{px}", _SIG.so400m16(px),
              _WORDS2["So400m"]) for px in (256, 384, 512)),
    *(_siglip(f"SigLIP2 g-opt/16 {px}", f"siglip2_g-opt16_{px}",
              f"siglip2-giant-opt-patch16-{px}", f"gopt-16-SigLIP2-{px}", _SIG.g_opt16(px),
              SigLIPTextConfig.siglip2("So400m", embed_dim=1536)) for px in (256, 384)),
    _siglip("SigLIP2 B/16 NaFlex", "siglip2_b16_naflex", "siglip2-base-patch16-naflex", "",
            _SIG.b16_naflex(), _WORDS2["B"]),
    _siglip("SigLIP2 So400m/16 NaFlex", "siglip2_so400m16_naflex", "siglip2-so400m-patch16-naflex",
            "", _SIG.so400m16_naflex(), _WORDS2["So400m"]),
)

_VIT, _CONVNEXT, _RESNET, _EVA = ClipViTConfig, ConvNeXtConfig, ResNetConfig, EvaViTConfig

MODELS = (
    *_eva("EVA02-CLIP-B-16", "EVA02_CLIP_B_psz16_s8B.pt",
          "eva02_base_patch16_clip_224.merged2b_s8b_b131k", _EVA.eva02_b16(), _B),
    *_eva("EVA02-CLIP-L-14", "EVA02_CLIP_L_psz14_s4B.pt",
          "eva02_large_patch14_clip_224.merged2b_s4b_b131k", _EVA.eva02_l14(), _L),
    *_eva("EVA02-CLIP-L-14-336", "EVA02_CLIP_L_336_psz14_s6B.pt",
          "eva02_large_patch14_clip_336.merged2b_s6b_b61k", _EVA.eva02_l14_336(), _L),
    # The image tower of g-14-plus, another text tower.
    *_eva("EVA01-CLIP-g-14", "EVA01_CLIP_g_14_psz14_s11B.pt",
          "eva_giant_patch14_clip_224.laion400m_s11b_b41k", _EVA.eva01_g14_plus(),
          TextConfig.clip(768, embed_dim=1024)),
    *_eva("EVA01-CLIP-g-14-plus", "EVA01_CLIP_g_14_plus_psz14_s11B.pt",
          "eva_giant_patch14_plus_clip_224.merged2b_s11b_b114k", _EVA.eva01_g14_plus(), _H),

    _openai("ViT-B-32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
            _VIT.b32(), _B),
    _openai("ViT-B-16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
            _VIT.b16(), _B),
    _openai("ViT-L-14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
            _VIT.l14(), _L),
    _openai("ViT-L-14-336", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
            _VIT.l14_336(), _L),
    _transformers("ViT-B-32", "clip-vit-base-patch32", _VIT.b32(), _B),
    _transformers("ViT-B-16", "clip-vit-base-patch16", _VIT.b16(), _B),
    _transformers("ViT-L-14", "clip-vit-large-patch14", _VIT.l14(), _L),
    _transformers("ViT-L-14-336", "clip-vit-large-patch14-336", _VIT.l14_336(), _L),
    *_metaclip("ViT-B-32", "400m", "b32_400m.pt", "vit_base_patch32_clip_224.metaclip_400m",
               _VIT.b32(), _B),
    *_metaclip("ViT-B-32", "fullcc", "b32_fullcc2.5b.pt",
               "vit_base_patch32_clip_224.metaclip_2pt5b", _VIT.b32(), _B),
    *_metaclip("ViT-B-16", "400m", "b16_400m.pt", "vit_base_patch16_clip_224.metaclip_400m",
               _VIT.b16(), _B),
    *_metaclip("ViT-B-16", "fullcc", "b16_fullcc2.5b.pt",
               "vit_base_patch16_clip_224.metaclip_2pt5b", _VIT.b16(), _B),
    *_metaclip("ViT-L-14", "400m", "l14_400m.pt", "vit_large_patch14_clip_224.metaclip_400m",
               _VIT.l14(), _L),
    *_metaclip("ViT-L-14", "fullcc", "l14_fullcc2.5b.pt",
               "vit_large_patch14_clip_224.metaclip_2pt5b", _VIT.l14(), _L),
    *_metaclip("ViT-H-14", "fullcc", "h14_fullcc2.5b.pt",
               "vit_huge_patch14_clip_224.metaclip_2pt5b", _VIT.h14(), _H),
    *_metaclip("ViT-H-14", "altogether", "h14_v1.2_altogether.pt",
               "vit_huge_patch14_clip_224.metaclip_altogether", _VIT.h14(), _H, make=Published),
    *_metaclip("ViT-bigG-14", "fullcc", "G14_fullcc2.5b.pt",
               "vit_gigantic_patch14_clip_224.metaclip_2pt5b", _VIT.big_g14(), _BIG_G),
    _dfn("ViT-B-16", "dfn2b", "DFN2B-CLIP-ViT-B-16", _VIT.b16(), _B),
    _dfn("ViT-L-14", "dfn2b", "DFN2B-CLIP-ViT-L-14", _VIT.l14(), _L),
    _dfn("ViT-L-14", "dfn2b_s39b", "DFN2B-CLIP-ViT-L-14-39B", _VIT.l14(), _L, make=Published),
    _dfn("ViT-H-14", "dfn5b", "DFN5B-CLIP-ViT-H-14", _VIT.h14(), _H),
    _dfn("ViT-H-14-378", "dfn5b", "DFN5B-CLIP-ViT-H-14-378",
         dataclasses.replace(_VIT.h14(), image_size=378), _H),
    _laion("ViT-B-32", "laion2b_s34b_b79k", "CLIP-ViT-B-32-laion2B-s34B-b79K", _VIT.b32(), _B),
    _laion("ViT-B-32", "datacomp_xl_s13b_b90k", "CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
           _VIT.b32(), _B),
    _laion("ViT-B-16", "laion2b_s34b_b88k", "CLIP-ViT-B-16-laion2B-s34B-b88K", _VIT.b16(), _B),
    _laion("ViT-B-16", "datacomp_xl_s13b_b90k", "CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
           _VIT.b16(), _B),
    _laion("ViT-L-14", "laion2b_s32b_b82k", "CLIP-ViT-L-14-laion2B-s32B-b82K",
           dataclasses.replace(_VIT.l14(), pixel_mean=_HALF, pixel_std=_HALF), _L),
    _laion("ViT-L-14", "datacomp_xl_s13b_b90k", "CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
           _VIT.l14(), _L),
    _laion("ViT-H-14", "laion2b_s32b_b79k", "CLIP-ViT-H-14-laion2B-s32B-b79K", _VIT.h14(), _H),
    _laion("ViT-g-14", "laion2b_s34b_b88k", "CLIP-ViT-g-14-laion2B-s34B-b88K", _VIT.g14(), _H),
    _laion("ViT-bigG-14", "laion2b_s39b_b160k", "CLIP-ViT-bigG-14-laion2B-39B-b160k",
           _VIT.big_g14(), _BIG_G),

    _laion("convnext_base_w", "laion2b_s13b_b82k_augreg",
           "CLIP-convnext_base_w-laion2B-s13B-b82K-augreg", _CONVNEXT.base_w(),
           TextConfig.clip(640)),
    _laion("convnext_base_w_320", "laion_aesthetic_s13b_b82k_augreg",
           "CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg", _CONVNEXT.base_w_320(),
           TextConfig.clip(640)),
    _laion("convnext_large_d", "laion2b_s26b_b102k_augreg",
           "CLIP-convnext_large_d.laion2B-s26B-b102K-augreg", _CONVNEXT.large_d(),
           TextConfig.clip(768, 16)),
    _laion("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup",
           "CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", _CONVNEXT.large_d_320(),
           TextConfig.clip(768, 16)),
    _laion("convnext_xxlarge", "laion2b_s34b_b82k_augreg_soup",
           "CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup", _CONVNEXT.xxlarge(), _H),

    _openai("RN50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
            _RESNET.rn50(), TextConfig.clip(512, embed_dim=1024)),
    _openai("RN101", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
            _RESNET.rn101(), _B),
    _openai("RN50x4", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
            _RESNET.rn50x4(), TextConfig.clip(640)),
    _openai("RN50x16", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
            _RESNET.rn50x16(), _L),
    _openai("RN50x64", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
            _RESNET.rn50x64(), TextConfig.clip(1024)),

    *(row for both in _SIGLIP for row in both),
    *(Published(*row) for row in published_encoders.ROWS),
)


# Millions of parameters, image and text tower, as OpenCLIP's table of model profiles and
# big_vision's code have them.
MILLIONS = {
    "EVA02-CLIP-B-16": (86.26, 63.43), "EVA02-CLIP-L-14": (304.11, 123.65),
    "EVA02-CLIP-L-14-336": (304.43, 123.65), "EVA01-CLIP-g-14": (1012.59, 123.85),
    "EVA01-CLIP-g-14-plus": (1012.59, 354.03),
    "ViT-B-32": (87.85, 63.43), "ViT-B-16": (86.19, 63.43), "ViT-L-14": (303.97, 123.65),
    "ViT-L-14-336": (304.29, 123.65), "ViT-H-14": (632.08, 354.03),
    "ViT-H-14-378": (632.68, 354.03), "ViT-g-14": (1012.65, 354.03),
    "ViT-bigG-14": (1844.91, 694.66), "convnext_base_w": (88.22, 91.16),
    "convnext_base_w_320": (88.22, 91.16), "convnext_large_d": (199.77, 152.0),
    "convnext_large_d_320": (199.77, 152.0), "convnext_xxlarge": (846.54, 354.03),
    "RN50": (38.32, 63.69), "RN101": (56.26, 63.43), "RN50x4": (87.14, 91.16),
    "RN50x16": (167.33, 123.65), "RN50x64": (420.38, 202.88),
    "SigLIP B/16 224": (92.88, 110.27), "SigLIP B/16 256": (92.93, 110.27),
    "SigLIP B/16 384": (93.18, 110.27), "SigLIP B/16 512": (93.52, 110.27),
    "SigLIP L/16 256": (315.96, 336.19), "SigLIP L/16 384": (316.28, 336.19),
    "SigLIP So400m/14 224": (427.68, 449.68), "SigLIP So400m/14 384": (428.23, 449.73),
    "SigLIP B/16 256 i18n": (92.93, 277.70), "SigLIP So400m/16 256 i18n": (427.89, 699.54),
    "SigLIP2 B/32 256": (94.55, 282.30), "SigLIP2 B/16 224": (92.88, 282.30),
    "SigLIP2 B/16 256": (92.93, 282.30), "SigLIP2 B/16 384": (93.18, 282.30),
    "SigLIP2 B/16 512": (93.52, 282.30), "SigLIP2 L/16 256": (315.96, 565.57),
    "SigLIP2 L/16 384": (316.28, 565.57), "SigLIP2 L/16 512": (316.74, 565.57),
    "SigLIP2 So400m/14 224": (427.68, 707.78), "SigLIP2 So400m/14 384": (428.23, 707.78),
    "SigLIP2 So400m/16 256": (427.89, 707.78), "SigLIP2 So400m/16 384": (428.26, 707.78),
    "SigLIP2 So400m/16 512": (428.77, 707.78), "SigLIP2 g-opt/16 256": (1163.17, 708.23),
    "SigLIP2 g-opt/16 384": (1163.66, 708.23), "SigLIP2 B/16 NaFlex": (92.93, 282.30),
    "SigLIP2 So400m/16 NaFlex": (427.89, 707.78),
    **published_encoders.MILLIONS,
}


def find(name: str, training: str) -> Published:
    """The entry of a model, e.g. ("ViT-B-16", "openai").

    Raises:
      ValueError: there is none.
    """
    for entry in MODELS:
        if (entry.name, entry.training) == (name, training):
            return entry
    raise ValueError(f"no published model {name} of {training} is known here; see `convert --list`")


def find_by_name(name: str, training: str = "") -> Published:
    """The entry of a model by its name, and its training where there are several.

    Of the same weights in two places it is the one on the hub.

    Raises:
      ValueError: there is none, or there are several.
    """
    found = [e for e in MODELS if e.name == name and training in ("", e.training)]
    if not found:
        near = difflib.get_close_matches(name, {e.name for e in MODELS}, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}" if near else ""
        raise ValueError(f"no published model {name}{f' of {training}' if training else ''} is "
                         f"known here{hint}? See `maskclippp convert --list`")
    if len({e.training for e in found}) > 1:
        raise ValueError(f"{name} was trained in several ways; say which: " + ", ".join(
            f"{name}:{e.training}" for e in found))
    return next((e for e in found if e.source.startswith("hf://")), found[0])


def name_of(model: MaskCLIPppConfig) -> str:
    """What a model is called: a published name, or its kind of image tower."""
    for entry in MODELS:
        if _same_shapes(entry.image, model.image) and _same_shapes(entry.text, model.text):
            return entry.name
    return f"an unpublished {type(model.image).__name__}"


def _same_shapes(one: typing.Any, other: typing.Any) -> bool:
    """Whether two towers differ at most in what does not show in their parameters' shapes."""
    if type(one) is not type(other):
        return False
    free = {"mask_layers", "quick_gelu", "mask_threshold", "norm_epsilon", "pixel_mean",
            "pixel_std", "drop_path", "rotary_grid", "exact_gelu", "padding", "words",
            "class_token", "prefix_visible"}
    return all(getattr(one, f.name) == getattr(other, f.name)
               for f in dataclasses.fields(one) if f.name not in free)


def looks_like(shapes: typing.Mapping[str, tuple], rules_for: typing.Callable,
               absent: tuple[str, ...]) -> list[str]:
    """Names of the published models that a file's tensors belong to.

    Args:
      shapes: of the file's tensors, by name.
      rules_for: model -> the rule table of the file's layout; raises ValueError if it has none.
      absent: beginnings of our paths that do not count.
    """
    names = []
    for name, model in {entry.name: entry.model for entry in MODELS}.items():
        try:
            found = rules.shapes_for(shapes, rules_for(model))
        except ValueError:
            continue
        parts = [part for part in ("image/", "text/") if any(p.startswith(part) for p in found)]
        if "image/" in parts and _may_be(model, found):
            wanted = _shapes_of(model)
            belongs = lambda path: path.startswith(tuple(parts)) and not path.startswith(absent)
            if ({p: s for p, s in found.items() if belongs(p)}
                    == {p: s for p, s in wanted.items() if belongs(p)}):
                names.append(name)
    return names


def kind_like(names: typing.Collection[str], rules_for: typing.Callable) -> str | None:
    """The kind of model whose rules know every name of a file: "an EVA02-CLIP", "a SigLIP", ...

    Args:
      names: in the file.
      rules_for: as in `looks_like`.
    """
    kinds = {}
    for entry in MODELS:
        kinds.setdefault((type(entry.image), getattr(entry.image, "fused_qkv", None)), entry)
    for entry in kinds.values():
        try:
            table = rules_for(entry.model)
        except ValueError:
            continue
        if not rules.unknown_names(names, table):
            return kind_of(entry.model)
    return None


def kind_of(model: MaskCLIPppConfig) -> str:
    """What models of the kind of one are called, with an article."""
    match model.image:
        case EvaViTConfig():
            return "an EVA01-CLIP" if model.image.fused_qkv else "an EVA02-CLIP"
        case SigLIPConfig():
            return "a SigLIP"
        case ClipViTConfig():
            return "a CLIP with a Vision Transformer"
        case PEConfig():
            return "a PE-Core"
        case TIPSConfig():
            return "a TIPS"
        case DinoTxtConfig():
            return "a dino.txt"
    return f"a CLIP with a {type(model.image).__name__.removesuffix('Config')}"


def _may_be(model: MaskCLIPppConfig, shapes: typing.Mapping[str, tuple]) -> bool:
    """A first look at a few shapes; without it all models would be laid out: ten seconds."""
    words = model.text
    few = {"text/projection": (words.width, words.embed_dim),
           "text/token_embedding": (words.vocab_size, words.width)}
    if isinstance(model.image, SigLIPConfig):
        cells = (model.image.image_size // model.image.patch_size)**2
        few["image/position_table"] = (cells, model.image.width)
    return all(shapes.get(path, shape) == shape for path, shape in few.items())


@functools.lru_cache
def _shapes_of(model: MaskCLIPppConfig) -> dict[str, tuple]:
    _, shapes = parameters.abstract(lambda: MaskCLIPpp(model, rngs=parameters.Keys(0)))
    return {path: tuple(leaf.shape) for path, leaf in parameters.flatten(shapes).items()}
