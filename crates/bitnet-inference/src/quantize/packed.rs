//! The folder that `transformers` loads: weights packed four to a byte, each with a scale beside it, in the order of
//! tensors and with the header that the library `safetensors` writes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use bitnet_core::Error as CoreError;
use bitnet_core::Result as CoreResult;
use bitnet_core::file::safetensors::{Dtype, REFERENCE_ALIGNMENT, Tensor, TensorSpec, write_aligned};
use bitnet_core::file::{OutputFolder, TensorSink};
use bitnet_quant::packing::TernaryFormat;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Masters, is_projection};
use crate::convert::WriteProgress;
use crate::source::{HfSource, Role, Source, StoredData, StoredTensor};
use crate::ternary_rows::TernaryRows;
use crate::{Error, Result};

/// The name that other readers look for.
const WEIGHTS_FILE: &str = "model.safetensors";

/// A tensor of the output.
struct Entry<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    content: Content<'a>,
}

enum Content<'a> {
    /// As it is in the input.
    Copy(&'a Tensor),
    /// The codes of a projection, which has so many weights.
    Codes(Role, usize),
    /// The scale of a projection.
    Scale(Role),
}

/// Writes the folder; the result is the largest relative error of a scale.
pub(super) fn write(
    masters: &Masters<'_>,
    hf: &HfSource,
    path: &Path,
    progress: &mut dyn FnMut(WriteProgress),
) -> Result<f32> {
    let is_taken = match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.exists(),
    };
    if is_taken {
        let must = "a folder that is empty or not there yet";
        return Err(Error::BadOption { option: "the output of the type hf", must });
    }
    let projections = projections(masters)?;
    let mut entries = Vec::new();
    for tensor in hf.checkpoint().tensors() {
        match projections.get(tensor.name.as_str()) {
            None => {
                let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
                entries.push(Entry { name, dtype: tensor.dtype, shape, content: Content::Copy(tensor) });
            }
            Some((role, stored)) => {
                TernaryFormat::HfU8
                    .check_shape(stored.rows, stored.cols)
                    .map_err(|e| bad(masters, stored, e))?;
                let shape = vec![stored.rows / 4, stored.cols];
                let content = Content::Codes(*role, stored.rows * stored.cols);
                entries.push(Entry { name: tensor.name.clone(), dtype: Dtype::U8, shape, content });
                let name = format!("{}_scale", tensor.name);
                let content = Content::Scale(*role);
                entries.push(Entry { name, dtype: tensor.dtype, shape: vec![1], content });
            }
        }
    }
    entries.sort_by(|a, b| {
        let key = |entry: &Entry<'_>| Reverse(entry.dtype.element_bytes());
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    let specs: Vec<TensorSpec<'_>> = entries
        .iter()
        .map(|entry| TensorSpec { name: &entry.name, dtype: entry.dtype, shape: &entry.shape })
        .collect();
    let weights = |entry: &Entry<'_>| match entry.content {
        Content::Codes(_, n) => n,
        Content::Copy(_) | Content::Scale(_) => entry.shape.iter().product(),
    };
    let mut at = WriteProgress { done: 0, total: entries.iter().map(weights).sum() };

    let folder = OutputFolder::create(path)?;
    let write_file = |name: &str, bytes: &[u8]| {
        let file = folder.join(name);
        fs::write(&file, bytes).map_err(|e| CoreError::io(&file, e))
    };
    write_file("config.json", &config(masters, hf)?)?;
    for file in hf.files().of_text() {
        if let Some(name) = file.path().file_name() {
            write_file(&name.to_string_lossy(), file.as_slice())?;
        }
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut scale_error = 0f32;
    write_aligned(&folder.join(WEIGHTS_FILE), REFERENCE_ALIGNMENT, &metadata, &specs, |i, sink| {
        let mut advance = |n| {
            at.done += n;
            progress(at);
        };
        match entries[i].content {
            Content::Copy(tensor) => {
                sink.write(&tensor.bytes)?;
                advance(weights(&entries[i]));
                Ok(())
            }
            Content::Scale(role) => {
                let error = write_scale(masters, &masters.outlined(role)?, entries[i].dtype, sink)?;
                scale_error = scale_error.max(error);
                advance(1);
                Ok(())
            }
            Content::Codes(role, _) => write_codes(masters, &masters.outlined(role)?, sink, &mut advance),
        }
    })?;
    folder.publish()?;
    Ok(scale_error)
}

/// The roles and outlines of the master weights by the names of their tensors.
fn projections(masters: &Masters<'_>) -> Result<HashMap<String, (Role, StoredTensor)>> {
    let mut projections = HashMap::new();
    for role in Role::all(masters.config().n_layers).into_iter().filter(is_projection) {
        let Some(stored) = masters.outline(role)? else { continue };
        if let Some((rows, cols)) = role.shape(masters.config()) {
            stored.check_shape(rows, cols, masters.path())?;
        }
        if let StoredData::Master { .. } = stored.data {
            projections.insert(stored.name.clone(), (role, stored));
        }
    }
    Ok(projections)
}

/// The scale that the product is multiplied with, in the format that the weights had.
fn write_scale(
    masters: &Masters<'_>,
    stored: &StoredTensor,
    dtype: Dtype,
    sink: &mut TensorSink<'_>,
) -> CoreResult<f32> {
    let scale = TernaryRows::new(stored, masters.path())?.scale();
    let format = dtype.dense().ok_or_else(|| bad(masters, stored, "its type is no float"))?;
    let (mut bytes, mut back) = (Vec::new(), [0.0]);
    format.quantize_row(&[scale], &mut bytes).map_err(|e| bad(masters, stored, e))?;
    format.dequantize_row(&bytes, &mut back);
    if !back[0].is_normal() {
        return Err(bad(masters, stored, format!("its scale {scale} is beyond the range of {dtype}")));
    }
    sink.write(&bytes)?;
    Ok(((back[0] - scale) / scale).abs())
}

/// The codes: a byte has those of four rows that are a quarter of the matrix apart.
fn write_codes(
    masters: &Masters<'_>,
    stored: &StoredTensor,
    sink: &mut TensorSink<'_>,
    advance: &mut dyn FnMut(usize),
) -> CoreResult<()> {
    let mut rows = TernaryRows::new(stored, masters.path())?;
    let quarter = stored.rows / 4;
    let (mut codes, mut bytes) = (vec![0; 4 * stored.cols], Vec::new());
    for r in 0..quarter {
        for (i, codes) in codes.chunks_exact_mut(stored.cols).enumerate() {
            rows.read(r + i * quarter, codes, &mut [])?;
        }
        bytes.clear();
        TernaryFormat::HfU8
            .pack_rows(&codes, stored.cols, 1.0, &mut bytes)
            .map_err(|e| bad(masters, stored, e))?;
        sink.write(&bytes)?;
        advance(codes.len());
    }
    Ok(())
}

/// The one part of the configuration that changes, as the file has it.
#[derive(Deserialize)]
struct ConfigText<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    quantization_config: Option<&'a RawValue>,
}

