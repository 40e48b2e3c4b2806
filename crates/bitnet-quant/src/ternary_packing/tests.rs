//! Every packing is an identity, as small as it says, and unmoved by bytes that nobody packed.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What makes one packing better than another.
#[derive(Debug, Clone, Copy)]
enum Data {
    /// Independent weights with this share of zeros, in 1/1000.
    Independent(u64),
    /// Equal weights together, so many on average.
    Runs(u64),
    /// One after the other, 3000 weights each.
    Mixed,
}

/// The same weights for the same arguments.
fn weights(data: Data, len: usize, seed: u64) -> Vec<i8> {
    let mut state = seed;
    let mut random = move || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut last = 0;
    let weights = (0..len).map(|i| {
        let data = match (data, i / 3000 % 4) {
            (Data::Mixed, 0) => Data::Independent(333),
            (Data::Mixed, 1) => Data::Independent(930),
            (Data::Mixed, 2) => Data::Runs(100),
            (Data::Mixed, _) => Data::Independent(1000),
            (data, _) => data,
        };
        let r = random();
        let sign = if r & 1 == 0 { 1 } else { -1 };
        last = match data {
            Data::Independent(zeros) if (r >> 8) % 1000 < zeros => 0,
            Data::Runs(mean) if (r >> 8) % mean != 0 => last,
            Data::Runs(_) if last == sign => 0,
            _ => sign,
        };
        last
    });
    weights.collect()
}

fn any_data() -> impl Strategy<Value = Data> {
    prop_oneof![
        6 => prop_oneof![Just(0u64), Just(333), Just(430), Just(700), Just(900), Just(950), Just(990), Just(999), Just(1000)]
            .prop_map(Data::Independent),
        3 => prop_oneof![Just(2u64), Just(32), Just(70), Just(1000)].prop_map(Data::Runs),
        1 => Just(Data::Mixed),
    ]
}

/// From nothing to a million, at the edges of blocks and anywhere.
fn any_len() -> impl Strategy<Value = usize> {
    // An interpreter takes minutes for what a processor does in milliseconds.
    let (long, longest): (usize, usize) = if cfg!(miri) { (700, 701) } else { (20_000, 1_000_001) };
    prop_oneof![
        8 => 0..600usize,
        4 => (0..40usize, prop_oneof![Just(32usize), Just(64), Just(128), Just(160), Just(319)], 0..3usize)
            .prop_map(|(blocks, block, more)| (blocks * block + more).saturating_sub(1)),
        2 => 600..long,
        1 => long..longest,
    ]
}

fn pack(strategy: TernaryPackingStrategy, weights: &[i8]) -> PackedTernaryWeights {
    let packer = TernaryPackerFactory::create_packer(strategy);
    packer.pack(weights, &TernaryPackingConfig::default()).unwrap()
}

