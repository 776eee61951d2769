"""The formats of ResNet checkpoints: torchvision (and timm), Hugging Face."""

from collections.abc import Iterator

from attnjax.models.cnn import ResNet
from attnjax.weights.files import Arrays
from attnjax.weights.naming import Format, Settings, name_bare_model


def _blocks(model: ResNet) -> Iterator[tuple[str, int, int]]:
    """Yields (our path, stage, block) of each residual block, counting from 0."""
    for stage, blocks in enumerate(model.blocks):
        for block in range(blocks):
            yield f"stage{stage + 1}_block{block + 1}", stage, block


def _torchvision(model: ResNet) -> dict[str, str]:
    names = {"stem": "conv1", "stem_norm": "bn1", "head": "fc"}
    for ours, stage, block in _blocks(model):
        theirs = f"layer{stage + 1}.{block}"
        names |= {f"{ours}/conv{i}": f"{theirs}.conv{i}" for i in (1, 2, 3)}
        names |= {f"{ours}/norm{i}": f"{theirs}.bn{i}" for i in (1, 2, 3)}
        names |= {f"{ours}/shortcut": f"{theirs}.downsample.0", f"{ours}/shortcut_norm": f"{theirs}.downsample.1"}
    return names


def _huggingface(model: ResNet) -> dict[str, str]:
    def layer(conv, norm, theirs):
        return {conv: f"{theirs}.convolution", norm: f"{theirs}.normalization"}

    names = layer("stem", "stem_norm", "resnet.embedder.embedder") | {"head": "classifier.1"}
    for ours, stage, block in _blocks(model):
        theirs = f"resnet.encoder.stages.{stage}.layers.{block}"
        for i in (1, 2, 3):
            names |= layer(f"{ours}/conv{i}", f"{ours}/norm{i}", f"{theirs}.layer.{i - 1}")
        names |= layer(f"{ours}/shortcut", f"{ours}/shortcut_norm", f"{theirs}.shortcut")
    return names


def _drop_counters(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}


def _huggingface_settings(model: ResNet) -> Settings:
    return {
        "downsample_in_bottleneck": ("its stride in the 3x3 convolution (False)", (False,)),
        "downsample_in_first_stage": ("no stride in the first stage (False)", (False,)),
        "hidden_act": ("relu", ("relu",)),
    }


TORCHVISION = Format("torchvision", r"^layer1\.0\.conv1\.weight$", _torchvision, prepare=_drop_counters)
HUGGINGFACE = Format(
    name="Hugging Face",
    marker=r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.",
    prepare=lambda arrays: name_bare_model(_drop_counters(arrays), "resnet."),
    settings=_huggingface_settings,
    modules=_huggingface,
)
FORMATS = (TORCHVISION, HUGGINGFACE)
