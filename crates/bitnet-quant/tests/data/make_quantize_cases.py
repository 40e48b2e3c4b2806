"""Writes quantize_cases.txt: what the formulas of quantisers give in NumPy, and what PyTorch's autograd gives for BitLinear.

    pip install numpy torch && python3 make_quantize_cases.py

A line is a case: its kind and settings, then lists, all separated by bars. Floats are the bits of float32 in hexadecimal,
so that nothing is rounded on the way; integers are decimal, and float64 (metrics) as Python prints them. Equal seeds give
equal files.
"""

import numpy as np
import torch

f32 = np.float32
rng = np.random.default_rng(158)
lines = []


def bits(x):
    return " ".join(f"{b:x}" for b in np.asarray(x, dtype=f32).ravel().view(np.uint32))


def ints(x):
    return " ".join(str(int(i)) for i in np.asarray(x).ravel())


def case(head, *lists):
    lines.append("|".join([" ".join(str(word) for word in head), *lists]))


def limits(n_bits, symmetric):
    high = 2 ** (n_bits - 1) - 1
    return (-high if symmetric else -high - 1), high


def integer_params(low, high, n_bits, symmetric):
    least, most = limits(n_bits, symmetric)
    low, high = min(f32(low), f32(0)), max(f32(high), f32(0))
    if symmetric:
        scale = f32(max(high, -low) / f32(most))
    else:
        scale = f32(f32(high - low) / f32(most - least))
    if scale < np.finfo(f32).tiny:
        scale = f32(1)
    zero_point = 0 if symmetric else int(np.clip(np.rint(f32(least) - f32(low / scale)), least, most))
    return scale, zero_point


