//! The samples "Basic Tensor Operations" and "Device Abstraction" of the documentation, under the paths that it names.

use bitnet_core::device::auto_select_device;
use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::memory::tensor::{BitNetDType, BitNetTensor, TensorMetadata};

#[test]
fn basic_tensor_operations() -> Result<(), Box<dyn std::error::Error>> {
    let device = auto_select_device();
    let pool = HybridMemoryPool::new()?;
    let metadata = TensorMetadata::new(vec![128, 256], BitNetDType::F32, device);
    let tensor = BitNetTensor::new(metadata, &pool)?;
    println!("Tensor shape: {:?}", tensor.shape());
    println!("Tensor device: {:?}", tensor.device());
    assert_eq!((tensor.shape(), tensor.device()), (&[128, 256][..], device));
    assert_eq!((tensor.size_bytes(), tensor.as_slice::<f32>()[32_767]), (4 * 128 * 256, 0.0));
    Ok(())
}

#[test]
fn device_abstraction() {
    let device = auto_select_device();
    println!("Selected device: {device:?}");
    let (cpu_available, metal_available) = bitnet_core::device::get_device_info();
    println!("CPU available: {cpu_available}, Metal available: {metal_available}");
    assert!(cpu_available && device.check().is_ok());
}
