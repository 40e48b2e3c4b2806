//! Devices and execution paths, as their users write them.

use bitnet_core::device::auto_select_device;
use bitnet_core::execution::*;
use bitnet_core::memory::{ALIGNMENT, HybridMemoryPool};
use bitnet_core::{BitNetDType, BitNetTensor, Device, Error};

#[test]
fn device_abstraction() {
    let device = auto_select_device();
    println!("device: {device:?}");
    let (cpu, metal) = bitnet_core::device::get_device_info();
    assert!(cpu && !metal);
    assert_eq!(device, Device::Cpu);
}

#[test]
fn execution_path_optimization() {
    let available = get_available_backends();
    let preferred = get_preferred_backend();
    assert_eq!(available.first(), Some(&preferred));
    for (operation, backend) in
        [("matmul", preferred), ("quantize", preferred), ("tokenization", ExecutionBackend::CandleCpu)]
    {
        let chosen = choose_execution_backend(operation);
        println!("{operation}: {chosen}");
        assert_eq!(chosen, backend);
    }

    let mlx_error = MlxError::OperationFailed("a product failed".to_string());
    match fallback_to_candle(mlx_error) {
        Ok(tensor) => panic!("nothing could be computed, and yet there is {:?}", tensor.dims()),
        Err(e) => assert!(e.to_string().contains("a product failed"), "{e}"),
    }

    for backend in &[ExecutionBackend::Mlx, ExecutionBackend::CandleMetal, ExecutionBackend::CandleCpu] {
        let is_cpu = *backend == ExecutionBackend::Cpu;
        assert_eq!(is_backend_available(backend), is_cpu, "{backend}");
    }
}

#[test]
fn an_operation_that_its_error_carries_is_done_on_the_cpu() {
    let operation = || {
        let pool = HybridMemoryPool::new()?;
        let mut handle = pool.allocate(8, ALIGNMENT, &Device::Cpu)?;
        handle.as_mut_slice().copy_from_slice(&[0, 0, 128, 63, 0, 0, 0, 64]);
        BitNetTensor::from_handle(handle, &[2], BitNetDType::F32)
    };
    let error = MlxError::Recoverable { reason: "lost".into(), operation: Box::new(operation) };
    assert_eq!(fallback_to_candle(error).unwrap().as_slice::<f32>(), [1.0, 2.0]);
    let failing = || Err(Error::ForeignHandle);
    let error = MlxError::Recoverable { reason: "lost".into(), operation: Box::new(failing) };
    assert!(matches!(fallback_to_candle(error), Err(Error::ForeignHandle)));
}