/// What is there, also where it is `null`.
fn present<'a, D: Deserializer<'a>>(value: D) -> std::result::Result<Option<&'a RawValue>, D::Error> {
    Deserialize::deserialize(value).map(Some)
}

/// The input's configuration, which says in addition how the weights are packed. The rest of the text stays as it is, down
/// to how numbers are spelled.
fn config(masters: &Masters<'_>, hf: &HfSource) -> Result<Vec<u8>> {
    let file = &hf.files().config;
    let malformed = |e: serde_json::Error| CoreError::malformed(file.path(), 0, e.to_string());
    let text = file.as_slice();
    let old = serde_json::from_slice::<ConfigText<'_>>(text).map_err(malformed)?.quantization_config;
    let mut new: Value =
        old.map_or(Ok(Value::Null), |old| serde_json::from_str(old.get())).map_err(malformed)?;
    if !new.is_object() {
        new = json!({});
    }
    if masters.dense_too
        && let Some(new) = new.as_object_mut()
    {
        // It may name what is ternary from now on.
        new.shift_remove("modules_to_not_convert");
    }
    new["quant_method"] = json!("bitnet");
    new["linear_class"] = json!("autobitlinear");
    new["quantization_mode"] = json!("offline");
    let new = format!("{new:#}").replace('\n', "\n  ");
    let (before, new, after) = match old {
        Some(old) => {
            // The value is borrowed from the text.
            let start = old.get().as_ptr().addr() - text.as_ptr().addr();
            (&text[..start], new, &text[start + old.get().len()..])
        }
        None => {
            // The text is an object, whose last brace ends it.
            let end = text.iter().rposition(|byte| *byte == b'}').unwrap_or(text.len());
            let before = text[..end].trim_ascii_end();
            let comma = if before.ends_with(b"{") { "" } else { "," };
            (before, format!("{comma}\n  \"quantization_config\": {new}\n"), &text[end..])
        }
    };
    Ok([before, new.as_bytes(), after].concat())
}

fn bad(masters: &Masters<'_>, stored: &StoredTensor, problem: impl std::fmt::Display) -> CoreError {
    CoreError::bad_tensor(masters.path(), &stored.name, format!("cannot be packed: {problem}"))
}
