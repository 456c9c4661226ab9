"""Weights that rest in the host's memory: which of them come, when, and that they are the same ones wherever they are."""

from __future__ import annotations

import pytest
import torch  # noqa: TID253  # a test of torch code
from wan_host_wan21.generation import generate
from wan_host_wan21.memory import Placement
from wan_host_wan21.settings import Wan21Settings
from wan_host_wan21.streaming import Blocks, Lookup

from wan_host import JobCancelled

CPU = torch.device("cpu")


class Part(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = torch.nn.Linear(width, width)
        self.register_buffer("shift", torch.randn(3, width, dtype=torch.float64))

    def forward(self, x):
        return self.inner(x) + self.shift.sum(0).float()


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return torch.nn.ModuleList([Part(5) for _ in range(4)]).requires_grad_(requires_grad=False)


@pytest.fixture
def fetched(monkeypatch):
    """Return the list of what was copied to a slot, in order."""
    seen, fetch = [], Blocks._fetch
    monkeypatch.setattr(Blocks, "_fetch", lambda self, index, slot: (seen.append(index), fetch(self, index, slot)))
    return seen


def run(parts, order=(0, 1, 2, 3)):
    x = torch.arange(5.0)[None]
    for index in order:
        x = parts[index](x)
    return x


def test_a_pass_gives_the_same_bits_with_two_blocks_at_a_time(parts):
    expected = run(parts)
    blocks = Blocks(parts, CPU)
    blocks.attach()
    slots = set()
    for part in parts:
        part.inner.register_forward_pre_hook(lambda module, _inputs: slots.add(module.weight.data_ptr()))
    resting = [part.inner.weight.data_ptr() for part in parts]
    assert torch.equal(run(parts), expected)
    assert torch.equal(run(parts), expected)
    assert len(slots) == 2
    assert not slots & set(resting)
    assert [part.inner.weight.data_ptr() for part in parts] == resting


def test_every_block_is_copied_once_a_pass_and_before_its_turn(parts, fetched):
    blocks = Blocks(parts, CPU)
    blocks.attach()
    run(parts, order=[0])
    assert fetched == [0, 1], "the next one is under way"
    run(parts, order=[1, 2, 3])
    assert fetched == [0, 1, 2, 3]
    run(parts)
    assert fetched == [0, 1, 2, 3, 0, 1, 2, 3, 0], "what follows the last block is known after the first pass"
    run(parts)
    assert fetched[9:] == [1, 2, 3, 0], "the first block came while the last one computed"


def test_passes_that_are_made_together_have_each_block_brought_once_and_the_bits_of_each_alone(parts, fetched):
    inputs = [torch.randn(1, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    def through(x):
        x = x * 2  # before the blocks, and behind them, every pass is its own
        for part in parts:
            x = part(x)
        return x + 1

    expected = [through(x) for x in inputs]
    blocks = Blocks(parts, CPU)
    for attach in (False, True):
        if attach:
            blocks.attach()
        made = blocks.together([lambda x=x: through(x) for x in inputs])
        assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))
    assert fetched == [0, 1, 2, 3]
    assert torch.equal(through(inputs[1]), expected[1]), "and the next pass is one alone"


def test_a_pass_that_raises_among_others_leaves_no_trace(parts):
    expected = run(parts)
    blocks = Blocks(parts, CPU)
    blocks.attach()
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("cancelled")

    handle = parts[2].register_forward_pre_hook(stop)
    with pytest.raises(ValueError, match="cancelled"):
        blocks.together([lambda: run(parts), lambda: run(parts)])
    handle.remove()
    assert torch.equal(run(parts), expected)
    assert blocks.together([lambda: run(parts)])[0].equal(expected)


@pytest.mark.parametrize("placement", ["text_off", "lean"])
def test_both_prompts_take_one_stream_of_the_encoders_weights_and_are_what_each_is_alone(
    *, placement, vace, video, recorder, fetched, monkeypatch
):
    monkeypatch.setattr(vace.placer, "_settings", Wan21Settings(placement=placement))
    vace.embeddings.forget()
    vace.placer._text_blocks.release()  # where another test has encoded without the placer, both blocks are there
    request = video()
    try:
        with pytest.raises(JobCancelled):
            generate(request, vace, recorder(stop_at="stage denoise", error=JobCancelled("enough")))
        assert fetched == list(range(len(vace.components.text_encoder.encoder.block)))
        together = [vace.embeddings.encode(text) for text in (request.prompt, request.negative_prompt)]
        vace.embeddings.forget()
        with torch.no_grad(), vace.placer.encoding():
            alone = [vace.embeddings.encode(text) for text in (request.prompt, request.negative_prompt)]
    finally:
        vace.placer.place(Placement.RESIDENT)
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
    assert not torch.equal(*alone)


def test_a_view_that_passes_some_blocks_by_is_learnt(parts, fetched):
    blocks = Blocks(parts, CPU)
    blocks.attach()
    for _ in range(2):
        run(parts, order=[2, 3])
    fetched.clear()
    expected = run(parts, order=[2, 3])
    assert fetched == [], "both are there"
    blocks.detach()
    assert torch.equal(run(parts, order=[2, 3]), expected)


def test_a_pass_that_raises_leaves_its_block_at_rest(parts):
    expected = run(parts)
    blocks = Blocks(parts, CPU)
    blocks.attach()
    resting = parts[1].inner.weight.data_ptr()
    with pytest.raises(RuntimeError):
        parts[1](torch.ones(1, 7))
    assert parts[1].inner.weight.data_ptr() == resting
    blocks.release()
    assert torch.equal(run(parts), expected)


def test_a_compiled_call_finds_the_weights_on_the_device_and_goes_again(parts):
    expected = run(parts)
    blocks = Blocks(parts, CPU)
    blocks.attach()
    seen = []

    def compiled(x):
        seen.append(parts[2].inner.weight.data_ptr())
        return parts[2]._call_impl(x)

    blocks.compute_with(parts[2], compiled)
    resting = parts[2].inner.weight.data_ptr()
    assert torch.equal(run(parts), expected)
    assert len(seen) == 1
    assert resting not in seen
    blocks.compute_with(parts[2], None)
    assert torch.equal(run(parts), expected)
    assert len(seen) == 1


def test_the_resting_copy_is_made_once(parts):
    expected = run(parts)
    blocks = Blocks(parts, CPU)
    places = []
    for _ in range(2):
        blocks.attach()
        blocks.attach()
        places.append([part.inner.weight.data_ptr() for part in parts])
        assert blocks.tensors() == {id(tensor) for part in parts for tensor in (*part.parameters(), *part.buffers())}
        assert torch.equal(run(parts), expected)
        blocks.detach()
        blocks.detach()
        assert blocks.tensors() == set()
        assert torch.equal(run(parts), expected)
    assert places[0] == places[1]


def test_what_came_to_stay_has_memory_of_its_own_so_that_joining_some_of_it_keeps_nothing_twice(parts):
    size = sum(tensor.nbytes for tensor in parts.state_dict().values())
    blocks = Blocks(parts, CPU)
    blocks.attach()
    resting = {tensor.untyped_storage().data_ptr() for tensor in parts.state_dict().values()}
    blocks.detach()
    for part in parts:
        part.inner.weight.data = part.inner.weight.data.clone()  # as joined projections do, whose parts become views of them
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in parts.state_dict().values()}
    assert sum(held.values()) == size
    assert not resting & held.keys()


