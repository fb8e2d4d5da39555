"""The interpreter of graphs: what it computes, what it holds while it does, and what it leaves alone."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from surgeon.frontend.trace import Inputs, trace
from surgeon.groups.interpreter import Interpreter, double, precisely


class Noisy(nn.Module):
    """Has random numbers, in eval mode too, and a weight that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.up(x).relu() + torch.rand_like(x))


def test_values_go_after_their_last_use() -> None:
    graph = trace(nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))), torch.randn(2, 4))
    run, held = Interpreter(graph, graph.inputs), []
    with torch.no_grad():
        for node in run:
            if node.op == "call_function":
                held.append(weakref.ref(run.compute(node)))
                assert sum(each() is not None for each in held) <= 2, "an operator's input and its output"
            elif node.op == "placeholder":
                run.compute(node)
    assert len(held) == 6 and not any(each() is not None for each in held)


def test_batches_in_step_compute_what_each_does_alone() -> None:
    net = Noisy()
    graph = trace(net, torch.randn(2, 4))
    batches: list[Inputs] = [((torch.randn(size, 4),), {}) for size in (2, 3)]
    run, together = Interpreter(graph, *batches), []
    for node in run:
        together = [run.compute(node, batch) for batch in range(2)]
    for (found,), batch in zip(together, batches, strict=True):
        torch.testing.assert_close(found, Interpreter(graph, batch).run()[0], rtol=0, atol=0)
        assert not found.requires_grad


def test_random_numbers_are_the_same_each_time_and_the_users_stay() -> None:
    graph = trace(Noisy(), torch.randn(2, 4))
    before = torch.get_rng_state()
    first, again = (Interpreter(graph, graph.inputs).run()[0] for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_precision_and_tensors_in_place_of_the_models() -> None:
    net = nn.Linear(4, 3).bfloat16()
    graph = trace(net, torch.randn(2, 4).bfloat16())
    (found,) = Interpreter(graph, graph.inputs).run()
    x, weight, bias = graph.inputs[0][0], net.weight.detach(), net.bias.detach()
    torch.testing.assert_close(found, x.float() @ weight.float().T + bias.float())
    with precisely():
        (found,) = Interpreter(graph, graph.inputs, parameter=lambda name, value: 2 * value, precision=double).run()
    torch.testing.assert_close(found, x.double() @ (2 * weight.double()).T + 2 * bias.double())


def test_an_operator_can_be_run_again_on_values_that_are_given() -> None:
    graph = trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4))
    run = Interpreter(graph, graph.inputs)
    (relu,) = (node for node in graph.nodes if node.name == "relu")
    run.run()
    given = torch.tensor([[-1.0, 2.0, 3.0]])
    assert run.evaluate(relu, instead={relu.all_input_nodes[0]: given}).tolist() == [[0.0, 2.0, 3.0]]


def test_a_gradient_flows_to_tensors_that_are_put_in_place_only() -> None:
    net = nn.Linear(4, 3)
    graph = trace(net, torch.randn(2, 4))
    own = net.weight.detach().clone().requires_grad_()
    run = Interpreter(graph, graph.inputs, parameter=lambda name, value: own if name == "weight" else value)
    run.run()[0].sum().backward()
    assert own.grad is not None and net.weight.grad is None and net.bias.grad is None
    with torch.no_grad():
        assert not run.run()[0].requires_grad
