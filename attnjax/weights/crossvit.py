"""The format of CrossViT checkpoints: IBM's and timm's, which differ only in the names of tokens and positions."""

import re

from attnjax.models.crossvit import CrossViT
from attnjax.weights.files import Arrays
from attnjax.weights.naming import Format, split_qkv, within
from attnjax.weights.vit import TIMM_BLOCK


def _prepare(arrays: Arrays) -> Arrays:
    """Names IBM's arrays, "pos_embed.0" and "cls_token.0", as timm does, and splits fused projections."""
    return split_qkv({re.sub(r"^(pos_embed|cls_token)\.", r"\1_", name): array for name, array in arrays.items()})


# {b} is the branch of the class token; its norm and attention have the other branch's width.
_IN_FUSION = {
    "project/norm": "projs.{b}.0",
    "project/linear": "projs.{b}.2",
    "norm": "fusion.{b}.norm1",
    **within("attention/", "fusion.{b}.attn.", {"query": "wq", "key": "wk", "value": "wv", "out": "proj"}),
    "project_back/norm": "revert_projs.{b}.0",
    "project_back/linear": "revert_projs.{b}.2",
}


def _modules(model: CrossViT) -> dict[str, str]:
    names: dict[str, str] = {}
    for b, depth in enumerate(model.depths):
        names |= {
            f"branch{b + 1}/patch_embedding/projection": f"patch_embed.{b}.proj",
            f"branch{b + 1}/class_token": f"cls_token_{b}",
            f"branch{b + 1}/positions/embedding": f"pos_embed_{b}",
            f"final_norm{b + 1}": f"norm.{b}",
            f"head{b + 1}": f"head.{b}",
        }
        for s in range(model.stages):
            for i in range(depth):
                names |= within(f"stage{s + 1}_branch{b + 1}_block{i + 1}/", f"blocks.{s}.blocks.{b}.{i}.", TIMM_BLOCK)
            in_fusion = {ours: theirs.format(b=b) for ours, theirs in _IN_FUSION.items()}
            names |= within(f"stage{s + 1}_fusion{b + 1}/", f"blocks.{s}.", in_fusion)
    return names


FORMATS = (Format(name="IBM's and timm's", marker=r"^patch_embed\.0\.proj\.", prepare=_prepare, modules=_modules),)
