"""Peak rates of accelerators, against which a training's rate is measured."""

# Device kind as JAX names it -> dense TFLOP/s of matrix products, by data sheet: (bfloat16, float32 inputs as TF32 on
# NVIDIA GPUs). Data sheets that quote 2:4 sparsity are halved. None: not stated.
PEAKS: dict[str, tuple[float, float | None]] = {
    "NVIDIA H100 80GB HBM3": (989.4, 494.7),
    "NVIDIA H100 PCIe": (756.0, 378.0),
    "NVIDIA H200": (989.4, 494.7),
    "NVIDIA B200": (2250.0, 1125.0),
    "NVIDIA A100-SXM4-40GB": (312.0, 156.0),
    "NVIDIA A100-SXM4-80GB": (312.0, 156.0),
    "NVIDIA A100-PCIE-40GB": (312.0, 156.0),
    "NVIDIA A100 80GB PCIe": (312.0, 156.0),
    "NVIDIA L4": (121.0, 60.0),
    "NVIDIA L40S": (362.0, 183.0),
    "TPU v2": (45.0, None),  # per device, which is a core here and in v3
    "TPU v3": (61.5, None),
    "TPU v4": (275.0, None),
    "TPU v5 lite": (197.0, None),
    "TPU v5": (459.0, None),
    "TPU v5p": (459.0, None),
    "TPU v6 lite": (918.0, None),
}


def peak_tflops(device_kind: str, precision: str) -> float | None:
    """Returns the dense peak of a device in TFLOP/s for a precision of a config; None where it is not known."""
    half, single = PEAKS.get(device_kind, (None, None))
    return half if precision == "bfloat16" else single
