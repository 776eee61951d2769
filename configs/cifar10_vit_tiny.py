"""The tiny ViT on CIFAR-10 of github.com/anzksdk/vision-transformer-from-scratch: 119,098 parameters.

Its published weights (experiments/vit-with-10-epochs/model_final.pt there, MIT; despite the name they are of 2 epochs)
reach 0.4703 on the 10,000 test images. With the images in folders TEST_OR_TRAIN/CLASS/NAME.png or a zip of them, as in
github.com/cyizhuo/CIFAR-10-dataset, and torch installed to open the file:

    python experiments/convert.py model_final.pt --config configs/cifar10_vit_tiny.py --workdir runs/cifar10_vit_tiny \
        --classes airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck
    python experiments/evaluate.py --workdir runs/cifar10_vit_tiny --config.data.source=folder:cifar10-test.zip

Expected: test accuracy 0.4703, exactly.

To train it: `python experiments/train.py --config configs/cifar10_vit_tiny.py --workdir DIR`. That repository's recipe
at 100 epochs is reported at 0.755. Unlike it, our weights start as the ViT paper's, and norms, biases, the class token
and positions do not decay.
"""

from attnjax import config as config_lib
from attnjax import models


def get_config():
    config = config_lib.classification()
    config.model = models.fields(
        "vit",
        patch_size=4,
        width=48,
        depth=4,
        num_heads=4,
        mlp_dim=192,
        activation="gelu_tanh",
        epsilon=1e-5,
        final_norm=False,
    )
    config.data.source = "folder:data/cifar10"
    config.data.image_size = (32, 32)
    config.data.mean, config.data.std = (0.5,), (0.5,)
    config.data.augment.flip = True
    config.data.augment.crop = "resized"
    config.data.augment.scale = (0.8, 1.0)
    config.epochs = 100.0
    config.batch_size = 256
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule = "constant"
    config.optimizer.weight_decay = 1e-2
    return config
