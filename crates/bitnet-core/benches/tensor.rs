//! What tensors cost beyond the kernels and the library below them: `cargo bench -p bitnet-core --bench tensor --features
//! linalg` prints divan's times, then element-wise operations beside what memory gives one thread, beside a loop without vector
//! instructions and beside the oracle, broadcasting beside an operand that is repeated in memory first, which operations that
//! rearrange tensors copy nothing, and matrix products beside `faer`.
//! `-- --test` runs everything once.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::arch::asm;
use std::hint::black_box;
use std::time::Instant;

use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::tensor::TensorIndex;
use bitnet_core::{BitNetDType, BitNetTensor, Device};
use bitnet_quant::kernels::{Arithmetic, Kernels, Operand};
use bitnet_quant::limits::{ReadPattern, read_gb_s};
use bitnet_quant::threads::Threads;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use faer::linalg::matmul::matmul as faer_matmul;
use faer::{Accum, Mat, Par};

const ROWS: usize = 1024;
const COLS: usize = 1024;
/// Rows and columns of the matrices.
const N: [usize; 3] = [128, 512, 1024];
/// Elements of which three arrays fit the nearest cache, the second, and none.
const LENGTHS: [(&str, usize); 3] =
    [("nearest cache", 2 << 10), ("second cache", 32 << 10), ("memory", 12 << 20)];

fn main() {
    divan::main();
    print_elementwise();
    print_broadcasting();
    print_rearranging();
    print_products();
}

fn is_smoke() -> bool {
    std::env::args().any(|arg| arg == "--test")
}

fn random(shape: &[usize], pool: &HybridMemoryPool) -> BitNetTensor {
    BitNetTensor::random(shape, BitNetDType::F32, &Device::Cpu, 1, pool).unwrap()
}

/// Seconds of the fastest of several calls of each, in turns, so that both meet the same disturbances.
fn fastest<const K: usize>(mut calls: [&mut dyn FnMut(); K]) -> [f64; K] {
    let mut best = [f64::INFINITY; K];
    for _ in 0..if is_smoke() { 1 } else { 40 } {
        for (call, best) in calls.iter_mut().zip(&mut best) {
            let started = Instant::now();
            call();
            *best = best.min(started.elapsed().as_secs_f64());
        }
    }
    best
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

/// One element after the other: an empty piece of assembly takes each result in a register and cannot be vectorised.
fn unvectorised(a: &[f32], b: &[f32], out: &mut [f32], op: impl Fn(f32, f32) -> f32) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        let mut x = op(*a, *b);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: it has no instruction.
        unsafe {
            asm!("/* {0} */", inout(xmm_reg) x, options(nomem, nostack, preserves_flags))
        };
        #[cfg(target_arch = "aarch64")]
        // SAFETY: it has no instruction.
        unsafe {
            asm!("/* {0:s} */", inout(vreg) x, options(nomem, nostack, preserves_flags))
        };
        *out = x;
    }
}

fn print_elementwise() {
    let (longest, read_bytes) = if is_smoke() { (2 << 10, 4 << 20) } else { (LENGTHS[2].1, 256 << 20) };
    println!(
        "\nelement-wise, f32, one thread        GB/s   of the limit   loop without vectors/this   seeds   oracle/this"
    );
    for (place, n) in LENGTHS {
        let n = n.min(longest);
        let pool = HybridMemoryPool::new().unwrap();
        let (a, b) = (random(&[n], &pool), random(&[n], &pool));
        let (mut c, mut sums, mut plain_sums) = (random(&[n], &pool), vec![0.0; n], vec![0.0; n]);
        let repeated = |f: &mut dyn FnMut()| (0..longest / n).for_each(|_| f());
        let (x, y) = (a.as_slice::<f32>(), b.as_slice::<f32>());
        let mut kernel_sums = vec![0.0; n];
        let mut oracle_sums = vec![0.0; n];
        let (first, second) = (Operand::Elements(x), Operand::Elements(y));
        let oracle = Kernels::available()[0];
        let [bare, plain, oracle, kernel, add, mul, in_place] = fastest([
            &mut || {
                repeated(&mut || {
                    let terms = black_box(x).iter().zip(black_box(y));
                    sums.iter_mut().zip(terms).for_each(|(sum, (x, y))| *sum = x + y);
                    black_box(&sums);
                });
            },
            &mut || repeated(&mut || unvectorised(black_box(x), black_box(y), &mut plain_sums, |a, b| a + b)),
            &mut || {
                repeated(&mut || {
                    oracle.arithmetic(
                        Arithmetic::Add,
                        black_box(first),
                        black_box(second),
                        black_box(&mut oracle_sums),
                    )
                });
            },
            &mut || {
                repeated(&mut || {
                    Kernels::best().arithmetic(
                        Arithmetic::Add,
                        black_box(first),
                        black_box(second),
                        black_box(&mut kernel_sums),
                    )
                });
            },
            &mut || repeated(&mut || drop(black_box(a.add(black_box(&b), &pool).unwrap()))),
            &mut || repeated(&mut || drop(black_box(a.mul(black_box(&b), &pool).unwrap()))),
            &mut || repeated(&mut || c.add_assign(black_box(&b), &pool).unwrap()),
        ]);
        let rate = |seconds: f64| (longest / n * 3 * 4 * n) as f64 / seconds / 1e9;
        // What memory gives to reading alone, or to a plain loop over the same three streams.
        let limit = (place == LENGTHS[2].0)
            .then(|| read_gb_s(&Threads::new(1), read_bytes, &ReadPattern::ALL).max(rate(bare)));
        for (name, seconds, seeds) in [
            ("kernel of add", kernel, "7.9"),
            ("add", add, "7.9"),
            ("mul", mul, "9.0"),
            ("add in place", in_place, "-"),
        ] {
            let share = limit
                .map_or("-".into(), |limit| format!("{:.0} % of {limit:.1}", 100.0 * rate(seconds) / limit));
            let ratio = plain / seconds;
            println!(
                "{:<32} {:>8.1} {share:>14} {ratio:>29.1}   {seeds:<5} {:>13.1}",
                format!("{name}, {place}"),
                rate(seconds),
                oracle / seconds
            );
        }
    }
}

