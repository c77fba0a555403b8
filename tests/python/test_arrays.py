"""numpy arrays that numpy does not pass through DLPack: read-only ones and ml_dtypes.bfloat16."""

import numpy as np
import oracle
import pytest
import shortconv
from shortconv import _arrays


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.fixture
def case(random):
    return {"x": random.standard_normal((5, 8), np.float32),
            "weight": random.standard_normal((8, 4), np.float32),
            "bias": random.standard_normal(8, np.float32),
            "state": random.standard_normal((3, 3, 8), np.float32),
            "read_slots": np.array([2, 0], np.int32),
            "query_start_loc": np.array([0, 2, 5], np.int64),
            "has_initial_state": np.array([True, False])}


READ = ["x", "weight", "bias", "read_slots", "query_start_loc", "has_initial_state"]


@pytest.mark.parametrize("names", [[name] for name in READ] + [READ])
def test_read_only_inputs(case, names):
    state = case["state"].copy()
    expected = shortconv.forward(**case)
    given = {**case, "state": state, **{name: read_only(case[name]) for name in names}}
    out = shortconv.forward(**given)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(state, case["state"])
    assert out.flags.writeable and not given[names[0]].flags.writeable


def test_inputs_in_files_and_bytes(case, tmp_path):
    case["weight"].tofile(tmp_path / "weight")
    expected = shortconv.forward(case["x"], case["weight"])
    for weight in (np.memmap(tmp_path / "weight", np.float32, "r", shape=(8, 4)),
                   np.frombuffer(case["weight"].tobytes(), np.float32).reshape(8, 4)):
        assert not weight.flags.writeable
        np.testing.assert_array_equal(shortconv.forward(case["x"], weight), expected)
        # Columns in the other order, every second row.
        np.testing.assert_array_equal(shortconv.forward(case["x"][:, ::2], weight[::2, ::-1]),
                                      shortconv.forward(case["x"][:, ::2].copy(),
                                                        case["weight"][::2, ::-1].copy()))


@pytest.mark.parametrize("name", ["out", "state", "violations"])
def test_read_only_arrays_that_are_written(case, name):
    before = {**case, "out": np.zeros((5, 8), np.float32),
              "violations": np.zeros((13, 2), np.int64)}
    given = {key: value.copy() for key, value in before.items()}
    given[name].flags.writeable = False
    with pytest.raises(ValueError, match=f"^{name}: is read-only, but it is written; pass a writ"):
        shortconv.forward(**given)
    for key, value in before.items():
        np.testing.assert_array_equal(given[key], value)


def test_read_only_states_that_are_only_read(case):
    x = case["x"].reshape(1, 5, 8)
    state = read_only(case["state"])
    arguments = {"weight": case["weight"], "read_slots": np.array([1], np.int32)}
    np.testing.assert_array_equal(shortconv.verify(x, state=state, **arguments),
                                  shortconv.decode(x, state=state.copy(), **arguments))
    seq_idx = np.array([0, 0, 0, 1, 1], np.int32)
    np.testing.assert_array_equal(
        shortconv.forward(case["x"], case["weight"], state=state, initial_state=True,
                          seq_idx=seq_idx),
        shortconv.forward(case["x"], case["weight"], state=state.copy(), initial_state=True,
                          seq_idx=seq_idx))
    with pytest.raises(ValueError, match="^state: is read-only"):
        shortconv.verify(x, state=state, update_state=True, **arguments)


def test_other_operators(case):
    bounds, none = np.array([0, 2, 5], np.int32), np.full((2, 2), -1, np.int32)
    rows = np.zeros((4, 3), np.int32)
    arguments = (read_only(bounds), np.zeros(2, np.int32), none)
    shortconv.block_snapshots(*arguments, tokens=5, block_size=4, snapshots=rows)
    assert (rows[:, 0] == -1).all()
    with pytest.raises(ValueError, match="^snapshots: is read-only"):
        shortconv.block_snapshots(*arguments, tokens=5, block_size=4, snapshots=read_only(rows))
    parents = np.zeros((2, 2), np.int32)
    shortconv.tree_parents(read_only(none), none, parents)
    assert (parents == -1).all()
    states, pool = case["state"][None], np.zeros((1, 3, 3, 8), np.float32)
    accepted = np.zeros(3, np.int32)
    shortconv.commit(read_only(states), pool, accepted, width=4)
    np.testing.assert_array_equal(pool, states)
    with pytest.raises(ValueError, match="^state: is read-only"):
        shortconv.commit(states, read_only(pool), accepted, width=4)


def test_arrays_that_dlpack_cannot_express(case):
    with pytest.raises(ValueError, match="^weight: dtype >f4 .* is not supported: "):
        shortconv.forward(case["x"], case["weight"].astype(">f4"))
    with pytest.raises(ValueError, match="^x: dtype <U3 .* is not supported: "):
        shortconv.forward(np.full((5, 8), "one"), case["weight"])


def bits_of_bfloat16(array):
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def values_of_bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_bits_that_are_bfloat16(case):
    """What ml_dtypes.bfloat16 becomes, also where ml_dtypes is not installed."""
    bits = {name: bits_of_bfloat16(case[name]) for name in ("x", "weight", "bias")}
    out = np.zeros((5, 8), np.uint16)
    shortconv.forward(**{name: _arrays._BFloat16(one) for name, one in bits.items()},
                      out=_arrays._BFloat16(out))
    values = [values_of_bfloat16(one) for one in bits.values()]
    expected = oracle.convolve(np.zeros((3, 8)), *values)
    np.testing.assert_allclose(values_of_bfloat16(out), expected, rtol=2.0 ** -8, atol=1e-5)
    with pytest.raises(ValueError, match="^x: dtype u16 is not supported"):
        shortconv.forward(bits["x"], case["weight"])


def test_ml_dtypes(case):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    given = {name: one.astype(ml_dtypes.bfloat16) if one.dtype == np.float32 else one
             for name, one in case.items()}
    given["x"].flags.writeable = False
    state = given["state"].astype(np.float32)
    out = shortconv.forward(**given, activation="silu")
    assert out.dtype == ml_dtypes.bfloat16
    expected, expected_state = oracle.forward(
        given["x"].astype(np.float32), *(given[name].astype(np.float32)
                                         for name in ("weight", "bias")),
        bounds=given["query_start_loc"], state=state, slots=given["read_slots"],
        resumed=given["has_initial_state"], activation="silu")
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=2.0 ** -8, atol=1e-5)
    np.testing.assert_array_equal(given["state"].astype(np.float32), expected_state)
    # Mixed with f32, in place, and as the only bf16 array.
    mixed = shortconv.forward(given["x"], case["weight"])
    assert mixed.dtype == ml_dtypes.bfloat16
    rows = given["x"][:3].copy()
    shortconv.decode(rows, given["weight"], state=given["state"], out=rows)
    with pytest.raises(ValueError, match="^weight: dtype float8_e4m3fn .* is not supported"):
        shortconv.forward(case["x"], case["weight"].astype(ml_dtypes.float8_e4m3fn))
