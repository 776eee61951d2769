"""Times training steps beside PyTorch's on one GPU: forward and backward pass and AdamW, in bfloat16.

    python tests/parity/speed.py [vit_s vit_b swin_t resnet50 transformer_base transformer_big lstm] [--batch 128]

The peers are timm's models, transformers' Marian and an encoder-decoder of torch.nn.LSTM, with autocast, fused AdamW
and torch.compile, except for the LSTM, which is cuDNN's. Images have 224x224 pixels, sentences 64 + 64 tokens of 8,000
subwords, for `transformer_big` of 37,000. Weights and batches are random, batches are on the device. Each contender
runs in a process of its own, one after another; the least time of five blocks of ten steps counts. It needs torch, timm
and transformers for the GPU, beside jax[cuda13].
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

IMAGES = {  # name -> our model and size, timm's name
    "vit_s": ("vit", "S/16", "vit_small_patch16_224"),
    "vit_b": ("vit", "B/16", "vit_base_patch16_224"),
    "swin_t": ("swin", "T", "swin_tiny_patch4_window7_224"),
    "resnet50": ("resnet", "50", "resnet50"),
}
TEXT = {"transformer_base": 8000, "transformer_big": 37000, "lstm": 8000}  # name -> subwords
NAMES = (*IMAGES, *TEXT)
PIXELS, CLASSES, LENGTH, LSTM_WIDTH = 224, 1000, 64, 512


def milliseconds(step, wait):
    """Returns the least time of a step; `wait()` waits for the device."""
    for _ in range(5):
        step()
    wait()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(10):
            step()
        wait()
        times.append((time.perf_counter() - began) / 10)
    return 1e3 * min(times)


def ours(name, batch_size):
    import jax
    import numpy as np
    import optax

    from attnjax import models
    from attnjax.nn.kernels import resolve_precision
    from attnjax.objectives.classification import ClassificationObjective
    from attnjax.objectives.sequence import SequenceObjective
    from attnjax.runs.compilation import CompiledStep
    from attnjax.training import devices, state
    from attnjax.training.step import TrainStep

    rng, dtype = np.random.default_rng(0), resolve_precision("auto")
    if name in IMAGES:
        model, size, _ = IMAGES[name]
        paths = {"drop_path": 0.0} if model == "swin" else {}
        fields = models.fields(model, size, **paths)
        objective = ClassificationObjective(models.build(fields, num_classes=CLASSES, dtype=dtype), masks=False)
        batch = {
            "image": rng.normal(size=(batch_size, PIXELS, PIXELS, 3)).astype(np.float32),
            "label": rng.integers(CLASSES, size=batch_size, dtype=np.int32),
        }
    else:
        if name == "lstm":
            sizes = dict(embedding=LSTM_WIDTH, width=LSTM_WIDTH, layers=2, bidirectional=False)
            fields = models.fields("rnn", cell="lstm", attention="dot", dropout=0.0, **sizes)
        else:
            fields = models.fields("transformer", name.removeprefix("transformer_"), dropout=0.0)
        vocabulary = {"source_vocabulary": TEXT[name], "target_vocabulary": TEXT[name]}
        objective = SequenceObjective(models.build(fields, dtype=dtype, **vocabulary))
        lengths = {"source": LENGTH, "target": LENGTH + 1}
        batch = {
            key: rng.integers(4, TEXT[name], (batch_size, length), dtype=np.int32) for key, length in lengths.items()
        }
    batch["mask"] = np.ones(batch_size, bool)
    optimizer, place = optax.adamw(1e-4), devices.make()
    example = {key: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for key, x in batch.items()}
    train_state = place.create(lambda: state.create(objective, optimizer, example, 0, ema=False))
    compiled = CompiledStep(place, TrainStep(objective, optimizer, lambda step: 1e-4), train_state, [batch])
    batch = place.global_batch(batch)

    def step():
        nonlocal train_state
        train_state, _ = compiled(train_state, batch)

    return milliseconds(step, lambda: jax.block_until_ready(train_state))


def peers(name, batch_size):
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    if name in IMAGES:
        import timm

        paths = {"drop_path_rate": 0.0} if name == "swin_t" else {}
        model = timm.create_model(IMAGES[name][2], num_classes=CLASSES, **paths)
        inputs = {"x": torch.randn(batch_size, 3, PIXELS, PIXELS)}
        target = torch.randint(CLASSES, (batch_size,))
    else:
        model = lstm_of_torch(torch) if name == "lstm" else marian(name)
        source, target = (torch.randint(3, TEXT[name], (batch_size, LENGTH)) for _ in range(2))
        names = ("source", "target") if name == "lstm" else ("input_ids", "decoder_input_ids")
        inputs = dict(zip(names, (source, target), strict=True))
        if name != "lstm":
            inputs["attention_mask"] = torch.ones_like(source)
    layout = torch.channels_last if name == "resnet50" else torch.preserve_format
    model = model.cuda().to(memory_format=layout).train()
    inputs = {key: x.cuda().to(memory_format=layout) for key, x in inputs.items()}
    target = target.cuda().flatten()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    forward = model if name == "lstm" else torch.compile(model)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = forward(**inputs)
            logits = getattr(logits, "logits", logits).flatten(0, -2).float()
            loss = torch.nn.functional.cross_entropy(logits, target)
        loss.backward()
        optimizer.step()

    return milliseconds(step, torch.cuda.synchronize)


def marian(name):
    from transformers import MarianConfig, MarianMTModel

    width, heads, hidden = (1024, 16, 4096) if name == "transformer_big" else (512, 8, 2048)
    sides = {"layers": 6, "attention_heads": heads, "ffn_dim": hidden}
    fields = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sides.items()}
    tokens = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None)
    more = dict(activation_function="relu", scale_embedding=True, max_position_embeddings=256, dropout=0.0)
    return MarianMTModel(MarianConfig(vocab_size=TEXT[name], d_model=width, **fields, **tokens, **more))


def lstm_of_torch(torch):
    nn, width = torch.nn, LSTM_WIDTH

    class EncoderDecoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.source_embedding = nn.Embedding(TEXT["lstm"], width)
            self.target_embedding = nn.Embedding(TEXT["lstm"], width)
            self.encoder, self.decoder = (nn.LSTM(width, width, 2, batch_first=True) for _ in range(2))
            self.key = nn.Linear(width, width, bias=False)
            self.combine, self.output = nn.Linear(2 * width, width), nn.Linear(width, TEXT["lstm"])

        def forward(self, source, target):
            memory, state = self.encoder(self.source_embedding(source))
            x, _ = self.decoder(self.target_embedding(target), state)
            weights = torch.softmax(x @ self.key(memory).transpose(1, 2), -1)
            return self.output(torch.tanh(self.combine(torch.cat([weights @ memory, x], -1))))

    return EncoderDecoder()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", choices=("ours", "peers"), help=argparse.SUPPRESS)  # of a process of its own
    args = parser.parse_args()
    if args.side:
        print(json.dumps({"ours": ours, "peers": peers}[args.side](args.names[0], args.batch)))
        return
    env = {"PYTHONPATH": str(Path(__file__).parents[2])} | os.environ
    print(f"{'milliseconds a step':<20}{'ours':>8}{'PyTorch':>9}{'ratio':>7}")
    for name in args.names:
        found = []
        for side in ("ours", "peers"):
            command = [sys.executable, __file__, name, "--batch", str(args.batch), "--side", side]
            run = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(run.stdout.splitlines()[-1]))
        print(f"{name:<20}{found[0]:>8.2f}{found[1]:>9.2f}{found[0] / found[1]:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
