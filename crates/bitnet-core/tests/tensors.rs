//! Tensors as values: their memory, their types, their files, and threads that share them.

use bitnet_core::conversion::{ConversionConfig, ConversionEngine};
use bitnet_core::memory::{HybridMemoryPool, MemoryPoolConfig};
use bitnet_core::tensor::{
    ActivationFunction, TensorIndex, TensorMetadata, Term, load_tensors, save_tensors,
};
use bitnet_core::{BitNetDType, BitNetTensor, Device, Error};
use bitnet_quant::kernels::Arithmetic;

fn pool() -> HybridMemoryPool {
    HybridMemoryPool::new().unwrap()
}

fn numbers(n: usize, shape: &[usize], pool: &HybridMemoryPool) -> BitNetTensor {
    let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
    BitNetTensor::from_slice(&values, shape, BitNetDType::F32, &Device::Cpu, pool).unwrap()
}

#[test]
fn every_type_is_filled_with_numbers_that_it_holds() {
    let pool = pool();
    let bytes = |value, dtype| {
        BitNetTensor::full(&[3], value, dtype, &Device::Cpu, &pool).map(|t| t.as_bytes().to_vec())
    };
    assert_eq!(bytes(1.0, BitNetDType::F32).unwrap(), [0, 0, 0x80, 0x3f].repeat(3));
    assert_eq!(bytes(1.0, BitNetDType::F16).unwrap(), [0, 0x3c].repeat(3));
    assert_eq!(bytes(-1.0, BitNetDType::BF16).unwrap(), [0x80, 0xbf].repeat(3));
    assert_eq!(bytes(-2.0, BitNetDType::I8).unwrap(), [0xfe; 3]);
    assert_eq!(bytes(-2.0, BitNetDType::I4).unwrap(), [0xee; 2]);
    assert_eq!(bytes(0.0, BitNetDType::BitNet158).unwrap(), [0b01_01_01_01]);
    assert_eq!(bytes(1.0, BitNetDType::BitNet158).unwrap(), [0b10_10_10_10]);
    for (value, dtype) in [(0.5, BitNetDType::I8), (8.0, BitNetDType::I4), (2.0, BitNetDType::BitNet158)] {
        assert!(matches!(bytes(value, dtype), Err(Error::Unfit { .. })), "{value} {dtype}");
    }
    let random = |seed| BitNetTensor::random(&[100], BitNetDType::F32, &Device::Cpu, seed, &pool).unwrap();
    assert_eq!(random(1).as_bytes(), random(1).as_bytes());
    assert_ne!(random(1).as_bytes(), random(2).as_bytes());
    let identity = BitNetTensor::identity(2, BitNetDType::F32, &Device::Cpu, &pool).unwrap();
    assert_eq!(identity.as_slice::<f32>(), [1.0, 0.0, 0.0, 1.0]);
    for shape in [&[usize::MAX, 2][..], &[1 << 40, 1 << 40, 0], &[1 << 62]] {
        let huge = BitNetTensor::zeros(shape, BitNetDType::F32, &Device::Cpu, &pool);
        assert!(matches!(huge, Err(Error::OutOfMemory { .. })), "{shape:?}");
    }
    let elsewhere = BitNetTensor::zeros(&[1], BitNetDType::I8, &Device::Cuda, &pool);
    assert!(matches!(elsewhere, Err(Error::NotCompiled { .. })));
}

#[test]
fn views_share_memory_and_copies_do_not() {
    let pool = pool();
    let a = numbers(24, &[2, 3, 4], &pool);
    let out = pool.get_metrics().allocation_count;
    let step = TensorIndex::Step { start: None, end: None, step: -1 };
    let view = a.slice(&[TensorIndex::Index(1), step, TensorIndex::Range(1..3)]).unwrap();
    assert_eq!((view.shape(), view.strides()), (&[3, 2][..], &[-4isize, 1][..]));
    assert_eq!(view.as_ptr().addr() - a.as_ptr().addr(), 4 * (12 + 8 + 1));
    assert_eq!(a.permute(&[2, 0, 1]).unwrap().as_ptr(), a.as_ptr());
    assert_eq!(a.transpose().unwrap().dims(), [2, 4, 3]);
    assert_eq!(a.broadcast_to(&[5, 2, 3, 4]).unwrap().as_ptr(), a.as_ptr());
    assert_eq!(a.reshape(&[6, 4], &pool).unwrap().as_ptr(), a.as_ptr());
    assert_eq!(a.contiguous(&pool).unwrap().as_ptr(), a.as_ptr());
    assert_eq!(pool.get_metrics().allocation_count, out, "a view took memory");
    let copy = view.contiguous(&pool).unwrap();
    assert_eq!(copy.as_slice::<f32>(), [21.0, 22.0, 17.0, 18.0, 13.0, 14.0]);
    assert_eq!(pool.get_metrics().total_allocated, 4 * (24 + 6));
    drop((a, copy));
    assert_eq!(pool.get_metrics().total_allocated, 4 * 24, "the view keeps the memory");
    drop(view);
    assert_eq!(pool.get_metrics().total_allocated, 0);
}

