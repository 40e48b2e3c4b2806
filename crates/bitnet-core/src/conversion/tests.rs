use super::*;
use crate::BitNetDType::{BF16, BitNet158, F16, F32, I4, I8};
use crate::Device;

fn tensor(values: &[f32]) -> BitNetTensor {
    let pool = HybridMemoryPool::new().unwrap();
    let mut handle = pool.allocate(4 * values.len(), ALIGNMENT, &Device::Cpu).unwrap();
    handle.as_mut_slice().copy_from_slice(bytemuck::cast_slice(values));
    BitNetTensor::from_handle(handle, &[values.len()], F32).unwrap()
}

fn engine(config: ConversionConfig) -> (ConversionEngine, HybridMemoryPool) {
    let pool = HybridMemoryPool::new().unwrap();
    (ConversionEngine::new(config, pool.clone()).unwrap(), pool)
}

fn default_engine() -> ConversionEngine {
    engine(ConversionConfig::default()).0
}

fn with(strategy: ConversionStrategy) -> ConversionEngine {
    engine(ConversionConfig { strategy, ..Default::default() }).0
}

/// As floats.
fn values(tensor: &BitNetTensor) -> Vec<f32> {
    let wide = default_engine().convert(tensor, F32).unwrap();
    wide.as_bytes().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// More than three threads' worth, and no whole number of anything.
fn many() -> Vec<f32> {
    (0..200_003u32).map(|i| ((i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0) * 3.0).collect()
}

#[test]
fn floats_round_to_nearest_even() {
    let half = default_engine()
        .convert(&tensor(&[1.0, -2.5, 2049.0, 2051.0, 65519.0, 65520.0, 1e-8, f32::NAN]), F16)
        .unwrap();
    let back = values(&half);
    assert_eq!(back[..7], [1.0, -2.5, 2048.0, 2052.0, 65504.0, f32::INFINITY, 0.0]);
    assert!(back[7].is_nan());
    let upper = default_engine().convert(&tensor(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]), BF16).unwrap();
    assert_eq!(upper.as_bytes(), [0x80, 0x3f, 0x82, 0x3f]);
}

#[test]
fn integers_have_the_documented_codes() {
    let engine = default_engine();
    let bytes = engine.convert(&tensor(&[-2.54, 0.01, 1.27, 0.03]), I8).unwrap();
    assert_eq!((bytes.as_bytes(), bytes.scale()), (&[0x81u8, 0, 64, 2][..], Some(2.54 / 127.0)));
    let nibbles = engine.convert(&tensor(&[0.7, -0.7, 0.25, -0.1, 0.4]), I4).unwrap();
    // 7 and -7, 2 (the even of 2.5 as computed) and -1, 4 alone.
    assert_eq!((nibbles.as_bytes(), nibbles.scale()), (&[0x97u8, 0xf2, 0x04][..], Some(0.1)));
    // The mean magnitude is 1; of five elements the first two are in the first byte's highest pairs.
    let ternary = engine.convert(&tensor(&[1.5, -0.2, -2.0, 0.51, 0.79]), BitNet158).unwrap();
    let mean = (1.5 + 0.2 + 2.0 + 0.51 + 0.79) / 5.0f32;
    assert_eq!(ternary.as_bytes(), [0b10_00_10_01, 0b01_10_01_01]);
    assert!((ternary.scale().unwrap() - mean).abs() < 1e-6);
    let (codes, scale) = (values(&ternary), ternary.scale().unwrap());
    assert_eq!(codes, [scale, 0.0, -scale, scale, scale]);
}

#[test]
fn ternary_matrices_are_those_of_the_kernels() {
    let codes: Vec<u8> = (0..256).map(|i| (i * 7 % 3) as u8).collect();
    let mut want = vec![0; bitnet_quant::layout::row_bytes(256)];
    bitnet_quant::layout::pack_row(&codes, &mut want);
    let weights: Vec<f32> = codes.iter().map(|code| f32::from(*code) - 1.0).collect();
    let packed = with(ConversionStrategy::Direct).convert(&tensor(&weights), BitNet158).unwrap();
    assert_eq!(packed.as_bytes(), want);
}

/// The error of a value is at most that of its type: half a unit in the last place, or half a step.
#[test]
fn every_pair_of_types_converts_within_the_error_of_both() {
    let engine = default_engine();
    let source = many();
    let absmax = source.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let error_of = |dtype| match dtype {
        F32 => 0.0,
        F16 => absmax / 2048.0,
        BF16 => absmax / 256.0,
        I8 => absmax / 127.0 * 0.501,
        I4 => absmax / 7.0 * 0.501,
        _ => absmax,
    };
    for from in BitNetDType::ALL {
        let first = engine.convert(&tensor(&source), from).unwrap();
        for to in BitNetDType::ALL {
            let second = engine.convert(&first, to).unwrap();
            assert_eq!((second.dtype(), second.shape()), (to, &[source.len()][..]));
            assert_eq!(second.size_bytes(), to.size_bytes(source.len()).unwrap());
            let bound = error_of(from) + error_of(to);
            let worst = source.iter().zip(values(&second)).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst <= bound, "{from} to {to}: {worst} > {bound}");
            assert!(worst >= 0.1 * bound, "{from} to {to}: {worst} shows no sign of either type");
        }
    }
}

