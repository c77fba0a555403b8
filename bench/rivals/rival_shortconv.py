"""This library, called directly."""

import shortconv


def original():
    return shortconv


def prefill(functions, b):
    return lambda: functions.forward(
        b.x, b.weight, b.bias, out=b.out, state=b.state, read_slots=b.slots,
        query_start_loc=b.bounds, has_initial_state=b.resumed, activation="silu")


def decode(functions, b):
    return lambda: functions.decode(
        b.x, b.weight, b.bias, out=b.out, state=b.state, read_slots=b.slots, activation="silu")


def training(functions, b):
    from shortconv.torch import short_conv

    bounds = b.bounds if len(b.case.lengths) > 1 else None
    return lambda: short_conv(b.x, b.weight, b.bias, activation="silu", query_start_loc=bounds)
