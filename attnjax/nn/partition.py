"""Placeholder until the models' owner brings the tables here."""

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]
ATTENTION: Rules = (
    (r"(query|key|value)/kernel", ("fsdp", "tensor", None)),  # width, heads, features of a head
    (r"(query|key|value)/bias", ("tensor", None)),
    (r"\w*attention\d*/out/kernel", ("tensor", None, "fsdp")),
    (r"mlp/fc1/kernel", ("fsdp", "tensor")),
    (r"mlp/fc1/bias", ("tensor",)),
    (r"mlp/fc2/kernel", ("tensor", "fsdp")),
    (r"(source|target)_embedding/embedding", ("tensor", "fsdp")),  # vocabulary, width
    (r"relative_positions/embedding", (None, None, "tensor")),  # rows, columns, heads
    (r"positions/embedding", (None, None, "fsdp")),
    (r"positions/(rows|columns)", (None, "fsdp")),
    (r"projection/kernel", (None, None, None, "fsdp")),  # of patches
    (r"(reduction|linear|head\d*|pre_logits|adapter|output)/kernel", ("fsdp", None)),
)
CONVOLUTION: Rules = (
    (r"(conv\d*|stem|shortcut)/kernel", (None, None, "fsdp", "tensor")),
    (r"(fc|head)/kernel", ("fsdp", None)),
)
RECURRENT: Rules = (
    (r"(input|hidden)/kernel", ("fsdp", None)),  # the gates stand side by side: cutting them would part each
    (r"(query|key|score|bridge)/kernel", ("fsdp", None)),
    (r"embedding", ("fsdp", None)),
    (r"output/kernel", ("fsdp", "tensor")),
)
DENSE: Rules = ((r"(fc\d+|head)/kernel", ("fsdp", "tensor")),)