#[test]
fn chunks_and_threads_leave_no_trace() {
    let tensor = tensor(&many());
    for dtype in BitNetDType::ALL {
        for strategy in [ConversionStrategy::Scaled, ConversionStrategy::StochasticRounding] {
            let want = with(strategy).convert(&tensor, dtype).unwrap();
            for (threads, chunk_bytes) in [(1, MIN_CHUNK_BYTES), (3, 5000), (2, 1 << 20)] {
                let config = ConversionConfig { threads, chunk_bytes, strategy, ..Default::default() };
                let got = engine(config).0.convert(&tensor, dtype).unwrap();
                assert!(got.as_bytes() == want.as_bytes(), "{dtype} {threads} {chunk_bytes}");
                assert_eq!(got.scale(), want.scale());
            }
        }
    }
}

#[test]
fn streaming_takes_no_more_than_the_chunk_beside_its_result() {
    let tensor = tensor(&many());
    for config in [
        ConversionConfig::default(),
        ConversionConfig::high_precision(),
        ConversionConfig::high_performance(),
    ] {
        for dtype in [F16, I8, I4, BitNet158] {
            for chunk_bytes in [MIN_CHUNK_BYTES, 10_000, 64 << 10] {
                let (engine, pool) = engine(config.clone());
                let out = engine.streaming_convert(&tensor, dtype, chunk_bytes).unwrap();
                let metrics = pool.get_metrics();
                assert_eq!(metrics.total_allocated, out.size_bytes());
                let extra = metrics.peak_allocated - out.size_bytes();
                assert!(0 < extra && extra <= chunk_bytes, "{dtype}: {extra} of {chunk_bytes}");
            }
        }
    }
    let many = vec![tensor.clone(); 5];
    for (threads, chunk_bytes) in [(3, 4 * MIN_CHUNK_BYTES), (5, MIN_CHUNK_BYTES)] {
        let (engine, pool) = engine(ConversionConfig { threads, chunk_bytes, ..Default::default() });
        let out: usize = engine.batch_convert(&many, F16).unwrap().iter().map(|t| t.size_bytes()).sum();
        assert!(pool.get_metrics().peak_allocated <= out + chunk_bytes, "{threads}");
    }
    let (engine, pool) = engine(ConversionConfig::low_memory());
    let out = engine.convert(&tensor, I8).unwrap();
    assert_eq!(pool.get_metrics().peak_allocated, out.size_bytes() + MIN_CHUNK_BYTES);
    let error = engine.streaming_convert(&tensor, I8, 1023).unwrap_err().to_string();
    assert_eq!(error, "the chunk of conversions must be at least 1024 bytes");
}

