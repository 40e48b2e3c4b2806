//! Which backends there are, which one an operation gets and why, and what happens when one fails.
//!
//! `cargo run --example execution_path_demo`

use bitnet_core::execution::*;
use bitnet_core::memory::{ALIGNMENT, HybridMemoryPool};
use bitnet_core::{BitNetDType, BitNetTensor, Device};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::linear::{DenseView, dense_linear};
use bitnet_quant::threads::Threads;

fn main() -> Result<(), bitnet_core::Error> {
    println!("available backends: {:?}", get_available_backends());
    println!("preferred backend: {}", get_preferred_backend());
    for operation in ["matmul", "quantize", "tokenization"] {
        println!("{operation}: {}", choose_execution_backend(operation));
    }
    for backend in &ExecutionBackend::ALL {
        println!("{backend}: {}", if is_backend_available(backend) { "available" } else { "not available" });
    }

    // The same operation under each strategy, on numbers that are measured here and now.
    let threads = Threads::new(1);
    let mut timings = Timings::read(None);
    let context = OperationContext::bitlinear(1, 2560, 2560);
    println!("\na ternary product: {} operations, {} bytes", context.ops, context.bytes);
    for name in Strategy::NAMES {
        let advice = recommend(&context, &name.parse().unwrap_or_default(), &threads, &mut timings);
        println!("by {name}: {}, because of {}", advice.backend, advice.reason);
        for (backend, reason) in advice.passed_over {
            println!("  not {backend}: {reason}");
        }
    }

    // An error that carries its operation is made good on the CPU; one that does not stays an error.
    println!();
    let lost = || "the device is lost".to_owned();
    for error in [
        MlxError::Recoverable { reason: lost(), operation: Box::new(product) },
        MlxError::OperationFailed(lost()),
    ] {
        print!("{error}: ");
        match fallback_to_candle(error) {
            Ok(tensor) => println!("done, shape {:?}: {:?}", tensor.dims(), tensor.as_slice::<f32>()),
            Err(error) => println!("not done: {error}"),
        }
    }
    Ok(())
}

/// (1, 2) times the transpose of (3, 2).
fn product() -> Result<BitNetTensor, bitnet_core::Error> {
    let pool = HybridMemoryPool::new()?;
    let weights: Vec<u8> = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut out = [0.0; 3];
    let w = DenseView::new(&weights, 3, 2, DenseFormat::F32);
    dense_linear(ExecutionBackend::CandleCpu.kernels()?, &Threads::new(1), &w, &[10.0, 1.0], 1, &mut out);
    let mut handle = pool.allocate(size_of_val(&out), ALIGNMENT, &Device::Cpu)?;
    handle.as_mut_slice().copy_from_slice(&out.map(f32::to_le_bytes).concat());
    BitNetTensor::from_handle(handle, &[1, 3], BitNetDType::F32)
}
