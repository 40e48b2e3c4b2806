"""Writes tensor_cases.safetensors: what NumPy gives for operations on tensors, and what PyTorch gives for activations.

    pip install numpy torch && python3 make_tensor_cases.py

The file has the tensor `cases` (JSON, a list), `values` (the numbers that all operands are cut from) and `results` (the
numbers of all results, one case after the other). An operand is [shape, place of its first element in `values`, views];
an operation that NumPy refuses has `null` for its result's shape. Equal seeds give equal files.
"""

import json
import struct
import warnings

import numpy as np
import torch

rng = np.random.default_rng(158)
N_VALUES = 2048
values = rng.normal(size=N_VALUES).astype(np.float32)
# Equal neighbours and infinities, for comparisons and extremes; NaN stands in a part of its own.
values[1::7] = np.round(values[1::7])
values[2::7] = values[1::7][: len(values[2::7])]
values[1500:1502] = [np.inf, -np.inf]
values[1600::40] = np.nan

cases, results = [], []


def operand(shape, special=False):
    n = int(np.prod(shape))
    start = int(rng.integers(1400, N_VALUES - n) if special else rng.integers(0, 1500 - n))
    return [list(shape), start, []], values[start : start + n].reshape(shape)


def record(case, compute):
    try:
        with np.errstate(all="ignore"):
            result = compute()
    except (ValueError, IndexError, np.exceptions.AxisError):
        cases.append({**case, "shape": None})
        return
    result = np.asarray(result)
    cases.append({**case, "shape": list(result.shape)})
    results.extend(result.astype(np.float32).ravel().tolist())


def random_shape(max_dims=4, max_extent=5, zeros=True):
    shape = rng.integers(1, max_extent + 1, size=rng.integers(0, max_dims + 1))
    if zeros and rng.random() < 0.04 and len(shape):
        shape[rng.integers(len(shape))] = 0
    return tuple(int(n) for n in shape)


def broadcastable(shape):
    other = [1 if rng.random() < 0.35 else n for n in shape]
    return tuple(other[rng.integers(len(other) + 1) if rng.random() < 0.4 else 0 :])


def random_index(extent):
    kind = rng.integers(4)
    near = lambda: int(rng.integers(-extent - 3, extent + 4))
    if kind == 0:
        return {"full": True}, slice(None)
    if kind == 1:
        i = near() if rng.random() < 0.15 else int(rng.integers(-extent, extent)) if extent else 0
        return {"index": i}, i
    if kind == 2:
        start, end = near(), near()
        return {"range": [start, end]}, slice(start, end)
    start, end = (None if rng.random() < 0.3 else near() for _ in range(2))
    step = int(rng.choice([-3, -2, -1, 1, 2, 3]))
    return {"step": [start, end, step]}, slice(start, end, step)


def view(spec, array):
    """The operand under a chain of views."""
    for _ in range(rng.integers(0, 3)):
        kind = rng.integers(3)
        if kind == 0:
            axes = [int(a) for a in rng.permutation(array.ndim)]
            spec[2].append({"permute": axes})
            array = array.transpose(axes)
        elif kind == 1:
            pairs = [random_index(n) for n in array.shape[: rng.integers(array.ndim + 1)]]
            try:
                array = array[tuple(index for _, index in pairs)]
            except IndexError:
                continue
            spec[2].append({"slice": [json_index for json_index, _ in pairs]})
        else:
            shape = tuple(int(n) for n in rng.integers(1, 3, size=rng.integers(2))) + tuple(
                int(rng.integers(1, 4)) if n == 1 else n for n in array.shape
            )
            spec[2].append({"broadcast": list(shape)})
            array = np.broadcast_to(array, shape)
    return spec, array


ARITHMETIC = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "min": np.minimum, "max": np.maximum,
}
COMPARISONS = {
    "less": np.less, "less_equal": np.less_equal, "greater": np.greater, "greater_equal": np.greater_equal,
    "equal": np.equal, "not_equal": np.not_equal,
}
for i in range(1000):
    name, f = list({**ARITHMETIC, **COMPARISONS}.items())[i % 12]
    shape = random_shape()
    first, second = broadcastable(shape), shape if rng.random() < 0.5 else broadcastable(shape)
    if rng.random() < 0.1:
        second = random_shape()
    special = rng.random() < 0.3
    (a, x), (b, y) = view(*operand(first, special)), operand(second, special)
    if rng.random() < 0.5:
        a, x, b, y = b, y, a, x
    record({"op": name, "a": a, "b": b}, lambda: f(x, y))

for _ in range(800):
    a, x = view(*operand(random_shape()))
    pairs = [random_index(n) for n in x.shape[: rng.integers(x.ndim + 1)]]
    record({"op": "slice", "a": a, "indices": [j for j, _ in pairs]}, lambda: x[tuple(i for _, i in pairs)])

