//! Single kernels on one thread and on data in the nearest cache: what an instruction set gains over the oracle.
//!
//! A pass calls a kernel many times, because one call is shorter than a clock can tell. Bytes are those that are read
//! and written, each once.

use std::arch::asm;
use std::hint::black_box;

use bitnet_quant::kernels::{Activation, DenseRow, KvRows, PartialAttention};
use bitnet_quant::layout::{code, row_bytes};
use divan::Bencher;

use crate::limits::Limit;
use crate::measure::{Case, UNVECTORISED, measure, measure_as};
use crate::products::{COLS, activations};
use crate::streams::memory;

/// Calls of a pass.
const CALLS: usize = 32;
/// Rows of the ternary products: 10 KiB.
const DOT_ROWS: usize = 16;
const DOT: &str = "dot_i2_i8";
const HEAD_DIM: usize = 128;
/// Positions of the attention: K and V of 16 KiB in half precision.
const POSITIONS: usize = 32;

/// The ternary dot product: rows with the codes of one token.
#[divan::bench(args = Case::one_thread())]
fn dot_i2_i8(bencher: Bencher<'_, '_>, case: &Case) {
    let (w, x, mut out) = dot_operands();
    measure(bencher, DOT, case, Limit::Int8, CALLS * 2 * DOT_ROWS * COLS, || {
        for _ in 0..CALLS {
            case.kernels.gemm_i2_i8(black_box(w), row_bytes(COLS), black_box(&x), 1, black_box(&mut out));
        }
    });
}

/// The loop of the oracle as the compiler would write it without vector instructions. An empty piece of assembly
/// takes the sum in a general register at each step; it costs no instruction and cannot be vectorised.
#[divan::bench]
#[expect(asm_sub_register, reason = "which part of the register is named in a comment is all the same")]
fn dot_i2_i8_unvectorised(bencher: Bencher<'_, '_>) {
    let (w, x, mut out) = dot_operands();
    let threads = bitnet_quant::threads::Threads::new(1);
    measure_as(bencher, DOT, UNVECTORISED, &threads, Limit::Int8, CALLS * 2 * DOT_ROWS * COLS, || {
        for _ in 0..CALLS {
            let (w, x, out) = (black_box(w), black_box(&x), black_box(&mut out));
            for (out, w) in out.iter_mut().zip(w.chunks_exact(row_bytes(COLS))) {
                *out = x.iter().enumerate().fold(0, |mut sum, (c, x)| {
                    sum += i32::from(code(w, c)) * i32::from(*x);
                    // SAFETY: it has no instruction.
                    unsafe { asm!("/* {0} */", inout(reg) sum, options(nomem, nostack, preserves_flags)) };
                    sum
                });
            }
        }
    });
    // The loop is worth its name as long as it computes the same.
    let mut want = out.clone();
    case_of_oracle().kernels.gemm_i2_i8(w, row_bytes(COLS), &x, 1, &mut want);
    assert_eq!(out, want);
}

fn case_of_oracle() -> Case {
    Case::one_thread().next().unwrap()
}

fn dot_operands() -> (&'static [u8], Vec<i8>, Vec<i32>) {
    let x = activations(COLS).iter().map(|x| *x as i8).collect();
    (&memory()[..DOT_ROWS * row_bytes(COLS)], x, vec![0; DOT_ROWS])
}

/// The same per 64 columns, for formats whose scales change within a row.
#[divan::bench(args = Case::one_thread())]
fn dot64_i2_i8(bencher: Bencher<'_, '_>, case: &Case) {
    let (w, x, _) = dot_operands();
    let (w, mut out) = (&w[..row_bytes(COLS)], vec![0; COLS / 64]);
    measure(bencher, "dot64_i2_i8", case, Limit::Int8, CALLS * 2 * COLS, || {
        for _ in 0..CALLS {
            case.kernels.dot64_i2_i8(black_box(w), black_box(&x), black_box(&mut out));
        }
    });
}

/// Calls of `kernel`, each of which reads and writes `bytes`.
fn calls(bencher: Bencher<'_, '_>, name: &'static str, case: &Case, bytes: usize, mut kernel: impl FnMut()) {
    measure(bencher, name, case, Limit::Cache, CALLS * bytes, || {
        for _ in 0..CALLS {
            kernel();
        }
    });
}

fn row_dot(bencher: Bencher<'_, '_>, name: &'static str, case: &Case, form: DenseRow) {
    let (w, x) = (&memory()[..form.row_bytes(COLS)], activations(COLS));
    calls(bencher, name, case, w.len() + 4 * COLS, || {
        black_box(case.kernels.row_dot(form, black_box(w), black_box(&x)));
    });
}

#[divan::bench(args = Case::one_thread())]
fn row_dot_f32(bencher: Bencher<'_, '_>, case: &Case) {
    row_dot(bencher, "row_dot_f32", case, DenseRow::F32);
}

#[divan::bench(args = Case::one_thread())]
fn row_dot_f16(bencher: Bencher<'_, '_>, case: &Case) {
    row_dot(bencher, "row_dot_f16", case, DenseRow::F16);
}

#[divan::bench(args = Case::one_thread())]
fn row_dot_bf16(bencher: Bencher<'_, '_>, case: &Case) {
    row_dot(bencher, "row_dot_bf16", case, DenseRow::BF16);
}

#[divan::bench(args = Case::one_thread())]
fn row_dot_q8_0(bencher: Bencher<'_, '_>, case: &Case) {
    row_dot(bencher, "row_dot_q8_0", case, DenseRow::Q8_0);
}

