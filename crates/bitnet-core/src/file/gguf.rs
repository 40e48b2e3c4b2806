//! GGUF files, versions 2 and 3, little-endian.
//!
//! A file is a head (magic, version, counts), metadata (keys with typed values), a description of each tensor,
//! and the tensors' bytes at aligned offsets from the first aligned byte behind the descriptions.

mod cursor;
mod ggml_type;
mod value;
mod writer;

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use super::{Bytes, MAX_TENSOR_NAME_BYTES, Mapping, max_entries};
use crate::{Error, Result};
use cursor::Cursor;

pub use ggml_type::GgmlType;
pub use value::{Array, Value, ValueType};
pub use writer::GgufWriter;

/// How every GGUF file begins.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Where tensors begin unless the metadata says otherwise.
const DEFAULT_ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// The format's own limit on keys.
const MAX_KEY_BYTES: usize = 65_535;
/// The library that defines the format has tensors of at most four dimensions.
const MAX_DIMS: usize = 4;
/// The fewest bytes of a key with its value: a length, a type and a byte.
const MIN_KEY_BYTES: usize = 13;
/// The fewest bytes of a tensor's description: a length, a count, a type and an offset.
const MIN_TENSOR_BYTES: usize = 24;

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    mapping: Arc<Mapping>,
    version: u32,
    metadata: IndexMap<String, Value>,
    tensors: IndexMap<String, TensorInfo>,
}

/// The description of a tensor, and where its bytes are.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its dimensions, the fastest varying first: for a matrix, (cols, rows).
    pub dims: Vec<usize>,
    /// The type of its elements.
    pub ggml_type: GgmlType,
    mapping: Arc<Mapping>,
    /// Elements, the product of the dimensions.
    n: usize,
    /// Where the bytes begin in the file.
    offset: usize,
    /// How many bytes there are until the next tensor or the end of the file.
    space: usize,
}

impl Gguf {
    /// Reads everything in front of the tensors' bytes, and checks that the bytes are where they must be.
    ///
    /// Tensors of unknown types are listed; only their [`bytes`](TensorInfo::bytes) are refused.
    pub fn parse(mapping: Arc<Mapping>) -> Result<Self> {
        let mut cursor = Cursor::new(&mapping, 0);
        let version = read_version(&mut cursor)?;
        let max_entries = max_entries(mapping.as_slice().len());
        let n_tensors = cursor.count("tensors", MIN_TENSOR_BYTES, max_entries)?;
        let n_keys = cursor.count("metadata keys", MIN_KEY_BYTES, max_entries)?;

        let mut metadata = IndexMap::with_capacity(n_keys);
        for _ in 0..n_keys {
            let start = cursor.clone();
            let key = cursor.string(MAX_KEY_BYTES)?.to_owned();
            let value_type = ValueType::read(&mut cursor)?;
            let value = Value::read(&mut cursor, value_type)?;
            if metadata.contains_key(&key) {
                return Err(start.malformed(format!("the key `{key}` occurs twice")));
            }
            metadata.insert(key, value);
        }

        let mut tensors = IndexMap::with_capacity(n_tensors);
        for _ in 0..n_tensors {
            let start = cursor.clone();
            let tensor = TensorInfo::read(&mut cursor)?;
            if let Some(twin) = tensors.insert(tensor.name.clone(), tensor) {
                return Err(start.malformed(format!("the tensor `{}` occurs twice", twin.name)));
            }
        }

        let mut gguf = Gguf { version, metadata, tensors, mapping: mapping.clone() };
        gguf.place_tensors(cursor)?;
        Ok(gguf)
    }

    /// The version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.mapping.path()
    }

    /// The file.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Every metadata key with its value, in the order of the file.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Every tensor, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// A string that must be there.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.required(key, self.opt_str(key)?)
    }

    /// A string, if the key is there.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An integer of any type that fits a u32; it must be there.
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.required(key, self.opt_u32(key)?)
    }

    /// An integer of any type that fits a u32, if the key is there.
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer from 0 to 2^32 - 1", Value::integer)
    }

    /// A floating-point number that must be there.
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.required(key, self.opt_f32(key)?)
    }

    /// A floating-point number, if the key is there.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a floating-point number", Value::float)
    }

    /// A truth value, if the key is there.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a truth value", |value| match value {
            Value::Bool(truth) => Some(*truth),
            _ => None,
        })
    }

    /// An array of strings that must be there.
    pub fn strings(&self, key: &str) -> Result<Vec<&str>> {
        self.required(key, self.opt_strings(key)?)
    }

    /// An array of strings, if the key is there.
    pub fn opt_strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let strings = self.typed(key, "an array of strings", |value| match value {
            Value::Array(array) => array.strings(),
            _ => None,
        })?;
        strings.map(Iterator::collect).transpose()
    }

    /// An array of floating-point numbers, if the key is there.
    pub fn opt_f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.typed(key, "an array of floating-point numbers", |value| items(value, Value::float))
    }

    /// An array of integers that fit i32, if the key is there.
    pub fn opt_i32s(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.typed(key, "an array of integers from -2^31 to 2^31 - 1", |value| items(value, Value::integer))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let mismatch = || value::mismatch(self.mapping.path(), key, value, wanted);
        convert(value).ok_or_else(mismatch).map(Some)
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::MissingKey { path: self.mapping.path().to_owned(), key: key.to_owned() })
    }

    /// Turns the tensors' offsets, which count from the start of the data, into those of the file, and gives each
    /// tensor the space up to the next one. `cursor` stands behind the descriptions.
    fn place_tensors(&mut self, cursor: Cursor<'_>) -> Result<()> {
        let alignment = match self.opt_u32(ALIGNMENT_KEY)? {
            None => DEFAULT_ALIGNMENT,
            Some(alignment) if alignment.is_power_of_two() => alignment as usize,
            Some(alignment) => {
                let problem = format!("is {alignment}, which is no power of two");
                return Err(Error::bad_key(self.mapping.path(), ALIGNMENT_KEY, problem));
            }
        };
        let file_len = self.mapping.as_slice().len();
        let path = self.mapping.path();
        let data_start = cursor.at().checked_next_multiple_of(alignment);

        let mut in_order: Vec<&mut TensorInfo> = self.tensors.values_mut().collect();
        in_order.sort_by_key(|tensor| tensor.offset);
        let mut end = file_len;
        for tensor in in_order.into_iter().rev() {
            if !tensor.offset.is_multiple_of(alignment) {
                let problem = format!("begins at {}, which is no multiple of {alignment}", tensor.offset);
                return Err(Error::bad_tensor(path, &tensor.name, problem));
            }
            let offset = data_start.and_then(|start| start.checked_add(tensor.offset));
            let (offset, space) = offset
                .and_then(|offset| Some((offset, end.checked_sub(offset)?)))
                .ok_or_else(|| Error::bad_tensor(path, &tensor.name, "begins behind the end of the file"))?;
            (tensor.offset, tensor.space) = (offset, space);
            tensor.check_space()?;
            end = offset;
        }
        Ok(())
    }
}

