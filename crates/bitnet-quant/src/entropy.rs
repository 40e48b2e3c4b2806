//! Lossless coding of tensors for smaller files.
//!
//! Weights are no text: what repeats in them is not a sequence but a distribution. Floating-point numbers use few of their
//! exponents, and four ternary weights in a byte take 81 values, of which those with zeros are more frequent. So each byte is
//! coded by itself, with as many bits as its frequency calls for (`huffman`), and what has no such structure, mantissas
//! above all, is kept as it is.
//!
//! A coded tensor says of itself all that decoding needs. Little-endian: the length of what it decodes to (u64), the bytes of
//! an element (u8, 1, 2 or 4), seven zeros; for each chunk of [`CHUNK_BYTES`], the last one shorter, the length of its code and
//! the checksum of what it decodes to (u32 each); then the codes. Chunks depend on nothing but themselves, so that any number
//! of threads decode them, and memory is needed for one of each thread.
//!
//! In a chunk, elements are rotated to the left by one bit, which leaves the exponent of a float in its highest bits and the
//! sign with the mantissa, and split into planes: all lowest bytes, then those above, and so on. Bytes are not rotated. A
//! plane is a tag and its bytes, or their code, or, for bytes of four ternary weights in two bits each, these weights in one
//! of the packings of [`crate::ternary_packing`]. Of these the shortest is taken. Prefix codes are, as long as some
//! weights are more frequent than others and none so frequent that a bit for four of them is too much.
//!
//! Idle sessions are compressed by `bitnet_core::memory::compression`, in whose codes a byte may take a fraction of a bit.
//! Nobody but the process itself wrote those, so that they have neither checksums nor chunks nor an answer to damage.

mod huffman;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ternary_packing::{
    self, MAX_WEIGHTS_PER_BYTE, PackedTernaryView, SimdUnpacker, TernaryPacker, TernaryPackerFactory,
    TernaryPackingConfig,
};

/// Decoded bytes of a chunk: large enough that its tables cost nothing, and small enough for a second-level cache.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Bytes in front of the chunks' entries.
const HEADER_BYTES: usize = 16;
/// Bytes of a chunk's entry.
const ENTRY_BYTES: usize = 8;
/// A prefix code has a bit for each byte at least, and packings have a limit of their own, so that no tensor decodes to more
/// bytes than this a byte.
const MAX_EXPANSION: usize = MAX_WEIGHTS_PER_BYTE / WEIGHTS;
/// Ternary weights that two bits each leave room for in a byte.
const WEIGHTS: usize = 4;

/// Tags of planes.
const RAW: u8 = 0;
const CODED: u8 = 1;
const PACKED: u8 = 2;

/// Why bytes cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not what a tensor was coded to: {0}")]
pub struct CodeError(&'static str);

/// Elements as the coder takes them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elements {
    /// Bytes: packed weights, or anything.
    Bytes,
    /// Half precision and the upper halves of single precision.
    Halves,
    /// Single precision.
    Singles,
}

impl Elements {
    const ALL: [Elements; 3] = [Elements::Bytes, Elements::Halves, Elements::Singles];

    /// Bytes of one.
    pub const fn size(self) -> usize {
        match self {
            Elements::Bytes => 1,
            Elements::Halves => 2,
            Elements::Singles => 4,
        }
    }
}

/// The code of one chunk of at most [`CHUNK_BYTES`], whole elements but perhaps at its end.
pub fn encode_chunk(chunk: &[u8], elements: Elements) -> Vec<u8> {
    let mut out = Vec::with_capacity(chunk.len() + 64);
    let (planes, rest) = planes(chunk, elements);
    for plane in planes {
        let (form, len) = Form::shortest(&plane, elements);
        let mut begin = |tag| {
            out.push(tag);
            out.extend((len as u32).to_le_bytes());
        };
        match form {
            Form::Raw => {
                out.push(RAW);
                out.extend(plane);
            }
            Form::Coded(code) => {
                begin(CODED);
                code.encode(&plane, &mut out);
            }
            Form::Packed(packer, weights) => {
                begin(PACKED);
                let packed = packer.pack(&weights, &TernaryPackingConfig::default());
                out.extend(packed.expect("made of ternary weights").into_bytes());
            }
        }
    }
    out.extend(rest);
    out
}

