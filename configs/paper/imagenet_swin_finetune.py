"""Fine-tuning Swin on ImageNet-1k after ImageNet-22k, at 384 pixels (Liu et al. 2021, appendix A2.1).

    python experiments/train.py --config configs/paper/imagenet_swin_finetune.py:size=B-384 --workdir runs/swin_b_384 \\
        --config.init_from=swin_base_patch4_window12_384_22k.pth    # Microsoft's, or a run

Sizes B-384 and L-384; for T, S and B at 224 pixels: size=T,image_size=224. Published top-1, from ImageNet-22k: B at 224
pixels 0.852, B-384 0.864, L-384 0.873; the authors' README has S 0.832 and T 0.809. Not run here.
Cost of B-384 and L-384 in FLOPs, from the model's multiply-adds: 1.1e19, 2.4e19.
"""

from attnjax import config as config_lib
from attnjax import models


def get_config(size="B-384", image_size=384):
    config = config_lib.classification()
    config.model = models.fields("swin", size, drop_path=0.1)
    config.data.source = "tfds:imagenet2012"
    config.data.train, config.data.validation, config.data.test = "train[:99%]", "train[99%:]", "validation"
    config.data.image_size = (image_size, image_size)
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.interpolation = "bicubic"
    augment = config.data.augment
    augment.crop, augment.flip, augment.color_jitter = "resized", True, 0.4
    augment.randaugment_layers, augment.erase = 2, 0.25
    augment.mixup, augment.cutmix = 0.8, 1.0
    config.label_smoothing = 0.1
    config.epochs = 30.0
    config.batch_size = 1024
    config.optimizer.schedule, config.optimizer.learning_rate = "constant", 1e-5
    config.optimizer.weight_decay = 1e-8
    config.optimizer.clip_norm = 5.0
    return config
