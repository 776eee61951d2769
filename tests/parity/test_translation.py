"""Translation against PyTorch: transformers' Marian and torch.nn's Transformer layers.

Logits agree within 1e-5, gradients within 1e-4 of the largest entry of each array, searches token for token.
"""

import argparse
import copy
import functools
import re

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from attnjax.decoding import Options, beam_search, greedy
from attnjax.models.transformer import Transformer
from attnjax.nn.activations import ACTIVATIONS
from attnjax.weights import huggingface, marian
from attnjax.weights import transformer as weights
from attnjax.weights.naming import HUGGINGFACE_ACTIVATIONS, to_published

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PAD, BOS, EOS = 0, 1, 2
V, WIDTH, HEADS, HIDDEN, DEPTH, LENGTH = 60, 32, 4, 48, 2, 64


def make_model(**fields):
    defaults = dict(width=WIDTH, encoder_depth=DEPTH, decoder_depth=DEPTH, num_heads=HEADS, mlp_dim=HIDDEN)
    marian = dict(max_length=LENGTH, positions="concatenated", epsilon=1e-5)
    return Transformer(**{"source_vocabulary": V, "target_vocabulary": V, **defaults, **marian, **fields})


def make_marian(seed, tie="all", source_vocabulary=V, spread=2.0, **fields):
    """Returns a Marian with random weights whose outputs neither repeat one token forever nor end at once.

    Its attention is sharp. The scale of its last norm, of size `spread`, has both signs, or a tied output would repeat
    the input token. Its last bias puts the logit of eos, on average, two below the largest one.
    """
    ids = dict(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=BOS, forced_eos_token_id=EOS
    )
    config = transformers.MarianConfig(
        **{"activation_function": "relu", **ids, **fields},
        vocab_size=source_vocabulary,
        decoder_vocab_size=V,
        share_encoder_decoder_embeddings=tie == "all",
        tie_word_embeddings=tie != "none",
        max_position_embeddings=LENGTH,
        d_model=WIDTH,
        encoder_layers=DEPTH,
        decoder_layers=DEPTH,
        encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        scale_embedding=True,
    )
    module = transformers.MarianMTModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    gains = {r"(shared|embed_tokens|lm_head)\.weight": 1, r"[qk]_proj\.weight": 2, "(v|out)_proj.weight": 0.6, "fc": 2}

    def fill(name, shape):
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            return ("norm.weight" in name) + 0.1 * noise
        return noise * shape[1] ** -0.5 * next(gain for pattern, gain in gains.items() if re.search(pattern, name))

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "embed_positions" not in name:
                parameter.copy_(fill(name, parameter.shape))
        last = module.model.decoder.layers[-1].final_layer_norm
        last.weight.copy_(spread * torch.randn(WIDTH, generator=generator))
        logits = logits_of(module, *make_batch(source_vocabulary))
        table = module.lm_head.weight[EOS]
        last.bias.add_(((logits.max(-1)[0] - logits[..., EOS]).mean() - 2) / (table @ table) * table)
    return module


def write_marian(folder, model, params):
    """Writes a Marian without its subwords."""
    huggingface.save_model(folder, *marian.to_huggingface(model, flatten_dict({"params": params}, sep="/")))


def make_batch(source_vocabulary=V):
    """Returns sources of several lengths with eos and padding, and decoder inputs, (8, 9) and (8, 7) int."""
    rng = np.random.default_rng(0)
    source, target = rng.integers(3, source_vocabulary, (8, 9)), rng.integers(3, V, (8, 7))
    target[:, 0] = BOS
    for row, length in enumerate((9, 3, 5, 7, 4, 8, 6, 2)):
        source[row, length - 1], source[row, length:] = EOS, PAD
        target[row, length:] = PAD
    return source, target


def logits_of(module, source, target, pad=PAD):
    source, target = torch.from_numpy(source), torch.from_numpy(target)
    return module(source, attention_mask=(source != pad).long(), decoder_input_ids=target).logits


def by_marian(module, source, target):
    """Returns logits, and the gradient of the mean next-token cross-entropy by parameter name."""
    logits, target = logits_of(module, source, target), torch.from_numpy(target)
    cross_entropy = torch.nn.functional.cross_entropy
    cross_entropy(logits[:, :-1].reshape(-1, V), target[:, 1:].reshape(-1), ignore_index=PAD).backward()
    gradient = {name: p.grad.numpy() for name, p in module.named_parameters() if p.requires_grad}
    return logits.detach().numpy(), gradient


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, source, target):
    return model.apply({"params": params}, source, target)


