"""Random calls of backward_groups, and their gradients by formulas in float64."""

import numpy as np
import oracle
import shortconv
from shortconv import models

TOKENS = 24
HEADS = 4  # of v
OPTIONS = [{}, {"decay": "exp", "beta_factor": 2.0, "normalize": False}, {"copy_z": False}]
SEQUENCES = ["one", "ragged", "padded", "seq_idx", "batch", "batch with seq_idx"]


def front_of(layout="interleaved", **options):
    return models.gated_delta_net(num_k_heads=2, num_v_heads=HEADS, head_k_dim=16, head_v_dim=8,
                                  layout=layout, **options)


def columns_of(one, heads, head_dim):
    blocks = one.block_heads or heads
    return [one.offset + h // blocks * one.block_stride + h % blocks * (one.head_stride or head_dim)
            + d for h in range(heads) for d in range(head_dim)]


class Case:
    """The arrays of a call, [tokens, ...], and what divides the rows into sequences.

    Args:
      sequences: of SEQUENCES. Rows without a sequence have NaN.
      extra: columns of x that no group reads.
    """

    def __init__(self, random, front, sequences="ragged", width=4, extra=0, has_bias=True):
        self.front = front
        self.options, self.shape = {}, (TOKENS,)
        self.bounds = [0, TOKENS]  # those without a sequence divide rows too
        self.has_sequence = np.ones(TOKENS, bool)
        if sequences in ("ragged", "padded"):
            self.bounds = [0, 5, 5, 6, 20, TOKENS]
            given = self.bounds if sequences == "ragged" else self.bounds[1:-1]
            self.has_sequence[:given[0]] = self.has_sequence[given[-1]:] = False
            self.options["query_start_loc"] = np.array(given, np.int32)
        if sequences.startswith("batch"):
            self.shape, self.bounds = (2, TOKENS // 2), [0, TOKENS // 2, TOKENS]
        if sequences.endswith("seq_idx"):
            numbers = np.repeat([3, -1, 0, 7, -2], [4, 2, 6, 9, 3])
            self.bounds = [0, 4, 6, 12, 21, TOKENS]
            self.has_sequence = numbers >= 0
            self.options["seq_idx"] = numbers.reshape(self.shape).astype(np.int32)

        def make(*shape):
            one = random.standard_normal(shape).astype(np.float32)
            if shape[0] == TOKENS:
                one[~self.has_sequence] = np.nan
            return one

        self.x, self.ba = make(TOKENS, front.columns + extra), make(TOKENS, 2 * HEADS)
        self.weight = make(front.channels, width)
        self.bias = make(front.channels) if has_bias else None
        self.a_log, self.dt_bias = make(HEADS), make(HEADS)
        self.grads = [make(TOKENS, one.heads, one.head_dim) for one in front.groups]
        self.grad_g, self.grad_beta = make(TOKENS, HEADS), make(TOKENS, HEADS)

    def rows(self, array):
        return array.reshape(*self.shape, *array.shape[1:])

    def call(self, arrays, **changes):
        of = arrays.of
        gates = self.front.gates(of(self.rows(self.ba)), of(self.a_log), of(self.dt_bias))
        given = {
            "x": of(self.rows(self.x)), "weight": of(self.weight), "bias": of(self.bias),
            "groups": self.front.groups, "gates": gates, "activation": "silu",
            "grad_g": of(self.rows(self.grad_g)), "grad_beta": of(self.rows(self.grad_beta)),
            "backend": arrays.backends[-1],
            **{name: of(one) for name, one in self.options.items()}, **changes}
        grads = given.pop("grad_groups", [of(self.rows(one)) for one in self.grads])
        return shortconv.backward_groups(grads, **given)

    def expected(self, activation="silu"):
        """The gradients by formulas."""
        def wide(one):
            one = one.astype(np.float64)
            return np.where(self.has_sequence.reshape(-1, *[1] * (one.ndim - 1)), one, 0)

        groups = self.front.groups
        columns = [columns_of(one.input, one.heads, one.head_dim) for one in groups]
        convolved = [i for i, one in enumerate(groups) if not one.copy]
        x = wide(self.x)
        rows = np.concatenate([x[:, columns[i]] for i in convolved], 1)
        y = np.concatenate([
            oracle.convolve(np.zeros((self.weight.shape[1] - 1, rows.shape[1])), rows[begin:end],
                            self.weight, self.bias, activation)
            for begin, end in zip(self.bounds[:-1], self.bounds[1:])])
        parts = np.split(y, np.cumsum([len(columns[i]) for i in convolved])[:-1], 1)
        grads = [wide(one) for one in self.grads]
        grad_rows = []
        for i, part in zip(convolved, parts):
            grad, part = grads[i], part.reshape(grads[i].shape)
            if groups[i].l2_norm:
                n = 1 / np.sqrt(np.square(part).sum(-1, keepdims=True) + groups[i].eps)
                grad = groups[i].scale * (
                    n * grad - part * n ** 3 * (grad * part).sum(-1, keepdims=True))
            grad_rows.append(np.where(self.has_sequence[:, None], grad.reshape(TOKENS, -1), 0))
        found = oracle.backward(np.concatenate(grad_rows, 1), rows, self.weight, self.bias,
                                bounds=self.bounds, activation=activation)
        grad_x = np.zeros(x.shape)
        at = 0
        for group, grad, where in zip(groups, grads, columns):
            if group.copy:
                grad_x[:, where] = grad.reshape(TOKENS, -1)
            else:
                grad_x[:, where] = found["x"][:, at:at + len(where)]
                at += len(where)
        grad_x[~self.has_sequence] = 0
        return {"x": grad_x, "weight": found["weight"], "bias": found["bias"],
                **self.expected_of_gates(wide)}

    def expected_of_gates(self, wide):
        a_at, b_at = (columns_of(one, HEADS, 1) for one in self.front.gate_maps)
        ba = wide(self.ba)
        total = ba[:, a_at] + self.dt_bias.astype(np.float64)
        scale = -np.exp(self.a_log.astype(np.float64))
        g = scale * np.log1p(np.exp(total))
        grad_g = wide(self.grad_g) * (np.exp(g) if self.front.decay == "exp" else 1)
        grad_a = grad_g * scale / (1 + np.exp(-total))
        s = 1 / (1 + np.exp(-ba[:, b_at]))
        a, b = np.zeros_like(ba), np.zeros_like(ba)
        a[:, a_at] = grad_a
        b[:, b_at] = wide(self.grad_beta) * self.front.beta_factor * s * (1 - s)
        return {"a": a, "b": b, "a_log": (grad_g * g).sum(0), "dt_bias": grad_a.sum(0)}

    def check(self, arrays, gradients, activation="silu", tolerance=2e-5):
        for name, expected in self.expected(activation).items():
            one = getattr(gradients, name)
            if one is None:
                assert name == "bias" and self.bias is None
                continue
            found = arrays.numpy(one).astype(np.float64)
            if name in ("x", "a", "b"):
                expected = self.rows(expected)
            assert found.shape == expected.shape
            scale = max(1, np.abs(expected).max())
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale,
                                       err_msg=name)
