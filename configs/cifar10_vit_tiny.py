"""The tiny ViT on CIFAR-10 of github.com/anzksdk/vision-transformer-from-scratch: 119,098 parameters.

Its published weights (MIT licence) are experiments/vit-with-10-epochs/model_final.pt in that repository; despite the
name they were trained for 2 epochs. They reach 0.4703 on the 10,000 test images. The images are read from a folder or
zip of TEST_OR_TRAIN/CLASS/NAME.png, as in github.com/cyizhuo/CIFAR-10-dataset. Opening the weights needs torch:

    python experiments/convert.py model_final.pt --config configs/cifar10_vit_tiny.py --workdir runs/cifar10_vit_tiny \\
        --classes airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck
    python experiments/evaluate.py --workdir runs/cifar10_vit_tiny --config.data.source=folder:cifar10-test.zip

Expected: test accuracy 0.4703, exactly.

To train it: `python experiments/train.py --config configs/cifar10_vit_tiny.py --workdir DIR`. The repository reports
0.755 for its recipe at 100 epochs. Two things differ here: weights are initialised as in the ViT paper, and norms,
biases, the class token and position embeddings have no weight decay.
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