#[test]
fn conversion_in_place_allocates_nothing_but_the_chunk() {
    for (from, to) in [(F32, F16), (F32, I8), (F16, BF16), (F16, I8), (I8, I4), (F32, BitNet158), (BF16, I4)]
    {
        let (engine, pool) = engine(ConversionConfig::low_memory());
        let mut tensor = engine.convert(&tensor(&many()), from).unwrap();
        let want = engine.convert(&tensor, to).unwrap();
        let pointer = tensor.as_bytes().as_ptr();
        let before = pool.get_metrics();
        engine.in_place_convert(&mut tensor, to).unwrap();
        assert!(tensor.as_bytes() == want.as_bytes(), "{from} to {to}");
        assert_eq!((tensor.dtype(), tensor.scale()), (to, want.scale()));
        assert_eq!(tensor.as_bytes().as_ptr(), pointer);
        assert_eq!(pool.get_metrics().allocation_count, before.allocation_count + 1, "the chunk");
        assert_eq!(pool.get_metrics().total_allocated, before.total_allocated);
    }
    // Shared bytes are left alone, and so is a tensor that cannot be converted.
    let (engine, mut shared) = (default_engine(), tensor(&[1.0, 2.0]));
    let other = shared.clone();
    engine.in_place_convert(&mut shared, F16).unwrap();
    assert_eq!((values(&other), values(&shared)), (vec![1.0, 2.0], vec![1.0, 2.0]));
    drop(other);
    let mut broken = tensor(&[1.0, f32::NAN]);
    assert!(engine.in_place_convert(&mut broken, I8).is_err());
    assert_eq!((broken.dtype(), values(&broken)[0]), (F32, 1.0));
    engine.in_place_convert(&mut broken, F32).unwrap();
    engine.in_place_convert(&mut shared, F32).unwrap();
    assert_eq!(shared.size_bytes(), 8);
}

#[test]
fn zero_copy_shares_its_bytes_and_refuses_by_name() {
    let (engine, tensor) = (default_engine(), tensor(&[1.0]));
    for same in [engine.zero_copy_convert(&tensor, F32), engine.convert(&tensor, F32)] {
        assert_eq!(same.unwrap().as_bytes().as_ptr(), tensor.as_bytes().as_ptr());
    }
    let error = engine.zero_copy_convert(&tensor, F16).unwrap_err().to_string();
    assert_eq!(error, "f32 cannot become f16 without a copy; use convert");
}

#[test]
fn strategies_differ_where_they_say_so() {
    let whole = tensor(&[3.0, -1.0, 2.4, 300.0]);
    let direct = with(ConversionStrategy::Direct).convert(&whole, I8).unwrap();
    assert_eq!((direct.as_bytes(), direct.scale()), (&[3u8, 0xff, 2, 127][..], None));
    // A scale that no code reaches the end of: only the aware way back finds the same codes.
    let bytes = BitNetTensor::from_handle(
        {
            let mut handle = HybridMemoryPool::new().unwrap().allocate(3, 1, &Device::Cpu).unwrap();
            handle.as_mut_slice().copy_from_slice(&[5, 0xfd, 1]);
            handle
        },
        &[3],
        I8,
    )
    .unwrap()
    .with_scale(Some(0.25));
    let aware = with(ConversionStrategy::QuantizationAware);
    for dtype in [F32, F16, I4] {
        let there = aware.convert(&bytes, dtype).unwrap();
        assert_eq!((values(&there), there.scale()), (vec![1.25, -0.75, 0.25], Some(0.25)), "{dtype}");
        let back = aware.convert(&there, I8).unwrap();
        assert_eq!((back.as_bytes(), back.scale()), (bytes.as_bytes(), Some(0.25)), "{dtype}");
    }
    let scaled = default_engine().convert(&bytes, I4).unwrap();
    assert_eq!(scaled.scale(), Some(1.25 / 7.0));
    // Codes that do not fit get a scale of their own.
    let wide = aware.convert(&tensor(&[100.0, 1.0]).with_scale(Some(1.0)), I4).unwrap();
    assert_eq!(wide.scale(), Some(100.0 / 7.0));
    let forgetful = ConversionConfig {
        preserve_metadata: false,
        strategy: ConversionStrategy::QuantizationAware,
        ..Default::default()
    };
    assert_eq!(engine(forgetful).0.convert(&bytes, F32).unwrap().scale(), None);
}

