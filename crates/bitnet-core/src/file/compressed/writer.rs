//! Writing compressed models. A safetensors header says how long each blob is before the first one comes, so that everything
//! is read twice, first for the lengths of its codes, which are known without coding, and memory holds a few chunks. A file that
//! its reader would refuse is not published.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bitnet_quant::dense::DenseFormat;
use bitnet_quant::entropy::{CHUNK_BYTES, Elements, coded_len, encode_chunk, entropy_bits, header};

use super::{
    CompressedFile, FILES_KEY, FORMAT, FORMAT_KEY, FileEntry, MIN_CODED_BYTES, TensorEntry, VERSION,
    VERSION_KEY, rest_blob, tensor_blob,
};
use crate::file::gguf::{GgmlType, Gguf};
use crate::file::safetensors::{self, Dtype, SafeTensors, TensorSpec};
use crate::file::{BYTES_PER_ENTRY, Mapping, TensorSink};
use crate::{Error, Result};

/// Chunks that each thread codes before the codes are written.
const CHUNKS_A_THREAD: usize = 8;

/// How far compressing has come, in bytes of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressProgress {
    /// Bytes read; each is twice, and what is not worth a blob of its own once more.
    pub done: usize,
    /// Those that there are.
    pub total: usize,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompressReport {
    /// Bytes of the model's files.
    pub before: usize,
    /// Bytes of the tensors and other parts as they are written now.
    pub after: usize,
    /// Bytes below which no code comes that knows how often each byte occurs in a chunk, and nothing else.
    pub entropy: f64,
}

/// Some bytes of a file that are coded together.
struct Blob<'a> {
    name: String,
    elements: Elements,
    /// One part for a tensor, any number for what lies between tensors.
    parts: Vec<&'a [u8]>,
    entries: Vec<(u32, u32)>,
    /// Bits that no code of single bytes goes below.
    entropy_bits: f64,
}

/// Writes the files of a model, GGUF, safetensors and others, to a compressed file on all cores. It appears at `path` when it
/// is complete.
pub fn compress(
    files: &[Arc<Mapping>],
    path: &Path,
    progress: &mut dyn FnMut(CompressProgress),
) -> Result<CompressReport> {
    let before = files.iter().map(|file| file.as_slice().len()).sum();
    let mut at = CompressProgress { done: 0, total: 2 * before };
    let mut advance = |done: usize, again: usize| {
        at.done += done;
        at.total += again;
        progress(at);
    };
    let mut entries = Vec::new();
    let mut blobs = Vec::new();
    for (f, file) in files.iter().enumerate() {
        let (entry, of_file) = plan(f, file, &mut advance)?;
        entries.push(entry);
        blobs.extend(of_file);
    }
    let list = serde_json::json!(entries).to_string();
    let metadata: BTreeMap<String, String> =
        [(FORMAT_KEY, FORMAT), (VERSION_KEY, VERSION), (FILES_KEY, &list)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    let sizes: Vec<[usize; 1]> = blobs.iter().map(|blob| [blob.size_bytes()]).collect();
    let specs: Vec<_> = blobs
        .iter()
        .zip(&sizes)
        .map(|(blob, size)| TensorSpec { name: &blob.name, dtype: Dtype::U8, shape: size })
        .collect();
    let mut advance = |n: usize| advance(n, 0);
    let data = |i: usize, sink: &mut TensorSink<'_>| blobs[i].write(&mut advance, sink);
    let file = safetensors::write_unpublished(path, safetensors::DATA_ALIGNMENT, &metadata, &specs, data)?;
    file.publish_checked(|written| {
        let readable = CompressedFile::parse(Mapping::open(written)?)?.is_some();
        readable.then_some(()).ok_or_else(|| Error::malformed(written, 0, "no compressed model".to_owned()))
    })?;
    let entropy = blobs.iter().map(|blob| blob.entropy_bits / 8.0).sum();
    Ok(CompressReport { before, after: sizes.iter().map(|[n]| n).sum(), entropy })
}

/// What is coded of file number `f`, and how. `advance` learns of bytes that were read, and of those that will be again.
fn plan<'a>(
    f: usize,
    file: &'a Arc<Mapping>,
    advance: &mut dyn FnMut(usize, usize),
) -> Result<(FileEntry, Vec<Blob<'a>>)> {
    let bytes = file.as_slice();
    let name = file.path().file_name();
    let name = name.ok_or_else(|| Error::NotAFile { path: file.path().to_owned() })?;
    let mut tensors = tensors_of(file)?;
    tensors.retain(|(entry, len, _)| {
        *len >= MIN_CODED_BYTES && entry.at.checked_add(*len).is_some_and(|end| end <= bytes.len())
    });
    tensors.sort_by_key(|(entry, len, _)| (entry.at, *len));
    let mut entry =
        FileEntry { name: name.to_string_lossy().into_owned(), bytes: bytes.len(), tensors: Vec::new() };
    let (mut at, mut between, mut blobs) = (0, Vec::new(), Vec::new());
    for (tensor, len, elements) in tensors {
        // Nothing forbids a GGUF file to have two names for the same bytes.
        if tensor.at < at {
            continue;
        }
        let name = tensor_blob(f, entry.tensors.len());
        let parts = vec![&bytes[tensor.at..tensor.at + len]];
        let blob = Blob::new(name, elements, parts, &mut |n| advance(n, 0))?;
        // A file may describe one tensor for each so many of its bytes.
        if blob.size_bytes() < BYTES_PER_ENTRY {
            advance(0, len);
            continue;
        }
        between.push(&bytes[at..tensor.at]);
        at = tensor.at + len;
        blobs.push(blob);
        entry.tensors.push(tensor);
    }
    between.push(&bytes[at..]);
    blobs.push(Blob::new(rest_blob(f), Elements::Bytes, between, &mut |n| advance(n, 0))?);
    Ok((entry, blobs))
}