/// How many bytes [`encode_chunk`] gives, without coding any.
pub fn coded_len(chunk: &[u8], elements: Elements) -> usize {
    let (planes, rest) = planes(chunk, elements);
    let of_plane = |plane: &Vec<u8>| match Form::shortest(plane, elements) {
        (Form::Raw, len) => 1 + len,
        (Form::Coded(_) | Form::Packed(..), len) => 1 + size_of::<u32>() + len,
    };
    planes.iter().map(of_plane).sum::<usize>() + rest.len()
}

/// Undoes [`encode_chunk`]; `out` is as long as the chunk was. `scratch` is anything, and used again by the next call.
pub fn decode_chunk(
    code: &[u8],
    elements: Elements,
    out: &mut [u8],
    scratch: &mut Vec<u8>,
) -> Result<(), CodeError> {
    let n = out.len() / elements.size();
    let (whole, rest) = out.split_at_mut(n * elements.size());
    let mut code = code;
    if elements == Elements::Bytes {
        match Plane::take(&mut code, n)? {
            Plane::Raw(bytes) => whole.copy_from_slice(bytes),
            Plane::Coded(code) => huffman::decode(code, whole)?,
            Plane::Packed(packed) => unpack(packed, whole, scratch)?,
        }
    } else {
        // Where there is no element, there are planes all the same.
        scratch.resize(n.max(1) * elements.size(), 0);
        let mut planes = [&[] as &[u8]; 4];
        for (plane, decoded) in planes.iter_mut().zip(scratch.chunks_exact_mut(n.max(1))) {
            *plane = match Plane::take(&mut code, n)? {
                Plane::Raw(bytes) => bytes,
                Plane::Coded(code) => {
                    huffman::decode(code, decoded)?;
                    decoded
                }
                Plane::Packed(_) => return Err(CodeError("floats are packed like ternary weights")),
            };
        }
        join(planes, elements, whole);
    }
    let tail = code.len() == rest.len();
    tail.then(|| rest.copy_from_slice(code)).ok_or(CodeError("a chunk is longer or shorter than its planes"))
}

/// The rotated elements, all lowest bytes first, and the bytes that are no whole element.
fn planes(bytes: &[u8], elements: Elements) -> (Vec<Vec<u8>>, &[u8]) {
    let rotated = |i: usize| -> u32 {
        match elements {
            Elements::Bytes => u32::from(bytes[i]),
            Elements::Halves => {
                u32::from(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).rotate_left(1))
            }
            Elements::Singles => {
                let [a, b, c, d] = std::array::from_fn(|k| bytes[4 * i + k]);
                u32::from_le_bytes([a, b, c, d]).rotate_left(1)
            }
        }
    };
    let n = bytes.len() / elements.size();
    let planes = (0..elements.size()).map(|p| (0..n).map(|i| (rotated(i) >> (8 * p)) as u8).collect());
    (planes.collect(), &bytes[n * elements.size()..])
}

/// Undoes [`planes`].
fn join(planes: [&[u8]; 4], elements: Elements, out: &mut [u8]) {
    let [a, b, c, d] = planes;
    match elements {
        Elements::Bytes => out.copy_from_slice(a),
        Elements::Halves => {
            for ((out, a), b) in out.as_chunks_mut().0.iter_mut().zip(a).zip(b) {
                *out = u16::from_le_bytes([*a, *b]).rotate_right(1).to_le_bytes();
            }
        }
        Elements::Singles => {
            for ((((out, a), b), c), d) in out.as_chunks_mut().0.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *out = u32::from_le_bytes([*a, *b, *c, *d]).rotate_right(1).to_le_bytes();
            }
        }
    }
}