/// Bytes whose header is right and whose payload is anything.
fn forged(strategy: TernaryPackingStrategy, len: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(VERSION);
    bytes.extend((strategy as u32).to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    let sum = checksum(&bytes);
    bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn unpack_forged(
    strategy: TernaryPackingStrategy,
    len: u64,
    payload: &[u8],
) -> Result<Vec<i8>, TernaryPackingError> {
    SimdUnpacker::new().unpack(&PackedTernaryWeights::from_bytes(forged(strategy, len, payload))?)
}

fn payload(strategy: TernaryPackingStrategy, weights: &[i8]) -> Vec<u8> {
    pack(strategy, weights).as_bytes()[HEADER_BYTES..].to_vec()
}

proptest! {
    #[test]
    fn unpacking_gives_back_what_was_packed(
        data in any_data(), len in any_len(), seed in any::<u64>(), block_size in 1..5000usize,
    ) {
        let weights = weights(data, len, seed);
        let config = TernaryPackingConfig { block_size };
        for strategy in TernaryPackingStrategy::ALL {
            let packer = TernaryPackerFactory::create_packer(strategy);
            let packed = packer.pack(&weights, &config).unwrap();
            prop_assert_eq!(packed.as_bytes().len(), HEADER_BYTES + packer.payload_bytes(&weights, &config), "{}", strategy);
            prop_assert!(len <= packer.max_weights(packed.as_bytes().len() - HEADER_BYTES), "{}", strategy);
            let read = PackedTernaryWeights::from_bytes(packed.as_bytes().to_vec()).unwrap();
            prop_assert_eq!(&read, &packed);
            for kernels in Kernels::available() {
                let unpacked = SimdUnpacker::with_kernels(kernels).unpack(&read).unwrap();
                prop_assert!(unpacked == weights, "{} with {:?}", strategy, kernels);
            }
        }
    }

    #[test]
    fn automatic_choice_is_the_smallest(data in any_data(), len in any_len(), seed in any::<u64>()) {
        let weights = weights(data, len, seed);
        let chosen = TernaryPackerFactory::auto_select_strategy(&weights, &TernaryPackingConfig::default());
        let size = pack(chosen, &weights).memory_footprint;
        for strategy in TernaryPackingStrategy::ALL {
            prop_assert!(size <= pack(strategy, &weights).memory_footprint, "{} and not {}", chosen, strategy);
        }
    }

    #[test]
    fn any_payload_is_ternary_weights_or_an_error(
        bytes in vec(prop_oneof![3 => any::<u8>(), 1 => Just(0u8), 1 => 0..8u8], 0..80), len in 0..3000u64,
    ) {
        for strategy in TernaryPackingStrategy::ALL {
            if let Ok(weights) = unpack_forged(strategy, len, &bytes) {
                prop_assert_eq!(weights.len() as u64, len);
                prop_assert_eq!(first_not_ternary(&weights), None, "{}", strategy);
            }
        }
    }

    /// One damaged byte, with a checksum as if it had been packed so.
    #[test]
    fn a_damaged_payload_is_ternary_weights_or_an_error(
        data in any_data(), len in 0..700usize, seed in any::<u64>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let weights = weights(data, len, seed);
        for strategy in TernaryPackingStrategy::ALL {
            let mut payload = payload(strategy, &weights);
            if !payload.is_empty() {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
            let unpacked: Vec<_> = Kernels::available().into_iter().map(|kernels| {
                let packed = PackedTernaryWeights::from_bytes(forged(strategy, len as u64, &payload)).unwrap();
                SimdUnpacker::with_kernels(kernels).unpack(&packed)
            }).collect();
            prop_assert!(unpacked.iter().all(|result| *result == unpacked[0]), "{}", strategy);
            if let Ok(weights) = &unpacked[0] {
                prop_assert_eq!(first_not_ternary(weights), None, "{}", strategy);
            }
        }
    }
}

#[test]
fn truncated_and_prolonged_bytes_are_refused() {
    let weights = weights(Data::Mixed, 2000, 1);
    for strategy in TernaryPackingStrategy::ALL {
        let bytes = pack(strategy, &weights).into_bytes();
        for len in (0..bytes.len()).step_by(if cfg!(miri) { 97 } else { 1 }) {
            assert!(PackedTernaryWeights::from_bytes(bytes[..len].to_vec()).is_err(), "{strategy} of {len}");
        }
        let payload = payload(strategy, &weights);
        let n = weights.len() as u64;
        assert!(unpack_forged(strategy, n, &payload).is_ok());
        assert!(unpack_forged(strategy, n, &payload[..payload.len() - 1]).is_err(), "{strategy}");
        assert!(unpack_forged(strategy, n, &[&payload[..], &[0]].concat()).is_err(), "{strategy}");
        assert!(unpack_forged(strategy, n + 500, &payload).is_err(), "{strategy}");
        assert!(unpack_forged(strategy, n - 500, &payload).is_err(), "{strategy}");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    for strategy in TernaryPackingStrategy::ALL {
        let mut bytes = pack(strategy, &weights(Data::Mixed, 300, 2)).into_bytes();
        for bit in (0..8 * bytes.len()).step_by(if cfg!(miri) { 97 } else { 1 }) {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(PackedTernaryView::parse(&bytes).is_err(), "{strategy}, bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn few_bytes_cannot_ask_for_much_memory() {
    for strategy in TernaryPackingStrategy::ALL {
        for len in [64 * MAX_WEIGHTS_PER_BYTE as u64 + 1, 1 << 40, u64::MAX] {
            let error = PackedTernaryView::parse(&forged(strategy, len, &[0; 64])).unwrap_err();
            assert!(matches!(error, TernaryPackingError::Header { .. }), "{strategy}: {error}");
        }
    }
    // Nor can what is packed be beyond that limit.
    let zeros = vec![0; if cfg!(miri) { 1000 } else { 1_000_000 }];
    for strategy in TernaryPackingStrategy::ALL {
        let ratio = pack(strategy, &zeros).compression_ratio;
        assert!(ratio < MAX_WEIGHTS_PER_BYTE as f32, "{strategy}: {ratio}");
    }
}

#[test]
fn each_broken_rule_has_its_own_words() {
    use TernaryPackingStrategy::*;
    for (strategy, len, payload, words) in [
        (Uncompressed, 2, &[0, 2][..], "a byte is none"),
        (BitPacked2Bit, 4, &[0b01_01_11_01], "a code stands for none"),
        (Base3Packed, 6, &[0], "their number of weights"),
        (Base3Packed, 4, &[0, 0], "not as long"),
        (ByteAligned, 64, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "a sign or padding"),
        (ByteAligned, 3, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "a sign or padding"),
        (RunLengthEncoded, 1, &[3], "a run is of none"),
        (RunLengthEncoded, 64, &[0xfd], "ends before its length"),
        (RunLengthEncoded, 5, &[0x15], "too long"),
        (RunLengthEncoded, 7, &[0x15], "too short"),
        (CompressedSparse, 8, &[], "their number of weights"),
        (CompressedSparse, 8, &[0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "count is too long"),
        (CompressedSparse, 8, &[0x06], "too large"),
        (CompressedSparse, 8, &[0x10, 9], "too large"),
        (CompressedSparse, 8, &[0x10], "ends before"),
        // One weight is counted, and the mask has two, or one behind the end.
        (CompressedSparse, 8, &[0x10, 1, 0, 3], "add up"),
        (CompressedSparse, 3, &[0x10, 1, 0, 8], "add up"),
        // The weight is behind the end; the end is not reached.
        (CompressedSparse, 8, &[0x11, 1, 0, 16], "add up"),
        (CompressedSparse, 64, &[0x11, 1, 0, 16], "add up"),
        (Hybrid, 4, &[0, 0, 0], "ends before"),
        (Hybrid, 4, &[0, 0, 0, 0], "size that none can have"),
        (Hybrid, 4, &[4, 0, 0, 0], "ends before"),
        (Hybrid, 4, &[4, 0, 0, 0, 6, 0, 0, 0], "is unknown"),
        (Hybrid, 4, &[4, 0, 0, 0, 1 | 1 << 3, 0, 0, 0], "ends before"),
        (Hybrid, 4, &[4, 0, 0, 0, 1 | 1 << 3, 0, 0, 0, 0, 0], "bytes follow"),
        (Hybrid, 4, &[4, 0, 0, 0, 1 | 1 << 3, 0, 0, 0, 0xff], "a code stands for none"),
    ] {
        let error = unpack_forged(strategy, len, payload).unwrap_err().to_string();
        assert!(error.contains(words), "{strategy} {payload:?}: {error}");
    }
    let strategy = BitPacked2Bit;
    for (bytes, words) in [
        (b"GGUF".to_vec(), "fewer than a header"),
        (vec![0; 40], "do not begin with TPW"),
        ([b"TPW\x02".to_vec(), vec![0; 40]].concat(), "another version"),
        ([b"TPW\x01\x07".to_vec(), vec![0; 40]].concat(), "strategy is unknown"),
        (forged(strategy, 4, &[0]).into_iter().map(|b| if b == 4 { 3 } else { b }).collect(), "checksum"),
    ] {
        let error = PackedTernaryWeights::from_bytes(bytes).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_is_not_ternary_and_blocks_that_cannot_be_are_refused() {
    let mut weights = vec![1; 500];
    weights[499] = 2;
    weights[498] = -128;
    for strategy in TernaryPackingStrategy::ALL {
        let packer = TernaryPackerFactory::create_packer(strategy);
        let config = TernaryPackingConfig::default();
        let error = packer.pack(&weights, &config).unwrap_err();
        assert_eq!(error, TernaryPackingError::NotTernary { index: 498, value: -128 });
        assert!(!packer.is_suitable(&weights, &config));
        for block_size in [0, MAX_BLOCK_SIZE + 1] {
            let config = TernaryPackingConfig { block_size };
            assert_eq!(
                packer.pack(&[1], &config).unwrap_err(),
                TernaryPackingError::BlockSize { got: block_size }
            );
            assert!(!packer.is_suitable(&[1], &config));
        }
    }
    // Whatever the choice is, it is made.
    for block_size in [0, MAX_BLOCK_SIZE + 1] {
        TernaryPackerFactory::auto_select_strategy(&weights, &TernaryPackingConfig { block_size });
    }
    let packed = pack(TernaryPackingStrategy::BitPacked2Bit, &[1, 0]);
    let error = SimdUnpacker::default().unpack_into(packed.view(), &mut [0; 3]).unwrap_err();
    assert_eq!(error, TernaryPackingError::Length { want: 2, got: 3 });
}

#[test]
fn codes_in_the_header_are_positions() {
    for (code, strategy) in TernaryPackingStrategy::ALL.into_iter().enumerate() {
        assert_eq!(strategy as usize, code);
        assert_eq!(TernaryPackingStrategy::from_code(code as u32), Some(strategy));
        assert_eq!(format!("{strategy}"), format!("{strategy:?}"));
        assert_eq!(pack(strategy, &[0]).view().strategy(), strategy);
    }
}

/// The bytes of a few weights, by hand: packed bytes of today must unpack tomorrow.
#[test]
fn payloads_are_as_documented() {
    use TernaryPackingStrategy::*;
    let weights = [1, 0, -1, 0, 0, 1];
    for (strategy, want) in [
        (Uncompressed, &[1, 0, 0xff, 0, 0, 1][..]),
        // L = 2, so that weights 0, 2, 4 share a byte, and 1, 3, 5 another.
        (BitPacked2Bit, &[0b10_00_01_00, 0b01_01_10_00]),
        // ⌈(2·81 + 0·27 + 1·9) · 256 / 243⌉ and ⌈(81 + 27 + 2·9) · 256 / 243⌉.
        (Base3Packed, &[181, 133]),
        (ByteAligned, &[0b10_0101, 0, 0, 0, 0, 0, 0, 0, 0b00_0100, 0, 0, 0, 0, 0, 0, 0]),
        (RunLengthEncoded, &[2, 1, 0, 1 | 1 << 2, 2]),
        // k = 0, a count of one byte, 3 weights, whose second sign is set, and the mask.
        (CompressedSparse, &[0x10, 3, 0b010, 0b10_0101]),
        (Hybrid, &[0, 0x10, 0, 0, 1 | 2 << 3, 0, 0, 0, 0b10_00_01_00, 0b01_01_10_00]),
    ] {
        assert_eq!(payload(strategy, &weights), want, "{strategy}");
    }
    let mut long = vec![-1; 400];
    long.extend([0; 64]);
    assert_eq!(payload(RunLengthEncoded, &long), [0xfc, 255, 0xfc, 17, 0xfd, 0]);
    // k = 5: gaps of 100 = 3·32 + 4 and of 40 = 32 + 8 at the end.
    let sparse = [vec![0; 100], vec![-1], vec![0; 40]].concat();
    assert_eq!(payload(CompressedSparse, &sparse), [0x15, 1, 1 | 4 << 1, 0b1000]);
}

/// What each packing promises of the data that deserves it, in bits a weight.
#[test]
#[cfg_attr(miri, ignore = "needs many weights, and touches nothing that other tests do not")]
fn sizes_are_near_the_entropy() {
    use TernaryPackingStrategy::*;
    let bits = |strategy, data| 8.0 / f64::from(pack(strategy, &weights(data, 200_000, 3)).compression_ratio);
    let any = Data::Independent(333);
    assert!((2.0..2.01).contains(&bits(BitPacked2Bit, any)) && (2.0..2.01).contains(&bits(ByteAligned, any)));
    assert!((1.6..1.61).contains(&bits(Base3Packed, any)));
    // H(zeros) + the share of signs: 1.5846 bits at 33.3 %, 1.5557 at 43 %, 1.1813 at 70 %, 0.5690 at 90 %, 0.3364 at
    // 95 %, 0.1614 at 98 %.
    for (zeros, entropy) in
        [(333, 1.5846), (430, 1.5557), (700, 1.1813), (900, 0.5690), (950, 0.3364), (980, 0.1614)]
    {
        let bits = bits(CompressedSparse, Data::Independent(zeros));
        assert!((entropy * 0.985..entropy * 1.06).contains(&bits), "{zeros}: {bits}");
    }
    // A run of 32 on average has an entropy of 7.4 bits, and takes a byte, or two if it is longer than 63.
    assert!(bits(RunLengthEncoded, Data::Runs(32)) < 0.3);
    let hybrid = bits(Hybrid, Data::Mixed);
    for strategy in TernaryPackingStrategy::ALL.into_iter().filter(|strategy| *strategy != Hybrid) {
        assert!(hybrid < 0.9 * bits(strategy, Data::Mixed), "{strategy}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of weights, of which the tests before it have shorter ones")]
fn a_packing_suits_if_it_takes_no_more_than_two_bits_in_whole_blocks() {
    use TernaryPackingStrategy::*;
    let config = TernaryPackingConfig::default();
    let suitable = |data, len| {
        let weights = weights(data, len, 4);
        TernaryPackingStrategy::ALL
            .into_iter()
            .filter(|strategy| TernaryPackerFactory::create_packer(*strategy).is_suitable(&weights, &config))
            .collect::<Vec<_>>()
    };
    // ByteAligned has two bits a weight, however long its last block is.
    for len in (2944..=3008).step_by(8) {
        let independent = suitable(Data::Independent(333), len);
        assert_eq!(independent, [BitPacked2Bit, Base3Packed, ByteAligned, CompressedSparse, Hybrid], "{len}");
        let runs = suitable(Data::Runs(32), len);
        assert_eq!(runs[2..], [ByteAligned, RunLengthEncoded, CompressedSparse, Hybrid], "{len}");
    }
    assert_eq!(
        suitable(Data::Runs(2), 3000),
        [BitPacked2Bit, Base3Packed, ByteAligned, CompressedSparse, Hybrid]
    );
}
