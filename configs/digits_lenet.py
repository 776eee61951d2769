"""LeNet-5 (LeCun et al. 1998) on scikit-learn's handwritten digits, enlarged to its 32x32 input.

    python experiments/train.py --config configs/digits_lenet.py --workdir runs/digits_lenet
    python experiments/evaluate.py --workdir runs/digits_lenet

Expected: at least 0.98 accuracy on the 360 test images (mean of seeds 0, 1, 2) in about a minute on 2 CPU cores.
"""

from attnjax import config as config_lib
from attnjax import models


def get_config():
    config = config_lib.classification()
    config.model = models.fields("lenet")
    config.data.source = "tfds:digits"
    config.data.train, config.data.validation = "train[:90%]", "train[90%:]"
    config.data.image_size, config.data.channels = (32, 32), 1
    config.data.augment.crop, config.data.augment.pad = "pad", 3
    config.best_metric = "loss"  # accuracy on 144 images is too coarse to select a checkpoint
    config.epochs = 60.0
    config.batch_size = 64
    config.eval_every = 200
    config.log_every = 100
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.01
    return config
