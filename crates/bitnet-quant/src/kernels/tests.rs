//! Every table against the oracle, bit for bit.

use half::f16;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::layout::tiles::{band_bytes, pack_band};
use crate::layout::{pack_row, padded_cols, row_bytes};

/// Equal bits, or both NaN: the payload of a NaN is the processor's.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

#[track_caller]
fn assert_same(kernels: &Kernels, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(same(*got, *want), "{kernels:?}: element {i} is {got:e}, the oracle has {want:e}");
    }
}

fn vector_tables() -> impl Iterator<Item = &'static Kernels> {
    Kernels::available().into_iter().filter(|k| k.isa() != Isa::Scalar)
}

/// A copy that starts one element past an allocation's start, where vectors are not aligned.
struct Shifted<T>(Vec<T>);

impl<T: Copy> Shifted<T> {
    fn new(v: &[T]) -> Self {
        Shifted(v.first().into_iter().chain(v).copied().collect())
    }
}

impl<T> std::ops::Deref for Shifted<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.get(1..).unwrap_or(&[])
    }
}

impl<T> std::ops::DerefMut for Shifted<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0.get_mut(1..).unwrap_or(&mut [])
    }
}

/// Values whose sums depend on their order, with zeros of both signs, subnormals and large magnitudes among them.
fn finite() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -4.0f32..4.0,
        2 => any::<u32>().prop_map(|b| f32::from_bits(b & 0x83ff_ffff | 0x3c00_0000)),
        1 => prop_oneof![Just(0.0f32), Just(-0.0), Just(1e15), Just(-1e15), Just(1e-30), Just(-1e-30)],
        1 => any::<u32>().prop_map(|b| f32::from_bits(b & 0x807f_ffff)),
    ]
}

/// The same with infinities and NaN.
fn any_value() -> impl Strategy<Value = f32> {
    prop_oneof![
        200 => finite(),
        1 => Just(f32::INFINITY),
        1 => Just(f32::NEG_INFINITY),
        1 => Just(f32::NAN),
        4 => any::<u32>().prop_map(f32::from_bits),
    ]
}

fn half_bits() -> impl Strategy<Value = u16> {
    prop_oneof![
        20 => (-2.0f32..2.0).prop_map(|v| f16::from_f32(v).to_bits()),
        2 => any::<u16>().prop_map(|b| b & 0xbfff),
        1 => prop_oneof![Just(0u16), Just(0x8000), Just(1), Just(0x83ff)],
    ]
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(1usize),
        Just(3),
        Just(100),
        Just(255),
        Just(256),
        Just(257),
        Just(300),
        Just(512),
        1..1100usize,
    ]
}

fn head_dims() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(2usize),
        Just(6),
        Just(32),
        Just(40),
        Just(64),
        Just(80),
        Just(96),
        Just(128),
        Just(256),
        (1..=66usize).prop_map(|half| 2 * half),
    ]
}

