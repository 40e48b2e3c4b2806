//! Any bytes are a GGUF file or an error: everything that opens is read to the last item and element.

#![no_main]

use bitnet_core::file::Mapping;
use bitnet_core::file::gguf::{Gguf, TensorInfo, Value};
use bitnet_quant::packing::I2sLayout;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::parse(Mapping::memory("fuzz", data.to_vec())) else { return };
    for (key, value) in gguf.metadata() {
        read_value(value);
        let _ = (gguf.u32(key), gguf.f32(key), gguf.opt_bool(key), gguf.str(key));
        let _ = (gguf.strings(key), gguf.opt_f32s(key), gguf.opt_i32s(key));
    }
    gguf.tensors().for_each(read_tensor);
});

fn read_value(value: &Value) {
    if let Value::Array(array) = value {
        array.iter().flatten().for_each(|item| read_value(&item));
    }
}

fn read_tensor(tensor: &TensorInfo) {
    let Ok(bytes) = tensor.bytes() else { return };
    let (rows, cols) = (tensor.rows(), tensor.cols());
    if let Some(format) = tensor.ggml_type.dense() {
        let row_bytes = format.row_bytes(cols).expect("the size of an open tensor is known");
        let mut values = vec![0.0; cols];
        bytes.chunks_exact(row_bytes.max(1)).for_each(|row| format.dequantize_row(row, &mut values));
    }
    for layout in I2sLayout::ALL {
        let Some(format) = tensor.ggml_type.ternary(layout) else { continue };
        if format.check_shape(rows, cols).is_err() {
            continue;
        }
        let mut codes = vec![0; rows * cols];
        let mut scales = vec![0.0; format.block().map_or(0, |block| rows * cols / block)];
        let _ = format.unpack_rows(&bytes, rows, cols, 0..rows, &mut codes, &mut scales);
        let _ = format.tensor_scale(&bytes, rows, cols);
    }
}
