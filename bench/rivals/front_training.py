#!/usr/bin/env python3
"""GPU time of short_conv_groups in training: its backward pass in one call, and composed of others.

    bench/rivals/front_training.py FILE

Forward and backward pass of the front of Qwen3-Next 80B (interleaved rows, z copied) in a CUDA
graph over rotating buffers, bf16. The composition is what short_conv_groups does where no backend
has the gradients: short_conv, and torch's operators for norms, gates and columns. FILE gets the
times in us, and by how much the gradients of both differ, relative to the largest of each tensor.
"""

import json
import sys

import torch
from measure import gpu_us
from shortconv import _training_groups, models
from shortconv.torch import short_conv_groups

# name, tokens, key heads, value heads, sequences
CASES = [("8192 in 1", 8192, 16, 32, 1), ("8192 in 64", 8192, 16, 32, 64),
         ("1024 in 1", 1024, 16, 32, 1), ("8192 in 1, TP 4", 8192, 4, 8, 1)]
PASSES = {"one call": _training_groups._is_one_call, "composed": lambda *_: False}


def training_call(tokens, key_heads, value_heads, sequences):
    front = models.gated_delta_net(num_k_heads=key_heads, num_v_heads=value_heads, head_k_dim=128,
                                   head_v_dim=128, layout="interleaved")

    def random(*shape, dtype=torch.bfloat16, requires_grad=True):
        return torch.randn(shape, device="cuda", dtype=dtype, requires_grad=requires_grad)

    x, ba = random(tokens, front.columns), random(tokens, 2 * value_heads)
    weight = random(front.channels, 4)
    a_log, dt_bias = (random(value_heads, dtype=torch.float32) for _ in range(2))
    bounds = torch.arange(0, tokens + 1, tokens // sequences, device="cuda", dtype=torch.int32)
    grads = [random(tokens, one.heads, one.head_dim, requires_grad=False) for one in front.groups]
    grads += [random(tokens, value_heads, dtype=torch.float32, requires_grad=False)
              for _ in range(2)]

    def call():
        (outs, g, beta), _ = short_conv_groups(
            x, weight, groups=front.groups, gates=front.gates(ba, a_log, dt_bias),
            query_start_loc=bounds, activation="silu")
        return torch.autograd.grad([*outs, g, beta], (x, weight, ba, a_log, dt_bias), grads)

    return call


def largest_difference(ones, others):
    return max(((one.float() - other.float()).abs().max() / other.float().abs().max()).item()
               for one, other in zip(ones, others))


def main():
    rows = []
    for name, tokens, *sizes in CASES:
        calls = [training_call(tokens, *sizes) for _ in range(3 if tokens > 4096 else 8)]
        row, results = {"case": name}, []
        for label, is_one_call in PASSES.items():
            _training_groups._is_one_call = is_one_call
            results.append(calls[0]())
            row[f"{label}, us"] = gpu_us(calls)
        row["difference"] = largest_difference(*results)
        rows.append(row)
        print(row, flush=True)
    result = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
    with open(sys.argv[1], "w") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