#[test]
fn operations_in_place_stay_there_when_nobody_shares_the_memory() {
    let pool = pool();
    let mut a = numbers(5, &[5], &pool);
    let (place, out) = (a.as_ptr(), pool.get_metrics().allocation_count);
    a.mul_assign(3.0, &pool).unwrap();
    a.sub_assign(1.0, &pool).unwrap();
    assert_eq!((a.as_ptr(), pool.get_metrics().allocation_count), (place, out));
    let shared = a.clone();
    a.add_assign(&shared, &pool).unwrap();
    assert_ne!(a.as_ptr(), shared.as_ptr());
    assert_eq!(a.as_slice::<f32>(), [-2.0, 4.0, 10.0, 16.0, 22.0]);
    assert_eq!(shared.as_slice::<f32>(), [-1.0, 2.0, 5.0, 8.0, 11.0]);
    let too_large = numbers(10, &[2, 5], &pool);
    assert!(matches!(a.add_assign(&too_large, &pool), Err(Error::Shapes { .. })));
}

#[test]
fn half_precision_is_computed_in_single_and_rounded_once() {
    let pool = pool();
    let half = |x: f32| half::f16::from_f32(x);
    let values = [half(1.0), half(2048.0), half(0.1)];
    let mut a = BitNetTensor::from_slice(
        &values.map(half::f16::to_bits),
        &[3],
        BitNetDType::F16,
        &Device::Cpu,
        &pool,
    )
    .unwrap();
    let sum = a.add(&a, &pool).unwrap();
    assert_eq!(sum.dtype(), BitNetDType::F16);
    let want = values.map(|x| half(2.0 * x.to_f32()).to_bits());
    assert_eq!(sum.as_slice::<u16>(), want);
    a.add_assign(&a.clone(), &pool).unwrap();
    assert_eq!(a.as_slice::<u16>(), want);
    // Past the largest half, in single precision it would not be infinite.
    let large = BitNetTensor::full(&[1], 60_000.0, BitNetDType::F16, &Device::Cpu, &pool).unwrap();
    assert_eq!(large.add(&large, &pool).unwrap().as_slice::<u16>(), [half::f16::INFINITY.to_bits()]);
    let wide = numbers(1, &[1], &pool);
    assert_eq!(large.add(&wide, &pool).unwrap().as_slice::<f32>(), [60_000.0]);
    assert_eq!(large.activate(ActivationFunction::Relu, &pool).unwrap().dtype(), BitNetDType::F16);
}

#[test]
fn packed_types_are_whole_or_refused() {
    let pool = pool();
    let ternary = BitNetTensor::zeros(&[4, 4], BitNetDType::BitNet158, &Device::Cpu, &pool).unwrap();
    assert_eq!(ternary.size_bytes(), 4);
    assert_eq!(ternary.reshape(&[16], &pool).unwrap().as_bytes(), [0x55; 4]);
    let error = ternary.transpose().unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot permute bitnet158 tensors, whose elements share bytes; convert to i8 first"
    );
}

#[test]
fn tensors_come_back_from_files_as_they_were() {
    let pool = pool();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tensors.safetensors");
    let all = [BitNetDType::F32, BitNetDType::F16, BitNetDType::BF16, BitNetDType::I8]
        .map(|dtype| BitNetTensor::full(&[2, 3], -2.0, dtype, &Device::Cpu, &pool).unwrap());
    let view = numbers(6, &[2, 3], &pool).transpose().unwrap();
    let scalar = numbers(1, &[], &pool);
    let mut named: Vec<(&str, &BitNetTensor)> = all.iter().map(|t| (t.dtype().name(), t)).collect();
    named.extend([("view", &view), ("scalar", &scalar)]);
    save_tensors(&path, &named).unwrap();
    let back = load_tensors(&path).unwrap();
    assert_eq!(back.keys().collect::<Vec<_>>(), named.iter().map(|(name, _)| name).collect::<Vec<_>>());
    for (name, tensor) in named {
        let loaded = &back[name];
        assert_eq!((loaded.shape(), loaded.dtype()), (tensor.shape(), tensor.dtype()));
        assert_eq!(loaded.as_bytes(), tensor.contiguous(&pool).unwrap().as_bytes(), "{name}");
    }
    // A tensor of a file is an operand like any other.
    back["view"].add(&back["i8"].transpose().unwrap(), &pool).unwrap();
    let packed = BitNetTensor::zeros(&[4], BitNetDType::I4, &Device::Cpu, &pool).unwrap();
    let error = save_tensors(&path, &[("packed", &packed)]).unwrap_err().to_string();
    assert!(error.contains("packed") && error.contains("convert it to f32"), "{error}");
    assert!(load_tensors(&path).unwrap().contains_key("view"), "the file that was there is lost");
}

