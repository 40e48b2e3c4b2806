//! Tensors to and from safetensors files, which have the same bytes on every machine: those of memory, which are
//! little-endian as the files are, because the crates compile for no other processor.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use indexmap::IndexMap;

use crate::file::Mapping;
use crate::file::safetensors::{Dtype, SafeTensors, TensorSpec, write};
use crate::{Error, Result};

use super::{BitNetDType, BitNetTensor};

/// Writes tensors under their names. Types that the format lacks are refused. The file appears when it is complete.
pub fn save_tensors(path: &Path, tensors: &[(&str, &BitNetTensor)]) -> Result<()> {
    let specs = tensors
        .iter()
        .map(|(name, tensor)| {
            let known = tensor.dtype.safetensors_name().and_then(|n| Dtype::try_from(Cow::Borrowed(n)).ok());
            let refused = || {
                let problem =
                    format!("is {}, which safetensors files cannot hold; convert it to f32", tensor.dtype);
                Error::bad_tensor(path, *name, problem)
            };
            if tensor.scale.is_some() && tensor.dtype.safetensors_name() == BitNetDType::I8.safetensors_name()
            {
                let problem =
                    "has codes with a scale, which safetensors files cannot hold; convert it to f32";
                return Err(Error::bad_tensor(path, *name, problem));
            }
            Ok(TensorSpec { name, dtype: known.ok_or_else(refused)?, shape: tensor.shape() })
        })
        .collect::<Result<Vec<_>>>()?;
    write(path, &BTreeMap::new(), &specs, |i, sink| {
        let tensor = tensors[i].1;
        if tensor.is_contiguous() {
            return sink.write(tensor.as_bytes());
        }
        let mut bytes = vec![0; tensor.size_bytes()];
        tensor.gather(&mut bytes);
        sink.write(&bytes)
    })
}

/// Every tensor of a file, by name and in the file's order. Their bytes stay in the file.
pub fn load_tensors(path: &Path) -> Result<IndexMap<String, BitNetTensor>> {
    let file = SafeTensors::parse(Mapping::open(path)?)?;
    let load = |tensor: &crate::file::safetensors::Tensor| {
        let dtype = BitNetDType::from_safetensors_name(tensor.dtype.name()).ok_or_else(|| {
            Error::bad_tensor(
                path,
                &tensor.name,
                format!("is {}, which is no type of tensors here", tensor.dtype),
            )
        })?;
        let loaded = BitNetTensor::from_file(tensor.bytes.clone(), &tensor.shape, dtype)?;
        Ok((tensor.name.clone(), loaded))
    };
    file.tensors().map(load).collect()
}