def test_adapters_that_come_and_go_are_no_part_of_what_rests(parts):
    expected = run(parts)
    blocks = Blocks(parts, CPU)
    parts[0].lora_A = torch.nn.Linear(5, 2)
    blocks.attach()
    assert id(parts[0].lora_A.weight) not in blocks.tensors()
    assert torch.equal(run(parts), expected)
    del parts[0].lora_A
    parts[1].lora_B = torch.nn.Linear(5, 2)
    assert torch.equal(run(parts), expected)
    blocks.detach()
    assert torch.equal(run(parts), expected)


def test_weights_are_let_go_of_where_they_were(parts):
    before = parts[0].inner.weight.untyped_storage().data_ptr()
    Blocks(parts, CPU).attach()
    assert parts[0].inner.weight.untyped_storage().data_ptr() != before


def test_rows_are_looked_up_where_the_table_rests():
    table = torch.nn.Embedding(7, 3)
    numbers = torch.tensor([[1, 5, 5]])
    expected = table(numbers)
    lookup = Lookup(table, torch.device("meta"))
    lookup.attach()
    lookup.attach()
    assert table(numbers).device.type == "meta", "the rows go to the device"
    assert lookup.tensors() == {id(table.weight)}
    lookup.detach()
    assert lookup.tensors() == set()
    assert torch.equal(table(numbers), expected)