#[test]
fn stochastic_rounding_is_right_on_average_and_repeats_itself() {
    let n = 20_000;
    for (dtype, x, low, high) in [
        (I8, 0.3, 0.0, 1.0),
        (I4, -0.7, -1.0, 0.0),
        (BF16, 1.0 + 0.25 / 128.0, 1.0, 1.0 + 1.0 / 128.0),
        (F16, -1.0 - 0.75 / 1024.0, -1.0 - 1.0 / 1024.0, -1.0),
    ] {
        let mut source = vec![x; n];
        // A scale of one.
        source[0] = largest_code(dtype).unwrap_or(x);
        let config = |seed| ConversionConfig {
            strategy: ConversionStrategy::StochasticRounding,
            seed,
            ..Default::default()
        };
        let convert = |seed| values(&engine(config(seed)).0.convert(&tensor(&source), dtype).unwrap());
        let got = convert(1);
        assert!(got[1..].iter().all(|v| *v == low || *v == high), "{dtype}");
        let mean = got[1..].iter().map(|v| f64::from(*v)).sum::<f64>() / (n - 1) as f64;
        // Four standard deviations.
        assert!(
            (mean - f64::from(x)).abs() < f64::from(high - low) * 2.0 / (n as f64).sqrt(),
            "{dtype}: {mean}"
        );
        assert_eq!(got, convert(1));
        assert_ne!(got, convert(2));
    }
}

#[test]
fn double_precision_rounds_once() {
    // A product a little below the middle of two halves, where single precision rounds it to: then to even, up.
    let middle = 1.0 + 3.0 / 2048.0f32;
    let near = |code: &f32| {
        let exact = f64::from(middle / code) * f64::from(*code);
        exact < f64::from(middle) && exact as f32 == middle
    };
    let code = (1..127).map(|code| code as f32).find(near).unwrap();
    let codes = with(ConversionStrategy::Direct).convert(&tensor(&[code]), I8).unwrap();
    let codes = codes.with_scale(Some(middle / code));
    let single = default_engine().convert(&codes, F16).unwrap();
    assert_eq!(values(&single), [1.0 + 2.0 / 1024.0]);
    let double = engine(ConversionConfig::high_precision()).0.convert(&codes, F16).unwrap();
    assert_eq!(values(&double), [1.0 + 1.0 / 1024.0]);
}

#[test]
fn what_has_no_place_is_refused_by_its_index() {
    let validating = engine(ConversionConfig { validate_results: true, ..Default::default() }).0;
    let big = tensor(&[1.0, 70_000.0]);
    let message = validating.convert(&big, F16).unwrap_err().to_string();
    assert_eq!(
        message,
        "element 1 is 70000, which f16 cannot hold; convert to a wider type, or with a scale"
    );
    assert_eq!(values(&default_engine().convert(&big, F16).unwrap())[1], f32::INFINITY);
    // An infinity stays one among floats, and is no number for an integer.
    let infinite = tensor(&[f32::NEG_INFINITY]);
    assert!(validating.convert(&infinite, F16).is_ok());
    for dtype in [I8, I4, BitNet158] {
        for value in [f32::NAN, f32::INFINITY] {
            for strategy in [ConversionStrategy::Scaled, ConversionStrategy::Direct] {
                let error = with(strategy).convert(&tensor(&[1.0, 2.0, value]), dtype).unwrap_err();
                assert!(matches!(error, Error::Unrepresentable { index: 2, .. }), "{error}");
            }
        }
    }
    let config = ConversionConfig {
        strategy: ConversionStrategy::Direct,
        validate_results: true,
        ..Default::default()
    };
    assert!(engine(config).0.convert(&tensor(&[127.4, 128.0]), I8).is_err());
    // Zeros and what is next to nothing have codes of zero.
    let zeros = default_engine().convert(&tensor(&[0.0, 1e-40]), I8).unwrap();
    assert_eq!((values(&zeros), zeros.scale()), (vec![0.0, 0.0], Some(0.0)));
    for shape in [vec![0], vec![]] {
        let empty = BitNetTensor::ones(&shape, F32, &Device::Cpu, &HybridMemoryPool::new().unwrap()).unwrap();
        assert_eq!(default_engine().convert(&empty, I4).unwrap().shape(), shape);
    }
}

