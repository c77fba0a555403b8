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