#[test]
fn threads_share_tensors_and_every_byte_comes_back() {
    let pool = pool();
    let a = BitNetTensor::random(&[64, 96], BitNetDType::F32, &Device::Cpu, 3, &pool).unwrap();
    let result = |rounds: usize| {
        let mut total = a.transpose().unwrap().add(1.0, &pool).unwrap();
        for i in 0..rounds as isize {
            let row = a.slice(&[TensorIndex::Index(i)]).unwrap();
            let column = row.reshape(&[96, 1], &pool).unwrap();
            total.mul_assign(&column, &pool).unwrap();
            total.maximum_assign(-0.5, &pool).unwrap();
        }
        total.sum(&[], false, &pool).unwrap().as_slice::<f32>()[0].to_bits()
    };
    let want: Vec<u32> = (0..8).map(result).collect();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (result, want) = (&result, &want);
            scope.spawn(move || (0..10).for_each(|_| assert_eq!(result(n), want[n])));
        }
    });
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    shared(&a);
    assert_eq!(pool.get_metrics().total_allocated, a.size_bytes());
    drop(a);
    let metrics = pool.get_metrics();
    assert_eq!((metrics.total_allocated, metrics.allocation_count), (0, metrics.deallocation_count));
}

/// Threads with a tensor of one pool between them, small enough for Miri, which reports races: each reads it through a view,
/// writes to its clone, which must become a copy before, and may be the last to let go of the memory.
#[test]
fn miri_threads_share_a_tensor() {
    // With caps, so that nobody asks the system how much memory there is.
    let config =
        MemoryPoolConfig { max_small_pool_size: 1 << 20, max_large_pool_size: 1 << 20, ..Default::default() };
    let pool = HybridMemoryPool::with_config(config).unwrap();
    let a = numbers(16, &[4, 4], &pool);
    std::thread::scope(|scope| {
        for n in 1..=2u8 {
            let (shared, pool) = (a.clone(), &pool);
            scope.spawn(move || {
                let mut mine = shared.clone();
                mine.add_assign(&shared.transpose().unwrap(), pool).unwrap();
                mine.mul_assign(f32::from(n), pool).unwrap();
                let want: Vec<f32> = (0..16).map(|i| f32::from(n * (i + i % 4 * 4 + i / 4))).collect();
                assert_eq!(mine.as_slice::<f32>(), want);
                drop(shared);
            });
        }
        drop(a);
    });
    let metrics = pool.get_metrics();
    assert_eq!((metrics.total_allocated, metrics.allocation_count), (0, metrics.deallocation_count));
}

#[test]
fn memory_that_is_not_there_is_an_error_that_loses_nothing() {
    let pool =
        HybridMemoryPool::with_config(MemoryPoolConfig { max_small_pool_size: 100, ..Default::default() })
            .unwrap();
    let a = BitNetTensor::new(TensorMetadata::new(vec![20], BitNetDType::F32, Device::Cpu), &pool).unwrap();
    assert!(matches!(a.add(1.0, &pool), Err(Error::OutOfMemory { .. })));
    assert_eq!(pool.get_metrics().total_allocated, 80);
}

#[test]
fn scales_are_kept_or_refused_and_never_forgotten() {
    let pool = HybridMemoryPool::new().unwrap();
    let five = |scale| {
        let codes = BitNetTensor::from_slice(&[5i8], &[1], BitNetDType::I8, &Device::Cpu, &pool).unwrap();
        codes.with_scale(scale)
    };
    let engine = ConversionEngine::new(ConversionConfig::default(), pool.clone()).unwrap();
    let wide = |tensor: &BitNetTensor| engine.convert(tensor, BitNetDType::F32).unwrap();
    let joined = BitNetTensor::concatenate(&[&five(Some(0.25)), &five(Some(0.25))], 0, &pool).unwrap();
    assert_eq!(wide(&joined).as_slice::<f32>(), [1.25, 1.25]);
    let mixed = BitNetTensor::concatenate(&[&five(Some(0.25)), &five(None)], 0, &pool);
    assert!(matches!(mixed, Err(Error::MixedScales { .. })));
    let folder = tempfile::tempdir().unwrap();
    let refused = save_tensors(&folder.path().join("t.safetensors"), &[("codes", &five(Some(0.25)))]);
    assert!(refused.unwrap_err().to_string().contains("convert it to f32"));

    let mut values = wide(&five(Some(0.25)));
    values.arithmetic_in_place(Arithmetic::Mul, Term::Scalar(0.1), &pool).unwrap();
    assert_eq!(values.scale(), None, "new values have no step of old ones");

    for dtype in
        [BitNetDType::F32, BitNetDType::F16, BitNetDType::BF16, BitNetDType::I8, BitNetDType::BitNet158]
    {
        let identity = BitNetTensor::identity(4, dtype, &Device::Cpu, &pool).unwrap();
        let values = wide(&identity);
        let want: Vec<f32> = (0..16).map(|i| f32::from(u8::from(i % 5 == 0))).collect();
        assert_eq!(values.as_slice::<f32>(), want, "{dtype}");
    }
}
