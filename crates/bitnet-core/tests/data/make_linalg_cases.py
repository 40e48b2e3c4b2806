"""Writes linalg_cases.safetensors: what NumPy computes in double precision from matrices in single precision.

    pip install numpy safetensors && python3 make_linalg_cases.py

Each case is a matrix `SHAPE.a` and what follows from it, all rounded to single precision; apart from make_tensor_cases.py
because PyTorch has no part in it. Singular values are spread evenly from 1 to `CONDITION`, so that rounding is not made
larger by more than that on the way to any result. Equal seeds give equal files.
"""

import numpy as np
from safetensors.numpy import save_file

CONDITION = 4
SHAPES = [(1, 1), (2, 2), (1, 7), (5, 3), (3, 5), (17, 24), (24, 17), (33, 33), (64, 40)]

rng = np.random.default_rng(159)
tensors = {}


def single(array):
    return np.ascontiguousarray(array, dtype="<f4")


def orthonormal(rows, cols):
    return np.linalg.qr(rng.normal(size=(rows, cols)))[0]


for m, n in SHAPES:
    r = min(m, n)
    spread = np.linspace(1, CONDITION, r)
    # (m, n), (m, m) symmetric with eigenvalues that are positive, (m, m) regular, and right sides
    q = orthonormal(m, m)
    operands = {
        "a": (orthonormal(m, r) * spread) @ orthonormal(n, r).T,
        "definite": (q * np.linspace(1, CONDITION, m)) @ q.T,
        "regular": (orthonormal(m, m) * np.linspace(1, CONDITION, m)) @ orthonormal(m, m).T,
        "b": rng.normal(size=(m, 3)),
        "batch": rng.normal(size=(2, 1, n, 3)),
        "row": rng.normal(size=n),
    }
    operands = {name: single(array) for name, array in operands.items()}
    a, definite, regular, b, batch, row = (array.astype(np.float64) for array in operands.values())
    results = {
        "matmul": a @ batch,
        "dot": np.array([a[0] @ row]),
        "outer": np.outer(a[0], row),
        "solve": np.linalg.solve(regular, b),
        "cholesky": np.linalg.cholesky(np.tril(definite) + np.tril(definite, -1).T),
        "singular_values": np.linalg.svd(a, compute_uv=False),
        # Signs are anybody's choice.
        "abs_r": np.abs(np.linalg.qr(a)[1]),
    }
    for name, array in {**operands, **results}.items():
        tensors[f"{m}x{n}.{name}"] = single(array)

save_file(tensors, "linalg_cases.safetensors", metadata={"numpy": np.__version__})
print(f"{len(SHAPES)} matrices, {len(tensors)} tensors of NumPy {np.__version__}")
