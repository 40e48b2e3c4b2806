//! How fast coded tensors are decoded, on one thread: bytes of the result a second.
//!
//! `cargo bench -p bitnet-quant --bench entropy`

use bitnet_quant::entropy::{CodedTensor, Elements, encode, entropy_bits};
use bitnet_quant::layout::{pack_row, row_bytes};
use divan::Bencher;
use divan::counter::BytesCount;
use half::{bf16, f16};

/// Decoded bytes: more than a last-level cache has for one core.
const BYTES: usize = 64 << 20;
const COLS: usize = 2560;

fn main() {
    for (name, (bytes, elements)) in [
        ("bf16", normal(true)),
        ("f16", normal(false)),
        ("i2_s", ternary(43)),
        ("i2_s, 33 % zeros", ternary(33)),
    ] {
        let code = encode(&bytes, elements).len() as f64 / bytes.len() as f64;
        let limit = entropy_bits(&bytes, elements) / (8 * elements.size()) as f64;
        println!("{name}: {:.2} % of its bytes, where its entropy is {:.2} %", 100.0 * code, 100.0 * limit);
    }
    divan::main();
}

/// A counter-based generator (Steele et al., "SplitMix", 2014).
fn random(i: usize) -> u64 {
    let z = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Numbers that are normally distributed, as the rows of a table of embeddings are about: sums of twelve uniform ones.
fn normal(upper_half: bool) -> (Vec<u8>, Elements) {
    let bytes = (0..BYTES / 2).flat_map(|i| {
        let sum = (0..3)
            .map(|k| random(3 * i + k))
            .flat_map(|bits| (0..4).map(move |k| (bits >> (16 * k)) & 0xffff));
        let x = (sum.map(|u| u as f32 / 65536.0).sum::<f32>() - 6.0) * 0.7;
        if upper_half { bf16::from_f32(x).to_le_bytes() } else { f16::from_f32(x).to_le_bytes() }
    });
    (bytes.collect(), Elements::Halves)
}

/// Independent ternary weights in two bits each, as I2_S has them.
fn ternary(percent_zeros: u64) -> (Vec<u8>, Elements) {
    let n_rows = BYTES / row_bytes(COLS);
    let mut bytes = vec![0; n_rows * row_bytes(COLS)];
    for (r, row) in bytes.chunks_exact_mut(row_bytes(COLS)).enumerate() {
        let code = |c: usize| match random(r * COLS + c) {
            bits if bits % 100 < percent_zeros => 1,
            bits => (bits >> 40) as u8 & 2,
        };
        pack_row(&(0..COLS).map(code).collect::<Vec<u8>>(), row);
    }
    (bytes, Elements::Bytes)
}

fn decode(bencher: Bencher<'_, '_>, (bytes, elements): (Vec<u8>, Elements)) {
    let code = encode(&bytes, elements);
    let mut out = vec![0; bytes.len()];
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| {
        let tensor = CodedTensor::parse(&code).expect("encoded above");
        tensor.decode(&mut out, 1).expect("encoded above");
    });
    assert!(out == bytes);
}

#[divan::bench(sample_count = 5)]
fn decode_bf16(bencher: Bencher<'_, '_>) {
    decode(bencher, normal(true));
}

#[divan::bench(sample_count = 5)]
fn decode_f16(bencher: Bencher<'_, '_>) {
    decode(bencher, normal(false));
}

#[divan::bench(sample_count = 5)]
fn decode_i2_s(bencher: Bencher<'_, '_>) {
    decode(bencher, ternary(43));
}
