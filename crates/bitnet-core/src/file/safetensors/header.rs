//! The JSON in front of the data, read entry by entry so that every cap holds before anything is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Dtype, METADATA_KEY, Tensor};
use crate::file::{Bytes, MAX_TENSOR_NAME_BYTES, Mapping, max_entries};

/// Real tensors have at most five dimensions.
const MAX_DIMS: usize = 8;

/// Reads the tensors that `json` describes, whose data begins at `data_start` of the file, and the writer's texts.
pub(super) fn read(
    json: &[u8],
    mapping: &Arc<Mapping>,
    data_start: usize,
) -> serde_json::Result<(IndexMap<String, Tensor>, BTreeMap<String, String>)> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let header = deserializer.deserialize_map(HeaderVisitor { mapping, data_start })?;
    deserializer.end()?;
    Ok(header)
}

/// By hand, because a derived map would let the last of several equal names win.
struct HeaderVisitor<'a> {
    mapping: &'a Arc<Mapping>,
    data_start: usize,
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: Dtype,
    #[serde(deserialize_with = "shape")]
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl HeaderVisitor<'_> {
    fn bytes(&self, (begin, end): (usize, usize)) -> Option<Bytes> {
        let range = self.data_start.checked_add(begin)?..self.data_start.checked_add(end)?;
        Bytes::new(self.mapping, range)
    }
}

impl<'de> Visitor<'de> for HeaderVisitor<'_> {
    type Value = (IndexMap<String, Tensor>, BTreeMap<String, String>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let file_len = self.mapping.as_slice().len();
        let max_tensors = max_entries(file_len);
        let mut metadata = None;
        let mut tensors = IndexMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name.len() > MAX_TENSOR_NAME_BYTES {
                let rule = format_args!("a name is at most {MAX_TENSOR_NAME_BYTES} bytes long");
                return Err(A::Error::custom(rule));
            }
            let is_metadata = name == METADATA_KEY;
            if tensors.contains_key(&name) || is_metadata && metadata.is_some() {
                return Err(A::Error::custom(format_args!("the name `{name}` occurs twice")));
            }
            if is_metadata {
                metadata = Some(map.next_value::<BTreeMap<String, String>>()?);
                continue;
            }
            if tensors.len() == max_tensors {
                let rule = format_args!("a file of {file_len} bytes describes at most {max_tensors} tensors");
                return Err(A::Error::custom(rule));
            }
            let Entry { dtype, shape, data_offsets } = map.next_value()?;
            let bytes = self.bytes(data_offsets).ok_or_else(|| {
                let data_len = file_len - self.data_start;
                let end = data_offsets.1;
                A::Error::custom(format_args!(
                    "the tensor `{name}` ends at {end} of {data_len} bytes of data"
                ))
            })?;
            tensors.insert(name.clone(), Tensor { name, dtype, shape, bytes });
        }
        Ok((tensors, metadata.unwrap_or_default()))
    }
}

fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Dims;

    impl<'de> Visitor<'de> for Dims {
        type Value = Vec<usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of dimensions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
            let mut dims = Vec::new();
            while let Some(dim) = seq.next_element()? {
                if dims.len() == MAX_DIMS {
                    return Err(A::Error::custom(format_args!("a tensor has at most {MAX_DIMS} dimensions")));
                }
                dims.push(dim);
            }
            Ok(dims)
        }
    }

    deserializer.deserialize_seq(Dims)
}
