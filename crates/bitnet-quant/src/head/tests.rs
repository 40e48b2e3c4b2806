//! The planes, the products on every instruction set, and the bounds, against what they stand for.

use std::convert::Infallible;

use half::f16;
use proptest::collection::vec;
use proptest::prelude::*;

use super::bounds::{GROUP_ROWS, RowBounds, bound_rows, groups};
use super::*;
use crate::dense::DenseFormat;
use crate::kernels::{HeadCodes, HeadRows, Isa, Kernels};
use crate::linear::{DenseView, dense_linear, dense_rows};
use crate::threads::Threads;

/// SplitMix64, and from it sums of four uniform numbers, which are nearly Gaussian.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: u32 = [0, 16, 32, 48].iter().map(|shift| u32::from((bits >> shift) as u16)).sum();
        (sum as f32 - 131_070.0) / 37_837.2
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// Image bytes at an address that suits it.
struct Image(Vec<f32>);

impl Image {
    fn build(kernels: &Kernels, threads: &Threads, w: &DenseView<'_>) -> Self {
        let mut image = Vec::new();
        build(kernels, threads, w, |bytes| {
            image.extend_from_slice(bytemuck::cast_slice(bytes));
            Ok::<_, Infallible>(())
        })
        .unwrap();
        Image(image)
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

fn stored(format: DenseFormat, values: &[f32], cols: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for row in values.chunks_exact(cols) {
        format.quantize_row(row, &mut bytes).unwrap();
    }
    bytes
}

/// All bounds of (rows) with `x`: (n, cols); lower and upper: (n, rows).
fn bounds(
    kernels: &Kernels,
    threads: &Threads,
    view: &HeadView<'_>,
    stage: HeadStage,
    x: &[f32],
) -> Option<[Vec<f32>; 4]> {
    let n = x.len() / view.cols();
    let padded = n * padded_head_cols(view.cols());
    let (mut high, mut low, mut wide) = (vec![1; padded], vec![1; padded], vec![1; padded]);
    let mut input = HeadInput::new(&mut high, &mut low, &mut wide);
    if !input.encode(kernels, x, view.cols()) {
        return None;
    }
    let (rows, n_groups) = (n * view.rows(), n * groups(view.rows()));
    let [mut lower, mut upper] = [vec![f32::NAN; rows], vec![f32::NAN; rows]];
    let [mut group_lower, mut group_upper] = [vec![f32::NAN; n_groups], vec![f32::NAN; n_groups]];
    let out = RowBounds {
        lower: &mut lower,
        upper: &mut upper,
        group_lower: &mut group_lower,
        group_upper: &mut group_upper,
    };
    bound_rows(kernels, threads, view, stage, &input, view.rows(), None, out).then_some([
        lower,
        upper,
        group_lower,
        group_upper,
    ])
}

#[test]
fn impossible_shapes_have_no_image_and_others_only_one_of_their_size() {
    for (rows, cols) in [(0, 4), (4, 0), (1, MAX_HEAD_COLS + 1), (usize::MAX / 64, 256)] {
        assert_eq!(image_bytes(rows, cols), None, "{rows} x {cols}");
    }
    // Two blocks of 256 rows: four numbers and 64 bytes in each of two planes for a row.
    assert_eq!(image_bytes(257, 76), Some(2 * 256 * (4 * 4 + 2 * 64) + 64));
    assert!(HeadView::new(&[0; 64], 61, 76).is_none());
    let image = vec![0f32; image_bytes(61, 76).unwrap() / 4 + 1];
    let bytes: &[u8] = bytemuck::cast_slice(&image);
    let unaligned = &bytes[1..][..bytes.len() - 4];
    assert!(HeadView::new(&bytes[4..], 61, 76).is_some() && HeadView::new(unaligned, 61, 76).is_none());
}

#[test]
fn a_failing_sink_ends_the_building() {
    let values = Random(2).normals(5000 * 8);
    let data = stored(DenseFormat::F32, &values, 8);
    let w = DenseView::new(&data, 5000, 8, DenseFormat::F32);
    let mut calls = 0;
    let failed = build(Kernels::best(), &Threads::new(1), &w, |_| {
        calls += 1;
        if calls == 2 { Err("full") } else { Ok(()) }
    });
    assert_eq!((failed, calls), (Err("full"), 2));
}

#[test]
fn planes_hold_rounded_rows_and_how_far_they_are_off() {
    let (rows, cols) = (70, 300);
    let mut random = Random(3);
    let mut values = random.normals(rows * cols);
    values[5 * cols..6 * cols].fill(0.0);
    values[7 * cols..8 * cols].fill(1e-35);
    values[9 * cols] = 1e30;
    let data = stored(DenseFormat::F32, &values, cols);
    let w = DenseView::new(&data, rows, cols, DenseFormat::F32);
    let image = Image::build(Kernels::best(), &Threads::new(2), &w);
    let view = HeadView::new(image.bytes(), rows, cols).unwrap();
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let mut longest = 0.0f64;
    for (r, row) in values.chunks_exact(cols).enumerate() {
        let (block, i) = (view.block(r / BLOCK_ROWS), r % BLOCK_ROWS);
        let half = |plane: &[u8], c: usize| f64::from(nibble(plane, 192, i, c));
        let scale = f64::from(block.scales[i]);
        let code = |c: usize| 16.0 * half(block.high, c) + half(block.low, c) - 128.0;
        let largest = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for (c, v) in row.iter().enumerate() {
            let is_coded = (1e-30..1e30).contains(&largest);
            assert!(
                !is_coded || (f64::from(*v) - scale * code(c)).abs() <= 0.5001 * scale,
                "row {r}, column {c}"
            );
            assert!(code(c).abs() <= 127.0);
        }
        assert!((cols..384).all(|c| code(c) == 0.0));
        let error = length(&mut row.iter().enumerate().map(|(c, v)| f64::from(*v) - scale * code(c)));
        let norm = length(&mut (0..cols).map(|c| scale * code(c)));
        for (stored, want) in [(block.errors[i], error), (block.norms[i], norm)] {
            let stored = f64::from(stored);
            assert!(stored >= want && stored <= want * (1.0 + 1e-6) + 1e-44, "row {r}: {stored} for {want}");
        }
        let coarse = |c: usize| scale * (half(block.high, c) * 16.0 - 120.5);
        let error = length(&mut row.iter().enumerate().map(|(c, v)| f64::from(*v) - coarse(c)));
        assert!((f64::from(block.coarse_errors[i]) - error).abs() <= 1e-6 * error);
        longest = longest.max(length(&mut row.iter().map(|v| f64::from(*v))));
    }
    assert!(f64::from(view.max_norm) >= longest && f64::from(view.max_norm) <= longest * (1.0 + 1e-6));
}

#[test]
fn every_machine_builds_the_same_image() {
    let (rows, cols) = (150, 333);
    let values = Random(4).normals(rows * cols);
    for format in [DenseFormat::F32, DenseFormat::F16, DenseFormat::BF16] {
        let data = stored(format, &values, cols);
        let w = DenseView::new(&data, rows, cols, format);
        let want = Image::build(Kernels::for_isa(Isa::Scalar).unwrap(), &Threads::new(1), &w);
        for kernels in Kernels::available() {
            let image = Image::build(kernels, &Threads::new(3), &w);
            assert!(image.bytes() == want.bytes(), "{kernels:?}, {format}");
        }
    }
}

/// Rows and vectors with what rounding and coding are worst at: lone large elements, elements of like sign, all but
/// equal ones, zeros.
fn nasty(random: &mut Random, n: usize) -> Vec<f32> {
    let kind = random.bits() % 6;
    let size = f16::from_f32(f32::from_bits((123 + (random.bits() % 9) as u32) << 23)).to_f32();
    (0..n)
        .map(|i| {
            let v = random.normal();
            size * match kind {
                0 => v,
                1 => v.abs(),
                2 if i == n / 2 => 1000.0,
                2 => 0.01 * v,
                3 => 1.0 + 1e-3 * v,
                4 if !random.bits().is_multiple_of(8) => 0.0,
                4 => v,
                _ => 127.5 / 127.0 * v.signum(),
            }
        })
        .collect()
}

#[test]
fn bounds_hold_whatever_the_rows() {
    let threads = Threads::new(2);
    for (seed, (rows, cols)) in
        [(37, 5), (40, 128), (33, 300), (50, 1000), (20, 2560)].into_iter().enumerate()
    {
        for format in [DenseFormat::F16, DenseFormat::F32] {
            let mut random = Random(seed as u64);
            let values: Vec<f32> = (0..rows).flat_map(|_| nasty(&mut random, cols)).collect();
            let data = stored(format, &values, cols);
            let w = DenseView::new(&data, rows, cols, format);
            let image = Image::build(Kernels::best(), &threads, &w);
            let view = HeadView::new(image.bytes(), rows, cols).unwrap();
            let x: Vec<f32> = (0..3).flat_map(|_| nasty(&mut random, cols)).collect();
            let mut y = vec![0.0; 3 * rows];
            dense_linear(Kernels::best(), &threads, &w, &x, 3, &mut y);
            let [lower, upper, group_lower, group_upper] =
                bounds(Kernels::best(), &threads, &view, HeadStage::Int8, &x).unwrap();
            for (i, y) in y.iter().enumerate() {
                assert!(lower[i] <= *y && *y <= upper[i], "{rows} x {cols}: {} {y} {}", lower[i], upper[i]);
            }
            for (bounds, highest) in [(&lower, &group_lower), (&upper, &group_upper)] {
                let of_token = bounds.chunks_exact(rows).flat_map(|b| b.chunks(GROUP_ROWS));
                let want: Vec<f32> = of_token.map(|g| g.iter().fold(f32::MIN, |m, b| m.max(*b))).collect();
                assert_eq!(*highest, want);
            }
            let mut some = vec![0.0; 5];
            dense_rows(Kernels::best(), &threads, &w, &[3, 0, 9, 3, 17], &x[..cols], &mut some);
            assert_eq!(some, [3, 0, 9, 3, 17].map(|r: usize| y[r]));
        }
    }
}

/// Rows and a vector that are coded without error: what is left is the rounding of the full head's own sums, which is
/// far larger than the logits, because even columns cancel odd ones in the last step of the tree.
#[test]
fn bounds_hold_for_what_the_full_head_rounds() {
    let (rows, cols) = (30, 2560);
    let mut random = Random(6);
    let mut integers = |n: usize, from: u64, to: u64| -> Vec<f32> {
        let range = to - from + 1;
        (0..n).map(|i| if i == 0 { to as f32 } else { (from + random.bits() % range) as f32 }).collect()
    };
    let values: Vec<f32> = (0..rows).flat_map(|_| integers(cols, 64, 127)).collect();
    let mut x = integers(cols, 8000, 16_256);
    x.iter_mut().skip(1).step_by(2).for_each(|x| *x = -*x);
    let data = stored(DenseFormat::F32, &values, cols);
    let w = DenseView::new(&data, rows, cols, DenseFormat::F32);
    let threads = Threads::new(1);
    let image = Image::build(Kernels::best(), &threads, &w);
    let view = HeadView::new(image.bytes(), rows, cols).unwrap();
    assert!(view.block(0).errors.iter().all(|e| *e < 1e-6), "no row is off");
    let mut y = vec![0.0; rows];
    dense_linear(Kernels::best(), &threads, &w, &x, 1, &mut y);
    let [lower, upper, ..] = bounds(Kernels::best(), &threads, &view, HeadStage::Int8, &x).unwrap();
    let mut off = 0;
    for (r, row) in values.chunks_exact(cols).enumerate() {
        assert!(lower[r] <= y[r] && y[r] <= upper[r], "{} {} {}", lower[r], y[r], upper[r]);
        let exact: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        off += usize::from((f64::from(y[r]) - exact).abs() > 10.0);
    }
    assert!(off > rows / 2, "rounding shows in {off} rows");
}

/// Elements of a row that all lie half a step from their codes, and a vector that has their signs: the bound is met.
#[test]
fn bounds_are_no_wider_than_they_need_be() {
    let cols = 512;
    let row: Vec<f32> = (0..cols).map(|i| if i == 0 { 127.0 } else { 0.499 }).collect();
    let x: Vec<f32> = (0..cols).map(|i| if i == 0 { 0.0 } else { 1.0 }).collect();
    let data = stored(DenseFormat::F32, &row, cols);
    let w = DenseView::new(&data, 1, cols, DenseFormat::F32);
    let threads = Threads::new(1);
    let image = Image::build(Kernels::best(), &threads, &w);
    let view = HeadView::new(image.bytes(), 1, cols).unwrap();
    let y = 0.499 * 511.0;
    let [_, upper, ..] = bounds(Kernels::best(), &threads, &view, HeadStage::Int8, &x).unwrap();
    assert!(upper[0] >= y && upper[0] <= y * 1.03, "{}", upper[0]);
}

#[test]
fn coarse_bounds_hold_for_rows_that_look_random() {
    let (rows, cols) = (2000, 640);
    let mut random = Random(8);
    let data = stored(DenseFormat::F16, &random.normals(rows * cols), cols);
    let w = DenseView::new(&data, rows, cols, DenseFormat::F16);
    let threads = Threads::new(2);
    let image = Image::build(Kernels::best(), &threads, &w);
    let view = HeadView::new(image.bytes(), rows, cols).unwrap();
    let x = random.normals(cols);
    let mut y = vec![0.0; rows];
    dense_linear(Kernels::best(), &threads, &w, &x, 1, &mut y);
    let [lower, upper, ..] = bounds(Kernels::best(), &threads, &view, HeadStage::Int4, &x).unwrap();
    let deviation = (cols as f32).sqrt();
    let mut widths = 0.0;
    for r in 0..rows {
        assert!(lower[r] <= y[r] && y[r] <= upper[r]);
        widths += (upper[r] - lower[r]) / deviation / rows as f32;
    }
    // Sixteen steps over about seven deviations are off by an eighth of one; six times that, to both sides.
    assert!((1.0..2.0).contains(&widths), "{widths}");
}

/// Rows that can be the highest, where the highest is known, on Gaussian rows of which one is turned towards the vector.
/// The example `head_candidates` does the same with the rows of a large vocabulary.
#[test]
fn few_rows_are_left_where_one_stands_out() {
    let (rows, cols, vectors) = (4096, 2560, 12);
    let mut random = Random(21);
    let mut values = random.normals(rows * cols);
    let threads = Threads::new(2);
    for (deviations, most) in [(4.0, [40, 90]), (6.0, [3, 6]), (8.0, [1, 2])] {
        let x = random.normals(vectors * cols);
        for (v, x) in x.chunks_exact(cols).enumerate() {
            let row = &mut values[v * cols..][..cols];
            row.fill_with(|| random.normal());
            let length = x.iter().map(|x| x * x).sum::<f32>().sqrt();
            let along = row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() / length;
            row.iter_mut().zip(x).for_each(|(w, x)| *w += (deviations - along) * x / length);
        }
        let data = stored(DenseFormat::F16, &values, cols);
        let w = DenseView::new(&data, rows, cols, DenseFormat::F16);
        let image = Image::build(Kernels::best(), &threads, &w);
        let view = HeadView::new(image.bytes(), rows, cols).unwrap();
        for (stage, most) in [HeadStage::Int8, HeadStage::Int4].into_iter().zip(most) {
            let mut left: Vec<usize> = (0..vectors)
                .map(|v| {
                    let x = &x[v * cols..][..cols];
                    let mut y = vec![0.0; rows];
                    dense_linear(Kernels::best(), &threads, &w, x, 1, &mut y);
                    let best = y.iter().copied().fold(f32::MIN, f32::max);
                    let [_, upper, ..] = bounds(Kernels::best(), &threads, &view, stage, x).unwrap();
                    let left = (0..rows).filter(|r| upper[*r] >= best);
                    assert!(left.clone().any(|r| y[r] == best), "the highest is among them");
                    left.count()
                })
                .collect();
            left.sort_unstable();
            let (p50, p99) = (left[vectors / 2], left[vectors - 1]);
            println!("top at {deviations} deviations, {stage:?}: {p50} of {rows} rows left (p99 {p99})");
            assert!(p99 <= most, "{deviations} {stage:?}: {p99}");
        }
    }
}

#[test]
fn what_could_overflow_is_left_to_the_full_head() {
    let threads = Threads::new(1);
    let bound = |row: [f32; 4], x: [f32; 4]| {
        let data = stored(DenseFormat::F32, &row, 4);
        let w = DenseView::new(&data, 1, 4, DenseFormat::F32);
        let image = Image::build(Kernels::best(), &threads, &w);
        let view = HeadView::new(image.bytes(), 1, 4).unwrap();
        bounds(Kernels::best(), &threads, &view, HeadStage::Int8, &x).is_some()
    };
    assert!(bound([1.0; 4], [1.0; 4]) && bound([1e20, 1.0, 0.0, 0.0], [1e15; 4]));
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
        assert!(!bound([1.0, broken, 0.0, 0.0], [1.0; 4]), "{broken} in a row");
        assert!(!bound([1.0; 4], [1.0, broken, 0.0, 0.0]), "{broken} in the vector");
    }
    assert!(!bound([1e20; 4], [1e18; 4]));
    assert!(!bound([1.0; 4], [0.0; 4]) && !bound([1.0; 4], [1e-38; 4]));
    // Rows beyond the codes of single precision have bounds like any other.
    assert!(bound([1e30, 0.0, 0.0, 0.0], [1.0; 4]) && bound([1e-40; 4], [1.0; 4]));
}

fn kernel_case() -> impl Strategy<Value = (usize, usize, usize, Vec<u8>, Vec<u8>, Vec<i16>)> {
    (1..=3usize, 1..=20usize, 1..=HEAD_TOKENS).prop_flat_map(|(tiles, blocks, n)| {
        let rows = tiles * ROW_TILE;
        let plane = || vec(prop_oneof![6 => any::<u8>(), 1 => Just(0xFF), 1 => Just(0)], rows * blocks * 64);
        let code = prop_oneof![6 => -16_256..=16_256i16, 1 => Just(16_256), 1 => Just(-16_256)];
        (Just(rows), Just(blocks), Just(n), plane(), plane(), vec(code, n * blocks * BLOCK_COLS))
    })
}

/// Codes in all their forms.
fn forms(codes: &[i16]) -> (Vec<i8>, Vec<i8>, Vec<i16>) {
    let high: Vec<i8> = codes.iter().map(|c| ((c + 64) >> 7) as i8).collect();
    let low = codes.iter().zip(&high).map(|(c, h)| (c - 128 * i16::from(*h)) as i8).collect();
    let wide = codes.chunks_exact(64).flat_map(|c| (0..64).map(|i| c[i % 32 * 2 + i / 32])).collect();
    (high, low, wide)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn products_agree((rows, blocks, n, high, low, codes) in kernel_case()) {
        let (x_high, x_low, wide) = forms(&codes);
        let x = HeadCodes { high: &x_high, low: &x_low, wide: &wide, n };
        for low in [Some(&low[..]), None] {
            let planes = HeadRows { high: &high, low, row_bytes: blocks * 64, gap: 64 };
            let mut want = vec![0.5; n * rows];
            Kernels::for_isa(Isa::Scalar).unwrap().lm_head_dot(planes, x, &mut want);
            for kernels in Kernels::available() {
                let mut got = vec![0.25; n * rows];
                kernels.lm_head_dot(planes, x, &mut got);
                prop_assert_eq!(&got, &want, "{:?}", kernels);
            }
        }
    }

    #[test]
    fn vectors_are_coded_as_they_are_read(x in vec(-3.0f32..3.0, 1..400)) {
        let cols = x.len();
        let padded = padded_head_cols(cols);
        let (mut high, mut low, mut wide) = (vec![1; padded], vec![1; padded], vec![1; padded]);
        let mut input = HeadInput::new(&mut high, &mut low, &mut wide);
        prop_assume!(input.encode(Kernels::best(), &x, cols));
        let token = input.tokens()[0];
        let codes: Vec<i16> = high.iter().zip(&low).map(|(h, l)| 128 * i16::from(*h) + i16::from(*l)).collect();
        prop_assert_eq!(forms(&codes), (high, low, wide));
        let error: f64 = x.iter().zip(&codes).map(|(x, c)| f64::from(*x) - token.scale * f64::from(*c)).map(|e| e * e).sum();
        let norm: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        prop_assert!(token.error >= error.sqrt() && token.error <= norm.sqrt() / 16_000.0);
        prop_assert!(token.norm >= norm.sqrt() && token.norm <= norm.sqrt() * (1.0 + 1e-8));
        prop_assert_eq!(token.sum, codes.iter().map(|c| f64::from(*c)).sum::<f64>());
        prop_assert!(codes[cols..].iter().all(|c| *c == 0));
    }

    #[test]
    fn estimates_agree(
        rows in vec((-1e12f64..1e12, 1e-6f32..10.0, 0.0f32..2.0, 0.0f32..90.0), 1..70),
        factors in (1e-6f64..1.0, 0.0f32..9.0, 0.0f32..1e-3),
    ) {
        let sums: Vec<f64> = rows.iter().map(|r| r.0.trunc()).collect();
        let scales: Vec<f32> = rows.iter().map(|r| r.1).collect();
        let errors: Vec<f32> = rows.iter().map(|r| r.2).collect();
        let norms: Vec<f32> = rows.iter().map(|r| r.3).collect();
        let (scale, row_error, row_norm) = factors;
        let factors = crate::kernels::HeadFactors {
            weight: 16.0, offset: 77_777.5, scale, row_error, row_norm, constant: 1e-40, estimate: 4.8e-7,
        };
        let run = |kernels: &Kernels| {
            let (mut lower, mut upper) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
            kernels.lm_head_bounds(&sums, &scales, &errors, &norms, &factors, &mut lower, &mut upper);
            (lower, upper)
        };
        let want = run(Kernels::for_isa(Isa::Scalar).unwrap());
        for kernels in Kernels::available() {
            prop_assert_eq!(&run(kernels), &want, "{:?}", kernels);
        }
    }
}

#[test]
fn the_largest_products_do_not_overflow() {
    let codes = vec![16_256; MAX_HEAD_COLS];
    for sign in [1, -1] {
        let codes: Vec<i16> = codes.iter().map(|c| sign * c).collect();
        let (high, low, wide) = forms(&codes);
        let x = HeadCodes { high: &high, low: &low, wide: &wide, n: 1 };
        let plane = vec![0xFF; ROW_TILE * MAX_HEAD_COLS / 2];
        for kernels in Kernels::available() {
            let planes = HeadRows { high: &plane, low: Some(&plane), row_bytes: MAX_HEAD_COLS / 2, gap: 0 };
            let mut out = [0.0; ROW_TILE];
            kernels.lm_head_dot(planes, x, &mut out);
            assert_eq!(
                out,
                [f64::from(sign) * 255.0 * 16_256.0 * MAX_HEAD_COLS as f64; ROW_TILE],
                "{kernels:?}"
            );
        }
    }
}