def integer(x, n_bits, symmetric, segment):
    least, most = limits(n_bits, symmetric)
    scales, zero_points, codes, restored = [], [], [], []
    for part in np.split(x, len(x) // segment):
        scale, zero_point = integer_params(part.min(), part.max(), n_bits, symmetric)
        code = np.clip(np.rint(part / scale) + f32(zero_point), least, most)
        scales.append(scale)
        zero_points.append(zero_point)
        codes.extend(code)
        restored.extend((code - f32(zero_point)).astype(f32) * scale)
    return scales, zero_points, codes, restored


def weights(n):
    kind = rng.integers(4)
    x = rng.standard_t(4, size=n) if kind else rng.uniform(0.1, 1, size=n)
    x = x * 10.0 ** rng.integers(-6, 4)
    if kind == 2:
        x = np.round(x * 8) / 8  # Halves and other ties.
    return x.astype(f32)


for n_bits in (8, 4):
    for symmetric in (True, False):
        for name, segment in (("tensor", 96), ("channel", 24), ("group", 8)):
            for _ in range(6):
                x = weights(96)
                if rng.random() < 0.2:
                    x[: segment if segment < 96 else 5] = 0
                scales, zero_points, codes, restored = integer(x, n_bits, symmetric, segment)
                head = ("integer", n_bits, int(symmetric), name, 24, 8)
                case(head, bits(x), bits(scales), ints(zero_points), ints(codes), bits(restored))

for _ in range(12):
    w = weights(160)
    mean = f32(np.abs(w.astype(np.float64)).sum() / w.size)
    s = f32(f32(1) / max(mean, f32(1e-5)))
    case(("absmean",), bits(w), bits([f32(1) / s]), ints(np.clip(np.rint(w * s), -1, 1) + 1))
    factor = f32(f32(127) / max(np.abs(w).max(), f32(1e-5)))
    case(("absmax",), bits(w), bits([factor]), ints(np.clip(np.rint(w * factor), -128, 127)))
    with np.errstate(over="ignore"):
        case(("fp16",), bits(w * 50), bits((w * f32(50)).astype(np.float16)))
    share = float(rng.integers(0, 100) / 100)
    pruned = w.copy()
    pruned[np.argsort(np.abs(w), kind="stable")[: int(np.ceil(share * w.size))]] = 0
    case(("prune", share), bits(w), bits(pruned))
    y = (np.clip(np.rint(w * s), -1, 1) / s).astype(f32)
    x64, y64 = w.astype(np.float64), y.astype(np.float64)
    total = lambda values: np.cumsum(values)[-1]
    if y.any():
        noise, signal = total((x64 - y64) ** 2), total(x64**2)
        cosine = total(x64 * y64) / (np.sqrt(signal) * np.sqrt(total(y64**2)))
        errors = [noise / w.size, 10 * np.log10(signal / noise), cosine]
        case(("metrics",), bits(w), bits(y), " ".join(repr(float(error)) for error in errors))

BINS = 2048


def histogram(x):
    width = 2.0 ** (np.floor(np.log2(np.abs(x.astype(np.float64)).max())) + 1) / BINS
    counts = np.bincount((np.abs(x.astype(np.float64)) / width).astype(int), minlength=BINS)
    return counts[: np.nonzero(counts)[0][-1] + 1], width


def squared_error(counts, i, most):
    step = i / most
    x = np.arange(len(counts)) + 0.5
    y = np.minimum(np.rint(x / step), most) * step
    return np.cumsum(counts * ((x - y) * (x - y)))[-1]


def divergence(counts, i, levels):
    p = counts[:i].astype(np.float64)
    p[-1] += counts[i:].sum()
    kept, n, terms = counts[:i].sum(), p.sum(), [0.0]
    for level in range(levels):
        begin, end = level * i // levels, (level + 1) * i // levels
        filled = np.nonzero(p[begin:end])[0] + begin
        total = counts[begin:end].sum()
        for b in filled:
            if total == 0:
                return np.inf
            p_b, q_b = p[b] / n, total / len(filled) / kept
            terms.append(p_b * np.log(p_b / q_b))
    return np.cumsum(terms)[-1]


def calibrated(x, method, share, n_bits, symmetric):
    counts, width = histogram(x)
    levels, end = 2 ** (n_bits - 1), len(counts)
    candidates = range(min(levels, end), end + 1)
    if method == "percentile":
        n_bins = int(np.argmax(np.cumsum(counts) >= share * counts.sum())) + 1
    elif method == "histogram":
        costs = [squared_error(counts, i, limits(n_bits, symmetric)[1]) for i in candidates]
        n_bins = candidates[int(np.argmin(costs))]
    elif method == "entropy":
        n_bins = candidates[int(np.argmin([divergence(counts, i, levels) for i in candidates]))]
    threshold = f32(n_bins * width) if method != "minmax" else f32(np.inf)
    return max(x.min(), -threshold), min(x.max(), threshold)


for kind in range(3):
    x = (rng.standard_t(3, size=1500) * 0.7 if kind < 2 else np.abs(rng.normal(size=1500)) * 40).astype(f32)
    if kind == 1:
        x[7] = 300  # Far from all others.
    case(("values",), bits(x))
    for n_bits in (8, 4):
        for symmetric in (True, False):
            for method, share in (("minmax", 0), ("percentile", 0.99), ("percentile", 0.9), ("histogram", 0), ("entropy", 0)):
                low, high = calibrated(x, method, share, n_bits, symmetric)
                scale, zero_point = integer_params(low, high, n_bits, symmetric)
                case(("calibration", method, share, n_bits, int(symmetric)), bits([low, high, scale]), ints([zero_point]))


class Quantized(torch.nn.Module):
    """A BitLinear layer as its authors train it: quantisers with the straight-through estimator."""

    def forward(self, x, w):
        a = 127.0 / x.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-5)
        x = x + ((x * a).round().clamp_(-128, 127) / a - x).detach()
        s = 1.0 / w.abs().double().mean().float().clamp_(min=1e-5)
        w = w + ((w * s).round().clamp_(-1, 1) / s - w).detach()
        return torch.nn.functional.linear(x, w)


torch.set_num_threads(1)
for n, rows, cols in ((1, 8, 24), (3, 20, 40), (5, 33, 130)):
    w = torch.tensor(rng.normal(size=(rows, cols)).astype(f32) * 0.05, requires_grad=True)
    x = torch.tensor(rng.normal(size=(n, cols)).astype(f32), requires_grad=True)
    g = torch.tensor(rng.normal(size=(n, rows)).astype(f32))
    y = Quantized()(x, w)
    y.backward(g)
    tensors = [w, x, g, y, x.grad, w.grad]
    case(("bitlinear", n, rows, cols), *[bits(t.detach().numpy()) for t in tensors])

with open("quantize_cases.txt", "w", encoding="utf-8") as file:
    file.write("\n".join(lines) + "\n")
