"""A smaller ONNX file that is written from the larger one computes what the smaller model computes, or is refused."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.deploy.onnx_writer import Unwritable, write
from surgeon.deploy.onnx_writer.masks import DoesNotFactor, reshaped
from surgeon.deploy.profiling import export_groups
from surgeon.deploy.slim_file import write_slim
from surgeon.errors import ExportError, InvalidArgument
from surgeon.groups.analyze import analyze
from surgeon.surgery import operate
from tests.deploy_nets import conv_net, operators, randomize, run, tamper


class Images(nn.Module):
    """Grouped and depthwise convolutions, a shortcut, a concatenation, a split, a shuffle, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8))
        self.mix = nn.Conv2d(20, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.slope = nn.PReLU(6)
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mix(torch.cat([self.grouped(x), self.deep(x)], 1))
        x = self.norm(x).reshape(-1, 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6)
        first, second = x.chunk(2, 1)
        x = self.slope(self.up(torch.cat([second, first.sigmoid()], 1)))
        return self.head(F.adaptive_avg_pool2d(F.pad(x, (1, 0, 0, 1)), 2).flatten(1))


class Tokens(nn.Module):
    """A class token, a position table, fused and grouped-query attention, an RMS norm, and gated layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 6, 8))
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.q, self.kv, self.mixed = nn.Linear(8, 16, bias=False), nn.Linear(8, 16, bias=False), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.gate, self.down = nn.Linear(8, 20), nn.Linear(10, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        batch = ids.shape[0]
        x = torch.cat([self.token.expand(batch, -1, -1), self.table(ids)], 1) + self.places
        q, k, v = self.qkv(self.norm(x)).reshape(batch, 6, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, 6, 8))
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        q = self.q(y).view(batch, 6, 4, 4).transpose(1, 2)
        k, v = self.kv(y).view(batch, 6, 2, 2, 4).permute(2, 0, 3, 1, 4)
        k, v = (each.repeat_interleave(2, 1) for each in (k, v))
        x = x + self.mixed(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        a, b = self.gate(x).chunk(2, -1)
        return self.head((x + self.down(F.gelu(a) * b))[:, 0])


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (conv_net, torch.rand(2, 3, 8, 8)),
    "images": (lambda: randomize(Images()), torch.rand(2, 3, 6, 6)),
    "tokens": (Tokens, torch.randint(11, (2, 5))),
}


def _some(groups: object, seed: int) -> dict[int, list[int]]:
    rng = random.Random(seed)
    return {
        group.leaf.id: sorted(rng.sample(range(group.size), rng.randint(1, group.size)))
        for group in groups  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("name", NETS)
def test_the_file_computes_what_the_smaller_model_computes(tmp_path: Path, name: str) -> None:
    make, x = NETS[name]
    torch.manual_seed(0)
    net = make().eval()
    groups = analyze(net, x)
    base = export_groups(net, groups, tmp_path / "base.onnx")
    was = base.read_bytes()
    for seed in range(8):
        keep = _some(groups, seed)
        slim = operate(net, groups, keep).module
        write_slim(base, tmp_path / "slim.onnx", slim, groups, keep)
        batch = torch.cat([x, x[:1]])
        np.testing.assert_allclose(
            run(tmp_path / "slim.onnx", batch)[0], slim(batch).detach(), rtol=1e-3, atol=1e-4
        )
        onnx.checker.check_model(str(tmp_path / "slim.onnx"), full_check=True)
    assert base.read_bytes() == was
    found, had = operators(tmp_path / "slim.onnx"), operators(base)
    assert {**found, "Concat": 0} == {**had, "Concat": 0}  # two sizes that were one may need a vector each


def test_weights_keep_their_names_and_have_the_smaller_models_shapes(tmp_path: Path) -> None:
    net, x = conv_net(), torch.rand(2, 3, 8, 8)
    groups = analyze(net, x)
    base = export_groups(net, groups, tmp_path / "base.onnx")
    keep = {group.leaf.id: [*range(group.size // 2)] for group in groups}
    slim = operate(net, groups, keep).module
    write_slim(base, tmp_path / "slim.onnx", slim, groups, keep)
    graph = onnx.load(tmp_path / "slim.onnx").graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert {"0.weight", "3.weight", "6.weight", "10.weight", "10.bias"} <= shapes.keys()
    assert len(shapes) == len(onnx.load(base).graph.initializer)
    for name, tensor in slim.named_parameters():
        assert shapes.get(name, tuple(tensor.shape)) == tuple(tensor.shape)
    groups_of = [a.i for node in graph.node for a in node.attribute if node.op_type == "Conv" and a.name == "group"]
    assert groups_of == [1, 4, 1]


def test_a_file_that_deviates_is_refused_and_taken_away(tmp_path: Path) -> None:
    net, x = conv_net(), torch.rand(2, 3, 8, 8)
    groups = analyze(net, x)
    base = export_groups(net, groups, tmp_path / "base.onnx")
    tamper(base, "10.weight")
    keep = {group.leaf.id: [*range(group.size // 2)] for group in groups}
    with pytest.raises(ExportError, match="deviates"):
        write_slim(base, tmp_path / "slim.onnx", operate(net, groups, keep).module, groups, keep)
    assert not (tmp_path / "slim.onnx").exists()


def _file(path: Path, body: str, weights: str) -> Path:
    ends = "(float[N, 4] x) => (float[N, M] y)"
    text = f'<ir_version: 8, opset_import: ["": 18]> g {ends} <{weights}> {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), path)
    return path


W = "float[4, 6] w = {" + ", ".join(map(str, range(24))) + "}"
V = "float[6, 2] v = {" + ", ".join(map(str, range(12))) + "}"
KEPT = [0, 1, 4, 5]

#: What stands between the layer that loses columns and the one that reads them; and, if not the same, what that reads.
BETWEEN = {
    "nothing": ("h = Identity(a)", "", None),
    "a bias of its own": ("h = Add(a, b)", "float[6] b = {1, 2, 3, 4, 5, 6}", None),
    "a bias of one number": ("h = Add(a, b)", "float[1] b = {2}", None),
    "split and joined": ("p, q = Split <axis=1> (a, n)  h = Concat <axis=1> (q, p)", "int64[2] n = {3, 3}", "swapped"),
    "split evenly": ("p, q = Split <axis=1, num_outputs=2> (a)  h = Concat <axis=1> (q, p)", "", "swapped"),
    "split in three": (
        "p, q, r = Split <axis=1, num_outputs=3> (a)  pq = Concat <axis=1> (p, q)  h = Concat <axis=1> (pq, r)", "",
        "split in three",
    ),
    "turned round": (
        "h = Slice(a, s, e, x1, t)",
        "int64[1] s = {-1}, int64[1] e = {-9223372036854775807}, int64[1] x1 = {1}, int64[1] t = {-1}",
        "turned",
    ),
    "taken by number": ("h = Gather <axis=1> (a, i)", "int64[6] i = {5, 4, 3, 2, 1, 0}", "turned"),
    "a reshape to a written size": ("h = Reshape(a, n)", "int64[2] n = {-1, 6}", None),
    "a reshape to a computed size": (
        "c = Shape <start=0, end=1> (a)  t = Concat <axis=0> (c, n)  h = Reshape(a, t)", "int64[1] n = {6}", None,
    ),
    "a reshape to the other's size": ("c = Shape(a)  h = Reshape(a, c)", "", None),
    "a table": ("e = Expand(b, n)  h = Mul(a, e)", "float[1, 6] b = {1, 2, 3, 4, 5, 6}, int64[2] n = {1, 6}", None),
    "a table before": (
        "e = Expand(b, n)  h = Mul(e, a)", "float[1, 6] b = {1, 2, 3, 4, 5, 6}, int64[2] n = {1, 6}", None,
    ),
    "made ones": (
        "o = ConstantOfShape <value = float[1] {1}> (n)  h = Add(o, a)", "int64[2] n = {1, 6}", None,
    ),
    "a norm": (
        "h = LayerNormalization <axis=-1> (a, s, t)",
        "float[6] s = {1, 2, 1, 2, 1, 2}, float[6] t = {0, 1, 0, 1, 0, 1}", None,
    ),
    "channels that are added": (
        "p = Slice(a, s, e, x1)  q = Pad(p, n, c, x1)  h = Add(q, a)",
        "int64[1] s = {0}, int64[1] e = {2}, int64[1] x1 = {1}, int64[2] n = {0, 4}, float c = {0}", None,
    ),
    "a sum by letters": ("h = Einsum <equation = \"nc,c->nc\"> (a, b)", "float[6] b = {1, 2, 3, 4, 5, 6}", None),
    "a softmax": ("h = Softmax <axis=-1> (a)", "", None),
    "a constant of the graph": ("b = Constant <value = float[6] {1, 2, 3, 4, 5, 6}> ()  h = Add(a, b)", "", None),
}
READ = {"swapped": [3, 4, 5, 0, 1, 2], "turned": [5, 4, 3, 2, 1, 0]}


@pytest.mark.parametrize("name", BETWEEN)
def test_files_from_elsewhere(tmp_path: Path, name: str) -> None:
    body, more, how = BETWEEN[name]
    weights = ", ".join(filter(None, [W, V, more]))
    base = _file(tmp_path / "base.onnx", f"a = MatMul(x, w)  {body}  y = MatMul(h, v)", weights)
    order = READ.get(how or "", range(6))
    reads = [place for place, column in enumerate(order) if column in KEPT]
    if how == "split in three":  # a part of it would lose all
        with pytest.raises(Unwritable, match="nothing"):
            write(base, tmp_path / "slim.onnx", {"w": {1: KEPT}, "v": {0: reads}})
        return
    cuts = {"w": {1: KEPT}, "v": {0: reads}}
    write(base, tmp_path / "slim.onnx", cuts)
    x = torch.randn(3, 4)
    slim = onnx.load(tmp_path / "slim.onnx")
    shapes = {each.name: tuple(each.dims) for each in slim.graph.initializer}
    assert shapes["w"] == (4, 4) and shapes["v"] == (len(reads), 2)
    got = run(tmp_path / "slim.onnx", x)[0]
    # A base whose lost columns read nothing computes the same, where nothing is taken over all of them.
    if "norm" in name or "softmax" in name:
        whole = x.numpy() @ np.arange(24.0, dtype=np.float32).reshape(4, 6)[:, KEPT]
        if "norm" in name:
            whole = (whole - whole.mean(1, keepdims=True)) / np.sqrt(whole.var(1, keepdims=True) + 1e-5)
            whole = whole * np.array([1, 2, 1, 2]) + np.array([0, 1, 0, 1])
        else:
            whole = torch.from_numpy(whole).softmax(1).numpy()
        want = whole @ np.arange(12.0, dtype=np.float32).reshape(6, 2)[KEPT]
    else:
        zeroed = onnx.load(base)
        for tensor in zeroed.graph.initializer:
            if tensor.name == "v":
                v = numpy_helper.to_array(tensor).copy()
                v[[place for place in range(6) if place not in reads]] = 0
                tensor.CopyFrom(numpy_helper.from_array(v, "v"))
        onnx.save(zeroed, tmp_path / "zeroed.onnx")
        want = run(tmp_path / "zeroed.onnx", x)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


REFUSED = {
    "an operator without a rule": ("a = MatMul(x, w)  h, i = TopK(a, k)  y = MatMul(h, v)", "int64[1] k = {6}", "TopK"),
    "an output that would lose positions": ("y = MatMul(x, w)", "", "output 'y' would lose positions"),
    "a weight of which nothing is known": (
        "a = MatMul(x, w)  b = MatMul(x, u)  h = Add(a, b)  y = MatMul(h, v)",
        W.replace(" w", " u"), "keeps all, where 4 of 6 are to be kept",
    ),
    "a constant that does not fit": (
        "a = MatMul(x, w)  h = MatMul(a, u)  y = MatMul(h, v)",
        "float[6, 6] u = {" + ", ".join(["1"] * 36) + "}", None,
    ),
    "heads that lose unlike parts": (
        "a = MatMul(x, w)  b = Reshape(a, n)  h = Reshape(b, m)  y = MatMul(h, v)",
        "int64[3] n = {-1, 3, 2}, int64[2] m = {-1, 6}", "no product",
    ),
    "no such weight": ("a = MatMul(x, u)  y = MatMul(a, v)", W.replace(" w", " u"), "has no weight 'w'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    body, more, message = REFUSED[name]
    weights = ", ".join(filter(None, [*([] if name == "no such weight" else [W]), V, more]))
    base = _file(tmp_path / "base.onnx", body, weights)
    kept = [0, 1, 2] if "heads" in name else KEPT
    if message is None:  # its rows follow from what it reads, and its columns stay
        write(base, tmp_path / "slim.onnx", {"w": {1: kept}})
        assert ort.InferenceSession(tmp_path / "slim.onnx").get_outputs()[0].name == "y"
        return
    with pytest.raises(Unwritable, match=message):
        write(base, tmp_path / "slim.onnx", {"w": {1: kept}, "v": {0: kept}})
    assert not (tmp_path / "slim.onnx").exists()


def test_a_constant_that_two_read_is_cut_for_each(tmp_path: Path) -> None:
    weights = ", ".join([W, W.replace(" w", " u"), V, V.replace(" v", " t"), "float[6] b = {1, 2, 3, 4, 5, 6}"])
    body = "a = MatMul(x, w)  c = Add(a, b)  d = MatMul(x, u)  e = Add(d, b)  f = MatMul(c, v)  g = MatMul(e, t)"
    base = _file(tmp_path / "base.onnx", f"{body}  y = Add(f, g)", weights)
    write(base, tmp_path / "slim.onnx", {"w": {1: [0, 1]}, "u": {1: [2, 3, 4]}, "v": {0: [0, 1]}, "t": {0: [2, 3, 4]}})
    x = torch.randn(2, 4).numpy()
    w, v, b = np.arange(24.0).reshape(4, 6), np.arange(12.0).reshape(6, 2), np.arange(1.0, 7)
    want = sum((x @ w[:, kept] + b[kept]) @ v[kept] for kept in ([0, 1], [2, 3, 4]))
    np.testing.assert_allclose(run(tmp_path / "slim.onnx", torch.from_numpy(x))[0], want, rtol=1e-4)


def test_axes_are_carried_through_reshapes() -> None:
    mask = np.array([True, False, True])
    (found,) = reshaped({1: mask}, ("batch", 3, 2, 2), ("batch", 12)).values()
    assert found.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert reshaped({2: mask}, ("batch", "length", 3), ("batch*length", 3)).keys() == {1}
    with pytest.raises(DoesNotFactor, match="not known"):
        reshaped({1: mask}, ("batch", 3, "height"), ("batch", "3*height"))
    assert reshaped({}, ("batch", 3, "height"), ("batch", "3*height")) == {}


def test_parts_of_an_axis_go_beside_one_of_unknown_size() -> None:
    mask = np.array([True, False, True])
    heads = np.tile(mask, 2)
    (found,) = reshaped({2: heads}, (5, "batch", 6), (5, "2*batch", 3)).values()
    assert found.tolist() == mask.tolist()
    (found,) = reshaped({2: mask}, (5, "2*batch", 3), (5, "batch", 6)).values()
    assert found.tolist() == heads.tolist()
    with pytest.raises(DoesNotFactor):
        reshaped({2: np.repeat([True, False], 3)}, (5, "batch", 6), (5, "2*batch", 3))


def test_a_file_that_names_a_path_outside_of_its_folder_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    base = _file(inside / "base.onnx", "h = MatMul(x, w)  y = MatMul(h, v)", f"{W}, {V}")
    model = onnx.load(base)
    for weight in model.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight), weight.name))
    onnx.save(model, base, save_as_external_data=True, size_threshold=0, location="weights")
    write(base, inside / "slim.onnx", {"w": {1: KEPT}})
    (inside / "slim.onnx").unlink()
    (inside / "weights").rename(tmp_path / "weights")
    model = onnx.load(base, load_external_data=False)
    for weight in model.graph.initializer:
        next(entry for entry in weight.external_data if entry.key == "location").value = "../weights"
    base.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidArgument, match=r"\.\./weights"):
        write(base, inside / "slim.onnx", {"w": {1: KEPT}})
    assert not (inside / "slim.onnx").exists()