/// How a plane is kept.
enum Form {
    Raw,
    Coded(Box<huffman::Code>),
    Packed(&'static dyn TernaryPacker, Vec<i8>),
}

impl Form {
    /// The shortest form, and its bytes. All are known without coding anything.
    fn shortest(plane: &[u8], elements: Elements) -> (Self, usize) {
        let mut shortest = (Form::Raw, plane.len());
        if let Some(code) = huffman::Code::of(plane) {
            let len = code.size_bytes();
            if len < shortest.1 {
                shortest = (Form::Coded(Box::new(code)), len);
            }
        }
        if let Some(weights) = ternary_weights(plane).filter(|_| elements == Elements::Bytes) {
            let (packer, payload_bytes) =
                TernaryPackerFactory::smallest(&weights, &TernaryPackingConfig::default());
            let len = ternary_packing::HEADER_BYTES + payload_bytes;
            if len < shortest.1 {
                shortest = (Form::Packed(packer, weights), len);
            }
        }
        shortest
    }
}

/// Bytes of four codes 0 to 2, two bits each, as weights; `None` where they are something else.
fn ternary_weights(plane: &[u8]) -> Option<Vec<i8>> {
    if !plane.iter().all(|&byte| byte & byte >> 1 & 0x55 == 0) {
        return None;
    }
    let mut weights = vec![0; WEIGHTS * plane.len()];
    for (weights, byte) in weights.as_chunks_mut::<WEIGHTS>().0.iter_mut().zip(plane) {
        *weights = [6, 4, 2, 0].map(|shift| (byte >> shift & 3) as i8 - 1);
    }
    Some(weights)
}

/// Undoes what [`ternary_weights`] and a packer did.
fn unpack(packed: &[u8], plane: &mut [u8], scratch: &mut Vec<u8>) -> Result<(), CodeError> {
    let damaged = CodeError("packed weights are damaged");
    let packed = PackedTernaryView::parse(packed).map_err(|_| damaged)?;
    if packed.len() != WEIGHTS * plane.len() {
        return Err(CodeError("a plane has more or fewer weights than bytes"));
    }
    scratch.resize(packed.len(), 0);
    let weights: &mut [i8] = bytemuck::cast_slice_mut(scratch);
    SimdUnpacker::new().unpack_into(packed, weights).map_err(|_| damaged)?;
    for (byte, [a, b, c, d]) in plane.iter_mut().zip(weights.as_chunks::<WEIGHTS>().0) {
        let code = |weight: &i8| (weight + 1) as u8 & 3;
        *byte = code(a) << 6 | code(b) << 4 | code(c) << 2 | code(d);
    }
    Ok(())
}

enum Plane<'a> {
    Raw(&'a [u8]),
    Coded(&'a [u8]),
    Packed(&'a [u8]),
}

impl<'a> Plane<'a> {
    /// Takes a plane of `n` bytes off the front of `code`.
    fn take(code: &mut &'a [u8], n: usize) -> Result<Self, CodeError> {
        let cut = || CodeError("a chunk ends within a plane");
        let (tag, rest) = code.split_first().ok_or_else(cut)?;
        let (len, rest) = match *tag {
            RAW => (n, rest),
            CODED | PACKED => {
                let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
                (u32::from_le_bytes(*len) as usize, rest)
            }
            _ => return Err(CodeError("a plane has an unknown tag")),
        };
        let (plane, rest) = rest.split_at_checked(len).ok_or_else(cut)?;
        *code = rest;
        Ok(match *tag {
            RAW => Plane::Raw(plane),
            CODED => Plane::Coded(plane),
            _ => Plane::Packed(plane),
        })
    }
}

/// The header and the entries of a coded tensor of `len` bytes, whose chunks have codes of these lengths and checksums.
pub fn header(len: usize, elements: Elements, chunks: &[(u32, u32)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + ENTRY_BYTES * chunks.len());
    out.extend((len as u64).to_le_bytes());
    out.extend([elements.size() as u8, 0, 0, 0, 0, 0, 0, 0]);
    chunks.iter().for_each(|(len, sum)| out.extend([len.to_le_bytes(), sum.to_le_bytes()].concat()));
    out
}

/// A whole tensor coded in memory, on one thread.
pub fn encode(bytes: &[u8], elements: Elements) -> Vec<u8> {
    let codes: Vec<_> = bytes.chunks(CHUNK_BYTES).map(|chunk| encode_chunk(chunk, elements)).collect();
    let sums = bytes.chunks(CHUNK_BYTES).map(crc32fast::hash);
    let entries: Vec<_> = codes.iter().map(|code| code.len() as u32).zip(sums).collect();
    [header(bytes.len(), elements, &entries), codes.concat()].concat()
}

/// A coded tensor, not decoded yet.
#[derive(Debug, Clone)]
pub struct CodedTensor<'a> {
    codes: &'a [u8],
    elements: Elements,
    len: usize,
    chunks: Vec<(Range<usize>, u32)>,
}

impl<'a> CodedTensor<'a> {
    /// Reads the entries. What is kept of them is less than the bytes are.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CodeError> {
        let cut = || CodeError("it ends within its header");
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or_else(cut)?;
        let (len, kind) = header.split_at(8);
        let len = len.iter().rev().fold(0, |len, byte| len << 8 | u64::from(*byte));
        let elements = Elements::ALL.into_iter().find(|e| kind == [e.size() as u8, 0, 0, 0, 0, 0, 0, 0]);
        let elements = elements.ok_or(CodeError("its elements are of no known kind"))?;
        let most = bytes.len().saturating_mul(MAX_EXPANSION);
        let len = usize::try_from(len).ok().filter(|len| *len <= most);
        let len = len.ok_or(CodeError("it claims to be longer than any code of its length can be"))?;
        let n_chunks = len.div_ceil(CHUNK_BYTES);
        let (entries, codes) = rest.split_at_checked(n_chunks * ENTRY_BYTES).ok_or_else(cut)?;
        let mut end = 0usize;
        let mut chunks = Vec::with_capacity(n_chunks);
        for entry in entries.as_chunks::<ENTRY_BYTES>().0 {
            let [a, b, c, d, sum @ ..] = *entry;
            let start = end;
            end = end.saturating_add(u32::from_le_bytes([a, b, c, d]) as usize);
            chunks.push((start..end, u32::from_le_bytes(sum)));
        }
        if end != codes.len() {
            return Err(CodeError("its chunks are longer or shorter than its bytes"));
        }
        Ok(CodedTensor { codes, elements, len, chunks })
    }

    /// Bytes that it decodes to.
    pub fn decoded_len(&self) -> usize {
        self.len
    }

    /// Decodes into `out`, of [`decoded_len`](Self::decoded_len) bytes, on `n_threads`; what `out` holds after an error is
    /// anything.
    pub fn decode(&self, out: &mut [u8], n_threads: usize) -> Result<(), CodeError> {
        assert_eq!(out.len(), self.len);
        let jobs: Vec<_> =
            out.chunks_mut(CHUNK_BYTES).zip(&self.chunks).map(|job| Mutex::new(Some(job))).collect();
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            let mut scratch = Vec::new();
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let Some((out, (code, sum))) = job.lock().ok().and_then(|mut job| job.take()) else { break };
                if let Err(error) = self.decode_one(code.clone(), *sum, out, &mut scratch) {
                    next.store(jobs.len(), Ordering::Relaxed);
                    failed.lock().into_iter().for_each(|mut failed| *failed = Some(error));
                }
            }
        };
        std::thread::scope(|scope| {
            (1..n_threads.min(jobs.len())).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        failed.into_inner().ok().flatten().map_or(Ok(()), Err)
    }

    fn decode_one(
        &self,
        code: Range<usize>,
        sum: u32,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), CodeError> {
        decode_chunk(&self.codes[code], self.elements, out, scratch)?;
        (crc32fast::hash(out) == sum).then_some(()).ok_or(CodeError("a checksum does not fit"))
    }
}

/// The bits that an element has on average when its rotated bytes are coded as well as can be, each plane and chunk by its own
/// frequencies: no code of this kind is shorter.
pub fn entropy_bits(bytes: &[u8], elements: Elements) -> f64 {
    let mut bits = 0.0;
    for chunk in bytes.chunks(CHUNK_BYTES) {
        for plane in planes(chunk, elements).0 {
            let mut counts = [0u32; 256];
            plane.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
            let log2 = |x: f64| crate::float::ln64(x) / std::f64::consts::LN_2;
            let n = plane.len() as f64;
            let used = counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count));
            bits += used.map(|count| count * log2(n / count)).sum::<f64>();
        }
    }
    bits / (bytes.len() / elements.size()).max(1) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(code: &[u8]) -> Result<Vec<u8>, CodeError> {
        let tensor = CodedTensor::parse(code)?;
        let mut out = vec![7; tensor.decoded_len()];
        tensor.decode(&mut out, 3)?;
        Ok(out)
    }

    /// Bytes of few values and of many, in runs and scattered.
    fn bytes(seed: u64, len: usize, values: u64) -> Vec<u8> {
        let mut x = seed | 1;
        let mut next = move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        };
        (0..len).map(|_| (next().leading_zeros() as u64 * 31 + next() % values) as u8).collect()
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(seed: u64, len in 0usize..3000, values in 1u64..256) {
            for elements in Elements::ALL {
                let bytes = bytes(seed, len, values);
                prop_assert_eq!(&decoded(&encode(&bytes, elements)).unwrap(), &bytes);
                prop_assert_eq!(coded_len(&bytes, elements), encode_chunk(&bytes, elements).len());
                let few = &bytes[..len % 5];
                prop_assert_eq!(&decoded(&encode(few, elements)).unwrap(), few);
            }
        }

        #[test]
        fn altered_codes_are_errors(seed: u64, len in 1usize..3000, at: usize, bit in 0u8..8) {
            for elements in Elements::ALL {
                let mut code = encode(&bytes(seed, len, 3), elements);
                let at = at % code.len();
                code[at] ^= 1 << bit;
                // Bits that fill up the last byte of a stream mean nothing.
                let same = decoded(&code).is_ok_and(|decoded| decoded == bytes(seed, len, 3));
                prop_assert!(same || decoded(&code).is_err());
                prop_assert!(decoded(&code[..at]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_a_code_or_an_error(bytes: Vec<u8>) {
            let _ = decoded(&bytes);
            for elements in Elements::ALL {
                let _ = decode_chunk(&bytes, elements, &mut [0; 77], &mut Vec::new());
            }
        }
    }

    #[test]
    fn long_tensors_of_every_kind_come_back_from_any_number_of_threads() {
        for (len, values) in [(CHUNK_BYTES, 2), (CHUNK_BYTES + 1, 9), (3 * CHUNK_BYTES + 1235, 200)] {
            let bytes = bytes(5, len, values);
            for elements in Elements::ALL {
                let code = encode(&bytes, elements);
                let tensor = CodedTensor::parse(&code).unwrap();
                for n_threads in [1, 2, 7] {
                    let mut out = vec![0; len];
                    tensor.decode(&mut out, n_threads).unwrap();
                    assert!(out == bytes, "{elements:?}, {n_threads} threads");
                }
            }
        }
        for (what, bytes) in [("zeros", vec![0; CHUNK_BYTES]), ("one value", vec![0x5a; 100_000])] {
            for elements in Elements::ALL {
                let code = encode(&bytes, elements);
                assert!(decoded(&code).unwrap() == bytes && code.len() < bytes.len() / 7, "{what}");
            }
        }
    }

    /// What is coded is about as short as its frequencies allow, and what cannot be shorter costs next to nothing.
    #[test]
    fn codes_are_close_to_the_entropy() {
        let ternary = bytes(3, 4 * CHUNK_BYTES, 1).iter().map(|b| b % 81).collect::<Vec<_>>();
        let floats: Vec<u8> = bytes(9, 2 * CHUNK_BYTES, 250)
            .iter()
            .flat_map(|b| (f32::from(*b) * 0.37 - 40.0).to_bits().to_le_bytes()[2..].to_vec())
            .collect();
        for (bytes, elements) in [(&ternary, Elements::Bytes), (&floats, Elements::Halves)] {
            let limit = entropy_bits(bytes, elements) / 8.0 * (bytes.len() / elements.size()) as f64;
            let len = encode(bytes, elements).len() as f64;
            assert!(len < 1.03 * limit + 3000.0 && len > 0.99 * limit, "{len} bytes, at least {limit}");
            assert!(len < 0.9 * bytes.len() as f64);
        }
        let mut x = 1u64;
        let noise: Vec<u8> = (0..CHUNK_BYTES)
            .map(|_| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (x >> 56) as u8
            })
            .collect();
        assert!(encode(&noise, Elements::Singles).len() <= noise.len() + 40);
    }

    /// What arithmetic would not leave alone: payloads of NaNs, both zeros, the smallest numbers and the infinities.
    #[test]
    fn numbers_that_are_not_ordinary_come_back_bit_for_bit() {
        let halves: [u16; 12] =
            [0x7e01, 0x7c01, 0xfdff, 0xffff, 0x7fc1, 0x7f81, 0x8000, 0x0000, 0x0001, 0x83ff, 0x7c00, 0xff80];
        let singles = [
            0x7fc0_0001,
            0x7f80_0001,
            0xffbf_ffff,
            0xffff_ffff,
            0x8000_0000,
            0,
            1,
            0x807f_ffff,
            0x7f80_0000,
            0xff80_0000u32,
        ];
        assert!(f32::from_bits(singles[1]).is_nan() && f32::from_bits(singles[7]).is_subnormal());
        let halves: Vec<u8> = halves.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let singles: Vec<u8> = singles.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        for (some, elements) in [(halves, Elements::Halves), (singles, Elements::Singles)] {
            for n in [1, 500] {
                let bytes = some.repeat(n);
                let code = encode(&bytes, elements);
                assert_eq!(code[HEADER_BYTES + ENTRY_BYTES] == CODED, n == 500, "as they are, and coded");
                assert_eq!(decoded(&code).unwrap(), bytes);
            }
        }
    }

    /// Equally frequent weights are shortest to the base 3, and long runs as runs.
    #[test]
    fn ternary_weights_are_packed_where_that_is_shorter_than_coding_their_bytes() {
        let mut x = 7u64;
        let mut weights = |n: usize, percent_zeros: u64, run: usize| -> Vec<u8> {
            let mut code = || {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (a, b) = (x >> 40, x >> 33);
                if a % 100 < percent_zeros { 1 } else { (b as u8 & 1) * 2 }
            };
            let codes = (0..WEIGHTS * n / run).flat_map(|_| vec![code(); run]).collect::<Vec<u8>>();
            codes.as_chunks::<WEIGHTS>().0.iter().map(|c| c[0] << 6 | c[1] << 4 | c[2] << 2 | c[3]).collect()
        };
        for (zeros, run, tag, most) in [
            (33, 1, PACKED, 0.8003),
            (43, 1, CODED, 0.79),
            (33, 64, PACKED, 0.09),
            (97, 64, PACKED, 0.031),
            (97, 1, PACKED, 0.13),
        ] {
            let bytes = weights(CHUNK_BYTES, zeros, run);
            let code = encode_chunk(&bytes, Elements::Bytes);
            assert_eq!(coded_len(&bytes, Elements::Bytes), code.len());
            let share = code.len() as f64 / bytes.len() as f64;
            assert!(
                code[0] == tag && share < most,
                "{zeros} % zeros in runs of {run}: {share} with {}",
                code[0]
            );
            assert_eq!(decoded(&encode(&bytes, Elements::Bytes)).unwrap(), bytes);
        }
        assert_eq!(encode_chunk(&[0b1101_0101; 64], Elements::Bytes)[0], RAW, "3 is no code of a weight");
        let huge = weights(CHUNK_BYTES, 100, 1);
        assert_eq!(decoded(&encode(&huge, Elements::Bytes)).unwrap(), huge);
    }

    #[test]
    fn a_short_code_cannot_claim_a_long_tensor() {
        let claim = header(1 << 40, Elements::Bytes, &[]);
        assert_eq!(
            CodedTensor::parse(&claim).unwrap_err().to_string(),
            "not what a tensor was coded to: it claims to be longer than any code of its length can be"
        );
    }
}
