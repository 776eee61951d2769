"""Captions for Flickr8k's images at 64x64 pixels: a ViT and a Transformer decoder, both trained from scratch.

    python experiments/train.py --config configs/flickr8k_captioner.py --workdir runs/captioner
    python experiments/evaluate.py --workdir runs/captioner
    python experiments/evaluate.py --workdir runs/captioner --config.data.shuffle_images=true    # the control
    python experiments/caption.py --workdir runs/captioner photo.jpg --attention attention.png

Data: the data set's own files, in the folder that `source` names. Another image encoder:
`flickr8k_captioner.py:encoder=swin` or `resnet`. A pretrained encoder: --config.encoder_from=RUN_OR_WEIGHTS, and to
freeze it --config.optimizer.freeze="('encoder',)".
"""

from attnjax import config as config_lib
from attnjax import models

ENCODERS = {
    "vit": dict(patch_size=8, width=128, depth=3, num_heads=4, mlp_dim=256, pool="average"),
    "swin": dict(patch_size=4, width=32, depths=(2, 2, 2), num_heads=(1, 2, 4), window=4, mlp_ratio=2.0),
    "resnet": dict(blocks=(1, 1, 1, 1), features=(16, 32, 64, 128)),
}


def get_config(encoder="vit", gated=False):
    config = config_lib.captioning()
    config.model = models.fields(
        "captioner",
        encoder=models.fields(encoder, **ENCODERS[encoder]),
        text=models.fields(
            "transformer",
            width=128,
            encoder_depth=0,
            decoder_depth=3,
            num_heads=4,
            mlp_dim=256,
            norm="pre",
            max_length=64,
            dropout=0.1,
            cross_attention=("gated",) if gated else ("plain",),
        ),
    )
    config.data.source = "flickr8k:data/flickr8k"
    config.data.image_size = (64, 64)
    config.data.augment.crop, config.data.augment.pad = "pad", 4
    config.data.vocabulary.size = 3000
    config.data.vocabulary.lowercase = True
    config.data.batching.max_tokens, config.data.batching.max_length = 2048, 32
    config.data.batching.shapes = 4
    config.epochs = 6.0
    config.label_smoothing = 0.1
    config.decoding.beam_size, config.decoding.early_stopping = 3, True  # as measured
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 300
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    return config