#[test]
fn batches_and_pipelines_are_single_conversions() {
    let (engine, pool) = engine(ConversionConfig { threads: 2, ..Default::default() });
    let tensors: Vec<_> = (1..6).map(|i| tensor(&many()[..i * 1000])).collect();
    let batch = engine.batch_convert(&tensors, I8).unwrap();
    assert_eq!(batch.len(), 5);
    for (one, many) in tensors.iter().zip(&batch) {
        assert!(engine.convert(one, I8).unwrap().as_bytes() == many.as_bytes());
    }
    assert!(engine.batch_convert(&[], I8).unwrap().is_empty());
    let there_and_back = engine.pipeline(I8).then(&engine, F32);
    let back = there_and_back.run(&tensors[0]).unwrap();
    assert_eq!(values(&back), values(&batch[0]));
    drop(batch);
    assert_eq!(pool.get_metrics().total_allocated, back.size_bytes());
    let broken = [tensors[0].clone(), tensor(&[f32::NAN])];
    assert!(engine.batch_convert(&broken, I8).is_err());
    let stats = engine.get_stats();
    // Five of the batch, five by themselves, two steps, and two of the last batch.
    assert_eq!((stats.total_conversions, stats.failed_conversions), (14, 1));
    assert!((stats.success_rate() - 100.0 * 13.0 / 14.0).abs() < 1e-9 && stats.average_time_ms() > 0.0);
}

#[test]
fn matrices_convert_row_by_row_on_any_number_of_threads() {
    use bitnet_quant::dense::DenseFormat;
    let values = &many()[..64 * 7];
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let matrix = StoredMatrix { bytes: &bytes, format: DenseFormat::F32, cols: 64 };
    for format in [DenseFormat::F16, DenseFormat::BF16, DenseFormat::Q8_0, DenseFormat::Q4_0] {
        let mut want = Vec::new();
        format.quantize_row(values, &mut want).unwrap();
        for threads in [1, 2, 9] {
            let engine = engine(ConversionConfig { threads, ..Default::default() }).0;
            assert_eq!(engine.convert_matrix(matrix, format).unwrap().as_slice(), want, "{format}");
        }
    }
    let refused = |matrix, format| default_engine().convert_matrix(matrix, format).unwrap_err().to_string();
    assert!(refused(matrix, DenseFormat::Q6K).contains("no whole number of its blocks"));
    assert!(refused(StoredMatrix { cols: 448, ..matrix }, DenseFormat::Q6K).contains("blocks"));
    let whole = StoredMatrix { bytes: &[0; 1024], format: DenseFormat::F32, cols: 256 };
    assert!(refused(whole, DenseFormat::Q6K).contains("it can be read, but not written"));
    assert!(
        refused(StoredMatrix { bytes: &[0; 1000], ..whole }, DenseFormat::F16).contains("number of rows")
    );
    let odd = StoredMatrix { cols: 7, ..matrix };
    let message = refused(odd, DenseFormat::Q4_0);
    assert_eq!(
        message,
        "rows of 7 f32 values cannot be kept as q4_0: a row is no whole number of its blocks; use another format"
    );
}