fn print_broadcasting() {
    println!("\nbroadcasting a row to f32 ({ROWS}, {COLS})     µs   repeated first, µs      gain   seeds");
    let pool = HybridMemoryPool::new().unwrap();
    let (a, row) = (random(&[ROWS, COLS], &pool), random(&[COLS], &pool));
    let [shared, copied] =
        fastest([&mut || drop(black_box(a.add(black_box(&row), &pool).unwrap())), &mut || {
            let rows = black_box(&row).broadcast_to(&[ROWS, COLS]).unwrap().copy(&pool).unwrap();
            drop(black_box(a.add(&rows, &pool).unwrap()));
        }]);
    let gain = 100.0 * (copied / shared - 1.0);
    println!("{:<40} {:>6.0} {:>20.0} {gain:>7.0} %   997 %", "sum", 1e6 * shared, 1e6 * copied);
}

fn print_rearranging() {
    println!("\nrearranging f32 ({ROWS}, {COLS})             ns   copies");
    let pool = HybridMemoryPool::new().unwrap();
    let (a, row) = (random(&[ROWS, COLS], &pool), random(&[COLS], &pool));
    let across = a.transpose().unwrap();
    type Rearrange<'a> = &'a dyn Fn() -> BitNetTensor;
    let operations: [(&str, &BitNetTensor, Rearrange<'_>); 8] = [
        ("slice of rows", &a, &|| a.slice(&[TensorIndex::Range(1..9)]).unwrap()),
        ("slice of columns", &a, &|| a.slice(&[TensorIndex::Full, TensorIndex::Range(1..9)]).unwrap()),
        ("permute", &a, &|| a.permute(&[1, 0]).unwrap()),
        ("transpose", &a, &|| a.transpose().unwrap()),
        ("broadcast", &row, &|| row.broadcast_to(&[ROWS, COLS]).unwrap()),
        ("reshape", &a, &|| a.reshape(&[ROWS * COLS], &pool).unwrap()),
        ("reshape of a transpose", &across, &|| across.reshape(&[ROWS * COLS], &pool).unwrap()),
        ("concatenate", &a, &|| BitNetTensor::concatenate(&[&a, &a], 0, &pool).unwrap()),
    ];
    let mut n_views = 0;
    for (name, operand, rearrange) in operations {
        let [seconds] = fastest([&mut || drop(black_box(rearrange()))]);
        let start = operand.as_ptr().addr();
        let is_view = (start..start + 4 * ROWS * COLS).contains(&rearrange().as_ptr().addr());
        n_views += usize::from(is_view);
        println!("{name:<32} {:>10.0}   {}", 1e9 * seconds, if is_view { "-" } else { "all elements" });
    }
    let share = 100 * n_views / operations.len();
    println!(
        "{share} % of these kinds of operation copy nothing (seeds: 78 %, of which operations they do not say)"
    );
}

fn print_products() {
    println!("\nproducts of f32, one thread      tensor GFLOP/s    faer GFLOP/s   tensor/faer");
    for n in N {
        let pool = HybridMemoryPool::new().unwrap();
        let (a, b) = (random(&[n, n], &pool), random(&[n, n], &pool));
        let matrix = Mat::from_fn(n, n, |i, j| (i + j) as f32);
        let (other, mut out) = (matrix.clone(), Mat::zeros(n, n));
        let [ours, theirs] =
            fastest([&mut || drop(black_box(a.matmul(black_box(&b), &pool).unwrap())), &mut || {
                faer_matmul(
                    out.as_mut(),
                    Accum::Replace,
                    black_box(&matrix),
                    black_box(&other),
                    1.0,
                    Par::Seq,
                );
            }]);
        let rate = |seconds: f64| 2.0 * (n * n * n) as f64 / seconds / 1e9;
        println!(
            "{:<28} {:>18.1} {:>15.1} {:>13.2}",
            format!("({n}, {n}) · ({n}, {n})"),
            rate(ours),
            rate(theirs),
            theirs / ours
        );
    }
}