def by_us(model, params, source, target):
    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        logits = model.apply({"params": params}, source, target)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], target[:, 1:])
        return (losses * (target[:, 1:] != PAD)).sum() / (target[:, 1:] != PAD).sum(), logits

    (_, logits), gradient = loss(params)
    return np.asarray(logits), jax.tree.map(np.asarray, flatten_dict({"params": gradient}, sep="/"))


@pytest.mark.parametrize("name", sorted(HUGGINGFACE_ACTIVATIONS.keys() & ACTIVATIONS.keys()))
def test_activations_are_transformers(name):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    for theirs in HUGGINGFACE_ACTIVATIONS[name]:
        expected = transformers.activations.ACT2FN[theirs](torch.from_numpy(x))
        np.testing.assert_allclose(ACTIVATIONS[name](x), expected, atol=1e-6, err_msg=theirs)


@pytest.mark.parametrize(
    ("tie", "activation", "source_vocabulary"),
    [("all", "relu", V), ("decoder", "gelu", 50)],
)
def test_the_transformer_is_marian(tie, activation, source_vocabulary, tmp_path, worst):
    named = HUGGINGFACE_ACTIVATIONS[activation][0]
    module = make_marian(0, tie, source_vocabulary, spread=1.0, activation_function=named)
    module.save_pretrained(tmp_path)
    model = make_model(tie=tie, activation=activation, source_vocabulary=source_vocabulary)
    batch = make_batch(source_vocabulary)
    logits, gradient = by_marian(module, *batch)
    ours, our_gradient = by_us(model, weights.read(tmp_path, model), *batch)
    our_gradient = to_published(our_gradient, marian.HUGGINGFACE.format, model)
    difference = np.abs(ours - logits).max()
    # Softmax is invariant to a constant added to all keys.
    relative = worst(our_gradient, gradient, exactly_zero=r"k_proj\.bias$")
    print(f"\nMarian {tie} {activation}: logits {difference:.1e} of {np.abs(logits).max():.1f}; gradient {relative}")
    assert np.abs(logits).max() > 1
    assert difference < 1e-5
    assert relative[0] < 1e-4


@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
def test_what_we_write_is_what_marian_loads(tie, tmp_path):
    module = make_marian(1, tie)
    module.save_pretrained(tmp_path / "theirs")
    model = make_model(tie=tie)
    params = weights.read(tmp_path / "theirs", model)
    write_marian(tmp_path / "ours", model, params)
    back, report = transformers.MarianMTModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    described = {
        name: value for name, value in module.config.to_diff_dict().items() if name not in ("dtype", "init_std")
    }
    assert back.config.to_diff_dict().items() >= described.items()
    assert back.generation_config.bad_words_ids == [[PAD], [BOS]]
    for name, tensor in module.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    logits = logits_of(back.eval(), *make_batch())
    assert torch.equal(logits, logits_of(module, *make_batch()))
    np.testing.assert_allclose(forward(model, params, *make_batch()), logits.detach(), atol=1e-5)


def test_padding_may_be_any_token(tmp_path):
    """As in opus-mt: padding is the last token and the decoder starts from it; ours comes first."""
    ids = dict(pad_token_id=V - 1, decoder_start_token_id=V - 1, eos_token_id=0, bos_token_id=0)
    module = make_marian(2, **ids)
    module.config.save_pretrained(tmp_path)
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")  # stores every table under all its names
    assert {"lm_head.weight", "model.encoder.embed_positions.weight"} <= module.state_dict().keys()
    model = make_model()
    source, target = (np.where(tokens == PAD, V - 1, tokens) for tokens in make_batch())
    target[:, 0] = V - 1
    expected = logits_of(module, source, target, pad=V - 1)
    logits = forward(model, weights.read(tmp_path, model), (source + 1) % V, (target + 1) % V)
    np.testing.assert_allclose(logits, np.roll(expected.detach(), 1, axis=-1), atol=1e-5)