impl TensorInfo {
    /// Length of a row, the first dimension.
    pub fn cols(&self) -> usize {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Number of rows, the product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.dims.iter().skip(1).product()
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.n
    }

    /// Where the bytes begin in the file.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The bytes, as many as the type and dimensions say. I2_S may come without the padding behind its scale.
    pub fn bytes(&self) -> Result<Bytes> {
        let size = self
            .ggml_type
            .size_bytes(self.n, self.cols())
            .ok_or_else(|| self.bad(self.ggml_type.refusal(self.n, self.space)))?;
        let end = self.offset.saturating_add(size.min(self.space));
        Bytes::new(&self.mapping, self.offset..end).ok_or_else(|| self.bad("lies outside of the file"))
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let start = cursor.clone();
        let name = cursor.string(MAX_TENSOR_NAME_BYTES)?.to_owned();
        let n_dims = cursor.u32()? as usize;
        if n_dims > MAX_DIMS {
            let rule = format!("the tensor `{name}` has {n_dims} dimensions; {MAX_DIMS} is the most");
            return Err(start.malformed(rule));
        }
        let dims: Vec<u64> = (0..n_dims).map(|_| cursor.u64()).collect::<Result<_>>()?;
        // An empty tensor could claim rows of any length, and its reader would believe it.
        let n = dims.iter().try_fold(1usize, |n, &dim| {
            usize::try_from(dim).ok().filter(|&dim| dim != 0).and_then(|dim| n.checked_mul(dim))
        });
        let n = n.ok_or_else(|| {
            start.malformed(format!("the tensor `{name}` cannot have the dimensions {dims:?}"))
        })?;
        // Each fits: their product does.
        let dims = dims.into_iter().map(|dim| dim as usize).collect();
        let ggml_type = GgmlType::from_id(cursor.u32()?);
        let offset = cursor.u64()?;
        let offset = usize::try_from(offset)
            .map_err(|_| start.malformed(format!("the tensor `{name}` begins at {offset}")))?;
        Ok(TensorInfo { name, dims, ggml_type, mapping: cursor.mapping().clone(), n, offset, space: 0 })
    }

    /// Checks that the space holds the tensor, where its type is known.
    fn check_space(&self) -> Result<()> {
        let TensorInfo { ggml_type, dims, space, .. } = self;
        if let GgmlType::Other(_) = ggml_type {
            return Ok(());
        }
        let size = ggml_type
            .min_size_bytes(self.n, self.cols())
            .ok_or_else(|| self.bad(format!("of dimensions {dims:?} cannot be stored as {ggml_type}")))?;
        if size > *space {
            let hint = match ggml_type {
                GgmlType::Q2_0 => "; files with groups of 128 under this type are not read",
                _ => "",
            };
            let problem = format!(
                "needs {size} bytes as {ggml_type}, but the next tensor or the end is {space} away{hint}"
            );
            return Err(self.bad(problem));
        }
        Ok(())
    }

    fn bad(&self, problem: impl Into<String>) -> Error {
        Error::bad_tensor(self.mapping.path(), &self.name, problem)
    }
}

/// Reads the magic and the version.
fn read_version(cursor: &mut Cursor<'_>) -> Result<u32> {
    let start = cursor.clone();
    if cursor.array()? != MAGIC {
        return Err(start.malformed("the file does not begin with GGUF"));
    }
    let at = cursor.clone();
    match cursor.u32()? {
        version @ 2..=3 => Ok(version),
        version if matches!(version.swap_bytes(), 1..=3) => {
            Err(at.malformed("the file is big-endian; only little-endian files are read"))
        }
        version => {
            let rule = format!("version {version} is not read, only 2 and 3; convert the model again");
            Err(at.malformed(rule))
        }
    }
}

/// The items of an array, when each of them converts.
fn items<T>(value: &Value, convert: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    match value {
        Value::Array(array) => array.iter().map(|item| convert(&item.ok()?)).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
