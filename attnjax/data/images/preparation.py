"""The last part of image preprocessing, which runs on the device inside the compiled step.

The host sends uint8 images, a quarter of the bytes of float32, with what it drew for each row.
"""

import jax
import jax.numpy as jnp

from attnjax.data.images import batch_ops
from attnjax.data.images.format import ImageFormat
from attnjax.nn.data_parallel import normal

Batch = dict[str, jax.Array]


def prepare(batch: Batch, image_format: ImageFormat) -> Batch:
    """Flips, normalises, erases and mixes the images of a batch of `pipeline.train_iterator` or `eval_batches`.

    `image` uint8 (B, H, W, C) becomes float32. `flip`, `erase`, `erase_seed`, `mix_weight` and `mix_box`, each where
    the augmentation has it, are used up. Images with mask False become zeros. Mixing adds `label_other` (B,) int32 and
    `label_weight` (B,) float32, the weight of `label`; rows are mixed in pairs, so the batch must have all of them.
    """
    batch = dict(batch)
    images, mask = batch.pop("image"), batch["mask"]
    if "flip" in batch:
        images = batch_ops.flip(images, batch.pop("flip"))
    images = image_format.normalise(images)
    if "erase" in batch:
        noise = normal(batch.pop("erase_seed"), images.shape[1:]) if "erase_seed" in batch else 0.0
        images = batch_ops.erase(images, batch.pop("erase"), noise)
    images = jnp.where(mask[:, None, None, None], images, 0)
    if "mix_weight" not in batch:
        return batch | {"image": images}
    # The zeros of a skipped image must not reach its partner.
    intact = mask & batch_ops.partner(mask)
    weights = jnp.where(intact, batch.pop("mix_weight"), 1)
    boxes = batch.pop("mix_box") * intact[:, None]
    images, label_other, label_weight = batch_ops.mix(images, batch["label"], weights, boxes)
    return batch | {"image": images, "label_other": label_other, "label_weight": label_weight}