#[divan::bench(args = Case::one_thread())]
fn block_sum(bencher: Bencher<'_, '_>, case: &Case) {
    let (acc, d) = (vec![7; COLS / 64], vec![0.5; COLS / 64]);
    calls(bencher, "block_sum", case, 8 * acc.len(), || {
        black_box(case.kernels.block_sum(black_box(&acc), black_box(&d)));
    });
}

#[divan::bench(args = Case::one_thread())]
fn accumulate(bencher: Bencher<'_, '_>, case: &Case) {
    let (w, x) = (activations(256), activations(256));
    let mut lanes = vec![0.0; 256];
    calls(bencher, "accumulate", case, 4 * 4 * x.len(), || {
        case.kernels.accumulate(black_box(&mut lanes), black_box(&w), black_box(&x));
    });
}

#[divan::bench(args = Case::one_thread())]
fn rms_norm(bencher: Bencher<'_, '_>, case: &Case) {
    let (x, w, mut out) = (activations(COLS), activations(COLS), vec![0.0; COLS]);
    calls(bencher, "rms_norm", case, 4 * 4 * COLS, || {
        case.kernels.rms_norm(black_box(&x), &w, 1e-5, black_box(&mut out));
    });
}

#[divan::bench(args = Case::one_thread())]
fn absmax_bits(bencher: Bencher<'_, '_>, case: &Case) {
    let x = activations(COLS);
    calls(bencher, "absmax_bits", case, 4 * COLS, || {
        black_box(case.kernels.absmax_bits(black_box(&x)));
    });
}

#[divan::bench(args = Case::one_thread())]
fn quantize_i8(bencher: Bencher<'_, '_>, case: &Case) {
    let (x, mut out) = (activations(COLS), vec![0; COLS]);
    calls(bencher, "quantize_i8", case, 5 * COLS, || {
        black_box(case.kernels.quantize_i8(black_box(&x), 1.0, black_box(&mut out)));
    });
}

#[divan::bench(args = Case::one_thread())]
fn add(bencher: Bencher<'_, '_>, case: &Case) {
    let (y, mut h) = (vec![1e-6; COLS], activations(COLS));
    calls(bencher, "add", case, 3 * 4 * COLS, || {
        case.kernels.add(black_box(&mut h), black_box(&y));
    });
}

/// The values that are gated change from call to call, so they are written first: a copy is in the time.
fn gate(bencher: Bencher<'_, '_>, name: &'static str, case: &Case, f: Activation) {
    let (values, up) = (activations(COLS), vec![0.5; COLS]);
    let mut gate = values.clone();
    calls(bencher, name, case, 5 * 4 * COLS, || {
        gate.copy_from_slice(&values);
        case.kernels.gate(f, black_box(&mut gate), black_box(&up));
    });
}

#[divan::bench(args = Case::one_thread())]
fn gate_relu2(bencher: Bencher<'_, '_>, case: &Case) {
    gate(bencher, "gate_relu2", case, Activation::Relu2);
}

#[divan::bench(args = Case::one_thread())]
fn gate_silu(bencher: Bencher<'_, '_>, case: &Case) {
    gate(bencher, "gate_silu", case, Activation::Silu);
}

#[divan::bench(args = Case::one_thread())]
fn rotate(bencher: Bencher<'_, '_>, case: &Case) {
    let (mut x, cos, sin) = (activations(HEAD_DIM), vec![0.6; HEAD_DIM / 2], vec![0.8; HEAD_DIM / 2]);
    calls(bencher, "rotate", case, 3 * 4 * HEAD_DIM, || {
        case.kernels.rotate(black_box(&mut x), &cos, &sin, 1.0);
    });
}

fn attend(bencher: Bencher<'_, '_>, name: &'static str, case: &Case, kv: KvRows<'_>, bytes: usize) {
    let q: Vec<f32> = activations(HEAD_DIM).iter().map(|q| q * 1e-3).collect();
    let (mut weighted, mut max, mut sum) = (vec![0.0; HEAD_DIM], [0.0], [0.0]);
    calls(bencher, name, case, bytes, || {
        let part = PartialAttention { weighted: &mut weighted, max: &mut max, sum: &mut sum };
        case.kernels.attend(black_box(&q), kv, kv, &[POSITIONS], black_box(part));
    });
}

#[divan::bench(args = Case::one_thread())]
fn attend_f16(bencher: Bencher<'_, '_>, case: &Case) {
    let rows = vec![0x3800; POSITIONS * HEAD_DIM];
    attend(bencher, "attend_f16", case, KvRows::F16(&rows), 2 * 2 * rows.len());
}

#[divan::bench(args = Case::one_thread())]
fn attend_f32(bencher: Bencher<'_, '_>, case: &Case) {
    let rows = vec![0.5; POSITIONS * HEAD_DIM];
    attend(bencher, "attend_f32", case, KvRows::F32(&rows), 2 * 4 * rows.len());
}

#[divan::bench(args = Case::one_thread())]
fn merge(bencher: Bencher<'_, '_>, case: &Case) {
    let parts = || (vec![0.5; HEAD_DIM], [0.5], [1.0]);
    let ((mut weighted, mut max, mut sum), mut chunk) = (parts(), parts());
    calls(bencher, "merge", case, 3 * 4 * HEAD_DIM, || {
        let acc = PartialAttention { weighted: &mut weighted, max: &mut max, sum: &mut sum };
        let chunk = PartialAttention { weighted: &mut chunk.0, max: &mut chunk.1, sum: &mut chunk.2 };
        case.kernels.merge(black_box(acc), black_box(chunk));
    });
}
