//! Any bytes are a coded tensor or an error, and a compressed model or another file: what opens decodes to as many bytes as it
//! says, or not at all.

#![no_main]

use bitnet_core::file::compressed::CompressedFile;
use bitnet_core::file::{Bytes, Mapping};
use bitnet_quant::entropy::{CodedTensor, Elements, decode_chunk};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(tensor) = CodedTensor::parse(data) {
        let _ = tensor.decode(&mut vec![0; tensor.decoded_len()], 2);
    }
    for elements in [Elements::Bytes, Elements::Halves, Elements::Singles] {
        let _ = decode_chunk(data, elements, &mut [0; 1000], &mut Vec::new());
    }
    let Ok(Some(file)) = CompressedFile::parse(Mapping::memory("fuzz", data.to_vec())) else { return };
    let _ = file.tensors().count();
    let names: Vec<String> = file.file_names().map(str::to_owned).collect();
    for name in names {
        let Ok(Some(mapping)) = file.file(&name) else { continue };
        let len = mapping.as_slice().len();
        for at in (0..len).step_by(1 + len / 64) {
            let bytes = Bytes::new(&mapping, at..len).expect("it lies inside");
            let _ = file.fill(&bytes).map(|filled| assert_eq!(filled.len(), len - at));
        }
    }
});