for _ in range(250):
    a, x = view(*operand(random_shape()))
    n = x.size
    shape = [int(d) for d in rng.permutation([d for d in x.shape] + [1] * int(rng.integers(2)))]
    if rng.random() < 0.4:
        shape = [n]
    elif rng.random() < 0.2 and n % 2 == 0:
        shape = [2, n // 2]
    elif rng.random() < 0.1:
        shape = [n + 1]
    record({"op": "reshape", "a": a, "to": shape}, lambda: np.ascontiguousarray(x).reshape(shape))

REDUCTIONS = {
    "sum": np.sum, "mean": np.mean, "min": np.min, "max": np.max, "var": np.var, "std": np.std, "norm": None,
}
for i in range(700):
    name, f = list(REDUCTIONS.items())[i % 7]
    a, x = view(*operand(random_shape(), special=rng.random() < 0.1))
    n_axes = int(rng.integers(0, x.ndim + 1))
    axes = [int(d) - (x.ndim if rng.random() < 0.3 else 0) for d in rng.permutation(x.ndim)[:n_axes]]
    if rng.random() < 0.04:
        axes.append(x.ndim)
    keepdims = bool(rng.integers(2))
    ddof = int(rng.integers(2)) if name in ("var", "std") else 0
    axis = tuple(axes) if axes else None
    x = x.astype(np.float64)
    if name == "norm":
        compute = lambda: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims))
    elif name in ("var", "std"):
        compute = lambda: f(x, axis=axis, keepdims=keepdims, ddof=ddof)
    else:
        compute = lambda: f(x, axis=axis, keepdims=keepdims)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record({"op": name, "a": a, "axes": axes, "keepdims": keepdims, "ddof": ddof}, compute)

for i in range(200):
    name, f = [("argmin", np.argmin), ("argmax", np.argmax)][i % 2]
    a, x = view(*operand(random_shape(), special=rng.random() < 0.2))
    axis = int(rng.integers(-x.ndim, x.ndim)) if x.ndim and rng.random() < 0.7 else None
    record({"op": name, "a": a, "axis": axis}, lambda: f(x, axis=axis))

for _ in range(150):
    shape = random_shape(zeros=False) or (3,)
    axis = int(rng.integers(-len(shape), len(shape)))
    parts = []
    for _ in range(rng.integers(1, 4)):
        extents = list(shape)
        extents[axis] = int(rng.integers(0, 4))
        if rng.random() < 0.03:
            extents.append(2)
        parts.append(operand(tuple(extents)))
    record(
        {"op": "concatenate", "parts": [spec for spec, _ in parts], "axis": axis},
        lambda: np.concatenate([x for _, x in parts], axis=axis),
    )

n_numpy = len(cases)
F = torch.nn.functional
ACTIVATIONS = {
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
}
points = torch.tensor(
    np.concatenate([np.linspace(-12, 12, 193), [1e-6, -1e-6, 0.0, 30.0, -30.0, 90.0, -90.0]]).astype(np.float32)
)
for name, f in ACTIVATIONS.items():
    # In double precision: what is compared is the function, not PyTorch's rounding.
    x = points.double().requires_grad_()
    y = f(x)
    y.sum().backward()
    for kind, result in (("value", y.detach()), ("derivative", x.grad)):
        cases.append({"op": "activation", "name": name, "kind": kind, "shape": [len(points)]})
        results.extend(result.float().tolist())
for _ in range(60):
    shape = random_shape(zeros=False) or (4,)
    (a, x), (g, grad) = operand(shape), operand(shape)
    axis = int(rng.integers(-len(shape), len(shape)))
    x = torch.tensor(x).double().requires_grad_()
    y = torch.softmax(x, dim=axis)
    y.backward(torch.tensor(grad).double())
    for kind, result in (("value", y.detach()), ("derivative", x.grad)):
        cases.append({"op": "softmax", "kind": kind, "a": a, "gradient": g, "axis": axis, "shape": list(shape)})
        results.extend(result.float().flatten().tolist())


def write(path, tensors):
    header, data = {"__metadata__": {"numpy": np.__version__, "torch": torch.__version__}}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


numbers = np.array(results, dtype="<f4")
write(
    "tensor_cases.safetensors",
    {
        "values": ("F32", [N_VALUES], values.astype("<f4").tobytes()),
        "points": ("F32", [len(points)], points.numpy().astype("<f4").tobytes()),
        "results": ("F32", [len(numbers)], numbers.tobytes()),
        "cases": ("U8", [len(text := json.dumps(cases, separators=(",", ":")).encode())], text),
    },
)
print(f"{n_numpy} cases of NumPy {np.__version__}, {len(cases) - n_numpy} of PyTorch {torch.__version__}")
