//! Any bytes are a safetensors file or an error: every tensor that opens is as long as its shape says, and reads.

#![no_main]

use bitnet_core::file::Mapping;
use bitnet_core::file::safetensors::{SafeTensors, Tensor};
use bitnet_quant::packing::TernaryFormat;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = SafeTensors::parse(Mapping::memory("fuzz", data.to_vec())) else { return };
    file.tensors().for_each(read_tensor);
});

fn read_tensor(tensor: &Tensor) {
    assert_eq!(Some(tensor.bytes.len()), tensor.dtype.size_bytes(&tensor.shape));
    if let Some(format) = tensor.dtype.dense() {
        let mut values = vec![0.0; tensor.bytes.len() / format.block_bytes()];
        format.dequantize_row(&tensor.bytes, &mut values);
    }
    if let &[byte_rows, cols] = &tensor.shape[..]
        && tensor.bytes.len() == byte_rows * cols
        && tensor.bytes.len() > 0
    {
        let mut codes = vec![0; 4 * byte_rows * cols];
        let _ = TernaryFormat::HfU8.unpack_rows(
            &tensor.bytes,
            4 * byte_rows,
            cols,
            0..4 * byte_rows,
            &mut codes,
            &mut [],
        );
    }
}
