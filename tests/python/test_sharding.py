"""short_conv on DTensors of two processes: the results and gradients of the whole tensors, however they
are sharded."""

import socket

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("torch has no torch.distributed", allow_module_level=True)

NAMES = ("x", "weight", "bias", "initial_state")


def loss_of(inputs, grad_out, options):
    from shortconv.torch import short_conv

    out = short_conv(**inputs, activation="silu", **options)
    if not options.get("return_final_state"):
        return out, (out * grad_out).sum()
    return out[0], (out[0] * grad_out).sum() + out[1].square().sum()


def compare(places, wanted, options):
    """One process: gradients of the wanted inputs, sharded like `places`, against those of whole
    tensors."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(3)
    shapes = ((2, 9, 8), (8, 4), (8,), (2, 3, 8))
    whole = {name: torch.randn(shape) for name, shape in zip(NAMES, shapes)}
    grad_out = torch.randn(2, 9, 8)
    sharded = {name: distribute_tensor(one.clone(), mesh, [place])
               for (name, one), place in zip(whole.items(), places)}
    for name in wanted:
        whole[name].requires_grad_()
        sharded[name].requires_grad_()
    expected, loss = loss_of(whole, grad_out, options)
    loss.backward()
    out, loss = loss_of(sharded, distribute_tensor(grad_out, mesh, [places[0]]), options)
    loss.backward()
    assert torch.equal(out.full_tensor(), expected)
    if places[0].is_shard():
        assert out.placements == (places[0],)  # nothing was gathered
    for name in NAMES:
        if name not in wanted:
            assert sharded[name].grad is None
            continue
        gradient = sharded[name].grad
        torch.testing.assert_close(gradient.full_tensor(), whole[name].grad)
        if places[0] == Shard(0) and name in ("weight", "bias"):
            assert gradient.placements[0].is_partial()


def process(rank, port):
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, Shard

    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    everywhere = Replicate()
    for places in (
        (Shard(2), Shard(0), Shard(0), Shard(2)),  # by channels
        (Shard(0), everywhere, everywhere, Shard(0)),  # by sequences
        (everywhere,) * 4,
        (Shard(2), everywhere, everywhere, everywhere),  # the others are redistributed
    ):
        for options in ({}, {"return_final_state": True}):
            for wanted in (NAMES, ("x",), ("weight", "bias"), ("x", "initial_state")):
                compare(places, wanted, options)
    dist.destroy_process_group()


def test_sharded_tensors_give_the_results_of_whole_ones():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, args=(port,), nprocs=2)
