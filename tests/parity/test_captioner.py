"""The captioner against transformers' VisionEncoderDecoderModel of a ViT and TrOCR's decoder.

Logits agree within 1e-5, gradients within 1e-4 of the largest entry of each array, greedy search token by token.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from attnjax import models
from attnjax.decoding import Options
from attnjax.objectives.sequence import SequenceObjective
from attnjax.weights import marian, vit
from attnjax.weights.naming import Format, from_published, to_published

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PAD, BOS, EOS = 0, 1, 2
V, WIDTH, HEADS, HIDDEN, DEPTH, LENGTH, ROWS, SIZE = 40, 32, 4, 48, 2, 24, 6, 16
UNUSED_POSITIONS = 2  # rows of TrOCR's table before the first position


def randomise(module):
    """Attention is sharp; the last norm's scale has both signs, or a tied output would repeat the input token."""
    generator = torch.Generator().manual_seed(0)

    def noise(tensor):
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if tensor.ndim == 1:
                tensor.copy_((re.search(r"norm\w*\.weight", name) is not None) + 0.1 * noise(tensor))
            elif tensor.ndim == 3:  # class token and positions
                tensor.copy_(0.5 * noise(tensor))
            else:
                gain = 2 if re.search(r"[qk]_proj", name) else 1
                tensor.copy_(gain * noise(tensor) * tensor[0].numel() ** -0.5)
        last = module.decoder.model.decoder.layers[-1].final_layer_norm
        last.weight.copy_(noise(last.weight))


def make_theirs(encoder_width):
    """Returns Hugging Face's model with random weights, whose outputs neither loop nor end at once."""
    encoder = transformers.ViTConfig(
        hidden_size=encoder_width,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        image_size=SIZE,
        patch_size=4,
    )
    decoder = transformers.TrOCRConfig(
        vocab_size=V,
        d_model=WIDTH,
        decoder_layers=DEPTH,
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=HIDDEN,
        activation_function="relu",
        max_position_embeddings=LENGTH,
        use_learned_position_embeddings=True,
        layernorm_embedding=False,
        scale_embedding=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = BOS, PAD, EOS
    model = transformers.VisionEncoderDecoderModel(config).eval()
    assert hasattr(model, "enc_to_dec_proj") == (encoder_width != WIDTH)
    randomise(model)
    return model


def make_ours(encoder_width):
    """Returns our model without weights."""
    fields = dict(num_heads=HEADS, mlp_dim=HIDDEN)
    gelu = dict(activation="gelu", epsilon=1e-12)
    encoder = models.fields("vit", patch_size=4, width=encoder_width, depth=DEPTH, **gelu, **fields)
    decoder = dict(encoder_depth=0, decoder_depth=DEPTH, positions="learned", max_length=LENGTH, epsilon=1e-5)
    text = models.fields("transformer", width=WIDTH, **decoder, **fields)
    parts = {"encoder": encoder, "text": text}
    return models.build_captioner(parts, source_vocabulary=V, target_vocabulary=V)


def modules(model):
    """Returns {our module path: theirs}: the names of a ViT and of a Marian from `weights`, and the adapter's."""
    encoder = {f"encoder/{ours}": name for ours, name in vit.HUGGINGFACE_5.modules(model.encoder).items()}
    text = {f"text/{ours}": name for ours, name in marian.HUGGINGFACE.format.modules(model.text).items()}
    return {
        **{ours: name.replace("vit.", "encoder.", 1) for ours, name in encoder.items()},
        **{ours: f"decoder.{name}" for ours, name in text.items()},
        "text/target_embedding/embedding": "decoder.model.decoder.embed_tokens.weight",
        "text/target_positions/embedding": POSITIONS,
        "adapter": "enc_to_dec_proj",
    }


POSITIONS = "decoder.model.decoder.embed_positions.weight"
FORMAT = Format(name="VisionEncoderDecoderModel", marker="^enc_to_dec_proj", modules=modules)


def arrays_of(tensors):
    """Returns the arrays that both have: no pooler, whose output is unused, and no unused positions."""
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors if "pooler" not in name}
    return arrays | {POSITIONS: arrays[POSITIONS][UNUSED_POSITIONS:]}


@pytest.fixture(scope="module", params=[WIDTH, 24], ids=["same width", "adapter"])
def both(request):
    """Returns theirs, ours, our parameters, images, and targets of several lengths that begin with bos."""
    module, model = make_theirs(request.param), make_ours(request.param)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(ROWS, SIZE, SIZE, 3)).astype(np.float32)
    target = rng.integers(3, V, (ROWS, 9))
    target[:, 0] = BOS
    for row in range(ROWS):
        target[row, 4 + row :] = PAD
    shapes = jax.eval_shape(model.init, jax.random.key(0), target[:, :-1], image)
    shapes = {path: struct.shape for path, struct in flatten_dict(shapes, sep="/").items()}
    variables = from_published(arrays_of(module.named_parameters()), FORMAT, model, shapes, "theirs")
    params = unflatten_dict({tuple(path.split("/")): jnp.asarray(x) for path, x in variables.items()})["params"]
    return module, model, params, image, target


def pixels(image):
    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def test_the_captioner_is_hugging_faces(both, worst):
    module, model, params, image, target = both
    inputs, labels = target[:, :-1], target[:, 1:]
    theirs = module(pixel_values=pixels(image), decoder_input_ids=torch.from_numpy(inputs)).logits
    flat = torch.from_numpy(labels).reshape(-1)
    torch.nn.functional.cross_entropy(theirs.reshape(-1, V), flat, ignore_index=PAD).backward()
    found = [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
    module.zero_grad()
    task = SequenceObjective(model, reads=("image",))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        logits = task.logits(params, {}, {"target": target, "image": image})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (losses * (labels != PAD)).sum() / (labels != PAD).sum(), logits

    (_, ours), gradient = loss(params)
    gradient = flatten_dict({"params": jax.tree.map(np.asarray, gradient)}, sep="/")
    ours_by_name, theirs_by_name = to_published(gradient, FORMAT, model), arrays_of(found)
    # Softmax is invariant to a constant added to all keys.
    relative, name = worst(ours_by_name, theirs_by_name, exactly_zero=r"k_proj\.bias$")
    theirs = theirs.detach().numpy()
    difference = np.abs(ours - theirs).max()
    print(f"\nlogits {difference:.1e} of {np.abs(theirs).max():.1f}; gradient {relative:.1e} {name}")
    assert np.abs(theirs).max() > 1 and difference < 1e-5 and relative < 1e-4


def test_greedy_search_is_hugging_faces(both):
    module, model, params, image, _ = both
    task, options = SequenceObjective(model, reads=("image",)), Options(12, no_repeat_ngram=2)
    found = jax.device_get(
        jax.jit(lambda params, image: task.generate(params, {}, {"image": image}, options))(params, image)
    )
    rows = [tokens[:length].tolist() for tokens, length in zip(found.tokens[:, 0], found.lengths[:, 0], strict=True)]
    theirs = module.generate(
        pixels(image),
        do_sample=False,
        num_beams=1,
        max_length=13,  # bos counts there
        no_repeat_ngram_size=2,
        forced_eos_token_id=EOS,
        bad_words_ids=[[PAD], [BOS]],
    )
    assert rows == [row[1 : 2 + row[1:].index(EOS)] for row in theirs.tolist()]
    assert len(set(map(tuple, rows))) == ROWS and len({token for row in rows for token in row}) > 8
