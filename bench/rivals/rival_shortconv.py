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


def front(functions, b, rounds_beta=False):
    front = b.front_with_rounded_beta if rounds_beta else b.front
    gates = front.gates(b.ba, b.a_log, b.dt_bias)

    def call():
        functions.forward_groups(
            b.qkvz, b.weight, b.bias, groups=front.groups, outs=b.outs, gates=gates, g=b.g,
            beta=b.beta, state=b.state, read_slots=b.slots, query_start_loc=b.bounds,
            has_initial_state=b.resumed, activation="silu")
        return (*b.outs, b.g, b.beta)

    return call
