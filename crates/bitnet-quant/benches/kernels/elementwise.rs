//! Arithmetic of tensors: on data in the nearest cache, beside the oracle and its loop without vector instructions, and
//! from memory to memory, beside what memory gives one thread.

use std::arch::asm;
use std::hint::black_box;

use bitnet_quant::kernels::{Arithmetic, Operand};
use bitnet_quant::threads::Threads;
use divan::Bencher;

use crate::limits::Limit;
use crate::measure::{Case, UNVECTORISED, is_smoke, measure, measure_as};
use crate::products::activations;

/// Three arrays of this length fit the nearest cache.
const LEN: usize = 1024;
const CALLS: usize = 256;
/// Three arrays of this length fit no cache.
const LONG: usize = 32 << 20;
const SMOKE_LONG: usize = 2 << 20;

fn cached(bencher: Bencher<'_, '_>, name: &'static str, case: &Case, op: Arithmetic) {
    let (a, b, mut out) = (activations(LEN), vec![1.5; LEN], vec![0.0; LEN]);
    measure(bencher, name, case, Limit::Cache, CALLS * 3 * 4 * LEN, || {
        for _ in 0..CALLS {
            let (a, b) = (Operand::Elements(black_box(&a)), Operand::Elements(black_box(&b)));
            case.kernels.arithmetic(op, a, b, black_box(&mut out));
        }
    });
}

/// One element after the other: an empty piece of assembly takes each result in a register and cannot be vectorised.
fn unvectorised(bencher: Bencher<'_, '_>, name: &'static str, op: fn(f32, f32) -> f32) {
    let (a, b, mut out) = (activations(LEN), vec![1.5; LEN], vec![0.0; LEN]);
    measure_as(bencher, name, UNVECTORISED, &Threads::new(1), Limit::Cache, CALLS * 3 * 4 * LEN, || {
        for _ in 0..CALLS {
            let (a, b, out) = (black_box(&a), black_box(&b), black_box(&mut out));
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                *out = in_register(op(*a, *b));
            }
        }
    });
}

#[inline(always)]
fn in_register(x: f32) -> f32 {
    let mut x = x;
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
    x
}

#[divan::bench(args = Case::one_thread())]
fn tensor_add(bencher: Bencher<'_, '_>, case: &Case) {
    cached(bencher, "tensor_add", case, Arithmetic::Add);
}

#[divan::bench]
fn tensor_add_unvectorised(bencher: Bencher<'_, '_>) {
    unvectorised(bencher, "tensor_add", |a, b| a + b);
}

#[divan::bench(args = Case::one_thread())]
fn tensor_mul(bencher: Bencher<'_, '_>, case: &Case) {
    cached(bencher, "tensor_mul", case, Arithmetic::Mul);
}

#[divan::bench]
fn tensor_mul_unvectorised(bencher: Bencher<'_, '_>) {
    unvectorised(bencher, "tensor_mul", |a, b| a * b);
}

/// From memory to memory. Bytes are those of the operands and of the result, each once.
#[divan::bench(args = Case::one_thread())]
fn tensor_add_long(bencher: Bencher<'_, '_>, case: &Case) {
    let n = if is_smoke() { SMOKE_LONG } else { LONG };
    let (a, b, mut out) = (activations(n), vec![1.5; n], vec![0.0; n]);
    // Slices of a pass are as short as those of the limit, so that both meet the same pauses.
    let window = SMOKE_LONG;
    let mut at = 0;
    measure(bencher, "tensor_add_long", case, Limit::Memory, 3 * 4 * window, || {
        let range = at..at + window;
        at = (at + window) % n;
        let (a, b) = (Operand::Elements(&a[range.clone()]), Operand::Elements(&b[range.clone()]));
        case.kernels.arithmetic(Arithmetic::Add, a, b, black_box(&mut out[range]));
    });
}
