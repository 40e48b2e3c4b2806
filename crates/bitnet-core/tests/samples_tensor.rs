//! The sample "Basic Tensor Operations" of the documentation, under the paths that it names.

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