/// The tensors of a file of any kind, with their bytes and what these are.
fn tensors_of(file: &Arc<Mapping>) -> Result<Vec<(TensorEntry, usize, Elements)>> {
    if file.as_slice().starts_with(b"GGUF") {
        let gguf = Gguf::parse(file.clone())?;
        let of_tensor = |tensor: &crate::file::gguf::TensorInfo| {
            let bytes = tensor.bytes()?;
            let elements = match tensor.ggml_type {
                GgmlType::Dense(DenseFormat::F16 | DenseFormat::BF16) => Elements::Halves,
                GgmlType::Dense(DenseFormat::F32) => Elements::Singles,
                _ => Elements::Bytes,
            };
            let entry = TensorEntry {
                name: tensor.name.clone(),
                dtype: tensor.ggml_type.to_string(),
                shape: tensor.dims.iter().rev().copied().collect(),
                at: bytes.offset(),
            };
            Ok((entry, bytes.len(), elements))
        };
        return gguf.tensors().map(of_tensor).collect();
    }
    if file.path().extension().is_none_or(|extension| extension != "safetensors") {
        return Ok(Vec::new());
    }
    let parsed = SafeTensors::parse(file.clone())?;
    let of_tensor = |tensor: &safetensors::Tensor| {
        let elements = match tensor.dtype {
            Dtype::F16 | Dtype::BF16 => Elements::Halves,
            Dtype::F32 => Elements::Singles,
            _ => Elements::Bytes,
        };
        let entry = TensorEntry {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name().to_lowercase(),
            shape: tensor.shape.clone(),
            at: tensor.bytes.offset(),
        };
        (entry, tensor.bytes.len(), elements)
    };
    Ok(parsed.tensors().map(of_tensor).collect())
}

impl<'a> Blob<'a> {
    /// Learns how long the codes of the parts will be.
    fn new(
        name: String,
        elements: Elements,
        parts: Vec<&'a [u8]>,
        advance: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let (mut entries, mut all_bits) = (Vec::new(), 0.0);
        let mut blob = Blob { name, elements, parts, entries: Vec::new(), entropy_bits: 0.0 };
        let measure = |chunk: &[u8]| {
            let bits = entropy_bits(chunk, elements) * (chunk.len() / elements.size()) as f64;
            (coded_len(chunk, elements) as u32, crc32fast::hash(chunk), bits)
        };
        blob.for_chunks(advance, measure, |(len, sum, bits)| {
            entries.push((len, sum));
            all_bits += bits;
            Ok(())
        })?;
        (blob.entries, blob.entropy_bits) = (entries, all_bits);
        Ok(blob)
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    fn size_bytes(&self) -> usize {
        let codes: usize = self.entries.iter().map(|(len, _)| *len as usize).sum();
        header(self.len(), self.elements, &self.entries).len() + codes
    }

    fn write(&self, advance: &mut dyn FnMut(usize), sink: &mut TensorSink<'_>) -> Result<()> {
        sink.write(&header(self.len(), self.elements, &self.entries))?;
        let encode = |chunk: &[u8]| encode_chunk(chunk, self.elements);
        self.for_chunks(advance, encode, |code| sink.write(&code))
    }

    /// Does `work` on every chunk, on all cores, and calls `each` with what comes of it, in their order.
    fn for_chunks<T: Default + Send>(
        &self,
        advance: &mut dyn FnMut(usize),
        work: impl Fn(&[u8]) -> T + Sync,
        mut each: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let joined;
        let bytes = match &self.parts[..] {
            [whole] => *whole,
            parts => {
                joined = parts.concat();
                &joined
            }
        };
        let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        for batch in bytes.chunks(n_threads * CHUNKS_A_THREAD * CHUNK_BYTES) {
            let chunks: Vec<&[u8]> = batch.chunks(CHUNK_BYTES).collect();
            let done: Vec<Mutex<T>> = chunks.iter().map(|_| Mutex::default()).collect();
            let share = |first: usize| {
                for i in (first..chunks.len()).step_by(n_threads) {
                    *done[i].lock().unwrap_or_else(PoisonError::into_inner) = work(chunks[i]);
                }
            };
            std::thread::scope(|scope| {
                let share = &share;
                (1..n_threads.min(chunks.len())).for_each(|first| drop(scope.spawn(move || share(first))));
                share(0);
            });
            for one in done {
                each(one.into_inner().unwrap_or_else(PoisonError::into_inner))?;
            }
            advance(batch.len());
        }
        Ok(())
    }
}
