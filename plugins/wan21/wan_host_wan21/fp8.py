"""Linear layers in 8 bits: e4m3 weights and activations with a scale for each row, multiplied by the GPU's own instruction.

torchao does the same with tensor subclasses, which PEFT's adapters and swapping back and forth between jobs do not go well
with; what is needed of it is one call, ``torch._scaled_mm``. The layers stand in for the originals while a job runs and
are taken out again, so that every bit of the model is there for the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  # this module is imported with a loaded model

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST = 448.0
"""The largest number of float8_e4m3fn."""
_ALIGNED = 16
SMALLEST_SCALE = 1e-12
CAPABILITY = (8, 9)
"""Ada and Hopper brought 8-bit matrix instructions."""


class Fp8Linear(torch.nn.Module):
    """A linear layer in float8_e4m3fn, scaled row by row. The result has the dtype of what goes in."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """``weight`` (out, in) is rounded; both sides must be multiples of 16."""
        super().__init__()
        rounded, scale = rounded_rows(weight)
        self.register_buffer("weight", rounded.t())  # the instruction takes the second matrix column by column
        self.register_buffer("scale", scale.t().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiply ``hidden`` of shape (..., in)."""
        rows, scale = rounded_rows(hidden.reshape(-1, hidden.shape[-1]))
        return self.add_bias(self.multiply(rows, scale, hidden.dtype)).reshape(*hidden.shape[:-1], -1)

    def multiply(self, rows: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Multiply rows that are in 8 bits already, (n, in) with scales (n, 1); return (n, out) without the bias."""
        return torch._scaled_mm(  # noqa: SLF001  # scaled_mm is public since torch 2.10 only
            rows, self.weight, scale_a=scale, scale_b=self.scale, out_dtype=dtype, use_fast_accum=True
        )

    def add_bias(self, made: torch.Tensor) -> torch.Tensor:
        """Add the bias in float32."""
        return made if self.bias is None else (made.float() + self.bias).to(made.dtype)


class Fp8Layers:
    """The 8-bit layers of some blocks, made once and put in and out."""

    def __init__(self, blocks: Iterator[torch.nn.Module]) -> None:
        """Make them; adapters that are in are rounded along with the weights that they change."""
        self._swaps: list[tuple[torch.nn.Module, str, torch.nn.Module, Fp8Linear]] = []
        for block in blocks:
            for owner, name, layer in _linears(block):
                weight, bias = _merged(layer)
                if not any(side % _ALIGNED for side in weight.shape):
                    self._swaps.append((owner, name, layer, Fp8Linear(weight, bias)))

    def __len__(self) -> int:
        """How many layers are swapped."""
        return len(self._swaps)

    def put_in(self) -> None:
        """Let them stand in for the originals."""
        for owner, name, _layer, rounded in self._swaps:
            setattr(owner, name, rounded)

    def take_out(self) -> None:
        """Put the originals back."""
        for owner, name, layer, _rounded in self._swaps:
            setattr(owner, name, layer)


def why_not(device: torch.device) -> str | None:
    """Return why a device has no 8-bit layers, or None where it has."""
    if device.type != "cuda":
        return f"{device.type} has no 8-bit matrix instructions"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below {CAPABILITY[0]}.{CAPABILITY[1]}"
    return None


def rounded_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix in 8 bits and what each row must be multiplied by, (rows, 1)."""
    wide = matrix.float()
    scale = (wide.abs().amax(dim=-1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    return (wide / scale).to(torch.float8_e4m3fn), scale


def _linears(block: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, Any]]:
    """Give every linear layer of a block that runs, with its owner; an adapter's layer as one, without its factors.

    Keys and values of the text are few rows, and stay as they are unless an adapter would be left beside them.
    """
    for path, module in block.named_modules():
        if "lora_" in path or hasattr(module, "base_layer"):
            continue
        unused = _fused_away(module)
        for name, child in module.named_children():
            adapted = isinstance(getattr(child, "base_layer", None), torch.nn.Linear)
            text = path.endswith("attn2") and name in {"to_k", "to_v", "to_kv"} and not adapted
            if (adapted or isinstance(child, torch.nn.Linear)) and not text and name not in unused:
                yield module, name, child


def _fused_away(attention: Any) -> set[str]:
    """Return the projections that one product stands for."""
    if not getattr(attention, "fused_projections", False):
        return set()
    return {"to_q", "to_k", "to_v"} if hasattr(attention, "to_qkv") else {"to_k", "to_v"}


def _merged(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a layer's weight and bias with what its active adapters add."""
    if not hasattr(layer, "base_layer"):
        return layer.weight, layer.bias
    weight, bias = layer.base_layer.weight.float(), layer.base_layer.bias
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            weight = weight + layer.get_delta_weight(adapter).float()
            added = layer.lora_B[adapter].bias
            if added is not None:
                bias = (0 if bias is None else bias.float()) + layer.scaling[adapter] * added.float()
    return weight, bias