fn ternary_case() -> impl Strategy<Value = (usize, usize, usize, Vec<u8>, Vec<i8>)> {
    (1..=9usize, 1..=20usize, 1..=15usize).prop_flat_map(|(rows, blocks, n)| {
        let w = vec(any::<u8>(), rows * blocks * BLOCK / 4);
        let x = vec(prop_oneof![4 => any::<i8>(), 1 => Just(-128i8), 1 => Just(127)], n * blocks * BLOCK);
        (Just(rows), Just(blocks), Just(n), w, x)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Any bytes: codes and signs that no packing has, too.
    #[test]
    fn unpacking_is_the_same_everywhere(bytes in vec(any::<u8>(), 0..400), len in 0..1600usize) {
        use unpacking::{BASE3_WEIGHTS, PAIR_BYTES, PAIR_WEIGHTS, PLANE, TWO_BIT_WEIGHTS};
        let bytes = Shifted::new(&bytes);
        let (blocks, pairs) = (bytes.as_chunks::<PLANE>().0, bytes.as_chunks::<PAIR_BYTES>().0);
        // Half of the bytes are a mask, and the signs may end before it does.
        let (mask, signs) = bytes.split_at(bytes.len() / 2);
        let masked = len.min(8 * mask.len());
        let mask = &mask[..masked.div_ceil(8)];
        let unpack = |kernels: &Kernels| {
            let mut two_bit = vec![[9; TWO_BIT_WEIGHTS]; blocks.len()];
            kernels.unpack_two_bit(blocks, &mut two_bit);
            let mut base3 = vec![[9; BASE3_WEIGHTS]; blocks.len()];
            kernels.unpack_base3(blocks, &mut base3);
            let mut planes = vec![[9; PAIR_WEIGHTS]; pairs.len()];
            kernels.unpack_bit_planes(pairs, &mut planes);
            let mut sparse = vec![9; masked];
            kernels.unpack_sparse(mask, signs, &mut sparse);
            (two_bit, base3, planes, sparse)
        };
        let want = unpack(&scalar::KERNELS);
        for kernels in vector_tables() {
            prop_assert_eq!(&unpack(kernels), &want, "{:?}", kernels);
        }
    }

    #[test]
    fn ternary_products_are_exact((rows, blocks, n, w, x) in ternary_case()) {
        let (w, x) = (Shifted::new(&w), Shifted::new(&x));
        let row_bytes = blocks * BLOCK / 4;
        let mut want = vec![0; n * rows];
        scalar::KERNELS.gemm_i2_i8(&w, row_bytes, &x, n, &mut want);
        let mut want64 = vec![0; row_bytes / 16];
        scalar::KERNELS.dot64_i2_i8(&w[..row_bytes], &x[..4 * row_bytes], &mut want64);
        for kernels in vector_tables() {
            let mut got = vec![-1; want.len()];
            kernels.gemm_i2_i8(&w, row_bytes, &x, n, &mut got);
            prop_assert_eq!(&got, &want, "{:?}", kernels);
            let mut got = vec![-1; want64.len()];
            kernels.dot64_i2_i8(&w[..row_bytes], &x[..4 * row_bytes], &mut got);
            prop_assert_eq!(&got, &want64, "{:?}", kernels);
        }
    }

    #[test]
    fn products_of_tiles_are_exact(
        (n, cols, band, x) in (1..=26usize, 1..=40usize).prop_flat_map(|(n, tiles)| {
            let x = prop_oneof![4 => any::<i8>(), 1 => Just(-128i8), 1 => Just(127)];
            let cols = tiles * TILE_COLS;
            (Just(n), Just(cols), vec(any::<u8>(), tiles * TILE_BYTES), vec(x, n * (cols + 7)))
        }),
    ) {
        let (band, x) = (Shifted::new(&band), Shifted::new(&x));
        let mut want = vec![0; n * TILE_ROWS];
        scalar::KERNELS.gemm_tiles_i8(&band, &x, cols + 7, n, &mut want);
        for kernels in vector_tables() {
            let mut got = vec![-1; want.len()];
            kernels.gemm_tiles_i8(&band, &x, cols + 7, n, &mut got);
            prop_assert_eq!(&got, &want, "{:?}", kernels);
        }
    }

    #[test]
    fn rows_have_one_order(
        (w, x) in lengths().prop_flat_map(|n| (vec(finite(), n), vec(finite(), n))),
        bytes in vec(any::<u8>(), 4 * 1100),
    ) {
        let x = Shifted::new(&x);
        for form in [DenseRow::F32, DenseRow::F16, DenseRow::BF16, DenseRow::Q8_0, DenseRow::Q4_0] {
            let in_blocks = matches!(form, DenseRow::Q8_0 | DenseRow::Q4_0);
            let n = if in_blocks { x.len() / 32 * 32 } else { x.len() };
            let stored: Vec<u8> = match form {
                DenseRow::F32 => w.iter().flat_map(|w| w.to_le_bytes()).collect(),
                DenseRow::F16 => w.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect(),
                DenseRow::BF16 => w.iter().flat_map(|w| half::bf16::from_f32(*w).to_le_bytes()).collect(),
                DenseRow::Q8_0 | DenseRow::Q4_0 => bytes.clone(),
            };
            let stored = Shifted::new(&stored[..form.row_bytes(n)]);
            let want = scalar::KERNELS.row_dot(form, &stored, &x[..n]);
            for kernels in vector_tables() {
                assert_same(kernels, &[kernels.row_dot(form, &stored, &x[..n])], &[want]);
            }
        }
    }

    #[test]
    fn rows_of_any_bits_have_one_order(
        (w, x) in lengths().prop_flat_map(|n| (vec(any_value(), n), vec(any_value(), n))),
    ) {
        let stored: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut lanes_want = x.clone();
        scalar::KERNELS.accumulate(&mut lanes_want, &w, &x);
        for kernels in vector_tables() {
            let want = scalar::KERNELS.row_dot(DenseRow::F32, &stored, &x);
            assert_same(kernels, &[kernels.row_dot(DenseRow::F32, &stored, &x)], &[want]);
            let mut lanes = x.clone();
            kernels.accumulate(&mut lanes, &w, &x);
            assert_same(kernels, &lanes, &lanes_want);
        }
    }

    /// Products a few units of `f64` beside a tie of `f32`: most roundings of a sum in `f64` would be rounded wrongly
    /// a second time.
    #[test]
    fn fused_multiply_adds_round_once_near_ties(
        case in vec((-9i8..=9, -9i8..=9, 12u32..=16, 0i32..4, any::<bool>()), 1..100),
    ) {
        let power = |e: i32| f32::from_bits(((127 + e) as u32) << 23);
        let near_one = |k: i8, bits: u32| 1.0 + f32::from(k) * power(-(bits as i32));
        let w: Vec<f32> = case.iter().map(|(k, _, bits, ..)| near_one(*k, *bits)).collect();
        let x: Vec<f32> = case.iter().map(|(k, l, bits, _, opposite)| {
            near_one(if *opposite { -k } else { *l }, *bits) * power(-24)
        }).collect();
        let lanes: Vec<f32> = case.iter().map(|(.., odd, _)| 1.0 + *odd as f32 * f32::EPSILON).collect();
        let mut want = lanes.clone();
        scalar::KERNELS.accumulate(&mut want, &w, &x);
        for kernels in vector_tables() {
            for sign in [1.0, -1.0] {
                let mut got: Vec<f32> = lanes.iter().map(|lane| sign * lane).collect();
                kernels.accumulate(&mut got, &w, &x.iter().map(|x| sign * x).collect::<Vec<_>>());
                got.iter_mut().for_each(|lane| *lane *= sign);
                assert_same(kernels, &got, &want);
            }
        }
    }

    #[test]
    fn blocks_have_one_order(pairs in vec((any::<i32>(), finite()), 0..70)) {
        let (acc, d): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let want = scalar::KERNELS.block_sum(&acc, &d);
        for kernels in vector_tables() {
            assert_same(kernels, &[kernels.block_sum(&acc, &d)], &[want]);
        }
    }

    #[test]
    fn norms_and_sums_agree(
        (x, w) in lengths().prop_flat_map(|n| (vec(any_value(), n), vec(any_value(), n))),
        eps in 1e-6f32..1e-4,
    ) {
        let x = Shifted::new(&x);
        let mut want = vec![0.0; x.len()];
        scalar::KERNELS.rms_norm(&x, &w, eps, &mut want);
        let mut sum = x.to_vec();
        scalar::KERNELS.add(&mut sum, &w);
        for kernels in vector_tables() {
            prop_assert_eq!(kernels.absmax_bits(&x), scalar::KERNELS.absmax_bits(&x));
            let mut got = vec![1.0; x.len()];
            kernels.rms_norm(&x, &w, eps, &mut got);
            assert_same(kernels, &got, &want);
            got.copy_from_slice(&x);
            kernels.rms_norm_in_place(&mut got, &w, eps);
            assert_same(kernels, &got, &want);
            let mut got = x.to_vec();
            kernels.add(&mut got, &w);
            assert_same(kernels, &got, &sum);
        }
    }

    #[test]
    fn sums_are_scaled_alike(acc in vec(-(1i32 << 24)..1 << 24, 0..80), sum in -(1i32 << 23)..1 << 23, f in finite()) {
        let mut want = vec![0.0; acc.len()];
        scalar::KERNELS.scale_sums(&acc, sum, f, &mut want);
        for kernels in vector_tables() {
            let mut got = vec![1.0; acc.len()];
            kernels.scale_sums(&acc, sum, f, &mut got);
            assert_same(kernels, &got, &want);
        }
    }

    #[test]
    fn activations_quantise_alike(x in lengths().prop_flat_map(|n| vec(any_value(), n)), a in 0.1f32..100.0) {
        // Multiples of one half are ties.
        let ties: Vec<f32> = x.iter().map(|x| (x * 4.0).trunc() * 0.5).collect();
        for (x, a) in [(&x, a), (&ties, 1.0)] {
            let mut want = vec![1; padded_cols(x.len())];
            let sum = scalar::KERNELS.quantize_i8(x, a, &mut want);
            for kernels in vector_tables() {
                let mut got = vec![2; want.len()];
                prop_assert_eq!(kernels.quantize_i8(x, a, &mut got), sum);
                prop_assert_eq!(&got, &want);
            }
        }
    }

    #[test]
    fn elements_agree(
        (a, b) in lengths().prop_flat_map(|n| (vec(any_value(), n), vec(any_value(), n))),
        scalar in any_value(),
        equal in vec(any::<bool>(), 1100),
    ) {
        let (a, mut b) = (Shifted::new(&a), Shifted::new(&b));
        for i in 0..a.len() {
            if equal[i] {
                b[i] = a[i];
            }
        }
        let (x, y, s) = (Operand::Elements(&a), Operand::Elements(&b), Operand::Scalar(scalar));
        let pairs = [(x, y), (x, s), (s, y), (s, s), (Operand::Output, y), (x, Operand::Output)];
        for ((x, y), op) in pairs.into_iter().flat_map(|pair| Arithmetic::ALL.map(|op| (pair, op))) {
            let mut want = Shifted::new(&b);
            scalar::KERNELS.arithmetic(op, x, y, &mut want);
            for kernels in vector_tables() {
                let mut got = Shifted::new(&b);
                kernels.arithmetic(op, x, y, &mut got);
                assert_same(kernels, &got, &want);
            }
        }
        for ((x, y), op) in pairs[..4].iter().flat_map(|pair| Comparison::ALL.map(|op| (*pair, op))) {
            let mut want = vec![2; a.len()];
            scalar::KERNELS.compare(op, x, y, &mut want);
            for kernels in vector_tables() {
                let mut got = vec![3; a.len()];
                kernels.compare(op, x, y, &mut got);
                prop_assert_eq!(&got, &want, "{:?} {:?}", kernels, op);
            }
        }
    }

    #[test]
    fn gates_agree((g, up) in lengths().prop_flat_map(|n| {
        let gate = prop_oneof![3 => -100.0f32..100.0, 1 => any_value()];
        (vec(gate, n), vec(finite(), n))
    })) {
        for f in [Activation::Relu2, Activation::Silu] {
            let mut want = g.clone();
            scalar::KERNELS.gate(f, &mut want, &up);
            for kernels in vector_tables() {
                let mut got = Shifted::new(&g);
                kernels.gate(f, &mut got, &up);
                assert_same(kernels, &got, &want);
            }
        }
    }

    #[test]
    fn rotations_agree((x, angles) in head_dims().prop_flat_map(|n| (vec(finite(), n), vec((finite(), finite()), n / 2)))) {
        let (cos, sin): (Vec<_>, Vec<_>) = angles.into_iter().unzip();
        let mut want = x.clone();
        scalar::KERNELS.rotate(&mut want, &cos, &sin, 0.088);
        for kernels in vector_tables() {
            let mut got = Shifted::new(&x);
            kernels.rotate(&mut got, &cos, &sin, 0.088);
            assert_same(kernels, &got, &want);
        }
    }
}

proptest! {
    // The oracle's attention is slow where tests are built without optimisation.
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn attention_agrees_in_single_precision(
        (q, k, v, lens) in attention_case().prop_flat_map(|(dim, lens)| {
            let n = dim * longest(&lens);
            (vec(finite(), dim * lens.len()), vec(any_value(), n), vec(finite(), n), Just(lens))
        }),
    ) {
        check_attention(&q, KvRows::F32(&Shifted::new(&k)), KvRows::F32(&Shifted::new(&v)), &lens);
    }

    #[test]
    fn attention_agrees_in_half_precision(
        (q, k, v, lens) in attention_case().prop_flat_map(|(dim, lens)| {
            let n = dim * longest(&lens);
            (vec(-1.0f32..1.0, dim * lens.len()), vec(half_bits(), n), vec(half_bits(), n), Just(lens))
        }),
    ) {
        check_attention(&q, KvRows::F16(&Shifted::new(&k)), KvRows::F16(&Shifted::new(&v)), &lens);
    }

    #[test]
    fn attention_agrees_in_bytes(
        (q, k, v, scales, lens) in attention_case().prop_flat_map(|(dim, lens)| {
            let n = longest(&lens);
            let codes = || vec(prop_oneof![4 => any::<i8>(), 1 => Just(0i8)], dim * n);
            (vec(-1.0f32..1.0, dim * lens.len()), codes(), codes(), vec((0.0f32..0.1, finite()), n), Just(lens))
        }),
    ) {
        let (k_scales, v_scales): (Vec<_>, Vec<_>) = scales.into_iter().unzip();
        let (k, v) = (Shifted::new(&k), Shifted::new(&v));
        let (k, v) = (KvRows::I8 { codes: &k, scales: &k_scales }, KvRows::I8 { codes: &v, scales: &v_scales });
        check_attention(&q, k, v, &lens);
    }

    #[test]
    fn attention_agrees_in_upper_halves(
        (q, k, v, lens) in attention_case().prop_flat_map(|(dim, lens)| {
            let n = dim * longest(&lens);
            (vec(-1.0f32..1.0, dim * lens.len()), vec(finite(), n), vec(finite(), n), Just(lens))
        }),
    ) {
        let halves = |x: &[f32]| x.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect::<Vec<_>>();
        let (k, v) = (Shifted::new(&halves(&k)), Shifted::new(&halves(&v)));
        check_attention(&q, KvRows::BF16(&k), KvRows::BF16(&v), &lens);
    }

    #[test]
    fn attention_agrees_in_nibbles(
        (q, k, v, scales, lens) in attention_case().prop_flat_map(|(dim, lens)| {
            let n = longest(&lens);
            let codes = || vec(any::<u8>(), nibble_row_bytes(dim) * n);
            (vec(-1.0f32..1.0, dim * lens.len()), codes(), codes(), vec((0.0f32..0.1, finite()), n), Just(lens))
        }),
    ) {
        let (k_scales, v_scales): (Vec<_>, Vec<_>) = scales.into_iter().unzip();
        let (k, v) = (Shifted::new(&k), Shifted::new(&v));
        let (k, v) = (KvRows::I4 { codes: &k, scales: &k_scales }, KvRows::I4 { codes: &v, scales: &v_scales });
        check_attention(&q, k, v, &lens);
    }

    #[test]
    fn chunks_are_combined_alike(
        (weighted, scalars) in (head_dims(), 1..=9usize).prop_flat_map(|(dim, n)| {
            let scalar = || prop_oneof![3 => -90.0f32..90.0, 1 => any_value()];
            let scalars = vec((scalar(), 1.0f32..256.0, scalar(), 1.0f32..256.0), n);
            (vec((any_value(), finite()), dim * n), scalars)
        }),
    ) {
        let (acc, chunk): (Vec<_>, Vec<_>) = weighted.into_iter().unzip();
        let merged = |kernels: &Kernels| {
            let (mut acc, mut chunk) = (Shifted::new(&acc), Shifted::new(&chunk));
            let column = |f: fn(&(f32, f32, f32, f32)) -> f32| scalars.iter().map(f).collect::<Vec<_>>();
            let (mut max, mut sum) = (column(|s| s.0), column(|s| s.1));
            let (mut chunk_max, mut chunk_sum) = (column(|s| s.2), column(|s| s.3));
            kernels.merge(
                PartialAttention { weighted: &mut acc, max: &mut max, sum: &mut sum },
                PartialAttention { weighted: &mut chunk, max: &mut chunk_max, sum: &mut chunk_sum },
            );
            let sums = [max.clone(), sum.clone()].concat();
            let before = acc.to_vec();
            kernels.finish(PartialAttention { weighted: &mut acc, max: &mut max, sum: &mut sum });
            [before, sums, acc.to_vec()].concat()
        };
        let want = merged(&scalar::KERNELS);
        for kernels in vector_tables() {
            assert_same(kernels, &merged(kernels), &want);
        }
    }

    /// One dimension and small differences: the weights are exp(x), seen through V = 1.
    #[test]
    fn exponentials_agree(x in vec(prop_oneof![-90.0f32..0.0, any_value()], 1..=256)) {
        let k: Vec<f32> = x.iter().flat_map(|x| [*x, 0.0]).collect();
        let v: Vec<f32> = x.iter().enumerate().flat_map(|(i, _)| [1.0, i as f32]).collect();
        check_attention(&[1.0, 0.0], KvRows::F32(&k), KvRows::F32(&v), &[x.len()]);
    }
}

/// A head's elements, and the positions that each of several queries sees.
fn attention_case() -> impl Strategy<Value = (usize, Vec<usize>)> {
    let len = || prop_oneof![1..40usize, 250..=SOFTMAX_CHUNK];
    (prop_oneof![9 => head_dims(), 1 => Just(MAX_HEAD_DIM)], len(), 1..=12usize, 0..4usize).prop_map(
        |(dim, len, n_queries, spread)| {
            // The oracle takes its time; long contexts have few queries.
            let n_queries =
                if len * dim > 10_000 { n_queries.min(7) } else { n_queries }.min(max_queries(dim));
            (dim, (0..n_queries).map(|i| (len + i * spread / 3).min(SOFTMAX_CHUNK)).collect())
        },
    )
}

fn longest(lens: &[usize]) -> usize {
    lens.iter().copied().max().unwrap_or(0)
}

/// The weighted sums, the maxima and the sums.
fn attend(kernels: &Kernels, q: &[f32], k: KvRows<'_>, v: KvRows<'_>, lens: &[usize]) -> [Vec<f32>; 3] {
    let mut weighted = Shifted::new(&vec![9.0; q.len()]);
    let (mut max, mut sum) = (vec![9.0; lens.len()], vec![9.0; lens.len()]);
    let part = PartialAttention { weighted: &mut weighted, max: &mut max, sum: &mut sum };
    kernels.attend(q, k, v, lens, part);
    [weighted.to_vec(), max, sum]
}

#[track_caller]
fn check_attention(q: &[f32], k: KvRows<'_>, v: KvRows<'_>, lens: &[usize]) {
    let want = attend(&scalar::KERNELS, q, k, v, lens);
    for kernels in vector_tables() {
        for (got, want) in attend(kernels, q, k, v, lens).iter().zip(&want) {
            assert_same(kernels, got, want);
        }
    }
}

#[test]
fn every_half_precision_number_is_widened_exactly() {
    let stored: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for kernels in vector_tables() {
        for (i, row) in stored.chunks_exact(32).enumerate() {
            // One number among zeros, each in a lane of its own: the sum is the number, and +0 for -0.
            for l in 0..16 {
                let want = f16::from_bits((16 * i + l) as u16).to_f32() + 0.0;
                let mut w = [0u8; 512];
                w[2 * l..2 * l + 2].copy_from_slice(&row[2 * l..2 * l + 2]);
                let mut x = [0.0; 256];
                x[l] = 1.0;
                assert_same(kernels, &[kernels.row_dot(DenseRow::F16, &w, &x)], &[want]);
            }
        }
    }
}

/// As near ties above, where a unit of `f32` is 2^-149 however small the number: too far from the last place of `f64`
/// for the sum to show on which side of the tie it lies.
#[test]
fn fused_multiply_adds_round_once_below_the_normal_numbers() {
    let power = |e: i32| f32::from_bits(((127 + e) as u32) << 23);
    let w = [1.0 + f32::EPSILON, 1.0, 1.0 - f32::EPSILON, 1.0 + f32::EPSILON].map(|w| w * power(-75));
    let x = [1.0 - f32::EPSILON, 1.0, 1.0 - f32::EPSILON, 1.0 + f32::EPSILON].map(|x| x * power(-75));
    // The largest of them among the rest, from which a tie leads to the normal numbers.
    for bits in (1 << 22..(1 << 22) + 4).chain((1 << 23) - 2..(1 << 23) + 2) {
        let lanes = [f32::from_bits(bits); 4];
        for sign in [1.0, -1.0] {
            let (lanes, x) = (lanes.map(|lane| sign * lane), x.map(|x| sign * x));
            let mut want = lanes;
            scalar::KERNELS.accumulate(&mut want, &w, &x);
            for kernels in vector_tables() {
                let mut got = lanes;
                kernels.accumulate(&mut got, &w, &x);
                assert_same(kernels, &got, &want);
                // One at a time: a lane that is at a tie would send all to the exact way.
                for l in 0..4 {
                    let (mut got, mut alone) = ([1.5; 4], [0.0; 4]);
                    (got[l], alone[l]) = (lanes[l], w[l]);
                    kernels.accumulate(&mut got, &alone, &x);
                    assert_same(kernels, &got[l..=l], &want[l..=l]);
                }
            }
        }
    }
}

#[test]
fn the_largest_products_do_not_overflow() {
    const COLS: usize = 16_384;
    let mut row = vec![0; row_bytes(COLS)];
    pack_row(&[2; COLS], &mut row);
    let w = row.repeat(5);
    let mut band = vec![0; band_bytes(COLS)];
    pack_band(&w, COLS, &mut band);
    for (code, n) in [(127i8, 1), (127, 7), (-128, 1), (-128, 7)] {
        for kernels in Kernels::available() {
            let mut out = vec![0; 5 * n];
            kernels.gemm_i2_i8(&w, row.len(), &vec![code; n * COLS], n, &mut out);
            assert!(out.iter().all(|v| *v == COLS as i32 * 2 * i32::from(code)), "{kernels:?} {out:?}");
            let mut out = vec![0; COLS / 64];
            kernels.dot64_i2_i8(&row, &vec![code; COLS], &mut out);
            assert!(out.iter().all(|v| *v == 64 * 2 * i32::from(code)), "{kernels:?}");
            let mut out = vec![0; TILE_ROWS * n];
            kernels.gemm_tiles_i8(&band, &vec![code; n * (COLS + TILE_COLS)], COLS + TILE_COLS, n, &mut out);
            for rows in out.chunks_exact(TILE_ROWS) {
                assert!(
                    rows[..5].iter().all(|v| *v == COLS as i32 * 2 * i32::from(code)),
                    "{kernels:?} {out:?}"
                );
                assert!(rows[5..].iter().all(|v| *v == 0), "{kernels:?} {out:?}");
            }
        }
    }
}

/// As many tokens and columns as are taken at a time, and a few more or less than that.
#[test]
fn tiles_have_products_of_any_extent() {
    for n in [12, 15, 16, 17, 31, 32, 33, 48, 63, 72, 97] {
        for tiles in [1, 5, 6, 11, 16, 63, 64, 65, 69, 70, 129, 214] {
            let mut state = (n * 1000 + tiles) as u32;
            let mut byte = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            let cols = tiles * TILE_COLS;
            let band: Vec<u8> = (0..tiles * TILE_BYTES).map(|_| byte()).collect();
            // Nothing lies behind the last token.
            let x: Vec<i8> = (0..(n - 1) * (cols + 5) + cols).map(|_| byte() as i8).collect();
            let mut want = vec![0; n * TILE_ROWS];
            scalar::KERNELS.gemm_tiles_i8(&band, &x, cols + 5, n, &mut want);
            for kernels in vector_tables() {
                let mut got = vec![-1; want.len()];
                kernels.gemm_tiles_i8(&band, &x, cols + 5, n, &mut got);
                assert!(got == want, "{kernels:?}, {n} tokens, {tiles} tiles");
            }
        }
    }
}

/// What one band after the other gives: `rows` rows of each token, `pitch` apart, and what was in `out` between them.
fn bitlinear_one_by_one(bands: Bands<'_>, x: BandTokens<'_>, rows: usize, pitch: usize, out: &mut [f32]) {
    let mut acc = vec![0; x.sums.len() * TILE_ROWS];
    for (b, band) in bands.codes.chunks_exact(bands.band_bytes).enumerate() {
        scalar::KERNELS.gemm_tiles_i8(band, x.codes, x.stride, x.sums.len(), &mut acc);
        for (t, acc) in acc.chunks_exact(TILE_ROWS).enumerate() {
            let rows = TILE_ROWS.min(rows - b * TILE_ROWS);
            let out = &mut out[t * pitch + b * TILE_ROWS..][..rows];
            scalar::KERNELS.scale_sums(&acc[..rows], x.sums[t], x.factors[t], out);
        }
    }
}

fn assert_bands_are_exact(bands: Bands<'_>, x: BandTokens<'_>, rows: usize) {
    let pitch = rows + 3;
    let mut want = vec![7.0; x.sums.len() * pitch];
    bitlinear_one_by_one(bands, x, rows, pitch, &mut want);
    for kernels in vector_tables().filter(|k| k.has_bands()) {
        let mut got = vec![7.0; want.len()];
        // SAFETY: the outputs are in `got`.
        unsafe { kernels.bitlinear_bands(bands, x, BandOutputs { out: got.as_mut_ptr(), pitch, rows }) };
        let tiles = bands.band_bytes / TILE_BYTES;
        assert!(got == want, "{kernels:?}, {rows} rows, {tiles} tiles, {} tokens", x.sums.len());
    }
}

/// Register tiles and blocks that are full, partial and absent; rows that end anywhere in a band.
#[test]
fn bands_side_by_side_give_what_they_give_one_by_one() {
    let extents = [(1, 60), (2, 13), (3, 2), (4, 3), (5, 1), (6, 59), (MAX_BANDS, 4)];
    for (n_bands, n) in extents {
        for tiles in [1, 2, 4, 6, 7, 8, 20, 21, 22, 28, 43] {
            let mut state = (n_bands * 1000 + tiles) as u32;
            let mut byte = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            let band_bytes = tiles * TILE_BYTES;
            let codes: Vec<u8> = (0..n_bands * band_bytes).map(|_| byte()).collect();
            let (cols, stride) = (tiles * TILE_COLS, tiles * TILE_COLS + 5);
            // Nothing lies behind the last token.
            let x: Vec<i8> = (0..(n - 1) * stride + cols).map(|_| byte() as i8).collect();
            let sums: Vec<i32> = x.chunks(stride).map(|x| x.iter().map(|x| i32::from(*x)).sum()).collect();
            let factors: Vec<f32> = (0..n).map(|t| 0.01 + t as f32).collect();
            let x = BandTokens { codes: &x, stride, sums: &sums, factors: &factors };
            for missing in [0, 1, 15, 16, 17, 31] {
                assert_bands_are_exact(Bands { codes: &codes, band_bytes }, x, n_bands * TILE_ROWS - missing);
            }
        }
    }
}

#[test]
fn the_largest_sums_of_bands_do_not_overflow() {
    // Every digit is 2, the largest: 26 in all fields.
    let fields = (0..8).fold(0u64, |string, f| string | 26 << (5 * f)).to_le_bytes();
    let band_bytes = 50 * TILE_BYTES;
    let codes = fields[..5].repeat(3 * band_bytes / 5);
    let stride = 50 * TILE_COLS;
    for code in [127i8, -128] {
        let x = vec![code; 5 * stride];
        let x =
            BandTokens { codes: &x, stride, sums: &[stride as i32 * i32::from(code); 5], factors: &[1.0; 5] };
        assert_bands_are_exact(Bands { codes: &codes, band_bytes }, x, 3 * TILE_ROWS);
    }
}

#[test]
fn the_widest_rows_do_not_overflow() {
    let x = vec![-128; crate::ternary::MAX_COLS];
    for kernels in vector_tables() {
        let mut out = [0; 2];
        kernels.gemm_i2_i8(&vec![0xff; 2 * x.len() / 4], x.len() / 4, &x, 1, &mut out);
        assert_eq!(out, [3 * -128 * x.len() as i32; 2], "{kernels:?}");
        let mut out = [0; 2];
        kernels.gemm_i2_i8(&vec![0xff; x.len() / 4], x.len() / 4, &x.repeat(2), 2, &mut out);
        assert_eq!(out, [3 * -128 * x.len() as i32; 2], "{kernels:?}");
        let tiles = x.len().div_ceil(TILE_COLS);
        let mut out = [0; TILE_ROWS];
        // Every digit is 2, the largest: 26 in all fields.
        let fields = (0..8).fold(0u64, |string, f| string | 26 << (5 * f)).to_le_bytes();
        let band = fields[..5].repeat(tiles * TILE_BYTES / 5);
        kernels.gemm_tiles_i8(&band, &vec![-128; tiles * TILE_COLS], 0, 1, &mut out);
        assert_eq!(out, [2 * -128 * (tiles * TILE_COLS) as i32; TILE_ROWS], "{kernels:?}");
    }
}

#[test]
fn each_column_has_its_own_place() {
    // One activation at a time finds a permuted lane, which random sums could hide only by chance, and says which.
    const COLS: usize = 384;
    let codes: Vec<u8> = (0..COLS).map(|c| (c * 7 % 5 % 3) as u8).collect();
    let mut row = vec![0; row_bytes(COLS)];
    pack_row(&codes, &mut row);
    for kernels in Kernels::available() {
        for c in 0..COLS {
            let mut x = vec![0i8; 2 * COLS];
            (x[c], x[COLS + c]) = (1, -1);
            let mut out = [0; 2];
            kernels.gemm_i2_i8(&row, row.len(), &x, 2, &mut out);
            assert_eq!(out, [1, -1].map(|x| x * i32::from(codes[c])), "{kernels:?}, column {c}");
        }
    }
}

#[test]
fn skipped_lanes_stay_untouched() {
    // A lane of -0 must stay -0: adding a padding of +0 would lose its sign.
    let tiny = -f32::from_bits(1);
    for kernels in Kernels::available() {
        for n in [34, 63, 40] {
            let (q, k) = (vec![tiny; n], vec![0.25f32; n]);
            let [_, max, _] = attend(kernels, &q, KvRows::F32(&k), KvRows::F32(&vec![0.0; n]), &[1]);
            assert_eq!(max[0].to_bits(), (-0.0f32).to_bits(), "{kernels:?}");
        }
        let row: Vec<u8> = [0.25f32; 300].iter().flat_map(|v| v.to_le_bytes()).collect();
        let sum = kernels.row_dot(DenseRow::F32, &row, &[tiny; 300]);
        assert_eq!(sum.to_bits(), (-0.0f32).to_bits(), "{kernels:?}");
        // 0 · infinity would be NaN in a padded lane that held it.
        let sum = kernels.row_dot(DenseRow::F32, &row[..400], &[f32::INFINITY; 100]);
        assert_eq!(sum, f32::INFINITY, "{kernels:?}");
    }
}

#[test]
fn the_first_of_equal_zeros_is_the_maximum() {
    // A quarter of the smallest number rounds to a zero of its sign.
    let q = [f32::from_bits(1); 32];
    for first in [0.25f32, -0.25] {
        let k: Vec<f32> = [-1.0, first, -first].iter().flat_map(|v| [*v; 32]).collect();
        for kernels in Kernels::available() {
            let [_, max, _] = attend(kernels, &q, KvRows::F32(&k), KvRows::F32(&k), &[3]);
            assert_eq!(max[0].to_bits(), (0.0 * first).to_bits(), "{kernels:?}");
        }
    }
}

#[test]
fn values_that_a_query_does_not_see_add_nothing() {
    // e^-2 times the smallest number, rounded, makes the sum of the first query -0; +0 · 1 would make that +0.
    let k: Vec<f32> =
        [2.0f32, 0.0, 0.0].iter().flat_map(|k| [[*k].as_slice(), &[0.0; 31]].concat()).collect();
    let v: Vec<f32> = [0.0, -f32::from_bits(1), 1.0].iter().flat_map(|v| [*v; 32]).collect();
    for kernels in Kernels::available() {
        for lens in [vec![2, 3, 3, 3], vec![2, 3], vec![2, 2, 2, 2, 3]] {
            let q = [1.0; 32].repeat(lens.len());
            let [weighted, ..] = attend(kernels, &q, KvRows::F32(&k), KvRows::F32(&v), &lens);
            assert!(
                weighted[..32].iter().all(|w| w.to_bits() == (-0.0f32).to_bits()),
                "{kernels:?} {lens:?}"
            );
        }
    }
}

#[test]
fn a_broken_gate_stays_visible() {
    for kernels in Kernels::available() {
        for f in [Activation::Relu2, Activation::Silu] {
            let mut gate = [f32::NAN; 20];
            kernels.gate(f, &mut gate, &[1.0; 20]);
            assert!(gate.iter().all(|g| g.is_nan()), "{kernels:?}");
        }
    }
}

#[test]
fn names_are_those_that_the_environment_variable_takes() {
    for isa in Isa::ALL {
        assert_eq!(isa.name().parse(), Ok(isa));
    }
    assert!("mmx".parse::<Isa>().is_err());
    for kernels in Kernels::available() {
        assert_eq!(Kernels::for_isa(kernels.isa()).map(Kernels::isa), Ok(kernels.isa()));
        assert!(kernels.name().starts_with(kernels.isa().name()));
    }
}

/// Long outputs take another way through memory; its first and last elements are no whole vectors.
#[test]
fn long_outputs_agree_at_any_alignment() {
    let n = elementwise::STREAM_LEN + 7;
    let a: Vec<f32> = (0..n + 16).map(|i| i as f32 * 0.37 - 9.0).collect();
    for kernels in vector_tables() {
        for start in [0, 1, 15] {
            let mut out = vec![f32::NAN; n + 16];
            kernels.arithmetic(
                Arithmetic::Mul,
                Operand::Elements(&a[start..start + n]),
                Operand::Scalar(3.0),
                &mut out[start..start + n],
            );
            assert!((start..start + n).all(|i| out[i] == a[i] * 3.0), "{kernels:?} {start}");
            assert!(out[..start].iter().chain(&out[start + n..]).all(|x| x.is_nan()), "{kernels:?} {start}");
        }
    }
}
