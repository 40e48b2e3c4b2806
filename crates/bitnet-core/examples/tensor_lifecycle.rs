//! A tensor from its allocation to the return of its last byte: views share its memory, operations take their own.
//!
//! `cargo run -p bitnet-core --example tensor_lifecycle`

use bitnet_core::device::auto_select_device;
use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::memory::tensor::{BitNetDType, BitNetTensor, TensorIndex, TensorMetadata};

fn main() -> Result<(), bitnet_core::Error> {
    let pool = HybridMemoryPool::new()?;
    let out = |what: &str| println!("{what:40} {:6} bytes out", pool.get_metrics().total_allocated);
    let device = auto_select_device();

    let zeros = BitNetTensor::new(TensorMetadata::new(vec![16, 32], BitNetDType::F32, device), &pool)?;
    out(&format!("zeros {:?} on {}", zeros.shape(), zeros.device()));

    let clone = zeros.clone();
    let corner = zeros.slice(&[TensorIndex::Range(0..4), TensorIndex::Range(0..4)])?.transpose()?;
    assert_eq!((clone.as_ptr(), corner.as_ptr()), (zeros.as_ptr(), zeros.as_ptr()));
    out("a clone, and a view of a corner");

    let random = BitNetTensor::random(&[32], BitNetDType::F32, &device, 7, &pool)?;
    let sum = zeros.add(&random, &pool)?;
    out("a sum, one operand broadcast");

    let means = sum.mean(&[1], true, &pool)?;
    println!("the mean of every row is {}", means.as_slice::<f32>()[0]);
    drop((zeros, clone, random, sum, means));
    out("only the view is left");

    drop(corner);
    out("nothing is left");
    assert_eq!(pool.get_metrics().total_allocated, 0);
    Ok(())
}
