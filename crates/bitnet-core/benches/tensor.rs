//! What tensors cost beyond the kernels and the library below them: `cargo bench -p bitnet-core --features linalg`.
//!
//! Broadcasting is beside the same sum with the operand repeated in memory first, matrix products beside `faer` itself.
//! The arithmetic kernels are measured with those of `bitnet-quant`.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;

use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::{BitNetDType, BitNetTensor, Device};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use faer::linalg::matmul::matmul as faer_matmul;
use faer::{Accum, Mat, Par};

const ROWS: usize = 1024;
const COLS: usize = 1024;
/// Rows and columns of the matrices.
const N: [usize; 2] = [128, 512];

fn main() {
    divan::main();
}

fn random(shape: &[usize], pool: &HybridMemoryPool) -> BitNetTensor {
    BitNetTensor::random(shape, BitNetDType::F32, &Device::Cpu, 1, pool).unwrap()
}

#[divan::bench]
fn broadcast_add(bencher: Bencher<'_, '_>) {
    let pool = HybridMemoryPool::new().unwrap();
    let (a, row) = (random(&[ROWS, COLS], &pool), random(&[COLS], &pool));
    bencher
        .counter(BytesCount::new(2 * 4 * ROWS * COLS))
        .bench_local(|| a.add(black_box(&row), &pool).unwrap());
}

#[divan::bench]
fn broadcast_add_of_a_copy(bencher: Bencher<'_, '_>) {
    let pool = HybridMemoryPool::new().unwrap();
    let (a, row) = (random(&[ROWS, COLS], &pool), random(&[COLS], &pool));
    bencher.counter(BytesCount::new(2 * 4 * ROWS * COLS)).bench_local(|| {
        let rows = row.broadcast_to(&[ROWS, COLS]).unwrap().copy(&pool).unwrap();
        a.add(black_box(&rows), &pool).unwrap()
    });
}

#[divan::bench(args = N)]
fn matmul(bencher: Bencher<'_, '_>, n: usize) {
    let pool = HybridMemoryPool::new().unwrap();
    let (a, b) = (random(&[n, n], &pool), random(&[n, n], &pool));
    bencher.counter(ItemsCount::new(2 * n * n * n)).bench_local(|| a.matmul(black_box(&b), &pool).unwrap());
}

#[divan::bench(args = N)]
fn matmul_of_faer(bencher: Bencher<'_, '_>, n: usize) {
    let a = Mat::from_fn(n, n, |i, j| (i + j) as f32);
    let (b, mut out) = (a.clone(), Mat::zeros(n, n));
    bencher.counter(ItemsCount::new(2 * n * n * n)).bench_local(|| {
        faer_matmul(out.as_mut(), Accum::Replace, black_box(&a), black_box(&b), 1.0, Par::Seq);
    });
}