def test_an_output_bias_is_marians(tmp_path, worst):
    """As in opus-mt, where it models token frequency; when it is read and when it is written again."""
    module, batch = make_marian(4), make_batch()
    module.final_logits_bias.normal_(generator=torch.Generator().manual_seed(0))
    module.save_pretrained(tmp_path / "theirs")
    model = make_model(output_bias=True)
    params = weights.read(tmp_path / "theirs", model)
    logits, gradient = by_marian(module, *batch)
    ours, our_gradient = by_us(model, params, *batch)
    assert np.abs(module.final_logits_bias.numpy()).max() > 1
    np.testing.assert_allclose(ours, logits, atol=1e-5)
    our_gradient = to_published(our_gradient, marian.HUGGINGFACE.format, model)
    assert np.abs(our_gradient.pop("final_logits_bias")).max() > 0.01  # a buffer in theirs
    assert worst(our_gradient, gradient, exactly_zero=r"k_proj\.bias$")[0] < 1e-4

    write_marian(tmp_path / "ours", model, params)
    back = transformers.MarianMTModel.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(back.final_logits_bias, module.final_logits_bias)
    assert torch.equal(logits_of(back, *batch), logits_of(module, *batch))


class TorchTransformer(torch.nn.Module):
    """fairseq's Transformer of PyTorch's own layers; pre-norm stacks end with a norm."""

    def __init__(self, norm_first):
        super().__init__()
        options = dict(
            dim_feedforward=HIDDEN, dropout=0.0, layer_norm_eps=1e-5, batch_first=True, norm_first=norm_first
        )
        encoder = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, **options)
        decoder = torch.nn.TransformerDecoderLayer(WIDTH, HEADS, **options)
        norm = torch.nn.LayerNorm(WIDTH) if norm_first else None
        self.table = torch.nn.Embedding(V, WIDTH)
        self.encoder = torch.nn.TransformerEncoder(encoder, DEPTH, copy.deepcopy(norm), enable_nested_tensor=False)
        self.decoder = torch.nn.TransformerDecoder(decoder, DEPTH, copy.deepcopy(norm))
        half = torch.arange(WIDTH // 2, dtype=torch.float64)
        angles = (2 + torch.arange(LENGTH))[:, None] * torch.exp(-half * np.log(10000) / (WIDTH // 2 - 1))
        self.positions = torch.cat([angles.sin(), angles.cos()], -1).float()

    def forward(self, source, target, pad):
        def embed(tokens):
            return self.table(tokens) * WIDTH**0.5 + self.positions[: tokens.shape[1]]

        causal = torch.nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        memory = self.encoder(embed(source), src_key_padding_mask=source == pad)
        x = self.decoder(embed(target), memory, tgt_mask=causal, memory_key_padding_mask=source == pad)
        return x @ self.table.weight.T


# torch.nn's names -> names in old fairseq checkpoints, whose projections are packed like torch.nn's.
OLD_FAIRSEQ = {
    "multihead_attn": "encoder_attn",
    "linear1": "fc1",
    "linear2": "fc2",
    r"norm1\.": "layer_norms.0.",
    r"norm2\.": "layer_norms.1.",
    r"norm3\.": "layer_norms.2.",
    r"^(..)coder\.norm\.": r"\1coder.layer_norm.",
}


def old_fairseq(module):
    state = {"encoder.version": torch.ones(1), "decoder.embed_positions._float_tensor": torch.ones(1)}
    for name, tensor in module.state_dict().items():
        for torchs, fairseqs in OLD_FAIRSEQ.items():
            name = re.sub(torchs, fairseqs, name)
        state[name] = tensor
    table = state.pop("table.weight")
    return state | {f"{part}.embed_tokens.weight": table for part in ("encoder", "decoder")}


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_transformer_is_torchs_layers_with_fairseqs_names(norm, tmp_path):
    torch.manual_seed(0)
    module = TorchTransformer(norm == "pre").eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter += 0.2 * torch.randn_like(parameter) * (WIDTH**-0.5 if "weight" in name else 1)
        module.table.weight *= WIDTH**-0.5
    options = argparse.Namespace(arch="transformer_iwslt_de_en", encoder_attention_heads=HEADS)
    torch.save({"args": options, "model": old_fairseq(module), "extra_state": {"epoch": 3}}, tmp_path / "model.pt")
    model = make_model(norm=norm, positions="fairseq")
    params = weights.read(tmp_path / "model.pt", model)
    source, target = make_batch()
    theirs = [torch.from_numpy(np.array([1, 0, *range(2, V)])[tokens]) for tokens in (source, target)]
    expected = module(*theirs, pad=1).detach().numpy()
    logits = np.asarray(forward(model, params, source, target))
    print(f"\ntorch.nn {norm}: logits {np.abs(logits[..., 2:] - expected[..., 2:]).max():.1e}")
    np.testing.assert_allclose(logits[..., [1, 0, *range(2, V)]], expected, atol=1e-5)


@pytest.fixture(scope="module", params=[0, 1, 3, 5], ids=lambda seed: f"seed {seed}")
def both(request, tmp_path_factory):
    """Returns a Marian with random weights, as we wrote it, and our parameters."""
    theirs, ours = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours")
    make_marian(request.param).save_pretrained(theirs)
    params = weights.read(theirs, make_model())
    write_marian(ours, make_model(), params)
    return transformers.MarianMTModel.from_pretrained(ours).eval(), params


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(search, options, params, source):
    model = make_model()

    def step(cache, token, position):
        return model.apply({"params": params}, cache, token, position, method="step")

    cache = model.apply({"params": params}, source, length=options.max_length, method="start_cache")
    return search(step, cache, options)


def generate(module, **options):
    """Returns Marian's outputs up to and including eos, as lists of tokens, and their scores."""
    source = torch.from_numpy(make_batch()[0])
    found = module.generate(
        source,
        attention_mask=(source != PAD).long(),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    rows = [row[1 : 2 + row[1:].index(EOS)] for row in found.sequences.tolist()]
    return rows, getattr(found, "sequences_scores", None)


def rows_of(found):
    return [tokens[:length].tolist() for tokens, length in zip(found.tokens[:, 0], found.lengths[:, 0], strict=True)]


# With `early_stopping=True`, and as long as no search reaches the maximum length, Marian's search and ours follow the
# same rules: both stop once as many hypotheses have finished as there are beams, and rank by summed log-probability
# over length^penalty, counting eos but not the first token. Lower ranks may differ, since Marian drops an earlier
# hypothesis for a better one of the last step; the best cannot. Marian's max_length counts the first token and eos,
# ours only eos; its min_new_tokens counts neither, our min_length counts eos. Without a rule against repetition, random
# weights fall into loops.
CASES = {
    "length": (dict(length_penalty="average", no_repeat_ngram=2), dict(length_penalty=1.0, no_repeat_ngram_size=2)),
    "length^1.4": (
        dict(length_penalty="average", alpha=1.4, no_repeat_ngram=2),
        dict(length_penalty=1.4, no_repeat_ngram_size=2),
    ),
    "length^0.6": (
        dict(length_penalty="average", alpha=0.6, no_repeat_ngram=1),
        dict(length_penalty=0.6, no_repeat_ngram_size=1),
    ),
    "sum": (dict(length_penalty="none", no_repeat_ngram=2), dict(length_penalty=0.0, no_repeat_ngram_size=2)),
}


def search_both(both, case, longest=50, **fields):
    """Returns the results of beam search: ours with all ranks, and Marian's rows and scores."""
    (module, params), (ours, theirs) = both, CASES[case]
    options = Options(longest, min_length=3, beam_size=4, n_best=4, early_stopping=True, **ours, **fields)
    found = jax.device_get(run(beam_search, options, params, make_batch()[0]))
    common = {"num_beams": 4, "early_stopping": True, "min_new_tokens": 2}
    return found, *generate(module, max_length=longest + 1, **common, **theirs)


@pytest.mark.parametrize("case", CASES)
def test_beam_search_is_marians(both, case):
    found, rows, scores = search_both(both, case)
    print(f"\nbeam search, {case}: scores {np.abs(found.scores[:, 0] - scores.numpy()).max():.1e}")
    assert found.lengths.max() < 50
    assert rows_of(found) == rows
    np.testing.assert_allclose(found.scores[:, 0], scores, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("case", ["length", "sum"])
def test_an_end_that_marian_forces_counts_nothing(both, case):
    found, rows, scores = search_both(both, case, longest=5, score_forced_eos=False)
    assert (found.lengths[:, 0] == 5).any()
    assert rows_of(found) == rows
    np.testing.assert_allclose(found.scores[:, 0], scores, rtol=1e-6, atol=1e-5)
    counted, _, _ = search_both(both, case, longest=5)
    assert (counted.scores[:, 0] < found.scores[:, 0] - 1e-3).any()


def test_outputs_differ_between_sentences(both):
    rows = rows_of(search_both(both, "length")[0])
    assert len(set(map(tuple, rows))) >= 7
    assert len({len(row) for row in rows}) >= 5
    assert len({token for row in rows for token in row}) >= 15


@pytest.mark.parametrize("ngram", [0, 2])
def test_greedy_search_is_marians(both, ngram):
    module, params = both
    options = Options(max_length=30, no_repeat_ngram=ngram)
    found = jax.device_get(run(greedy, options, params, make_batch()[0]))
    rows, _ = generate(module, num_beams=1, max_length=31, no_repeat_ngram_size=ngram)
    assert rows_of(found) == rows
